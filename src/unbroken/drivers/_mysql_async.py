"""What aiomysql and asyncmy, both children of PyMySQL, have in common: everything but their
sockets.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from unbroken.abc import Capabilities, Connection, Login
from unbroken.drivers import _mysql, _mysql_reset, _tls
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._mysql_driver import Awaited, unheard
from unbroken.drivers._shared import abort_transport, class_of, dial_async
from unbroken.ledger import scope
from unbroken.ledger.residue import Left


class Shared(Awaited):
    """The part of an :class:`unbroken.abc.AsyncDriver` that both share.

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
        """*timeout* bounds everything, the handshake included."""
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
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        if self.is_known:
            conn.__class__ = type(self)._exact(class_of(conn))
        return conn

    async def ping(self, conn: Connection, timeout: float) -> None:
        """COM_PING. The library closes the connection when the time is up."""
        async with asyncio.timeout(timeout):
            await conn.ping(reconnect=False)

    async def begin(self, conn: Connection) -> None:
        """Not needed: MySQL opens a transaction by itself while autocommit is off."""
        await conn.begin()

    async def idle_limit(self, conn: Connection) -> float | None:
        """``wait_timeout`` of this session."""
        held = self.is_in_transaction(conn)
        async with conn.cursor() as cursor:
            await cursor.execute(_mysql.ASK_IDLE_LIMIT)
            row = await cursor.fetchone()
        value = next(iter(row.values())) if isinstance(row, dict) else row[0]
        if not held:
            await self.rollback(conn)
        return float(value)

    async def remember(self, conn: Connection) -> str | None:
        """The statement that sets again what was set when *conn* was opened."""
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
        """COM_RESET_CONNECTION and one statement."""
        with unheard(self, conn):
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
        """From the last OK or EOF packet; None after an error, in the middle of an exchange, or
        once it is closed.
        """
        return exchange.in_transaction(conn) if self._is_open(conn) else None

    def is_quiet(self, conn: Connection) -> bool:
        """Whether the last command was answered in full."""
        return exchange.is_quiet(conn) and self.fileno(conn) is not None

    def was_closed(self, conn: Connection) -> bool:
        """Closed while no answer was outstanding, which the library does not do by itself."""
        return not self._is_open(conn) and bool(conn._seen_closed)

    def is_streaming(self, conn: Connection) -> bool:
        """Whether all that is unread are rows or results that the application left."""
        return exchange.is_half_read(conn) and self.fileno(conn) is not None

    def fileno(self, conn: Connection) -> int | None:
        """Of the transport's socket; None once it is closing."""
        transport = transport_of(conn) if self._is_open(conn) else None
        if transport is None or transport.is_closing():
            return None
        sock = transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    async def drain(self, conn: Connection) -> None:
        """Read them."""
        await conn._seen_drain()

    def traits(self, conn: Connection) -> tuple[Any, ...]:
        """The server's status (autocommit, how strings are quoted), and what the library keeps on
        the connection.
        """
        return exchange.adopt(conn, ("_charset",), self._tables), *(
            getattr(conn, name) for name in self._compared
        )

    async def restore(self, conn: Connection, traits: tuple[Any, ...]) -> None:
        """Attributes, then autocommit and the character set, or else the database."""
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
        """The character set that *conn* was opened with, and its collation, for SET NAMES."""
        known = self._charsets(conn._charset)
        return f"{conn._charset} COLLATE {known.collation}"

    def unread(self, conn: Connection) -> bytes:
        """What asyncio has read off the socket and the driver not yet: the server's last words,
        once it is idle.
        """
        return bytes(getattr(getattr(conn, "_reader", None), "_buffer", b""))

    def has_ended(self, conn: Connection) -> bool:
        """Whether the server said something unasked, its last words, or has hung up."""
        reader = getattr(conn, "_reader", None)  # None: asyncmy hides it
        return reader is not None and (
            bool(getattr(reader, "_buffer", b"")) or bool(reader.at_eof())
        )

    def session_id(self, conn: Connection) -> str | None:
        """CONNECTION_ID(), from the handshake."""
        return str(conn.server_thread_id[0]) if hasattr(conn, "server_thread_id") else None

    def watch(self, conn: Connection) -> None:
        """Everything goes out through ``_execute_command``."""
        conn.__class__ = type(self)._watched(type(conn))


