"""A SELECT of peewee's own, in autocommit, whose connection was lost is asked again: it changed nothing."""

from __future__ import annotations

from typing import Any

import peewee

from unbroken.core.statements import Kind, kind
from unbroken.integrations.peewee.errors import origin


def mark(exc: BaseException, sql: Any) -> None:
    """*exc* says that the connection was lost when *sql* was sent: to be asked by :func:`lost_by`."""
    origin(exc)._unbroken_lost = sql  # type: ignore[attr-defined]


def lost_by(exc: BaseException) -> Any:
    """The statement that met a lost connection, when *exc* (or the driver's error behind it) is about one; else None."""
    return getattr(origin(exc), "_unbroken_lost", None)


class AskedAgain:
    """Mixed in before a database that marks losses."""

    pool: Any

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        """As peewee's. A SELECT in autocommit whose connection is lost is asked again, for it changed nothing."""
        tries = 0
        while True:
            try:
                return super().execute(query, *args, **options)  # type: ignore[misc] # the database's
            except Exception as exc:
                sql = lost_by(exc)
                if sql is None or not isinstance(query, peewee.SelectBase) or kind(sql) is not Kind.READ:
                    raise
                if self._is_bound_to_session() or tries >= self.pool.settings.max_replays:
                    raise
            tries += 1
            self._count_replay("a lost SELECT")

    def _is_bound_to_session(self) -> bool:
        """Whether what runs now belongs to a transaction, or the caller has the connection itself."""
        raise NotImplementedError

    def _count_replay(self, _why: str) -> None:
        state = self.pool._current()
        with state.lock:
            state.counters.replays += 1
