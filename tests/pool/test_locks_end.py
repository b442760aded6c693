"""No lock and no snapshot outlives a release by more than the way of its ROLLBACK to the server,
though nobody waits for the answer: asked on the server itself, far away by a proxy.

Every body with every driver that leaves answers for later; a driver that waits has nothing to show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
from unbroken.drivers import open_driver
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, MySQL, PostgreSQL, Server

from .every_driver import url_of

WAY = 0.2  #: seconds each way: a ROLLBACK is there after this, and its answer here after twice this
#: InnoDB's table of transactions is made anew only where nobody has read it for 0.1 s.
READS_APART = 0.12
TABLE = "locks_end"
#: Each driver with a pool and, where SQLAlchemy has it, with an engine; the server of each.
POOLS: dict[str, type[Server]] = {
    "pymysql": MySQL, "mysqldb": MariaDB, "mysqlconnector": MySQL, "aiomysql": MySQL,
    "asyncmy": MariaDB, "psycopg": PostgreSQL, "psycopg_async": PostgreSQL,
    "psycopg2": PostgreSQL, "pg8000": PostgreSQL, "asyncpg": PostgreSQL,
}  # fmt: skip
ENGINES: dict[str, type[Server]] = {
    "pymysql": MySQL, "aiomysql": MariaDB, "psycopg": PostgreSQL, "psycopg_async": PostgreSQL,
    "asyncpg": PostgreSQL,
}  # fmt: skip
ASYNC = ("aiomysql", "asyncmy", "psycopg_async", "asyncpg")
CASES = [
    (body, driver, kind)
    for body, drivers in (("pool", POOLS), ("engine", ENGINES))
    for driver, kind in drivers.items()
]
#: What a use does last. It leaves locks on rows, or a snapshot and the lock of the table itself.
LAST = (f"SELECT n FROM {TABLE} FOR UPDATE", f"SELECT n FROM {TABLE}")
#: What the server has of a session's transaction, and of its locks.
ASKS: dict[type[Server], tuple[str, ...]] = {
    PostgreSQL: (
        "SELECT 1 FROM pg_locks WHERE pid = {0}",
        "SELECT 1 FROM pg_stat_activity WHERE pid = {0}"
        " AND (state <> 'idle' OR xact_start IS NOT NULL OR backend_xmin IS NOT NULL)",
    ),
    MariaDB: ("SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {0}",),
    MySQL: (
        "SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {0}",
        "SELECT 1 FROM performance_schema.metadata_locks JOIN performance_schema.threads"
        " ON owner_thread_id = thread_id WHERE processlist_id = {0} AND object_type = 'TABLE'",
    ),
}


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[Any], Server]]:
    made: dict[Any, Server] = {}
    with ExitStack() as stack:

        def server(kind: Any) -> Server:
            if kind not in made:
                made[kind] = stack.enter_context(kind(tls=True))
                made[kind].admin(f"CREATE TABLE {TABLE} (n INT PRIMARY KEY)")
                made[kind].admin(f"INSERT INTO {TABLE} VALUES (1), (2)")
                if kind is PostgreSQL:
                    made[kind].admin(f'ALTER TABLE {TABLE} OWNER TO "{made[kind].user}"')
            return made[kind]

        yield server


class Body:
    """One way of having a connection, with one place."""

    def __init__(self, url: str, stack: ExitStack, is_async: bool) -> None:
        self.leave: Callable[[], object] = time.monotonic  #: called just before it goes back
        self.runner = stack.enter_context(asyncio.Runner()) if is_async else None
        self.made = self.make(url)
        stack.callback(lambda: self.wait(self.end()))

    def wait(self, value: Any) -> Any:
        return self.runner.run(value) if self.runner is not None else value

    def use(self, text: str) -> Any:
        """Take it, do *text*, give it back: the first value."""
        return self.wait(self.used(text))

    def make(self, url: str) -> Any:
        raise NotImplementedError

    def end(self) -> Any:
        raise NotImplementedError

    def used(self, text: str) -> Any:
        raise NotImplementedError


class OfPool(Body):
    def make(self, url: str) -> Any:
        return unbroken.Pool(url, max_size=1)

    def end(self) -> Any:
        self.made.close(timeout=0.0)

    def used(self, text: str) -> Any:
        if "FOR UPDATE" not in text:  # which ends with a COMMIT
            with self.made.connection() as conn:
                return self.asked(conn, text)
        conn = self.made.acquire()
        found = self.asked(conn, text)
        self.made.release(conn)
        return found

    def asked(self, conn: Any, text: str) -> Any:
        cursor = conn.cursor()
        cursor.execute(text)
        found = cursor.fetchall()[0][0]
        cursor.close()
        self.leave()
        return found


class OfAsyncPool(Body):
    def make(self, url: str) -> Any:
        async def made() -> Any:
            return unbroken.AsyncPool(url, max_size=1)

        return self.wait(made())

    def end(self) -> Any:
        return self.made.close(timeout=0.0)

    async def used(self, text: str) -> Any:
        if "FOR UPDATE" not in text:
            async with self.made.connection() as conn:
                return await self.asked(conn, text)
        conn = await self.made.acquire()
        if hasattr(conn, "fetchval"):
            await conn.execute("BEGIN")  # asyncpg begins none by itself
        found = await self.asked(conn, text)
        await self.made.release(conn)
        return found

    async def asked(self, conn: Any, text: str) -> Any:
        if hasattr(conn, "fetchval"):
            found = await conn.fetchval(text)
        else:
            async with conn.cursor() as cursor:
                await cursor.execute(text)
                found = (await cursor.fetchall())[0][0]
        self.leave()
        return found


class OfEngine(Body):
    def make(self, url: str) -> Any:
        return sa.create_engine(url, pool_size=1, plugins=["unbroken"])

    def end(self) -> Any:
        self.made.dispose()

    def used(self, text: str) -> Any:
        with self.made.connect() as conn:
            found = conn.execute(sa.text(text)).scalars().all()[0]
            self.leave()
        return found


class OfAsyncEngine(Body):
    def make(self, url: str) -> Any:
        return create_async_engine(url, pool_size=1, plugins=["unbroken"])

    def end(self) -> Any:
        return self.made.dispose()

    async def used(self, text: str) -> Any:
        async with self.made.connect() as conn:
            found = (await conn.execute(sa.text(text))).scalars().all()[0]
            self.leave()
        return found


BODIES: dict[str, tuple[type[Body], type[Body]]] = {
    "pool": (OfPool, OfAsyncPool), "engine": (OfEngine, OfAsyncEngine),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "driver", "kind"), CASES, ids=[f"{each[0]}-{each[1]}" for each in CASES]
)
def test_neither_lock_nor_snapshot_outlives_the_way_of_a_rollback(
    server_of: Any, body: str, driver: str, kind: type[Server]
) -> None:
    is_async = driver in ASYNC
    server = server_of(kind)
    url = url_of(server, driver, tls=kind is MySQL)
    if not hasattr(open_driver(url, is_async=is_async), "send_end"):
        pytest.skip("its answers are waited for")
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy((server.host, server.port)))
        if driver == "asyncpg" and body == "engine":  # SQLAlchemy hands asyncpg its own arguments
            url = server.url(driver, ssl="disable")
        used = BODIES[body][is_async](proxy.url(url), stack, is_async)
        session = _session(used, kind)
        for last in LAST:
            late = [_late(used, proxy, server, session, last)]
            while min(late) >= WAY and len(late) < 3:  # this machine paused, perhaps
                late.append(_late(used, proxy, server, session, last))
            assert min(late) < WAY, f"{last}: so much later than a ROLLBACK's way: {late}"


def _session(used: Body, kind: type[Server]) -> Any:
    """The session's number. Afterwards all is known of it and of its server."""
    ask = "SELECT pg_backend_pid()" if kind is PostgreSQL else "SELECT CONNECTION_ID()"
    for _ in range(4):
        session = used.use(ask)
        used.wait(asyncio.sleep(0.05) if used.runner is not None else time.sleep(0.05))
    return session


def _late(used: Body, proxy: FaultProxy, server: Server, session: Any, last: str) -> float:
    """How much later than a ROLLBACK's way the server was free, after a use that did *last*: less
    than another way if nobody waited for the answer.
    """
    asks = [text.format(session) for text in ASKS[type(server)]]
    back: list[float] = []

    def leave() -> None:
        time.sleep(READS_APART)
        assert any(server.admin(text) for text in asks), "these questions show nothing"
        proxy.latency(WAY)
        back.append(time.monotonic())

    used.leave = leave
    try:
        used.use(last)
        returned = time.monotonic()
        time.sleep(max(0.0, back[0] + WAY + 0.02 - returned))
        while any(server.admin(text) for text in asks):
            assert time.monotonic() - back[0] < 10, "it is never free"
            time.sleep(READS_APART)
        free = time.monotonic()
    finally:
        used.leave = time.monotonic
        proxy.heal()
    server.admin(f"SELECT n FROM {TABLE} FOR UPDATE NOWAIT")
    return max(free, returned) - back[0] - WAY
