"""Ask the server for its number of sessions now and then, on an idle connection or on a newly
opened one. So the processes of a fleet know their number when the server is down: see
:mod:`unbroken.brain.pace`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from unbroken.abc import Cause, Connection
from unbroken.brain.entry import Entry
from unbroken.brain.pace import WARM
from unbroken.ledger.questions import Question, text_of
from unbroken.pool.acquire import take_answer
from unbroken.pool.registry import every
from unbroken.pool.steps import Flow


def is_due(state: Any, now: float) -> bool:
    """Whether the server should be asked on an idle connection."""
    return _is_wanted(state, now, _own(state)) and next(_warm(state, now), None) is not None


def _is_wanted(state: Any, now: float, own: int) -> bool:
    """Whether the server should be asked, and can be: a pooler's count is not that of its
    clients.
    """
    server = state.server
    if not server.outage.crowd.is_due(now, own) or server.outage.active or server.pooler.stands:
        return False
    # Otherwise an interrupted answer may still be on its way.
    return state.knows_status and text_of(Question.SESSIONS, state.backend) is not None


def ask(state: Any) -> Flow[None]:
    """Ask the server for its count on an idle connection, if that is due."""
    now = state.clock()
    for entry in _warm(state, now) if is_due(state, now) else ():
        with state.lock:
            if not state.kernel.claim(entry):
                continue
        conn = entry.conn
        if entry.due is not None and not (
            yield from take_answer(state, entry, state.settings.reset_timeout)
        ):
            return
        try:
            yield from _ask(state, conn, _own(state))
        except Exception as exc:
            fault = state.classify(exc)
            state.discard(entry, fault.cause or Cause.LOST, fault.text)
            return
        entry.sent = entry.count()
        state.put(entry, conn)
        return


def ask_new(state: Any, conn: Connection, until: float) -> Flow[None]:
    """Ask the server for its count on *conn*, which was just opened. Only if that is due and this
    process has other connections: the very first one serves its caller first.

    Raises the driver's error if *conn* must not be used any more.
    """
    own = _own(state)
    if own and _is_wanted(state, state.clock(), own + 1):
        yield from _ask(state, conn, own + 1, until)


def _ask(state: Any, conn: Connection, own: int, until: float = math.inf) -> Flow[None]:
    crowd = state.server.outage.crowd
    with state.server.lock:
        crowd.asks(state.clock(), own, state.random)
    sessions = yield from state.ask_new(conn, Question.SESSIONS, until)
    pools = 0 if state.share is None else state.share.seen().pools
    with state.server.lock:
        crowd.told(sessions, own)
        crowd.pools = pools


def _own(state: Any) -> int:
    """Number of connections of this process to the server."""
    return sum(len(pool.kernel.entries) for pool in every(state.server.pools))


def _warm(state: Any, now: float) -> Iterator[Entry]:
    """Idle connections that were used a moment ago."""
    return (each for each in state.kernel.all_idle() if now - each.last_used < WARM)
