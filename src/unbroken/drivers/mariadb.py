"""MariaDB Connector/Python: the C client library. It exposes its socket and the server's status,
which is wrong after an error.

``conn.socket`` is never used. Python would own the descriptor and close it, even if another file
has it by then. There is no timeout per call: a ping is bounded only by the pool's ``shutdown()`` on
the descriptor (or a user's own ``read_timeout``). Its connect timeout is whole seconds: others are
rounded up. The library always uses utf8mb4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from unbroken.abc import Capabilities, Connection, Login, Target
from unbroken.drivers import _mysql, _mysql_reset
from unbroken.drivers._mariadb_connection import (
    DOUBTFUL,
    exact,
    status_of,
    texts_of,
    watched,
)
from unbroken.drivers._mysql_ahead import Ahead
from unbroken.drivers._mysql_driver import Blocking, by_attribute, unheard
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import (
    boolean,
    class_of,
    dial,
    optional_boolean,
    seconds,
    whole,
    without_target,
)
from unbroken.ledger.residue import Left

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
    *(Seam(_CONNECTION, name) for name in (*DOUBTFUL, "ping", "close", "autocommit", "cursor")),
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
    Seam(_CURSOR, "execute", None, ("_execute_text", "_readresponse", "_execute_binary")),
    Seam(_CURSOR, "executemany", None, ("connection", "_last_executed_statement", "_execute_bulk")),
    *(
        Seam(_CURSOR, name)
        for name in (
            "_execute_text",
            "_readresponse",
            "_execute_binary",
            "_execute_bulk",
            "nextset",
            "close",
            "connection",
        )
    ),
    *(Seam(_CURSOR, name) for name in ("buffered", "field_count", "statement")),
)


class Driver(Ahead, Blocking):
    """The blocking driver for mariadb; its methods are described in :class:`unbroken.abc.Driver`.

    Connections are the library's, of a subclass that knows when the status is wrong.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS
    _names = ("password", "unix_socket")

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
            del self._arguments["autocommit"]  # the library has no way to keep the server's default
        self.check_seams()
        base: Any = mariadb.connections.Connection
        self._class = exact(base) if self.is_known else base

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. The client library bounds the TCP connect and the handshake with
        *timeout*, in whole seconds.
        """
        return dial(lambda: self._dial(timeout, login))

    def _dial(self, timeout: float, login: Login | None) -> Connection:
        if self._connect is not None:
            return self.adopt(self.own(login))
        timeout = min(timeout, self._arguments.get("connect_timeout", timeout))
        return self._class(**{**self.aimed(login), "connect_timeout": math.ceil(timeout)})

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = exact(class_of(conn))
            # the caller handed it over as usable
            conn.__dict__.setdefault("_seen_busy", False)
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:  # noqa: ARG002 - as the protocol has it
        """Send COM_PING. This driver cannot enforce *timeout*; see the module's docstring."""
        conn.ping()

    def may_leave(self, conn: Connection) -> bool:
        """Return whether the answer to a COMMIT or ROLLBACK that is sent now holds nothing new, so
        that it can be read later. A library that reconnects by itself would wait for an answer that
        never comes.
        """
        return (
            super().may_leave(conn)
            and not conn.auto_reconnect
            and not getattr(conn, "tpc_state", 0)
        )

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        conn._seen_leave(sql)

    def texts(self, conn: Connection) -> Sequence[str | bytes | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        return texts_of(conn)

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return conn._seen_due is not None and self.fileno(conn) is not None

    def take_answer(self, conn: Connection, timeout: float) -> bool:  # noqa: ARG002 - as for ping
        """Read that answer, if it was not read yet. Returns whether it did."""
        if not self.owes_answer(conn):
            return False
        conn._seen_settle()
        return True

    def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        conn.begin()

    def close(self, conn: Connection) -> None:
        """Send COM_QUIT and close; the library does not wait for an answer."""
        try:
            conn.close()  # a connection that is out of step only loses its socket: see exact()
        except Exception:  # closed before
            pass

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        cursor = conn.cursor()
        cursor.execute(_mysql.ASK_IDLE_LIMIT)
        (value,) = cursor.fetchone()
        cursor.close()
        if not held:
            self.rollback(conn)
        return float(value)

    def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings that *conn* had when it was opened."""
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
        """Send COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            conn.reset()
            database = self.target.database
            with conn.cursor() as cursor:
                if _mysql_reset.may_have_moved(left):
                    if database is None:
                        raise conn.OperationalError("the connection's database is unknown")
                    cursor.execute(f"USE {_quoted(database)}")
                cursor.execute(opening)
            conn.rollback()

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number; the library still owns it. None once it was lost or
        closed.
        """
        try:
            fd: int = conn._get_socket()
        except Exception:
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state in the last OK or EOF packet. None after an error, or in the middle of
        an exchange.
        """
        return (
            bool(status_of(conn) & _mysql.IN_TRANSACTION)
            if self.is_quiet(conn) and not conn.__dict__.get("_seen_failed", True)
            else None
        )

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether the last statement was answered in full, and its rows were read."""
        state = conn.__dict__
        return self.fileno(conn) is not None and not (
            state.get("_seen_busy", True) or state.get("_seen_rows")
        )

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` was called."""
        return bool(conn.__dict__.get("_seen_closed"))

    def traits(self, conn: Connection) -> tuple[Any, ...] | None:
        """Return autocommit from the server's status, whether the connection was moved, the
        converter, and the settings that a reconnect would apply by itself.
        """
        try:
            moved = conn.__dict__.get("_seen_moved", 0)
            return status_of(conn) & _mysql.AUTOCOMMIT, moved, conn._converter, conn.auto_reconnect
        except Exception:  # closed
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* is quiet, has nothing open by the server's last status, and is as
        it was opened.
        """
        return (
            self.is_in_transaction(conn) is False
            and traits is not None
            and self.traits(conn) == traits
        )

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the attributes, then autocommit or the database."""
        now, database = self.traits(conn), self.target.database
        if (
            traits is None
            or now is None
            or (now[0] != traits[0] and now[1] != traits[1])
            or now[1] == _mysql.ANOTHER_USER
            or (now[1] != traits[1] and database is None)
            or self.is_in_transaction(conn) is not False
        ):
            raise conn.InterfaceError("the connection's opening state cannot be restored")
        autocommit, moved, conn._converter, conn.auto_reconnect = traits
        conn.autocommit = bool(autocommit)
        if now[1] != moved and database is not None:
            conn.select_db(_quoted(database))
            conn.__dict__["_seen_moved"] = moved

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return the common calls, and autocommit."""
        return {**super().public_calls(), **by_attribute(self)}

    def session_id(self, conn: Connection) -> str | None:
        """Return CONNECTION_ID(), from the handshake."""
        try:
            return str(conn.connection_id)
        except Exception:  # closed
            return None

    def watch(self, conn: Connection) -> None:
        """Report statements of cursors when ``_last_executed_statement`` is set, and the rest when
        it is sent through ``_execute_command``.
        """
        conn.__class__ = watched(type(conn))


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
