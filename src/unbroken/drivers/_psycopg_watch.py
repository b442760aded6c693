"""psycopg connections that tell the ledger of everything they send.

A psycopg connection sends in three ways:

- A cursor sends its statement after ``_start_query``, which calls the connection's own
  ``_start_query`` first.
- The connection sends BEGIN, COMMIT, savepoints and a server cursor's FETCH by ``_exec_command``.
- The application may take ``pgconn`` and call libpq.

The first two are reported with their text. Anything that appears in none of the known places is
reported as doubt.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from functools import cache
from typing import Any

from unbroken.drivers import _postgresql
from unbroken.drivers._psycopg_look import look
from unbroken.drivers._psycopg_trips import is_due
from unbroken.drivers._shared import class_of, mark_call, marked
from unbroken.ledger import scope, unit

_IDLE = 0  # PQtransactionStatus
_OK = 0  # PQstatus


def real_pgconn(conn: Any) -> Any:
    """Return libpq's connection below *conn*, watched or not."""
    return conn.__dict__["pgconn"]


def watched(base: Any) -> Any:
    """Return a subclass of *base* that reports. *base* is ``psycopg.Connection``,
    ``AsyncConnection`` or a subclass.

    ``unwatched`` is *base*.
    """
    return base if hasattr(base, "unwatched") else _watched(base)


@cache
def _watched(base: Any) -> Any:
    import psycopg

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        @property
        def pgconn(self) -> Any:
            pgconn = look(self) if "_unbroken_texts" in self.__dict__ else self.__dict__["pgconn"]
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith(("psycopg", "unbroken.")) or scope.current(id(self)) is None:
                return pgconn
            return _SeenPGconn(pgconn, id(self))

        @pgconn.setter
        def pgconn(self, value: Any) -> None:
            self.__dict__["pgconn"] = value

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            cursor = super().cursor(*args, **kwargs)
            cursor.__class__ = _watched_cursor(class_of(cursor))
            return cursor

        def pipeline(self) -> Any:
            ledger = scope.current(id(self))
            if ledger is not None:
                ledger.doubt(
                    "in psycopg's pipeline mode, answers come later than statements",
                    conn_id=id(self),
                )
            return super().pipeline()

        def _start_query(self) -> Generator[Any, Any, None]:
            ledger = scope.current(id(self))
            if (
                ledger is not None
                and not marked(self.__dict__, "_unbroken_told")
                and _can_send(self)
            ):
                # a cursor that was made before the watch began
                ledger.statement(None, _commits_itself(self), conn_id=id(self))
            yield from super()._start_query()

        def _exec_command(
            self, command: Any, *args: Any, **kwargs: Any
        ) -> Generator[Any, Any, Any]:
            ledger = scope.current(id(self))
            if ledger is None or not _can_send(self):
                return (yield from super()._exec_command(command, *args, **kwargs))
            sql = _text(command, self)
            ends = _tell_command(ledger, id(self), sql, _commits_itself(self))
            try:
                result = yield from super()._exec_command(command, *args, **kwargs)
            except psycopg.Error as error:
                _postgresql.refused(ledger, id(self), ends, error.sqlstate, str(error))
                raise
            if result is not None:  # None: queued in a pipeline
                _postgresql.answered(ledger, id(self), ends, result.command_status)
            return result

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _tell_command(
    ledger: unit.Unit, conn_id: int, sql: bytes | None, autocommit: bool | None
) -> bool | None:
    if sql is None:
        ledger.statement(None, autocommit, conn_id=conn_id)
        return None
    # psycopg's own housekeeping, which changes no data
    if sql.startswith((b"DEALLOCATE", b"CLOSE")):
        return None
    return _postgresql.about_to_send(ledger, conn_id, sql, autocommit)


@cache
def _watched_cursor(base: Any) -> Any:
    if hasattr(base, "unwatched"):
        return base
    import psycopg

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __slots__ = ()
        __module__ = base.__module__
        unwatched = base

        def _start_query(self, query: Any = None) -> Generator[Any, Any, None]:
            conn, ledger = self._conn, scope.current(id(self._conn))
            if ledger is None or not hasattr(type(conn), "unwatched") or not _can_send(conn):
                yield from super()._start_query(query)
                return
            autocommit = _commits_itself(conn)
            mark = mark_call(conn.__dict__, "_unbroken_told")
            yield from super()._start_query(query)  # sends BEGIN if one is needed
            del mark
            sql = _text(query, conn)
            if sql is None:
                ledger.statement(None, autocommit, conn_id=id(conn))
            else:
                conn.__dict__["_unbroken_ends"] = _postgresql.about_to_send(
                    ledger, id(conn), sql, autocommit
                )

        def _execute_gen(self, *args: Any, **kwargs: Any) -> Generator[Any, Any, None]:
            conn = self._conn
            conn.__dict__.pop("_unbroken_ends", None)
            try:
                yield from super()._execute_gen(*args, **kwargs)
            except psycopg.Error as error:
                ledger = scope.current(id(conn))
                if ledger is not None and "_unbroken_ends" in conn.__dict__:  # it was sent
                    _postgresql.refused(
                        ledger,
                        id(conn),
                        conn.__dict__.pop("_unbroken_ends"),
                        error.sqlstate,
                        str(error),
                    )
                raise
            ledger = scope.current(id(conn))
            if (
                ledger is not None
                and "_unbroken_ends" in conn.__dict__
                and self.pgresult is not None
                and not conn._pipeline
            ):
                _postgresql.answered(
                    ledger,
                    id(conn),
                    conn.__dict__.pop("_unbroken_ends"),
                    self.pgresult.command_status,
                )

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _can_send(conn: Any) -> bool:
    """Return whether libpq would send at all. A statement on a connection that it knows to be
    closed reaches no server.
    """
    return bool(real_pgconn(conn).status == _OK)


def _commits_itself(conn: Any) -> bool | None:
    """Return whether a statement of a cursor is committed by itself: autocommit is on and nothing
    is open.
    """
    pgconn = real_pgconn(conn)
    if conn.__dict__.get("_unbroken_wants") is not None:
        return False
    if is_due(conn):  # nothing will be open
        return bool(conn._autocommit)
    if pgconn.pipeline_status:
        return None if conn._autocommit else False
    return bool(conn._autocommit) and pgconn.transaction_status == _IDLE


def _text(query: Any, conn: Any) -> bytes | None:
    """Return the text of a query of any kind that psycopg accepts; None if it cannot be
    determined.
    """
    if isinstance(query, str):
        return query.encode("utf-8", "replace")
    if isinstance(query, bytes):
        return query
    try:
        text: bytes = query.as_bytes(conn)
        return text
    except Exception:  # a template string, or an object of the application's
        return None


class _SeenPGconn:
    """libpq's connection as the application gets it. Calls that could send a statement are noticed;
    other calls pass.
    """

    __slots__ = ("_conn_id", "_pgconn")

    def __init__(self, pgconn: Any, conn_id: int) -> None:
        self._pgconn, self._conn_id = pgconn, conn_id

    def __getattr__(self, name: str) -> Any:
        if (
            name.startswith(
                ("exec", "send_", "put_copy", "reset", "enter_pipeline", "prepare", "pipeline_sync")
            )
            or name == "pgconn_ptr"
        ):
            ledger = scope.current(self._conn_id)
            if ledger is not None:
                ledger.doubt(
                    f"the application used libpq directly (pgconn.{name})", conn_id=self._conn_id
                )
        return getattr(self._pgconn, name)
