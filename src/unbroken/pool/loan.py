"""One connection while a caller has it: every decision about it, for every body.

A body (threads, asyncio, SQLAlchemy, Django, peewee) asks a :class:`Loan` and nothing else: is the
connection dead, whose fault is it, what does an error mean, is the exchange with the server known
to have ended, may the connection go back, and what is the caller told. What is not known to be good
is closed, and the pool opens another one.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from unbroken.abc import Cause, Connection, Fault, FaultKind
from unbroken.backends.fault import is_goodbye
from unbroken.brain.entry import Entry
from unbroken.errors import (
    ClosedByHolderError,
    CommitUnknownError,
    ConnectionLostError,
    DeadlineExceeded,
    UnbrokenError,
)
from unbroken.ledger.questions import Question
from unbroken.ledger.residue import NOTHING, Left
from unbroken.ledger.scope import current, is_left_over
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Fate
from unbroken.net.liveness import Liveness, judge
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Flow, Reset

log = logging.getLogger("unbroken")

#: What to do about a COMMIT without an answer.
LOOK_FIRST = "the work is stored whole or not at all; look before you repeat it"

#: What an error says of the caller's writes.
_FATES = {
    Fate.NOTHING: "and nothing is stored",
    Fate.STORED: "and what was committed before is stored",
    Fate.UNKNOWN: "and it is not known whether what it wrote is stored: look before you repeat it",
}

#: What is said of a connection in use that ended without a word. The driver may have read the word.
_VAGUE = (Cause.CLOSED_BY_PEER, Cause.IDLE_LIMIT)
#: Causes that a driver makes of nothing but the end of the stream: no reason to forget for how long
#: nothing had been asked.
_WORDLESS = (Cause.CLOSED_BY_PEER, Cause.CONNECTION_RESET, Cause.LOST, Cause.SILENT_DROP)
_MAY_BE_THE_HOLDER = (None, Cause.CLOSED_BY_HOLDER, *_VAGUE)


class Loan:
    """One connection in a caller's hands, from the moment it was noted in ``Kernel.in_use`` until
    it goes back.

    Methods that talk to the server are flows: the body runs their steps in its own way. ``begun``
    is None until :meth:`begin`; then it holds the unit of work that looks on and the timer that
    ends this use, either of them None.
    """

    __slots__ = ("begun", "conn", "entry", "state")

    in_block = False  #: whether it ends with the ``with`` block that took the connection
    state: Any  #: a PoolState, whose driver and shell are of the body's kind
    entry: Entry
    conn: Connection
    begun: tuple[Unit | None, Any] | None

    @classmethod
    def of(cls, state: PoolState, entry: Entry, conn: Connection) -> Loan:
        """The loan of *entry*, whose connection is *conn*, for a body that keeps none of its
        own.
        """
        loan = cls()
        loan.state, loan.entry, loan.conn, loan.begun = state, entry, conn, None
        return loan

    @property
    def unit(self) -> Unit | None:
        """The unit of work that is told what is sent on this connection."""
        if self.begun is not None and self.begun[0] is not None and not self.begun[0].closed:
            return self.begun[0]
        return current(id(self.conn))

    # -- the beginning -----------------------------------------------------------------------------

    def begin(self, until: float = math.inf) -> Unit | None:
        """Enlist in the caller's unit of work, if any, and end this use at *until* or when the
        unit's time is up.

        Returns the unit. Raises ConnectionLostError for a task that an attempt left behind which is
        run again.
        """
        unit = self.enlist()
        self.begun = (unit, None)
        self.arm(until if unit is None else min(until, unit.until))
        return unit

    def is_lost_at_begin(self, exc: BaseException) -> bool:
        """Whether BEGIN failed with *exc* because the connection was lost: nothing was done on it,
        so another one will do.
        """
        state = self.state
        if not isinstance(exc, Exception) or isinstance(exc, UnbrokenError):
            return False
        return bool(state.classify(exc).is_lost and self.entry.cause is not Cause.DEADLINE)

    def arm(self, until: float) -> None:
        """End this use at *until* (infinite: never), if it is not over by then. Without a deadline
        before.

        What such an end means for the caller's writes only a ledger can say. Outside of a unit of
        work, the use gets one of its own.
        """
        if until == math.inf:
            return
        unit = self.unit
        if unit is None:
            unit = Unit(observing=True)
            self.state.join(unit, self.entry, self.conn)
        self.begun = (unit, self.timer(until))

    def timer(self, until: float) -> Any:
        """A timer of the caller's own that ends this use at *until*; None where that is
        infinite.
        """
        return None if until == math.inf else self.state.arm(self.entry, until)

    def join(self, unit: Unit, doubt: str | None = None) -> None:
        """*unit* hears what is sent from now on; *doubt*: why it must not be replayed all the
        same.
        """
        if doubt is not None:
            unit.forbid(doubt, conn_id=id(self.conn))
        else:
            self.state.join(unit, self.entry, self.conn)
        self.begun = (unit, None if self.begun is None else self.begun[1])

    def has_joined(self, unit: Unit) -> bool:
        """Whether *unit* has met this connection."""
        return self.begun is not None and self.begun[0] is unit

    def enlist(self) -> Unit | None:
        """Let the caller's unit of work hear what is sent from now on.

        Returns that unit, if there is one.
        """
        state = self.state
        if is_left_over():
            raise state.error(
                ConnectionLostError,
                f"pool {state.name} lends nothing to a task of an attempt that was given up and run"
                " again; a unit of work must end its own tasks (asyncio.TaskGroup does)",
            )
        unit = current()
        if state.follows:
            state.follow(unit, self.entry, self.conn)
        elif unit is not None:
            state.join(unit, self.entry, self.conn)
        return unit

    def disarm(self) -> None:
        """This use has no deadline any more."""
        if self.begun is not None and self.begun[1] is not None:
            self.begun[1].cancel()
            self.begun = (self.begun[0], None)

    # -- between statements ------------------------------------------------------------------------

    @property
    def is_dead(self) -> bool:
        """Whether the connection is known to have ended, or must not be used again.

        No round trip.
        """
        return self.entry.cause is not None or judge(self.entry.poll(0)) is Liveness.DEAD

    @property
    def is_in_step(self) -> bool:
        """Whether a statement sent now would get its own answer.

        A half-read result that the driver can read to its end counts.
        """
        return bool(
            self.state.is_in_step(self.entry, self.conn) or self.state.is_streaming(self.conn)
        )

    @property
    def is_closed_by_holder(self) -> bool:
        """Whether the application closed the connection while it had it."""
        return bool(
            self.entry.cause in _MAY_BE_THE_HOLDER and self.state.driver.was_closed(self.conn)
        )

    def _blame_holder(self) -> None:
        """Note that the application closed the connection: the server's hang-up that answers may
        have been seen first.
        """
        self.entry.cause, self.entry.words = None, ""
        self.entry.condemn(Cause.CLOSED_BY_HOLDER)

    def answers(self, since: float) -> Flow[bool]:
        """Whether the connection is fit for another statement. *since*: the moment it was used
        last.

        After as long a silence as the pool itself would not trust, one ping tells, within
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
        """Work on the connection raised *exc*: what that means. The unit of work is told.

        A connection that was lost, that its holder closed, or whose exchange is not known to have
        ended is condemned: it is never used again.
        """
        entry = self.entry
        if self.is_closed_by_holder:
            fault = Fault(
                FaultKind.LOST,
                Cause.CLOSED_BY_HOLDER,
                text="the application closed this connection while it had it",
            )
        else:
            fault = self._fault_of(exc)
        unit = self.unit
        if unit is not None:
            unit.note(exc, fault)
        if fault.kind is FaultKind.READ_ONLY:
            entry.doubt()
        if fault.is_lost or entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD:
            self._condemn_lost(fault)
        elif not self.is_in_step:
            self.break_off()
        return fault

    def break_off(self) -> None:
        """End a connection whose last exchange is not known to have ended: nobody must wait for the
        rest of an answer, or take it for another's."""
        if self.is_closed_by_holder:
            self._blame_holder()
        self.entry.condemn(Cause.CANCELLED)  # the first cause stands
        if not getattr(self.state.driver, "is_async", False):
            # a transport is aborted when the connection goes back
            self.state.shutdown_socket(self.entry)

    def _fault_of(self, exc: BaseException) -> Fault:
        """What *exc* means here.

        A ConnectionError or TimeoutError may also be about something else that the work does.
        """
        state, entry = self.state, self.entry
        if isinstance(exc, ConnectionLostError | CommitUnknownError):
            # our own word; the driver would not know it
            return Fault(FaultKind.LOST, text=str(exc))
        if isinstance(exc, UnbrokenError):
            # another acquire that failed, or another pool: it only quotes what drivers say
            return Fault(FaultKind.OTHER, text=str(exc))
        fault: Fault = state.classify(exc)
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
        if entry.cause in _VAGUE and known:  # the watcher saw the end before we did
            entry.cause, entry.words = fault.cause, fault.text
        if entry.cause is not None:
            return
        cause, words = self.state.explain(entry, in_use=True)
        if cause in _VAGUE:
            cause, words = fault.cause or Cause.LOST, fault.text
        entry.condemn(cause, words)

    # -- COMMIT ------------------------------------------------------------------------------------

    def commit(self, send: Call | None = None) -> Flow[None]:
        """COMMIT what is open; *send* is the step that does it, where the body has a way of its
        own.

        Raises ConnectionLostError where COMMIT was not sent, CommitUnknownError where its answer
        was lost. A connection that is known to have ended is not written to, and neither is one
        whose last exchange is not known to have ended.
        """
        state, entry, unit = self.state, self.entry, self.unit
        yield from self._make_ready()
        try:
            yield send or Call("commit", self.conn, entry)
        except Exception as exc:
            fault = state.classify(exc)
            if not fault.is_lost:
                raise
            if unit is not None:
                unit.note(exc, fault)
                if unit.verdict(fault).action is not Action.COMMIT_UNKNOWN:
                    raise
            raise state.error(
                CommitUnknownError,
                f"COMMIT was sent to {state.driver.target.label} and the connection was lost before"
                f" its answer ({fault.text}): {LOOK_FIRST}",
                fate=Fate.UNKNOWN,
            ) from exc
        entry.sent, entry.settled_at = entry.count(), entry.uses

    def _make_ready(self) -> Flow[None]:
        """Make sure that a COMMIT sent now can be the next thing that the server answers.

        Raises what the caller is told if not.
        """
        state, entry, conn = self.state, self.entry, self.conn
        if self.is_closed_by_holder:
            self._blame_holder()
            raise self._not_sent(
                ClosedByHolderError,
                f"the connection to {state.driver.target.label} was closed by the code that had it,"
                " before the pool could commit",
                "what that code committed itself is stored, what was still open is not",
            )
        if self.has_ended():
            why = "" if entry.cause is None else f" ({entry.cause.value})"
            raise self._not_sent(
                ConnectionLostError,
                f"connection to {state.driver.target.label} was lost{why} before COMMIT was sent",
            )
        if state.is_in_step(entry, conn) or not state.knows_status:
            # a driver that knows nothing of its exchanges: COMMIT is sent, and the connection is
            # not used again
            return
        if state.is_streaming(conn):
            try:
                yield Call("drain", conn, entry)
            except Exception as exc:
                self.failed(exc)
                raise self._not_sent(
                    ConnectionLostError,
                    f"connection to {state.driver.target.label} was lost while the rest of a result"
                    " was read, before COMMIT was sent",
                ) from exc
        if not state.is_in_step(entry, conn):
            self.break_off()
            raise self._not_sent(
                ConnectionLostError,
                f"COMMIT was not sent to {state.driver.target.label}: an answer of the server was"
                " not read to its end (a time limit, a signal or a cancellation broke off a"
                " statement, or its result was left unread); the connection was closed",
            )

    def _not_sent(
        self,
        kind: type[UnbrokenError],
        fact: str,
        rest: str = "nothing of the open transaction is stored",
    ) -> UnbrokenError:
        state, unit = self.state, self.unit
        error: UnbrokenError = state.error(
            kind, f"{fact}; {rest}", fate=None if unit is None else self._fate()
        )
        if unit is not None:
            unit.note(error, Fault(FaultKind.LOST, self.entry.cause, text=str(error)))
        return error

    def has_ended(self) -> bool:
        """Whether the session is known, without a round trip, to have ended: hung up, closed, or
        its goodbye is there already.

        PostgreSQL's goodbye arrives up to a millisecond before the hang-up; a COMMIT sent in
        between would be in doubt for nothing.
        """
        state, entry = self.state, self.entry
        looks = judge(entry.poll(0))
        if looks is Liveness.DEAD or entry.fd is None:
            return looks is Liveness.DEAD
        if state.driver.fileno(self.conn) is None:
            return True  # the driver has let go of its socket: nothing can be sent
        words = state.last_words(entry, self.conn, arrived=looks is Liveness.UNDECIDED)
        return words is not None and is_goodbye(words.code, words.text, state.driver.target.backend)

    def end_unless_settled(self) -> bool:
        """Before a body sends what would commit in passing (autocommit switched on, say): whether
        nothing is open.

        A connection of which that is not certain is ended. Its server rolls back.
        """
        state, entry = self.state, self.entry
        if (
            entry.cause is None
            and state.is_in_step(entry, self.conn)
            and state.is_settled(entry, self.conn)
        ):
            return True
        self.end("a transaction was open on it that was not committed")
        return False

    def end(self, why: str) -> None:
        """End this connection, so that the server rolls back what is open on it and nothing more
        can be sent.
        """
        self.entry.condemn(Cause.DISCARDED, why)
        if not getattr(self.state.driver, "is_async", False):
            self.state.shutdown_socket(self.entry)

    # -- the end -----------------------------------------------------------------------------------

    def finish(self, exc: BaseException | None, *, commit: bool) -> Flow[BaseException | None]:
        """The caller is done; *exc* is what its work raised. Gives the exception that counts, None
        where all went well.

        On success commit what is open (with *commit*); else roll it back. Afterwards the connection
        is as it was opened, or condemned.
        """
        if exc is None:
            try:
                yield from self._succeed(commit)
            except Exception as error:
                exc = error
            else:
                return None
        yield from self._fail(exc)
        return exc

    def _succeed(self, commit: bool) -> Flow[None]:
        state = self.state
        if commit and not state.is_settled(self.entry, self.conn):
            yield from self.commit()
        how = state.settings.reset
        if (
            not commit
            or callable(how)
            or how == "session"
            or not state.is_good(self.entry, self.conn)
        ):
            yield from self.reset()

    def _fail(self, exc: BaseException) -> Flow[None]:
        state, entry = self.state, self.entry
        self.failed(exc)
        if entry.cause is not None:
            return
        if not isinstance(exc, Exception) or isinstance(exc, TimeoutError):
            # a caller that cancels does not want to wait
            yield from self.roll_back(state.settings.ping_timeout)
            yield from self.undo(state.settings.ping_timeout)
        elif callable(state.settings.reset) or state.settings.reset == "session":
            yield from self.reset()
        else:
            yield from self.roll_back()

    def reset(self) -> Flow[None]:
        """Make the connection fit for the next user, as the setting ``reset`` says, or condemn
        it.
        """
        state, entry = self.state, self.entry
        how = state.settings.reset
        if entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD:
            return
        if not self.is_in_step:
            self.break_off()
        if how is None or entry.cause is not None:
            return
        if callable(how):
            try:
                yield Reset(how, self.conn)
            except Exception as exc:
                self._unfit(exc)
                return
        yield from self.roll_back()
        yield from self.undo()

    def left(self) -> frozenset[Left]:
        """What this use may have left on the session for the next one, as the setting ``reset``
        wants to know it.
        """
        if self.state.settings.reset != "session" or self.entry.reset_at == self.entry.uses:
            return NOTHING
        return self.find_left()

    def find_left(self) -> frozenset[Left]:
        """What the ledgers heard, or anything where they cannot have heard it all."""
        left: frozenset[Left] = self.state.left(self.entry, self.conn)
        return left

    def undo(self, timeout: float | None = None) -> Flow[None]:
        """Reset the session if something was left on it, or condemn the connection.

        Nothing is open on it.
        """
        entry, conn = self.entry, self.conn
        left = self.left()
        if not left or entry.cause is not None:
            return
        if entry.opening is None or Left.ENDLESS in left:
            entry.condemn(Cause.DISCARDED, f"it had {' and '.join(sorted(left))}")
            return
        try:
            yield Call("reset_session", conn, entry, timeout, (entry.opening, left))
        except Exception as exc:
            self._unfit(exc)
            return
        entry.sent, entry.settled_at = entry.count(), entry.uses
        entry.reset_at = entry.uses
        yield from self.roll_back()  # puts back what the holder changed on the object

    def roll_back(self, timeout: float | None = None) -> Flow[None]:
        """Roll back what is open and put back what its holder changed, or condemn the connection.

        Nothing is sent where nothing needs to be, nor on a connection whose last exchange is not
        known to have ended.
        """
        was_doubted = self.entry.suspect is not None
        self.entry.cleared()
        yield from self._undo(timeout)
        if was_doubted and self.entry.cause is None:
            yield from self.ask_why_read_only()

    def ask_why_read_only(self) -> Flow[None]:
        """The server refused a write as read-only: leave it where it takes none from anybody, after
        a failover, say.

        A transaction that the application wanted read-only is its own affair. Nothing is open on
        the connection.
        """
        entry, unit = self.entry, self.unit
        entry.cleared()
        demoted = yield from self.ask(Question.READ_ONLY)
        yield from self._undo()
        if demoted is None:
            entry.condemn(
                Cause.FAILOVER, "it refused a write as read-only, and could not be asked why"
            )
        elif demoted:
            entry.condemn(Cause.FAILOVER, "it takes no writes")
            if unit is not None:
                unit.found_demoted()

    def ask(self, question: Question) -> Flow[Any]:
        """What the server answers on this connection; None where it does not.

        May leave a transaction open.
        """
        state = self.state
        try:
            return (yield from state.read_answer(self.conn, question, self.entry))
        except Exception as exc:
            log.info(
                "%s: the server did not say: %s (%s)",
                state.name,
                question.value,
                state.classify(exc).text,
            )
            self.failed(exc)
        return None

    def _undo(self, timeout: float | None = None) -> Flow[None]:
        state, entry, conn = self.state, self.entry, self.conn
        if state.is_good(entry, conn):
            return
        if not state.is_in_step(entry, conn):
            self.break_off()
            return
        try:
            if not state.is_settled(entry, conn):
                yield Call("rollback", conn, entry, timeout)
                with state.lock:
                    state.counters.rollbacks += 1
                entry.sent = entry.count()
                entry.settled_at = entry.uses
            if not state.is_good(entry, conn):
                yield Call("restore", conn, entry, timeout, (entry.traits,))
        except Exception as exc:
            self._unfit(exc)

    def _unfit(self, exc: Exception) -> None:
        fault = self.state.classify(exc)
        cause = (fault.cause or Cause.LOST) if fault.is_lost else Cause.RESET_FAILED
        self.entry.condemn(cause, fault.text or repr(exc))

    def give_back(self, otherwise: Cause | None = None) -> None:
        """The connection goes back to the pool where it is known to be good.

        Else it is closed, *otherwise* being why.
        """
        state, entry, conn = self.state, self.entry, self.conn
        self.disarm()
        if self.is_closed_by_holder:
            self._blame_holder()
        good = entry.cause is None and state.is_good(entry, conn) and not self.left()
        state.leave_unit(entry, conn)
        if not good and otherwise is not None:
            entry.condemn(otherwise)
        state.take_back(entry, conn, healthy=good)

    def drop(self) -> None:
        """Close the connection, whatever state it is in; the pool opens another one."""
        state, entry, conn = self.state, self.entry, self.conn
        self.disarm()
        state.leave_unit(entry, conn)
        state.take_back(entry, conn, healthy=False)

    # -- words -------------------------------------------------------------------------------------

    def _fate(self) -> Fate:
        """What the ledger says of the writes, now that the connection is condemned: what was open
        on it is rolled back.
        """
        unit = self.unit
        if unit is None:
            return Fate.UNKNOWN
        unit.ended(conn_id=id(self.conn))
        return unit.fate()

    def shown(self, exc: BaseException, deadline: float | None) -> BaseException:
        """The error that the caller should see for *exc*: its own, unless we were the ones who
        ended the connection.
        """
        state, entry = self.state, self.entry
        if (
            entry.cause is Cause.DEADLINE
            and isinstance(exc, Exception)
            and not isinstance(exc, CommitUnknownError | DeadlineExceeded)
        ):
            # a unit's deadline bounds all of its loans together
            limit = "" if deadline is None else f" of {deadline} s"
            fate = self._fate()
            error: BaseException = state.error(
                DeadlineExceeded,
                f"work on a connection to {state.driver.target.label} took longer than its"
                f" deadline{limit}; its connection was ended, {_FATES[fate]}",
                fate=fate,
            )
            error.__cause__ = exc
            return error
        if entry.cause is Cause.RECLAIMED:
            exc.add_note(
                "unbroken ended this connection: it was held for more than"
                f" leak_after={state.settings.leak_after} s, and reclaim is on"
            )
        return exc
