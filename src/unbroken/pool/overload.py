"""More callers than connections: what a caller that joins the line is told, and what the line
learns.

``brain/line.py`` decides; this file asks it, under the pool's lock, and writes the message. Only
callers that have to wait come here.
"""

from __future__ import annotations

import math
from typing import NoReturn

from unbroken.brain.line import Refusal
from unbroken.brain.ranks import Rank, Ticket
from unbroken.errors import PoolTimeoutError
from unbroken.logs import Part
from unbroken.messages.pool import OVERLOADED
from unbroken.pool.callers import caller
from unbroken.pool.state import PoolState

log = Part("pool")

#: Those that are told at once are asked to come again after so many seconds, each after another
#: time: together they would only make the next overload.
AFTER, SPREAD = 1.0, 4.0
#: While the line moves, a connection may have been forgotten that has been in use for four usual
#: units of work, but not for less than the one, nor more than the other.
HELD_LONG, HELD_TOO_LONG = 0.3, 1.0
#: Seconds after which a caller in a line that moves looks around: for each that waits, and at most.
EACH, MOST = 0.01, 1.0
IN_VAIN = "it would have been served too late for those who wait for it"


class TooLate(Exception):  # noqa: N818 - no error yet: the caller's own context makes one of it
    """What a ticket gets whose caller will leave before it has been served."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def new_ticket(state: PoolState) -> Ticket:
    """A place in the line for the caller in this context."""
    rank, user = caller()
    target = state.settings.shed_target
    waits = user is not None and not user.begun
    is_users = target != math.inf and (waits or target is not None)
    return Ticket(state.clock(), state.runtime.new_signal(), rank, is_users=is_users)


def joined(state: PoolState, ticket: Ticket, until: float) -> tuple[Refusal | None, list[Ticket]]:
    """*ticket*, whose caller has time until *until*, stands at the end of the line: why its caller
    is told at once, or None; and others to wake, whose time is lost. The caller holds the lock.
    """
    kernel, line, settings = state.kernel, state.line, state.settings
    places = kernel.bound
    if settings.max_waiting is not None and ticket.rank is not Rank.HEALTH:
        coming = places - len(kernel.entries)
        if kernel.ahead(ticket) - coming >= settings.max_waiting:
            why = f"max_waiting={settings.max_waiting}"
            return Refusal(kernel.ahead(ticket), 0.0, 0.0, why), []
    if not _is_busy(state):
        line.interrupted()
        return None, []
    now = state.clock()
    told = line.came(
        now,
        ticket.rank,
        kernel.ahead(ticket),
        until - now,
        places,
        users=kernel.users - 1 if ticket.is_users else None,
        target=settings.shed_target,
    )
    late: list[Ticket] = []
    if settings.shed_target != math.inf and (told is not None or line.patience(now) < math.inf):
        late = [each for each in line.late(now, kernel.waiting, places) if each is not ticket]
        late = kernel.dismiss(late, TooLate(Refusal(0, line.gap, 0.0, IN_VAIN)))
        state.counters.shed += len(late)
    return told, late


def _is_busy(state: PoolState) -> bool:
    """Whether all places are taken, so that nothing but the holders of connections decides how long
    a caller waits. In an outage, and while most connections are being opened, other rules hold.

    Where callers are cancelled at work, some connections are being replaced all the time.
    """
    kernel = state.kernel
    return (
        kernel.size >= kernel.bound
        and 2 * kernel.opening <= kernel.bound
        and not state.server.outage.active
        and (kernel.opening == 0 or state.line.moves(state.clock()))
    )


def waited(state: PoolState) -> None:
    """A caller in the line was granted a connection. The caller holds the lock."""
    if _is_busy(state):
        state.line.granted(state.clock(), state.kernel.bound, others=bool(state.kernel.waiting))
    else:
        state.line.interrupted()


def left(state: PoolState, ticket: Ticket) -> None:
    """A caller left the line although its time was not up: it was cancelled. The caller holds the
    lock.
    """
    if _is_busy(state) and ticket.rank is Rank.NORMAL:
        now = state.clock()
        state.line.left(now, now - ticket.since, state.kernel.bound)


def is_held_long(state: PoolState, now: float) -> bool:
    """Whether a connection may have been forgotten: while others come back all the time, one that
    does not is in use for longer.
    """
    usual = state.line.gap * state.kernel.bound
    long = min(max(HELD_LONG, 4 * usual), HELD_TOO_LONG)
    return any(now - e.taken_at > long for e in list(state.kernel.in_use.values()))


def pause(state: PoolState, usual: float) -> float:
    """After how many seconds a caller in the line looks around, if that is *usual*ly so many.

    Where the line moves there is little to be found, and thousands that look take all the time
    there is.
    """
    if not state.line.moves(state.clock()):
        return usual
    return max(usual, min(EACH * len(state.kernel.waiting), MOST))


def raise_told(state: PoolState, ticket: Ticket) -> NoReturn:
    """Raise the error that *ticket* was given while it waited in the line.

    No frame in the error's traceback refers to the error. Otherwise all that the frames of the
    caller refer to would live until a collection: for example a connection that the caller has
    released, and that the pool has lent to another caller since.
    """
    error, ticket.error = ticket.error, None
    assert error is not None
    try:
        if isinstance(error, TooLate):
            error = overload_error(state, error.refusal, state.clock() - ticket.since)
        raise error
    finally:
        del error


def overload_error(state: PoolState, refusal: Refusal, waited: float) -> PoolTimeoutError:
    """What the caller is told. *waited*: for so many seconds it did."""
    after = AFTER + SPREAD * state.random.random()
    figures = f"{refusal.ahead} callers before it"
    if refusal.expected > 0.0 and not waited:
        figures = (
            f"{figures}, an expected wait of {refusal.expected:.2f} s, of which"
            f" {refusal.limit:.2f} s would be within its limit"
        )
    told = f"told after {waited:.2f} s" if waited else "told at once"
    error = state.error(
        PoolTimeoutError,
        OVERLOADED(
            f"no connection to {state.driver.target.label}, {told}: {figures}"
            f" ({state.describe_load()}); {refusal.why}; come again in {after:.1f} s, or raise"
            " max_size if the server has room"
        ),
        retry_after=after,
    )
    if not waited:
        with state.lock:
            state.counters.shed += 1
    log.warning("callers told at once", OVERLOADED(str(error)), pool=state.name)
    return error
