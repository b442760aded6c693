"""asyncmy: PyMySQL's protocol for asyncio, compiled."""

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
from unbroken.drivers._shared import boolean, seconds, whole, without_target

NAME = "asyncmy"
SCHEMES = ("mysql+asyncmy", "mariadb+asyncmy")
DISTRIBUTION = "asyncmy"
MODULE = "asyncmy"
TESTED = ">=0.2.18,<0.3"
RANK = 20  # faster than aiomysql

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "max_allowed_packet": whole,
    "binary_prefix": boolean, "program_name": str, "server_public_key": str.encode,
    "stmt_cache_size": whole, "echo": boolean,
}  # fmt: skip

_CLOSE = 25  # COM_STMT_CLOSE
_BINARY = (
    22,
    23,
    250,
    # COM_STMT_PREPARE, COM_STMT_EXECUTE and MariaDB's COM_STMT_BULK_EXECUTE: their answers are read
    # in another way
)

_CONNECTION, _RESULT = "asyncmy.connection:Connection", "asyncmy.connection:MySQLResult"
# compiled: the code of the functions cannot be examined, so only the trial can test them
_SEAMS = (
    *(
        Seam(_CONNECTION, name)
        for name in (
            "_connected",
            "_loop",
            "_transport",
            "_result",
            "_affected_rows",
            "_encoding",
            "server_status",
        )
    ),
    *(
        Seam(_CONNECTION, name)
        for name in (
            "_cursor_cls",
            "_deprecate_eof",
            "_request_authentication",
            "ensure_closed",
            "close",
        )
    ),
    Seam(_CONNECTION, "_execute_command", ("self", "command", "sql")),
    Seam(_CONNECTION, "_next_seq_id"),
    Seam(_CONNECTION, "_write_bytes", ("self", "data")),
    Seam(_CONNECTION, "write_packet", ("self", "payload")),
    Seam(_CONNECTION, "_read_ok_packet", ("self",)),
    Seam(_CONNECTION, "read_packet", ("self", ...)),
    Seam(_CONNECTION, "_read_query_result", ("self", "unbuffered")),
    Seam(_CONNECTION, "next_result", ("self", ...)),
    Seam(_CONNECTION, "query", ("self", "sql", ...)),
    Seam(_CONNECTION, "set_charset", ("self", "charset")),
    *(
        Seam(_CONNECTION, name)
        for name in ("connect", "begin", "commit", "rollback", "select_db", "ping", "show_warnings")
    ),
    *(
        Seam(_RESULT, name)
        for name in (
            "connection",
            "has_next",
            "unbuffered_active",
            "server_status",
            "affected_rows",
            "field_count",
        )
    ),
    Seam(_RESULT, "read", ("self",)),
    Seam(_RESULT, "init_unbuffered_query", ("self",)),
    Seam(_RESULT, "_check_packet_is_eof", ("self", "packet")),
    Seam(_RESULT, "_read_load_local_packet", ("self", "first_packet")),
    Seam(_RESULT, "_read_rowdata_packet_unbuffered", ("self",)),
    Seam(_RESULT, "_finish_unbuffered_query", ("self",)),
    Seam("asyncmy.errors", "raise_mysql_exception"),
    Seam("asyncmy.cursors:Cursor", "_query"),
)


