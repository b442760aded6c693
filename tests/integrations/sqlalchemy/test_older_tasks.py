"""A task that is older than a process's first unit of work is in none, and forbids no replay."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

#: A service that was started long ago uses the engine for the first time while a unit is under
#: way, as in a server whose background services start before its first request.
PROGRAM = """
import asyncio, sys
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
import unbroken

url = sys.argv[1]

async def main():
    go = asyncio.Event()

    async def service():
        await go.wait()
        while True:
            async with engine.connect() as conn:
                await conn.execute(sa.text("SELECT 1"))
            used.set()

    used = asyncio.Event()
    older = asyncio.create_task(service())
    await asyncio.sleep(0)
    engine = create_async_engine(url, plugins=["unbroken"])
    calls = 0

    @unbroken.replayable
    async def unit():
        nonlocal calls
        calls += 1
        async with engine.connect() as conn:
            me = (await conn.execute(sa.text("SELECT pg_backend_pid()"))).scalar_one()
            go.set()
            used.clear()
            await used.wait()
            if calls == 1:
                async with engine.connect() as other:
                    await other.execute(sa.text(f"SELECT pg_terminate_backend({me})"))
            await conn.execute(sa.text("SELECT 2"))

    await unit()
    older.cancel()
    await asyncio.gather(older, return_exceptions=True)
    await engine.dispose()
    return calls

print(asyncio.run(main()))
"""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_service_that_is_older_than_all_units_forbids_no_replay(
    unbroken_postgres: Any, driver: str
) -> None:
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), unbroken_postgres.url(driver)]
    done = subprocess.run(words, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
