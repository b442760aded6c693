"""mysql-connector-python's connections, of subclasses that know whether the server has answered,
and that can report.

Its pure Python and its asyncio connection send everything by ``_send_cmd``. They receive the
server's status in ``_handle_server_status``: one after each OK, one after a result's columns, one
after its rows. After an error that status is an old one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache, partial
from typing import Any

from unbroken.drivers import _mysql
from unbroken.drivers import _mysqlconnector_due as due
from unbroken.drivers._mysql_reset import COM_RESET_CONNECTION
from unbroken.drivers._mysqlconnector_exchange import (
    ERR,
    INIT_DB,
    PREPARE,
    QUERY,
    UNANSWERED,
    is_answer,
    is_quiet,
    is_there,
    refuse_if_busy,
    rest_answered,
    status_of,
)


def _seen(base: Any) -> Any:
    """Return a subclass of *base* that follows the exchange. It has one line of bases and no mixin,
    because otherwise Python lets no connection change into it.

    ``_seen_busy`` is set before the first byte of a command leaves, and cleared as the last step of
    reading its answer.
    """

    class Seen(base):  # type: ignore[misc] # the base is only known here
        """The common part of the pure Python and the asyncio connection.

        Before a command nothing is known; after its OK everything is.
        """

        _knows = True
        _seen_busy: bool
        _seen_status: int | None
        _seen_autocommit: bool | None = None  #: from the last status; a command keeps it
        _seen_inside = False  #: in the middle of a result, where an EOF packet ends nothing
        _seen_closed = False  #: the application closed it
        _seen_moved = 0  #: to another database, or user
        _seen_asks_locally = False  #: whether ``is_connected()`` must not ask the server
        _seen_due: int | None = None  #: the expected status in an answer that is read later
        _seen_flies = False
        _have_next_result: bool

        def _handle_server_status(self, flags: int) -> None:
            super()._handle_server_status(flags)
            self._seen_status = flags
            self._seen_autocommit = bool(flags & _mysql.AUTOCOMMIT)

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
            """Note that a result that was not asked for is about to be read. An error would be the
            last of these results.
            """
            self._seen_status, self._seen_busy, self._have_next_result = None, True, False

        def _seen_sends(self, command: int) -> None:
            """Note that *command* is about to be sent."""
            if command == INIT_DB:
                _mysql.note_move(self, _mysql.MOVED)
            if command not in UNANSWERED:
                self._seen_inside = command == PREPARE  # its parameters end with an EOF packet
                self._seen_status, self._seen_busy = None, True

        def _seen_first(self, packet: Any) -> None:
            """Handle the first packet of an answer, or of one of its results. After an error
            nothing follows.

            The connector itself still waits for a next result in that case, if the one before had
            announced it.
            """
            if packet is not None and len(packet) > 4 and packet[4] == ERR:
                self._have_next_result = False
                self._seen_busy = False

        def _seen_row_failed(self, error: BaseException) -> None:
            """Handle *error*, which reading rows raised. The server's own error ends the result."""
            if is_answer(error):
                self._have_next_result = False
                self._seen_busy = False

        def _seen_prepared(self, status: int | None) -> None:
            """Note that a statement was prepared. The answer holds no status, and nothing has
            changed.
            """
            self._seen_inside = False
            self._seen_status, self._seen_busy = status, False

    return Seen


