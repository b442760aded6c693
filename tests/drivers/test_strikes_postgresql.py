"""An exception at any step of a PostgreSQL driver's code costs its connection, but nobody gets
another's answer, or waits for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("striking_postgresql.py")
DRIVERS = ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"]
#: Enough for each way to send and each way to fail.
SHORT = (
    "select,parameters,refused_by_value,insert,library_commit,ping,restored,copy_out,due_select"
    ",wanted"
)


def sweep(server: Any, name: str, *options: str, seconds: float) -> dict[str, Any]:
    where = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
        "database": server.database,
    }
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), name, json.dumps(where), *options],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def holds(found: dict[str, Any]) -> None:
    assert not found["faults"], "\n\n".join(found["told"])
    assert found["figures"]["strikes"] > 100


@pytest.mark.soak  # minutes for each driver; tests/strikes sweeps the pool on psycopg in every run
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", DRIVERS)
def test_a_strike_at_any_line_of_the_usual_calls(new_postgres: Any, name: str) -> None:
    holds(sweep(new_postgres(), name, "--only", SHORT, "--strikes", "Struck", seconds=380))


@pytest.mark.soak
@pytest.mark.timeout(4000)
@pytest.mark.parametrize("name", DRIVERS)
def test_a_strike_at_any_line_of_every_call(new_postgres: Any, name: str) -> None:
    holds(sweep(new_postgres(), name, seconds=3900))
