"""The pool's queries on a newly opened connection, before a caller gets it."""

from __future__ import annotations

import errno
import math
from typing import Any

from unbroken.abc import Connection
from unbroken.ledger.questions import Question, text_of
from unbroken.logs import Part
from unbroken.pool.answers import flight_failed
from unbroken.pool.knowledge import AT_THE_LIMIT
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Flow

log = Part("pool")


def _within(state: PoolState, until: float) -> float:
    """Seconds that a query may take if it must be answered by *until*."""
    return min(state.settings.ping_timeout, max(until - state.clock(), AT_THE_LIMIT))


def ask_limit(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Ask the server for its idle limit, once per process.

    If the pool must not ask, it has to learn the limit.
    """
    with state.server.lock:
        if state.server.limit.asked:
            return
        state.server.limit.asked = True  # one asks; the others do not wait for the answer
        if state.server.pooler.stands:
            return  # the server's limit is that of the pooler's sessions
    try:
        limit = yield Call("idle_limit", conn, timeout=_within(state, until))
    except Exception as exc:
        if state.classify(exc).is_lost:
            state.server.limit.asked = False
            # It must not be used: a driver that knows it to be closed shows no socket to check any
            # more.
            raise
        log.debug(
            "question not answered",
            f"{state.name}: the server did not report its idle limit: {state.classify(exc).text}",
            pool=state.name,
        )
        if state.knows_status and not state.driver.is_quiet(conn):
            # Its answer may still come, so no caller may get this connection. The next one is not
            # asked.
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the query for the idle limit was interrupted"
            ) from exc
        return
    with state.server.lock:
        state.server.limit.tell(limit)
    state.limit_changed()


def ask_uptime(
    state: PoolState, conn: Connection, place: Any, until: float = math.inf
) -> Flow[None]:
    """After idle connections ended without a message: ask the server at *place* whether it was up
    for their whole lives. Only then can their ends teach an idle limit.
    """
    with state.server.lock:
        limit = state.server.limit
        deaths, was_away = limit.take_pending(), state.server.outage.active
    if state.server.pooler.stands or text_of(Question.UPTIME, state.backend) is None:
        return  # a pooler's restarts are not the server's
    uptime = yield from state.ask_new(conn, Question.UPTIME, until)
    with state.server.lock:
        learned = limit.heard(state.clock(), deaths, uptime, was_away=was_away, place=place)
        what, why = limit.learned, limit.learned_from
    if learned:
        log.info(
            "idle limit learned",
            f"{state.name}: learned that idle connections are closed after about {what:.1f} s:"
            f" {why}",
            pool=state.name,
            seconds=what or 0.0,
        )
        state.limit_changed()


def try_flight(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[bool]:
    """Have the driver send a statement before it has read the answer to another one, if it is
    unknown whether the server supports that. Return False if *conn* was lost, or cannot be used any
    more.

    The first statement takes some time, so that the second one arrives while the first is
    unanswered.
    """
    if not (state.tries_flights and state.pipelines):
        return True
    driver: Any = state.driver
    pooler = state.server.pooler
    if pooler.wants_flight(state.clock()) and driver.is_in_transaction(conn) is False:
        driver.let_fly(conn, True)
        began = state.clock()
        try:
            went_well = yield from _fly(driver, conn, _within(state, until))
        except Exception as exc:
            fault = state.classify(exc)
            if not fault.is_lost and driver.is_quiet(conn) and not driver.owes_answer(conn):
                driver.let_fly(conn, False)
                return True  # it was refused: the next one tests again
            flight_failed(state, began)
            return False
        if went_well is False:
            flight_failed(state, began, is_proven=True)
            return False
        if went_well is None:  # it could not be tested
            driver.let_fly(conn, False)
            return True
        with state.server.lock:
            pooler.pipelines = True
    driver.let_fly(conn, pooler.pipelines is True)
    return True


def _fly(driver: Any, conn: Connection, within: float) -> Flow[bool | None]:
    """Send two statements without waiting. Return whether each of them got its own answer."""
    if hasattr(driver, "try_flight"):
        went_well: bool | None = yield Call("try_flight", conn, None, within)
        return went_well
    yield Call("send_end", conn, args=("DO SLEEP(0.01)",))
    yield Call("ask", conn, None, within, ("SELECT 1",))
    return True


def ask_share(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Ask the server, once per process, how many connections it grants: the pools of this host
    share them. Behind a pooler its answer is meaningless.
    """
    share = state.share
    assert share is not None
    share.asked = True  # one asks; the others do not wait for the answer
    said = None
    try:
        if not state.server.pooler.stands:
            said = yield from state.ask_new(conn, Question.CONNECTIONS, until)
    except BaseException:
        share.asked = False
        raise
    share.told(state, said)


def remember(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[Any]:
    """The values that a reset of this session must restore. None if they are unknown.

    One round trip.
    """
    try:
        return (yield Call("remember", conn, timeout=_within(state, until)))
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost or not state.driver.is_quiet(conn):
            raise
        log.debug(
            "question not answered",
            f"{state.name}: sessions are closed instead of reset: {fault.text}",
            pool=state.name,
        )
        return None


def prove(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Have the driver prove, once per process, that it sees the statements that its library sends.
    Without proof no unit is replayed.
    """
    driver = state.driver
    if not driver.needs_trial(conn):
        return
    try:
        flaw = yield Call("probe", conn, timeout=_within(state, until))
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost:
            raise  # another connection has to prove it
        driver.tried(
            conn, f"the test of its reports failed: {fault.text or repr(exc)}", final=False
        )
    else:
        driver.tried(conn, flaw)
