"""SQLAlchemy's QueuePool, as ``create_engine`` makes it and with ``pool_pre_ping``; and unbroken's
plugin.
"""

from __future__ import annotations

from typing import Any

from unbroken_drill.drill.contenders.base import (
    ACQUIRE_TIMEOUT,
    CONNECT_TIMEOUT,
    Settings,
    SmallApp,
)
from unbroken_drill.drill.contenders.unbroken import Ours
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Row, Rows, Unit, perform


class SQLAlchemy(SmallApp):
    """``with engine.begin() as conn`` in each request; in a forked child
    ``engine.dispose(close=False)``, as the FAQ recommends.
    """

    pre_ping = False

    def __init__(self, where: Where, settings: Settings) -> None:
        import sqlalchemy

        self._engine = sqlalchemy.create_engine(
            where.url,
            pool_size=settings.size,
            max_overflow=0,
            pool_timeout=ACQUIRE_TIMEOUT,
            pool_pre_ping=self.pre_ping,
            connect_args={"connect_timeout": CONNECT_TIMEOUT},
        )
        _ask_for_password(self._engine, where)

    def work(self, unit: Unit) -> Rows:
        """Run one transaction, committed at the end of the block."""
        with self._engine.begin() as conn:
            return perform(unit, lambda sql, values: _first(conn, sql, values))

    def take(self, unit: Unit) -> Any:
        """Call ``engine.connect()`` without ``close()``."""
        conn = self._engine.connect()
        perform(unit, lambda sql, values: _first(conn, sql, values))
        return conn

    def after_fork(self) -> None:
        """Drop the parent's connections without closing them."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()


class PrePing(SQLAlchemy):
    """The same with ``pool_pre_ping=True``."""

    pre_ping = True


class Plugin(SQLAlchemy, Ours):
    """unbroken's plugin and no unit of work; each statement in an ``engine.begin()`` of its own."""

    def __init__(self, where: Where, settings: Settings) -> None:
        import sqlalchemy

        Ours.__init__(self, where, settings)
        self._engine = sqlalchemy.create_engine(
            where.url,
            plugins=["unbroken"],
            pool_size=settings.size,
            max_overflow=0,
            pool_timeout=ACQUIRE_TIMEOUT,
            unbroken={
                "leak_after": settings.leak_after,
                "reclaim": settings.reclaim,
                "deadline": settings.deadline,
            },
        )
        _ask_for_password(self._engine, where)

    def work(self, unit: Unit) -> Rows:
        """Run a transaction for each statement."""
        return perform(unit, self._alone)

    def _alone(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        with self._engine.begin() as conn:
            return _first(conn, sql, values)

    def after_fork(self) -> None:
        """Do nothing."""


def _ask_for_password(engine: Any, where: Where) -> None:
    """Read the password at each connect, as in SQLAlchemy's manual ("Generating dynamic
    authentication tokens").
    """
    import sqlalchemy

    if where.secret:

        @sqlalchemy.event.listens_for(engine, "do_connect")
        def _(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            parameters["password"] = where.password_now()


def _first(conn: Any, sql: str, values: tuple[Any, ...]) -> Row | None:
    result = conn.exec_driver_sql(sql, values)
    return tuple(result.fetchone() or ()) if result.returns_rows else None