def exact(
    base: Any,
    result_base: Any,
    status_of: Callable[[Any, Any], int | None],
    is_open: Callable[[Any], bool],
) -> Any:
    """*base*, a connection class, plus exact knowledge of its exchange with the server. As
    PyMySQL's, awaited.

    *result_base* is the library's class of results, *status_of(conn, result)* the server's status
    after one.
    """
    result_class = _result(result_base, status_of, is_open)

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        _keeps_status = True
        _result: Any
        _seen_busy = exchange.QUIET
        _seen_status: int | None = None
        _seen_pending: int | None = None
        _seen_touched = 0
        _seen_opened: Mapping[str, Any] | None = None
        _seen_closed = False  # by the application

        async def _request_authentication(self) -> Any:
            self._seen_status = self._result = None
            self._seen_busy, self._seen_closed = exchange.BUSY, False
            packet = await super()._request_authentication()
            # another session than the pool's
            self._seen_touched = 0 if self._seen_opened is None else exchange.OTHERS
            self._seen_busy = exchange.QUIET
            return packet

        async def _execute_command(self, command: int, sql: Any) -> None:
            await self._seen_ready()
            await super()._execute_command(command, sql)
            self._seen_busy = exchange.SENT

        def _write_bytes(self, data: bytes) -> None:
            self._seen_status = None
            if self._seen_busy < exchange.BUSY:
                self._seen_busy = exchange.BUSY
            super()._write_bytes(data)

        def write_packet(self, payload: bytes) -> None:
            exchange.begin_writing(self)
            super().write_packet(payload)
            self._seen_busy = exchange.BUSY

        async def _seen_ready(self) -> None:
            """Make sure that a command may be sent: raise where an answer is outstanding, read what
            was left half-read.
            """
            if not is_open(self):
                return  # which the library says itself
            if self._seen_busy:
                raise exchange.out_of_step(self)
            if self._result is not None and exchange.is_half_read(self):
                if self._result.unbuffered_active:
                    # as the library does
                    warnings.warn("Previous unbuffered result was left incomplete", stacklevel=4)
                await self._seen_drain()

        async def _seen_drain(self) -> None:
            """Read what was left of a result, and the results after it."""
            result = self._result
            if result is not None and result.unbuffered_active:
                await result._finish_unbuffered_query()
            while self._result is not None and self._result.has_next:
                await self.next_result()

        async def _read_ok_packet(self) -> Any:
            exchange.begin_reading(self)
            try:
                ok = await super()._read_ok_packet()
            except BaseException as error:
                exchange.failed(self, error)
                raise
            status = self.server_status
            if not status & _mysql.MORE_RESULTS:
                exchange.ended(self, status & exchange.KEPT)
            return ok

        async def _read_query_result(self, unbuffered: bool = False) -> None:
            # As the library's own, with our result class
            exchange.begin_reading(self)
            self._result = None
            result = result_class(self)
            try:
                await (result.init_unbuffered_query() if unbuffered else result.read())
            except BaseException as error:
                result.unbuffered_active, result.connection = False, None
                exchange.failed(self, error)
                raise
            self._result = result
            self._affected_rows = result.affected_rows
            if result.server_status:
                self.server_status = result.server_status
            exchange.ended(self, status_of(self, result))

        async def show_warnings(self) -> Any:
            await self._execute_command(_mysql.COM_QUERY, "SHOW WARNINGS")
            await self._read_query_result()
            rows, self._result = self._result.rows, None
            return rows

        async def set_charset(self, charset: str) -> None:
            exchange.touch(self, exchange.CHARSET)
            try:
                await super().set_charset(charset)
            except BaseException as error:
                exchange.failed(self, error)
                raise
            exchange.ended(self, None)

        async def select_db(self, db: Any) -> None:
            if self._db:
                exchange.touch(self, exchange.DATABASE)
            await super().select_db(db)

        def close(self) -> None:
            """What is out of step is aborted: bytes that are still to be written might complete a
            command.
            """
            if not is_open(self):
                super().close()
                return
            if not self._seen_busy:  # the library itself closes only in the middle of an exchange
                self._seen_closed = True
            if self._loop.is_closed():  # a finalizer may call this long after the loop's end
                abort_connection(self)
                return
            if not exchange.is_quiet(self):
                transport_of(self).abort()
            super().close()

        async def ensure_closed(self) -> None:
            """With a goodbye, unless an answer is outstanding: then that may never be taken."""
            if exchange.is_quiet(self):
                await super().ensure_closed()
            else:
                self.close()

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def transport_of(conn: Any) -> Any:
    """The transport of an open connection."""
    return conn._writer.transport if hasattr(conn, "_writer") else conn._transport


