"""MariaDB Connector/Python: the C client library. It shows its socket and the server's status,
which lies after an error.

``conn.socket`` is never touched: it would own the descriptor, and close it, whoever has it by then.
There is no timeout per call: a ping is bounded only by the pool's ``shutdown()`` on the descriptor
(or a user's own ``read_timeout``). Its connect timeout is whole seconds: others are rounded up. The
library always speaks utf8mb4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, Target
from unbroken.drivers import _mysql, _mysql_reset
from unbroken.drivers._mysql_driver import Blocking, by_attribute, unheard
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import (
    boolean,
    class_of,
    dial,
    is_commit,
    is_rollback,
    mark_call,
    marked,
    optional_boolean,
    seconds,
    whole,
    without_target,
)
from unbroken.ledger import scope
from unbroken.ledger.residue import Left
from unbroken.net.fork_guard import abort, identity

NAME = "mariadb"
SCHEMES = ("mariadb+mariadbconnector", "mysql+mariadbconnector")
DISTRIBUTION = "mariadb"
MODULE = "mariadb"
TESTED = ">=1.1.5,<1.2"
RANK = 40

_OPTIONS: _mysql.Kinds = {
    "autocommit": optional_boolean, "client_flag": whole, "compress": boolean,
    "connect_timeout": seconds, "default_file": str, "default_group": str, "init_command": str,
    "local_infile": boolean, "plugin_dir": str, "read_timeout": seconds, "ssl": boolean,
    "ssl_ca": str, "ssl_capath": str, "ssl_cert": str, "ssl_cipher": str, "ssl_crl": str,
    "ssl_crlpath": str, "ssl_key": str, "ssl_verify_cert": boolean, "tls_peer_fp": str,
    "tls_version": str, "write_timeout": seconds,
}  # fmt: skip
_WHOLE_SECONDS = ("read_timeout", "write_timeout")

_CONNECTION, _CURSOR = "mariadb.connections:Connection", "mariadb.cursors:Cursor"
_DOUBTFUL = ("change_user", "reset", "reconnect", "dump_debug_info")
_SEAMS = (
    Seam(
        _CONNECTION, "__init__", None, ("_last_executed_statement", "_converter", "auto_reconnect")
    ),
    *(
        Seam(_CONNECTION, name)
        for name in (
            "database",
            "_execute_command",
            "_read_response",
            "_get_socket",
            "server_status",
            "connection_id",
        )
    ),
    *(Seam(_CONNECTION, name) for name in (*_DOUBTFUL, "ping", "close", "autocommit", "cursor")),
    *(
        Seam(_CONNECTION, name, None, ("_execute_command", "_read_response"))
        for name in ("begin", "commit", "rollback")
    ),
    Seam(_CURSOR, "__init__", None, ("_prepared", "buffered")),
    Seam(
        _CURSOR,
        "execute",
        None,
        ("connection", "_last_executed_statement", "_prepared", "statement"),
    ),
    Seam(_CURSOR, "execute", None, ("_execute_text", "_execute_binary")),
    Seam(_CURSOR, "executemany", None, ("connection", "_last_executed_statement", "_execute_bulk")),
    *(
        Seam(_CURSOR, name)
        for name in (
            "_execute_text",
            "_execute_binary",
            "_execute_bulk",
            "nextset",
            "close",
            "connection",
        )
    ),
    *(Seam(_CURSOR, name) for name in ("buffered", "field_count", "statement")),
)


class Driver(Blocking):
    """See :class:`unbroken.abc.Driver`.

    Connections are the library's, of a subclass that knows when the status lies.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import mariadb
        import mariadb.connections

        self.target = target or without_target("mariadbconnector", "mariadb")
        self.errors: tuple[type[BaseException], ...] = (
            mariadb.OperationalError,
            mariadb.InterfaceError,
            mariadb.Error,
        )
        self._base: type[BaseException] = mariadb.Error
        self._connect = connect
        self._arguments = _mysql.arguments(
            self.target,
            _OPTIONS,
            NAME,
            password="password",
            database="database",
        )
        for name in _WHOLE_SECONDS:
            if name in self._arguments:
                self._arguments[name] = math.ceil(self._arguments[name])
        if self._arguments.get("autocommit", False) is None:
            del self._arguments["autocommit"]  # the library knows no default of the server's
        self.check_seams()
        base: Any = mariadb.connections.Connection
        self._class = exact(base) if self.is_known else base

    def connect(self, timeout: float) -> Connection:
        """The client library bounds the TCP connect and the handshake with it, in whole seconds."""
        return dial(lambda: self._dial(timeout))

    def _dial(self, timeout: float) -> Connection:
        if self._connect is not None:
            return self.adopt(self._connect())
        timeout = min(timeout, self._arguments.get("connect_timeout", timeout))
        return self._class(**{**self._arguments, "connect_timeout": math.ceil(timeout)})

    def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
            # it was given to us as one that can be used
            conn.__dict__.setdefault("_seen_busy", False)
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:  # noqa: ARG002 - as the protocol has it
        """COM_PING; *timeout* cannot be held by this driver, see above."""
        conn.ping()

    def begin(self, conn: Connection) -> None:
        """Not needed: MySQL opens a transaction by itself while autocommit is off."""
        conn.begin()

    def commit(self, conn: Connection) -> None:
        """COMMIT, unless the server's last word is that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            conn.commit()

    def rollback(self, conn: Connection) -> None:
        """ROLLBACK, likewise."""
        if self.is_in_transaction(conn) is not False:
            conn.rollback()

    def close(self, conn: Connection) -> None:
        """COM_QUIT and close; the library does not wait for an answer."""
        try:
            conn.close()  # a connection that is out of step only loses its socket: see exact()
        except Exception:  # closed before
            pass

    def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        cursor = conn.cursor()
        cursor.execute(_mysql.ASK_IDLE_LIMIT)
        (value,) = cursor.fetchone()
        cursor.close()
        if not held:
            self.rollback(conn)
        return float(value)

    def remember(self, conn: Connection) -> str | None:
        """The statement that sets again what was set when *conn* was opened."""
        if not (
            _mysql_reset.sets_nothing_else(self._arguments)
            if self._connect is None
            else self.sets_only
        ):
            return None
        with conn.cursor(named_tuple=False, dictionary=False) as cursor:
            cursor.execute(_mysql_reset.ASK)
            rows = cursor.fetchall()
        conn.rollback()
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            conn.reset()
            database = self.target.database
            with conn.cursor() as cursor:
                if _mysql_reset.may_have_moved(left):
                    if database is None:
                        raise conn.OperationalError("its database is not known")
                    cursor.execute(f"USE {_quoted(database)}")
                cursor.execute(opening)
            conn.rollback()

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, which stays the library's own; None once it was lost or closed."""
        try:
            fd: int = conn._get_socket()
        except Exception:
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK or EOF packet; None after an error, or in the middle of an exchange."""
        return (
            bool(_status(conn) & _mysql.IN_TRANSACTION)
            if self.is_quiet(conn) and not conn.__dict__.get("_seen_failed", True)
            else None
        )

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last statement was answered in full, and its rows were read."""
        state = conn.__dict__
        return self.fileno(conn) is not None and not (
            state.get("_seen_busy", True) or state.get("_seen_rows")
        )

    def was_closed(self, conn: Connection) -> bool:
        """Whether ``close()`` was called."""
        return bool(conn.__dict__.get("_seen_closed"))

    def traits(self, conn: Connection) -> tuple[Any, ...] | None:
        """Autocommit by the server's status, whether it was moved, the converter, and what a
        reconnect would do by itself.
        """
        try:
            moved = conn.__dict__.get("_seen_moved", 0)
            return _status(conn) & _mysql.AUTOCOMMIT, moved, conn._converter, conn.auto_reconnect
        except Exception:  # closed
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Quiet, nothing open by the server's last status, and as it was opened."""
        return (
            self.is_in_transaction(conn) is False
            and traits is not None
            and self.traits(conn) == traits
        )

    def restore(self, conn: Connection, traits: Any) -> None:
        """Attributes, then autocommit or the database."""
        now, database = self.traits(conn), self.target.database
        if (
            traits is None
            or now is None
            or (now[0] != traits[0] and now[1] != traits[1])
            or now[1] == _mysql.ANOTHER_USER
            or (now[1] != traits[1] and database is None)
            or self.is_in_transaction(conn) is not False
        ):
            raise conn.InterfaceError("the connection cannot be put back as it was opened")
        autocommit, moved, conn._converter, conn.auto_reconnect = traits
        conn.autocommit = bool(autocommit)
        if now[1] != moved and database is not None:
            conn.select_db(_quoted(database))
            conn.__dict__["_seen_moved"] = moved

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As all, and autocommit."""
        return {**super().public_calls(), **by_attribute(self)}

    def classify(self, exc: BaseException) -> Fault:
        """By MySQL's code, or the system's."""
        return _mysql.classify(exc, self._base, self.target.password)

    def session_id(self, conn: Connection) -> str | None:
        """CONNECTION_ID(), from the handshake."""
        try:
            return str(conn.connection_id)
        except Exception:  # closed
            return None

    def watch(self, conn: Connection) -> None:
        """Statements of cursors show as ``_last_executed_statement``, the rest goes through
        ``_execute_command``.
        """
        conn.__class__ = watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _status(conn: Any) -> int:
    return int(conn.server_status)


@cache
def exact(base: Any) -> Any:
    """*base*, a mariadb connection class, that knows whether its last statement was answered, and
    how.
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

        def _execute_command(self, sql: Any) -> Any:
            self._seen_refuse()
            self._about_to_send(sql)
            self._seen_busy = self._seen_failed = True
            return super()._execute_command(sql)

        def _read_response(self) -> Any:
            try:
                result = super()._read_response()
            except self.Error as error:
                _failed(self, error)
                raise
            _answered(self, None)
            self._seen_failed = False
            self._seen_busy = False
            return result

        def _seen_refuse(self) -> None:
            """Send nothing after an exchange that is not known to have ended."""
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
            self._seen_refuse()
            return super().ping()

        def close(self) -> None:
            self._seen_closed = True
            if self.__dict__.get("_seen_busy", False) or self._seen_rows:
                # The library may crash where it closes in the middle of an exchange, or where a
                # cursor with rows to come outlives its connection: its memory goes with the object.
                fd = self._get_socket()
                who = identity(fd)
                if who is not None:
                    abort(fd, who)
                return
            super().close()

        # Each execute of a cursor writes this first, however the cursor came about.
        @property
        def _last_executed_statement(self) -> Any:
            return self.__dict__.get("_last_executed_statement")

        @_last_executed_statement.setter
        def _last_executed_statement(self, statement: Any) -> None:
            self.__dict__["_last_executed_statement"] = statement
            if statement is not None:
                self._seen_refuse()
                self._about_to_send(marked(self.__dict__, "_seen_next") or statement)
                self._seen_sent = False
                self._seen_busy = self._seen_failed = True

        def _about_to_send(self, statement: Any) -> None:
            pass

    for name in _DOUBTFUL:
        _doubtful(Connection, base, name)
    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _doubtful(cls: Any, base: Any, name: str) -> None:
    plain = getattr(base, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        ledger = scope.current(id(self)) if hasattr(type(self), "unwatched") else None
        if ledger is not None:
            ledger.doubt(f"{name}() of mariadb", conn_id=id(self))
        self._seen_failed = True  # nothing is known of the transaction any more
        if name == "change_user":
            _mysql.note_move(self, _mysql.ANOTHER_USER)
        return plain(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, plain.__doc__
    setattr(cls, name, method)


def cursor_class() -> Any:
    """The library's own."""
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


#: Hide a cursor from the collector of garbage. The library's cursors tell it of a reference to
#: their connection that they do not own. So where a cursor is part of a cycle (an exception's
#: traceback, say), the collector would destroy its connection under other owners' hands. A hidden
#: cursor is destroyed when the last reference to it goes.
_hide = _hider()


@cache
def _following(base: Any) -> Any:
    """*base*, a cursor class, that tells its connection how a statement went."""
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
                # a prepared cursor runs its own, whatever it is given
                mark = mark_call(self.connection.__dict__, "_seen_next", self.statement)
                result = self._follow(
                    lambda: super(Cursor, self).execute(statement, *args, **kwargs)
                )
                del mark
                return result
            return self._follow(lambda: super(Cursor, self).execute(statement, *args, **kwargs))

        def executemany(self, *args: Any, **kwargs: Any) -> Any:
            return self._follow(lambda: super(Cursor, self).executemany(*args, **kwargs))

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
                    raise  # refused, for what was sent before
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

        def _execute_text(self, *args: Any) -> Any:
            self.connection.__dict__["_seen_sent"] = True
            return super()._execute_text(*args)

        def _execute_binary(self, *args: Any) -> Any:
            self.connection.__dict__["_seen_sent"] = True
            return super()._execute_binary(*args)

        def _execute_bulk(self, *args: Any) -> Any:
            self.connection.__dict__["_seen_sent"] = True
            return super()._execute_bulk(*args)

        def close(self) -> Any:
            conn = self.connection
            if conn is not None and conn.__dict__.get("_seen_busy", False):
                # the rest of an answer that was broken off is not to be had; it goes with the
                # connection
                return None
            result = super().close()
            if conn is not None and not self.buffered:
                conn.__dict__["_seen_rows"] = False  # what was left of its rows has been read
            return result

    Cursor.__name__ = Cursor.__qualname__ = base.__name__
    return Cursor


def _failed(conn: Any, error: BaseException) -> None:
    """A call on *conn* raised *error* of the library's: the server's own ends the exchange."""
    if _mysql.is_answer(error):
        _answered(conn, error)
        conn.__dict__["_seen_busy"] = False


def _answered(conn: Any, error: BaseException | None) -> None:
    pending = conn.__dict__.pop("_seen_pending", None)
    if pending is not None:
        _mysql.answered(conn, pending, error)


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends.

    ``unwatched`` is the class to go back to.
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
    """Whether a statement sent now is committed by itself: autocommit on and no transaction open;
    None if unknown.
    """
    if conn.__dict__.get("_seen_failed", True):
        return None
    return _status(conn) & (_mysql.AUTOCOMMIT | _mysql.IN_TRANSACTION) == _mysql.AUTOCOMMIT
