"""mysql-connector-python's connections, of subclasses that know whether the server has answered,
and that can report.

Its pure Python and its asyncio connection send everything by ``_send_cmd``, and hear of the
server's status in ``_handle_server_status``: one after each OK, one after a result's columns, one
after its rows. After an error that status is from before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers._mysql_reset import COM_RESET_CONNECTION
from unbroken.drivers._shared import is_commit, is_rollback
from unbroken.ledger import scope

# Commands of the protocol (MySQL manual, "Command Phase"). These neither change data nor a
# transaction:
_INIT_DB, _PING, _PREPARE, _LONG_DATA, _CLOSE, _RESET = 2, 14, 22, 24, 25, 26
_HARMLESS = {_INIT_DB, _PING, _PREPARE, _LONG_DATA, _CLOSE, _RESET}
_UNANSWERED = {_LONG_DATA, _CLOSE}
_QUERY = 3
_ERR = 0xFF


def is_quiet(conn: Any) -> bool:
    """Whether the last command was answered in full."""
    return not (
        conn.__dict__.get("_seen_busy", True) or conn.unread_result or conn._have_next_result
    )


def is_half_read(conn: Any) -> bool:
    """Whether all that is unread are rows or further results that the application left."""
    return not conn.__dict__.get("_seen_busy", True) and bool(
        conn.unread_result or conn._have_next_result
    )


def status_of(conn: Any) -> int | None:
    """The server's status at the end of the last exchange; None when it is not certain."""
    if not is_quiet(conn):
        return None
    status: int | None = conn.__dict__.get("_seen_status")
    return status


def is_answer(error: BaseException) -> bool:
    """Whether *error*, which the connector raised, is an ERR packet of the server's.

    That ends an exchange, nothing else does.
    """
    number = getattr(error, "errno", None)
    if not isinstance(number, int) or number < 1000 or 2000 <= number < 3000:
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return module.startswith("mysql.connector") and type(error).__name__ not in _TIMEOUTS


#: The connector's own errors with the number of a server's.
_TIMEOUTS = frozenset({"ReadTimeoutError", "WriteTimeoutError", "ConnectionTimeoutError"})
_OUT_OF_STEP = "Commands out of sync: the answer to an earlier command was not read to its end"


def refuse_if_busy(conn: Any) -> None:
    """Raise, as for a lost connection, where the answer to an earlier command was not read to its
    end.
    """
    if conn.__dict__.get("_seen_busy", False):
        from mysql.connector.errors import OperationalError

        raise OperationalError(errno=2014, msg=_OUT_OF_STEP)


def _seen(base: Any) -> Any:
    """*base* as a class that listens. One line of bases and no mixin: else Python lets no
    connection change into it.

    ``_seen_busy`` is set before the first byte of a command leaves, and cleared as the last step of
    reading its answer.
    """

    class Seen(base):  # type: ignore[misc] # the base is only known here
        """What the pure Python and the asyncio connection share.

        Before a command nothing is known, after its OK all is.
        """

        _knows = True
        _seen_busy: bool
        _seen_status: int | None
        _seen_inside = False  #: in the middle of a result, where an EOF packet ends nothing
        _seen_closed = False  #: the application closed it
        _seen_moved = 0  #: to another database, or user
        _have_next_result: bool

        def _handle_server_status(self, flags: int) -> None:
            super()._handle_server_status(flags)
            self._seen_status = flags

        def _handle_ok(self, packet: Any) -> Any:
            result = super()._handle_ok(packet)
            self._seen_ended()
            return result

        def _handle_eof(self, packet: Any) -> Any:
            result = super()._handle_eof(packet)
            self._seen_ended()
            return result

        def _seen_ended(self) -> None:
            if not self._seen_inside:
                self._seen_busy = False

        def _seen_leftover(self) -> None:
            """A result that nobody asked for is about to be read; an error would be the last of
            them.
            """
            self._seen_status, self._seen_busy, self._have_next_result = None, True, False

        def _seen_sends(self, command: int) -> None:
            """*command* is about to go out."""
            if command == _INIT_DB:
                _mysql.note_move(self, _mysql.MOVED)
            if command not in _UNANSWERED:
                self._seen_inside = False
                self._seen_status, self._seen_busy = None, True

        def _seen_first(self, packet: Any) -> None:
            """The first packet of an answer, or of one of its results, is here; after an error
            nothing follows.

            The connector itself still waits for a next result then, where the one before had
            announced it.
            """
            if packet is not None and len(packet) > 4 and packet[4] == _ERR:
                self._have_next_result = False
                self._seen_busy = False

        def _seen_row_failed(self, error: BaseException) -> None:
            """Reading rows raised *error*. The server's own ends the result."""
            if is_answer(error):
                self._have_next_result = False
                self._seen_busy = False

        def _seen_prepared(self, status: int | None) -> None:
            """A statement was prepared: the answer holds no status, and nothing has changed."""
            self._seen_inside = False
            self._seen_status, self._seen_busy = status, False

    return Seen


