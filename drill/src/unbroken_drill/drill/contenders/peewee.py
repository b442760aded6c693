"""peewee's pooled databases, with models: playhouse's, and unbroken's."""

from __future__ import annotations

from typing import Any

from unbroken_drill.drill.contenders.base import (
    ACQUIRE_TIMEOUT,
    CONNECT_TIMEOUT,
    Settings,
    SmallApp,
)
from unbroken_drill.drill.contenders.unbroken import Ours, keywords
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import ITEM, NOTE, Row, Rows, Unit, perform


class _Shop(SmallApp):
    """The common part: ``Item.get_by_id`` reads, ``Journal.create`` writes in ``atomic``."""

    _db: Any

    def _open(self, kind: Any, where: Where, **keywords: Any) -> None:
        import peewee

        address = {
            "host": where.host,
            "port": where.port,
            "user": where.user,
            "password": where.password,
        }
        db = kind(where.database, **address, **keywords)
        fields = {
            "body": peewee.CharField(),
            "Meta": type("Meta", (), {"table_name": "drill_items"}),
        }
        self._item: Any = type(peewee.Model)("Item", (db.Model,), fields)
        fields = {
            "n": peewee.BigIntegerField(),
            "Meta": type("Meta", (), {"table_name": "drill_journal"}),
        }
        self._journal: Any = type(peewee.Model)("Journal", (db.Model,), fields)
        self._db = db

    def _work(self, unit: Unit) -> Rows:
        if not unit.writes:
            return perform(unit, self._execute)
        with self._db.atomic():
            return perform(unit, self._execute)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        if sql == ITEM:
            return (self._item.get_by_id(values[0]).body,)
        if sql == NOTE:
            self._journal.create(n=values[0])
            return None
        return tuple(self._db.execute_sql(sql, values).fetchone())

    def take(self, unit: Unit) -> Any:
        """Call ``connect()`` without ``close()``; peewee keeps the connection for the thread."""
        self._db.connect()
        perform(unit, self._execute)
        return self._db.connection()

    def close(self) -> None:
        """Close the idle connections."""
        self._db.close_all()


class Peewee(_Shop):
    """``PooledPostgresqlDatabase`` / ``PooledMySQLDatabase``; each request opens and closes.

    In a forked child ``db.dispose()``.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        from playhouse import pool

        kind, extra = _kind(pool, where)
        limits = {"timeout": ACQUIRE_TIMEOUT, "connect_timeout": CONNECT_TIMEOUT}
        self._open(kind, where, max_connections=settings.size, **limits, **extra)

    def work(self, unit: Unit) -> Rows:
        """Open, work, close."""
        with self._db.connection_context():
            return self._work(unit)

    def after_fork(self) -> None:
        """Drop the parent's connections without closing them."""
        self._db.dispose()


class UnbrokenPeewee(_Shop, Ours):
    """The databases of ``unbroken.peewee``; each request is ``@db.unit``. No code for forks."""

    def __init__(self, where: Where, settings: Settings) -> None:
        super().__init__(where, settings)
        from unbroken import peewee

        kind, extra = _kind(peewee, where)
        self._open(kind, where, **keywords(settings), **extra)
        self._perform = self._db.unit(self._work)

    def work(self, unit: Unit) -> Rows:
        """Run one unit of work."""
        rows: Rows = self._perform(unit)
        return rows


class PlainPeewee(_Shop, Ours):
    """The databases of ``unbroken.peewee`` without units. A reading request sends its statements in
    autocommit, a writing one sends each in an ``atomic`` of its own.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        super().__init__(where, settings)
        from unbroken import peewee

        kind, extra = _kind(peewee, where)
        self._open(kind, where, **keywords(settings), **extra)

    def work(self, unit: Unit) -> Rows:
        """Open, work, close."""
        with self._db.connection_context():
            return perform(unit, self._alone if unit.writes else self._execute)

    def _alone(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        with self._db.atomic():
            return self._execute(sql, values)


def _kind(module: Any, where: Where) -> tuple[Any, dict[str, Any]]:
    """Return the class of *module* for this server, and the arguments for psycopg 3."""
    if where.backend == "postgresql":
        return module.PooledPostgresqlDatabase, {"prefer_psycopg3": True}
    return module.PooledMySQLDatabase, {}
