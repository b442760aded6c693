"""mysql-connector-python, Oracle's: blocking in pure Python, and asyncio.

The library's own default is its C extension, where that loads. It hides its socket and whether an
answer is outstanding, so it is refused by name: deaths would be found by pings, a call on a frozen
server could not be ended, and an exception raised by a signal handler could leave a connection one
answer behind unseen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Target
from unbroken.backends.system import os_fault
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysqlconnector as seen
from unbroken.drivers._mysql_driver import Awaited, Blocking, by_attribute, unheard
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import (
    abort_transport,
    boolean,
    class_of,
    dial,
    dial_async,
    from_connect,
    optional_boolean,
    seconds,
    whole,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.ledger.residue import Left

NAME = "mysqlconnector"
SCHEMES = ("mysql+mysqlconnector", "mariadb+mysqlconnector")
DISTRIBUTION = "mysql-connector-python"
MODULE = "mysql.connector"
TESTED = ">=9.2,<27"
RANK = 50

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
#: What a holder can change on a connection object: what only the object knows, its time limits
#: (which a ping changes too) …
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
#: … and what the session has, too.
_TRAITS = (*_PLAIN_TRAITS, *_LIMITS, "charset_id", "_use_unicode", "_seen_moved")

_CONNECTOR = "mysql.connector.connection:MySQLConnection"
_ASYNC = "mysql.connector.aio.connection:MySQLConnection"


def _shared_seams(owner: str, network: str, receives: str) -> tuple[Seam, ...]:
    """Of the pure Python form and of the asyncio form."""
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
        Seam(owner, "_handle_ok", ("self", "packet"), ("_handle_server_status",)),
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
            ("_send_cmd", "_handle_result", "_have_next_result"),
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

_NO_C = (
    "mysql-connector-python's C extension hides its socket, and whether an answer is outstanding,"
    " so its connections cannot be pooled safely; {remedy} (mysqlclient is quicker still)"
)


class _Base:
    """What the blocking and the asyncio driver have in common."""

    name = NAME
    capabilities = _SEEN

    def __init__(self, target: Target | None, connect: Callable[[], Any] | None = None) -> None:
        import mysql.connector.errors as errors

        self._connect = connect
        self.target = target or without_target(NAME, "mysql")
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
            NAME,
            password="password",
            database="database",
        )
        if not self._arguments.pop("use_pure", True):
            raise ConfigurationError(
                "use_pure=false: " + _NO_C.format(remedy="leave the option out")
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
            # a CA that nothing is held against would be no use
            self._arguments.setdefault("ssl_verify_cert", True)

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK or EOF packet; None after an error, or in the middle of an exchange."""
        status = self._status(conn)
        return None if status is None else bool(status & _mysql.IN_TRANSACTION)

    def _status(self, conn: Connection) -> int | None:
        return seen.status_of(conn) if self.is_quiet(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        return self.fileno(conn) is not None and seen.is_quiet(conn)

    def is_streaming(self, conn: Connection) -> bool:
        """Whether all that is unread are rows or results that the application left."""
        return self.fileno(conn) is not None and seen.is_half_read(conn)

    def was_closed(self, conn: Connection) -> bool:
        """Whether ``close()`` was called."""
        return bool(conn.__dict__.get("_seen_closed", False))

    def traits(self, conn: Connection) -> tuple[Any, ...] | None:
        """Autocommit by the server's status, and what the connector keeps on the connection."""
        status = self._status(conn)
        if status is None:
            return None
        return (status & _mysql.AUTOCOMMIT, *(getattr(conn, name, None) for name in _TRAITS))

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Quiet, nothing open by the server's last status, and as it was opened."""
        if self.is_in_transaction(conn) is not False:
            return False
        return bool(self.traits(conn) == traits)

    def _to_restore(self, conn: Connection, traits: Any) -> tuple[str, Any] | None:
        """Put back what needs no round trip. Gives the method, with its argument, that puts back
        the rest.

        Raises where one round trip is not enough.
        """
        now = self.traits(conn)
        if now is None or traits is None or self.is_in_transaction(conn) is not False:
            raise self.errors[0]("the connection cannot be put back as it was opened")
        before = dict(zip(_TRAITS, traits[1:], strict=True))
        changed = {
            name for name, is_now in zip(_TRAITS, now[1:], strict=True) if is_now != before[name]
        }
        for name in changed & {*_PLAIN_TRAITS, *_LIMITS}:
            setattr(conn, name, before[name])
        if "_use_unicode" in changed:
            # older ones have no setter
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
                "the connection cannot be put back as it was opened: more than one thing was"
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
            raise self.errors[0]("its database is not known")
        return self.target.database

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, or None once it is closed."""
        raise NotImplementedError

    def _check_in_step(self, conn: Connection) -> None:
        """Raise where an answer is still to come: the connector would take it for that of the next
        command.
        """
        if self.fileno(conn) is None or conn.__dict__.get("_seen_busy", True):
            raise self.errors[0](
                "MySQL Connection not available: it is closed, or an answer was not read"
            )

    def classify(self, exc: BaseException) -> Fault:
        """By MySQL's code, or the system's."""
        connecting = from_connect(exc)
        if isinstance(exc, self._timeouts):
            # its number is that of a statement which took too long on the server
            fault = os_fault(
                TimeoutError("the server did not answer in time"), connecting=connecting
            )
            return (
                fault
                if fault.cause or connecting
                else replace(fault, kind=FaultKind.LOST, cause=Cause.SILENT_DROP)
            )
        return _mysql.classify(exc, self.errors, self.target.password)

    def session_id(self, conn: Connection) -> str | None:
        """CONNECTION_ID(), from the handshake."""
        try:
            number = conn.connection_id
        except Exception:  # closed
            return None
        return str(number) if number else None

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))


class Driver(_Base, Blocking):
    """See :class:`unbroken.abc.Driver`."""

    def __init__(
        self, target: Target | None, connect: Callable[[], Connection] | None = None
    ) -> None:
        super().__init__(target, connect)
        from mysql.connector.connection import MySQLConnection

        self.seams = _PURE_SEAMS
        self.check_seams()
        self._class: Any = (
            _with_shared_tls(seen.exact(MySQLConnection)) if self.is_known else MySQLConnection
        )

    def connect(self, timeout: float) -> Connection:
        """*timeout* bounds each wait of the connect; a user's read_timeout holds afterwards."""
        return dial(lambda: self._dial(min(timeout, self._limit or timeout)))

    def _dial(self, timeout: float) -> Connection:
        if self._connect is not None:
            return self.adopt(self._connect())
        if not self.is_known:
            return self._class(**self._arguments, connection_timeout=math.ceil(timeout))
        given = dict(self._arguments)
        kept = given.pop("read_timeout", None), given.pop("write_timeout", None)
        conn = self._class()
        conn._connection_timeout = timeout
        # for the settings that it sends once it is connected
        conn._read_timeout = conn._write_timeout = math.ceil(timeout)
        try:
            conn.connect(**given)
        except BaseException:
            self.close(conn)
            raise
        conn._read_timeout, conn._write_timeout = kept
        conn._seen_moved = 0  # the connect itself may choose the database
        return conn

    def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if hasattr(conn, "_cmysql"):
            raise self.errors[0](
                f"connect= gave {type(conn).__name__}: "
                + _NO_C.format(remedy="connect with use_pure=True")
            )
        if not self.is_known:
            pass
        elif hasattr(conn, "_send_cmd"):
            conn.__class__ = seen.exact(class_of(conn))
            conn.__dict__.setdefault("_seen_busy", False)
            if "_seen_status" not in conn.__dict__:
                # its answer tells the status, which decides what "as it was opened" means
                conn.cmd_ping()
        else:
            raise self.errors[0](
                f"connect= gave {type(conn).__name__}; it must be a plain connection of"
                " mysql.connector, of no pool"
            )
        return conn

    def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING, bounded by the socket's timeout."""
        self._check_in_step(conn)
        kept = conn._read_timeout, conn._write_timeout
        conn._read_timeout = conn._write_timeout = timeout
        try:
            conn.cmd_ping()
        finally:
            conn._read_timeout, conn._write_timeout = kept

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As all, and autocommit."""

        def close(conn: Connection) -> None:
            with suppress(Exception):
                conn.close()

        return {**super().public_calls(), **by_attribute(self), "traits": _nothing, "close": close}

    def begin(self, conn: Connection) -> None:
        """Not needed: MySQL opens a transaction by itself while autocommit is off."""
        conn.start_transaction()

    def commit(self, conn: Connection) -> None:
        """COMMIT, unless the server's last word is that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            conn.commit()

    def rollback(self, conn: Connection) -> None:
        """ROLLBACK, likewise."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            conn.rollback()

    def drain(self, conn: Connection) -> None:
        """Read the rest of what the application left half-read."""
        conn._seen_drain()

    def restore(self, conn: Connection, traits: Any) -> None:
        """Attributes, then autocommit, the character set, or the database."""
        call = self._to_restore(conn, traits)
        if call is not None:
            getattr(conn, call[0])(call[1])
            conn._seen_moved = traits[1 + _TRAITS.index("_seen_moved")]

    def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        value = conn.info_query(_mysql.ASK_IDLE_LIMIT)
        if not held:
            self.rollback(conn)
        return float(next(iter(value.values())) if isinstance(value, dict) else value[0])

    def remember(self, conn: Connection) -> str | None:
        """The statement that sets again what was set when *conn* was opened."""
        if not self._sets_nothing_else():
            return None
        rows = self.ask(conn, _mysql_reset.ASK)
        conn.rollback()
        return _mysql_reset.set_again(rows)

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            seen.reset(conn)
            if _mysql_reset.may_have_moved(left):
                conn.cmd_init_db(self._database())
            conn.cmd_query(opening)

    def close(self, conn: Connection) -> None:
        """COM_QUIT where nothing is outstanding, then close; it does not wait for an answer."""
        with suppress(Exception):
            if not self.is_quiet(conn):
                conn._socket.close_connection()  # it would read the rest of a result first
            else:
                conn.close()

    def fileno(self, conn: Connection) -> int | None:
        """The socket's, or None once it is closed."""
        holder = getattr(conn, "_socket", None)
        sock = holder.sock if holder is not None else None
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through ``_send_cmd``."""
        conn.__class__ = seen.watched(class_of(conn))


class AsyncDriver(_Base, Awaited):
    """See :class:`unbroken.abc.AsyncDriver`."""

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        super().__init__(target, connect)
        from mysql.connector.aio.connection import MySQLConnection

        self.seams = _ASYNC_SEAMS
        self.check_seams()
        self._class: Any = (
            _with_shared_tls(seen.exact_async(MySQLConnection))
            if self.is_known
            else MySQLConnection
        )

    async def connect(self, timeout: float) -> Connection:
        """*timeout* bounds everything, the handshake included."""
        return await dial_async(lambda: self._dial(min(timeout, self._limit or timeout)))

    async def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if not self.is_known:
            return conn
        conn.__class__ = seen.exact_async(class_of(conn))
        conn.__dict__.setdefault("_seen_busy", False)
        if "_seen_status" not in conn.__dict__:
            await conn.cmd_ping()  # as for the blocking one
        return conn

    async def _dial(self, timeout: float) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return await self.adopt(await self._connect())
            conn = self._class(
                **{name: value for name, value in self._arguments.items() if name != "ssl_ca"}
            )
            # its constructor refuses a CA without a client certificate
            conn._ssl_ca = self._arguments.get("ssl_ca")
            if not self.is_known:
                return await _connected(conn)
            try:
                await conn.connect()
            except BaseException as error:
                if not (isinstance(error, TypeError) and _is_without_tls(conn)):
                    self.close(conn)
                    raise
            conn._seen_moved = 0  # the connect itself chooses the database
            return conn

    async def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING."""
        self._check_in_step(conn)
        async with asyncio.timeout(timeout):
            await conn.cmd_ping()

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """As all, and autocommit."""

        async def rollback(conn: Connection) -> None:
            await conn.rollback()
            if self._connect is None:
                await conn.set_autocommit(self._arguments.get("autocommit", False))

        def close(conn: Connection) -> None:
            with suppress(Exception):  # there is no loop any more
                closing = asyncio.get_running_loop().create_task(conn.close())
                _closing.add(closing)
                closing.add_done_callback(_closing.discard)

        return {**super().public_calls(), "rollback": rollback, "traits": _nothing, "close": close}

    async def begin(self, conn: Connection) -> None:
        """Not needed: MySQL opens a transaction by itself while autocommit is off."""
        await conn.cmd_query("START TRANSACTION")  # older ones have no method for it

    async def commit(self, conn: Connection) -> None:
        """COMMIT, unless the server's last word is that nothing is open."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            await conn.commit()

    async def rollback(self, conn: Connection) -> None:
        """ROLLBACK, likewise."""
        if self.is_in_transaction(conn) is not False:
            self._check_in_step(conn)
            await conn.rollback()

    async def drain(self, conn: Connection) -> None:
        """Read the rest of what the application left half-read."""
        await conn._seen_drain()

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Attributes, then autocommit, the character set, or the database."""
        call = self._to_restore(conn, traits)
        if call is not None:
            await getattr(conn, call[0])(call[1])
            conn._seen_moved = traits[1 + _TRAITS.index("_seen_moved")]

    async def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        value = await conn.info_query(_mysql.ASK_IDLE_LIMIT)
        if not held:
            await self.rollback(conn)
        return float(next(iter(value.values())) if isinstance(value, dict) else value[0])

    async def remember(self, conn: Connection) -> str | None:
        """The statement that sets again what was set when *conn* was opened."""
        if not self._sets_nothing_else():
            return None
        rows = await self.ask(conn, _mysql_reset.ASK)
        await conn.rollback()
        return _mysql_reset.set_again(rows)

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            await seen.reset_async(conn)
            if _mysql_reset.may_have_moved(left):
                await conn.cmd_init_db(self._database())
            await conn.cmd_query(opening)

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        with suppress(Exception):  # closed before
            holder, conn._socket = conn._socket, None
            holder._is_connected = False
            abort_transport(holder._writer.transport)

    def fileno(self, conn: Connection) -> int | None:
        """Of the transport's socket; None once it is closing."""
        holder = conn._socket
        writer = holder._writer if holder is not None else None
        if writer is None or writer.transport.is_closing():
            return None
        sock = writer.transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through ``_send_cmd``."""
        conn.__class__ = seen.watched_async(class_of(conn))


#: Connections of a library that is not known close in tasks, which a loop does not hold.
_closing: set[asyncio.Task[None]] = set()


def _nothing(_conn: Connection) -> None:
    """What a holder can change cannot be asked of the library for nothing."""


async def _connected(conn: Any) -> Any:
    """*conn*, connected by what the library documents.

    It fails over a missing cipher, after all else, where there is no TLS.
    """
    try:
        await conn.connect()
    except TypeError:
        if not await conn.is_connected():
            raise
    return conn


def _is_without_tls(conn: Any) -> bool:
    """Whether the server offered no TLS.

    The last thing that a connect does, once all is well, is to fail over its missing cipher.
    """
    holder = conn._socket
    return (
        holder is not None
        and holder._writer is not None
        and holder._writer.get_extra_info("cipher") is None
        and seen.is_quiet(conn)
    )


@cache
def _with_shared_tls(base: Any) -> Any:
    """*base* whose connections of the same TLS options share a context: see _tls.py."""

    class Connection(base):  # type: ignore[misc]
        __doc__ = base.__doc__
        __module__ = base.__module__

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "_socket" and value is not None:
                build = value.build_ssl_context

                def shared(*args: Any, **kwargs: Any) -> Any:
                    files = [
                        *args[:3],
                        *(kwargs.get(option) for option in ("ssl_ca", "ssl_cert", "ssl_key")),
                    ]
                    key = (
                        "mysqlconnector",
                        type(value).__module__,
                        repr((args, sorted(kwargs.items()))),
                    )
                    return _tls.shared(key, files, lambda: build(*args, **kwargs))

                value.build_ssl_context = shared
            super().__setattr__(name, value)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection
