"""peewee's own tests, on playhouse's pooled databases and on ours, side by side; what differs is
printed.

    python tests/integrations/peewee_suite.py [--source DIR_OR_TARBALL] \\
        [--installed] [--backends mysql,postgres,psycopg3] [module ...]

The source distribution has no tests since peewee 4; ``--source`` takes a checkout or an archive of
the repository. Without it the tag of the installed version is asked of pip (``pip download
git+https://github.com/coleifer/peewee@VERSION``). The tests run against that source's own peewee,
or, with ``--installed``, the one that is installed here. Each server is private (PostgreSQL with
hstore, so an installed one), each run one process. Exit status 1 when a test ends differently on
our databases and the difference is not explained below.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import peewee

from unbroken_drill.servers import MariaDB, PostgreSQL

MODULES = (
    "db_tests fields manytomany models model_sql prefetch_tests results schema sql transactions"
    " with_related_tests".split()
)
MODULES += (
    "dataset extra_fields hybrid json_field kv migrations reflection schema_diff shortcuts signals"
    " mysql_ext test_utils".split()
)
MODULES += "postgres pwasyncio".split()

#: Modules that connect to another backend when they are loaded.
_NOT_ON = {"mysql": ("postgres",)}

#: Tests (by a pattern) that end differently, and why that is right. Every difference that is not
#: listed here is a failure.
EXPLAINED = {
    r"TestPostgresqlIntegration\.test_iterate_error_rolls_back$": (
        "it looks at the connection after a statement, which ours gave back"
    ),
    r"TestReconnectMixin\.": (
        "it breaks the connection and expects an error; ours replaces one that ended between two"
        " statements"
    ),
}

#: What the tests' modules import instead of the plain databases, after their own imports.
_KINDS = """
from {module} import PooledMySQLDatabase as MySQLDatabase, PooledPostgresqlDatabase as PostgresqlDatabase
from {connectors} import PooledMariaDBConnectorDatabase as MariaDBConnectorDatabase
from {connectors} import PooledMySQLConnectorDatabase as MySQLConnectorDatabase
from {extensions} import PooledPostgresqlExtDatabase as PostgresqlExtDatabase, PooledPsycopg3Database as Psycopg3Database
"""  # noqa: E501
_ASYNC_KINDS = "from {module} import AsyncMySQLDatabase, AsyncPostgresqlDatabase\n"
_OURS = dict.fromkeys(("module", "connectors", "extensions", "asyncio"), "unbroken.peewee")
_THEIRS = {
    "module": "playhouse.pool",
    "connectors": "playhouse.mysql_ext",
    "extensions": "playhouse.postgres_ext",
    "asyncio": "playhouse.pwasyncio",
}

_RUN = """
import json, os, sys, unittest
source, out, modules = sys.argv[1], sys.argv[2], sys.argv[3:]
sys.path.insert(0, source)
import peewee
assert not os.path.exists(source + "/peewee.py") or peewee.__file__.startswith(source), peewee.__file__

class Result(unittest.TextTestResult):
    ends = {}
    def note(self, test, how, why=""):
        self.ends.setdefault(test.id(), [how, why])
    def addSuccess(self, test):
        super().addSuccess(test); self.note(test, "ok")
    def addSkip(self, test, reason):
        super().addSkip(test, reason); self.note(test, "skipped")
    def addFailure(self, test, err):
        super().addFailure(test, err); self.note(test, "failed", self._exc_info_to_string(err, test)[-1500:])
    def addError(self, test, err):
        super().addError(test, err); self.note(test, "error", self._exc_info_to_string(err, test)[-1500:])

suite = unittest.TestSuite()
for name in modules:
    try:
        suite.addTest(unittest.TestLoader().loadTestsFromName("tests." + name))
    except Exception as problem:
        Result.ends[name] = ["not loaded", repr(problem)]
unittest.TextTestRunner(resultclass=Result, verbosity=0, stream=open(os.devnull, "w")).run(suite)
with open(out, "w") as file:
    json.dump(Result.ends, file)
os._exit(0)
"""  # noqa: E501


def main() -> int:
    """Run both ways on each backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--source", type=Path)
    parser.add_argument(
        "--installed", action="store_true", help="test the installed peewee, not the source's"
    )
    parser.add_argument("--backends", default="mysql,postgres,psycopg3")
    parser.add_argument("--verbose", action="store_true", help="show why a test ended differently")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = unpacked(options.source, Path(folder))
        differ = [
            difference
            for backend in options.backends.split(",")
            for difference in compare(backend, source, folder, options)
        ]
    return 1 if differ else 0


