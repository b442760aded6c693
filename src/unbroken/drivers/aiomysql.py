"""aiomysql: PyMySQL's protocol for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from unbroken.abc import Connection, Login, Target
from unbroken.drivers import _mysql, _mysql_async_connection
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._mysql_async import Shared
from unbroken.drivers._seams import Seam
from unbroken.drivers._shared import without_target

NAME = "aiomysql"
SCHEMES = ("mysql+aiomysql", "mariadb+aiomysql")
DISTRIBUTION = "aiomysql"
MODULE = "aiomysql"
TESTED = ">=0.2,<0.4"
RANK = 30

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON,
    **_mysql.TLS,
    "auth_plugin": str,
    "program_name": str,
    "server_public_key": str.encode,
}

_CONNECTION, _RESULT = "aiomysql.connection:Connection", "aiomysql.connection:MySQLResult"
_SEAMS = (
    Seam(
        _CONNECTION,
        "__init__",
        None,
        (
            "_loop",
            "_reader",
            "_writer",
            "_result",
            "_affected_rows",
            "_charset",
            "_db",
            "_encoding",
        ),
    ),
    Seam(_CONNECTION, "__init__", None, ("cursorclass", "use_unicode", "encoders", "decoders")),
    Seam(_CONNECTION, "_connect", ("self",), ("_reader", "_writer", "_request_authentication")),
    Seam(_CONNECTION, "_get_server_information", ("self",), ("server_thread_id",)),
    Seam(_CONNECTION, "_request_authentication", ("self",)),
    Seam(_CONNECTION, "close", ("self",), ("_writer", "transport")),
    Seam(_CONNECTION, "ensure_closed", ("self",), ("_writer",)),
    Seam(
        _CONNECTION,
        "_execute_command",
        ("self", "command", "sql"),
        ("_result", "_write_bytes", "write_packet", "unbuffered_active", "_next_seq_id"),
    ),
    Seam(_CONNECTION, "_write_bytes", ("self", "data"), ("_writer",)),
    Seam(_CONNECTION, "write_packet", ("self", "payload"), ("_write_bytes",)),
    Seam(_CONNECTION, "_read_packet", ("self", ...), ("_result", "raise_for_error")),
    Seam(_CONNECTION, "_read_bytes", ("self", "num_bytes"), ("_reader",)),
    Seam(_CONNECTION, "_read_ok_packet", ("self",), ("_read_packet", "server_status")),
    Seam(
        _CONNECTION,
        "_read_query_result",
        ("self", "unbuffered"),
        ("_result", "init_unbuffered_query", "read", "_affected_rows"),
    ),
    Seam(
        _CONNECTION,
        "query",
        ("self", "sql", "unbuffered"),
        ("_execute_command", "_read_query_result"),
    ),
    Seam(_CONNECTION, "next_result", ("self",), ("_read_query_result",)),
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
        "set_charset",
        ("self", "charset"),
        ("_execute_command", "_read_packet", "_charset", "_encoding"),
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
    Seam(_RESULT, "init_unbuffered_query", ("self",), ("_read_packet", "unbuffered_active")),
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
    Seam(
        "pymysql.protocol:MysqlPacket", "get_all_data", ("self",)
    ),  # of PyMySQL, whose packets these are
    Seam("pymysql.protocol:MysqlPacket", "raise_for_error", ("self",), ("raise_mysql_exception",)),
    Seam("aiomysql.cursors:Cursor", "_query", ("self", "q"), ("query",)),
)


class AsyncDriver(Shared):
    """The asyncio driver for aiomysql; its methods are described in
    :class:`unbroken.abc.AsyncDriver`.

    Connections are aiomysql's, of a subclass that keeps the server's status.
    """

    name = NAME
    seams = _SEAMS
    _names = ("password", "unix_socket")
    sends_latin = True
    _compared = ("cursorclass", "_encoding", "use_unicode", "encoders", "decoders")
    _tables = ("encoders", "decoders")

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        import aiomysql
        import aiomysql.connection
        import pymysql

        self.check_seams()
        self.target = target or without_target(NAME, "mysql")
        self.errors: tuple[type[BaseException], ...] = (
            pymysql.err.OperationalError,
            pymysql.err.InterfaceError,
            pymysql.err.Error,
        )
        self._base: type[BaseException] = pymysql.err.Error
        self._charsets = pymysql.charset.charset_by_name
        self._connect = connect
        self._connect_publicly: Any = aiomysql.connect
        self._arguments = _mysql.arguments(
            self.target,
            _OPTIONS,
            NAME,
            password="password",
            database="db",
        )
        self._tls = _mysql.take_tls(self._arguments)
        base: Any = aiomysql.connection.Connection
        self._class = exact(base) if self.is_known else base

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return await self.adopt(await self.own(login))
            if not self.is_known:
                return await self._connect_publicly(**self.aimed(login), **self._with_tls())
            conn = self._class(**self.aimed(login), **self._with_tls())
            try:
                await conn._connect()
            except BaseException:
                self.close(conn)  # aiomysql leaves the socket open when it is cancelled here
                raise
            return conn

    @staticmethod
    def _is_open(conn: Connection) -> bool:
        return conn._writer is not None

    def has_traits(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """Return the same as comparing :meth:`traits`, by one comparison. False if the status is
        not known.
        """
        return traits == (
            exchange.settled(conn),
            conn.cursorclass,
            conn._encoding,
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
            conn._encoding,
            conn.use_unicode,
            conn.encoders,
            conn.decoders,
        )
        return seen == traits and conn._writer is not None and not conn._writer.is_closing()


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, an aiomysql connection class, that follows its exchange exactly.
    Return *base* itself if it already does.
    """
    if getattr(base, "_keeps_status", False):
        return base
    from aiomysql.connection import MySQLResult

    return _mysql_async_connection.exact(base, MySQLResult, _status_after, AsyncDriver._is_open)


def _status_after(conn: Any, result: Any) -> int | None:  # noqa: ARG001 - as asyncmy's
    return exchange.status_after(result)


def watched(base: Any) -> Any:
    """Return a subclass of *base* that tells the ledger of everything it sends.

    ``unwatched`` is the original class, to restore it.
    """
    return (
        base
        if hasattr(base, "unwatched")
        else _mysql_async_connection.reporting(exact(base), AsyncDriver._is_open)
    )


AsyncDriver._exact = exact
AsyncDriver._watched = watched
