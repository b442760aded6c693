"""The end of a lease: commit or roll back, and decide whether the connection may be lent again."""

from __future__ import annotations

from unbroken.abc import Cause, Connection, Fault, FaultKind
from unbroken.core.entry import Entry
from unbroken.core.fault import mysql_fault, postgres_fault
from unbroken.core.unit import Action, Unit
from unbroken.errors import CommitUnknownError, ConnectionLostError, DeadlineExceeded, UnbrokenError
from unbroken.flows.state import State
from unbroken.flows.steps import Call, Flow, Reset
from unbroken.net import last_words
from unbroken.net.liveness import Liveness, judge

#: What to do about a COMMIT without an answer.
LOOK_FIRST = "the work is stored whole or not at all; look before you repeat it"


def success(state: State, entry: Entry, conn: Connection, unit: Unit | None, *, commit: bool) -> Flow[None]:
    """The work succeeded: commit what is open (with *commit*), and make the connection fit for the next user."""
    if commit and not state.is_clean(entry, conn):
        yield from commit_now(state, entry, conn, unit)
    if not commit or callable(state.settings.reset):
        yield from reset_or_condemn(state, entry, conn)


def commit_now(state: State, entry: Entry, conn: Connection, unit: Unit | None) -> Flow[None]:
    """COMMIT what is open. Raises CommitUnknownError when its answer was lost, never guesses.

    A session that is known to have ended is not written to: then it is certain that nothing was committed.
    """
    if _has_ended(state, entry):
        why = "" if entry.cause is None else f" ({entry.cause.value})"
        error = state.error(
            ConnectionLostError,
            f"connection to {state.driver.target.label} was lost{why} before COMMIT was sent; nothing of its transaction is stored",
        )
        if unit is not None:
            unit.note(error, Fault(FaultKind.LOST, text=str(error)))
        raise error
    try:
        yield Call("commit", conn)
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
            f"COMMIT was sent to {state.driver.target.label} and the connection was lost before its answer ({fault.text}): {LOOK_FIRST}",
        ) from exc
    entry.sent = entry.count()


def _has_ended(state: State, entry: Entry) -> bool:
    """Whether the session is known, without a round trip, to have ended: hung up, or its goodbye is there already.

    PostgreSQL's goodbye arrives up to a millisecond before the hang-up; a COMMIT sent in between would be in doubt for nothing.
    """
    looks = judge(entry.poll(0))
    if looks is not Liveness.UNDECIDED or entry.fd is None:
        return looks is Liveness.DEAD
    backend = state.driver.target.backend
    words = last_words.peek(entry.fd, backend)
    if words is None:
        return False
    if backend == "postgresql":
        return postgres_fault(str(words.code), words.text).is_lost
    return mysql_fault(int(words.code), words.text).is_lost


def reset_or_condemn(state: State, entry: Entry, conn: Connection) -> Flow[None]:
    """As :func:`reset`; what cannot be reset is condemned."""
    if not (yield from reset(state, entry, conn)):
        entry.condemn(Cause.RESET_FAILED)


def reset(state: State, entry: Entry, conn: Connection) -> Flow[bool]:
    """Make a connection fit for the next user, as the setting ``reset`` says. False: it must be thrown away."""
    how = state.settings.reset
    if how is None:
        return True
    if judge(entry.poll(0)) is Liveness.DEAD:
        return False
    if how != "rollback":
        try:
            yield Reset(how, conn)
        except Exception as exc:
            return _unfit(state, entry, exc)
    return (yield from roll_back(state, entry, conn))


def roll_back(state: State, entry: Entry, conn: Connection, timeout: float | None = None) -> Flow[bool]:
    """Roll back whatever is open; no round trip where it is certain that nothing is. False: throw it away."""
    try:
        if not state.is_clean(entry, conn):
            yield Call("rollback", conn, entry, timeout)
            with state.lock:
                state.counters.rollbacks += 1
            entry.sent = entry.count()
    except Exception as exc:
        return _unfit(state, entry, exc)
    return True


def _unfit(state: State, entry: Entry, exc: Exception) -> bool:
    fault = state.classify(exc)
    entry.condemn(_cause_of(fault) if fault.is_lost else Cause.RESET_FAILED, fault.text or repr(exc))
    return False


