"""More callers than connections: refuse a caller that joins a line that is too long, and feed the
line's statistics.

``brain/line.py`` decides. This file calls it under the pool's lock, and writes the message. Only
callers that have to wait get here.
"""

from __future__ import annotations

import math
from random import Random
from typing import NoReturn

from unbroken.brain.entry import Entry
from unbroken.brain.line import Refusal, crowded
from unbroken.brain.ranks import Rank, Ticket
from unbroken.errors import PoolTimeoutError
from unbroken.logs import Part
from unbroken.messages.pool import OVERLOADED
from unbroken.pool import wording
from unbroken.pool.callers import caller, has_limit
from unbroken.pool.state import PoolState

log = Part("pool")

#: Seconds after which refused callers are asked to come again, each after a different time:
#: together they would only cause the next overload.
AFTER, SPREAD = 1.0, 4.0
#: While the line moves, a connection may have been forgotten if it is in use for four usual units
#: of work. These are the minimum and the maximum of that time, in seconds.
HELD_LONG, HELD_TOO_LONG = 0.3, 1.0
#: Seconds between two checks of a caller in a moving line: per waiting caller, and at most.
EACH, MOST = 0.01, 1.0
IN_VAIN = "no connection would have become free before the user gave up"


class TooLate(Exception):  # noqa: N818 - no error yet: the caller's own context makes one of it
    """The error of a ticket whose caller will leave before it is served."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def new_ticket(state: PoolState) -> Ticket:
    """A place in the line for the caller in this context."""
    rank, user = caller()
    is_users = has_limit(user, state.settings.shed_target)
    return Ticket(state.clock(), state.runtime.new_signal(), rank, is_users=is_users)


def overtake(state: PoolState) -> Entry | None:
    """An idle entry for a caller that has just come although others wait, if they have not waited
    for long: see :mod:`unbroken.brain.waiting`.
    """
    kernel = state.kernel
    if not (kernel.patience and kernel.idle and kernel.waiting):
        return None
    with state.lock:
        entry = kernel.overtake(state.clock())
        if entry is not None:
            waited(state)  # the line's statistics count all connections that are returned
    return entry


def answer_call(state: PoolState, ticket: Ticket) -> None:
    """The caller of *ticket* was woken to look for an idle entry."""
    with state.lock:
        others = state.kernel.answer_call(ticket, state.clock())
    state.wake(others)


def recall(state: PoolState) -> None:
    """Ask holders for a connection that they do not need now. The longest holder is asked first."""
    for entry in [*state.kernel.in_use.values(), *state.kernel.resetting.values()]:
        ask = entry.recall()
        if ask is not None and ask():
            return


def joined(state: PoolState, ticket: Ticket, until: float) -> tuple[Refusal | None, list[Ticket]]:
    """*ticket*, whose caller has time *until*, is at the end of the line. Return why its caller is
    refused immediately, or None, and other tickets to wake whose wait is hopeless. The caller holds
    the lock.
    """
    kernel, line, settings = state.kernel, state.line, state.settings
    places = kernel.bound
    if settings.max_waiting is not None:
        coming = places - len(kernel.entries)
        crowd = crowded(ticket.rank, kernel.ahead(ticket), settings.max_waiting, coming)
        if crowd is not None:
            return crowd, []
    if not _is_busy(state):
        line.interrupted()
        return None, []
    now = state.clock()
    refusal = line.came(
        now,
        ticket.rank,
        kernel.ahead(ticket),
        until - now,
        places,
        users=kernel.users - 1 if ticket.is_users else None,
        target=settings.shed_target,
    )
    late: list[Ticket] = []
    if settings.shed_target != math.inf and (refusal is not None or line.patience(now) < math.inf):
        late = [each for each in line.late(now, kernel.waiting, places) if each is not ticket]
        late = kernel.dismiss(late, TooLate(Refusal(0, line.gap, 0.0, IN_VAIN)))
        state.counters.shed += len(late)
    return refusal, late


def _is_busy(state: PoolState) -> bool:
    """Whether all places are taken, so that only the holders of connections determine how long a
    caller waits. In an outage, and while most connections are being opened, other rules apply.
    """
    kernel = state.kernel
    return (
        kernel.size >= kernel.bound
        and not state.server.outage.active
        and state.line.depends_on_holders(state.clock(), kernel.opening, kernel.bound)
    )


def waited(state: PoolState) -> None:
    """A caller in the line was granted a connection. The caller of this function holds the lock."""
    if _is_busy(state):
        state.line.granted(state.clock(), state.kernel.bound, others=bool(state.kernel.waiting))
    else:
        state.line.interrupted()


def left(state: PoolState, ticket: Ticket) -> None:
    """A caller was cancelled and left the line before its time was up. The caller of this function
    holds the lock.
    """
    if _is_busy(state) and ticket.rank is Rank.NORMAL:
        now = state.clock()
        state.line.left(now, now - ticket.since, state.kernel.bound)


def is_held_long(state: PoolState, now: float) -> bool:
    """Whether a connection may have been forgotten: it is in use for long while others are returned
    all the time.
    """
    usual = state.line.gap * state.kernel.bound
    long = min(max(HELD_LONG, 4 * usual), HELD_TOO_LONG)
    return any(now - e.taken_at > long for e in list(state.kernel.in_use.values()))


def pause(state: PoolState, usual: float) -> float:
    """Seconds until a caller in the line checks again; *usual* if the line does not move.

    If the line moves there is little to find, and thousands of checks would take all the processor
    time.
    """
    if not state.line.moves(state.clock()):
        return usual
    return max(usual, min(EACH * len(state.kernel.waiting), MOST))


def raise_told(state: PoolState, ticket: Ticket) -> NoReturn:
    """Raise the error that *ticket* was given while it waited in the line.

    No frame in the error's traceback refers to the error. Otherwise all objects that the caller's
    frames refer to would live until a collection. One of them may be a connection that the caller
    has released and that another caller uses since.
    """
    error, ticket.error = ticket.error, None
    assert error is not None
    try:
        if isinstance(error, TooLate):
            error = overload_error(state, error.refusal, state.clock() - ticket.since)
        raise error
    finally:
        del error


def come_again(random: Random) -> float:
    """After how many seconds a caller that is told shall come again."""
    return AFTER + SPREAD * random.random()


def overload_error(state: PoolState, refusal: Refusal, waited: float) -> PoolTimeoutError:
    """The error for a refused caller. *waited*: the seconds that it has waited."""
    after = come_again(state.random)
    line = wording.line(refusal, waited, state.describe_load())
    error = state.error(
        PoolTimeoutError,
        OVERLOADED(
            f"no connection to {state.driver.target.label}, {line}; {refusal.why}; retry in"
            f" {after:.1f} s, or raise max_size if the server can take more connections"
        ),
        retry_after=after,
    )
    if not waited:
        with state.lock:
            state.counters.shed += 1
    log.warning("callers told at once", OVERLOADED(str(error)), pool=state.name)
    return error
