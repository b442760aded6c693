"""A program that ends while an answer is due: it exits as it should and prints nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import asyncio, sys, unbroken

def blocking(url):
    pool = unbroken.Pool(url, max_size=1)
    for _ in range(3):
        conn = pool.acquire()
        conn.cursor().execute("SELECT n FROM stock")
        pool.release(conn)
    return pool

async def awaited(url):
    pool = unbroken.AsyncPool(url, max_size=1)
    for _ in range(3):
        async with pool.connection() as conn:
            await (conn.fetch if hasattr(conn, "fetch") else conn.execute)("SELECT n FROM stock")
    return pool

kept = blocking(sys.argv[1]) if sys.argv[2] == "blocking" else asyncio.run(awaited(sys.argv[1]))
"""

CASES = [
    ("mariadb", "pymysql", "blocking"), ("mariadb", "mysqldb", "blocking"),
    ("mariadb", "mysqlconnector", "blocking"), ("mariadb", "mariadbconnector", "blocking"),
    ("postgres", "psycopg", "blocking"), ("postgres", "pg8000", "blocking"),
    ("postgres", "psycopg", "awaited"), ("postgres", "asyncpg", "awaited"),
]  # fmt: skip


@pytest.mark.parametrize(("server", "driver", "how"), CASES)
def test_a_program_that_ends_with_an_answer_due_says_nothing(
    request: pytest.FixtureRequest, server: str, driver: str, how: str
) -> None:
    there: Any = request.getfixturevalue(server)
    there.admin("CREATE TABLE IF NOT EXISTS stock (n INT)")
    if server == "postgres":
        there.admin("GRANT ALL ON stock TO PUBLIC")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", PROGRAM, there.url(driver), how],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
