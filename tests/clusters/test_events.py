"""Nobody notices that a server cannot serve, moves or is replaced; every write is told exactly.

``make test`` plays the events that need no other tool, with one driver of each kind; ``make soak``
plays all of them with all drivers. ``python -m clusters.run`` prints the figures.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
POOL = 5  # worker.py's

#: Each with the drivers of the short form.
SHORT = {
    "read-only": "pymysql,aiomysql",
    "name-moves": "psycopg,asyncpg",
    "galera-reject": "mysqldb,aiomysql",
    "pg-killed": "psycopg2,asyncpg",
    "pg-demoted": "psycopg",
    "maria-switched": "pymysql",
}
LONG = (
    "read-only", "name-moves", "galera-reject", "galera-isolated", "pg-killed", "pg-demoted",
    "pg-switched", "maria-killed", "maria-demoted", "maria-switched", "pg-haproxy",
    "maria-haproxy", "galera-haproxy",
)  # fmt: skip


def played(event: str, folder: Path, *options: str, timeout: float = 100.0) -> list[dict[str, Any]]:
    """What the clients met, a row for each driver."""
    file = folder / "rows.json"
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "clusters.run", event, "--json", str(file), *options],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    rows: list[dict[str, Any]] = json.loads(file.read_text())
    assert rows
    return rows


def hold(row: dict[str, Any]) -> None:
    """What every event owes."""
    assert (row["failed"], row["hung"]) == (0, 0), row["said"]
    assert (row["lost"], row["doubled"], row["refused_and_stored"], row["stale"]) == (0, 0, 0, 0)
    assert row["requests"] > 50
    assert row["opened"] <= 3 * POOL
    assert row["back"] is not None


@pytest.mark.parametrize("event", SHORT)
def test_nobody_notices(event: str, tmp_path: Path) -> None:
    for row in played(event, tmp_path, "--drivers", SHORT[event], "--after", "2"):
        hold(row)
        assert row["back"] < 1.0


@pytest.mark.parametrize(
    "event", ["pg-frozen", pytest.param("maria-frozen", marks=pytest.mark.soak)]
)
def test_with_a_deadline_only_requests_under_way_notice_a_frozen_host(
    event: str, tmp_path: Path
) -> None:
    drivers, deadline = "psycopg,pymysql", ["--set", "deadline=2"]
    for row in played(event, tmp_path, "--drivers", drivers, "--after", "3", *deadline):
        assert row["failed"] + row["unknown"] <= 4  # one for each client
        assert set(row["said"]) <= {line for line in row["said"] if "deadline" in line.lower()
                                    or line.startswith("CommitUnknownError")}  # fmt: skip
        assert row["slowest"] < 2.5
        assert (row["lost"], row["doubled"], row["refused_and_stored"]) == (0, 0, 0)
        assert row["back"] is not None
        assert row["back"] < 2.0  # the second host takes writes one second before the deadline


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("event", LONG)
def test_nobody_notices_with_any_driver(event: str, tmp_path: Path) -> None:
    for row in played(event, tmp_path, "--repeat", "5", timeout=800.0):
        hold(row)
        assert row["back"] < (2.5 if "haproxy" in event else 1.0)
