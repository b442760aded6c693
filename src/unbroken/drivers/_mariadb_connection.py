"""MariaDB Connector/Python's connections, of subclasses that know when the status is wrong, and
that can report.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers._mysql_exchange import KEPT, LONGEST_TEXT, TEXTS
from unbroken.drivers._shared import (
    class_of,
    is_commit,
    is_rollback,
    mark_call,
    marked,
)
from unbroken.ledger import scope
from unbroken.net.fork_guard import abort, identity

DOUBTFUL = ("change_user", "reset", "reconnect", "dump_debug_info")


def status_of(conn: Any) -> int:
    return int(conn.server_status)


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, a mariadb connection class, that knows whether its last
    statement was answered, and how.
    """
    if getattr(base, "_knows", False):
        return base

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _knows = True

        def cursor(self, cursorclass: Any = None, **kwargs: Any) -> Any:
            kind = cursor_class() if cursorclass is None else cursorclass
            if isinstance(kind, type):
                return super().cursor(_following(kind), **kwargs)
            cursor = super().cursor(kind, **kwargs)
            _hide(cursor)
            cursor.__class__ = _following(class_of(cursor))
            return cursor

        _seen_rows = False  #: rows of an unbuffered cursor are still to come
        #: statements that executemany() still announces before it sends one: its own, and if the
        #: server takes no bulk, that of the first row
        _seen_many = 0
        _seen_due: int | None = None  #: the status in an answer that is read later
        _seen_flies = False

        def _execute_command(self, sql: Any) -> Any:
            if not self._seen_flies:
                self._seen_settle()
            self._seen_refuse()
            note(self, sql)
            self._about_to_send(sql)
            self._seen_busy = self._seen_failed = True
            return super()._execute_command(sql)

        def _read_response(self) -> Any:
            try:
                if self._seen_due is not None:
                    self._seen_hear(behind=True)
                result = super()._read_response()
            except self.Error as error:
                _failed(self, error)
                raise
            _answered(self, None)
            self._seen_failed = False
            self._seen_busy = False
            return result

        def _seen_leave(self, sql: str) -> None:
            """Send *sql*, COMMIT or ROLLBACK. Its answer is read before the next one's."""
            self._seen_settle()
            self._seen_refuse()
            after = status_of(self) & ~(_mysql.IN_TRANSACTION | _mysql.IN_READ_ONLY)
            self._seen_busy = self._seen_failed = True
            super()._execute_command(sql)
            self._seen_due = after
            texts_of(self).clear()
            self._seen_busy = False
            self._seen_failed = False  # last: it marks the exchange as complete

        def _seen_settle(self) -> None:
            """Read that answer, if it is due."""
            if self._seen_due is not None:
                self._seen_refuse()  # it was broken off before
                self._seen_busy = self._seen_failed = True
                self._seen_hear(behind=False)
                self._seen_busy = False
                self._seen_failed = False

        def _seen_hear(self, *, behind: bool) -> None:
            """Read that answer.

            Raises the error of a lost connection if the answer is an error, or if a statement was
            sent *behind* it and the answer is not the expected one.
            """
            try:
                super()._read_response()
            except self.Error as error:
                raise self.OperationalError(_mysql.OUT_OF_STEP) from error
            status, due = int(super().server_status), self._seen_due
            assert due is not None
            if status & _mysql.MORE_RESULTS or (behind and (status ^ due) & KEPT):
                raise self.OperationalError(_mysql.OUT_OF_STEP)
            self._seen_due = None

        @property
        def server_status(self) -> Any:
            due = self._seen_due
            return super().server_status if due is None else due

        def _seen_refuse(self) -> None:
            """Raise after an exchange that is not known to have ended, so that nothing is sent."""
            if self.__dict__.get("_seen_busy", False):
                raise self.OperationalError(_mysql.OUT_OF_STEP)

        @property
        def database(self) -> Any:
            return base.database.fget(self)

        @database.setter
        def database(self, schema: Any) -> None:
            _mysql.note_move(self, _mysql.MOVED)
            base.database.fset(self, schema)

        def ping(self) -> Any:
            self._seen_settle()
            self._seen_refuse()
            return super().ping()

        def close(self) -> None:
            self._seen_closed, self._seen_due = True, None
            if self.__dict__.get("_seen_busy", False) or self._seen_rows:
                # The library may crash if it closes in the middle of an exchange, or if a cursor
                # with unread rows outlives its connection: its memory is freed with the object.
                fd = self._get_socket()
                who = identity(fd)
                if who is not None:
                    abort(fd, who)
                return
            super().close()

        # Each execute of a cursor writes this first, however the cursor was created.
        @property
        def _last_executed_statement(self) -> Any:
            return self.__dict__.get("_last_executed_statement")

        @_last_executed_statement.setter
        def _last_executed_statement(self, statement: Any) -> None:
            self.__dict__["_last_executed_statement"] = statement
            if statement is not None:
                if self._seen_many != 1:
                    self._seen_refuse()
                self._seen_many = max(0, self._seen_many - 1)
                sent = marked(self.__dict__, "_seen_next") or statement
                note(self, sent)
                self._about_to_send(sent)
                self._seen_sent = False
                self._seen_busy = self._seen_failed = True

        def _about_to_send(self, statement: Any) -> None:
            pass

    for name in DOUBTFUL:
        _doubtful(Connection, base, name)
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _doubtful(cls: Any, base: Any, name: str) -> None:
    plain = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        ledger = scope.current(id(self)) if hasattr(type(self), "unwatched") else None
        if ledger is not None:
            ledger.doubt(f"the application called {name}() of mariadb", conn_id=id(self))
        if name == "reconnect":
            self._seen_due = None
        self._seen_settle()
        self._seen_failed = True  # nothing is known of the transaction any more
        texts_of(self).append(None)
        if name == "change_user":
            _mysql.note_move(self, _mysql.ANOTHER_USER)
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


