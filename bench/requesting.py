"""One request, as an application of each kind writes it: take a connection, do one statement, end
the transaction, give the connection back. Each contender has a process of its own.

The proxy's loop, another contender's threads and this one's would else wait for one interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any

READ = "SELECT n FROM stock"
WRITE = "UPDATE stock SET n = 1"

#: Does one request with this statement; several threads may call it at once, or tasks await it.
Request = Callable[[str], Any]
#: Makes such a function for a URL and a size of the pool, until the block ends.
Opener = Callable[[str, int], AbstractContextManager[Request]]

_spawning = multiprocessing.get_context("spawn")


# -- a process of its own --------------------------------------------------------------------------


class Apart:
    """A contender in a process of its own, in a ``with`` block."""

    def __init__(self, opener: Opener, is_async: bool) -> None:
        self._there, there = _spawning.Pipe()
        self._process = _spawning.Process(
            target=_serve, args=(opener, is_async, there), daemon=True
        )
        self._process.start()
        there.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._there.send(None)
        self._process.join(10)
        self._process.kill()

    def open(self, url: str, size: int) -> None:
        """Begin anew, with connections through *url*. What comes with the first requests is
        over afterwards.
        """
        self._ask("open", url, size)

    def close(self) -> None:
        """Close these connections."""
        self._ask("close")

    def times(self, workers: int, seconds: float) -> list[float]:
        """How long each request took that so many *workers* made, one after the other each."""
        found: list[float] = self._ask("times", workers, seconds)
        return found

    def do(self, count: int, sql: str) -> None:
        """That many requests, one after the other."""
        self._ask("do", count, sql)

    def _ask(self, *words: Any) -> Any:
        self._there.send(words)
        answer, failed = self._there.recv()
        if failed:
            raise RuntimeError(failed)
        return answer


def _serve(opener: Opener, is_async: bool, told: Any) -> None:
    logging.disable(logging.WARNING)
    with contextlib.ExitStack() as stack, asyncio.Runner() as runner:
        player = (_Tasks if is_async else _Threads)(opener, runner)
        stack.callback(player.close)
        while words := told.recv():
            try:
                told.send((getattr(player, words[0])(*words[1:]), ""))
            except BaseException as exc:
                told.send((None, repr(exc)))


class _Threads:
    """Blocking requests, on threads."""

    def __init__(self, opener: Opener, _runner: asyncio.Runner) -> None:
        self.opener, self.stack = opener, contextlib.ExitStack()
        self.request: Any = None

    def open(self, url: str, size: int) -> None:
        self.request = self.stack.enter_context(self.opener(url, size))
        self.do(20, READ)  # connects, asks for limits, prepares
        self.times(size, 0.05)

    def close(self) -> None:
        self.stack.close()

    def do(self, count: int, sql: str) -> None:
        for _ in range(count):
            self.request(sql)

    def times(self, workers: int, seconds: float) -> list[float]:
        found: list[float] = []
        errors: list[BaseException] = []
        until = perf_counter() + seconds

        def work() -> None:
            try:
                while (began := perf_counter()) < until:
                    self.request(READ)
                    found.append(perf_counter() - began)
            except BaseException as exc:
                errors.append(exc)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found


class _Tasks:
    """Requests of asyncio, as tasks."""

    def __init__(self, opener: Opener, runner: asyncio.Runner) -> None:
        self.opener, self.runner = opener, runner
        self.inside: Any = None
        self.request: Any = None

    def open(self, url: str, size: int) -> None:
        self.inside = self.opener(url, size)
        self.request = self.runner.run(self.inside.__aenter__())
        self.do(20, READ)
        self.times(size, 0.05)

    def close(self) -> None:
        if self.inside is not None:
            inside, self.inside = self.inside, None
            self.runner.run(inside.__aexit__(None, None, None))

    def do(self, count: int, sql: str) -> None:
        async def work() -> None:
            for _ in range(count):
                await self.request(sql)

        self.runner.run(work())

    def times(self, workers: int, seconds: float) -> list[float]:
        found: list[float] = []

        async def work(until: float) -> None:
            while (began := perf_counter()) < until:
                await self.request(READ)
                found.append(perf_counter() - began)

        async def together() -> None:
            until = perf_counter() + seconds
            await asyncio.gather(*(work(until) for _ in range(workers)))

        self.runner.run(together())
        return found


# -- unbroken's pools ------------------------------------------------------------------------------


def _with(url: str, driver: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}+{driver}://{rest}"


class Pool:
    """``unbroken.Pool``."""

    def __init__(self, driver: str) -> None:
        self.driver = driver

    @contextlib.contextmanager
    def __call__(self, url: str, size: int) -> Iterator[Request]:
        import unbroken

        with unbroken.Pool(_with(url, self.driver), max_size=size) as pool:

            def request(sql: str) -> None:
                with pool.connection() as conn, contextlib.closing(conn.cursor()) as cursor:
                    cursor.execute(sql)
                    if sql == READ:
                        cursor.fetchall()

            yield request


class AsyncPool:
    """``unbroken.AsyncPool``."""

    def __init__(self, driver: str) -> None:
        self.driver = driver

    @contextlib.asynccontextmanager
    async def __call__(self, url: str, size: int) -> Any:
        import unbroken

        async with unbroken.AsyncPool(_with(url, self.driver), max_size=size) as pool:

            async def request(sql: str) -> None:
                async with pool.connection() as conn:
                    if self.driver == "asyncpg":
                        await conn.fetch(sql)
                        return
                    async with conn.cursor() as cursor:
                        await cursor.execute(sql)
                        if sql == READ:
                            await cursor.fetchall()

            yield request


# -- SQLAlchemy ------------------------------------------------------------------------------------


class Engine:
    """A SQLAlchemy engine."""

    def __init__(self, driver: str, **options: Any) -> None:
        self.driver, self.options = driver, options

    @contextlib.contextmanager
    def __call__(self, url: str, size: int) -> Iterator[Request]:
        import sqlalchemy as sa

        engine = sa.create_engine(
            _with(url, self.driver), pool_size=size, max_overflow=0, **self.options
        )

        def request(sql: str) -> None:
            with engine.connect() if sql == READ else engine.begin() as conn:
                result = conn.execute(sa.text(sql))
                if sql == READ:
                    result.fetchall()

        try:
            yield request
        finally:
            engine.dispose()


class AsyncEngine:
    """A SQLAlchemy engine for asyncio."""

    def __init__(self, driver: str, **options: Any) -> None:
        self.driver, self.options = driver, options

    @contextlib.asynccontextmanager
    async def __call__(self, url: str, size: int) -> Any:
        import sqlalchemy as sa
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(
            _with(url, self.driver), pool_size=size, max_overflow=0, **self.options
        )

        async def request(sql: str) -> None:
            async with engine.connect() if sql == READ else engine.begin() as conn:
                result = await conn.execute(sa.text(sql))
                if sql == READ:
                    result.fetchall()

        try:
            yield request
        finally:
            await engine.dispose()


# -- others' pools ---------------------------------------------------------------------------------


@contextlib.contextmanager
def psycopg_pool(url: str, size: int, *, checks: bool = True) -> Iterator[Request]:
    """psycopg's own pool: with its check of each connection, or as it comes."""
    from psycopg_pool import ConnectionPool

    check = ConnectionPool.check_connection if checks else None
    with ConnectionPool(url, min_size=size, max_size=size, open=True, check=check) as pool:
        pool.wait()

        def request(sql: str) -> None:
            with pool.connection() as conn:
                cursor = conn.execute(sql)
                if sql == READ:
                    cursor.fetchall()

        yield request


