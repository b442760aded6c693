"""One face for all drivers, blocking and async, so that one suite holds them all to the same
words.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from unbroken.drivers import open_driver
from unbroken.ledger import scope, unit
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

MYSQL = [
    "pymysql",
    "mysqldb",
    "aiomysql",
    "asyncmy",
    "mariadbconnector",
    "mysqlconnector",
    "mysqlconnector_async",
]
POSTGRESQL = ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"]
ASYNC = {"aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg"}
#: Drivers that cannot bound a single call: the pool ends it from outside.
WITHOUT_TIMEOUT = {"mysqldb", "psycopg2", "mariadbconnector"}


class Face:
    """A driver with its async methods already awaited, and statements in one spelling."""

    class Hung(Exception):  # noqa: N818 - what happened, not a kind of error
        """An async method waits for something that does not come."""

    def __init__(self, name: str, server: Server, runner: asyncio.Runner) -> None:
        self.name, self.server, self.runner = name, server, runner
        self.is_async = name in ASYNC
        self.is_mysql = name in MYSQL
        self.opened: list[tuple[Any, Any]] = []
        self.driver: Any = self.make(self.url())

    def url(self, **query: object) -> str:
        return self.server.url(self.spelling, **query)

    @property
    def spelling(self) -> str:
        """What follows the plus sign in its URL."""
        return self.name.removesuffix("_async")

    def make(self, url: str | None = None, **options: Any) -> Any:
        return open_driver(url, is_async=self.is_async, **options)

    def run(self, value: Any) -> Any:
        if not inspect.isawaitable(value):
            return value

        async def wait() -> Any:
            try:
                async with asyncio.timeout(8) as limit:
                    return await value
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise self.Hung(f"{self.name} waited 8 s for an answer") from error

        return self.runner.run(wait(), context=contextvars.copy_context())

    def call(self, name: str, *args: Any, driver: Any = None) -> Any:
        return self.run(getattr(driver or self.driver, name)(*args))

    def connect(self, timeout: float = 5.0, driver: Any = None) -> Any:
        conn = self.call("connect", timeout, driver=driver)
        self.opened.append((driver or self.driver, conn))
        return conn

    def execute(self, conn: Any, sql: str) -> list[tuple[Any, ...]]:
        return list(
            self.run(self._execute(conn, sql)) if self.is_async else self._execute_sync(conn, sql)
        )

    def _execute_sync(self, conn: Any, sql: str) -> list[tuple[Any, ...]]:
        cursor = conn.cursor()
        try:
            cursor.execute(sql)
            # pg8000 gives lists
            rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
            while self.is_mysql and cursor.nextset():
                pass
            return rows
        finally:
            with suppress(Exception):
                cursor.close()

    async def _execute(self, conn: Any, sql: str) -> list[tuple[Any, ...]]:
        if self.name == "asyncpg":
            return [tuple(row) for row in await conn.fetch(sql)]
        cursor = (
            (await conn.cursor())
            if self.name in ("aiomysql", "mysqlconnector_async")
            else conn.cursor()
        )
        try:
            await cursor.execute(sql)
            rows = list(await cursor.fetchall()) if cursor.description else []
            if self.is_mysql:
                while await cursor.nextset():
                    pass
            return rows
        finally:
            with suppress(Exception):
                await cursor.close()

    @property
    def bounds_calls(self) -> bool:
        """Whether its ping ends in time by itself; else the pool ends it from outside."""
        return self.name not in WITHOUT_TIMEOUT

    @property
    def libraries(self) -> set[str]:
        """Where its connections' classes may be from."""
        return {
            "mysqldb": {"MySQLdb"},
            "mariadbconnector": {"mariadb"},
            "mysqlconnector": {"mysql"},
        }.get(self.spelling, {self.spelling})

    def by_library(self) -> Any:
        """A new connection by the library's own function (async: an awaitable of one), as an
        application makes it.
        """
        server = self.server
        where: dict[str, Any] = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
        }
        where["dbname" if self.name in ("psycopg", "psycopg_async", "psycopg2") else "database"] = (
            server.database
        )
        if self.name == "aiomysql":
            where["db"] = where.pop("database")
        if self.name.startswith("mysqlconnector"):
            where |= {"ssl_disabled": True} if self.is_async else {"use_pure": True}
        module, _, name = {
            "mysqldb": "MySQLdb.connect", "mariadbconnector": "mariadb.connect",
            "mysqlconnector": "mysql.connector.connect",
            "mysqlconnector_async": "mysql.connector.aio.connect",
            "psycopg_async": "psycopg.AsyncConnection.connect", "pg8000": "pg8000.dbapi.connect",
        }.get(self.name, f"{self.name}.connect").rpartition(".")  # fmt: skip
        if module == "psycopg.AsyncConnection":
            return importlib.import_module("psycopg").AsyncConnection.connect(**where)
        return getattr(importlib.import_module(module), name)(**where)

    def streaming_cursor(self, conn: Any) -> Any:
        """A cursor that leaves the rows on the wire; aiomysql's and its kin's is awaited."""
        if self.name == "mariadbconnector":
            return conn.cursor(buffered=False)
        if self.name.startswith("mysqlconnector"):
            return conn.cursor()
        library = {
            "pymysql": "pymysql.cursors",
            "mysqldb": "MySQLdb.cursors",
            "aiomysql": "aiomysql",
            "asyncmy": "asyncmy.cursors",
        }
        return conn.cursor(importlib.import_module(library[self.name]).SSCursor)

    def autocommit(self, conn: Any, on: bool) -> None:
        if self.name in ("psycopg2", "pg8000", "mariadbconnector", "mysqlconnector"):
            conn.autocommit = on
        elif self.is_mysql and self.name != "mysqlconnector_async":
            self.run(conn.autocommit(on))
        elif self.name != "asyncpg":
            self.run(conn.set_autocommit(on))

    def fault(self, action: Callable[[], Any], driver: Any = None) -> Any:
        """The Fault of what *action* raises."""
        try:
            action()
        except BaseException as error:
            return (driver or self.driver).classify(error)
        raise AssertionError("nothing was raised")

    def close(self) -> None:
        for driver, conn in self.opened:
            driver.close(conn)
        with suppress(RuntimeError):
            self.runner.run(asyncio.sleep(0))  # let the transports' callbacks run


