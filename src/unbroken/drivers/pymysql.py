"""PyMySQL: blocking, pure Python.

It exposes its socket, and with additional tracking its transaction status is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Connection, Login, Target
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._mysql_ahead import Ahead
from unbroken.drivers._mysql_driver import Blocking, unheard
from unbroken.drivers._pymysql_connection import exact, watched
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import boolean, class_of, dial, seconds, whole, without_target
from unbroken.ledger.residue import Left

NAME = "pymysql"
SCHEMES = ("mysql+pymysql", "mariadb+pymysql")
DISTRIBUTION = "pymysql"
MODULE = "pymysql"
TESTED = ">=1.1,<1.3"
RANK = 20  # after mysqlclient, which is faster if it could be built

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "write_timeout": seconds,
    "bind_address": str, "collation": str, "max_allowed_packet": whole, "program_name": str,
    "ssl_disabled": boolean, "ssl_key_password": str, "ssl_verify_cert": boolean,
    "ssl_verify_identity": boolean, "binary_prefix": boolean,
}  # fmt: skip

#: A holder's possible changes to a connection object: attributes that are compared at each release,
#: and attributes that are only restored.
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
        ("_sock", "_result", "_write_bytes", "write_packet", "_next_seq_id"),
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


class Driver(Ahead, Blocking):
    """The blocking driver for PyMySQL: see :class:`unbroken.abc.Driver` for its methods.

    Connections are PyMySQL's, of a subclass that keeps the server's status.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS
    _names = ("password", "unix_socket")
    sends_latin = True

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        import pymysql

        self.check_seams()
        self.target = target or without_target(NAME, "mysql")
        # Not pymysql.err. If PyMySQL replaces mysqlclient (install_as_MySQLdb), that name comes to
        # mean a second copy, as MySQLdb.err, once MySQLdb.converters is imported, as Django does.
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

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds the TCP connect and each wait of the handshake
        together; a user's read_timeout holds afterwards.
        """
        return dial(lambda: self._dial(timeout, login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        return self.open(self.aimed(login), timeout)

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
            exchange.follow(conn)
        return conn

    def open(self, given: Mapping[str, Any], timeout: float) -> Connection:
        """Open a connection with PyMySQL's own arguments, which may be a framework's. *timeout*
        bounds the handshake too.
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
        """Send COM_PING, bounded by the socket's timeout."""
        kept = conn._read_timeout, conn._write_timeout
        exchange.touch(conn, exchange.TIMEOUTS)
        conn._read_timeout = conn._write_timeout = timeout
        try:
            conn.ping(reconnect=False)
        finally:
            conn._read_timeout, conn._write_timeout = kept
        exchange.untouch(conn, exchange.TIMEOUTS)

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT, ROLLBACK or :data:`.AUTOCOMMIT_ON`. :meth:`take_answer` reads the
        answer.
        """
        conn._seen_leave(sql)

    def want(self, conn: Connection, sql: str | None, follows: Callable[[Any], bool]) -> None:
        """Send *sql*, BEGIN or :data:`.AUTOCOMMIT_OFF`, before the next command, and a query that
        satisfies *follows* immediately behind it. None cancels that. It sends nothing itself.
        """
        conn._seen_want(sql, follows)

    def wants(self, conn: Connection) -> str | None:
        """Return the statement that is sent before the next command."""
        wanted: str | None = conn._seen_wants
        return wanted

    #: Switching autocommit takes a statement.
    sends_autocommit = True

    def autocommits(self, conn: Connection) -> bool:
        """Return whether autocommit is on, or will be once every due answer has come."""
        return bool(conn.get_autocommit())

    def texts(self, conn: Connection) -> Sequence[str | bytes | None]:
        """Return the statements of the open transaction. None stands for an unknown one."""
        return conn._seen_texts  # type: ignore[no-any-return]

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return conn._sock is not None and bool(conn._seen_due)

    def take_answer(self, conn: Connection, timeout: float) -> bool:
        """Read that answer, if it was not read yet. Returns whether it did."""
        if not self.owes_answer(conn):
            return False
        kept, conn._read_timeout = conn._read_timeout, timeout
        try:
            return conn._seen_take() is None
        finally:
            conn._read_timeout = kept

    def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        conn.begin()

    def close(self, conn: Connection) -> None:
        """Send COM_QUIT if the socket's buffer has room for it, then close."""
        try:
            conn._write_timeout = 0.05
            conn.close()
        except Exception:
            conn._force_close()

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        with conn.cursor() as cursor:
            cursor.execute(_mysql.ASK_IDLE_LIMIT)
            row = cursor.fetchone()
        value = next(iter(row.values())) if isinstance(row, dict) else row[0]
        if not held:
            self.rollback(conn)
        return float(value)

    def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings from the opening of *conn*."""
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
        """Send COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            conn._seen_want(None, bool)
            conn._execute_command(_mysql_reset.COM_RESET_CONNECTION, b"")
            conn._read_ok_packet()
            database = self.target.database or conn.db
            if database and _mysql_reset.may_have_moved(left):
                conn.select_db(database)
            conn.query(opening)
            exchange.untouch(conn, exchange.DATABASE | exchange.CHARSET)

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number, or None once PyMySQL has dropped it."""
        sock = conn._sock
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state in the last OK or EOF packet. None after an error, in the middle of an
        exchange, or once the connection is closed.
        """
        return None if conn._sock is None else exchange.in_transaction(conn)

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether the last command was answered in full."""
        return conn._sock is not None and exchange.is_quiet(conn)

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` ended it. PyMySQL drops lost connections without a note."""
        return conn._sock is None and bool(getattr(conn, "_closed", False))

    def is_streaming(self, conn: Connection) -> bool:
        """Return whether only rows or results that the application did not fetch are unread."""
        return conn._sock is not None and exchange.is_half_read(conn)

    def drain(self, conn: Connection) -> None:
        """Read those rows and results."""
        conn._seen_drain()

    def traits(self, conn: Connection) -> tuple[Any, ...]:
        """Return the server's status (autocommit, how strings are quoted), and the attributes that
        PyMySQL keeps on the connection.
        """
        return exchange.adopt(conn, _KEPT, ("encoders", "decoders")), *(
            getattr(conn, name) for name in _COMPARED
        )

    def has_traits(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """Compare :meth:`traits`, by one comparison. False if the status is not known."""
        return traits == (
            exchange.settled(conn),
            conn.cursorclass,
            conn.encoding,
            conn.use_unicode,
            conn.encoders,
            conn.decoders,
        )

    def is_clean(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """Return whether *conn* is clean, by one comparison.

        The status is only known if every command was answered in full.
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
        """Restore the attributes, then autocommit and the character set, or else the database."""
        conn._seen_want(None, bool)
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

    def session_id(self, conn: Connection) -> str | None:
        """Return CONNECTION_ID(), from the handshake."""
        return str(conn.server_thread_id[0]) if hasattr(conn, "server_thread_id") else None

    def watch(self, conn: Connection) -> None:
        """Report everything that is sent through ``_execute_command``."""
        conn.__class__ = watched(type(conn))


def _arguments(target: Target) -> dict[str, Any]:
    out = _mysql.arguments(target, _OPTIONS, NAME, password="password", database="database")
    if {"ssl_verify_cert", "ssl_verify_identity", "ssl_key_password"} & set(out):
        _mysql.refuse(
            out,
            {"ssl_capath", "ssl_cipher", "ssl_check_hostname"},
            "PyMySQL does not accept it together with ssl_verify_*",
        )
        return out
    tls = _mysql.take_tls(out)
    return {**out, "ssl": tls} if tls else out


@cache
def _plain_cursor() -> Any:
    from pymysql.cursors import Cursor

    return Cursor


@cache
def _with_shared_tls(base: Any) -> Any:
    """Return a subclass of *base* that shares TLS contexts between equal options: see _tls.py."""

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
