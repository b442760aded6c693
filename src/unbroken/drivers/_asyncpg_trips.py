"""Fewer round trips with asyncpg: an answer that is read later, and a BEGIN that is not waited for.

- :meth:`Trips.leave` sends COMMIT or ROLLBACK at the end of a use. Its answer is *due*: it is read
  when it comes, at the latest before that to the next statement.
- A BEGIN *waits* until the first statement of its transaction is sent, and is then sent with it: in
  the extended protocol, without a Sync between the two, so that the server skips the statement
  where it refuses BEGIN. A transaction whose BEGIN was refused is one in error: nothing is sent in
  it, and its COMMIT is a ROLLBACK.

asyncpg keeps what the last ReadyForQuery said of a transaction, and hears none of those answers. It
is right again after its own next operation, unless that only prepares. Until then, what
:meth:`Trips.is_in_transaction` says counts.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from time import monotonic
from typing import Any

from unbroken.drivers._asyncpg_wire import Wire, out_of_step
from unbroken.drivers._psycopg_texts import TEXTS, may_set_level

#: What asyncpg's ``transaction()`` sends, if it is the outermost one.
_BEGINS = re.compile(
    r"BEGIN(?: ISOLATION LEVEL (?:READ COMMITTED|READ UNCOMMITTED|REPEATABLE READ|SERIALIZABLE))?"
    r"(?: READ ONLY)?(?: DEFERRABLE)?;"
)
_ENDS = {"COMMIT": "COMMIT", "COMMIT;": "COMMIT", "ROLLBACK": "ROLLBACK", "ROLLBACK;": "ROLLBACK"}

#: A portal that there is not: to close it changes nothing, and makes the server ready.
_NOWHERE = "unbroken"

FAILED = (
    "current transaction is aborted, commands ignored until end of transaction block: its BEGIN was"
    " refused"
)


class Way(Enum):
    """How an operation of asyncpg's goes with a BEGIN that waits."""

    SIMPLE = "with it, and sends no Sync"
    EXTENDED = "with it, and ends with a Sync"
    PREPARES = "with it, and has a Sync only where it fails"
    ALONE = "behind its answer"
    MANY = "behind its answer, and asyncpg itself must know of the transaction"
    ASIDE = "before it: it is no statement"


_TOGETHER = (Way.SIMPLE, Way.EXTENDED, Way.PREPARES)


