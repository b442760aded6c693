"""aiomysql: PyMySQL's protocol for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from unbroken.abc import Connection, Target
from unbroken.drivers import _mysql, _tls
from unbroken.drivers._mysql_async import Answer, Shared, reporting
from unbroken.drivers._shared import class_of, dial_async, without_target

NAME = "aiomysql"
SCHEMES = ("mysql+aiomysql", "mariadb+aiomysql")
DISTRIBUTION = "aiomysql"
MODULE = "aiomysql"
RANK = 30

_OPTIONS: _mysql.Kinds = {**_mysql.COMMON, **_mysql.TLS, "auth_plugin": str, "program_name": str, "server_public_key": str.encode}


class AsyncDriver(Shared):
    """See :class:`unbroken.abc.AsyncDriver`. Connections are aiomysql's, of a subclass that keeps the server's status."""

    name = NAME

    def __init__(self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None) -> None:
        import aiomysql
        import aiomysql.connection
        import pymysql

        self.target = target or without_target(NAME, "mysql")
        self.errors: tuple[type[BaseException], ...] = (pymysql.err.OperationalError, pymysql.err.InterfaceError, pymysql.err.Error)
        self._base: type[BaseException] = pymysql.err.Error
        self._connect = connect
        self._arguments = _mysql.arguments(self.target, _OPTIONS, NAME, password="password", database="db")  # noqa: S106 - a keyword's name
        self._tls = _mysql.take_tls(self._arguments)
        # aiomysql wants a context; PyMySQL knows how to make one of these options
        self._make_context: Any = pymysql.connections.Connection._create_ssl_ctx
        base: Any = aiomysql.connection.Connection
        self._class = exact(base)

    async def connect(self, timeout: float) -> Connection:
        """*timeout* bounds everything, the handshake included."""
        return await dial_async(lambda: self._dial(min(timeout, self._arguments.get("connect_timeout", timeout))))

    async def _dial(self, timeout: float) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                conn = await self._connect()
                conn.__class__ = exact(class_of(conn))
                return conn
            conn = self._class(**self._arguments, **self._with_tls())
            try:
                await conn._connect()
            except BaseException:
                self.close(conn)  # aiomysql leaves the socket open when it is cancelled here
                raise
            return conn

    def _with_tls(self) -> dict[str, Any]:
        tls = self._tls
        if not tls:
            return {}
        files = [tls.get(name) for name in ("ca", "capath", "cert", "key")]
        return {"ssl": _tls.shared(("aiomysql", repr(sorted(tls.items()))), files, lambda: self._make_context(None, tls))}

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        try:
            writer, conn._writer, conn._reader = conn._writer, None, None
            if writer is not None:
                writer.transport.abort()
        except Exception:  # its loop is closed already
            pass

    def fileno(self, conn: Connection) -> int | None:
        """Of the transport's socket; None once it is closing."""
        writer = conn._writer
        if writer is None or writer.transport.is_closing():
            return None
        sock = writer.transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        return conn._writer is not None and _mysql.is_quiet(conn)


@cache
def exact(base: Any) -> Any:
    """*base*, an aiomysql connection class, plus exact knowledge of the server's status; *base* itself if it has that."""
    if getattr(base, "_keeps_status", False):
        return base
    from aiomysql.connection import MySQLResult

    result_class = _mysql.exact_result(MySQLResult)

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True

        async def _execute_command(self, command: int, sql: Any) -> None:
            await super()._execute_command(command, sql)  # reads what is left of an unbuffered result first
            self._seen_status, self._seen_busy = None, True

        async def _read_ok_packet(self) -> Any:
            with Answer(self, self.Error, _is_open):
                ok = await super()._read_ok_packet()
            self._seen_status = self.server_status
            return ok

        async def _read_query_result(self, unbuffered: bool = False) -> None:
            # As aiomysql's own, with our result class
            self._result = None
            result = result_class(self)
            with Answer(self, self.Error, _is_open):
                try:
                    await (result.init_unbuffered_query() if unbuffered else result.read())
                except BaseException:
                    result.unbuffered_active, result.connection = False, None
                    raise
            self._result = result
            self._affected_rows = result.affected_rows
            if result.server_status is not None:
                self.server_status = result.server_status

        async def show_warnings(self) -> Any:
            with Answer(self, self.Error, _is_open):
                return await super().show_warnings()

        async def set_charset(self, charset: str) -> None:
            with Answer(self, self.Error, _is_open):
                await super().set_charset(charset)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _is_open(conn: Any) -> bool:
    return conn._writer is not None


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends. ``unwatched`` is the class to go back to."""
    return base if hasattr(base, "unwatched") else reporting(exact(base))


AsyncDriver._watched = watched
