"""Django's own test-suite, with Django's backends and with ours, side by side; what differs is
printed.

    python tests/integrations/django_suite.py [--source DIR_OR_TARBALL] \\
        [--servers mariadb,postgresql] [label ...]

It needs the source distribution of the Django that is installed (``--source``; without it, it is
downloaded by pip). Each server is private, each run one process. Exit status 1 when a test ends
differently with our backends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import django

from unbroken_drill.servers import MariaDB, PostgreSQL

LABELS = (
    "basic backends transactions transaction_hooks select_for_update queries aggregation test_utils"
    " servers async".split()
)
ENGINES = {
    "mariadb": ("django.db.backends.mysql", "unbroken.django.mysql"),
    "postgresql": ("django.db.backends.postgresql", "unbroken.django.postgresql"),
}

#: Tests (by a pattern) that end differently, and why that is right. Every difference that is not
#: listed here is a failure.
EXPLAINED = {
    r"ConnectionHealthChecksTests\.": (
        "the connection goes back between requests whatever CONN_MAX_AGE is, and is looked at"
        " without a ping"
    ),
    r"test_failure_on_exit_transaction$": (
        "it adds to Django's own list of savepoints; an id that no block put there is taken for one"
        " of a block that was broken off"
    ),
    r"postgresql\.tests\.Tests\.test_(connect_pool|pool(ing)?_)": (
        'OPTIONS["pool"], Django\'s own pool, is refused: there is ours'
    ),
}

_SETTINGS = """
import json, os
_given = json.loads(os.environ["UNBROKEN_SUITE"])
DATABASES = {
    name: {
        "ENGINE": _given["engine"], "NAME": "suite_" + name, "USER": _given["user"], "PASSWORD": _given["password"],
        "HOST": _given["host"], "PORT": str(_given["port"]), "TEST": _given["test"], "OPTIONS": _given["options"],
    }
    for name in ("default", "other")
}
SECRET_KEY = "of a test only"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "unbroken_suite_runner.Runner"
"""  # noqa: E501

_RUNNER = '''
"""Notes how each test ended."""
import json, os
from unittest import TextTestResult
from django.test.runner import DiscoverRunner


class Result(TextTestResult):
    ends = {}

    def _note(self, test, how):
        key = test.id()
        if self.ends.get(key, "ok") in ("ok", how):
            self.ends[key] = how

    def addSuccess(self, test):
        super().addSuccess(test); self._note(test, "ok")

    def addSkip(self, test, reason):
        super().addSkip(test, reason); self._note(test, "skipped")

    def addFailure(self, test, err):
        super().addFailure(test, err); self._note(test, "failed")

    def addError(self, test, err):
        super().addError(test, err); self._note(test, "error")

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err); self._note(test, "expected failure")

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test); self._note(test, "unexpected success")

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note(test, "failed")


class Runner(DiscoverRunner):
    def get_resultclass(self):
        return Result

    def run_suite(self, suite, **kwargs):
        result = super().run_suite(suite, **kwargs)
        with open(os.environ["UNBROKEN_SUITE_ENDS"], "w") as file:
            json.dump(Result.ends, file)
        return result
'''


def sources(given: str | None, folder: Path) -> Path:
    """The folder ``tests`` of Django's source distribution."""
    version = django.get_version()
    if given is None:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-binary",
            ":all:",
            "--no-deps",
            "-d",
            str(folder),
            f"django=={version}",
        ]
        subprocess.run(pip, check=True, stdout=sys.stderr)
        given = str(next(folder.glob("*.tar.gz")))
    path = Path(given)
    if path.is_file():
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        path = next(folder.glob("[dD]jango-*/"))
    if version not in (path / "PKG-INFO").read_text():
        raise SystemExit(f"{path} is not Django {version}, which is installed")
    return path / "tests"