def abort_connection(conn: Any) -> None:
    """Abort the transport of an open *conn*, which counts as closed from now on."""
    if hasattr(conn, "_writer"):
        # the writer must not be collected before: it would warn of a transport that nobody closed
        writer, conn._writer, conn._reader = conn._writer, None, None
        abort_transport(writer.transport)
        return
    transport, conn._transport, conn._connected = conn._transport, None, False
    abort_transport(transport)


def _result(
    base: Any, status_of: Callable[[Any, Any], int | None], is_open: Callable[[Any], bool]
) -> Any:
    """A library's result class, *base*, whose connection is out of step for as long as a row is
    read.
    """

    class Result(exchange.exact_result(base)):  # type: ignore[misc] # the base is only known here
        connection: Any
        unbuffered_active: bool

        async def _read_load_local_packet(self, first_packet: Any) -> None:
            with exchange.loading(self.connection):
                await super()._read_load_local_packet(first_packet)

        async def _read_rowdata_packet_unbuffered(self) -> Any:
            if not self.unbuffered_active:
                return None
            conn = self.connection
            if conn._seen_busy:
                raise exchange.out_of_step(conn)
            conn._seen_busy = exchange.BUSY
            try:
                row = await super()._read_rowdata_packet_unbuffered()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, status_of(conn, self))
            return row

        async def _finish_unbuffered_query(self) -> None:
            conn = self.connection
            if not self.unbuffered_active:
                return
            if conn._seen_busy or not is_open(conn):
                # nothing of it is to be had any more; a close need not raise for that
                self.unbuffered_active = False
                return
            conn._seen_busy = exchange.BUSY
            try:
                await super()._finish_unbuffered_query()
            except BaseException as error:
                exchange.failed(conn, error)
                raise
            exchange.ended(conn, status_of(conn, self))

    return Result


def reporting(plain: Any, is_open: Callable[[Any], bool]) -> Any:
    """*plain*, a connection class that sends all by ``_execute_command``, that tells the ledger.

    ``unwatched`` is *plain*.
    """
    known = plain.__dict__.get("_watched")
    if known is not None:
        return known

    class Watched(plain):  # type: ignore[misc] # the base is only known here
        __module__ = plain.__module__
        unwatched = plain

        async def _execute_command(self, command: int, sql: Any) -> None:
            ledger = scope.current(id(self))
            if ledger is None or command in exchange.UNREPORTED:
                await super()._execute_command(command, sql)
                return
            await self._seen_ready()
            pending = exchange.tell(self, ledger, command, sql) if is_open(self) else None
            await super()._execute_command(command, sql)
            self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = plain.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
