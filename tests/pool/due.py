"""A driver's pools on real servers, for the tests of answers that are due."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import unbroken
from unbroken.drivers import open_driver
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, MySQL, PostgreSQL, Server

from .every_driver import url_of

ASYNC = ("aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg")
#: PostgreSQL's drivers that can leave an answer for later.
POSTGRESQL = ["psycopg", "psycopg_async", "asyncpg", "pg8000"]
#: Each driver that can leave an answer for later.
DRIVERS = [
    "pymysql", "mysqldb", "mariadbconnector", "mysqlconnector", "aiomysql", "asyncmy",
    "mysqlconnector_async",
]  # fmt: skip
for _name, _module in {"mysqldb": "MySQLdb", "mariadbconnector": "mariadb"}.items():
    if find_spec(_module) is None:  # they have no release for free-threaded Pythons
        DRIVERS.remove(_name)
OPTIONS = {"local_infile": 1, "max_allowed_packet": 64 << 20}
#: one way, in seconds; long, so that a slow machine counts the same round trips
FAR = 0.015


def servers() -> Iterator[Callable[[type[Server]], Server]]:
    """A server of each kind, with a certificate, files and long statements."""
    made: dict[type[Server], Server] = {}
    with ExitStack() as stack:

        def server(kind: Any) -> Server:
            if kind is PostgreSQL and kind not in made:
                made[kind] = stack.enter_context(PostgreSQL(tls=True))
                user = made[kind].user
                for sql in (
                    "CREATE TABLE stock (n INT)", "INSERT INTO stock VALUES (1), (2), (3)",
                    "CREATE TABLE sold (n INT)", f'ALTER TABLE stock OWNER TO "{user}"',
                    f'ALTER TABLE sold OWNER TO "{user}"',
                ):  # fmt: skip
                    made[kind].admin(sql)
            if kind not in made:
                made[kind] = stack.enter_context(kind(OPTIONS, tls=True))
                for sql in (
                    "CREATE TABLE stock (n INT) ENGINE=InnoDB",
                    "INSERT INTO stock VALUES (1), (2), (3)",
                    "CREATE TABLE sold (n INT) ENGINE=InnoDB",
                    "CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END",
                    "CREATE PROCEDURE ends(how INT) SET SESSION completion_type = how",
                ):
                    made[kind].admin(sql)
            return made[kind]

        yield server


class Bench:
    """A driver's pools on one server, used from a test that is no coroutine."""

    def __init__(self, name: str, server: Server, stack: ExitStack) -> None:
        self.name, self.server, self.stack = name, server, stack
        self.is_async = name in ASYNC
        self.is_connector = name.startswith("mysqlconnector")
        self.is_mariadb = name == "mariadbconnector"
        self.driver: Any = open_driver(self.url(), is_async=self.is_async)
        self._runner = stack.enter_context(asyncio.Runner()) if self.is_async else None

    def wait(self, value: Any) -> Any:
        """What *value*, which may have to be awaited, gives."""
        if not inspect.isawaitable(value):
            return value

        async def bounded() -> Any:
            async with asyncio.timeout(30.0):
                return await value

        assert self._runner is not None
        return self._runner.run(bounded())

    def rest(self, seconds: float) -> None:
        """Let time pass; an event loop reads what comes meanwhile."""
        self.wait(asyncio.sleep(seconds)) if self.is_async else time.sleep(seconds)

    def url(self, *, tls: bool = False, **query: object) -> str:
        return url_of(self.server, self.name, tls or isinstance(self.server, MySQL), **query)

    @property
    def has_tls(self) -> bool:
        """Whether :meth:`url` leads over TLS."""
        return self.name in ("pymysql", "mysqlconnector") or isinstance(self.server, MySQL)

    @property
    def is_postgresql(self) -> bool:
        return isinstance(self.server, PostgreSQL)

    def pool(self, url: str | None = None, **settings: Any) -> Any:
        kind: Any = unbroken.AsyncPool if self.is_async else unbroken.Pool
        pool = kind(url or self.url(), **{"max_size": 1, "ping_timeout": 1.0, **settings})
        self.stack.callback(lambda: self.wait(pool.close(timeout=0.0)))
        return pool

    def proxy(self) -> FaultProxy:
        address = (self.server.host, self.server.port)
        protocol = "postgresql" if self.is_postgresql else "mysql"
        return self.stack.enter_context(FaultProxy(address, protocol=protocol))

    def take(self, pool: Any) -> Any:
        return self.wait(pool.acquire())

    def give(self, pool: Any, conn: Any) -> None:
        self.wait(pool.release(conn))

    @contextlib.contextmanager
    def lent(self, pool: Any, **how: Any) -> Iterator[Any]:
        lease = pool.connection(**how)
        if not self.is_async:
            with lease as conn:
                yield conn
            return
        conn = self.wait(lease.__aenter__())
        try:
            yield conn
        except BaseException as error:
            self.wait(lease.__aexit__(type(error), error, None))
            raise
        self.wait(lease.__aexit__(None, None, None))

    async def cursor(self, conn: Any, *how: Any, **options: Any) -> Any:
        """Of an asyncio driver."""
        made = conn.cursor(*how, **options)
        return (await made) if inspect.isawaitable(made) else made

    async def _do(self, conn: Any, sql: str) -> Any:
        if self.name == "asyncpg":
            return [tuple(row) for row in await conn.fetch(sql)]
        async with await self.cursor(conn) as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    def do(self, conn: Any, sql: str) -> Any:
        """The rows."""
        if self.is_async:
            return self.wait(self._do(conn, sql))
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def ask(self, conn: Any, sql: str) -> Any:
        return self.do(conn, sql)[0][0]

    def me(self, conn: Any) -> int:
        name = "pg_backend_pid" if self.is_postgresql else "CONNECTION_ID"
        return int(self.ask(conn, f"SELECT {name}()"))

    def state(self, pool: Any) -> Any:
        return pool._home[1] if self.is_async else pool._state

    def is_due(self, pool: Any) -> bool:
        state = self.state(pool)
        return any(state.is_due(entry, entry.conn) for entry in state.idle)

    def use(self, pool: Any) -> int:
        """One use that leaves an answer due: the session."""
        conn = self.take(pool)
        session = self.me(conn)
        self.do(conn, "SELECT n FROM stock FOR UPDATE")
        self.give(pool, conn)
        return session

    def due(self, pool: Any) -> int:
        """As :meth:`use`, on a connection of which an answer was seen before."""
        self.use(pool)
        session = self.use(pool)
        assert self.is_due(pool)
        return session

    def answers_its_own(self, pool: Any) -> int:
        """Three uses get their own answers: the session of the last."""
        for number in range(7001, 7004):
            with self.lent(pool) as conn:
                assert self.ask(conn, f"SELECT {number}") == number
                session = self.me(conn)
                self.do(conn, "SELECT n FROM stock")
        return session

    def sold(self) -> int:
        """So many rows are stored; none afterwards."""
        count = int(self.server.admin("SELECT COUNT(*) FROM sold")[0][0])
        self.server.admin("TRUNCATE sold")
        return count


#: Each of them, on each kind of server.
PAIRS: list[tuple[str, type[Server]]] = [
    *((name, kind) for name in DRIVERS for kind in (MariaDB, MySQL)), ("pg8000", PostgreSQL)
]  # fmt: skip
IDS = [f"{name}-{kind.__name__}" for name, kind in PAIRS]
