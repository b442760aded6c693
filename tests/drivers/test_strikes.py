"""An exception at any step of a driver's code never leads to another statement's answer; see
striking.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken_drill.servers import MariaDB

HERE = Path(__file__).parent
DRIVERS = ["pymysql", "aiomysql", "asyncmy"]
OTHERS = ["mysqldb", "mariadbconnector", "mysqlconnector", "mysqlconnector_async"]
# what was struck is ended without a goodbye, and lingers for a moment
OPTIONS = {"local_infile": 1, "max_connections": 400}
#: What is struck at every step in the default tests; all kinds of calls are in the long ones.
USUAL = "insert,refused,commit,restored,left_and_taken,wanted"
#: … of mysql-connector, whose steps are many
FEWER = "insert,commit,left_and_taken"
#: an answer that is read later
LEFT = "left,left_and_taken,left_and_asked,left_and_pinged"
SHORT = "insert,refused,commit,driver_rollback,results,stream,restored,left_and_taken,wanted"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with MariaDB(OPTIONS) as started:
        yield started


def struck(name: str, server: Any, *args: str) -> dict[str, Any]:
    """Run the sweep in an interpreter of its own: what is reported, once it ended well."""
    where = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
        "database": server.database,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "striking.py"), name, json.dumps(where), *args],
        capture_output=True, text=True, timeout=900, env={**os.environ}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not report["faults"], "\n".join(report["told"])[:5000]
    return report


@pytest.mark.parametrize("name", DRIVERS)
def test_no_strike_at_any_step_shifts_an_answer(name: str, server: Any) -> None:
    figures = struck(name, server, "--strikes", "Struck", "--only", SHORT)["figures"]
    assert figures["strikes"] > 500
    assert figures["quiet"] > 100
    assert figures["not quiet"] > 100


@pytest.mark.parametrize("name", OTHERS)
def test_no_strike_at_any_step_of_the_usual_calls_shifts_an_answer(name: str, server: Any) -> None:
    figures = struck(
        name,
        server,
        "--strikes",
        "Struck",
        "--only",
        FEWER if "mysqlconnector" in name else USUAL,
    )["figures"]
    assert figures["strikes"] > 300


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OTHERS)
def test_no_strike_while_an_answer_is_due_shifts_an_answer(name: str, server: Any) -> None:
    # asyncio keeps what strikes in its own code, and raises it at the next call
    calls = LEFT if name.endswith("_async") else f"{LEFT},prepared"
    figures = struck(name, server, "--strikes", "Struck", "--only", calls)["figures"]
    assert figures["strikes"] > 1000
    assert figures["not quiet"] > 100


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", DRIVERS)
def test_no_strike_at_any_step_of_any_call_shifts_an_answer(name: str, server: Any) -> None:
    assert struck(name, server)["figures"]["strikes"] > 3000
