"""The pools' tests: for asyncio one face over each driver, so that one suite holds all of them to the same words.

Tests of the asyncio pool run plain ``asyncio.run`` (:meth:`Body.run`) and not a plugin: the beginning and the end of a loop are part of what is
tested (a pool that is never closed, a second loop, a loop in another thread), and so is the loop itself (uvloop).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import psutil
import pytest

import unbroken
from unbroken.testing.servers import Server

T = TypeVar("T")


class Body:
    """A driver, a server of its kind, and the few statements that the tests need, in that server's spelling."""

    def __init__(self, name: str, server: Server, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        self.name, self.server, self.loop_factory = name, server, loop_factory
        self.is_mysql = name == "aiomysql"
        self.is_asyncpg = name == "asyncpg"
        self.me = "SELECT CONNECTION_ID()" if self.is_mysql else "SELECT pg_backend_pid()"
        self.tables: list[str] = []

    def run(self, main: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """As ``asyncio.run``, on the loop under test; what hangs fails after *timeout* seconds."""

        async def bounded() -> T:
            async with asyncio.timeout(timeout):
                return await main

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            return runner.run(bounded())

    def pool(self, *, url: str | None = None, **settings: Any) -> unbroken.AsyncPool:
        return unbroken.AsyncPool(url or self.server.url(self.name), **settings)

    # ---- statements

    async def ask(self, conn: Any, sql: str) -> Any:
        """The first value of the first row."""
        if self.is_asyncpg:
            return await conn.fetchval(sql)
        if self.is_mysql:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
                row = await cursor.fetchone()
        else:
            row = await (await conn.execute(sql)).fetchone()
        return None if row is None else row[0]

    async def do(self, conn: Any, sql: str) -> None:
        """Run *sql*, which gives no rows."""
        if self.is_mysql:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
        else:
            await conn.execute(sql)

    async def who(self, conn: Any) -> int:
        """The server's number of this session."""
        return int(await self.ask(conn, self.me))

    async def slow(self, conn: Any, seconds: float) -> None:
        """A statement that takes that long."""
        await self.ask(conn, f"SELECT SLEEP({seconds})" if self.is_mysql else f"SELECT pg_sleep({seconds})::text")

    def table(self, name: str = "numbers") -> str:
        """An empty table of one number, dropped after the test."""
        self.server.admin(f"DROP TABLE IF EXISTS {name}")
        self.server.admin(f"CREATE TABLE {name} (n BIGINT NOT NULL){' ENGINE=InnoDB' if self.is_mysql else ''}")
        if not self.is_mysql:
            self.server.admin(f"GRANT ALL ON {name} TO {self.server.user}")
        self.tables.append(name)
        return name

    def rows(self, name: str = "numbers") -> list[int]:
        """What is stored for good."""
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {name}"))

    def ids(self) -> set[int]:
        """The application's sessions, by the server's numbers."""
        return {session.id for session in self.server.sessions()}

    # ---- conditions

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until *condition* holds; fail after a deadline."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not true within {seconds} s"
            await asyncio.sleep(0.005)

    async def fill(self, pool: unbroken.AsyncPool, count: int) -> list[int]:
        """Open *count* connections and give them all back: their numbers."""
        conns = await asyncio.gather(*(pool.acquire() for _ in range(count)))
        ids = [await self.who(conn) for conn in conns]
        for conn in conns:
            await pool.release(conn)
        return ids

    async def outcome(self, awaitable: Awaitable[Any]) -> BaseException | None:
        """What *awaitable* raised, or None."""
        try:
            await awaitable
        except Exception as error:
            return error
        return None

    def close_waits(self) -> int:
        """Sockets of this process to the server that the other side has closed and we have not."""
        found = psutil.Process().net_connections("tcp")
        return sum(c.status == psutil.CONN_CLOSE_WAIT and bool(c.raddr) and c.raddr.port == self.server.port for c in found)

    def close(self) -> None:
        if self.server.is_running:
            for name in self.tables:
                self.server.admin(f"DROP TABLE IF EXISTS {name}")


@pytest.fixture(params=["psycopg", "asyncpg", "aiomysql"])
def body(request: pytest.FixtureRequest) -> Iterator[Body]:
    """Each async driver in turn, on the shared server of its kind."""
    made = Body(request.param, request.getfixturevalue("mariadb" if request.param == "aiomysql" else "postgres"))
    with contextlib.closing(made):
        yield made


@pytest.fixture(params=["psycopg", "asyncpg", "aiomysql"])
def own_body(request: pytest.FixtureRequest) -> Iterator[Body]:
    """Each async driver in turn, on a server of its own that may be stopped, killed and frozen."""
    made = Body(request.param, request.getfixturevalue("new_mariadb" if request.param == "aiomysql" else "new_postgres")())
    with contextlib.closing(made):
        yield made
