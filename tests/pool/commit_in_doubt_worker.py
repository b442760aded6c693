"""One driver's pool commits rows, and loses the connection at each COMMIT: what it reports, as
lines of JSON.

Run by test_commit_in_doubt.py: python commit_in_doubt_worker.py DRIVER URL TABLE COUNT
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

import unbroken
from unbroken.drivers.url import parse
from unbroken_drill import FaultProxy

NAME, URL, TABLE, COUNT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
ASYNC = NAME in ("aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg")
IS_MYSQL = URL.startswith(("mysql", "mariadb"))
SETTINGS: dict[str, Any] = {"max_size": 2, "acquire_timeout": 20.0, "outage_wait": 20.0}


class Plan:
    """What becomes of the row *number*: by its remainders, so that each combination comes up."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.passes = number % 11 == 10  # no cut: the row is stored, and reported so
        self.before = number % 2 == 1
        self.how: Any = "rst" if number // 2 % 2 else "fin"
        self.replayable = number // 4 % 2 == 1  # as a unit of work, which must not be run again

    def told(self, said: str, runs: int) -> None:
        fate = "passes" if self.passes else "never arrived" if self.before else "executed"
        print(
            json.dumps({"number": self.number, "fate": fate, "said": said, "runs": runs}),
            flush=True,
        )


def kind(error: BaseException) -> str:
    known = (unbroken.CommitUnknownError, unbroken.ConnectionLostError)
    return next(
        (each.__name__ for each in known if isinstance(error, each)),
        f"{type(error).__name__}: {error}",
    )


def blocking(proxy: FaultProxy, url: str) -> None:
    with unbroken.Pool(url, **SETTINGS) as pool:
        for plan in map(Plan, range(COUNT)):
            runs = 0

            def work(conn: Any, plan: Plan = plan) -> None:
                nonlocal runs
                runs += 1
                cursor = conn.cursor()
                cursor.execute(f"INSERT INTO {TABLE} VALUES ({plan.number})")
                cursor.close()
                if not plan.passes:
                    proxy.cut_at("COMMIT", before=plan.before, how=plan.how)

            said = "stored"
            try:
                if plan.replayable:
                    pool.run(work)
                else:
                    with pool.connection() as conn:
                        work(conn)
            except Exception as error:
                said = kind(error)
            proxy.heal("new")
            plan.told(said, runs)


async def awaiting(proxy: FaultProxy, url: str) -> None:
    async with unbroken.AsyncPool(url, **SETTINGS) as pool:
        for plan in map(Plan, range(COUNT)):
            runs = 0

            async def work(conn: Any, plan: Plan = plan) -> None:
                nonlocal runs
                runs += 1
                await insert(conn, plan.number)
                if not plan.passes:
                    proxy.cut_at("COMMIT", before=plan.before, how=plan.how)

            said = "stored"
            try:
                if plan.replayable:
                    await pool.run(work)
                else:
                    async with pool.connection() as conn:
                        await work(conn)
            except Exception as error:
                said = kind(error)
            proxy.heal("new")
            plan.told(said, runs)


async def insert(conn: Any, number: int) -> None:
    sql = f"INSERT INTO {TABLE} VALUES ({number})"
    if NAME == "asyncpg":
        await conn.execute(sql)
        return
    cursor = (
        (await conn.cursor()) if NAME in ("aiomysql", "mysqlconnector_async") else conn.cursor()
    )
    await cursor.execute(sql)
    await cursor.close()


target = parse(URL)
assert target.host is not None
assert target.port is not None
with FaultProxy(
    (target.host, target.port), protocol="mysql" if IS_MYSQL else "postgresql"
) as proxy:
    if ASYNC:
        asyncio.run(awaiting(proxy, proxy.url(URL)))
    else:
        blocking(proxy, proxy.url(URL))
    unreadable = [str(event) for event in proxy.events if event.name == "unreadable"]
    with suppress(BrokenPipeError):
        print(
            json.dumps(
                {
                    "unreadable": unreadable,
                    "cuts": sum(event.name == "cut" for event in proxy.events),
                }
            ),
            flush=True,
        )
