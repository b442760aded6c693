"""PyMySQL: blocking, pure Python. Its socket shows, and with a little help its transaction status is exact."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Connection, Fault, Target
from unbroken.core import unit
from unbroken.core.residue import Left
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers._base import Blocking
from unbroken.drivers._shared import boolean, class_of, dial, seconds, whole, without_target

NAME = "pymysql"
SCHEMES = ("mysql+pymysql", "mariadb+pymysql")
DISTRIBUTION = "pymysql"
MODULE = "pymysql"
RANK = 20  # after mysqlclient, which is faster where it could be built

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "write_timeout": seconds, "bind_address": str, "collation": str,
    "max_allowed_packet": whole, "program_name": str, "ssl_disabled": boolean, "ssl_key_password": str, "ssl_verify_cert": boolean,
    "ssl_verify_identity": boolean, "binary_prefix": boolean,
}  # fmt: skip


class Driver(Blocking):
    """See :class:`unbroken.abc.Driver`. Connections are PyMySQL's, of a subclass that keeps the server's status."""

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)

    def __init__(self, target: Target | None, connect: Callable[[], Connection] | None = None) -> None:
        import pymysql

        self.target = target or without_target(NAME, "mysql")
        # Not pymysql.err: in mysqlclient's place (install_as_MySQLdb) that comes to name a second copy, as MySQLdb.err, of whatever
        # imports MySQLdb.converters, as Django does.
        self.errors: tuple[type[BaseException], ...] = (pymysql.OperationalError, pymysql.InterfaceError, pymysql.Error)
        self._base: type[BaseException] = pymysql.Error
        self._connect = connect
        self._arguments = _arguments(self.target)
        base: Any = pymysql.connections.Connection
        self._class = _with_shared_tls(exact(base))

    def connect(self, timeout: float) -> Connection:
        """*timeout* bounds the TCP connect and each wait of the handshake together; a user's read_timeout holds afterwards."""
        return dial(lambda: self._dial(timeout))

    def _dial(self, timeout: float) -> Connection:
        if self._connect is not None:
            conn = self._connect()
            conn.__class__ = exact(class_of(conn))
            return conn
        return self.open(self._arguments, timeout)

    def open(self, given: Mapping[str, Any], timeout: float) -> Connection:
        """A connection by PyMySQL's own arguments, which may be a framework's; *timeout* bounds the handshake too."""
        timeout = min(timeout, given.get("connect_timeout", timeout))
        conn = self._class(
            **{**given, "connect_timeout": timeout, "read_timeout": timeout, "write_timeout": timeout, "defer_connect": True}
        )
        conn._handshake_until = time.monotonic() + timeout
        conn.connect()
        conn._handshake_until = None
        conn._read_timeout, conn._write_timeout = given.get("read_timeout"), given.get("write_timeout")
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING, bounded by the socket's timeout."""
        kept = conn._read_timeout, conn._write_timeout
        conn._read_timeout = conn._write_timeout = timeout
        try:
            conn.ping(reconnect=False)
        finally:
            conn._read_timeout, conn._write_timeout = kept

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
        if not (_mysql_reset.sets_nothing_else(self._arguments) if self._connect is None else self.sets_only):
            return None
        with conn.cursor(_plain_cursor()) as cursor:
            cursor.execute(_mysql_reset.ASK)
            rows = cursor.fetchall()
        self.rollback(conn)
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        conn._execute_command(_mysql_reset.COM_RESET_CONNECTION, b"")
        conn._read_ok_packet()
        database = self.target.database or conn.db
        if database and _mysql_reset.may_have_moved(left):
            conn.select_db(database)
        conn.query(opening)

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, or None once PyMySQL has let go of it."""
        sock = conn._sock
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK or EOF packet; None after an error, in the middle of an exchange, or once it is closed."""
        return None if conn._sock is None else _mysql.in_transaction(conn)

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        return conn._sock is not None and _mysql.is_quiet(conn)

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
    out = _mysql.arguments(target, _OPTIONS, NAME, password="password", database="database")  # noqa: S106 - a keyword's name
    if {"ssl_verify_cert", "ssl_verify_identity", "ssl_key_password"} & set(out):
        _mysql.refuse(out, {"ssl_capath", "ssl_cipher", "ssl_check_hostname"}, "PyMySQL does not take it together with ssl_verify_*")
        return out
    tls = _mysql.take_tls(out)
    return {**out, "ssl": tls} if tls else out


@cache
def _plain_cursor() -> Any:
    from pymysql.cursors import Cursor

    return Cursor


@cache
def exact(base: Any) -> Any:
    """*base*, a PyMySQL connection class, plus exact knowledge of the server's status; *base* itself if it has that."""
    if getattr(base, "_keeps_status", False):
        return base
    from pymysql.connections import MySQLResult

    result_class = _mysql.exact_result(MySQLResult)

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True
        _handshake_until: float | None = None

        def _request_authentication(self) -> Any:
            if self._handshake_until is not None:  # what is left of the time to connect
                self._read_timeout = max(0.01, self._handshake_until - time.monotonic())
            return super()._request_authentication()

        def _execute_command(self, command: int, sql: Any) -> None:
            super()._execute_command(command, sql)  # reads what is left of an unbuffered result first
            self._seen_status, self._seen_busy = None, True

        def _read_ok_packet(self) -> Any:
            with _Answer(self):
                ok = super()._read_ok_packet()
            self._seen_status = self.server_status
            return ok

        def _read_query_result(self, unbuffered: bool = False) -> Any:
            # As PyMySQL's own, with our result class
            self._result = None
            result = result_class(self)
            with _Answer(self):
                try:
                    result.init_unbuffered_query() if unbuffered else result.read()
                except BaseException:
                    result.unbuffered_active, result.connection = False, None
                    raise
            self._result = result
            if result.server_status is not None:
                self.server_status = result.server_status
            return result.affected_rows

        def show_warnings(self) -> Any:
            with _Answer(self):
                return super().show_warnings()

        def set_character_set(self, *args: Any, **kwargs: Any) -> Any:
            with _Answer(self):
                return super().set_character_set(*args, **kwargs)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


class _Answer:
    """Around the reading of an answer: a server's error ends the exchange as well as its OK does."""

    __slots__ = ("conn",)

    def __init__(self, conn: Any) -> None:
        self.conn = conn

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        conn = self.conn
        alive = conn._sock is not None
        if alive and (error is None or isinstance(error, conn.Error)):
            conn._seen_busy = False
        pending = conn.__dict__.pop("_seen_pending", None)
        if pending is not None:
            _mysql.answered(conn, pending, error, alive)


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
    """*base* that tells the ledger of everything it sends. ``unwatched`` is the class to go back to."""
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
            ledger = unit.current(id(self))
            pending = None
            if ledger is not None and command not in (_mysql.COM_PING, _mysql.COM_INIT_DB):
                pending = _mysql.tell(self, ledger, command, sql)
            super()._execute_command(command, sql)
            if pending is not None:
                self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = base.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