def texts_of(conn: Any) -> deque[str | bytes | None]:
    """Return the last statements that were sent since no transaction was open. None stands for an
    unknown statement.
    """
    texts: deque[str | bytes | None] = conn.__dict__.setdefault("_seen_texts", deque([None], TEXTS))
    return texts


def note(conn: Any, sql: Any) -> None:
    """Note *sql*, which is about to be sent.

    If it may change the effect of a COMMIT or ROLLBACK on this session, the session cannot be
    restored.
    """
    texts, state = texts_of(conn), conn.__dict__
    if not state.get("_seen_failed", True) and not status_of(conn) & _mysql.IN_TRANSACTION:
        texts.clear()
    known = isinstance(sql, str | bytes) and len(sql) <= LONGEST_TEXT
    texts.append(sql if known else None)
    if not known:
        _mysql.unknown_text(sql if isinstance(sql, str | bytes) else None, conn)
    elif _mysql.changes_ends(sql, conn):
        _mysql.note_chains(conn)
        _mysql.note_move(conn, _mysql.ANOTHER_USER)


def _loads(statement: Any) -> bool:
    """Return whether *statement* may make the server ask the C library for a file. That permission
    is lost when it reads the next answer.
    """
    return statement[:4].lower() in ("load", b"load")


def cursor_class() -> Any:
    """Return the library's own cursor class."""
    from mariadb.cursors import Cursor

    return Cursor


def _hider() -> Callable[[Any], None]:
    try:
        import ctypes

        hide: Any = ctypes.pythonapi.PyObject_GC_UnTrack
    except (ImportError, AttributeError):  # not CPython
        return lambda _cursor: None
    hide.argtypes, hide.restype = [ctypes.py_object], None
    return hide  # type: ignore[no-any-return]


#: Hide a cursor from the garbage collector. The library's cursors report to it a reference to their
#: connection that they do not own. If a cursor is part of a cycle (an exception's traceback, say),
#: the collector would destroy its connection while others still use it. A hidden cursor is
#: destroyed when the last reference to it goes.
_hide = _hider()


