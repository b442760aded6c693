"""PyMySQL: blocking, pure Python.

Its socket shows, and with a little help its transaction status is exact.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, Target
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._mysql_driver import Blocking, unheard
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import boolean, class_of, dial, seconds, whole, without_target
from unbroken.ledger import scope
from unbroken.ledger.residue import Left

NAME = "pymysql"
SCHEMES = ("mysql+pymysql", "mariadb+pymysql")
DISTRIBUTION = "pymysql"
MODULE = "pymysql"
TESTED = ">=1.1,<1.3"
RANK = 20  # after mysqlclient, which is faster where it could be built

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "write_timeout": seconds,
    "bind_address": str, "collation": str, "max_allowed_packet": whole, "program_name": str,
    "ssl_disabled": boolean, "ssl_key_password": str, "ssl_verify_cert": boolean,
    "ssl_verify_identity": boolean, "binary_prefix": boolean,
}  # fmt: skip

#: What a holder can change on a connection object: what is compared at each release, and what is
#: only put back.
_COMPARED = ("cursorclass", "encoding", "use_unicode", "encoders", "decoders")
_KEPT = ("charset", "collation", "_read_timeout", "_write_timeout")

_CONNECTION, _RESULT = "pymysql.connections:Connection", "pymysql.connections:MySQLResult"
_SEAMS = (
    Seam(
        _CONNECTION,
        "__init__",
        None,
        ("_sock", "_result", "_read_timeout", "_write_timeout", "db", "charset", "collation"),
    ),
    Seam(
        _CONNECTION,
        "__init__",
        None,
        ("cursorclass", "encoding", "use_unicode", "encoders", "decoders"),
    ),
    Seam(
        _CONNECTION,
        "connect",
        None,
        ("_sock", "_closed", "_request_authentication", "set_character_set"),
    ),
    Seam(_CONNECTION, "_get_server_information", ("self",), ("server_thread_id",)),
    Seam(_CONNECTION, "_request_authentication", ("self",)),
    Seam(_CONNECTION, "_create_ssl_ctx", ("self", "sslp")),
    Seam(_CONNECTION, "_force_close", ("self",), ("_sock",)),
    Seam(_CONNECTION, "close", ("self",), ("_closed", "_force_close", "_write_bytes")),
    Seam(
        _CONNECTION,
        "_execute_command",
        ("self", "command", "sql"),
        ("_sock", "_result", "_write_bytes", "write_packet"),
    ),
    Seam(_CONNECTION, "_write_bytes", ("self", "data"), ("_sock", "_write_timeout")),
    Seam(_CONNECTION, "write_packet", ("self", "payload"), ("_write_bytes",)),
    Seam(
        _CONNECTION,
        "_read_packet",
        ("self", ...),
        ("_result", "unbuffered_active", "raise_for_error"),
    ),
    Seam(_CONNECTION, "_read_ok_packet", ("self",), ("_read_packet",)),
    Seam(
        _CONNECTION,
        "_read_query_result",
        ("self", "unbuffered"),
        ("_result", "init_unbuffered_query", "read", "server_status"),
    ),
    Seam(
        _CONNECTION,
        "query",
        ("self", "sql", "unbuffered"),
        ("_execute_command", "_read_query_result"),
    ),
    Seam(_CONNECTION, "next_result", ("self", "unbuffered"), ("_read_query_result",)),
    *(
        Seam(_CONNECTION, name, None, ("_execute_command", "_read_ok_packet"))
        for name in ("begin", "commit", "rollback")
    ),
    *(
        Seam(_CONNECTION, name, None, ("_execute_command", "_read_ok_packet"))
        for name in ("select_db", "ping")
    ),
    Seam(
        _CONNECTION,
        "set_character_set",
        ("self", "charset", "collation"),
        ("_execute_command", "_read_packet", "encoding"),
    ),
    Seam(_CONNECTION, "show_warnings", ("self",), ("_execute_command",)),
    Seam(
        _RESULT,
        "__init__",
        ("self", "connection"),
        ("connection", "has_next", "unbuffered_active", "server_status", "affected_rows"),
    ),
    Seam(
        _RESULT,
        "read",
        ("self",),
        ("_read_packet", "_read_load_local_packet", "_read_result_packet"),
    ),
    Seam(
        _RESULT,
        "init_unbuffered_query",
        ("self",),
        ("_read_packet", "_read_load_local_packet", "unbuffered_active"),
    ),
    Seam(_RESULT, "_check_packet_is_eof", ("self", "packet"), ("has_next",)),
    Seam(_RESULT, "_read_load_local_packet", ("self", "first_packet"), ("_read_packet",)),
    Seam(_RESULT, "_read_rowdata_packet", ("self",), ("_read_packet", "_check_packet_is_eof")),
    Seam(
        _RESULT,
        "_read_rowdata_packet_unbuffered",
        ("self",),
        ("_read_packet", "_check_packet_is_eof", "unbuffered_active"),
    ),
    Seam(
        _RESULT,
        "_finish_unbuffered_query",
        ("self",),
        ("_read_packet", "_check_packet_is_eof", "unbuffered_active"),
    ),
    Seam("pymysql.protocol:MysqlPacket", "get_all_data", ("self",)),
    Seam("pymysql.protocol:MysqlPacket", "raise_for_error", ("self",), ("raise_mysql_exception",)),
    Seam("pymysql.cursors:Cursor", "_query", ("self", "q"), ("query",)),
)


class Driver(Blocking):
    """See :class:`unbroken.abc.Driver`.

    Connections are PyMySQL's, of a subclass that keeps the server's status.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import pymysql

        self.check_seams()
        self.target = target or without_target(NAME, "mysql")
        # Not pymysql.err: in mysqlclient's place (install_as_MySQLdb) that comes to name a second
        # copy, as MySQLdb.err, of whatever imports MySQLdb.converters, as Django does.
        self.errors: tuple[type[BaseException], ...] = (
            pymysql.OperationalError,
            pymysql.InterfaceError,
            pymysql.Error,
        )
        self._base: type[BaseException] = pymysql.Error
        self._connect = connect
        self._arguments = _arguments(self.target)
        base: Any = pymysql.connections.Connection
        self._class = _with_shared_tls(exact(base)) if self.is_known else base

    def connect(self, timeout: float) -> Connection:
        """*timeout* bounds the TCP connect and each wait of the handshake together; a user's
        read_timeout holds afterwards.
        """
        return dial(lambda: self._dial(timeout))

    def _dial(self, timeout: float) -> Connection:
        if self._connect is not None:
            return self.adopt(self._connect())
        return self.open(self._arguments, timeout)

    def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
        return conn

    def open(self, given: Mapping[str, Any], timeout: float) -> Connection:
        """A connection by PyMySQL's own arguments, which may be a framework's; *timeout* bounds the
        handshake too.
        """
        timeout = min(timeout, given.get("connect_timeout", timeout))
        if not self.is_known:
            return self._class(**{**given, "connect_timeout": timeout})
        conn = self._class(
            **{
                **given,
                "connect_timeout": timeout,
                "read_timeout": timeout,
                "write_timeout": timeout,
                "defer_connect": True,
            }
        )
        conn._handshake_until = time.monotonic() + timeout
        conn.connect()
        conn._handshake_until = None
        conn._read_timeout, conn._write_timeout = (
            given.get("read_timeout"),
            given.get("write_timeout"),
        )
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING, bounded by the socket's timeout."""
        kept = conn._read_timeout, conn._write_timeout
        exchange.touch(conn, exchange.TIMEOUTS)
        conn._read_timeout = conn._write_timeout = timeout
        try:
            conn.ping(reconnect=False)
        finally:
            conn._read_timeout, conn._write_timeout = kept
        exchange.untouch(conn, exchange.TIMEOUTS)

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
        """COM_QUIT if the socket takes it at once, then close."""
        try:
            conn._write_timeout = 0.05
            conn.close()
        except Exception:
            conn._force_close()

    def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        with conn.cursor() as cursor:
            cursor.execute(_mysql.ASK_IDLE_LIMIT)
            row = cursor.fetchone()
        value = next(iter(row.values())) if isinstance(row, dict) else row[0]
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
        with conn.cursor(_plain_cursor()) as cursor:
            cursor.execute(_mysql_reset.ASK)
            rows = cursor.fetchall()
        self.rollback(conn)
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            conn._execute_command(_mysql_reset.COM_RESET_CONNECTION, b"")
            conn._read_ok_packet()
            database = self.target.database or conn.db
            if database and _mysql_reset.may_have_moved(left):
                conn.select_db(database)
            conn.query(opening)
            exchange.untouch(conn, exchange.DATABASE | exchange.CHARSET)

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, or None once PyMySQL has let go of it."""
        sock = conn._sock
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK or EOF packet; None after an error, in the middle of an exchange, or
        once it is closed.
        """
        return None if conn._sock is None else exchange.in_transaction(conn)

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        return conn._sock is not None and exchange.is_quiet(conn)

    def was_closed(self, conn: Connection) -> bool:
        """PyMySQL notes what was closed by ``close()``; a lost one it lets go of without."""
        return conn._sock is None and bool(getattr(conn, "_closed", False))

    def is_streaming(self, conn: Connection) -> bool:
        """Whether all that is unread are rows or results that the application left."""
        return conn._sock is not None and exchange.is_half_read(conn)

    def drain(self, conn: Connection) -> None:
        """Read them."""
        conn._seen_drain()

    def traits(self, conn: Connection) -> tuple[Any, ...]:
        """The server's status (autocommit, how strings are quoted), and what PyMySQL keeps on the
        connection.
        """
        return exchange.adopt(conn, _KEPT, ("encoders", "decoders")), *(
            getattr(conn, name) for name in _COMPARED
        )

    def is_clean(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """By one comparison.

        The status is only known where everything that was sent was answered in full.
        """
        seen = (
            conn._seen_status,
            conn.cursorclass,
            conn.encoding,
            conn.use_unicode,
            conn.encoders,
            conn.decoders,
        )
        return seen == traits and conn._sock is not None

    def restore(self, conn: Connection, traits: tuple[Any, ...]) -> None:
        """Attributes, then autocommit and the character set, or else the database."""
        exchange.put_back(conn, _COMPARED, traits[1:])
        charset = f"{conn.charset} COLLATE {conn.collation}" if conn.collation else conn.charset
        statement = exchange.to_put_back(conn, traits[0], charset)
        if statement:
            conn.query(statement)
        elif conn._seen_touched & exchange.DATABASE:
            conn.select_db(conn.db)
        exchange.untouch(conn, conn._seen_touched)
        if not self.is_clean(conn, traits):
            raise exchange.out_of_shape(conn)

    def classify(self, exc: BaseException) -> Fault:
        """By MySQL's code, or the system's."""
        return _mysql.classify(exc, self._base, self.target.password)

    def session_id(self, conn: Connection) -> str | None:
        """CONNECTION_ID(), from the handshake."""
        return str(conn.server_thread_id[0]) if hasattr(conn, "server_thread_id") else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through ``_execute_command``."""
        conn.__class__ = watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))


def _arguments(target: Target) -> dict[str, Any]:
    out = _mysql.arguments(target, _OPTIONS, NAME, password="password", database="database")
    if {"ssl_verify_cert", "ssl_verify_identity", "ssl_key_password"} & set(out):
        _mysql.refuse(
            out,
            {"ssl_capath", "ssl_cipher", "ssl_check_hostname"},
            "PyMySQL does not take it together with ssl_verify_*",
        )
        return out
    tls = _mysql.take_tls(out)
    return {**out, "ssl": tls} if tls else out


@cache
def _plain_cursor() -> Any:
    from pymysql.cursors import Cursor

    return Cursor


@cache
def exact(base: Any) -> Any:
    """*base*, a PyMySQL connection class, plus exact knowledge of its exchange with the server;
    *base* itself if it has that.
    """
    if getattr(base, "_keeps_status", False):
        return base
    from pymysql.connections import MySQLResult

    result_class = _result(MySQLResult)

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True
        _handshake_until: float | None = None
        _result: Any
        _closed: bool
        _seen_busy = exchange.QUIET
        _seen_status: int | None = None
        _seen_pending: int | None = None
        _seen_touched = 0
        _seen_opened: Mapping[str, Any] | None = None

        def connect(self, *args: Any, **kwargs: Any) -> None:
            self._seen_status = self._result = None
            self._seen_busy = exchange.BUSY  # until it has logged in
            super().connect(*args, **kwargs)
            exchange.untouch(self, self._seen_touched)  # what the connect itself did
            if self._seen_opened is not None:
                exchange.touch(self, exchange.OTHERS)  # another session than the pool's

        def _request_authentication(self) -> None:
            if self._handshake_until is not None:  # what is left of the time to connect
                self._read_timeout = max(0.01, self._handshake_until - time.monotonic())
            super()._request_authentication()
            self._seen_busy = exchange.QUIET

        def _execute_command(self, command: int, sql: Any) -> None:
            self._seen_ready()
            super()._execute_command(command, sql)
            self._seen_busy = exchange.SENT

        def _write_bytes(self, data: bytes) -> None:
            self._seen_status = None
            if self._seen_busy < exchange.BUSY:
                self._seen_busy = exchange.BUSY
            super()._write_bytes(data)

        def write_packet(self, payload: bytes) -> None:
            exchange.begin_writing(self)
            super().write_packet(payload)
            self._seen_busy = exchange.BUSY

        def _seen_ready(self) -> None:
            """Make sure that a command may be sent: raise where an answer is outstanding, read what
            was left half-read.
            """
            if self._sock is None:
                return  # which PyMySQL says itself
            if self._seen_busy:
                raise exchange.out_of_step(self)
            if self._result is not None and exchange.is_half_read(self):
                if self._result.unbuffered_active:
                    # as PyMySQL does
                    warnings.warn("Previous unbuffered result was left incomplete", stacklevel=4)
                self._seen_drain()

        def _seen_drain(self) -> None:
            """Read what was left of a result, and the results after it."""
            result = self._result
            if result is not None and result.unbuffered_active:
                result._finish_unbuffered_query()
            while self._result is not None and self._result.has_next:
                self.next_result()

        def _read_ok_packet(self) -> Any:
            exchange.begin_reading(self)
            try:
                ok = super()._read_ok_packet()
            except BaseException as error:
                exchange.failed(self, error)
                raise
            if not ok.has_next:
                exchange.ended(self, ok.server_status & exchange.KEPT)
            return ok

        def _read_query_result(self, unbuffered: bool = False) -> Any:
            # As PyMySQL's own, with our result class
            exchange.begin_reading(self)
            self._result = None
            result = result_class(self)
            try:
                result.init_unbuffered_query() if unbuffered else result.read()
            except BaseException as error:
                result.unbuffered_active, result.connection = False, None
                exchange.failed(self, error)
                raise
            self._result = result
            if result.server_status is not None:
                self.server_status = result.server_status
            affected = result.affected_rows
            exchange.ended(self, exchange.status_after(result))
            return affected

        def show_warnings(self) -> Any:
            self._execute_command(_mysql.COM_QUERY, "SHOW WARNINGS")
            self._read_query_result()
            rows, self._result = self._result.rows, None
            return rows

        def set_character_set(self, *args: Any, **kwargs: Any) -> None:
            exchange.touch(self, exchange.CHARSET)
            try:
                super().set_character_set(*args, **kwargs)
            except BaseException as error:
                exchange.failed(self, error)
                raise
            exchange.ended(self, None)

        def select_db(self, db: Any) -> None:
            if self.db:
                exchange.touch(self, exchange.DATABASE)
            super().select_db(db)

        def close(self) -> None:
            if not self._closed and not exchange.is_quiet(self):
                # the bytes of a goodbye might complete a command
                self._closed = True
                self._force_close()
            else:
                super().close()

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _result(base: Any) -> Any:
    """PyMySQL's result class, *base*, whose connection is out of step for as long as a row is
    read.
    """

    class Result(exchange.exact_result(base)):  # type: ignore[misc] # the base is only known here
        connection: Any
        unbuffered_active: bool

        def __del__(self) -> None:
            """Read nothing: a finalizer may run anywhere.

            What is half-read is read before the next command.
            """

        def _read_load_local_packet(self, first_packet: Any) -> None:
            with exchange.loading(self.connection):
                super()._read_load_local_packet(first_packet)

        def _read_rowdata_packet_unbuffered(self) -> Any:
            if not self.unbuffered_active:
                return None
            conn = self.connection
            if conn._seen_busy:
                raise exchange.out_of_step(conn)
            conn._seen_busy = exchange.BUSY
            try:
                row = super()._read_rowdata_packet_unbuffered()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, exchange.status_after(self))
            return row

        def _finish_unbuffered_query(self) -> None:
            conn = self.connection
            if not self.unbuffered_active:
                return
            if conn._seen_busy or conn._sock is None:
                # nothing of it is to be had any more; a close need not raise for that
                self.unbuffered_active = False
                return
            conn._seen_busy = exchange.BUSY
            try:
                super()._finish_unbuffered_query()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, exchange.status_after(self))

    return Result


@cache
def _with_shared_tls(base: Any) -> Any:
    """*base* whose connections of the same TLS options share a context: see _tls.py."""

    class Connection(base):  # type: ignore[misc]
        __doc__ = base.__doc__
        __module__ = base.__module__

        def _create_ssl_ctx(self, sslp: Any) -> Any:
            if not isinstance(sslp, dict):
                return super()._create_ssl_ctx(sslp)
            key = ("pymysql", repr(sorted(sslp.items(), key=lambda item: str(item[0]))))
            files = [sslp.get(name) for name in ("ca", "capath", "cert", "key")]
            return _tls.shared(key, files, lambda: super(Connection, self)._create_ssl_ctx(sslp))

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends.

    ``unwatched`` is the class to go back to.
    """
    if hasattr(base, "unwatched"):
        return base
    plain = exact(base)
    known = plain.__dict__.get("_watched")
    if known is not None:
        return known

    class Watched(plain):  # type: ignore[misc, valid-type] # the base is only known here
        __module__ = base.__module__
        unwatched = plain

        def _execute_command(self, command: int, sql: Any) -> None:
            ledger = scope.current(id(self))
            if ledger is None or command in exchange.UNREPORTED:
                super()._execute_command(command, sql)
                return
            self._seen_ready()
            pending = None if self._sock is None else exchange.tell(self, ledger, command, sql)
            super()._execute_command(command, sql)
            self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = base.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
