"""A pool under load in a process of its own, told by lines on stdin, answering each with a line of
JSON.

Run by moving.py: python moving_worker.py PLAN
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy

import unbroken
import unbroken.sqlalchemy

PLAN = json.loads(sys.argv[1])
NAME, URL, SECRET = PLAN["driver"], PLAN["url"], PLAN["secret"]
ASYNC = NAME in ("aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg")
ME = "SELECT CONNECTION_ID()" if URL.startswith(("mysql", "mariadb")) else "SELECT pg_backend_pid()"
CLIENTS = 4
SETTINGS: dict[str, Any] = {"max_size": 4, **PLAN["settings"]}
ERRORS: list[str] = []
SAID: list[str] = []
asked = 0
stop = threading.Event()


def secret() -> str:
    return Path(SECRET).read_text()


async def secret_async() -> str:
    await asyncio.sleep(0)
    return secret()


if SECRET:
    SETTINGS["password"] = secret_async if ASYNC else secret

handler = logging.Handler(logging.DEBUG)
handler.emit = lambda record: SAID.append(logging.Formatter().format(record))  # type: ignore[method-assign]
logging.getLogger("unbroken").addHandler(handler)
logging.getLogger("unbroken").setLevel(logging.DEBUG)


def note(error: BaseException) -> None:
    ERRORS.append(f"{type(error).__name__}: {error}")
    SAID.append("".join(traceback.format_exception(error)))


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def outcome(stats: Any, pool: Any) -> dict[str, Any]:
    SAID.append(repr(pool) + repr(pool.settings) + repr(pool._driver.target) + repr(stats))
    said = {"asked": asked, "errors": ERRORS[:], "opened": stats.opened, "closed": stats.closed}
    threads = [each.name for each in threading.enumerate()]
    return {
        **said,
        "failures": stats.connect_failures,
        "threads": threads,
        "said": "\n".join(SAID),
    }


class Engine:
    """An engine of SQLAlchemy's in a pool's place."""

    def __init__(self, url: str, **settings: Any) -> None:
        size = settings.pop("max_size")
        self.engine = sqlalchemy.create_engine(
            url, plugins=["unbroken"], pool_size=size, max_overflow=0, unbroken=settings
        )
        self.settings, self._driver = settings, self.engine.pool._plan.driver  # type: ignore[attr-defined] # the plugin's

    def run(self, one: Any) -> Any:
        with self.engine.connect() as conn:
            return conn.exec_driver_sql(ME).fetchone()

    def stats(self) -> Any:
        return unbroken.sqlalchemy.stats(self.engine)


def blocking() -> None:
    kind: Any = Engine if NAME.startswith("sqlalchemy-") else unbroken.Pool
    pool: Any = kind(URL, **SETTINGS)

    def one(conn: Any) -> Any:
        cursor = conn.cursor()
        cursor.execute(ME)
        row = cursor.fetchone()
        cursor.close()
        return row

    def client() -> None:
        global asked
        last = False
        while not last:
            last = stop.is_set()
            asked += 1
            try:
                pool.run(one)
            except Exception as error:
                note(error)
            time.sleep(0.01)

    threads: list[threading.Thread] = []
    for line in sys.stdin:
        if line.strip() == "load":
            ERRORS.clear()
            stop.clear()
            threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
            for each in threads:
                each.start()
            begun = asked
            while asked < begun + 4 * CLIENTS:
                time.sleep(0.01)
            say("going")
        elif line.strip() == "stop":
            stop.set()
            for each in threads:
                each.join()
            say(outcome(pool.stats(), pool))
        elif line.strip() == "stats":
            say(outcome(pool.stats(), pool))


async def awaiting() -> None:
    pool: Any = unbroken.AsyncPool(URL, **SETTINGS)

    async def one(conn: Any) -> Any:
        if NAME == "asyncpg":
            return tuple(await conn.fetchrow(ME))
        is_awaited = NAME in ("aiomysql", "mysqlconnector_async")
        cursor = (await conn.cursor()) if is_awaited else conn.cursor()
        await cursor.execute(ME)
        row = await cursor.fetchone()
        await cursor.close()
        return row

    async def client() -> None:
        global asked
        last = False
        while not last:
            last = stop.is_set()
            asked += 1
            try:
                await pool.run(one)
            except Exception as error:
                note(error)
            await asyncio.sleep(0.01)

    loop, tasks = asyncio.get_running_loop(), []
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "load":
            ERRORS.clear()
            stop.clear()
            tasks = [asyncio.create_task(client()) for _ in range(CLIENTS)]
            begun = asked
            while asked < begun + 4 * CLIENTS:
                await asyncio.sleep(0.01)
            say("going")
        elif line.strip() == "stop":
            stop.set()
            await asyncio.gather(*tasks)
            say(outcome(pool.stats(), pool))
        elif line.strip() == "stats":
            say(outcome(pool.stats(), pool))


if ASYNC:
    asyncio.run(awaiting())
else:
    blocking()
os._exit(0)
