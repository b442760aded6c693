"""How many sessions does the server have? Asked now and then on an idle connection, so that the
processes of a fleet know how many they are when it is away: see :mod:`unbroken.brain.pace`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unbroken.abc import Cause
from unbroken.brain.entry import Entry
from unbroken.brain.pace import WARM
from unbroken.ledger.questions import Question, text_of
from unbroken.logs import Part
from unbroken.pool.acquire import take_answer
from unbroken.pool.registry import every
from unbroken.pool.steps import Call, Flow

log = Part("pool")


def is_due(state: Any, now: float) -> bool:
    """Whether the server should be asked, and may be: a pooler's count is not that of its
    clients.
    """
    server = state.server
    if not server.outage.crowd.is_due(now, _own(state)) or server.outage.active:
        return False
    if server.pooler.stands or text_of(Question.SESSIONS, state.backend) is None:
        return False
    # else it is not known whether an answer that broke off is still to come
    return state.knows_status and next(_warm(state, now), None) is not None


def ask(state: Any) -> Flow[None]:
    """Ask the server for its count, if that is due."""
    now, own = state.clock(), _own(state)
    if not is_due(state, now):
        return
    for entry in _warm(state, now):
        with state.lock:
            if not state.kernel.claim(entry):
                continue
        with state.server.lock:
            state.server.outage.crowd.asks(now, own, state.random)
        if entry.due is None or (
            yield from take_answer(state, entry, state.settings.reset_timeout)
        ):
            yield from _ask_on(state, entry, own)
        return


def _ask_on(state: Any, entry: Entry, own: int) -> Flow[None]:
    """Ask on *entry*, which this flow owns, and put it back."""
    sessions, conn = None, entry.conn
    try:
        sessions = yield from state.read_answer(conn, Question.SESSIONS, entry)
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost or not state.driver.is_quiet(conn):
            state.discard(entry, fault.cause or Cause.LOST, fault.text)
            return
        log.debug(
            "question not answered",
            f"{state.name}: the server does not say how many sessions it has: {fault.text}",
            pool=state.name,
        )
    try:
        if state.driver.is_in_transaction(conn) is not False:
            yield Call("rollback", conn, entry, state.time_for_questions(float("inf")))
    except Exception as exc:
        fault = state.classify(exc)
        state.discard(entry, fault.cause or Cause.LOST, fault.text)
        return
    pools = 0 if state.share is None else state.share.seen().pools
    with state.server.lock:
        state.server.outage.crowd.told(sessions, own)
        state.server.outage.crowd.pools = pools
    entry.sent = entry.count()
    state.put(entry, conn)


def _own(state: Any) -> int:
    """Connections of this process to the server."""
    return sum(len(pool.kernel.entries) for pool in every(state.server.pools))


def _warm(state: Any, now: float) -> Iterator[Entry]:
    """Idle connections that were used a moment ago."""
    return (each for each in state.kernel.all_idle() if now - each.last_used < WARM)