class AsyncDriver(Shared):
    """The asyncio driver for asyncmy; its methods are described in
    :class:`unbroken.abc.AsyncDriver`.

    Connections are asyncmy's, of a subclass that keeps the server's status.
    """

    name = NAME
    seams = _SEAMS
    _names = ("password", "unix_socket")
    sends_latin = True
    _compared = ("_cursor_cls", "_encoding", "_use_unicode", "_encoders", "_decoders")
    _tables = ("_decoders",)  # it takes only a plain dictionary of encoders

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        import asyncmy.charset
        import asyncmy.connection
        import asyncmy.errors

        self.check_seams()
        self.target = target or without_target(NAME, "mysql")
        errors: Any = asyncmy.errors
        self.errors: tuple[type[BaseException], ...] = (
            errors.OperationalError,
            errors.InterfaceError,
            errors.Error,
        )
        self._base: type[BaseException] = errors.MySQLError
        self._charsets = asyncmy.charset.charset_by_name
        self._connect = connect
        self._arguments = _mysql.arguments(
            self.target,
            _OPTIONS,
            NAME,
            password="password",
            database="database",
        )
        self._tls = _mysql.take_tls(self._arguments)
        base: Any = asyncmy.connection.Connection
        self._class = exact(base) if self.is_known else base

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return await self.adopt(await self.own(login))
            conn = self._class(**self.aimed(login), **self._with_tls())
            try:
                await conn.connect()
            except BaseException:
                self.close(conn)
                raise
            return conn

    @staticmethod
    def _is_open(conn: Connection) -> bool:
        return bool(conn._connected)

    def has_traits(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """Return the same as comparing :meth:`traits`, by one comparison. False if the status is
        not known.
        """
        return traits == (
            exchange.settled(conn),
            conn._cursor_cls,
            conn._encoding,
            conn._use_unicode,
            conn._encoders,
            conn._decoders,
        )

    def is_clean(self, conn: Connection, traits: tuple[Any, ...]) -> bool:
        """Return whether *conn* is clean, by one comparison.

        The status is only known if every command was answered in full.
        """
        seen = (
            conn._seen_status,
            conn._cursor_cls,
            conn._encoding,
            conn._use_unicode,
            conn._encoders,
            conn._decoders,
        )
        return seen == traits and bool(conn._connected) and not conn._transport.is_closing()


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, an asyncmy connection class, that follows its exchange exactly.
    Return *base* itself if it already does.
    """
    if getattr(base, "_keeps_status", False):
        return base
    from asyncmy.connection import MySQLResult

    plain = _mysql_async_connection.exact(base, MySQLResult, _status_after, AsyncDriver._is_open)
    if not hasattr(base, "prepare"):  # before 0.2.12
        return plain

    class Connection(plain):  # type: ignore[misc, valid-type] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        async def _execute_command(self, command: int, sql: Any) -> None:
            if command == _CLOSE and self._seen_due:
                await self._seen_take()
            status = self._seen_status
            await super()._execute_command(command, sql)
            if command == _CLOSE:  # it is not answered
                exchange.ended(self, status)
            elif command in _BINARY:
                self._seen_busy = exchange.BUSY

        async def prepare(self, query: Any) -> Any:
            try:
                statement = await super().prepare(query)
            except BaseException as error:
                exchange.failed(self, error)
                raise
            cls: Any = type(statement)
            statement.__class__ = _following(cls)
            exchange.ended(self, None)
            return statement

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


@cache
def _following(base: Any) -> Any:
    """Return a subclass of *base*, a class of prepared statements, that tells its connection when
    the answer was read to its end.
    """

    class Statement(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        async def execute(self, args: Any = ()) -> Any:
            return await self._followed(super().execute(args))

        async def execute_bulk(self, rows: Any) -> Any:
            return await self._followed(super().execute_bulk(rows))

        async def _followed(self, running: Awaitable[Any]) -> Any:
            conn = self._connection
            try:
                result = await running
            except BaseException as error:
                if conn is not None:
                    exchange.failed(conn, error)
                raise
            exchange.ended(conn, _status_after(conn, result))
            return result

    Statement.__name__ = Statement.__qualname__ = base.__name__
    return Statement


def _status_after(conn: Any, result: Any) -> int | None:
    """Return the server's status after *result*.

    If results end without one, asyncmy has 0 in its place.
    """
    if (
        not conn._deprecate_eof
        and result.field_count
        and getattr(result, "eof_status", None) is None
    ):
        return None
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
