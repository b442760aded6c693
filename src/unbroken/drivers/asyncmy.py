"""asyncmy: PyMySQL's protocol for asyncio, compiled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from unbroken.abc import Connection, Target
from unbroken.drivers import _mysql, _tls
from unbroken.drivers._mysql_async import Answer, Shared, reporting
from unbroken.drivers._shared import boolean, class_of, dial_async, seconds, whole, without_target

NAME = "asyncmy"
SCHEMES = ("mysql+asyncmy", "mariadb+asyncmy")
DISTRIBUTION = "asyncmy"
MODULE = "asyncmy"
RANK = 20  # faster than aiomysql

_OPTIONS: _mysql.Kinds = {
    **_mysql.COMMON, **_mysql.TLS, "read_timeout": seconds, "max_allowed_packet": whole, "binary_prefix": boolean, "program_name": str,
    "server_public_key": str.encode, "stmt_cache_size": whole, "echo": boolean,
}  # fmt: skip


class AsyncDriver(Shared):
    """See :class:`unbroken.abc.AsyncDriver`. Connections are asyncmy's, of a subclass that keeps the server's status."""

    name = NAME

    def __init__(self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None) -> None:
        import asyncmy.connection
        import asyncmy.errors

        self.target = target or without_target(NAME, "mysql")
        errors: Any = asyncmy.errors
        self.errors: tuple[type[BaseException], ...] = (errors.OperationalError, errors.InterfaceError, errors.Error)
        self._base: type[BaseException] = errors.MySQLError
        self._connect = connect
        self._arguments = _mysql.arguments(self.target, _OPTIONS, NAME, password="password", database="database")  # noqa: S106 - a keyword's name
        self._tls = _mysql.take_tls(self._arguments)
        self._class = exact(asyncmy.connection.Connection)

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
                await conn.connect()
            except BaseException:
                self.close(conn)
                raise
            return conn

    def _with_tls(self) -> dict[str, Any]:
        tls = self._tls
        if not tls:
            return {}
        files = [tls.get(name) for name in ("ca", "capath", "cert", "key")]
        # asyncmy makes a context in a connection's constructor, and takes one that was made already
        make = lambda: self._class(**self._arguments, ssl=tls)._ssl_context  # noqa: E731
        return {"ssl": _tls.shared(("asyncmy", repr(sorted(tls.items()))), files, make)}

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        try:
            transport, conn._transport, conn._connected = conn._transport, None, False
            if transport is not None:
                transport.abort()
        except Exception:  # its loop is closed already
            pass

    def fileno(self, conn: Connection) -> int | None:
        """Of the transport's socket; None once it is closing."""
        transport = conn._transport
        if transport is None or transport.is_closing():
            return None
        sock = transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last OK packet; None after an error, in the middle of an exchange, or where a result ends without one."""
        if not conn._connected or not self.is_quiet(conn):
            return None
        status = _status(conn)
        return None if status is None else bool(status & _mysql.IN_TRANSACTION)

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        if not conn._connected:
            return False
        result = conn._result
        if result is None:
            return not conn.__dict__.get("_seen_busy", False)
        return result.connection is None and not result.unbuffered_active and not result.has_next


def _status(conn: Any) -> int | None:
    """The server's status at the end of the last exchange; before MariaDB 10.2 and MySQL 5.7 a result tells none."""
    result = conn._result
    if result is None:
        status: int | None = conn.__dict__.get("_seen_status")
        return status
    return int(result.server_status) if conn._deprecate_eof or not result.field_count else None


@cache
def exact(base: Any) -> Any:
    """*base*, an asyncmy connection class, plus exact knowledge of the server's status; *base* itself if it has that."""
    if getattr(base, "_keeps_status", False):
        return base
    from asyncmy.errors import MySQLError

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True

        async def _execute_command(self, command: int, sql: Any) -> None:
            await super()._execute_command(command, sql)  # reads what is left of an unbuffered result first
            self._seen_status, self._seen_busy = None, True

        async def _read_ok_packet(self) -> Any:
            with Answer(self, MySQLError, _is_open):
                ok = await super()._read_ok_packet()
            self._seen_status = self.server_status
            return ok

        async def _read_query_result(self, unbuffered: bool = False) -> None:
            with Answer(self, MySQLError, _is_open):
                await super()._read_query_result(unbuffered)

        async def show_warnings(self) -> Any:
            with Answer(self, MySQLError, _is_open):
                return await super().show_warnings()

        async def set_charset(self, charset: str) -> None:
            with Answer(self, MySQLError, _is_open):
                await super().set_charset(charset)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def _is_open(conn: Any) -> bool:
    return bool(conn._connected)


def watched(base: Any) -> Any:
    """*base* that tells the ledger of everything it sends. ``unwatched`` is the class to go back to."""
    return base if hasattr(base, "unwatched") else reporting(exact(base))


AsyncDriver._watched = watched
