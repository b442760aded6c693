"""SQLAlchemy's own tests, with and without the plugin, on real servers: where do the results
differ?

    .venv/bin/python tests/integrations/sqlalchemy_suite.py [mariadb|postgresql ...] [--keep FOLDER]

Downloads the source distribution of the installed SQLAlchemy (pip, some minutes), and runs with
each database:

* the dialect compliance suite (``test/dialect/test_suite.py``), and
  ``test/engine/test_reconnect.py``: bare, and with the plugin in every engine;
* ``test/engine/test_pool.py`` and ``test_reconnect.py`` with ``sqlalchemy.pool.QueuePool`` replaced
  by our classes.

Prints each test whose outcome differs; those of EXPLAINED with the reason. Exit status 1 for a
difference that is not explained.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

import sqlalchemy

from unbroken_drill.servers import MariaDB, PostgreSQL, Server

#: Parts of a test's name, and why its outcome may differ.
EXPLAINED: dict[str, str] = {
    "AutocommitIsolationTest::test_autocommit_block": (
        "counts the driver's rollback() where nothing is open: that is left out"
    ),
}

SUITES = {
    "plugged": ["test/dialect/test_suite.py", "test/engine/test_reconnect.py"],
    "pools": ["test/engine/test_pool.py", "test/engine/test_reconnect.py"],
}

#: Loaded into pytest as a plugin before SQLAlchemy's own: every engine is made with ours, unless it
#: has a mock for a driver …
PLUGGED = """
import sqlalchemy
from sqlalchemy.engine import create

original = create.create_engine

def create_engine(url, **kwargs):
    if not {"module", "pool", "creator", "strategy"} & set(kwargs) and "unbroken" not in kwargs.get("plugins", ()):
        kwargs["plugins"] = [*kwargs.get("plugins", ()), "unbroken"]
    return original(url, **kwargs)

sqlalchemy.create_engine = sqlalchemy.engine.create_engine = create.create_engine = create_engine
"""  # noqa: E501

#: … or SQLAlchemy's pool classes are ours, mocks or not.
POOLS = """
import sqlalchemy
import sqlalchemy.pool
from unbroken.sqlalchemy import AsyncUnbrokenQueuePool, UnbrokenQueuePool

sqlalchemy.QueuePool = sqlalchemy.pool.QueuePool = UnbrokenQueuePool
sqlalchemy.AsyncAdaptedQueuePool = sqlalchemy.pool.AsyncAdaptedQueuePool = AsyncUnbrokenQueuePool
"""


def download(folder: Path) -> Path:
    """The unpacked source distribution of the installed version."""
    found = folder / f"sqlalchemy-{sqlalchemy.__version__}"
    if found.exists():
        return found
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run(
        [*pip, "--version"], capture_output=True, check=False
    ).returncode:  # a venv without pip
        pip = [getattr(sys, "_base_executable", sys.executable), "-m", "pip"]
    what = [
        "--no-deps",
        "--no-binary",
        "sqlalchemy",
        "--dest",
        str(folder),
        f"sqlalchemy=={sqlalchemy.__version__}",
    ]
    subprocess.run([*pip, "download", "--quiet", *what], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return found


def started(kind: str) -> Server:
    """A server of *kind*.

    SQLAlchemy's suite wants citext and hstore, which the wheel of binaries has not: what is
    installed goes first.
    """
    if kind == "mariadb":
        return MariaDB()
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return PostgreSQL(binary=installed[-1] if installed else None)


def prepared(server: Server) -> str:
    """What the suite wants to find on the server; the URL of the best known driver."""
    if isinstance(server, MariaDB):
        server.admin("CREATE DATABASE test_schema")
        server.admin(f"GRANT ALL ON *.* TO '{server.user}'@'%'")
        return server.url("pymysql", charset="utf8mb4")
    server.admin("CREATE SCHEMA test_schema")
    server.admin("CREATE SCHEMA test_schema_2")
    server.admin(f"ALTER ROLE {server.user} SUPERUSER")
    return server.url("psycopg")


def run(
    source: Path, folder: Path, name: str, files: list[str], url: str, *options: str
) -> dict[str, str]:
    """The outcome of each test."""
    report = folder / f"{re.sub('[^a-z]+', '-', name)}.xml"
    (folder / "unbroken_plugged.py").write_text(PLUGGED)
    (folder / "unbroken_pools.py").write_text(POOLS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *files,
        "--dburi",
        url,
        f"--junitxml={report}",
        "-q",
        "-p",
        "no:hypothesispytest",
    ]
    command += [
        "-p",
        "no:timeout",
        "-o",
        "addopts=--tb=short --maxfail=1000 -p warnings -p logging",
        *options,
    ]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    log = folder / f"{report.stem}.log"
    with log.open("w") as out:
        subprocess.run(
            command,
            cwd=source,
            env=env,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=1800,
        )
    if not report.exists():
        raise SystemExit(f"{name}: no report; see the end of {log}:\n{log.read_text()[-3000:]}")
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        key = re.sub(
            r"_(mysql|mariadb|postgresql)\+.*?(?=::|$)",
            "",
            f"{case.get('classname')}::{case.get('name')}",
        )
        key = key.replace("AsyncUnbrokenQueuePool", "AsyncAdaptedQueuePool").replace(
            "UnbrokenQueuePool", "QueuePool"
        )
        outcomes[key] = (
            "failed" if kinds & {"failure", "error"} else "skipped" if kinds else "passed"
        )
    return outcomes


def compare(name: str, bare: dict[str, str], ours: dict[str, str]) -> int:
    """Print the differences; how many of them are not explained."""
    count = {
        what: sum(o == what for o in ours.values()) for what in ("passed", "failed", "skipped")
    }
    base = {what: sum(o == what for o in bare.values()) for what in ("passed", "failed", "skipped")}
    print(f"{name}: bare {base}, unbroken {count}", flush=True)
    unexplained = 0
    for test in sorted(bare.keys() | ours.keys()):
        before, after = bare.get(test, "absent"), ours.get(test, "absent")
        if before == after:
            continue
        why = next((reason for part, reason in EXPLAINED.items() if part in test), None)
        unexplained += why is None and after in ("failed", "absent")
        print(f"  {test}: {before} -> {after}{f' ({why})' if why else ''}")
    return unexplained


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description="Run SQLAlchemy's own tests with and without the plugin."
    )
    parser.add_argument("servers", nargs="*", default=["mariadb", "postgresql"], metavar="SERVER")
    parser.add_argument(
        "--keep", type=Path, help="a folder for the source, the reports and the logs"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        source = download(folder)
        unexplained = 0
        for kind in options.servers:
            with started(kind) as server:
                url = prepared(server)
                for suite, files in SUITES.items():
                    bare = run(source, folder, f"{kind} {suite} bare", files, url)
                    ours = run(
                        source,
                        folder,
                        f"{kind} {suite} unbroken",
                        files,
                        url,
                        "-p",
                        f"unbroken_{suite}",
                    )
                    unexplained += compare(f"{kind}, {suite}", bare, ours)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
