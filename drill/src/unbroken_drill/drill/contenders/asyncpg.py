"""asyncpg's own pool, on an event loop in a thread."""

from __future__ import annotations

from typing import Any

from unbroken_drill.drill.contenders.base import (
    ACQUIRE_TIMEOUT,
    CONNECT_TIMEOUT,
    Settings,
    SmallApp,
    driver_arguments,
)
from unbroken_drill.drill.contenders.loop import LoopThread
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Row, Rows, Unit, perform_async


class AsyncpgPool(SmallApp):
    """``async with pool.acquire() as conn, conn.transaction()`` in each request.

    A forked child makes a loop and a pool of its own, because a loop does not survive a fork.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        self._where, self._settings = where, settings
        self._old: list[Any] = []
        self._make()

    def _make(self) -> None:
        self._loop = LoopThread()
        self._pool: Any = self._loop.ask(self._open())

    async def _open(self) -> Any:
        import asyncpg

        return await asyncpg.create_pool(
            **driver_arguments(self._where, "asyncpg") | {"password": self._where.password_now},
            min_size=min(4, self._settings.size),
            max_size=self._settings.size,
            timeout=CONNECT_TIMEOUT,
        )

    def work(self, unit: Unit) -> Rows:
        """Run one transaction, in a task."""
        return self._loop.ask(self._work(unit))

    async def _work(self, unit: Unit) -> Rows:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT) as conn, conn.transaction():
            return await perform_async(unit, _fetch(conn))

    def take(self, unit: Unit) -> Any:
        """Call ``acquire()`` without ``release()``, in a task."""
        return self._loop.ask(self._take(unit))

    async def _take(self, unit: Unit) -> Any:
        conn = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT)
        await perform_async(unit, _fetch(conn))
        return conn

    def after_fork(self) -> None:
        """Make a new pool on a new loop. The inherited ones are kept, untouched."""
        self._old.append((self._pool, self._loop))
        self._make()

    def close(self) -> None:
        """End the pool immediately, then the loop."""
        self._loop.ask(self._terminate())
        self._loop.stop()

    async def _terminate(self) -> None:
        self._pool.terminate()


def _fetch(conn: Any) -> Any:
    async def execute(sql: str, values: tuple[Any, ...]) -> Row | None:
        row = await conn.fetchrow(sql, *values)
        return tuple(row) if row is not None else None

    return execute
