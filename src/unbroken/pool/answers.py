"""The answer to the COMMIT or ROLLBACK that a pool sends when a connection goes back.

Nobody waits for it: the server ends the transaction as soon as it has read that. The answer is
read by the next user of the connection, before that user gets it or together with the answer to
the first statement; by upkeep, where no user comes. Until then the entry is *due* (see
:class:`unbroken.brain.entry.Entry`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unbroken.abc import BaseDriver, Cause, Connection
from unbroken.brain.entry import Entry
from unbroken.logs import Part
from unbroken.net.liveness import Liveness, judge

log = Part("cluster")

#: So many seconds after a ROLLBACK was sent, its answer is read with that to the next statement; a
#: server that needs longer must answer it first. Most round trips between continents are shorter.
ANSWER_SOON = 0.25
#: Seconds after which upkeep reads the answer, where no user of the connection came to read it. The
#: next look through the pool after that does it.
ANSWER_TAKEN_AFTER = 0.5
#: Why a connection is closed whose transaction did not end as it should have.
LEFT_UNFIT = "its ROLLBACK left it unfit"


def may_leave(driver: BaseDriver) -> Callable[[Connection], bool]:
    """How to find out, with *driver*, whether it is known what a ROLLBACK will be answered."""
    own: Callable[[Connection], bool] | None = getattr(driver, "may_leave", None)
    return own or (lambda conn: driver.is_in_transaction(conn) is True)


def has_traits(driver: BaseDriver) -> Callable[[Connection, Any], bool]:
    """How to find out, with *driver*, whether a connection is in all else as it was opened."""
    own: Callable[[Connection, Any], bool] | None = getattr(driver, "has_traits", None)
    return own or (lambda conn, traits: bool(driver.traits(conn) == traits))


def is_soon(state: Any, entry: Entry, now: float) -> bool:
    """Whether the answer that *entry* is due may be read with that to the next statement."""
    due = entry.due
    return bool(entry.end_seen and due is not None and now - due < ANSWER_SOON and may_fly(state))


def may_fly(state: Any) -> bool:
    """Whether the driver may be left to read the answer that is due, with that to the next
    statement. Behind a pooler it reads the first one before it sends the second.
    """
    if state.tries_flights:
        pooler = state.server.pooler
        return bool(state.pipelines and (pooler.pipelines or pooler.stands))
    return bool(state.pipelines)


def is_overdue(entry: Entry, now: float) -> bool:
    """Whether upkeep should read the answer that *entry* is due, as no user came."""
    return entry.due is not None and now - entry.due >= ANSWER_TAKEN_AFTER


def take_at_once(state: Any, entry: Entry, now: float) -> bool:
    """Whether *entry*, which its caller has just taken from idle, and which is due, can be lent
    at once: the answer has come and is the one that was expected, or it comes soon.

    For a blocking driver. Where not, the slow way finds out why, and closes it where another answer
    came.
    """
    events = entry.poll(0)
    if not events:
        return is_soon(state, entry, now)
    if judge(events) is Liveness.DEAD:
        return False
    conn = entry.conn
    try:
        if not state.driver.take_answer(conn, state.settings.ping_timeout):
            return False  # it was read before: nobody asked for what stands on the socket
    except Exception as exc:
        fault = state.classify(exc)
        entry.condemn(fault.cause or Cause.LOST, fault.text)
        return False
    if heard(state, entry):
        return True
    entry.condemn(Cause.RESET_FAILED, LEFT_UNFIT)
    return False


def heard(state: Any, entry: Entry) -> bool:
    """The answer has come: whether *entry* is fit for its next user.

    Where it is not, a ROLLBACK does something else here than was thought (the server's
    ``completion_type`` may say so): from now on each one is waited for. A routine that its user ran
    may have done that to this session alone.
    """
    entry.due = None
    conn = entry.conn
    fit = bool(state.is_settled(entry, conn) and state.is_good(entry, conn))
    if fit:
        if not entry.end_seen:
            entry.end_seen = True
            if state.ran_code(conn):
                state.driver.end_seen(conn)
    elif state.driver.fileno(conn) is not None and not state.ran_code(conn):
        # (a connection that has ended tells nothing)
        state.defers = state.pipelines = False
    return fit


def lost_in_flight(state: Any, entry: Entry, conn: Connection) -> None:
    """*conn* of *entry*, which was due when it was lent, is lost: perhaps because a statement was
    sent before that answer had come. The next connection tries that again.
    """
    if state.tries_flights and state.driver.is_unread(conn):
        flight_failed(state, entry.born)


def flight_failed(state: Any, born: float, *, is_proven: bool = False) -> None:
    """A connection opened at *born* was lost with a statement behind one that was not answered; or
    *is_proven*: two statements got other answers than theirs.
    """
    with state.server.lock:
        is_news = state.server.pooler.lost_in_flight(state.clock(), born, is_proven=is_proven)
    if is_news:
        does = (
            "does not answer two statements in turn"
            if is_proven
            else "closes a connection on which a statement comes before the last one was answered"
        )
        log.info(
            "no statement ahead",
            f"{state.name}: what answers at {state.driver.target.server} {does}: from now on each"
            " answer is read first",
            pool=state.name,
            server=state.driver.target.server,
        )