@cache
def _following(base: Any) -> Any:
    """Return a subclass of *base*, a cursor class, that tells its connection how a statement
    ended.
    """
    if getattr(base, "_follows", False):
        return base

    class Cursor(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _follows = True

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            cursor = super().__new__(cls, *args, **kwargs)
            _hide(cursor)
            return cursor

        def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
            if self._prepared and self.statement:
                # a prepared cursor runs its own statement and ignores the given one
                mark = mark_call(self.connection.__dict__, "_seen_next", self.statement)
                result = self._follow(
                    lambda: super(Cursor, self).execute(statement, *args, **kwargs)
                )
                del mark
                return result
            return self._follow(lambda: super(Cursor, self).execute(statement, *args, **kwargs))

        def executemany(self, *args: Any, **kwargs: Any) -> Any:
            conn = self.connection
            conn._seen_many = 2
            try:
                return self._follow(lambda: super(Cursor, self).executemany(*args, **kwargs))
            finally:
                conn._seen_many = 0

        def nextset(self) -> Any:
            return self._follow(super().nextset)

        def _follow(self, send: Callable[[], Any]) -> Any:
            conn = self.connection
            state = conn.__dict__
            before, was_busy = state.get("_seen_failed", True), state.get("_seen_busy", False)
            try:
                result = send()
            except conn.Error as error:
                if was_busy:
                    raise  # refused because of an earlier command
                if state.get("_seen_sent", True):
                    _failed(conn, error)
                else:  # the library refused it: nothing was sent
                    state["_seen_failed"] = before
                    state["_seen_busy"] = False
                raise
            comes = not self.buffered and self.field_count > 0  # its rows are still to come
            if comes and state.get("_seen_pending") == _mysql.STATEMENT:
                del state["_seen_pending"]  # an error may follow them
            _answered(conn, None)
            state["_seen_rows"] = state["_seen_failed"] = comes
            state["_seen_busy"] = False
            return result

        def _execute_text(self, statement: Any) -> Any:
            self._seen_begin(alone=_loads(statement))
            return super()._execute_text(statement)

        def _readresponse(self) -> Any:
            if self.connection._seen_due is not None:
                self.connection._seen_hear(behind=True)
            return super()._readresponse()

        def _execute_binary(self, *args: Any) -> Any:
            self._seen_begin(alone=True)
            return super()._execute_binary(*args)

        def _execute_bulk(self, *args: Any) -> Any:
            self._seen_begin(alone=True)
            return super()._execute_bulk(*args)

        def _seen_begin(self, *, alone: bool) -> None:
            """Prepare for a statement that is about to be sent. *alone*: after an answer that is
            due was read.
            """
            conn = self.connection
            conn.__dict__["_seen_sent"] = True
            if conn._seen_due is not None and (alone or not conn._seen_flies):
                conn._seen_hear(behind=True)

        def close(self) -> Any:
            conn = self.connection
            if conn is not None and conn.__dict__.get("_seen_busy", False):
                # the rest of an answer that was broken off cannot be read; it is discarded with the
                # connection
                return None
            result = super().close()
            if conn is not None and not self.buffered:
                conn.__dict__["_seen_rows"] = False  # the rest of its rows has been read
            return result

    Cursor.__name__ = Cursor.__qualname__ = base.__name__
    return Cursor


def _failed(conn: Any, error: BaseException) -> None:
    """Handle *error*, which a call of the library on *conn* raised. Only the server's own error
    ends the exchange.
    """
    if _mysql.is_answer(error):
        _answered(conn, error)
        conn.__dict__["_seen_busy"] = False


def _answered(conn: Any, error: BaseException | None) -> None:
    pending = conn.__dict__.pop("_seen_pending", None)
    if pending is not None:
        _mysql.answered(conn, pending, error)


def watched(base: Any) -> Any:
    """Return a subclass of *base* that tells the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    return base if hasattr(base, "unwatched") else _watched(exact(base))


@cache
def _watched(base: Any) -> Any:
    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def _about_to_send(self, sql: Any) -> None:
            self.__dict__.pop("_seen_pending", None)
            ledger = scope.current(id(self))
            if ledger is None or self.__dict__.get("_seen_closed"):
                return
            if is_commit(sql):
                ledger.committing(conn_id=id(self))
                self._seen_pending = _mysql.COMMIT
            else:
                ledger.statement(sql, _commits_itself(self), conn_id=id(self))
                self._seen_pending = _mysql.ROLLBACK if is_rollback(sql) else _mysql.STATEMENT

    Watched.__name__ = Watched.__qualname__ = base.__name__
    return Watched


def _commits_itself(conn: Any) -> bool | None:
    """Return whether a statement sent now would be committed by itself: autocommit on and no
    transaction open. None if unknown.
    """
    if conn.__dict__.get("_seen_failed", True):
        return None
    return status_of(conn) & (_mysql.AUTOCOMMIT | _mysql.IN_TRANSACTION) == _mysql.AUTOCOMMIT
