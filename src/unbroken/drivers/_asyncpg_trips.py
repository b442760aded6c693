"""Fewer round trips with asyncpg: an answer that is read later, and a BEGIN that is not waited for.

- :meth:`Trips.leave` sends COMMIT or ROLLBACK at the end of a use. Its answer is *due*. It is read
  when it comes, and always before the answer to the next statement.

- A BEGIN *waits* until the first statement of its transaction is sent, and is then sent with it.
  The extended protocol allows that without a Sync between the two, so the server skips the
  statement if it refuses BEGIN. A transaction whose BEGIN was refused counts as one in error:
  nothing is sent in it, and its COMMIT is a ROLLBACK.

asyncpg keeps the transaction state of the last ReadyForQuery, and receives none of those answers.
It is right again after its own next operation, unless that only prepares. Until then,
:meth:`Trips.is_in_transaction` is authoritative.
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

#: The statements that asyncpg's ``transaction()`` sends if it is the outermost one.
_BEGINS = re.compile(
    r"BEGIN(?: ISOLATION LEVEL (?:READ COMMITTED|READ UNCOMMITTED|REPEATABLE READ|SERIALIZABLE))?"
    r"(?: READ ONLY)?(?: DEFERRABLE)?;"
)
_ENDS = {"COMMIT": "COMMIT", "COMMIT;": "COMMIT", "ROLLBACK": "ROLLBACK", "ROLLBACK;": "ROLLBACK"}

#: A portal that does not exist. Closing it changes nothing, and makes the server send
#: ReadyForQuery.
_NOWHERE = "unbroken"

FAILED = (
    "current transaction is aborted, commands ignored until end of transaction block: its BEGIN was"
    " refused"
)


class Way(Enum):
    """How an operation of asyncpg's is combined with a BEGIN that waits."""

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
        self.may_have_ended = False  #: whether the last message may be the server's goodbye
        #: whether the session is known to be exclusive: several commands can be sent at the same
        #: time
        self.alone = False
        self.flies = False  #: … if that was tried with the server at this address
        #: whether no caller waits for the answer to the next COMMIT or ROLLBACK
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
        """Return whether a transaction is open, or begins with the next statement."""
        if self._begin is not None or self._refused:
            return True
        is_open: bool = self.real.is_in_transaction() if self._known is None else self._known
        return is_open

    # -- the end of a use --------------------------------------------------------------------------

    def may_leave(self) -> bool:
        """Return whether the server has a transaction to end, so that :meth:`leave` can be
        called.
        """
        return (
            self._begin is None
            and not self._refused
            and not self._expected
            and self.is_in_transaction()
            and not self._transport.is_closing()
        )

    def leave(self, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK, and do not wait. Its answer is due from now on.

        Raises the error of a lost connection if nothing can be sent.
        """
        if not self.may_leave() or self.is_torn or self.broken or not self.real.is_connected():
            raise out_of_step()
        self.is_torn = True  # out of step from here, until it is sent
        self._texts.clear()
        self.may_be_busy = False
        self._send_end(sql)
        self.is_torn = False

    def left(self, sql: Any) -> str | None:
        """Return the status that the server will send in answer to *sql*, the end of a transaction,
        which was sent without waiting. None: the answer must be waited for.
        """
        tag = _ENDS.get(sql) if isinstance(sql, str) else None
        if tag is None or not self.may_leave():
            return None
        self.leave(tag)
        return tag

    async def take(self) -> None:
        """Read the answers that are due.

        Raises the error of a lost connection if they cannot come any more.
        """
        await self._come()
        if self.may_have_ended:
            raise self._ended()
        if self._expected:
            raise out_of_step()

    async def try_ahead(self, timeout: float) -> bool:
        """Do the same as :meth:`try_flight`. Raises the error of a lost connection, too."""
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
        """Return the statements sent in the open transaction.

        None stands for an unknown statement, and for a transaction in which a statement failed. It
        also stands for an isolation level at which a COMMIT may fail although its transaction only
        read.
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
        if any(may_set_level(text) for text in self._texts):  # sent with the query for the level
            self._weak_until = 0.0

    # -- a BEGIN that waits ------------------------------------------------------------------------

    def _waits(self, sql: Any) -> bool:
        """Return whether *sql* is a BEGIN that can wait for its first statement. If so, it waits
        from now on.
        """
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
        """Return the status that the server would send in answer to *sql*, the end of a transaction
        that was never sent to it. None: *sql* must be sent.
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
        """Raise if nothing may be sent."""
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
        """Send one operation of asyncpg's, *send*, with or behind the commands that must be sent
        before it.
        """
        if self._expected and (
            way not in _TOGETHER or not self.alone or self.real._is_cancelling()
        ):  # an operation was broken off: whether its BEGIN was refused must be known
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
        """Handle the failure of an operation that was sent with its BEGIN."""
        self._texts.append(None)
        if not self._expected:
            self.is_torn = False
            if isinstance(error, Exception):
                self._failed(error)
        elif self.real._is_cancelling():
            self.is_torn = False  # the expected answers come before the server is ready again
        elif isinstance(error, Exception) and self.real.is_connected():
            # The operation sent nothing, because its values cannot be encoded. BEGIN is sent as
            # usual.
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
        """Make the server tell asyncpg whether a transaction is open."""
        self.may_be_busy = True
        await self.real.close_portal(_NOWHERE, None)
        self._known = None
