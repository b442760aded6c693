"""A connection in use: its unit of work, its fitness, and the meaning of its errors."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

from unbroken.abc import CANNOT_SERVE, Cause, Connection, Fault, FaultKind
from unbroken.backends.commits import is_of_the_server
from unbroken.brain.entry import Entry
from unbroken.errors import (
    CommitUnknownError,
    ConnectionLostError,
    UnbrokenError,
)
from unbroken.ledger.scope import current, is_left_over
from unbroken.ledger.unit import Unit
from unbroken.messages.units import ABANDONED_TASK
from unbroken.net.liveness import Liveness, judge
from unbroken.pool.admission import cannot_serve
from unbroken.pool.answers import lost_in_flight
from unbroken.pool.endings import THEIR_DOING
from unbroken.pool.poolers import met_another
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Flow
from unbroken.pool.undone import concerns, ending_of, tell_on

#: The causes of a connection in use that ended without a message. The driver may have read the
#: message.
_VAGUE = (Cause.CLOSED_BY_PEER, Cause.IDLE_LIMIT)
#: Causes that a driver derives from nothing but the end of the stream. They do not replace the idle
#: time as the explanation.
_WORDLESS = (Cause.CLOSED_BY_PEER, Cause.CONNECTION_RESET, Cause.LOST, Cause.SILENT_DROP)
#: Why a unit is not run again if a server refuses it while it serves others.
CONTRADICTED = "the server refused it for the whole outage_wait, but accepted new connections"
_MAY_BE_THE_HOLDER = (None, Cause.CLOSED_BY_HOLDER, *_VAGUE)


class Holding:
    """The checks of a connection during its use: see :class:`unbroken.pool.loan.Loan`."""

    __slots__ = ("begun", "conn", "entry", "state")

    #: Advice for getting work outside of any unit run again. None: the pool's advice.
    remedy: str | None = None

    state: Any  #: a PoolState whose driver and runtime fit the body
    entry: Entry
    conn: Connection
    begun: tuple[Unit | None, Any] | None

    @classmethod
    def of(cls, state: PoolState, entry: Entry, conn: Connection) -> Self:
        """The loan of *entry*, whose connection is *conn*, for a body that does not keep its
        own.
        """
        loan = cls()
        loan.state, loan.entry, loan.conn, loan.begun = state, entry, conn, None
        return loan

    @property
    def unit(self) -> Unit | None:
        """The unit of work that records the statements on this connection."""
        if self.begun is not None and self.begun[0] is not None and not self.begun[0].closed:
            return self.begun[0]
        return current(id(self.conn))

    def begin(self, until: float = math.inf) -> Unit | None:
        """Enlist in the caller's unit of work, if any. End this use at *until* or when the unit's
        time is up.

        Returns the unit. Raises ConnectionLostError for a task that an earlier attempt left behind,
        if its unit is run again.
        """
        unit = self.enlist()
        self.begun = (unit, None)
        self.arm(until if unit is None else min(until, unit.until))
        return unit

    def is_lost_at_begin(self, exc: BaseException) -> bool:
        """Whether BEGIN failed with *exc* because the connection was lost. No work was done on it,
        so another one can replace it. If the server reported that it cannot serve, an outage
        begins.
        """
        state = self.state
        if not isinstance(exc, Exception) or isinstance(exc, UnbrokenError):
            return False
        fault = state.classify(exc)
        if fault.kind in CANNOT_SERVE:
            cannot_serve(state, self.entry, fault)
        return bool(fault.is_lost and self.entry.cause is not Cause.DEADLINE)

    def arm(self, until: float) -> None:
        """End this use at *until* (infinite: never), if it is not over by then. It must have no
        deadline yet.

        Only a ledger can tell what such an end means for the caller's writes. Outside of a unit of
        work, the use gets its own unit.
        """
        if until == math.inf:
            return
        unit = self.unit
        if unit is None:
            unit = Unit(observing=True)
            self.state.join(unit, self.entry, self.conn)
        self.begun = (unit, self.timer(until))

    def timer(self, until: float) -> Any:
        """A timer of the caller's own that ends this use at *until*. None if that is infinite."""
        return None if until == math.inf else self.state.arm(self.entry, until)

    def join(self, unit: Unit, doubt: str | None = None) -> None:
        """*unit* records the statements from now on. *doubt*: why it must not be replayed
        anyway.
        """
        if doubt is not None:
            unit.forbid(doubt, conn_id=id(self.conn))
        else:
            self.state.join(unit, self.entry, self.conn)
        self.begun = (unit, None if self.begun is None else self.begun[1])

    def has_joined(self, unit: Unit) -> bool:
        """Whether *unit* has joined this connection."""
        return self.begun is not None and self.begun[0] is unit

    def enlist(self) -> Unit | None:
        """Make the caller's unit of work record the statements from now on.

        Returns that unit, if there is one.
        """
        state = self.state
        if is_left_over():
            raise state.error(
                ConnectionLostError,
                ABANDONED_TASK(
                    f"pool {state.name} refused a connection: this task belongs to an attempt that"
                    " was abandoned and run again; a unit of work must end its own tasks"
                    " (asyncio.TaskGroup does)"
                ),
            )
        unit = current()
        if state.follows:
            state.follow(unit, self.entry, self.conn)
        elif unit is not None:
            state.join(unit, self.entry, self.conn)
        return unit

    def disarm(self) -> None:
        """Cancel the deadline of this use."""
        if self.begun is not None and self.begun[1] is not None:
            self.begun[1].cancel()
            self.begun = (self.begun[0], None)

    @property
    def is_dead(self) -> bool:
        """Whether the connection is known to have ended, or must not be used again.

        No round trip.
        """
        return self.entry.cause is not None or judge(self.entry.poll(0)) is Liveness.DEAD

    @property
    def is_in_step(self) -> bool:
        """Whether a statement that is sent now would get its own answer.

        A half-read result that the driver can read to its end counts.
        """
        return bool(
            self.state.is_in_step(self.entry, self.conn) or self.state.is_streaming(self.conn)
        )

    @property
    def is_out_of_step(self) -> bool:
        """Whether an answer is known to be missing.

        Unknown if the driver does not show its exchanges. Then the connection serves its holder
        until the end of the use, and no caller after that.
        """
        return self.state.knows_status and not self.is_in_step

    @property
    def is_closed_by_holder(self) -> bool:
        """Whether the application closed the connection while it had it."""
        return bool(
            self.entry.cause in _MAY_BE_THE_HOLDER and self.state.driver.was_closed(self.conn)
        )

    def _blame_holder(self) -> None:
        """Record that the application closed the connection. The server's hang-up in response may
        have been detected first.
        """
        self.entry.cause, self.entry.words = None, ""
        self.entry.condemn(Cause.CLOSED_BY_HOLDER)

    def answers(self, since: float) -> Flow[bool]:
        """Whether the connection is fit for another statement. *since*: when it was last used.

        After a silence that the pool itself would not trust, it sends one ping, within
        ``ping_timeout``. A connection that does not answer is condemned.
        """
        state, entry = self.state, self.entry
        if self.is_dead:
            return False
        if state.clock() - since < state.fresh_for:
            return True
        try:
            yield Call("ping", self.conn, entry, state.settings.ping_timeout)
        except Exception as exc:
            fault = state.classify(exc)
            entry.condemn(Cause.SILENT_DROP if fault.is_lost else Cause.LOST, fault.text)
            return False
        return True

    def failed(self, exc: BaseException) -> Fault:
        """Work on the connection raised *exc*. Return its meaning, and notify the unit of work.

        A connection is condemned, and never used again, if it was lost, if its holder closed it, or
        if its exchange is not known to have ended. If the driver does not show its exchanges, an
        error from the server counts as the end of one.
        """
        entry = self.entry
        stopped = self.outlives_time()
        if stopped:
            return Fault(FaultKind.LOST, entry.cause, text=stopped)
        if self.is_closed_by_holder:
            fault = Fault(
                FaultKind.LOST,
                Cause.CLOSED_BY_HOLDER,
                text="the application closed this connection while it was in use",
            )
        else:
            fault = self._fault_of(exc)
        unit, fault = self.unit, self._believed(fault)
        if unit is not None:
            unit.note(exc, fault)
        if entry.due is not None and fault.is_lost:
            lost_in_flight(self.state, entry, self.conn)
        if fault.is_lost or entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD:
            self._condemn_lost(fault)
        elif not self.is_in_step and (self.state.knows_status or not is_of_the_server(fault)):
            self.break_off()
        elif unit is not None and unit.is_doubted(id(self.conn)):
            # Nothing more is sent on it: the answer to a ROLLBACK would look like that to the
            # COMMIT.
            self.entry.condemn(Cause.LOST, f"its COMMIT was answered with: {fault.text}")
        if entry.cause in THEIR_DOING and concerns(fault):
            self._ended_under(exc, fault, unit)
        return fault

    def outlives_time(self) -> str:
        """Why nothing can be sent on the connection any more: the interpreter is shutting down, so
        no time limit works. The connection is ended then.
        """
        stopped = self.state.runtime.watcher.stopped()
        if stopped is None or not stopped.is_ending:
            return ""
        self.entry.condemn(Cause.DISCARDED, str(stopped))
        if not getattr(self.state.driver, "is_async", False):
            self.state.shutdown_socket(self.entry)
        return str(stopped)

    def _ended_under(self, exc: BaseException, fault: Fault, unit: Unit | None) -> None:
        """The connection was lost during a caller's work. Add to *exc* why the work is not run
        again, if it is not.
        """
        entry = self.entry
        if entry.ending is None:
            entry.ending = ending_of(
                unit, entry, id(self.conn), fault, self.remedy or self.state.remedy
            )
        tell_on(exc, entry.ending)

    def ended_unseen(self) -> None:
        """The caller releases a connection that has ended. If a statement was in progress, only the
        driver has reported that to the caller: record the lost work for the log.
        """
        entry, driver = self.entry, self.state.driver
        if (
            entry.cause not in THEIR_DOING
            or entry.ending is not None
            or entry.recall() is not None  # a framework's own: it reports by itself
            or (driver.is_quiet(self.conn) and driver.is_in_transaction(self.conn) is False)
        ):
            return
        fault = Fault(FaultKind.LOST, entry.cause, text=entry.words)
        entry.ending = ending_of(
            self.unit, entry, id(self.conn), fault, self.remedy or self.state.remedy
        )

    def _believed(self, fault: Fault) -> Fault:
        """*fault*, as far as it is trusted before the server was asked.

        If the session is still alive, an error that says that no client can be served may come from
        the application itself: MySQL's protocol does not distinguish the two. Until the server was
        asked, it is a reason to try again, after a pause.
        """
        entry = self.entry
        if fault.kind is FaultKind.READ_ONLY:
            entry.doubt(fault)
        elif fault.cause is Cause.OTHER_SESSION:
            if not met_another(self.state):
                return replace(fault, cause=Cause.DISCARDED)
        elif fault.kind in CANNOT_SERVE:
            if self._may_be_the_callers():
                entry.doubt(fault)
                return replace(fault, kind=FaultKind.RETRY, cause=None)
            if not cannot_serve(self.state, entry, fault) and self.unit is not None:
                self.unit.forbid(CONTRADICTED, conn_id=id(self.conn))
            return replace(fault, cause=fault.cause or Cause.CANNOT_SERVE)
        return fault

    def _may_be_the_callers(self) -> bool:
        """Whether the session is still alive, and the protocol does not show the error's
        severity.
        """
        return (
            self.state.backend in ("mysql", "mariadb")
            and self.entry.cause is None
            and judge(self.entry.poll(0)) is Liveness.ALIVE
            and self.is_in_step
        )

    def break_off(self) -> None:
        """End a connection whose last exchange is not known to have ended. No caller must wait for
        the rest of an answer, or take it for its own.
        """
        if self.is_closed_by_holder:
            self._blame_holder()
        # the first cause is kept
        if self.state.knows_status:
            self.entry.condemn(Cause.CANCELLED)
        else:
            self.entry.condemn(
                Cause.DISCARDED, "its driver does not show whether every statement was answered"
            )
        if not getattr(self.state.driver, "is_async", False):
            # a transport is aborted when the connection is returned
            self.state.shutdown_socket(self.entry)

    def _fault_of(self, exc: BaseException) -> Fault:
        """The meaning of *exc* here.

        A ConnectionError or TimeoutError may also come from other work of the caller.
        """
        state, entry = self.state, self.entry
        if isinstance(exc, ConnectionLostError | CommitUnknownError):
            # our own error, which the driver does not know
            return Fault(FaultKind.LOST, text=str(exc))
        if isinstance(exc, UnbrokenError):
            # Another acquire failed, or another pool: the error only quotes a driver's message.
            return Fault(FaultKind.OTHER, text=str(exc))
        fault: Fault = state.classify(exc)
        if fault.kind is FaultKind.LOST and fault.code is None:
            fault = state.driver.told(self.conn) or fault
        if isinstance(exc, TimeoutError) and type(exc.__cause__).__name__ == "CancelledError":
            # asyncio.timeout: the caller's own
            return Fault(FaultKind.OTHER, None, fault.code, fault.text)
        if not fault.is_lost or isinstance(exc, state.driver.errors) or entry.cause is not None:
            return fault
        if state.driver.is_quiet(self.conn) and judge(entry.poll(0)) is Liveness.ALIVE:
            return Fault(FaultKind.OTHER, None, fault.code, fault.text)
        return fault

    def _condemn_lost(self, fault: Fault) -> None:
        entry = self.entry
        if fault.cause is Cause.CLOSED_BY_HOLDER:
            self._blame_holder()
            return
        known = fault.cause is not None and not (
            entry.cause is Cause.IDLE_LIMIT and fault.cause in _WORDLESS
        )
        if entry.cause in _VAGUE and known:  # the watcher detected the end first
            entry.cause, entry.words = fault.cause, fault.text
        if entry.cause is not None:
            return
        cause, words = self.state.explain(entry, in_use=True)
        if cause in _VAGUE:
            cause, words = fault.cause or Cause.LOST, fault.text
        entry.condemn(cause, words)
