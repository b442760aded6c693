"""A shop with one table of tasks, on each driver that peewee has."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import peewee
import pytest

import unbroken.peewee
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pymysql": ("PooledMySQLDatabase", {}),
    "mysqlconnector": ("PooledMySQLConnectorDatabase", {"use_pure": True}),
    "mariadb": ("PooledMariaDBConnectorDatabase", {}),
    "psycopg2": ("PooledPostgresqlDatabase", {}),
    "psycopg": ("PooledPostgresqlDatabase", {"prefer_psycopg3": True}),
}
ASYNC_KINDS = {"mariadb": "AsyncMySQLDatabase", "postgres": "AsyncPostgresqlDatabase"}
_numbers = count(1)


class Shop:
    """One kind of database on one server."""

    def __init__(self, name: str, server: Server, stack: ExitStack) -> None:
        self.name, self.server, self._stack = name, server, stack
        self.is_mysql = not name.startswith("psycopg")

    @property
    def where(self) -> dict[str, Any]:
        return {
            "host": self.server.host,
            "port": self.server.port,
            "user": self.server.user,
            "password": self.server.password,
        }

    def database(self, module: Any = unbroken.peewee, **settings: Any) -> Any:
        """A database of ours, or of playhouse's (``module=playhouse.pool``)."""
        kind, extra = KINDS[self.name]
        db = getattr(module, kind)(self.server.database, **self.where, **extra, **settings)
        self._stack.callback(self._close, db)
        return db

    def _close(self, db: Any) -> None:
        if not db.is_closed():
            db._state.transactions.clear()
            db.close()
        db.close_all()

    def tasks(self, db: Any, rows: int = 3) -> Any:
        """A model ``Task`` of *db* on a new table with *rows* rows."""
        name = f"task_{next(_numbers)}"

        class Task(peewee.Model):  # type: ignore[misc]
            name = peewee.CharField()

            class Meta:
                database = db
                table_name = name

        db.create_tables([Task])
        for number in range(rows):
            Task.create(name=f"task {number}")
        self._stack.callback(self._drop, name)
        return Task

    def _drop(self, table: str) -> None:
        if self.server.is_running:
            self.server.kill_sessions()  # an open transaction would hold the table
            self.server.admin(f"DROP TABLE IF EXISTS {table}")

    def names(self, task: Any) -> list[str]:
        """What is stored for good."""
        return sorted(
            row[0] for row in self.server.admin(f"SELECT name FROM {task._meta.table_name}")
        )


class AsyncShop:
    """A database with one table, while *scenario* runs."""

    def __init__(self, backend: str, server: Any) -> None:
        self.server, self.port, self.kind = (
            server,
            server.port,
            getattr(unbroken.peewee, ASYNC_KINDS[backend]),
        )
        self.is_mysql = backend == "mariadb"

    def database(self, **settings: Any) -> Any:
        s = self.server
        return self.kind(
            s.database, host=s.host, port=self.port, user=s.user, password=s.password, **settings
        )

    def run(
        self, scenario: Callable[[Any, Any], Coroutine[Any, Any, None]], **settings: Any
    ) -> None:
        """``await scenario(db, Task)``, with three tasks stored; afterwards nothing is lent."""

        async def main() -> None:
            self.db = db = self.database(**settings)

            class Task(db.Model):  # type: ignore[misc, name-defined]
                name = peewee.CharField(unique=True)

                class Meta:
                    table_name = f"async_task_{next(_numbers)}"

            self.model = Task
            await db.acreate_tables([Task])
            await Task.abulk_create([Task(name=f"task {i}") for i in range(3)])
            await db.aclose()
            try:
                async with asyncio.timeout(30):
                    await scenario(db, Task)
                await db.aclose()
                await self.until(lambda: db.stats().used == 0)
            finally:
                await db.close_pool()
                # peewee names the index by the model alone: while this table is there, the next
                # test's table gets no index, and no error says so
                await asyncio.to_thread(self._drop, Task._meta.table_name)

        asyncio.run(main())

    def _drop(self, table: str) -> None:
        if self.server.is_running:
            self.server.kill_sessions()  # an open transaction would hold the table
            self.server.admin(f"DROP TABLE IF EXISTS {table}")

    def names(self, model: Any) -> list[str]:
        """What is stored for good."""
        return sorted(
            row[0] for row in self.server.admin(f"SELECT name FROM {model._meta.table_name}")
        )

    @staticmethod
    async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not true within {seconds} s"
            await asyncio.sleep(0.002)

    @contextmanager
    def proxy(self) -> Iterator[FaultProxy]:
        """A fault proxy that knows the protocol, on the way of all databases that are made from
        here on.
        """
        with FaultProxy(
            (self.server.host, self.server.port),
            protocol="mysql" if self.is_mysql else "postgresql",
        ) as proxy:
            self.port = proxy.port
            yield proxy


@pytest.fixture
def shops(request: pytest.FixtureRequest) -> Iterator[Callable[..., Shop]]:
    """``shops("pymysql")`` on the shared server; ``own=True`` on one that may be stopped and
    killed.
    """
    with ExitStack() as stack:

        def make(name: str, own: bool = False, **options: Any) -> Shop:
            backend = "postgres" if name.startswith("psycopg") else "mariadb"
            server: MariaDB | PostgreSQL
            server = (
                request.getfixturevalue(f"new_{backend}")(options)
                if own or options
                else request.getfixturevalue(backend)
            )
            return Shop(name, server, stack)

        yield make


@pytest.fixture(params=["pymysql", "psycopg2", "psycopg"])
def shop(request: pytest.FixtureRequest, shops: Callable[..., Shop]) -> Shop:
    """The usual drivers in turn, on the shared servers."""
    return shops(request.param)


@pytest.fixture(params=list(KINDS))
def every_shop(request: pytest.FixtureRequest, shops: Callable[..., Shop]) -> Shop:
    """Every driver in turn, on the shared servers."""
    return shops(request.param)


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(condition)``: wait until it is true, fail after a deadline."""

    def wait(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not true within {seconds} s"
            time.sleep(0.002)
        return found

    return wait


@pytest.fixture
def in_threads() -> Callable[..., list[Any]]:
    """``in_threads(n, fn)``: what ``fn(i)`` gives in *n* threads at once, or the exception that it
    raised.
    """

    def run(n: int, fn: Callable[[int], Any], seconds: float = 60.0) -> list[Any]:
        results: list[Any] = [None] * n

        def one(i: int) -> None:
            try:
                results[i] = fn(i)
            except BaseException as error:
                results[i] = error

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds)
        assert not any(thread.is_alive() for thread in threads), (
            f"threads still run after {seconds} s"
        )
        return results

    return run


@pytest.fixture(params=list(ASYNC_KINDS))
def async_shop(request: pytest.FixtureRequest) -> AsyncShop:
    """aiomysql and asyncpg in turn, on the shared servers."""
    return AsyncShop(request.param, request.getfixturevalue(request.param))


@pytest.fixture(params=list(ASYNC_KINDS))
def own_async_shop(request: pytest.FixtureRequest) -> AsyncShop:
    """Likewise, on servers that may be stopped and killed."""
    return AsyncShop(request.param, request.getfixturevalue(f"new_{request.param}")())
