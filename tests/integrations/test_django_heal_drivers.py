"""Statements heal with the other driver that Django takes, too: PyMySQL, psycopg2.

Each needs a process of its own, where the basic cases of ``test_django_heal.py`` are run.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = (
    "first_read", "first_write_of_a_block_is", "write_in_autocommit", "second_statement",
    "ended_between", "idle",
)  # fmt: skip
PREPARE = {
    "pymysql": "import pymysql; pymysql.install_as_MySQLdb()",
    "psycopg2": "sys.modules['psycopg'] = None",
}


@pytest.mark.parametrize(("kind", "driver"), [("mysql", "pymysql"), ("postgresql", "psycopg2")])
def test_the_basic_cases_hold_with_the_other_driver(kind: str, driver: str) -> None:
    program = f"import sys; {PREPARE[driver]}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    chosen = f"{kind} and ({' or '.join(CASES)})"
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "-q", "-p", "no:cacheprovider", "-rA"),
            *("-k", chosen, str(HERE / "test_django_heal.py")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=HERE.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for case in CASES:
        assert case in done.stdout
    assert f"unbroken.drivers.{driver}" in done.stdout
