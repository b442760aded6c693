"""A connection of a pool's in a task's hands: pwasyncio's wrapper with an ear for what is lost."""

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

#: Code in these packages knows what it does with the driver's own connection.
_OWN = ("playhouse.", "peewee", "unbroken.")


class Held(pwasyncio.AsyncConnectionWrapper):  # type: ignore[misc] # peewee ships no types that we could use
    """A connection in a task's hands; mixed in before pwasyncio's wrapper, whose ``conn`` is the
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
        self.pins = 0  #: statements that are at work on it
        #: taken by a statement or a transaction, not by connect(): nobody keeps it afterwards
        self.by_itself = False
        self.past = past_for(pool)
        self.told: Any = None  #: the statement under way
        #: whether the connection was known to be lost before it was sent
        self.was_dead = Before.WELL
        self.met: tuple[BaseException, Fault] | None = None  #: the driver's last error, its meaning
        self.is_beginning = False  #: a BEGIN of the body's own is being sent
        self.is_begun = False  #: a transaction was begun in a way that can be repeated
        self.begin_with: Any = None  #: … with these arguments
        self.unsent: UnbrokenError | None = None  #: the error that says so before sending
        self.successor: Held | None = None  #: what took its place in the middle of a statement
        limit = self.owner.settings.deadline
        self.until = min(
            math.inf if limit is None else self.last_used + limit,
            math.inf if unit is None else unit.until,
        )
        loan.arm(self.until)

    def resume(self, other: Held) -> None:
        """This one takes the place of *other*, whose holder and deadline stay."""
        self.by_itself, self.pins, other.successor = other.by_itself, other.pins, self
        self.until = min(self.until, other.until)
        self.loan.disarm()
        self.loan.arm(self.until)

    def begins(self, given: Any = None) -> None:
        """A transaction was begun, *given* these arguments."""
        self.is_open = self.is_begun = True
        self.begin_with = given or self.begin_with
        if self.past is not None:
            self.past.begins()

    def tell(self, sql: Any) -> None:
        """*sql* is about to be sent. Raises ConnectionLostError for what only a lost session
        knew.
        """
        past = self.past
        if past is None or self.is_beginning:
            return
        self.told, self.was_dead = sql, before(self.loan, past, sql)
        if past.forgot and past.misses(sql):
            raise translated(missed(self.owner))
        past.sent(sql, is_open(self.loan, past, lambda: not self.is_begun))

    def stale(self) -> bool:
        """Whether this connection is known to be lost. No round trip."""
        known = self.conn is None or self.entry.cause is not None or super().stale()
        return known or (not self._streaming and self.loan.is_dead)

    async def answers(self) -> bool:
        """After long silence one ping tells whether the connection was dropped silently, as the
        pool does before it lends one.
        """
        if monotonic() - self.last_used >= self.owner.fresh_for and not (
            self.is_open or self._streaming
        ):
            await run_async(self.loan.answers(self.last_used), self.owner.runtime.do)
        return self.entry.cause is None

    def join(self) -> None:
        """A statement is about to run within a unit of work: it must hear of it, also where the
        connection is older.
        """
        unit = current()
        if unit is not None and not self.loan.has_joined(unit):
            older = "a transaction that was begun before the unit of work is used in it"
            self.loan.join(unit, older if self.is_open else None)

    def look(self) -> None:
        """The server has answered: what is open now."""
        self.is_open = self.owner.driver.is_in_transaction(self.conn) is not False
        self.is_begun = self.is_begun and self.is_open
        self.last_used = monotonic()

    @contextmanager
    def listening(self, sql: Any = "") -> Iterator[None]:
        """The pool and the unit of work are told what it means that *sql*, sent inside, raises."""
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
        """The error that says so."""
        taken, why = self.entry.place, self.owner.explain(self.entry, in_use=True)[0].value
        what = (
            f"connection of pool {self.owner.name}, taken at {taken}, was lost ({why}) in a"
            f" transaction; {self.loan.what_is_left()}"
        )
        self.unsent = translated(self.owner.error(ConnectionLostError, TRANSACTION_LOST(what)))
        return self.unsent

    async def send(self, sql: str) -> Any:
        """Send a statement of the body's own."""
        return await super().execute(sql)

    @property
    def conn(self) -> Any:
        """The driver's own. Code that takes it from here may send anything."""
        past = self.__dict__.get("past")
        if past is not None and not str(sys._getframe(1).f_globals["__name__"]).startswith(_OWN):
            past.unseen("the application has the driver's connection")
        return self.__dict__["conn"]

    @conn.setter
    def conn(self, conn: Any) -> None:
        self.__dict__["conn"] = conn

    async def execute(self, sql: str, params: Any = None) -> Any:
        """As pwasyncio's."""
        self.tell(sql)
        with self.listening(sql):
            result = await super().execute(sql, params)
        self.look()
        return result

    async def execute_iter(self, sql: str, params: Any = None) -> Any:
        """As pwasyncio's."""
        self.tell(sql)
        with self.listening():
            return await super().execute_iter(sql, params)

    async def close(self) -> None:
        """Give it back to the pool that lent it; what is lost is closed."""
        conn: Any = self.conn
        self.conn = None
        self.loan.disarm()
        if conn is not None:
            if self.entry.cause is not None:
                self.owner.driver.close(conn)
            await self._pool.release(conn)