def after_error(state: State, entry: Entry, conn: Connection, exc: BaseException, unit: Unit | None) -> Flow[bool]:
    """The work raised *exc*: roll back. False: the connection is lost or in the middle of something; throw it away."""
    fault = _fault_of(state, entry, conn, exc)
    if unit is not None:
        unit.note(exc, fault)
    if fault.is_lost:
        _condemn_lost(state, entry, fault)
        return False
    if entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD:
        _condemn_lost(state, entry, fault)
        return False
    if not isinstance(exc, Exception) or isinstance(exc, TimeoutError):
        if not state.driver.is_quiet(conn):
            entry.condemn(Cause.CANCELLED)  # struck in the middle of an exchange: the rest of the answer is still to come
            return False
        return (yield from roll_back(state, entry, conn, state.settings.ping_timeout))  # who cancels does not want to wait
    if callable(state.settings.reset):
        return (yield from reset(state, entry, conn))
    return (yield from roll_back(state, entry, conn))


def heard(state: State, entry: Entry, conn: Connection, exc: BaseException, unit: Unit | None) -> Fault:
    """Work on a lent *conn* raised *exc*, and its holder keeps it for now: what that means.

    The unit of work is told; what is lost, or was struck in the middle of an exchange, is condemned. For bodies whose lending
    does not end with the error.
    """
    fault = _fault_of(state, entry, conn, exc)
    if unit is not None:
        unit.note(exc, fault)
    if fault.is_lost or entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD:
        _condemn_lost(state, entry, fault)
    elif not isinstance(exc, Exception) and not state.driver.is_quiet(conn):
        entry.condemn(Cause.CANCELLED)
    return fault


def _fault_of(state: State, entry: Entry, conn: Connection, exc: BaseException) -> Fault:
    """What *exc* means for *conn*. A ConnectionError or TimeoutError may also be about something else that the work does."""
    if isinstance(exc, ConnectionLostError | CommitUnknownError):  # our own word; the driver would not know it
        return Fault(FaultKind.LOST, text=str(exc))
    if isinstance(exc, UnbrokenError):  # another acquire that failed, or another pool: it only quotes what drivers say
        return Fault(FaultKind.OTHER, text=str(exc))
    fault = state.classify(exc)
    if isinstance(exc, TimeoutError) and type(exc.__cause__).__name__ == "CancelledError":  # asyncio.timeout: the caller's own
        return Fault(FaultKind.OTHER, None, fault.code, fault.text)
    if not fault.is_lost or isinstance(exc, state.driver.errors) or entry.cause is not None:
        return fault
    if state.driver.is_quiet(conn) and judge(entry.poll(0)) is Liveness.ALIVE:
        return Fault(FaultKind.OTHER, None, fault.code, fault.text)
    return fault


#: What is said of a connection in use that ended without a word. The driver may have read the word.
_VAGUE = (Cause.CLOSED_BY_PEER, Cause.IDLE_LIMIT)


def _condemn_lost(state: State, entry: Entry, fault: Fault) -> None:
    if entry.cause in _VAGUE and fault.cause is not None:  # the watcher saw the end before we did
        entry.cause, entry.words = fault.cause, fault.text
    if entry.cause is not None:
        return
    cause, words = state.explain(entry, in_use=True)
    if cause in _VAGUE:
        cause, words = _cause_of(fault), fault.text
    entry.condemn(cause, words)


def _cause_of(fault: Fault) -> Cause:
    return fault.cause or Cause.LOST


def translated(state: State, entry: Entry, exc: BaseException, deadline: float | None) -> BaseException:
    """The error that the caller should see for *exc*: its own, unless we were the ones who ended the connection."""
    if entry.cause is Cause.DEADLINE and isinstance(exc, Exception) and not isinstance(exc, CommitUnknownError | DeadlineExceeded):
        limit = "" if deadline is None else f" of {deadline} s"  # a unit's deadline bounds all of its leases together
        error = state.error(
            DeadlineExceeded,
            f"work on a connection to {state.driver.target.label} took longer than its deadline{limit}; its connection was ended",
        )
        error.__cause__ = exc
        return error
    if entry.cause is Cause.RECLAIMED:
        exc.add_note(
            f"unbroken ended this connection: it was held for more than leak_after={state.settings.leak_after} s, and reclaim is on"
        )
    return exc