@cache
def exact(base: Any) -> Any:
    """*base*, a pure Python connection class, that knows its status; *base* itself if it does."""
    if getattr(base, "_knows", False):
        return base

    class Connection(_seen(base)):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        def _send_cmd(self, command: int, *args: Any, **kwargs: Any) -> Any:
            refuse_if_busy(self)
            self.handle_unread_result()
            self._seen_drain_results()
            self._seen_sends(command)
            packet = super()._send_cmd(command, *args, **kwargs)
            self._seen_first(packet)
            return packet

        def _seen_drain_results(self) -> None:
            while self._have_next_result:
                self._seen_leftover()
                self._handle_result(self._socket.recv(self._read_timeout))
                if self.unread_result:
                    self.get_rows()

        def _seen_drain(self) -> None:
            """Read the rest of what the application left half-read."""
            refuse_if_busy(self)
            if self.unread_result:
                self.get_rows()
            self._seen_drain_results()

        def _handle_result(self, packet: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen_inside = True
            self._seen_first(packet)
            result = super()._handle_result(packet, *args, **kwargs)
            self._seen_inside = False
            self._seen_busy = False
            return result

        def _handle_binary_result(self, packet: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen_inside = True
            self._seen_first(packet)
            result = super()._handle_binary_result(packet, *args, **kwargs)
            self._seen_inside = False
            self._seen_busy = False
            return result

        def get_rows(self, *args: Any, **kwargs: Any) -> Any:
            if not self.unread_result:
                return super().get_rows(*args, **kwargs)
            refuse_if_busy(self)
            self._seen_busy = True
            try:
                rows = super().get_rows(*args, **kwargs)
            except BaseException as error:
                self._seen_row_failed(error)
                raise
            self._seen_busy = False
            _rest_answered(self)
            return rows

        def cmd_query_iter(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            results = super().cmd_query_iter(*args, **kwargs)
            while True:
                if self._have_next_result and not self.unread_result:
                    self._seen_busy = (
                        True  # the next packet is taken off the socket before it is looked at
                    )
                try:
                    result = next(results)
                except StopIteration:
                    return
                yield result

        def cmd_stmt_fetch(self, *args: Any, **kwargs: Any) -> Any:
            result = super().cmd_stmt_fetch(*args, **kwargs)
            self._seen_busy = False  # what follows are rows, which are unread
            return result

        def cmd_stmt_prepare(self, *args: Any, **kwargs: Any) -> Any:
            status = status_of(self)
            self._seen_inside = True
            result = super().cmd_stmt_prepare(*args, **kwargs)
            self._seen_prepared(status)
            return result

        def cmd_statistics(self) -> Any:
            return self._seen_whole(super().cmd_statistics)

        def cmd_change_user(self, *args: Any, **kwargs: Any) -> Any:
            _mysql.note_move(self, _mysql.ANOTHER_USER)
            return self._seen_whole(
                lambda: super(Connection, self).cmd_change_user(*args, **kwargs)
            )

        def _seen_whole(self, send: Callable[[], Any]) -> Any:
            """A command that goes past ``_send_cmd``."""
            refuse_if_busy(self)
            self.handle_unread_result()
            status = self.__dict__.get("_seen_status")
            self._seen_status, self._seen_busy = None, True
            result = send()
            if self.__dict__.get("_seen_status") is None:
                self._seen_status = status
            self._seen_busy = False
            return result

        def close(self) -> None:
            if self._socket and self._socket.sock is not None:
                self._seen_closed = True
                if not is_quiet(self):  # its goodbye would wait for the rest of an answer
                    self._socket.close_connection()
                    self._handshake = None
                    return
            super().close()

        disconnect = close

        def _open_connection(self) -> None:
            self._seen_closed = self._seen_busy = False
            super()._open_connection()

    return _named(Connection, base)


@cache
def exact_async(base: Any) -> Any:
    """As :func:`exact`, for the connection of ``mysql.connector.aio``."""
    if getattr(base, "_knows", False):
        return base

    class Connection(_seen(base)):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        async def _send_cmd(self, command: int, *args: Any, **kwargs: Any) -> Any:
            refuse_if_busy(self)
            await self.handle_unread_result()
            await self._seen_drain_results()
            self._seen_sends(command)
            packet = await super()._send_cmd(command, *args, **kwargs)
            self._seen_first(packet)
            return packet

        async def _seen_drain_results(self) -> None:
            while self._have_next_result:
                self._seen_leftover()
                await self._handle_result(await self._socket.read(self._read_timeout))
                if self.unread_result:
                    await self.get_rows()

        async def _seen_drain(self) -> None:
            """Read the rest of what the application left half-read."""
            refuse_if_busy(self)
            if self.unread_result:
                await self.get_rows()
            await self._seen_drain_results()

        async def _handle_result(self, packet: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen_inside = True
            self._seen_first(packet)
            result = await super()._handle_result(packet, *args, **kwargs)
            self._seen_inside = False
            self._seen_busy = False
            return result

        async def _handle_binary_result(self, packet: Any, *args: Any, **kwargs: Any) -> Any:
            self._seen_inside = True
            self._seen_first(packet)
            result = await super()._handle_binary_result(packet, *args, **kwargs)
            self._seen_inside = False
            self._seen_busy = False
            return result

        async def get_rows(self, *args: Any, **kwargs: Any) -> Any:
            if not self.unread_result:
                return await super().get_rows(*args, **kwargs)
            refuse_if_busy(self)
            self._seen_busy = True
            try:
                rows = await super().get_rows(*args, **kwargs)
            except BaseException as error:
                self._seen_row_failed(error)
                raise
            self._seen_busy = False
            _rest_answered(self)
            return rows

        async def cmd_query_iter(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            results = super().cmd_query_iter(*args, **kwargs)
            while True:
                if self._have_next_result and not self.unread_result:
                    self._seen_busy = (
                        True  # the next packet is taken off the socket before it is looked at
                    )
                try:
                    result = await anext(results)
                except StopAsyncIteration:
                    return
                yield result

        async def cmd_stmt_fetch(self, *args: Any, **kwargs: Any) -> Any:
            result = await super().cmd_stmt_fetch(*args, **kwargs)
            self._seen_busy = False  # what follows are rows, which are unread
            return result

        async def cmd_stmt_prepare(self, *args: Any, **kwargs: Any) -> Any:
            status = status_of(self)
            self._seen_inside = True
            result = await super().cmd_stmt_prepare(*args, **kwargs)
            self._seen_prepared(status)
            return result

        async def cmd_statistics(self) -> Any:
            return await self._seen_whole(super().cmd_statistics)

        async def cmd_change_user(self, *args: Any, **kwargs: Any) -> Any:
            _mysql.note_move(self, _mysql.ANOTHER_USER)
            return await self._seen_whole(
                lambda: super(Connection, self).cmd_change_user(*args, **kwargs)
            )

        async def _seen_whole(self, send: Callable[[], Awaitable[Any]]) -> Any:
            """A command that goes past ``_send_cmd``."""
            refuse_if_busy(self)
            await self.handle_unread_result()
            status = self.__dict__.get("_seen_status")
            self._seen_status, self._seen_busy = None, True
            result = await send()
            if self.__dict__.get("_seen_status") is None:
                self._seen_status = status
            self._seen_busy = False
            return result

        async def close(self) -> None:
            if self._socket and self._socket.is_connected():
                self._seen_closed = True
                if not is_quiet(self):  # its goodbye would wait for the rest of an answer
                    await self.shutdown()
                    return
            await super().close()

        disconnect = close

        async def connect(self) -> None:
            self._seen_closed = self._seen_busy = False
            await super().connect()

    return _named(Connection, base)


def reset(conn: Any) -> None:
    """COM_RESET_CONNECTION, without what the connector's own method sends after it."""
    conn._handle_ok(conn._send_cmd(COM_RESET_CONNECTION))


async def reset_async(conn: Any) -> None:
    """As :func:`reset`."""
    conn._handle_ok(await conn._send_cmd(COM_RESET_CONNECTION))


# -- watching --------------------------------------------------------------------------------------


@cache
def watched(base: Any) -> Any:
    """*base* (of :func:`exact`) that tells the ledger of everything it sends.

    ``unwatched`` is the class to go back to.
    """
    if hasattr(base, "unwatched"):
        return base

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def _seen_sends(self, command: int) -> None:
            _doubt_others(self, command)
            super()._seen_sends(command)

        def cmd_query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return _sent(
                self, query, lambda: super(Watched, self).cmd_query(query, *args, **kwargs)
            )

        def cmd_query_iter(self, statements: Any, **kwargs: Any) -> Iterator[Any]:
            pending = _tell(self, statements)
            yield from super().cmd_query_iter(statements, **kwargs)
            _answered(self, pending, None)

    return _named(Watched, base)


@cache
def watched_async(base: Any) -> Any:
    """As :func:`watched`, for asyncio."""
    if hasattr(base, "unwatched"):
        return base

    class Watched(base):  # type: ignore[misc] # the base is only known here
        __module__ = base.__module__
        unwatched = base

        def _seen_sends(self, command: int) -> None:
            _doubt_others(self, command)
            super()._seen_sends(command)

        async def cmd_query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            return await _sent_async(self, query, super().cmd_query(query, *args, **kwargs))

        async def cmd_query_iter(self, statements: Any, **kwargs: Any) -> AsyncIterator[Any]:
            pending = _tell(self, statements)
            async for result in super().cmd_query_iter(statements, **kwargs):
                yield result
            _answered(self, pending, None)

    return _named(Watched, base)


def _named(cls: Any, base: Any) -> Any:
    cls.__name__ = cls.__qualname__ = base.__name__
    return cls


def _doubt_others(conn: Any, command: int) -> None:
    if command == _QUERY:
        return  # queries are told with their text
    ledger = scope.current(id(conn))
    if ledger is not None and command in _HARMLESS:
        ledger.harmless(conn_id=id(conn))
    elif ledger is not None:
        ledger.doubt(f"command {command} of the MySQL protocol", conn_id=id(conn))


def _tell(conn: Any, sql: Any) -> int | None:
    """Report *sql*. Gives what :func:`_answered` is told of when the answer is there."""
    conn.__dict__.pop("_seen_told", None)
    ledger = scope.current(id(conn))
    if ledger is None or is_closed(conn):
        return None  # nothing can be sent on a closed one
    if sql is not None and is_commit(sql):
        ledger.committing(conn_id=id(conn))
        return _mysql.COMMIT
    ledger.statement(
        bytes(sql) if isinstance(sql, bytearray) else sql, _commits_itself(conn), conn_id=id(conn)
    )
    return _mysql.ROLLBACK if sql is not None and is_rollback(sql) else _mysql.STATEMENT


def is_closed(conn: Any) -> bool:
    """Whether the connector knows that *conn* is closed."""
    holder = conn._socket
    return holder is None or (getattr(holder, "sock", holder) is None)


def _commits_itself(conn: Any) -> bool | None:
    """Whether a statement sent now is committed by itself: autocommit on and no transaction open;
    None if unknown.
    """
    status = status_of(conn)
    return (
        None
        if status is None
        else status & (_mysql.AUTOCOMMIT | _mysql.IN_TRANSACTION) == _mysql.AUTOCOMMIT
    )


def _sent(conn: Any, sql: Any, send: Callable[[], Any]) -> Any:
    pending = _tell(conn, sql)
    try:
        result = send()
    except Exception as error:
        _answered(conn, pending, error)
        raise
    _answered(conn, pending, None)
    return result


async def _sent_async(conn: Any, sql: Any, sending: Awaitable[Any]) -> Any:
    pending = _tell(conn, sql)
    try:
        result = await sending
    except Exception as error:
        _answered(conn, pending, error)
        raise
    _answered(conn, pending, None)
    return result


def _answered(conn: Any, told: int | None, error: BaseException | None) -> None:
    if told is None:
        return
    if told == _mysql.STATEMENT and error is None and _is_unread(conn):
        conn.__dict__["_seen_told"] = told  # its rows are still to come
    else:
        _mysql.answered(conn, told, error)


def _rest_answered(conn: Any) -> None:
    """Rows were read."""
    told = conn.__dict__.get("_seen_told")
    if told is not None and not _is_unread(conn):
        del conn.__dict__["_seen_told"]
        _mysql.answered(conn, told, None)


def _is_unread(conn: Any) -> bool:
    return bool(conn.unread_result or conn._have_next_result)