def unpacked(given: Path | None, folder: Path) -> Path:
    """The folder that has ``tests/`` in it."""
    if given is None:
        wanted = f"peewee @ git+https://github.com/coleifer/peewee@{peewee.__version__}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wanted],
            check=True,
        )
        (given,) = folder.glob("peewee*.zip")
    if given.is_dir():
        return given.resolve()
    if given.suffix == ".zip":
        zipfile.ZipFile(given).extractall(folder)
    else:
        subprocess.run(["tar", "xf", str(given), "-C", str(folder)], check=True)
    return next(path.parent.parent for path in folder.rglob("tests/base.py")).resolve()


def adapted(source: Path, to: Path, names: dict[str, str], installed: bool) -> Path:
    """A copy of *source* whose tests use pooled databases under the plain ones' names; without its
    peewee, for the *installed* one.
    """
    theirs = ("peewee.py", "playhouse") if installed else ()
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(".git", "docs", "examples", *theirs))
    (to / "suite_kinds.py").write_text(_KINDS.format(**names))
    (to / "suite_async_kinds.py").write_text(_ASYNC_KINDS.format(module=names["asyncio"]))
    for path in (to / "tests").glob("*.py"):
        text = re.sub(
            r"(?m)^(from (?:peewee|playhouse\.\w+) import"
            r" (?:\*|(?:MySQL|Postgres|Psycopg|MariaDB)\w*))$",
            r"\1\nfrom suite_kinds import *",
            path.read_text(),
        )
        text = re.sub(
            r"(?m)^(from playhouse.pwasyncio import \*)$",
            r"\1\nfrom suite_async_kinds import *",
            text,
        )
        # which arguments a class is given goes by peewee's own classes: a pooled one is no parent
        # of another
        path.write_text(
            re.sub(
                r"(elif issubclass\(db_class, )(MySQL|Postgresql)Database",
                r"\1__import__('peewee').\2Database",
                text,
            )
        )
    return to


def compare(backend: str, source: Path, folder: str, options: Any) -> list[str]:
    """The tests that end differently on *backend* without an explanation."""
    options = argparse.Namespace(
        **{
            **vars(options),
            "modules": [m for m in options.modules if m not in _NOT_ON.get(backend, ())],
        }
    )
    theirs, ours = (
        run(kind, backend, source, folder, options) for kind in ("playhouse", "unbroken")
    )
    passed, skipped = (
        [sum(how == end for how, _ in ends.values()) for ends in (theirs, ours)]
        for end in ("ok", "skipped")
    )
    print(
        f"{backend}: {len(ours)} tests; playhouse passes {passed[0]} (and skips {skipped[0]}),"
        f" unbroken {passed[1]} ({skipped[1]})",
        flush=True,
    )
    for name, (how, why) in ours.items():
        if how == "not loaded":
            print(
                f"  tests.{name} could not be loaded (with playhouse:"
                f" {theirs.get(name, ['loaded'])[0]}): {why}"
            )
    unexplained = []
    for name in sorted(theirs.keys() | ours.keys()):
        before, after = theirs.get(name, ["missing", ""]), ours.get(name, ["missing", ""])
        if before[0] == after[0]:
            continue
        reason = next((why for pattern, why in EXPLAINED.items() if re.search(pattern, name)), None)
        if reason is None and after[0] != "ok":
            unexplained.append(name)
        print(f"  {name}: {before[0]} -> {after[0]}" + (f" ({reason})" if reason else ""))
        if options.verbose:
            print(after[1] or before[1])
    return unexplained


def run(kind: str, backend: str, source: Path, folder: str, options: Any) -> dict[str, list[str]]:
    """How each test ended, on a server of its own."""
    source = adapted(
        source,
        Path(folder) / f"{kind}-{backend}",
        _OURS if kind == "unbroken" else _THEIRS,
        options.installed,
    )
    out = Path(folder) / f"{kind}-{backend}.json"
    given: dict[str, Any] = {"options": {"max_connections": 200}, "database": "peewee_test"}
    with (
        MariaDB(**given) if backend == "mysql" else PostgreSQL(**given, tls=True)
    ) as server:  # the wheel has neither TLS nor hstore
        if backend == "mysql":
            server.admin(f"GRANT ALL ON *.* TO `{server.user}`@`%` WITH GRANT OPTION")
        else:
            server.admin(f'ALTER ROLE "{server.user}" SUPERUSER; CREATE EXTENSION hstore')
        key = "MYSQL" if backend == "mysql" else "PSQL"
        where = {
            f"PEEWEE_{key}_{part.upper()}": str(getattr(server, part))
            for part in ("host", "port", "user", "password")
        }
        subprocess.run(
            [sys.executable, "-c", _RUN, str(source), str(out), *options.modules],
            env={**os.environ, **where, "PEEWEE_TEST_BACKEND": backend},
            cwd=source,
            check=True,
            timeout=900,
        )
    ends: dict[str, list[str]] = json.loads(out.read_text())
    return ends


if __name__ == "__main__":
    sys.exit(main())
