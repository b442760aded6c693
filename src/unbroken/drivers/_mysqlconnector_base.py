"""The common part of mysql-connector's blocking and asyncio drivers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Target
from unbroken.backends.system import os_fault
from unbroken.drivers import _mysql, _mysql_reset
from unbroken.drivers import _mysqlconnector_exchange as exchange
from unbroken.drivers._login import Logins
from unbroken.drivers._mysql_ahead import Ahead
from unbroken.drivers._mysqlconnector_due import texts_of
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import (
    boolean,
    from_connect,
    optional_boolean,
    seconds,
    whole,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.messages.configuration import OPTION_HAS_NO_PLACE

_OPTIONS: _mysql.Kinds = {
    "allow_local_infile": boolean, "auth_plugin": str, "autocommit": optional_boolean,
    "buffered": boolean, "charset": str, "client_flags": whole, "collation": str,
    "compress": boolean, "connect_timeout": seconds, "connection_timeout": seconds,
    "consume_results": boolean, "converter_str_fallback": boolean, "force_ipv6": boolean,
    "get_warnings": boolean, "init_command": str, "raise_on_warnings": boolean,
    "read_timeout": seconds, "sql_mode": str, "ssl_ca": str, "ssl_cert": str,
    "ssl_disabled": boolean, "ssl_key": str, "ssl_verify_cert": boolean,
    "ssl_verify_identity": boolean, "time_zone": str, "use_pure": boolean, "use_unicode": boolean,
    "write_timeout": seconds,
}  # fmt: skip


#: A holder's possible changes to a connection object: attributes that only the object has, and its
#: time limits (which a ping changes too) …
_PLAIN_TRAITS = (
    "_raw",
    "_buffered",
    "_get_warnings",
    "_raise_on_warnings",
    "_consume_results",
    "_converter_class",
    "converter",
    "_sql_mode",
)


_LIMITS = ("_read_timeout", "_write_timeout")


#: … and attributes that the session has, too.
TRAITS = (*_PLAIN_TRAITS, *_LIMITS, "charset_id", "_use_unicode", "_seen_moved")


_CONNECTOR = "mysql.connector.connection:MySQLConnection"


_ASYNC = "mysql.connector.aio.connection:MySQLConnection"


def _shared_seams(owner: str, network: str, receives: str) -> tuple[Seam, ...]:
    """Return the seams of the pure Python form and of the asyncio form."""
    return (
        Seam(
            owner,
            "__init__",
            None,
            (
                "_socket",
                "_have_next_result",
                "_handshake",
                "_use_unicode",
                "_database",
                "_converter_class",
            ),
        ),
        Seam(owner, "__init__", None, ("_raw", "_get_warnings", "_buffered", "_unread_result")),
        Seam(
            owner,
            "_send_cmd",
            ("self", "command", ...),
            ("_socket", "_read_timeout", "_write_timeout"),
        ),
        Seam(owner, "_handle_server_status", ("self", "flags"), ("_have_next_result",)),
        Seam(
            owner,
            "_handle_ok",
            ("self", "packet"),
            ("_handle_server_status", "_protocol", "parse_ok"),
        ),
        Seam(owner, "_handle_eof", ("self", "packet"), ("_handle_server_status",)),
        Seam(
            owner,
            "_handle_result",
            ("self", "packet", ...),
            ("_handle_ok", "_handle_eof", "_socket", receives, "unread_result"),
        ),
        Seam(
            owner,
            "_handle_binary_result",
            ("self", "packet", ...),
            ("_handle_ok", "_handle_eof", "_socket", receives),
        ),
        Seam(
            owner,
            "get_rows",
            ("self", ...),
            ("_handle_server_status", "_socket", "unread_result", "converter"),
        ),
        Seam(owner, "cmd_statistics", ("self",), ("_socket", receives)),
        Seam(owner, "cmd_change_user", None, ("_socket", "_handle_ok")),
        Seam(
            owner,
            "cmd_query_iter",
            ("self", "statements", ...),
            ("_send_cmd", "_handle_result", "_have_next_result", "_client_flags"),
        ),
        Seam(owner, "cmd_query_iter", None, ("_socket", receives)),
        Seam(owner, "cmd_stmt_fetch", None, ("_send_cmd", "unread_result")),
        Seam(owner, "cmd_stmt_prepare", None, ("_send_cmd", "_handle_eof", "_socket", receives)),
        Seam(owner, "cmd_ping", ("self",), ("_send_cmd", "_handle_ok")),
        Seam(owner, "cmd_reset_connection", ("self",), ("_send_cmd", "_handle_ok")),
        Seam(owner, "cmd_init_db", ("self", "database"), ("_send_cmd", "_handle_ok")),
        *(Seam(owner, name, ("self",), ("_execute_query",)) for name in ("commit", "rollback")),
        *(
            Seam(owner, name)
            for name in (
                "cmd_query",
                "cmd_stmt_execute",
                "info_query",
                "connection_id",
                "close",
                "charset_id",
            )
        ),
        *(Seam(owner, name) for name in ("handle_unread_result", "unread_result", "disconnect")),
        Seam(network, "build_ssl_context"),
    )


_PURE_SEAMS = (
    *_shared_seams(_CONNECTOR, "mysql.connector.network:MySQLSocket", "recv"),
    Seam(
        _CONNECTOR,
        "_open_connection",
        ("self",),
        ("_socket", "sock", "close_connection", "open_connection"),
    ),
    Seam(_CONNECTOR, "close", ("self",), ("_socket", "_handshake", "close_connection")),
    Seam(_CONNECTOR, "cursor", None, ("is_connected",)),
    Seam(_CONNECTOR, "is_connected", ("self",), ("cmd_ping",)),
    Seam(
        "mysql.connector.abstracts:MySQLConnectionAbstract", "connect", None, ("_open_connection",)
    ),
    Seam(
        "mysql.connector.abstracts:MySQLConnectionAbstract",
        "__init__",
        None,
        ("_connection_timeout", "_consume_results"),
    ),
    Seam(
        "mysql.connector.abstracts:MySQLConnectionAbstract",
        "__init__",
        None,
        ("_raise_on_warnings", "_read_timeout", "_write_timeout"),
    ),
    Seam("mysql.connector.network:MySQLSocket", "close_connection", ("self",), ("sock",)),
)


_ASYNC_SEAMS = (
    *_shared_seams(_ASYNC, "mysql.connector.aio.network:MySQLSocket", "read"),
    Seam(_ASYNC, "connect", ("self",), ("_socket", "_writer", "open_connection")),
    Seam(_ASYNC, "shutdown", ("self",), ("_socket",)),
    Seam("mysql.connector.aio.network:MySQLSocket", "__init__", None, ("_writer", "_is_connected")),
    Seam("mysql.connector.aio.network:MySQLSocket", "is_connected"),
    Seam(
        "mysql.connector.aio.abstracts:MySQLConnectionAbstract",
        "__init__",
        None,
        ("_ssl_ca", "_consume_results", "_read_timeout"),
    ),
)


_SEEN = Capabilities(transaction_status=True, watchable=True)


NO_C = (
    "mysql-connector-python's C extension hides its socket, and whether an answer is outstanding,"
    " so its connections cannot be pooled safely; {remedy} (mysqlclient is even faster)"
)


class Base(Ahead, Logins):
    """The common part of the blocking and the asyncio driver."""

    name = "mysqlconnector"
    capabilities = _SEEN
    _names = ("password", "unix_socket")

    def __init__(self, target: Target | None, connect: Callable[[], Any] | None = None) -> None:
        import mysql.connector.errors as errors

        self._connect = connect
        self.target = target or without_target(self.name, "mysql")
        self.errors: tuple[type[BaseException], ...] = (
            errors.OperationalError,
            errors.InterfaceError,
            errors.Error,
        )
        self._timeouts = (
            errors.ReadTimeoutError,
            errors.WriteTimeoutError,
            errors.ConnectionTimeoutError,
        )
        self._arguments = _mysql.arguments(
            self.target,
            _OPTIONS,
            self.name,
            password="password",
            database="database",
        )
        if not self._arguments.pop("use_pure", True):
            raise ConfigurationError(
                OPTION_HAS_NO_PLACE("use_pure=false: " + NO_C.format(remedy="remove the option"))
            )
        limits = [
            self._arguments.pop(name)
            for name in ("connect_timeout", "connection_timeout")
            if name in self._arguments
        ]
        self._limit: float | None = min(limits, default=None)
        for name in ("read_timeout", "write_timeout"):
            if name in self._arguments:
                # it takes whole seconds only
                self._arguments[name] = math.ceil(self._arguments[name])
        if self._arguments.get("autocommit", False) is None:
            del self._arguments["autocommit"]
        if "ssl_ca" in self._arguments:
            # without verification, a given CA would have no effect
            self._arguments.setdefault("ssl_verify_cert", True)

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state in the last OK or EOF packet. None after an error, or in the middle of
        an exchange.
        """
        status = self._status(conn)
        return None if status is None else bool(status & _mysql.IN_TRANSACTION)

    def had_autocommit(self, conn: Connection) -> bool | None:
        """Return whether autocommit was on at the server's last answer, also once *conn* is lost;
        None if unknown. The connector's own ``autocommit`` asks the server.
        """
        had: bool | None = getattr(conn, "_seen_autocommit", None)
        return had

    def _status(self, conn: Connection) -> int | None:
        return exchange.status_of(conn) if self.is_quiet(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether the last command was answered in full."""
        return self.fileno(conn) is not None and exchange.is_quiet(conn)

    def texts(self, conn: Connection) -> Sequence[bytes | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        return texts_of(conn)

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether the answer to a COMMIT or ROLLBACK was not read yet."""
        return conn._seen_due is not None and self.fileno(conn) is not None

    def is_streaming(self, conn: Connection) -> bool:
        """Return whether only rows or results that the application did not fetch are unread."""
        return self.fileno(conn) is not None and exchange.is_half_read(conn)

    def was_closed(self, conn: Connection) -> bool:
        """Return whether ``close()`` was called."""
        return bool(conn.__dict__.get("_seen_closed", False))

    def traits(self, conn: Connection) -> tuple[Any, ...] | None:
        """Return autocommit from the server's status, and the attributes that the connector keeps
        on the connection.
        """
        status = self._status(conn)
        if status is None:
            return None
        return (status & _mysql.AUTOCOMMIT, *(getattr(conn, name, None) for name in TRAITS))

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return whether *conn* is quiet, has nothing open by the server's last status, and is as
        it was opened.
        """
        if self.is_in_transaction(conn) is not False:
            return False
        return bool(self.traits(conn) == traits)

    def _to_restore(self, conn: Connection, traits: Any) -> tuple[str, Any] | None:
        """Restore everything that needs no round trip.

        Returns the method, with its argument, that restores the rest. Raises if one round trip is
        not enough.
        """
        now = self.traits(conn)
        if now is None or traits is None or self.is_in_transaction(conn) is not False:
            raise self.errors[0]("the connection's opening state cannot be restored")
        before = dict(zip(TRAITS, traits[1:], strict=True))
        changed = {
            name for name, is_now in zip(TRAITS, now[1:], strict=True) if is_now != before[name]
        }
        for name in changed & {*_PLAIN_TRAITS, *_LIMITS}:
            setattr(conn, name, before[name])
        if "_use_unicode" in changed:
            # older versions have no setter
            name = "use_unicode" if hasattr(type(conn), "use_unicode") else "_use_unicode"
            setattr(conn, name, before["_use_unicode"])
        calls: list[tuple[str, Any]] = []
        if now[0] != traits[0]:
            calls.append(("cmd_query", f"SET autocommit = {int(bool(traits[0]))}"))
        if "charset_id" in changed:
            calls.append(("set_charset_collation", before["charset_id"]))
        if "_seen_moved" in changed:
            calls.append(("cmd_init_db", self._database()))
        if len(calls) > 1 or conn.__dict__.get("_seen_moved") == _mysql.ANOTHER_USER:
            raise self.errors[0](
                "the connection's opening state cannot be restored: more than one setting was"
                " changed, or its user"
            )
        return calls[0] if calls else None

    def _sets_nothing_else(self) -> bool:
        driver: Any = self
        return bool(
            _mysql_reset.sets_nothing_else(self._arguments)
            if self._connect is None
            else driver.sets_only
        )

    def _database(self) -> str:
        if self.target.database is None:
            raise self.errors[0]("the connection's database is unknown")
        return self.target.database

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's number, or None once it is closed."""
        raise NotImplementedError

    def _check_in_step(self, conn: Connection) -> None:
        """Raise if an answer is still to come. The connector would take it for that of the next
        command.
        """
        if self.fileno(conn) is None or conn.__dict__.get("_seen_busy", True):
            raise self.errors[0](
                "MySQL Connection not available: it is closed, or an answer was not read"
            )

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error by MySQL's code, or the system's."""
        connecting = from_connect(exc)
        if isinstance(exc, self._timeouts):
            # its number is that of a statement that took too long on the server
            fault = os_fault(
                TimeoutError("the server did not answer in time"), connecting=connecting
            )
            return (
                fault
                if fault.cause or connecting
                else replace(fault, kind=FaultKind.LOST, cause=Cause.SILENT_DROP)
            )
        return _mysql.classify(exc, self.errors, self.shown)

    def session_id(self, conn: Connection) -> str | None:
        """Return CONNECTION_ID(), from the handshake."""
        try:
            number = conn.connection_id
        except Exception:  # closed
            return None
        return str(number) if number else None
