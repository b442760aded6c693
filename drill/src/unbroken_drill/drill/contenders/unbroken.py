"""unbroken itself: Pool, and AsyncPool on an event loop in a thread."""

from __future__ import annotations

from typing import Any

import unbroken as library
from unbroken import errors
from unbroken_drill.drill.contenders.base import (
    ACQUIRE_TIMEOUT,
    DOUBT,
    ERROR,
    TOLD,
    Settings,
    SmallApp,
)
from unbroken_drill.drill.contenders.loop import LoopThread
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Row, Rows, Unit, on_cursor, perform_async

#: With a deadline set, these errors report in time that there will be no answer.
_IN_TIME = (errors.DeadlineExceeded, errors.OutageError, errors.PoolTimeoutError)


def keywords(settings: Settings, where: Where | None = None) -> dict[str, Any]:
    """Return unbroken's keywords for *settings*. The password of *where*, if given, may change."""
    given: dict[str, Any] = {
        "max_size": settings.size,
        "acquire_timeout": ACQUIRE_TIMEOUT,
        "leak_after": settings.leak_after,
        "reclaim": settings.reclaim,
    }
    if settings.deadline is not None:
        given["deadline"] = settings.deadline
    if where is not None and where.secret:
        given["password"] = where.password_now
    return given


class Ours(SmallApp):
    """The base of the apps that must keep the contract."""

    def __init__(self, where: Where, settings: Settings) -> None:
        del where
        self._has_deadline = settings.deadline is not None

    def outcome(self, error: BaseException) -> str:
        """Report an unknown COMMIT and a kept deadline in columns of their own."""
        if isinstance(error, errors.CommitUnknownError):
            return DOUBT
        return TOLD if self._has_deadline and isinstance(error, _IN_TIME) else ERROR


class Unbroken(Ours):
    """``pool.run(unit)`` in each request; no code for forks."""

    def __init__(self, where: Where, settings: Settings) -> None:
        super().__init__(where, settings)
        self._pool: Any = library.Pool(where.url, **keywords(settings, where))

    def work(self, unit: Unit) -> Rows:
        """Run one unit of work, which is replayed if that is provably safe."""
        rows: Rows = self._pool.run(lambda conn: on_cursor(unit, conn))
        return rows

    def take(self, unit: Unit) -> Any:
        """Call ``acquire()`` without ``release()``."""
        conn = self._pool.acquire()
        on_cursor(unit, conn)
        return conn

    def close(self) -> None:
        """Close the pool."""
        self._pool.close()


class UnbrokenAsync(Ours):
    """``await apool.run(unit)``, each request a task on one event loop that runs in a thread."""

    def __init__(self, where: Where, settings: Settings) -> None:
        super().__init__(where, settings)
        self._loop = LoopThread()
        self._pool: Any = self._loop.ask(self._make(where.url, keywords(settings, where)))

    async def _make(self, url: str, settings: dict[str, Any]) -> Any:
        return library.AsyncPool(url, **settings)

    def work(self, unit: Unit) -> Rows:
        """Run one unit of work, in a task."""
        return self._loop.ask(self._work(unit))

    async def _work(self, unit: Unit) -> Rows:
        rows: Rows = await self._pool.run(lambda conn: perform_async(unit, _fetch(conn)))
        return rows

    def take(self, unit: Unit) -> Any:
        """Call ``acquire()`` without ``release()``, in a task."""
        return self._loop.ask(self._take(unit))

    async def _take(self, unit: Unit) -> Any:
        conn = await self._pool.acquire()
        await perform_async(unit, _fetch(conn))
        return conn

    def after_fork(self) -> None:
        """Start a loop: the inherited one's thread stayed in the parent.

        The pool is the same one.
        """
        self._loop = LoopThread()

    def close(self) -> None:
        """Close the pool, then the loop."""
        self._loop.ask(self._close())
        self._loop.stop()

    async def _close(self) -> None:
        await self._pool.close()


def _fetch(conn: Any) -> Any:
    async def execute(sql: str, values: tuple[Any, ...]) -> Row | None:
        row = await conn.fetchrow(sql, *values)
        return tuple(row) if row is not None else None

    return execute
