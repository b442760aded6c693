"""DBUtils' PooledDB."""

from __future__ import annotations

import importlib
from typing import Any

from unbroken_drill.drill.contenders.base import (
    CONNECT_TIMEOUT,
    Settings,
    SmallApp,
    driver_arguments,
)
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Rows, Unit, on_cursor


def _creator(driver: Any, where: Where) -> Any:
    """Return the driver, or a function that connects by it with the current password."""
    if not where.secret:
        return driver

    def connect(**arguments: Any) -> Any:
        return driver.connect(**{**arguments, "password": where.password_now()})

    connect.dbapi = driver  # type: ignore[attr-defined] # as DBUtils' manual requires
    return connect


class DBUtils(SmallApp):
    """``blocking=True``, pinged at each checkout (its default; psycopg has no ``ping``, so ``SELECT
    1``).

    Writes call ``begin()``, as the manual requires for transactions. Reads do not, so that lost
    connections are reopened automatically. The manual does not mention forks, so nothing is done
    after one. A waiting request has no limit: ``blocking`` supports none.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        from dbutils.pooled_db import PooledDB

        name = "psycopg" if where.backend == "postgresql" else "pymysql"
        self._pool: Any = PooledDB(
            _creator(importlib.import_module(name), where),
            maxconnections=settings.size,
            blocking=True,
            ping="SELECT 1" if name == "psycopg" else 1,
            connect_timeout=CONNECT_TIMEOUT,
            **driver_arguments(where, name),
        )

    def work(self, unit: Unit) -> Rows:
        """Take a connection, work, commit, return it."""
        with self._pool.connection() as conn:
            if unit.writes:
                conn.begin()
            try:
                rows = on_cursor(unit, conn)
                conn.commit()
            except Exception:
                conn.rollback()
                raise
            return rows

    def take(self, unit: Unit) -> Any:
        """Call ``connection()`` without ``close()``."""
        conn = self._pool.connection()
        on_cursor(unit, conn)
        return conn

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()
