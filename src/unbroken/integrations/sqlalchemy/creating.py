"""How an engine's pool opens and closes connections: SQLAlchemy's own way."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import pool as sqla_pool

from unbroken.abc import Login
from unbroken.integrations.sqlalchemy.plan import Plan
from unbroken.integrations.sqlalchemy.record import (
    NO_BODY,
    Record,
    Shelf,
)

#: the folder of SQLAlchemy's own frames
_SQLALCHEMY = os.path.dirname(sqlalchemy.__file__) + os.sep


class Creating(sqla_pool.QueuePool):
    """How a pool of SQLAlchemy's manages connections that are not in use."""

    #: records without a connection: SQLAlchemy uses a record again and again
    _vacant: deque[Record]

    _queue_class: Any = Shelf  # the attributes of a queue that are read, not a queue
    _plan: Plan
    _body: Any
    _pool: Any
    _dialect: Any

    def stash(self, record: Record) -> None:
        """Keep *record*, which has no connection, for the next one."""
        if (
            record.dbapi_connection is None
            and record.entry is None
            and record.fairy_ref is None
            and len(self._vacant) < 100
        ):
            record.used = -1
            self._vacant.append(record)

    def blank(self) -> Record:
        """Return a record without a connection."""
        try:
            return self._vacant.popleft()
        except IndexError:
            return Record(self, connect=False)

    def _create_connection(self) -> Any:
        return Record(self)

    def _should_wrap_creator(self, creator: Any) -> Callable[[Any], Any]:
        this = weakref.ref(self)
        inner: Callable[[Any], Any] = super()._should_wrap_creator(creator)

        def create(record: Any) -> Any:
            """Connect *record* for SQLAlchemy. Usually the pool has done so already."""
            pool = this()
            entry = getattr(record, "entry", None)
            if pool is None or entry is None:
                return inner(record)
            if entry.dbapi is not None:
                return entry.dbapi
            connection = pool.raw_creator(record)
            pool._body.fill(record, connection)
            return connection

        return create

    def raw_creator(self, record: Record, login: Login | None = None) -> Any:
        """Open a connection as *login*, by the application or SQLAlchemy's dialect."""
        creates: Callable[[Any], Any] = super()._should_wrap_creator(self._creator)
        record.login = login
        try:
            return creates(record)
        finally:
            record.login = None

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        body = self._body
        if body is not NO_BODY and body.here[0]:
            body.say_goodbye(connection)
            # SQLAlchemy logs a goodbye that fails, as it does if the socket is shut
            abrupt = body.abrupt and not self._dialect.is_async
            raw = self._plan.genuine(connection) if abrupt else None
            if raw is not None:
                with contextlib.suppress(Exception):
                    self._plan.driver.close(raw)
                return
        super()._close_connection(connection, terminate=terminate)

    def close_raw(self, connection: Any) -> None:
        """Close a connection that SQLAlchemy has not seen."""
        super()._close_connection(connection, terminate=True)

    def _close_foreign(self, record: Record) -> None:
        """Handle a connection of the parent process, or of an event loop that has ended. It no
        longer belongs to our pool.
        """
        owner = record.owner
        if owner is not None and not owner.here[0]:
            owner.sever()
        record.close()
