"""The connections of aiomysql and asyncmy, of subclasses that follow their exchange with the server
and that can report. They work like those of PyMySQL, awaited.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers import _mysql_exchange as exchange
from unbroken.drivers._shared import abort_transport
from unbroken.ledger import scope


def exact(
    base: Any,
    result_base: Any,
    status_of: Callable[[Any, Any], int | None],
    is_open: Callable[[Any], bool],
) -> Any:
    """Return a subclass of *base*, a connection class, that knows the exact state of its exchange
    with the server.

    *result_base* is the library's class of results. *status_of(conn, result)* returns the server's
    status after one.
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
        _seen_due: tuple[int, ...] = ()
        _seen_flies = False
        _seen_wants: str | None = None
        _seen_follows: Callable[[Any], bool]
        _seen_texts: deque[str | bytes | None]
        _next_seq_id: int

        async def _request_authentication(self) -> Any:
            self._seen_status = self._result = None
            self._seen_due, self._seen_texts = (), deque(maxlen=exchange.TEXTS)
            self._seen_wants = None
            self._seen_busy, self._seen_closed = exchange.BUSY, False
            packet = await super()._request_authentication()
            # another session than the pool's
            self._seen_touched = 0 if self._seen_opened is None else exchange.OTHERS
            self._seen_busy = exchange.QUIET
            return packet

        async def _execute_command(self, command: int, sql: Any) -> None:
            if self._seen_wants is not None:
                await self._seen_begin(command, sql)
            if self._seen_due and not (self._seen_flies and command == _mysql.COM_QUERY):
                await self._seen_take()
            await self._seen_ready()
            exchange.note(self, command, sql)
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
            """Ensure that a command may be sent: raise if an answer is outstanding, and read a
            result that was half-read.
            """
            if not is_open(self):
                return  # the library reports that itself
            if self._seen_busy:
                raise exchange.out_of_step(self)
            if self._result is not None and exchange.is_half_read(self):
                if self._result.unbuffered_active:
                    # as the library does
                    warnings.warn("Previous unbuffered result was left incomplete", stacklevel=4)
                await self._seen_drain()

        def _seen_want(self, sql: str | None, follows: Callable[[Any], bool]) -> None:
            """Do the same as PyMySQL's ``_seen_want``."""
            if sql is not None:
                exchange.touch(self, exchange.WANTS)
            self._seen_wants, self._seen_follows = sql, follows
            if sql is None:
                exchange.untouch(self, exchange.WANTS)

        async def _seen_begin(self, command: int, sql: Any) -> None:
            """Do the same as PyMySQL's ``_seen_begin``."""
            wanted = self._seen_wants
            if wanted is None or not is_open(self):
                return
            await self._seen_ready()
            if exchange.status_of(self) is None:  # this was broken off: it is sent once more
                self._seen_busy = exchange.BUSY
                await super()._execute_command(_mysql.COM_QUERY, wanted)
                self._seen_busy = exchange.SENT
                await self._read_ok_packet()
            else:
                await self._seen_leave(wanted)
                flies = self._seen_flies and command == _mysql.COM_QUERY
                if not (flies and self._seen_follows(sql)):
                    await self._seen_take()
            # not before: until then it counts as not sent
            self._seen_want(None, self._seen_follows)

        async def _seen_leave(self, sql: str) -> None:
            """Send *sql*: COMMIT, ROLLBACK or BEGIN. Its answer is read before that of the next
            statement.
            """
            if self._seen_due and not self._seen_flies:
                await self._seen_take()
            await self._seen_ready()
            after = exchange.status_once(self, sql)
            self._seen_status = None
            self._seen_busy = exchange.BUSY
            await super()._execute_command(_mysql.COM_QUERY, sql)  # not reported to any unit
            if transport_of(self).is_closing():
                return  # it could not be sent
            self._seen_due += (after,)
            self._seen_busy = exchange.QUIET
            self._seen_texts.clear()
            self._seen_status = after  # last: it marks the exchange as complete

        async def _seen_take(self) -> None:
            """Read those answers.

            Raises the error of a lost connection if one is not the expected answer. A statement
            sent after it did not run in the state that its sender assumed.
            """
            busy, sequence, status = self._seen_busy, self._next_seq_id, self._seen_status
            if busy >= exchange.BUSY:
                raise exchange.out_of_step(self)  # it was broken off before
            self._seen_status, told = None, 0
            self._seen_busy = exchange.BUSY
            for left, due in zip(range(len(self._seen_due))[::-1], self._seen_due, strict=True):
                self._next_seq_id = 1
                try:
                    await super()._read_ok_packet()
                except Exception as error:
                    if exchange.is_answer(error):  # to that ROLLBACK, not to the present command
                        raise exchange.out_of_step(self) from error
                    raise
                told = self.server_status
                more = bool(told & _mysql.MORE_RESULTS)
                told = exchange.after_due(self, due, told, more, behind=busy or left)
            self._seen_due, self._next_seq_id = (), sequence
            self._seen_busy = busy
            self._seen_status = status if busy else told  # last, as above

        async def _seen_drain(self) -> None:
            """Read the rest of a result, and the results after it."""
            result = self._result
            if result is not None and result.unbuffered_active:
                await result._finish_unbuffered_query()
            while self._result is not None and self._result.has_next:
                await self.next_result()

        async def _read_ok_packet(self) -> Any:
            if self._seen_due:
                await self._seen_take()
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
            # As the library's own, with our result class.
            if self._seen_due:
                await self._seen_take()
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
            if self._seen_due:
                await self._seen_take()
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
            """Abort the connection if it is out of step, because bytes that are still buffered
            might complete a command.
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
            """Close with a goodbye, unless an answer is outstanding: then the server might never
            read the goodbye.
            """
            if exchange.is_quiet(self):
                await super().ensure_closed()
            else:
                self.close()

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


def transport_of(conn: Any) -> Any:
    """Return the transport of an open connection."""
    return conn._writer.transport if hasattr(conn, "_writer") else conn._transport


def abort_connection(conn: Any) -> None:
    """Abort the transport of an open *conn*, which counts as closed from now on."""
    if hasattr(conn, "_writer"):
        # the writer must not be collected before: it would warn of a transport that was not closed
        writer, conn._writer, conn._reader = conn._writer, None, None
        abort_transport(writer.transport)
        return
    transport, conn._transport, conn._connected = conn._transport, None, False
    abort_transport(transport)


def _result(
    base: Any, status_of: Callable[[Any, Any], int | None], is_open: Callable[[Any], bool]
) -> Any:
    """Return a subclass of a library's result class, *base*, whose connection is out of step while
    a row is being read.
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
                # The rest of the result is lost. Closing the cursor need not raise for that.
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
    """Return a subclass of *plain*, a connection class that sends everything by
    ``_execute_command``. The subclass tells the ledger.

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
            exchange.tell_wanted(self, ledger)
            await self._seen_begin(command, sql)
            await self._seen_ready()
            pending = exchange.tell(self, ledger, command, sql) if is_open(self) else None
            await super()._execute_command(command, sql)
            self._seen_pending = pending

    Watched.__name__ = Watched.__qualname__ = plain.__name__
    plain._watched = Watched  # kept with the class, so that both go together
    return Watched