class Trips(Wire):
    """The operations of an asyncpg protocol, and when they are sent."""

    __slots__ = (
        "_begin", "_is_weak", "_texts", "alone", "flies", "is_torn", "leaves", "may_be_busy",
        "may_have_ended", "was_unsent",
    )  # fmt: skip

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        #: False only when every answer was read; True: the protocol itself must be asked
        self.may_be_busy = True
        self.may_have_ended = False  #: whether the last that came is the server's goodbye
        #: whether the session is known to be nobody else's: several commands can be sent at once
        self.alone = False
        self.flies = False  #: … if that was tried with what answers at the address
        #: whether nobody waits for the answer to the COMMIT or ROLLBACK that comes next
        self.leaves = False
        self._begin: str | None = None  #: the BEGIN that waits
        self.was_unsent = False  #: whether it failed before its statement was sent
        #: whether something of the pool's own is being sent, or was with an operation that has not
        #: ended: an exception that strikes then leaves it so
        self.is_torn = False
        #: whether the open transaction is known not to be serializable
        self._is_weak: bool | None = None
        self._texts: deque[str | None] = deque(maxlen=TEXTS)

    def is_in_transaction(self) -> bool:
        """Whether a transaction is open, or begins with the next statement."""
        if self._begin is not None or self._refused:
            return True
        is_open: bool = self.real.is_in_transaction() if self._known is None else self._known
        return is_open

    # -- the end of a use --------------------------------------------------------------------------

    def may_leave(self) -> bool:
        """Whether the server has a transaction to end, and :meth:`leave` can be called."""
        return (
            self._begin is None
            and not self._refused
            and not self._expected
            and self.is_in_transaction()
            and not self._transport.is_closing()
        )

    def leave(self, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK, and do not wait. Its answer is due from now on.

        Raises what a lost connection raises where nothing can be sent.
        """
        if not self.may_leave() or self.is_torn or self.broken or not self.real.is_connected():
            raise out_of_step()
        self.is_torn = True  # out of step from here, until it is sent
        self._texts.clear()
        self.may_be_busy = False
        self._send_end(sql)
        self.is_torn = False

    def left(self, sql: Any) -> str | None:
        """What the server will answer to *sql*, the end of a transaction, which was left; None: it
        must be waited for.
        """
        tag = _ENDS.get(sql) if isinstance(sql, str) else None
        if tag is None or not self.may_leave():
            return None
        self.leave(tag)
        return tag

    async def take(self) -> None:
        """Read what is due.

        Raises what a lost connection raises where it cannot come any more.
        """
        await self._come()
        if self.may_have_ended:
            raise self._ended()
        if self._expected:
            raise out_of_step()

    async def try_ahead(self, timeout: float) -> bool:
        """As :meth:`try_flight`. Raises what a lost connection raises, too."""
        if self.is_torn or self._expected or self.broken or not self.real.is_connected():
            raise out_of_step()
        self.is_torn = True  # out of step from here, until all is read
        self.may_be_busy = False
        went_well = await self.try_flight(timeout)
        if self.may_have_ended:
            raise self._ended()
        if self._expected and not self.broken and not self.real.is_connected():
            raise out_of_step()
        self.is_torn = not went_well
        return went_well

    def _ended(self) -> Exception:
        raise NotImplementedError

    def texts(self) -> Sequence[str | None]:
        """What was sent in the transaction that is open; None stands for what is not known, for a
        level at which a COMMIT may fail although its transaction only read, and for a transaction
        in which a statement failed.
        """
        is_weak = monotonic() < self._weak_until if self._is_weak is None else self._is_weak
        return self._texts if is_weak else (None,)

    def _note(self, text: str) -> None:
        if not self.is_in_transaction():
            self._texts.clear()
            self._is_weak = None
        self._texts.append(text)
        if may_set_level(text):
            self._weak_until = 0.0

    def _hear_level(self, row: bytes) -> None:
        super()._hear_level(row)
        if any(may_set_level(text) for text in self._texts):  # sent with the question
            self._weak_until = 0.0

    # -- a BEGIN that waits ------------------------------------------------------------------------

    def _waits(self, sql: Any) -> bool:
        """Whether *sql* is a BEGIN that can wait for its first statement. It does so from now."""
        if (
            not self.alone
            or self.refusals
            or self.may_be_busy
            or not isinstance(sql, str)
            or _BEGINS.fullmatch(sql) is None
            or self.is_in_transaction()
            or self.may_have_ended
            or self.broken
            or not self.real.is_connected()
        ):
            return False
        self._texts.clear()
        self._is_weak = "SERIALIZABLE" not in sql if "LEVEL" in sql else None
        self._begin = sql
        return True

    def _end(self, sql: Any) -> str | None:
        """What the server would answer to *sql*, the end of a transaction of which it has not
        heard; None: it must be sent.
        """
        if self._begin is None and not self._refused:
            return None
        tag = _ENDS.get(sql) if isinstance(sql, str) else None
        if tag is None:
            return None
        if self._begin is not None:
            self._begin = None
            return tag
        self._refused = self.was_unsent = False
        self._known = None
        return None if self.real.is_in_transaction() else "ROLLBACK"

    def _check(self) -> None:
        """Raise where nothing may be sent."""
        import asyncpg

        if self.may_have_ended:
            raise self._ended()
        if self.broken:
            raise out_of_step()
        if self.is_torn:
            raise asyncpg.InterfaceError(
                "cannot perform operation: another operation is in progress"
            )
        if self._refused:
            raise asyncpg.InFailedSQLTransactionError(FAILED)

    async def _go(self, send: Callable[[], Awaitable[Any]], way: Way) -> Any:
        """Send one operation of asyncpg's, *send*, with or behind what must be sent before it."""
        if self._expected and (
            way not in _TOGETHER or not self.alone or self.real._is_cancelling()
        ):  # of an operation that was broken off: whether its BEGIN was refused must be known
            await self.take()
            self._check()
        if self._begin is not None and way is not Way.ASIDE:
            if way in _TOGETHER and self.alone and not self.real._is_cancelling():
                return await self._fly(send, way)
            await self._begin_now()
        elif way is Way.MANY and self._known is not None:
            await self._tell_asyncpg()
        self.may_be_busy = True
        self._behind = bool(self._expected)
        try:
            result = await send()
        except Exception as error:
            self._failed(error)
            raise
        if way is not Way.PREPARES:
            self._known = None
        return result

    def _failed(self, error: Exception) -> None:
        self._texts.append(None)
        if getattr(error, "sqlstate", None):  # the server was ready again behind it
            self._known = None

    async def _fly(self, send: Callable[[], Awaitable[Any]], way: Way) -> Any:
        """Send BEGIN and an operation together."""
        begin, self._begin = self._begin, None
        assert begin is not None
        self.is_torn = self.may_be_busy = True  # out of step from here, until all is read
        self._send_begin(begin, wants_sync=way is Way.SIMPLE)
        try:
            result = await send()
        except BaseException as error:
            await self._crashed(error)
            raise
        self.is_torn = False
        if way is not Way.PREPARES:
            self._known = None
        return result

    async def _crashed(self, error: BaseException) -> None:
        """An operation that was sent with its BEGIN failed."""
        self._texts.append(None)
        if not self._expected:
            self.is_torn = False
            if isinstance(error, Exception):
                self._failed(error)
        elif self.real._is_cancelling():
            self.is_torn = False  # what is expected comes before the server is ready again
        elif isinstance(error, Exception) and self.real.is_connected():
            # nothing of it was sent, because its values cannot be: BEGIN is, as ever
            try:
                await self._tell_asyncpg()
            finally:
                self.is_torn = bool(self._expected)

    async def _begin_now(self) -> None:
        begin, self._begin = self._begin, None
        # until it is known that it was not refused, nor lost
        self._refused = self.was_unsent = True
        self.may_be_busy = True
        await self.real.query(begin, None)
        self._refused = self.was_unsent = False
        self._known = None

    async def _tell_asyncpg(self) -> None:
        """Have the server tell asyncpg whether a transaction is open."""
        self.may_be_busy = True
        await self.real.close_portal(_NOWHERE, None)
        self._known = None
