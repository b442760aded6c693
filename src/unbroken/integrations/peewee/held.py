"""A pool's connection that a task holds: pwasyncio's wrapper, which notices a lost connection."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from playhouse import pwasyncio

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.aio import AsyncPool
from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.integrations.peewee.again import mark
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.integrations.peewee.heal import missed, past_for
from unbroken.integrations.peewee.slot import caller
from unbroken.ledger.scope import current
from unbroken.messages.data import TRANSACTION_LOST
from unbroken.pool.heal import Before, before, is_open
from unbroken.pool.steps import run_async

#: Code in these packages uses the driver's own connection knowingly.
_OWN = ("playhouse.", "peewee", "unbroken.")


class Held(pwasyncio.AsyncConnectionWrapper):  # type: ignore[misc] # peewee ships no types that we could use
    """A connection that a task holds; mixed in before pwasyncio's wrapper, whose ``conn`` is the
    driver's own.
    """

    def __init__(self, conn: Any, pool: AsyncPool) -> None:
        super().__init__(conn)
        self._pool = pool
        loan: Any = pool.loan_of(conn)
        self.loan, self.owner, self.entry = loan, loan.state, loan.entry
        self.entry.taken_at_call(*caller())
        loan.begun = (unit := current(), None)  # acquire() has enlisted it
        self.last_used = self.entry.taken_at
        self.is_open = False  #: whether a statement left a transaction open
        self.pins = 0  #: statements that are using it
        #: taken by a statement or a transaction, not by connect(): it is not kept afterwards
        self.by_itself = False
        self.past = past_for(pool)
        self.told: Any = None  #: the statement under way
        #: whether the connection was known to be lost before it was sent
        self.was_dead = Before.WELL
        #: the driver's last error, and its fault
        self.met: tuple[BaseException, Fault] | None = None
        self.is_beginning = False  #: a BEGIN of the body's own is being sent
        self.is_begun = False  #: a transaction was begun in a way that can be repeated
        self.begin_with: Any = None  #: … with these arguments
        self.unsent: UnbrokenError | None = None  #: the error that reports so before sending
        self.successor: Held | None = None  #: its replacement in the middle of a statement
        limit = self.owner.settings.deadline
        self.until = min(
            math.inf if limit is None else self.last_used + limit,
            math.inf if unit is None else unit.until,
        )
        loan.arm(self.until)

    def resume(self, other: Held) -> None:
        """Replace *other*, whose holder and deadline stay."""
        self.by_itself, self.pins, other.successor = other.by_itself, other.pins, self
        self.until = min(self.until, other.until)
        self.loan.disarm()
        self.loan.arm(self.until)

    def begins(self, given: Any = None) -> None:
        """Note that a transaction was begun, *given* these arguments."""
        self.is_open = self.is_begun = True
        self.begin_with = given or self.begin_with
        if self.past is not None:
            self.past.begins()

    def tell(self, sql: Any) -> None:
        """Report *sql*, which is about to be sent. Raises ConnectionLostError if it needs state of
        a lost session.
        """
        past = self.past
        if past is None or self.is_beginning:
            return
        self.told, self.was_dead = sql, before(self.loan, past, sql)
        if past.forgot and past.misses(sql):
            raise translated(missed(self.owner))
        past.sent(sql, is_open(self.loan, past, lambda: not self.is_begun))

    def stale(self) -> bool:
        """Return whether this connection is known to be lost. No round trip."""
        known = self.conn is None or self.entry.cause is not None or super().stale()
        return known or (not self._streaming and self.loan.is_dead)

    async def answers(self) -> bool:
        """Return whether the server answers. After long silence one ping finds out whether the
        connection was dropped silently, as the pool does before it hands one out.
        """
        if monotonic() - self.last_used >= self.owner.fresh_for and not (
            self.is_open or self._streaming
        ):
            await run_async(self.loan.answers(self.last_used), self.owner.runtime.do)
        return self.entry.cause is None

    def join(self) -> None:
        """Join the current unit of work before a statement. The unit must see it, also if the
        connection is older.
        """
        unit = current()
        if unit is not None and not self.loan.has_joined(unit):
            older = "the unit of work uses a transaction that began before it"
            self.loan.join(unit, older if self.is_open else None)

    def look(self) -> None:
        """Record the open transaction after the server's answer."""
        self.is_open = self.owner.driver.is_in_transaction(self.conn) is not False
        self.is_begun = self.is_begun and self.is_open
        self.last_used = monotonic()

    @contextmanager
    def listening(self, sql: Any = "") -> Iterator[None]:
        """Report an error of *sql*, sent inside, to the pool and the unit of work."""
        try:
            yield
        except BaseException as exc:
            fault = self.loan.failed(origin(exc))
            self.met = (origin(exc), fault)
            if fault.kind is FaultKind.OTHER and self.entry.cause is None:
                self.look()
            if (
                isinstance(exc, Exception)
                and not isinstance(exc, UnbrokenError)
                and self.entry.cause is Cause.DEADLINE
            ):
                raise translated(self.loan.shown(exc, self.owner.settings.deadline)) from exc
            if isinstance(exc, Exception) and fault.is_lost:
                mark(exc, sql)
            raise

    def loss(self) -> UnbrokenError:
        """Return the error that reports so."""
        taken, why = self.entry.place, self.owner.explain(self.entry, in_use=True)[0].value
        what = (
            f"the connection of pool {self.owner.name} that was taken at {taken} was lost ({why})"
            f" in a transaction; {self.loan.what_is_left()}"
        )
        self.unsent = translated(self.owner.error(ConnectionLostError, TRANSACTION_LOST(what)))
        return self.unsent

    async def send(self, sql: str) -> Any:
        """Send a statement of this library's own."""
        return await super().execute(sql)

    @property
    def conn(self) -> Any:
        """Return the driver's own connection. Code that takes it from here may send anything."""
        past = self.__dict__.get("past")
        if past is not None and not str(sys._getframe(1).f_globals["__name__"]).startswith(_OWN):
            past.unseen("the application has the driver's connection")
        return self.__dict__["conn"]

    @conn.setter
    def conn(self, conn: Any) -> None:
        self.__dict__["conn"] = conn

    async def execute(self, sql: str, params: Any = None) -> Any:
        """Do the same as pwasyncio."""
        self.tell(sql)
        with self.listening(sql):
            result = await super().execute(sql, params)
        self.look()
        return result

    async def execute_iter(self, sql: str, params: Any = None) -> Any:
        """Do the same as pwasyncio."""
        self.tell(sql)
        with self.listening():
            return await super().execute_iter(sql, params)

    async def close(self) -> None:
        """Return the connection to its pool; a lost one is closed."""
        conn: Any = self.conn
        self.conn = None
        self.loan.disarm()
        if conn is not None:
            if self.entry.cause is not None:
                self.owner.driver.close(conn)
            await self._pool.release(conn)
