"""The common part of the drivers for aiomysql and asyncmy, both derived from PyMySQL: everything
but their sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from unbroken.abc import Capabilities, Connection, Login
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._mysql_ahead import Ahead
from unbroken.drivers._mysql_async_connection import abort_connection, transport_of
from unbroken.drivers._mysql_driver import Awaited, unheard
from unbroken.drivers._shared import class_of, dial_async
from unbroken.ledger.residue import Left


class Shared(Ahead, Awaited):
    """The shared part of an :class:`unbroken.abc.AsyncDriver`.

    ``_watched`` makes the class that reports.
    """

    capabilities = Capabilities(transaction_status=True, watchable=True)
    _arguments: dict[str, Any]
    _connect: Callable[[], Any] | None
    name: str
    _tls: dict[str, Any]
    _exact: Callable[[Any], Any]  #: makes the class that follows the exchange with the server
    _watched: Callable[[Any], Any]  #: … and that reports
    _compared: tuple[str, ...]  #: attributes that a holder can change
    #: those of them that are tables of converters, and may be of a class of ours
    _tables: tuple[str, ...]
    _charsets: Callable[[str], Any]  #: the library's ``charset_by_name``

    async def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds everything, the handshake included."""
        timeout = min(timeout, self._arguments.get("connect_timeout", timeout))
        return await dial_async(lambda: self._dial(timeout, login))

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        raise NotImplementedError

    def _with_tls(self) -> dict[str, Any]:
        tls = self._tls
        if not tls:
            return {}
        files = [tls.get(name) for name in ("ca", "capath", "cert", "key")]
        key = (self.name, repr(sorted(tls.items())))
        return {"ssl": _tls.shared(key, files, lambda: _tls.context(tls))}

    async def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = type(self)._exact(class_of(conn))
            exchange.follow(conn)
        return conn

    async def ping(self, conn: Connection, timeout: float) -> None:
        """Send COM_PING. The library closes the connection when the time is up."""
        async with asyncio.timeout(timeout):
            await conn.ping(reconnect=False)

    async def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        await conn._seen_leave(sql)

    def want(self, conn: Connection, sql: str | None, follows: Callable[[Any], bool]) -> None:
        """Send *sql*, BEGIN, before the next command, and send a query that satisfies *follows*
        immediately behind it. None cancels that. This method itself sends nothing.
        """
        conn._seen_want(sql, follows)

    def wants(self, conn: Connection) -> str | None:
        """Return the statement that is sent before the next command."""
        wanted: str | None = conn._seen_wants
        return wanted

    def autocommits(self, conn: Connection) -> bool:
        """Return whether autocommit is on."""
        status = exchange.status_of(conn)
        return status is not None and bool(status & _mysql.AUTOCOMMIT)

    def texts(self, conn: Connection) -> Sequence[str | bytes | None]:
        """Return the statements sent in the open transaction. None stands for an unknown one."""
        return conn._seen_texts  # type: ignore[no-any-return]

    def owes_answer(self, conn: Connection) -> bool:
        """Return whether that answer was not read yet."""
        return self._is_open(conn) and bool(conn._seen_due)

    async def take_answer(self, conn: Connection, timeout: float) -> None:
        """Read that answer, if it was not read yet."""
        if self.owes_answer(conn):
            async with asyncio.timeout(timeout):
                await conn._seen_take()

    async def begin(self, conn: Connection) -> None:
        """Do nothing: MySQL opens a transaction by itself while autocommit is off."""
        await conn.begin()

    async def idle_limit(self, conn: Connection) -> float | None:
        """Return ``wait_timeout`` of this session, in seconds."""
        held = self.is_in_transaction(conn)
        async with conn.cursor() as cursor:
            await cursor.execute(_mysql.ASK_IDLE_LIMIT)
            row = await cursor.fetchone()
        value = next(iter(row.values())) if isinstance(row, dict) else row[0]
        if not held:
            await self.rollback(conn)
        return float(value)

    async def remember(self, conn: Connection) -> str | None:
        """Return the statement that restores the settings that *conn* had when it was opened."""
        if not (
            _mysql_reset.sets_nothing_else(self._arguments)
            if self._connect is None
            else self.sets_only
        ):
            return None
        async with conn.cursor() as cursor:
            await cursor.execute(_mysql_reset.ASK)
            rows = await cursor.fetchall()
        await self.rollback(conn)
        return _mysql_reset.set_again(
            row.values() if isinstance(row, dict) else row for row in rows
        )

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Send COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
            conn._seen_want(None, bool)
            await conn._execute_command(_mysql_reset.COM_RESET_CONNECTION, b"")
            await conn._read_ok_packet()
            if self.target.database and _mysql_reset.may_have_moved(left):
                await conn.select_db(self.target.database)
            await conn.query(opening)
            exchange.untouch(conn, exchange.DATABASE | exchange.CHARSET)

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        with suppress(Exception):  # closed before
            abort_connection(conn)

    @staticmethod
    def _is_open(conn: Connection) -> bool:
        raise NotImplementedError

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return the state in the last OK or EOF packet. None after an error, in the middle of an
        exchange, or once the connection is closed.
        """
        return exchange.in_transaction(conn) if self._is_open(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Return whether the last command was answered in full."""
        return exchange.is_quiet(conn) and self.fileno(conn) is not None

    def was_closed(self, conn: Connection) -> bool:
        """Return whether the connection was closed while no answer was outstanding. The library
        does not do that by itself.
        """
        return not self._is_open(conn) and bool(conn._seen_closed)

    def is_streaming(self, conn: Connection) -> bool:
        """Return whether only rows or results that the application did not fetch are unread."""
        return exchange.is_half_read(conn) and self.fileno(conn) is not None

    def fileno(self, conn: Connection) -> int | None:
        """Return the number of the transport's socket; None once it is closing."""
        transport = transport_of(conn) if self._is_open(conn) else None
        if transport is None or transport.is_closing():
            return None
        sock = transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    async def drain(self, conn: Connection) -> None:
        """Read those rows and results."""
        await conn._seen_drain()

    def traits(self, conn: Connection) -> tuple[Any, ...]:
        """Return the server's status (autocommit, how strings are quoted) and the attributes that
        the library keeps on the connection.
        """
        return exchange.adopt(conn, ("_charset",), self._tables), *(
            getattr(conn, name) for name in self._compared
        )

    async def restore(self, conn: Connection, traits: tuple[Any, ...]) -> None:
        """Restore the attributes, then autocommit and the character set, or else the database."""
        conn._seen_want(None, bool)
        exchange.put_back(conn, self._compared, traits[1:])
        statement = exchange.to_put_back(conn, traits[0], self._charset_of(conn))
        if statement:
            await conn.query(statement)
        elif conn._seen_touched & exchange.DATABASE:
            await conn.select_db(conn._db)
        exchange.untouch(conn, conn._seen_touched)
        if not self.is_clean(conn, traits):
            raise exchange.out_of_shape(conn)

    def _charset_of(self, conn: Connection) -> str:
        """Return the character set that *conn* was opened with, and its collation, for SET
        NAMES.
        """
        known = self._charsets(conn._charset)
        return f"{conn._charset} COLLATE {known.collation}"

    def unread(self, conn: Connection) -> bytes:
        """Return the bytes that asyncio has read from the socket and the driver has not. On an idle
        connection these are the server's last message.
        """
        return bytes(getattr(getattr(conn, "_reader", None), "_buffer", b""))

    def has_ended(self, conn: Connection) -> bool:
        """Return whether the server sent an unrequested message, its last, or closed the
        connection.
        """
        reader = getattr(conn, "_reader", None)  # None: asyncmy hides it
        if reader is None:
            return False
        unread: Any = getattr(reader, "_buffer", b"")
        if unread and conn._seen_due:
            return exchange.holds_more(unread, len(conn._seen_due))
        return bool(unread) or bool(reader.at_eof())

    def session_id(self, conn: Connection) -> str | None:
        """Return CONNECTION_ID(), from the handshake."""
        return str(conn.server_thread_id[0]) if hasattr(conn, "server_thread_id") else None

    def watch(self, conn: Connection) -> None:
        """Report everything that is sent through ``_execute_command``."""
        conn.__class__ = type(self)._watched(type(conn))
