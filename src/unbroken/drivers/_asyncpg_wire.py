"""The code between an asyncpg protocol and its transport: commands of the pool's own, whose answers
asyncpg never sees.

asyncpg has one operation at a time, and its state machine must not meet an answer to anything else.
So the pool's BEGIN, COMMIT and ROLLBACK are written to the transport before the bytes of asyncpg's
own next operation. Their answers, which are *expected* in that order, are taken out of the data
that the server sends. Everything else goes on to asyncpg, including notices and notifications.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import lru_cache
from typing import Any, NamedTuple

from unbroken.drivers import _postgresql_flight as flight
from unbroken.drivers._postgresql_flight import BOUND as _BOUND
from unbroken.drivers._postgresql_flight import COMPLETE as _COMPLETE
from unbroken.drivers._postgresql_flight import ERROR as _ERROR
from unbroken.drivers._postgresql_flight import PARSED as _PARSED
from unbroken.drivers._postgresql_flight import READY as _READY
from unbroken.drivers._postgresql_flight import ROW as _ROW
from unbroken.drivers._psycopg_texts import LEVEL_HOLDS
from unbroken.drivers._shared import lost

#: The command that an answer belongs to. _DUE: a COMMIT or ROLLBACK sent at release. _BEGIN: a
#: BEGIN. _LEVEL: the query for the isolation level. _FIRST and _OTHERS: a trial's first statement
#: and its others.
_DUE, _BEGIN, _LEVEL, _FIRST, _OTHERS = range(5)

_GOODBYES = tuple(b"\0%c%s\0" % (field, each) for field in b"SV" for each in (b"FATAL", b"PANIC"))
_ASIDE = b"NSA"  # notices, parameters and notifications may come between any two answers

#: After an error, the server skips everything until it reads this message.
_SYNC = b"S\0\0\0\4"
_ASK_LEVEL = "SHOW transaction_isolation"
_WEAK = frozenset({b"read uncommitted", b"read committed", b"repeatable read"})

OUT_OF_STEP = "the connection is out of sync: an answer was not read to its end"


class Answer(NamedTuple):
    """A message that the server must send next. If *body* is None, its content does not matter."""

    kind: int
    body: bytes | None
    to: int


_BEGUN = (
    Answer(_PARSED, None, _BEGIN),
    Answer(_BOUND, None, _BEGIN),
    Answer(_COMPLETE, b"BEGIN\0", _BEGIN),
)
_TOLD = (
    Answer(_PARSED, None, _LEVEL),
    Answer(_BOUND, None, _LEVEL),
    Answer(_ROW, None, _LEVEL),
    Answer(_COMPLETE, b"SHOW\0", _LEVEL),
)


#: *sql* in the extended protocol, for a statement that follows immediately.
_without_sync = lru_cache(maxsize=100)(flight.without_sync)


#: Classes of SQLSTATE that report that a command is not known or not supported.
_NEVER = (b"0A", b"08", b"26", b"34", b"42")


def _code(error: bytes) -> bytes:
    fields = {each[:1]: each[1:] for each in error.split(b"\0")}
    return fields.get(b"C", b"")


class Wire:
    """The pool's own part of the data sent to and received from the server."""

    __slots__ = (
        "_behind",
        "_expected",
        "_is_sifting",
        "_known",
        "_refused",
        "_rest",
        "_takers",
        "_transport",
        "_wants_sync",
        "_weak_until",
        "broken",
        "real",
        "refusals",
    )

    real: Any

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._expected: deque[Answer] = deque()
        self._rest = b""  #: the beginning of a message whose end has not come
        self._is_sifting = False
        #: whether an operation of asyncpg's own was sent behind the expected answers
        self._behind = False
        #: whether a transaction is open, if asyncpg itself has not been told
        self._known: bool | None = None
        #: whether the server refused BEGIN: the transaction counts as one in error
        self._refused = False
        #: whether the operation behind BEGIN sends no Sync by itself, should BEGIN be refused
        self._wants_sync = False
        #: until when transactions are known not to be serializable, if nothing else is set
        self._weak_until = 0.0
        self._takers: list[asyncio.Future[None]] = []
        #: SQLSTATEs with which a BEGIN was refused because of how it was sent: a proxy or pooler on
        #: the way to the server possibly does not support this form. All connections of a driver
        #: share one list.
        self.refusals: list[bytes] = []
        self.broken = False  #: whether answers can no longer be told apart

    def owes_answer(self) -> bool:
        """Return whether an answer that asyncpg never sees has not come yet."""
        return bool(self._expected)

    def _send_end(self, sql: str) -> None:
        self._expected.append(Answer(_COMPLETE, sql.encode() + b"\0", _DUE))
        self._expected.append(Answer(_READY, b"I", _DUE))
        self._transport.write(flight.simple(sql))
        self._known = False

    def _send_begin(self, sql: str, *, wants_sync: bool) -> None:
        """Send *sql* without Sync, so that the server skips the commands behind it if it refuses
        it.
        """
        self._wants_sync, self._behind = wants_sync, True
        if time.monotonic() >= self._weak_until and "LEVEL" not in sql:
            self._expected.extend(_BEGUN + _TOLD)
            self._transport.write(_without_sync(sql) + _without_sync(_ASK_LEVEL))
        else:
            self._expected.extend(_BEGUN)
            self._transport.write(_without_sync(sql))
        self._known = True

    async def try_flight(self, timeout: float) -> bool:
        """Send a trial's statements, and return whether each got its own answer within *timeout*
        seconds.

        Raises TimeoutError if even the first answer has not come.
        """
        mark = flight.new_mark()
        others = flight.others(mark)
        self._expected.extend(Answer(*each, _FIRST) for each in flight.FIRST)
        self._expected.extend(Answer(*each, _OTHERS) for each in others)
        self._transport.write(flight.requests(mark))
        soon, later = flight.limits(timeout)
        async with asyncio.timeout(soon):
            await self._come(len(others))
        try:
            async with asyncio.timeout(later):
                await self._come()
        except TimeoutError:
            return False
        return not self.broken

    # -- incoming data -----------------------------------------------------------------------------

    def _sift(self, data: bytes) -> bytes:
        """Take the expected answers out of *data*.

        Returns the data behind the last expected answer, which is asyncpg's, too.
        """
        if self._is_sifting:  # an exception struck meanwhile: bytes are missing
            self._break()
        if self.broken:
            return b""
        self._is_sifting = True
        data = self._rest + data
        start, end = 0, len(data)
        while self._expected and not self.broken and end - start >= 5:
            stop = start + 1 + int.from_bytes(data[start + 1 : start + 5])
            if stop > end:
                break
            kind = data[start]
            if kind in _ASIDE:
                self.real.data_received(data[start:stop])
            elif not self._is_ours(kind, data[start + 5 : stop]):
                break
            start = max(stop, start + 5)
        expects = bool(self._expected)
        self._rest = data[start:] if expects else b""
        self._behind = self._behind and expects
        self._is_sifting = False
        if self._takers:
            self.wake()
        return b"" if expects or self.broken else data[start:]

    def _is_ours(self, kind: int, body: bytes) -> bool:
        """Return whether a message is an answer to the pool's own command. If not, the whole
        message is asyncpg's.
        """
        expected = self._expected[0]
        if kind == expected.kind and expected.body in (None, body):
            self._expected.popleft()
            if kind == _ROW:
                self._hear_level(body)
            return True
        if kind == _ERROR and any(each in b"\0" + body for each in _GOODBYES):
            self._expected.clear()  # asyncpg receives the server's goodbye unchanged
            return False
        if expected.to == _DUE:
            return self._is_odd(kind)
        if expected.to == _FIRST and kind == _ERROR and expected.kind != _READY:
            while self._expected[0].kind != _READY:
                self._expected.popleft()
            return True
        if kind != _ERROR or expected.to in (_FIRST, _OTHERS):
            self._break()
            return True
        self._expected.clear()
        if expected.to == _BEGIN:
            self._refused = True
            if (code := _code(body))[:2] in _NEVER:
                self.refusals.append(code)
        if self._wants_sync:
            self._transport.write(_SYNC)
        return False  # it is the answer to the statement that was skipped

    def _is_odd(self, kind: int) -> bool:
        """Mark the connection as unusable if a COMMIT or ROLLBACK was answered with something else.

        A statement sent behind it did not run in the state that its sender assumed.
        """
        if self._behind:
            self._break()
        elif kind == _READY:
            self._expected.clear()
            self._known = self.broken = True
        return True

    def _hear_level(self, row: bytes) -> None:
        is_weak = row[6:] in _WEAK  # behind the number of columns and the length of the first
        self._weak_until = time.monotonic() + LEVEL_HOLDS if is_weak else 0.0

    def _break(self) -> None:
        self.broken = True
        self._transport.abort()

    # -- callers that wait -------------------------------------------------------------------------

    async def _come(self, left: int = 0) -> None:
        """Wait until all expected answers have come, except *left* messages, or until they can
        never come.
        """
        while len(self._expected) > left and not self.broken and self.real.is_connected():
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker

    def wake(self) -> None:
        """Make the waiting tasks check again."""
        takers, self._takers = self._takers, []
        for taker in takers:
            if not taker.done():
                taker.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the transport."""
        self.real.connection_lost(exc)
        self.wake()


def out_of_step() -> BaseException:
    """Return the error of a lost connection, for one whose answers can no longer be told apart."""
    import asyncpg

    error: BaseException = lost(asyncpg.InterfaceError(OUT_OF_STEP))
    return error
