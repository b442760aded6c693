"""Django on unbroken's pool, without middleware and without units of work."""

from __future__ import annotations

from typing import Any

from unbroken_drill.drill.contenders.base import Settings
from unbroken_drill.drill.contenders.unbroken import Ours, keywords
from unbroken_drill.drill.where import Where
from unbroken_drill.drill.worker.workload import Row, Rows, Unit, perform


class PlainDjango(Ours):
    """A reading request sends its statements in autocommit. A writing one sends each in an
    ``atomic`` of its own. Then the connection is closed, as Django does at a request's end.
    """

    def __init__(self, where: Where, settings: Settings) -> None:
        super().__init__(where, settings)
        import django
        from django.conf import settings as site

        if where.backend != "postgresql":
            import pymysql

            pymysql.install_as_MySQLdb()
        engine = "postgresql" if where.backend == "postgresql" else "mysql"
        default = {
            "ENGINE": f"unbroken.django.{engine}", "NAME": where.database, "HOST": where.host,
            "PORT": where.port, "USER": where.user, "PASSWORD": where.password,
            "OPTIONS": {"unbroken": keywords(settings)},
        }  # fmt: skip
        site.configure(DATABASES={"default": default}, SECRET_KEY="of the drill")  # noqa: S106
        django.setup()
        from django.db import connection, transaction

        self._connection: Any = connection
        self._atomic: Any = transaction.atomic

    def work(self, unit: Unit) -> Rows:
        """Work, then close."""
        try:
            return perform(unit, self._alone if unit.writes else self._execute)
        finally:
            self._connection.close()

    def _alone(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        with self._atomic():
            return self._execute(sql, values)

    def _execute(self, sql: str, values: tuple[Any, ...]) -> Row | None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            return tuple(cursor.fetchone() or ()) if cursor.description else None

    def take(self, unit: Unit) -> Any:
        """Work without ``close()``; Django keeps the connection for the thread."""
        perform(unit, self._execute)
        return self._connection.connection

    def close(self) -> None:
        """Close this thread's connection, then the pool."""
        self._connection.close()
        self._connection.close_pool()
