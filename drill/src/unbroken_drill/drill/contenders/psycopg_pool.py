"""psycopg's own pool."""

from __future__ import annotations

from typing import Any

from unbroken_drill.drill.contenders.base import (
    ACQUIRE_TIMEOUT,
    CONNECT_TIMEOUT,
    Settings,
    SmallApp,
    driver_arguments,
)
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Rows, Unit, on_cursor


class PsycopgPool(SmallApp):
    """``check=ConnectionPool.check_connection``; ``min_size`` at its default.

    psycopg documents that a connection must not cross a fork, so a child makes a pool of its own.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        self._where, self._settings = where, settings
        self._old: list[Any] = []
        self._pool = self._make()

    def _make(self) -> Any:
        from psycopg_pool import ConnectionPool

        return ConnectionPool(
            kwargs=self._arguments if self._where.secret else self._arguments(),
            min_size=min(4, self._settings.size),
            max_size=self._settings.size,
            timeout=ACQUIRE_TIMEOUT,
            check=ConnectionPool.check_connection,
            open=True,
        )

    def _arguments(self) -> dict[str, Any]:
        found = driver_arguments(self._where, "psycopg")
        return {**found, "connect_timeout": CONNECT_TIMEOUT}

    def work(self, unit: Unit) -> Rows:
        """Use ``with pool.connection()``, which commits or rolls back."""
        with self._pool.connection() as conn:
            return on_cursor(unit, conn)

    def take(self, unit: Unit) -> Any:
        """Call ``getconn()`` without ``putconn()``."""
        conn = self._pool.getconn()
        on_cursor(unit, conn)
        return conn

    def after_fork(self) -> None:
        """Make a new pool; the inherited one is kept, untouched."""
        self._old.append(self._pool)
        self._pool = self._make()

    def close(self) -> None:
        """Close the pool."""
        self._pool.close(timeout=2.0)