def run(
    tests: Path, folder: Path, server: Any, engine: str, labels: list[str], timeout: float
) -> dict[str, str]:
    """How each test ended."""
    (folder / "unbroken_suite_settings.py").write_text(_SETTINGS)
    (folder / "unbroken_suite_runner.py").write_text(_RUNNER)
    mysql = (
        {"CHARSET": "utf8mb4", "COLLATION": "utf8mb4_general_ci"}
        if server.backend == "mariadb"
        else {}
    )
    given = {
        "engine": engine, "user": server.user, "password": server.password, "host": server.host,
        "port": server.port, "test": mysql, "options": {},
    }  # fmt: skip
    ends = folder / "ends.json"
    ends.unlink(missing_ok=True)
    environ = {
        **os.environ, "UNBROKEN_SUITE": json.dumps(given), "UNBROKEN_SUITE_ENDS": str(ends),
        "PYTHONPATH": os.pathsep.join([str(folder), str(tests.parent)]), "PYTHONWARNINGS": "",
    }  # fmt: skip
    log = folder / f"{server.backend}-{engine.split('.')[0]}-{labels[0]}.log"
    command = [
        sys.executable,
        "runtests.py",
        "--settings=unbroken_suite_settings",
        "--parallel=1",
        "--noinput",
        *labels,
    ]
    with log.open("w") as out:
        done = subprocess.run(
            command, cwd=tests, env=environ, stdout=out, stderr=subprocess.STDOUT, timeout=timeout
        )
    if not ends.exists():
        raise SystemExit(
            f"{engine}: the suite did not run (status"
            f" {done.returncode}):\n{log.read_text()[-4000:]}"
        )
    return dict(json.loads(ends.read_text()))


def prepared(server: Any) -> None:
    """The suite makes databases of its own."""
    if server.backend == "mariadb":
        server.admin(f"GRANT ALL ON *.* TO '{server.user}'@'%'")
    else:
        server.admin(f"ALTER ROLE {server.user} SUPERUSER")


def compare(name: str, label: str, theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """What ended differently, one line each."""
    lines = []
    for test in sorted(theirs.keys() | ours.keys()):
        before, after = theirs.get(test, "not run"), ours.get(test, "not run")
        if before != after:
            reason = next(
                (why for pattern, why in EXPLAINED.items() if re.search(pattern, test)), None
            )
            lines.append(
                f"  {name} {test}: {before} with Django's, {after} with"
                f" ours{f' (explained: {reason})' if reason else ''}"
            )
    good = sum(how == "ok" for how in ours.values())
    bad = sum(how in ("failed", "error", "unexpected success") for how in ours.values())
    before = sum(how in ("failed", "error", "unexpected success") for how in theirs.values())
    print(
        f"{name:11} {label:18} {len(ours):5} tests, {good} ok, {bad} failed (Django's: {before}),"
        f" {len(lines)} different",
        flush=True,
    )
    for line in lines:
        print(line, flush=True)
    return [line for line in lines if "(explained:" not in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--source", help="the unpacked source distribution of Django, or its tarball"
    )
    parser.add_argument("--servers", default="mariadb,postgresql")
    parser.add_argument(
        "--keep",
        help="a folder for the logs, and for Django's own results, which are then not made again",
    )
    parser.add_argument("--only", choices=["theirs", "ours"], help="run one side (with --keep)")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one label")
    parser.add_argument("labels", nargs="*", default=LABELS)
    args = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tests = sources(args.source, Path(temporary))
        for name in args.servers.split(","):
            wrong += one_server(name, folder, tests, args)
    return 1 if wrong else 0


def one_server(name: str, folder: Path, tests: Path, args: Any) -> list[str]:
    wrong: list[str] = []
    server = (
        MariaDB({"max_connections": 60})
        if name == "mariadb"
        else PostgreSQL({"max_connections": 60, "fsync": False})
    )
    with server:
        prepared(server)
        for label in args.labels:
            results = []
            for side, engine in zip(("theirs", "ours"), ENGINES[name], strict=True):
                kept = folder / f"{name}-{side}-{label}.json"
                if args.only not in (None, side) or (side == "theirs" and kept.exists()):
                    results.append(json.loads(kept.read_text()) if kept.exists() else {})
                    continue
                begun = time.monotonic()
                found = run(tests, folder, server, engine, [label], args.timeout)
                kept.write_text(json.dumps(found))
                print(
                    f"{name:11} {label:18} {engine}: {time.monotonic() - begun:.0f} s", flush=True
                )
                results.append(found)
            if args.only != "theirs":
                wrong += compare(name, label, *results)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
