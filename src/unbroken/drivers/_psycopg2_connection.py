"""psycopg2's connections and cursors, of subclasses that note changes and report what they send."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from unbroken.drivers import _postgresql
from unbroken.drivers._shared import (
    mark_call,
    marked,
)
from unbroken.ledger import scope, unit

IDLE, IN_TRANSACTION, IN_ERROR = 0, 2, 3  # PQtransactionStatus; 1 is active, 4 unknown (lost)
READY = 1  # psycopg2's own status: it has no transaction open, so a BEGIN comes next


@cache
def reporting(base: Any) -> Any:
    """Return a subclass of *base*, a psycopg2 connection class, that tells the ledger of everything
    it sends, while ``_watched``.

    It is used from connect on and not swapped in later, because Python cannot change the class of
    an object that is written in C. So cursors from before a watch are followed as well.
    """

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _reports = True
        _watched = False
        _seen = IDLE
        _closed_well = False  #: whether it was closed while it was open
        _changed = True  #: whether a trait may have been set since they were compared

        def __setattr__(self, name: str, value: Any) -> None:
            if name in _NOTED:
                self.__dict__["_changed"] = True
            super().__setattr__(name, value)

        def close(self) -> None:
            if not self.closed:
                self._closed_well = True
            super().close()

        def set_session(self, *args: Any, **kwargs: Any) -> None:
            self.__dict__["_changed"] = True
            super().set_session(*args, **kwargs)

        def set_client_encoding(self, encoding: str) -> None:
            self.__dict__["_changed"] = True
            super().set_client_encoding(encoding)

        def cursor(
            self, name: Any = None, cursor_factory: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            factory = cursor_factory or self.cursor_factory or _plain_cursor()
            if isinstance(factory, type):
                factory = _reporting_cursor(factory)
            else:
                self._doubt("its cursor factory is not a class")
            return super().cursor(name, factory, *args, **kwargs)

        def commit(self) -> None:
            ledger = _ledger(self)
            if ledger is None or self.autocommit or self.status == READY:
                super().commit()
                return
            # the server answers such a COMMIT with ROLLBACK
            failed = self.get_transaction_status() == IN_ERROR
            _sent(
                self, ledger, "COMMIT", super().commit, lambda: "ROLLBACK" if failed else "COMMIT"
            )

        def rollback(self) -> None:
            ledger = _ledger(self)
            if ledger is None or self.autocommit or self.status == READY:
                super().rollback()
            else:
                _sent(self, ledger, "ROLLBACK", super().rollback, lambda: "ROLLBACK")

        def _doubt(self, why: str) -> None:
            ledger = _ledger(self)
            if ledger is not None:
                ledger.doubt(f"psycopg2: {why}", conn_id=id(self))

    for name in (
        "tpc_begin",
        "tpc_prepare",
        "tpc_commit",
        "tpc_rollback",
        "lobject",
        "set_isolation_level",
        "reset",
    ):
        _doubtful(Connection, base, name)
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


_NOTED = frozenset(
    {
        "autocommit",
        "isolation_level",
        "readonly",
        "deferrable",
        "cursor_factory",
        "notices",
        "notifies",
    }
)


def _doubtful(cls: Any, base: Any, name: str) -> None:
    plain = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_changed"] = True
        self._doubt(f"the application called {name}()")
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


@cache
def _reporting_cursor(base: Any) -> Any:
    if hasattr(base, "_reports"):
        return base

    class Cursor(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _reports = True

        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return self._send(
                query, lambda: super(Cursor, self).execute(query, *args, **kwargs), one=True
            )

        def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return self._send(
                query, lambda: super(Cursor, self).executemany(query, *args, **kwargs)
            )

        def callproc(self, procname: Any, *args: Any, **kwargs: Any) -> Any:
            return self._send(
                f"SELECT * FROM {procname}()",
                lambda: super(Cursor, self).callproc(procname, *args, **kwargs),
            )

        def copy_expert(self, sql: Any, *args: Any, **kwargs: Any) -> Any:
            return self._send(None, lambda: super(Cursor, self).copy_expert(sql, *args, **kwargs))

        def copy_from(self, *args: Any, **kwargs: Any) -> Any:
            return self._send(None, lambda: super(Cursor, self).copy_from(*args, **kwargs))

        def copy_to(self, *args: Any, **kwargs: Any) -> Any:
            return self._send(None, lambda: super(Cursor, self).copy_to(*args, **kwargs))

        def _send(self, query: Any, send: Callable[[], Any], *, one: bool = False) -> Any:
            conn = self.connection
            ledger = _ledger(conn)
            if ledger is None or marked(conn.__dict__, "_telling"):
                # its own execute, called by a class between
                return send()
            mark = mark_call(conn.__dict__, "_telling")
            result = _sent(
                conn, ledger, _text(query, conn), send, lambda: self.statusmessage, one=one
            )
            del mark
            return result

    Cursor.__name__ = Cursor.__qualname__ = base.__name__
    return Cursor


@cache
def _plain_cursor() -> Any:
    from psycopg2.extensions import cursor

    return cursor


def _ledger(conn: Any) -> unit.Unit | None:
    return scope.current(id(conn)) if getattr(conn, "_watched", False) else None


def _sent(
    conn: Any,
    ledger: unit.Unit,
    sql: str | bytes | None,
    send: Callable[[], Any],
    tag: Callable[[], str | None],
    *,
    one: bool = True,
) -> Any:
    """Report *sql*, send it, and report its result. *tag* returns the server's answer to a COMMIT.

    *one*: it is sent once. Otherwise an error tells nothing about the statements sent before it.
    """
    if conn.closed:  # psycopg2 knows it, and sends nothing
        return send()
    if conn.get_transaction_status() != conn._seen:
        ledger.doubt(
            "psycopg2: a statement bypassed the connection's own cursors", conn_id=id(conn)
        )
    ends = None
    if sql is None:
        ledger.statement(None, _commits_itself(conn), conn_id=id(conn))
    else:
        ends = _postgresql.about_to_send(ledger, id(conn), sql, _commits_itself(conn))
    try:
        result = send()
    except Exception as error:
        if one:
            _postgresql.refused(ledger, id(conn), ends, getattr(error, "pgcode", None), str(error))
        raise
    finally:
        conn._seen = conn.get_transaction_status()
    _postgresql.answered(ledger, id(conn), ends, tag())
    return result


def _commits_itself(conn: Any) -> bool:
    """Return whether a statement is committed by itself: nothing is open, and psycopg2 sends no
    BEGIN before it.
    """
    return bool(conn.get_transaction_status() == IDLE and (conn.autocommit or conn.status != READY))


def _text(query: Any, conn: Any) -> str | bytes | None:
    if isinstance(query, (str, bytes)):
        return query
    try:
        text: str = query.as_string(conn)  # psycopg2.sql
    except Exception:
        return None
    return text


def notice_foreign(cursor: Any) -> None:
    conn = cursor.connection
    ledger = _ledger(conn)
    if ledger is not None and not hasattr(type(cursor), "_reports"):
        ledger.doubt("psycopg2: a cursor was not created by its connection", conn_id=id(conn))
