"""Each body by the same few moves, blocking: the tests need not know which one they have.

To let another body join, write a class with ``open``, ``ask``, ``take``, ``stats`` and ``close``,
and add it to BODIES (``every.py``).
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import unbroken
from unbroken.brain.stats import Stats

ASK = "SELECT pg_backend_pid()"
#: Seconds that a call of a body may take in a test, on a loaded machine too.
LIMIT = 60.0


class Body(ABC):
    """A pool of *size* connections to a server. Callers wait for *patience* seconds."""

    name: ClassVar[str]
    driver: ClassVar[str]
    backend: ClassVar[str] = "postgresql"

    def __init__(
        self, server_url: Callable[[str], str], size: int, patience: float = 20.0, **settings: Any
    ) -> None:
        self.open(server_url(self.driver), size, patience, settings)

    @abstractmethod
    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """Make the pool."""

    @abstractmethod
    def ask(self, seconds: float = 0.0) -> int:
        """Use a connection for *seconds*: the server's number of its session."""

    @abstractmethod
    def take(self) -> Callable[[], None]:
        """Take a connection and keep it. The function that is returned gives it back."""

    @abstractmethod
    def stats(self) -> Stats:
        """The pool's numbers."""

    @abstractmethod
    def close(self) -> None:
        """Close the pool."""

    @abstractmethod
    def store(self, sql: str) -> Any:
        """The first value of *sql*, which writes, as a transaction of its own."""

    @abstractmethod
    def replay(self, sql: str) -> Any:
        """The same as a unit of work."""

    @abstractmethod
    def change(self, *statements: str) -> None:
        """Send *statements* in one transaction."""

    def begin_in_child(self) -> None:  # noqa: B027 - most need nothing
        """This process is a forked child: make what a fork does not copy."""

    def crowd(self, callers: int, uses: int, seconds: float = 0.0) -> list[BaseException | int]:
        """*callers* at once use a connection *uses* times each: how many each had, or its error."""

        def one(_number: int) -> BaseException | int:
            try:
                return len([self.ask(seconds) for _ in range(uses)])
            except Exception as error:
                return error

        with ThreadPoolExecutor(callers) as threads:
            return list(threads.map(one, range(callers)))