@contextlib.asynccontextmanager
async def asyncpg_pool(url: str, size: int) -> Any:
    """asyncpg's own pool, with its reset."""
    import asyncpg

    async with asyncpg.create_pool(url, min_size=size, max_size=size) as pool:

        async def request(sql: str) -> None:
            async with pool.acquire() as conn, conn.transaction():
                await conn.fetch(sql)

        yield request


# -- frameworks ------------------------------------------------------------------------------------


class Django:
    """Django's connection of a thread, between the signals of a request: one query in autocommit,
    and an UPDATE in ``atomic``; with *atomic*, a query in ``atomic`` too.
    """

    def __init__(self, *, is_ours: bool, atomic: bool = False, checks: bool = True) -> None:
        self.is_ours, self.atomic, self.checks = is_ours, atomic, checks

    @contextlib.contextmanager
    def __call__(self, url: str, size: int) -> Iterator[Request]:
        import django
        from django.conf import settings

        if not settings.configured:
            settings.configure(DATABASES={"default": self._database(url, size)}, USE_TZ=True)
            django.setup()
        from django.core import signals
        from django.db import connection, connections, transaction

        kept = self._database(url, size)
        connections.close_all()
        connections.databases["default"].update({k: v for k, v in kept.items() if k != "OPTIONS"})
        connections.databases["default"]["OPTIONS"] = kept["OPTIONS"]
        with contextlib.suppress(AttributeError):
            del connections["default"]

        def request(sql: str) -> None:
            signals.request_started.send(sender=None)
            try:
                is_atomic = self.atomic or sql != READ
                block = transaction.atomic() if is_atomic else contextlib.nullcontext()
                with block, connection.cursor() as cursor:
                    cursor.execute(sql)
                    if sql == READ:
                        cursor.fetchall()
            finally:
                signals.request_finished.send(sender=None)

        try:
            yield request
        finally:
            connections.close_all()

    def _database(self, url: str, size: int) -> dict[str, Any]:
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(url)
        kind = "postgresql" if parts.scheme.startswith("postgres") else "mysql"
        given: dict[str, Any] = {
            "ENGINE": f"{'unbroken.django' if self.is_ours else 'django.db.backends'}.{kind}",
            "NAME": parts.path.lstrip("/"), "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""), "HOST": parts.hostname, "PORT": parts.port,
            "OPTIONS": {},
        }  # fmt: skip
        if self.is_ours:
            given["OPTIONS"]["unbroken"] = {"max_size": size}
        else:
            given |= {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": self.checks}
        return given


class Peewee:
    """A pooled database of peewee's, in the block that a request is: a query in autocommit, an
    UPDATE in ``atomic``; with *atomic*, a query in ``atomic`` too.
    """

    def __init__(self, module: str, *, atomic: bool = False, **options: Any) -> None:
        self.module, self.atomic, self.options = module, atomic, options

    @contextlib.contextmanager
    def __call__(self, url: str, size: int) -> Iterator[Request]:
        from importlib import import_module
        from urllib.parse import unquote, urlsplit

        parts = urlsplit(url)
        is_postgres = parts.scheme.startswith("postgres")
        kind = "PooledPostgresqlDatabase" if is_postgres else "PooledMySQLDatabase"
        db = getattr(import_module(self.module), kind)(
            parts.path.lstrip("/"), user=unquote(parts.username or ""),
            password=unquote(parts.password or ""), host=parts.hostname, port=parts.port,
            max_connections=size, timeout=30, **self.options,
        )  # fmt: skip

        def request(sql: str) -> None:
            is_atomic = self.atomic or sql != READ
            with db.connection_context(), db.atomic() if is_atomic else contextlib.nullcontext():
                cursor = db.execute_sql(sql)
                if sql == READ:
                    cursor.fetchall()

        try:
            yield request
        finally:
            db.close_all()
