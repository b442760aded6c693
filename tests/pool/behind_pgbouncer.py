"""A load through a PgBouncer, and what can happen to it: for test_pooler_faults.py.

As a program it runs one cell and prints its figures: ``python -m pool.behind_pgbouncer transaction
pool psycopg pgrestart`` with the folder of the tests in PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
import unbroken.sqlalchemy
from unbroken_drill.servers import PgBouncer, PostgreSQL

CLIENTS = 4
BLOCKING = ["psycopg", "psycopg2", "pg8000"]
ASYNC = ["psycopg_async", "asyncpg"]
OPTIONS = {
    "default_pool_size": 4, "server_login_retry": 1, "log_connections": 0, "log_disconnections": 0,
    "query_wait_timeout": 10,
}  # fmt: skip
INSERT = "INSERT INTO entries VALUES ({}, {})"


# -- what can happen -------------------------------------------------------------------------------


def _pause(bouncer: PgBouncer) -> None:
    bouncer.admin(f"PAUSE {bouncer.database}")
    time.sleep(0.7)
    bouncer.admin(f"RESUME {bouncer.database}")


def _kill(bouncer: PgBouncer) -> None:
    bouncer.admin(f"KILL {bouncer.database}")
    time.sleep(0.5)
    bouncer.admin(f"RESUME {bouncer.database}")


def _disable(bouncer: PgBouncer) -> None:
    bouncer.admin(f"DISABLE {bouncer.database}")
    bouncer.kill_sessions()
    time.sleep(0.8)
    bouncer.admin(f"ENABLE {bouncer.database}")


def _full(bouncer: PgBouncer) -> None:
    """There are fewer sessions than clients, for longer than PgBouncer lets a client wait."""
    if bouncer.mode == "session":
        with bouncer.temporarily(query_wait_timeout=1, default_pool_size=2):
            bouncer.kill_sessions()
            time.sleep(2.5)
        return
    with ExitStack() as stack:
        for _ in range(int(OPTIONS["default_pool_size"])):
            conn = stack.enter_context(psycopg.connect(bouncer.url(), prepare_threshold=None))
            conn.execute("SELECT 1")
        with bouncer.temporarily(query_wait_timeout=1):
            time.sleep(1.8)


def _limits(bouncer: PgBouncer) -> None:
    with bouncer.temporarily(client_idle_timeout=1, server_idle_timeout=1):
        time.sleep(3.0)


EVENTS: dict[str, Callable[[PgBouncer], None]] = {
    "none": lambda bouncer: None,
    "pgrestart": lambda bouncer: bouncer.server.restart(0.5),
    "pgcrash": lambda bouncer: bouncer.server.crash(0.5),
    "pgkill": lambda bouncer: bouncer.server.kill_sessions() and None,
    "restart": lambda bouncer: bouncer.restart(0.5),
    "crash": lambda bouncer: bouncer.crash(0.5),
    "pause": _pause,  # in session mode it waits for all clients to leave
    "reconnect": lambda bouncer: bouncer.admin("RECONNECT") and None,
    "kill": _kill,
    "disable": _disable,
    "full": _full,
    "limits": _limits,
}


# -- the load --------------------------------------------------------------------------------------


class Tally:
    """What the clients were told."""

    def __init__(self) -> None:
        self.acknowledged: set[tuple[int, int]] = set()
        self.unknown: set[tuple[int, int]] = set()
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self.ends = False
        self.slow = False  #: whether clients rest now and then
        self.stats: Any = None

    @property
    def requests(self) -> int:
        return len(self.acknowledged) + len(self.unknown) + sum(self.errors.values())

    def note(self, key: tuple[int, int], error: Exception | None, took: float) -> None:
        self.slowest = max(self.slowest, took)
        if error is None:
            self.acknowledged.add(key)
        elif isinstance(error, unbroken.CommitUnknownError):
            self.unknown.add(key)
        else:
            self.errors[f"{type(error).__name__}: {str(error)[:150]}"] += 1


@contextmanager
def _pool(url: str, _driver: str) -> Iterator[tuple[Callable[[int, int], None], Any]]:
    def work(conn: Any, client: int, number: int) -> None:
        cursor = conn.cursor()
        cursor.execute("SELECT %s::int", (number,))
        cursor.fetchall()
        cursor.execute(INSERT.format("%s", "%s"), (client, number))

    with unbroken.Pool(url, max_size=5) as pool:
        yield lambda client, number: pool.run(work, client, number), pool.stats


@contextmanager
def _engine(url: str, _driver: str) -> Iterator[tuple[Callable[[int, int], None], Any]]:
    engine = sa.create_engine(url, plugins=["unbroken"], pool_size=5, max_overflow=0)

    @unbroken.replayable
    def work(client: int, number: int) -> None:
        with engine.begin() as conn:
            conn.execute(sa.text("SELECT CAST(:n AS int)"), {"n": number}).all()
            conn.execute(sa.text(INSERT.format(":c", ":n")), {"c": client, "n": number})

    try:
        yield work, lambda: unbroken.sqlalchemy.stats(engine)
    finally:
        engine.dispose()


def _clients(tally: Tally, request: Callable[[int, int], None]) -> None:
    def client(me: int) -> None:
        number = 0
        while not tally.ends:
            number += 1
            started, error = time.monotonic(), None
            try:
                request(me, number)
            except Exception as caught:
                error = caught
            tally.note((me, number), error, time.monotonic() - started)
            time.sleep(0.01 if number % 20 else 1.4 if tally.slow else 0.01)

    threads = [threading.Thread(target=client, args=(me,)) for me in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _async_clients(tally: Tally, request: Callable[[int, int], Any]) -> None:
    async def client(me: int) -> None:
        number = 0
        while not tally.ends:
            number += 1
            started, error = time.monotonic(), None
            try:
                await request(me, number)
            except Exception as caught:
                error = caught
            tally.note((me, number), error, time.monotonic() - started)
            await asyncio.sleep(0.01 if number % 20 else 1.4 if tally.slow else 0.01)

    await asyncio.gather(*(client(me) for me in range(CLIENTS)))


async def _async_pool(tally: Tally, url: str, driver: str) -> None:
    async def asyncpg_work(conn: Any, client: int, number: int) -> None:
        await conn.fetchval("SELECT $1::int", number)
        await conn.execute(INSERT.format("$1", "$2"), client, number)

    async def psycopg_work(conn: Any, client: int, number: int) -> None:
        await (await conn.execute("SELECT %s::int", (number,))).fetchall()
        await conn.execute(INSERT.format("%s", "%s"), (client, number))

    work = asyncpg_work if driver == "asyncpg" else psycopg_work
    async with unbroken.AsyncPool(url, max_size=5) as pool:
        await _async_clients(tally, lambda client, number: pool.run(work, client, number))
        tally.stats = pool.stats()


async def _async_engine(tally: Tally, url: str, _driver: str) -> None:
    engine = create_async_engine(url, plugins=["unbroken"], pool_size=5, max_overflow=0)

    @unbroken.replayable
    async def work(client: int, number: int) -> None:
        async with engine.begin() as conn:
            (await conn.execute(sa.text("SELECT CAST(:n AS int)"), {"n": number})).all()
            await conn.execute(sa.text(INSERT.format(":c", ":n")), {"c": client, "n": number})

    try:
        await _async_clients(tally, work)
        tally.stats = unbroken.sqlalchemy.stats(engine)
    finally:
        await engine.dispose()


def run(bouncer: PgBouncer, how: str, driver: str, event: str, seconds: float = 4.0) -> Tally:
    """A load of four clients for so many *seconds*, *event* after one of them: what the clients
    were told. *how*: ``pool`` or ``engine``. Checks that each acknowledged write is there once, and
    no other.
    """
    with psycopg.connect(bouncer.server.url(), autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS entries")
        conn.execute("CREATE TABLE entries (client int, number int)")
    tally = Tally()
    tally.slow = event == "limits"
    load = threading.Thread(target=_load, args=(tally, bouncer.url(driver), how, driver))
    load.start()
    try:
        time.sleep(1.0)
        EVENTS[event](bouncer)
        time.sleep(seconds - 1.0)
    finally:
        tally.ends = True
        load.join()
    with psycopg.connect(bouncer.server.url(), autocommit=True) as conn:
        rows = conn.execute("SELECT client, number, count(*) FROM entries GROUP BY 1, 2").fetchall()
    stored = {(client, number) for client, number, _ in rows}
    assert all(count == 1 for _, _, count in rows), "a write was stored twice"
    assert tally.acknowledged <= stored, "an acknowledged write is lost"
    assert stored <= tally.acknowledged | tally.unknown or tally.errors, "a refused write is stored"
    return tally


def _load(tally: Tally, url: str, how: str, driver: str) -> None:
    if driver in ASYNC:
        main = _async_pool if how == "pool" else _async_engine
        asyncio.run(main(tally, url, driver))
        return
    with (_pool if how == "pool" else _engine)(url, driver) as (request, stats):
        _clients(tally, request)
        tally.stats = stats()


def main() -> None:
    """Cells from the command line: modes, ways, drivers and events, each a list with commas."""
    modes, ways, drivers, events = (each.split(",") for each in sys.argv[1:5])
    for mode in modes:
        with PostgreSQL() as server, PgBouncer(server, mode, OPTIONS) as bouncer:  # type: ignore[arg-type]
            for event in events:
                for how in ways:
                    for driver in drivers:
                        tally = run(bouncer, how, driver, event)
                        print(
                            f"{mode} {event} {how} {driver}: {sum(tally.errors.values())} failed,"
                            f" {len(tally.unknown)} unknown of {tally.requests};"
                            f" {tally.slowest:.2f} s; opened {tally.stats.opened}",
                            tally.errors.most_common(2) or "",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