def secrets_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The password among *settings*, which is taken out there."""
    return {"password": settings.pop("password")} if "password" in settings else {}


def _slept(seconds: float) -> str:
    return f"SELECT pg_sleep({seconds})"


class Blocking(Body):
    """A body whose connections have ``cursor()`` or the like, given by :meth:`connection`."""

    @abstractmethod
    def connection(self) -> Any:
        """A context manager that gives a connection."""

    @abstractmethod
    def execute(self, conn: Any, sql: str) -> Any:
        """The first value that *sql* gives."""

    def transaction(self) -> Any:
        """As :meth:`connection`; what is done is committed."""
        return self.connection()

    def change(self, *statements: str) -> Any:
        """See Body. Gives the last value."""
        with self.transaction() as conn:
            return [self.execute(conn, sql) for sql in statements][-1]

    def store(self, sql: str) -> Any:
        """See Body."""
        return self.change(sql)

    def replay(self, sql: str) -> Any:
        """See Body."""
        return unbroken.replayable(self.change)(sql)

    def ask(self, seconds: float = 0.0) -> int:
        """See Body."""
        with self.connection() as conn:
            if seconds:
                self.execute(conn, _slept(seconds))
            return int(self.execute(conn, ASK))

    def take(self) -> Callable[[], None]:
        """See Body."""
        held = self.connection()
        held.__enter__()
        return lambda: held.__exit__(None, None, None)


class PoolBody(Blocking):
    """``unbroken.Pool``."""

    name, driver = "pool", "psycopg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        self.pool = unbroken.Pool(url, max_size=size, acquire_timeout=patience, **settings)

    def connection(self) -> Any:
        """See Blocking."""
        return self.pool.connection()

    def execute(self, conn: Any, sql: str) -> Any:
        """See Blocking."""
        return conn.execute(sql).fetchone()[0]

    def store(self, sql: str) -> Any:
        """See Body. A bare pool runs nothing again but units of work."""
        return self.pool.run(lambda conn: self.execute(conn, sql))

    replay = store

    def stats(self) -> Stats:
        """See Body."""
        return self.pool.stats()

    def close(self) -> None:
        """See Body."""
        self.pool.close()


class SQLAlchemyBody(Blocking):
    """An engine with the plugin."""

    name, driver = "sqlalchemy", "psycopg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        import sqlalchemy

        given = {
            "pool_size": size,
            "max_overflow": 0,
            "pool_timeout": patience,
            "connect_args": secrets_of(settings),
            "unbroken": settings,
        }
        self.engine = sqlalchemy.create_engine(url, plugins=["unbroken"], **given)

    def connection(self) -> Any:
        """See Blocking."""
        return self.engine.connect()

    def transaction(self) -> Any:
        """See Blocking."""
        return self.engine.begin()

    def execute(self, conn: Any, sql: str) -> Any:
        """See Blocking."""
        return conn.exec_driver_sql(sql).scalar()

    def stats(self) -> Stats:
        """See Body."""
        import unbroken.sqlalchemy

        return unbroken.sqlalchemy.stats(self.engine)

    def close(self) -> None:
        """See Body."""
        self.engine.dispose()


class OnLoop(Body):
    """A body for asyncio, on an event loop in a thread of its own."""

    def __init__(
        self, server_url: Callable[[str], str], size: int, patience: float = 20.0, **settings: Any
    ) -> None:
        self.begin_in_child()
        super().__init__(server_url, size, patience, **settings)

    def begin_in_child(self) -> None:
        """See Body."""
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What *work* gives, on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(LIMIT)

    async def later(self, function: Callable[[], Any]) -> Any:
        """Call *function* on the loop."""
        return function()

    @abstractmethod
    def connection(self) -> Any:
        """An async context manager that gives a connection."""

    @abstractmethod
    def execute(self, conn: Any, sql: str) -> Awaitable[Any]:
        """The first value that *sql* gives."""

    @abstractmethod
    def end(self) -> Awaitable[None]:
        """Close the pool."""

    def transaction(self) -> Any:
        """As :meth:`connection`; what is done is committed."""
        return self.connection()

    async def _change(self, *statements: str) -> Any:
        async with self.transaction() as conn:
            return [await self.execute(conn, sql) for sql in statements][-1]

    def change(self, *statements: str) -> Any:
        """See Body. Gives the last value."""
        return self.run(self._change(*statements))

    def store(self, sql: str) -> Any:
        """See Body."""
        return self.change(sql)

    def replay(self, sql: str) -> Any:
        """See Body."""
        return self.run(unbroken.replayable(self._change)(sql))

    async def _ask(self, seconds: float) -> int:
        async with self.connection() as conn:
            if seconds:
                await self.execute(conn, _slept(seconds))
            return int(await self.execute(conn, ASK))

    def ask(self, seconds: float = 0.0) -> int:
        """See Body."""
        return int(self.run(self._ask(seconds)))

    def take(self) -> Callable[[], None]:
        """See Body."""
        over = asyncio.Event()
        taken = threading.Event()

        async def hold() -> None:
            async with self.connection():
                taken.set()
                await over.wait()

        task = asyncio.run_coroutine_threadsafe(hold(), self.loop)
        assert taken.wait(LIMIT)

        def give() -> None:
            self.loop.call_soon_threadsafe(over.set)
            task.result(LIMIT)

        return give

    def close(self) -> None:
        """See Body."""

        async def end() -> None:
            await self.end()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT)
        self.loop.close()


class AsyncPoolBody(OnLoop):
    """``unbroken.AsyncPool``."""

    name, driver = "async pool", "asyncpg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        self.pool = unbroken.AsyncPool(url, max_size=size, acquire_timeout=patience, **settings)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """See OnLoop."""
        async with self.pool.connection() as conn:
            yield conn

    async def execute(self, conn: Any, sql: str) -> Any:
        """See OnLoop."""
        return await conn.fetchval(sql)

    def store(self, sql: str) -> Any:
        """See Body. A bare pool runs nothing again but units of work."""

        async def work() -> Any:
            return await self.pool.run(lambda conn: conn.fetchval(sql))

        return self.run(work())

    replay = store

    async def end(self) -> None:
        """See OnLoop."""
        await self.pool.close()

    def stats(self) -> Stats:
        """See Body."""
        return self.run(self.later(self.pool.stats))  # type: ignore[no-any-return]


class AsyncSQLAlchemyBody(OnLoop):
    """An async engine with the plugin."""

    name, driver = "async sqlalchemy", "asyncpg"

    def open(self, url: str, size: int, patience: float, settings: dict[str, Any]) -> None:
        """See Body."""
        from sqlalchemy.ext.asyncio import create_async_engine

        given = {
            "pool_size": size,
            "max_overflow": 0,
            "pool_timeout": patience,
            "connect_args": secrets_of(settings),
            "unbroken": settings,
        }
        self.engine = create_async_engine(url, plugins=["unbroken"], **given)

    def connection(self) -> Any:
        """See OnLoop."""
        return self.engine.connect()

    def transaction(self) -> Any:
        """See OnLoop."""
        return self.engine.begin()

    async def execute(self, conn: Any, sql: str) -> Any:
        """See OnLoop."""
        return (await conn.exec_driver_sql(sql)).scalar()

    async def end(self) -> None:
        """See OnLoop."""
        await self.engine.dispose()

    def stats(self) -> Stats:
        """See Body."""
        import unbroken.sqlalchemy

        return self.run(self.later(lambda: unbroken.sqlalchemy.stats(self.engine)))  # type: ignore[no-any-return]
