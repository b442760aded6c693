"""peewee's pooled databases: playhouse's, and unbroken's."""

from __future__ import annotations

from typing import Any

from unbroken.drill.contenders.base import ACQUIRE_TIMEOUT, CONNECT_TIMEOUT, Contender, Plan, Where
from unbroken.drill.contenders.unbroken import Ours, settings_of
from unbroken.drill.workload import Row, Rows, Unit, perform


class Peewee(Contender):
    """``PooledPostgresqlDatabase`` / ``PooledMySQLDatabase``; each request opens and closes, writes are ``atomic``.

    In a forked child ``db.dispose()``.
    """

    def __init__(self, where: Where, plan: Plan) -> None:
        from playhouse import pool

        postgres = where.backend == "postgresql"
        kind = pool.PooledPostgresqlDatabase if postgres else pool.PooledMySQLDatabase
        extra = {"prefer_psycopg3": True} if postgres else {}
        self._db: Any = kind(
            where.database,
            max_connections=plan.size,
            timeout=ACQUIRE_TIMEOUT,
            host=where.host,
            port=where.port,
            user=where.user,
            password=where.password,
            connect_timeout=CONNECT_TIMEOUT,
            **extra,
        )

    def work(self, unit: Unit) -> Rows:
        """Open, work (a write in a transaction), close."""
        with self._db.connection_context():
            if not unit.writes:
                return perform(unit, self._execute)
            with self._db.atomic():
                return perform(unit, self._execute)

    def take(self, unit: Unit) -> Any:
        """``connect()`` without ``close()``; peewee keeps it for the thread."""
        self._db.connect()
        perform(unit, self._execute)
        return self._db.connection()

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        cursor = self._db.execute_sql(sql, values)
        return tuple(cursor.fetchone() or ()) if cursor.description else None

    def after_fork(self) -> None:
        """Forget the parent's connections without closing them."""
        self._db.dispose()

    def close(self) -> None:
        """Close the idle connections."""
        self._db.close_all()


class UnbrokenPeewee(Ours):
    """``unbroken.peewee``'s; each request is ``@db.unit``, writes are ``atomic``. Nothing at all for forks."""

    def __init__(self, where: Where, plan: Plan) -> None:
        super().__init__(where, plan)
        from unbroken import peewee

        postgres = where.backend == "postgresql"
        kind = peewee.PooledPostgresqlDatabase if postgres else peewee.PooledMySQLDatabase
        extra = {"prefer_psycopg3": True} if postgres else {}
        self._db: Any = kind(
            where.database, host=where.host, port=where.port, user=where.user, password=where.password, **settings_of(plan), **extra
        )
        self._perform = self._db.unit(self._work)

    def work(self, unit: Unit) -> Rows:
        """One unit of work, its writes in a transaction."""
        rows: Rows = self._perform(unit)
        return rows

    def _work(self, unit: Unit) -> Rows:
        if not unit.writes:
            return perform(unit, self._execute)
        with self._db.atomic():
            return perform(unit, self._execute)

    def take(self, unit: Unit) -> Any:
        """``connect()`` without ``close()``; peewee keeps it for the thread."""
        self._db.connect()
        perform(unit, self._execute)
        return self._db.connection()

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        cursor = self._db.execute_sql(sql, values)
        return tuple(cursor.fetchone() or ()) if cursor.description else None

    def close(self) -> None:
        """Close the idle connections."""
        self._db.close_all()
