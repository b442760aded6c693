"""The answer to the COMMIT or ROLLBACK that a pool sends when a connection is returned.

The pool does not wait for it: the server ends the transaction as soon as it has read the statement.
The next user of the connection reads the answer: before the user gets the connection, or together
with the answer to the first statement. If no user comes, upkeep reads it. Until then the entry is
*due* (see :class:`unbroken.brain.entry.Entry`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unbroken.abc import BaseDriver, Cause, Connection
from unbroken.brain.entry import Entry
from unbroken.logs import Part
from unbroken.net.liveness import Liveness, judge

log = Part("cluster")

#: For this many seconds after a ROLLBACK was sent, its answer is read together with that to the
#: next statement. A server that needs longer must answer it first. Most round trips between
#: continents are shorter.
ANSWER_SOON = 0.25
#: Seconds after which upkeep reads the answer if no user of the connection has read it. The next
#: check of the pool after that does it.
ANSWER_TAKEN_AFTER = 0.5
#: The reason logged for closing a connection whose transaction did not end as it should have.
LEFT_UNFIT = "ROLLBACK did not restore its initial state"


def may_leave(driver: BaseDriver) -> Callable[[Connection], bool]:
    """A function that reports, using *driver*, whether the answer to a ROLLBACK is known in
    advance.
    """
    own: Callable[[Connection], bool] | None = getattr(driver, "may_leave", None)
    return own or (lambda conn: driver.is_in_transaction(conn) is True)


def has_traits(driver: BaseDriver) -> Callable[[Connection, Any], bool]:
    """A function that reports, using *driver*, whether a connection is otherwise as it was
    opened.
    """
    own: Callable[[Connection, Any], bool] | None = getattr(driver, "has_traits", None)
    return own or (lambda conn, traits: bool(driver.traits(conn) == traits))


def is_soon(state: Any, entry: Entry, now: float) -> bool:
    """Whether the answer that *entry* is due may be read together with that to the next
    statement.
    """
    due = entry.due
    return bool(entry.end_seen and due is not None and now - due < ANSWER_SOON and may_fly(state))


def may_fly(state: Any) -> bool:
    """Whether the driver can read the answer that is due together with that to the next statement.
    Behind a pooler it reads the first answer before it sends the second statement.
    """
    if state.tries_flights:
        pooler = state.server.pooler
        return bool(state.pipelines and (pooler.pipelines or pooler.stands))
    return bool(state.pipelines)


def is_overdue(entry: Entry, now: float) -> bool:
    """Whether upkeep should read the answer that *entry* is due, because no user came."""
    return entry.due is not None and now - entry.due >= ANSWER_TAKEN_AFTER


def take_at_once(state: Any, entry: Entry, now: float) -> bool:
    """Whether *entry*, which is due and which its caller has just taken from idle, can be used
    immediately: the expected answer has come, or it comes soon.

    For a blocking driver. If not, the slow path finds out why, and closes the entry if the answer
    was wrong.
    """
    events = entry.poll(0)
    if not events:
        return is_soon(state, entry, now)
    if judge(events) is Liveness.DEAD:
        return False
    conn = entry.conn
    try:
        if not state.driver.take_answer(conn, state.settings.ping_timeout):
            return False  # it was read before: the data on the socket is no answer
    except Exception as exc:
        fault = state.classify(exc)
        entry.condemn(fault.cause or Cause.LOST, fault.text)
        return False
    if heard(state, entry):
        return True
    entry.condemn(Cause.RESET_FAILED, LEFT_UNFIT)
    return False


def heard(state: Any, entry: Entry) -> bool:
    """The answer has come. Return whether *entry* is fit for its next user.

    If it is not, ROLLBACK has another effect here than expected (the server's ``completion_type``
    can cause that). From now on each one is waited for. A routine that the user ran may have
    changed this session alone.
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
        # (a closed connection proves nothing)
        state.defers = state.pipelines = False
    return fit


def lost_in_flight(state: Any, entry: Entry, conn: Connection) -> None:
    """*conn* of *entry*, which was due when it was acquired, is lost. A possible cause is a
    statement that was sent before that answer had come. The next connection tests that again.
    """
    if state.tries_flights and state.driver.is_unread(conn):
        flight_failed(state, entry.born)


def flight_failed(state: Any, born: float, *, is_proven: bool = False) -> None:
    """A connection opened at *born* was lost with a statement sent behind an unanswered one. With
    *is_proven*: two statements got the wrong answers.
    """
    with state.server.lock:
        is_news = state.server.pooler.lost_in_flight(state.clock(), born, is_proven=is_proven)
    if is_news:
        does = (
            "does not answer two statements in order"
            if is_proven
            else "closes a connection if a statement arrives before the last one was answered"
        )
        log.info(
            "no statement ahead",
            f"{state.name}: {state.driver.target.server} {does}; from now on the pool reads each"
            " answer before it sends the next statement",
            pool=state.name,
            server=state.driver.target.server,
        )
