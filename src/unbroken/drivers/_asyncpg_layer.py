"""A layer between an asyncpg connection and its protocol. Everything that asyncpg sends goes
through it.

It knows whether an answer is due, and whether the session may hold something that the next holder
must not find. While a unit of work is watched, it tells the ledger every statement sent. The
protocol itself is written in C and hides its state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any
from weakref import WeakSet

from unbroken.backends.fault import is_goodbye
from unbroken.drivers import _postgresql
from unbroken.drivers._asyncpg_trips import Trips, Way
from unbroken.ledger import scope, unit
from unbroken.ledger.residue import NOTHING, left_by
from unbroken.net import last_words
from unbroken.net.fork_guard import abort, identity

#: The protocol's methods that send. All of them must be known; :func:`unknown` checks it.
SENDS = frozenset({
    "query", "bind_execute", "bind_execute_many", "bind", "copy_in", "copy_out",  # statements
    # the rest of a statement, which executes nothing by itself
    "prepare", "close_statement", "execute", "close_portal",
    "close",  # the client's goodbye
})  # fmt: skip


class Layer(Trips):
    """asyncpg's protocol, followed. Connection, PreparedStatement, Cursor and Transaction all send
    through it.

    Incoming data passes through it as well, so that it recognizes a session that the server ends
    without a request.
    """

    __slots__ = (
        "_conn_id", "_gone", "_is_cancelling", "changed_codecs", "forgot", "goodbye",
        "is_connected",
        "residue", "shared", "unsynced", "was_new", "watched",
    )  # fmt: skip

    def __init__(
        self, real: Any, transport: Any, conn_id: int, gone: Callable[[str], Exception]
    ) -> None:
        super().__init__(transport)
        self.real, self._conn_id = real, conn_id
        self._gone = gone  #: asyncpg's error for a connection that has ended
        self.is_connected = real.is_connected
        self._is_cancelling = real._is_cancelling
        self.watched = False  #: whether the ledger is told
        self.residue = NOTHING  #: everything that may have been left on the session
        #: whether a statement was only prepared: the server waits for the rest, and keeps its locks
        self.unsynced = False
        #: whether the server was told to forget what asyncpg has prepared
        self.forgot = False
        self.shared = False  #: whether other clients may get the session, too
        #: whether nothing had been sent before this layer was set up
        self.was_new = real.queries_count == 0
        #: types, with their schemas, whose codecs were set
        self.changed_codecs: set[tuple[str, str]] = set()
        self.goodbye = b""  #: the server's last message

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def hear(self) -> None:
        """Insert this layer between the transport and the protocol."""
        self._transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Take the data that the event loop has read. asyncpg hides an error that answers no
        request.
        """
        if self._expected and not (data := self._sift(data)):
            return
        if self.may_be_busy:
            # Behind an answer that ended, or in the middle of a row. In the second case more data
            # follows.
            self.may_have_ended = data[-2:] == b"\0\0" and (start := data.rfind(b"SFATAL\0")) >= 5
            if self.may_have_ended:
                self.goodbye = bytes(data[start - 5 :])
        else:
            self._overhear(data)
        self.real.data_received(data)

    def _overhear(self, data: bytes) -> None:
        """Read the error with which PostgreSQL ends a session.

        PostgreSQL sends it up to a millisecond before it closes the socket. Otherwise the
        connection would count as good in that time, and its next statement would fail with
        asyncpg's "cannot switch to state 15; another operation (2) is in progress". From here on
        the socket also reports the end.
        """
        words = last_words.parse(data, "postgresql")
        if words is None or not is_goodbye(words.code, words.text, "postgresql"):
            return
        self.goodbye, self.may_have_ended = bytes(data), True
        sock = self._transport.get_extra_info("socket")
        fd = -1 if sock is None else sock.fileno()
        mark = identity(fd) if fd >= 0 else None
        if mark is not None:
            abort(fd, mark)

    async def query(self, query: Any, timeout: Any) -> Any:
        """Send ``execute`` without arguments, or ``transaction()``."""
        if self.leaves and (end := self.left(query)) is not None:
            return end
        if timeout is None and self._waits(query):
            return "BEGIN"
        if (answer := self._end(query)) is not None:
            return answer
        return await self._statement(query, lambda: self.real.query(query, timeout), Way.SIMPLE)

    async def bind_execute(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Send ``fetch…``, ``execute`` with arguments, prepared statements, cursors."""
        return await self._statement(
            state.query, lambda: self.real.bind_execute(state, *args, **kwargs), Way.EXTENDED
        )

    async def bind_execute_many(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Send ``executemany`` or ``fetchmany``."""
        return await self._statement(
            state.query, lambda: self.real.bind_execute_many(state, *args, **kwargs), Way.MANY
        )

    async def bind(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        """Open a cursor's portal."""
        return await self._statement(
            state.query, lambda: self.real.bind(state, *args, **kwargs), Way.EXTENDED
        )

    async def copy_in(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        """Send ``copy_to_table`` or ``copy_records_to_table``."""
        return await self._statement(
            copy_stmt, lambda: self.real.copy_in(copy_stmt, *args, **kwargs), Way.ALONE
        )

    async def copy_out(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
        """Send ``copy_from_table`` or ``copy_from_query``."""
        return await self._statement(
            copy_stmt, lambda: self.real.copy_out(copy_stmt, *args, **kwargs), Way.ALONE
        )

    async def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare a statement before its first execution. This sends no Sync, unlike everything
        else.
        """
        return await self._exchange(lambda: self.real.prepare(*args, **kwargs), Way.PREPARES)

    async def close_statement(self, *args: Any, **kwargs: Any) -> Any:
        """Close a prepared statement: housekeeping."""
        return await self._exchange(lambda: self.real.close_statement(*args, **kwargs), Way.ASIDE)

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a cursor's next rows."""
        return await self._exchange(lambda: self.real.execute(*args, **kwargs), Way.ALONE)

    async def close_portal(self, *args: Any, **kwargs: Any) -> Any:
        """End a cursor."""
        return await self._exchange(lambda: self.real.close_portal(*args, **kwargs), Way.ASIDE)

    async def _exchange(self, send: Callable[[], Awaitable[Any]], way: Way) -> Any:
        self._check()
        prepares = way is Way.PREPARES
        if prepares:
            self.unsynced = True
            ledger = scope.current(self._conn_id) if self.watched else None
            if ledger is not None:
                self._tell_begin(ledger)
        result = await self._go(send, way)
        self.unsynced = self.unsynced and prepares
        self.may_be_busy = self.may_have_ended
        return result

    def _ended(self) -> Exception:
        """Return the error that asyncpg would raise a moment later, once it has seen the closed
        socket.

        Nothing has been sent.
        """
        words = last_words.parse(self.goodbye, "postgresql")
        return self._gone(
            f"connection was closed by the server{'' if words is None else f': {words.text}'}"
        )

    async def unreported(self, sql: str) -> None:
        """Send *sql* on the pool's own behalf. It is not reported to any ledger."""
        await self._exchange(lambda: self.real.query(sql, None), Way.SIMPLE)

    async def _statement(self, sql: Any, send: Callable[[], Awaitable[Any]], way: Way) -> Any:
        self._check()
        text = str(sql)
        self._note(text)
        left = left_by(text, "postgresql")
        if left:
            self.residue |= left
        self.forgot = self.forgot or _forgets(text)
        ledger = scope.current(self._conn_id) if self.watched else None
        result = await (
            self._go(send, way) if ledger is None else self._told(ledger, text, send, way)
        )
        self.unsynced = False
        self.may_be_busy = self.may_have_ended
        return result

    def _tell_begin(self, ledger: unit.Unit) -> None:
        """Report the BEGIN that is sent together with the next command."""
        if self._begin is not None:
            ends = _postgresql.about_to_send(ledger, self._conn_id, self._begin, True)
            _postgresql.answered(ledger, self._conn_id, ends, None)

    async def _told(
        self, ledger: unit.Unit, sql: str, send: Callable[[], Awaitable[Any]], way: Way
    ) -> Any:
        if not self.is_connected():  # asyncpg knows it, and sends nothing
            return await send()
        self._tell_begin(ledger)
        ends = _postgresql.about_to_send(ledger, self._conn_id, sql, not self.is_in_transaction())
        try:
            result = await self._go(send, way)
        except Exception as error:
            _postgresql.refused(
                ledger, self._conn_id, ends, getattr(error, "sqlstate", None), str(error)
            )
            raise
        _postgresql.answered(ledger, self._conn_id, ends, _tag(result))
        return result


_FORGETS = re.compile(r"\b(?:DEALLOCATE\s+(?:PREPARE\s+)?|DISCARD\s+)ALL\b")


def _forgets(text: str) -> bool:
    """Return whether the server has no prepared statement left after *text*. asyncpg does not
    notice.
    """
    upper = text.upper()
    may = "DEALLOCATE" in upper or "DISCARD" in upper  # quicker than the search
    return may and _FORGETS.search(upper) is not None


def _tag(result: Any) -> str | bytes | None:
    if isinstance(result, tuple) and len(result) > 1:
        result = result[1]  # the result of bind_execute, with its status
    return result if isinstance(result, (str, bytes)) else None


@cache
def unknown(protocol: Any) -> str | None:
    """Return the reason why *protocol*, asyncpg's class, cannot be used: it has a sending method
    that the layer does not know. None: there is no such method.
    """
    found = {
        name
        for name in dir(protocol)
        if not name.startswith("_")
        and name not in _CALLBACKS
        and name not in SENDS
        and callable(getattr(protocol, name))
    }
    return f"its protocol has an unknown method, {sorted(found)[0]}()" if found else None


#: The protocol's other public methods: asyncio's callbacks, and methods that send nothing.
_CALLBACKS = frozenset(
    "abort connection_lost connection_made data_received eof_received get_record_class"
    " get_server_pid get_settings is_closed is_connected is_in_transaction is_ssl pause_writing"
    " resume_writing set_connection".split()
)


@cache
def noting(base: Any) -> Any:
    """Return a subclass of *base*, an asyncpg connection class, that notes the codecs that a holder
    sets. Return *base* itself if it already does so.
    """
    if hasattr(base, "_unbroken_notes"):
        return base

    class Connection(base):  # type: ignore[misc] # the base is only known here
        __doc__ = base.__doc__
        __module__ = base.__module__
        __slots__ = ()
        _unbroken_notes = True

        def _get_unique_id(self, prefix: str) -> str:
            layer = self._protocol
            if isinstance(layer, Layer) and layer.shared:
                prefix = f"{prefix}_{_token(os.getpid())}"
            name: str = super()._get_unique_id(prefix)
            return name

        async def close(self, *args: Any, **kwargs: Any) -> None:
            _closes(self)
            await super().close(*args, **kwargs)

        def terminate(self) -> None:
            _closes(self)
            super().terminate()

        async def set_type_codec(
            self, typename: str, *, schema: str = "public", **kwargs: Any
        ) -> None:
            _note(self, typename, schema)
            await super().set_type_codec(typename, schema=schema, **kwargs)

        async def reset_type_codec(self, typename: str, *, schema: str = "public") -> None:
            _note(self, typename, schema)
            await super().reset_type_codec(typename, schema=schema)

        async def set_builtin_type_codec(
            self, typename: str, *, schema: str = "public", **kwargs: Any
        ) -> None:
            _note(self, typename, schema)
            await super().set_builtin_type_codec(typename, schema=schema, **kwargs)

    Connection.__name__ = Connection.__qualname__ = base.__name__
    return Connection


@cache
def _token(_pid: int) -> str:
    """Return a mark of this process for the names that asyncpg creates on a shared session. asyncpg
    itself only numbers them.
    """
    return os.urandom(4).hex()


#: Connections that were open when the application closed them.
closed_by_holder: WeakSet[Any] = WeakSet()


def _closes(conn: Any) -> None:
    if not conn.is_closed():
        closed_by_holder.add(conn)


def _note(conn: Any, typename: str, schema: str) -> None:
    layer = conn._protocol
    if isinstance(layer, Layer):
        layer.changed_codecs.add((typename, schema))
