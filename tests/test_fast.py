"""What ``make test-fast`` runs (tests/fast.txt): all tests of the pure rooms, what holds the house
together, and a few tests of a pool with one server.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .test_floors import PURE

ROOT = Path(__file__).parents[1]
CHOSEN = (ROOT / "tests" / "fast.txt").read_text().splitlines()
#: Folders of tests for rooms that do no I/O, and for what all of them may use.
FOLDERS = {*PURE, "logs"}
#: Files of tests at the top that are left to ``make test``, each with its reason.
LEFT_OUT = {
    "test_launcher.py": "starts an interpreter for each test",
    "test_secrets.py": "needs two servers, a proxy and the drill",
    "test_wheels.py": "builds both distributions",
}
#: The one file whose tests use a server: a file is one worker's, and each worker starts its own.
USER = "tests/pool/test_lending.py"
SERVERS = {"mariadb", "mysql", "postgres", "mongodb", "new_mariadb", "new_postgres"}


def files() -> set[Path]:
    """Each file of which ``make test-fast`` runs tests."""
    found: set[Path] = set()
    for line in CHOSEN:
        path = ROOT / line.partition("::")[0]
        found |= set(path.rglob("test_*.py")) if path.is_dir() else {path}
    return found


def test_no_file_of_a_pure_room_is_missing() -> None:
    wanted = {path for room in FOLDERS for path in (ROOT / "tests" / room).rglob("test_*.py")}
    wanted |= set((ROOT / "tests").glob("test_*.py"))
    missing = {path.name for path in wanted - files()}
    assert missing == set(LEFT_OUT)


@pytest.mark.parametrize("line", CHOSEN)
def test_each_line_names_something_that_is_there(line: str) -> None:
    path, _, name = line.partition("::")
    assert (ROOT / path).exists()
    assert not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text()


def test_one_server_is_started_at_most() -> None:
    """No other file asks for one, as an argument of a test or of a fixture."""
    for path in files() - {ROOT / USER}:
        signatures = re.findall(r"^ *(?:async )?def \w+\((.*?)\)", path.read_text(), re.M | re.S)
        asked = {name for each in signatures for name in re.findall(r"(\w+)\s*:", each)}
        assert not asked & SERVERS, path
    chosen = [line for line in CHOSEN if line.startswith(USER)]
    assert chosen
    assert all(line.endswith("[pymysql]") for line in chosen), "only MariaDB"