@cache
def exact(base: Any) -> Any:
    """Return a subclass of *base*, a pure Python connection class, that knows its status. Return
    *base* itself if it already does.
    """
    if getattr(base, "_knows", False):
        return base

    class Connection(_seen(base)):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        def _send_cmd(self, command: int, *args: Any, **kwargs: Any) -> Any:
            follows = due.may_follow(self, command, args, kwargs)
            if not follows:
                due.take(self)
            refuse_if_busy(self)
            self.handle_unread_result()
            self._seen_drain_results()
            due.note(self, command, args)
            self._seen_sends(command)
            send = partial(super()._send_cmd, command, *args)
            packet = due.behind(self, send, kwargs) if follows else send(**kwargs)
            self._seen_first(packet)
            return packet

        def _seen_leave(self, sql: str) -> None:
            """Send *sql*, COMMIT or ROLLBACK. Its answer is read before the next one's."""
            due.take(self)
            text, after = due.to_leave(self, sql)
            self._seen_sends(QUERY)
            super()._send_cmd(QUERY, text, expect_response=False)
            due.left(self, after)

        def _seen_drain_results(self) -> None:
            while self._have_next_result:
                self._seen_leftover()
                self._handle_result(self._socket.recv(self._read_timeout))
                if self.unread_result:
                    self.get_rows(raw=True)

        def handle_unread_result(self) -> None:
            if self.unread_result:
                refuse_if_busy(self)
            super().handle_unread_result()

        def _seen_drain(self) -> None:
            """Read the rest of a result that the application left half-read."""
            refuse_if_busy(self)
            if self.unread_result:
                self.get_rows(raw=True)
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
            if isinstance(result, tuple):  # columns; its rows follow, as the cursor notes next
                self.unread_result = True
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
            rest_answered(self)
            return rows

        def cmd_query_iter(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
            results = super().cmd_query_iter(*args, **kwargs)
            while True:
                if self._have_next_result and not self.unread_result:
                    self._seen_busy = (
                        True  # the next packet is read from the socket before it is examined
                    )
                try:
                    result = next(results)
                except StopIteration:
                    return
                yield result

        def cmd_stmt_fetch(self, *args: Any, **kwargs: Any) -> Any:
            result = super().cmd_stmt_fetch(*args, **kwargs)
            self._seen_busy = False  # unread rows follow
            return result

        def cmd_stmt_prepare(self, *args: Any, **kwargs: Any) -> Any:
            status = status_of(self)
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
            """Send a command that bypasses ``_send_cmd``."""
            due.take(self)
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
            due.forget(self)
            self._seen_closed = self._seen_busy = False
            super()._open_connection()
            due.send_at_once(self)

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            """Return a cursor without a ping. The connector's own method pings the server for each
            cursor, but the statement that follows detects a loss as well.
            """
            self._seen_asks_locally = True
            try:
                return super().cursor(*args, **kwargs)
            finally:
                self._seen_asks_locally = False

        def is_connected(self) -> bool:
            if self._seen_asks_locally:
                return is_there(self)
            return bool(super().is_connected())

    return named(Connection, base)


@cache
def exact_async(base: Any) -> Any:
    """Do the same as :func:`exact`, for the connection of ``mysql.connector.aio``."""
    if getattr(base, "_knows", False):
        return base

    class Connection(_seen(base)):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__

        async def _send_cmd(self, command: int, *args: Any, **kwargs: Any) -> Any:
            follows = due.may_follow(self, command, args, kwargs)
            if not follows:
                await due.take_async(self)
            refuse_if_busy(self)
            await self.handle_unread_result()
            await self._seen_drain_results()
            due.note(self, command, args)
            self._seen_sends(command)
            send = partial(super()._send_cmd, command, *args)
            packet = await (due.behind_async(self, send, kwargs) if follows else send(**kwargs))
            self._seen_first(packet)
            return packet

        async def _seen_leave(self, sql: str) -> None:
            """Send *sql*, COMMIT or ROLLBACK. Its answer is read before the next one's."""
            await due.take_async(self)
            text, after = due.to_leave(self, sql)
            self._seen_sends(QUERY)
            await super()._send_cmd(QUERY, text, expect_response=False)
            if self._socket._writer.transport.is_closing():
                return  # it could not be sent
            due.left(self, after)

        async def _seen_drain_results(self) -> None:
            while self._have_next_result:
                self._seen_leftover()
                await self._handle_result(await self._socket.read(self._read_timeout))
                if self.unread_result:
                    await self.get_rows(raw=True)

        async def handle_unread_result(self) -> None:
            if self.unread_result:
                refuse_if_busy(self)
            await super().handle_unread_result()

        async def _seen_drain(self) -> None:
            """Read the rest of a result that the application left half-read."""
            refuse_if_busy(self)
            if self.unread_result:
                await self.get_rows(raw=True)
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
            if isinstance(result, tuple):  # columns; its rows follow, as the cursor notes next
                self.unread_result = True
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
            rest_answered(self)
            return rows

        async def cmd_query_iter(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            results = super().cmd_query_iter(*args, **kwargs)
            while True:
                if self._have_next_result and not self.unread_result:
                    self._seen_busy = (
                        True  # the next packet is read from the socket before it is examined
                    )
                try:
                    result = await anext(results)
                except StopAsyncIteration:
                    return
                yield result

        async def cmd_stmt_fetch(self, *args: Any, **kwargs: Any) -> Any:
            result = await super().cmd_stmt_fetch(*args, **kwargs)
            self._seen_busy = False  # unread rows follow
            return result

        async def cmd_stmt_prepare(self, *args: Any, **kwargs: Any) -> Any:
            status = status_of(self)
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
            """Send a command that bypasses ``_send_cmd``."""
            await due.take_async(self)
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
            due.forget(self)
            self._seen_closed = self._seen_busy = False
            await super().connect()

    return named(Connection, base)


def reset(conn: Any) -> None:
    """Send COM_RESET_CONNECTION, without the statements that the connector's own method sends after
    it.
    """
    conn._handle_ok(conn._send_cmd(COM_RESET_CONNECTION))


async def reset_async(conn: Any) -> None:
    """Do the same as :func:`reset`."""
    conn._handle_ok(await conn._send_cmd(COM_RESET_CONNECTION))


def named(cls: Any, base: Any) -> Any:
    cls.__name__ = cls.__qualname__ = base.__name__
    return cls