class Recorder(unit.Unit):
    """A ledger that writes down what it is told."""

    __slots__ = ("log",)

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Any] = []

    def statement(self, sql: Any, autocommit: bool | None, *, conn_id: int | None = None) -> None:
        assert conn_id is not None
        text = bytes(sql).decode() if isinstance(sql, (bytes, bytearray)) else sql
        self.log.append((text, autocommit))

    def committing(self, *, conn_id: int | None = None) -> None:
        self.log.append("committing")

    def committed(self, *, conn_id: int | None = None) -> None:
        self.log.append("committed")

    def commit_failed(self, *, conn_id: int | None = None) -> None:
        self.log.append("commit failed")

    def commit_doubted(self, *, conn_id: int | None = None) -> None:
        self.log.append("commit doubted")

    def rolled_back(self, *, conn_id: int | None = None) -> None:
        self.log.append("rolled back")

    def doubt(self, reason: str, *, conn_id: int | None = None) -> None:
        self.log.append(("doubt", reason))

    @property
    def sent(self) -> list[str | None]:
        return [entry[0] for entry in self.log if isinstance(entry, tuple) and entry[0] != "doubt"]

    @property
    def doubts(self) -> list[str]:
        return [entry[1] for entry in self.log if isinstance(entry, tuple) and entry[0] == "doubt"]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    ledger = Recorder()
    token = scope.enter(ledger)
    yield ledger
    scope.leave(token)


@pytest.fixture
def faces() -> Iterator[Callable[[str, Server], Face]]:
    with ExitStack() as stack:

        def make(name: str, server: Server) -> Face:
            face = Face(name, server, stack.enter_context(asyncio.Runner()))
            stack.callback(face.close)
            return face

        yield make


def server_for(name: str, request: pytest.FixtureRequest) -> Server:
    server: MariaDB | PostgreSQL = request.getfixturevalue(
        "mariadb" if name in MYSQL else "postgres"
    )
    return server


@pytest.fixture(params=MYSQL + POSTGRESQL)
def face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on the shared server of its kind."""
    return faces(request.param, server_for(request.param, request))


@pytest.fixture(params=MYSQL)
def mysql_face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    return faces(request.param, server_for(request.param, request))


@pytest.fixture(params=POSTGRESQL)
def pg_face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    return faces(request.param, server_for(request.param, request))


@pytest.fixture(params=MYSQL + POSTGRESQL)
def own_face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on a server of its own that may be stopped, killed and frozen."""
    make = request.getfixturevalue("new_mariadb" if request.param in MYSQL else "new_postgres")
    return faces(request.param, make())


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(condition)``: wait until it is true, fail after a deadline."""

    def wait(condition: Callable[[], Any], seconds: float = 10.0, every: float = 0.005) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not true within {seconds} s"
            time.sleep(every)

    return wait
