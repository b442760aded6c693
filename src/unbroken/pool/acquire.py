"""The slow path of an acquire: check a doubtful connection, wait in the line, and fail in time with
a reason.
"""

from __future__ import annotations

import atexit
import gc
from time import thread_time

from unbroken.abc import Cause
from unbroken.brain.entry import Entry
from unbroken.brain.health import Need
from unbroken.brain.kernel import Ticket
from unbroken.brain.line import Refusal
from unbroken.errors import ConnectRejectedError, OutageError, PoolTimeoutError, UnbrokenError
from unbroken.logs import Part
from unbroken.messages.pool import POOL_TIMEOUT
from unbroken.messages.server import NAME_LEADS_NOWHERE, OUTAGE
from unbroken.net.liveness import Liveness, judge
from unbroken.pool import overload
from unbroken.pool.answers import LEFT_UNFIT, heard, is_soon
from unbroken.pool.budget import died_unused
from unbroken.pool.endings import THEIR_DOING
from unbroken.pool.leaks import discard_forgotten, recover_left, recover_strays
from unbroken.pool.login import login_error, still_asking
from unbroken.pool.registry import every_state
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Flow, Wait
from unbroken.pool.unsupported import refuse_eventlet

log = Part("pool")

#: Seconds between two checks of a waiting caller: for forgotten connections, and for a lost worker.
LOOK_AROUND = 0.25
#: Seconds to its first check, which may collect garbage: a forgotten connection is often part of a
#: reference cycle.
FIRST_LOOK = 0.05
#: Minimum seconds between two checks by any caller: a line of a thousand must not spend its time
#: checking.
LOOKS_APART = 0.04
#: Minimum seconds between two such collections: each takes tens of milliseconds in a large process.
COLLECT_EVERY = 0.5
#: … and this many times the processor time of the last one. A busy pool must not spend more than a
#: tenth of the time on collections. If one takes a second, a caller with the default timeout still
#: gets one.
COLLECT_SHARE = 10.0


def acquire(
    state: PoolState, suspect: Entry | None, started: float, until: float, *, again: bool = False
) -> Flow[Entry]:
    """Return an entry that is fit for use and that the caller owns. *suspect* was popped from idle
    and needs a full check. *again*: the caller had a place but gave it up because its connection
    had ended, so it goes first.

    Raises PoolTimeoutError, OutageError, ConnectRejectedError or PoolClosedError, no later than at
    *until*.
    """
    entry = suspect
    try:
        refuse_eventlet()  # eventlet may have been imported after the pool was made
        _refuse_at_the_end(state)
    except UnbrokenError:
        if suspect is not None:
            state.kernel.put(suspect)
        raise
    if suspect is not None:
        state.close_hung_up()
    while True:
        if entry is None:
            entry = yield from _stand_in_line(state, started, until, front=again)
        if (yield from _is_fit(state, entry, until)):
            return entry
        if not entry.uses and entry.cause in THEIR_DOING:
            died_unused(state)
        entry, again = None, True


def _refuse_at_the_end(state: PoolState) -> None:
    """Raise PoolClosedError if no timer can run any more: then no wait for a server would have a
    bound.
    """
    why = state.runtime.watcher.stopped()
    if why is not None and why.is_ending:
        raise state.ending_error(why)


def _is_fit(state: PoolState, entry: Entry, until: float) -> Flow[bool]:
    """Whether *entry* can be used now. An unfit entry is closed."""
    if entry.conn is None:
        return True  # a place: its caller connects
    now = state.clock()
    looks = judge(entry.poll(0))
    need = state.policy.need(entry, now)
    if entry.generation != state.kernel.generation:
        state.discard(entry, Cause.DRAINED)
        return False
    if looks is Liveness.DEAD or (entry.due is None and state.heard_goodbye(entry.conn)):
        state.discard_dead(entry)
        return False
    if need is Need.RETIRE:
        state.discard(entry, Cause.MAX_AGE)
        return False
    if entry.due is not None:
        if is_soon(state, entry, now) and looks is Liveness.ALIVE and need is Need.NOTHING:
            return True  # its answer comes before the next statement's
        # The unread data is most likely that answer: check again after reading it.
        fit = yield from take_answer(state, entry, time_to_ping(state, until - now))
        return fit and (yield from _is_fit(state, entry, until))
    if looks is Liveness.ALIVE and need is Need.NOTHING:
        return True
    return (yield from ping(state, entry, time_to_ping(state, until - now)))


def time_to_ping(state: PoolState, left: float) -> float:
    """Seconds within which a server must answer a caller that has *left* seconds."""
    return min(state.settings.ping_timeout, max(left, 0.05))


def take_answer(state: PoolState, entry: Entry, timeout: float) -> Flow[bool]:
    """Read the answer to the ROLLBACK that was sent when *entry*, which the caller owns, was
    returned.

    Return False if it did not come within *timeout* seconds, or was not the expected one. The entry
    is closed then.
    """
    was_due = state.is_due(entry, entry.conn)
    if was_due and not (yield from _hear(state, entry, "take_answer", timeout)):
        return False
    if heard(state, entry):
        return True
    state.discard(entry, Cause.RESET_FAILED, LEFT_UNFIT)
    return False


def ping(state: PoolState, entry: Entry, timeout: float) -> Flow[bool]:
    """One round trip on an entry that the caller owns. Return False if it got no answer; it is
    closed then.
    """
    if entry.due is not None and not (yield from take_answer(state, entry, timeout)):
        return False
    now = state.clock()
    quiet = state.idle_for(entry, now)
    if not (yield from _hear(state, entry, "ping", timeout)):
        return False
    entry.last_used = state.clock()
    with state.lock, state.server.lock:
        state.counters.pings += 1
        limit = state.server.limit
        taken_back = limit.is_watching and limit.alive(now, quiet)
    if taken_back:
        state.forgot_limit()
    return True


def _hear(state: PoolState, entry: Entry, method: str, timeout: float) -> Flow[bool]:
    """Make a round trip on an entry that the caller owns, by the driver's *method*.

    Return False if it failed; the entry is closed then.
    """
    idle, due = state.clock() - entry.last_used, entry.due
    mine = Ticket(state.clock(), None)
    mine.entry = entry
    state.tickets.add(mine)
    try:
        yield Call(method, entry.conn, entry, timeout)
    except Exception as exc:
        fault = state.classify(exc)
        cause = (
            fault.cause
            if fault.cause is not None and fault.cause is not Cause.LOST
            else Cause.SILENT_DROP
        )
        state.discard(entry, cause, fault.text)
        state.sweep()
        if cause is Cause.SILENT_DROP and due is not None:
            state.drop_unanswered(due)  # a slow server has not dropped the others
        elif cause is Cause.SILENT_DROP:
            state.drop_silent(idle)
        return False
    except BaseException:
        state.discard(entry, Cause.CANCELLED)
        raise
    mine.entry = None
    entry.sent = entry.count()
    return True


def _stand_in_line(state: PoolState, started: float, until: float, *, front: bool) -> Flow[Entry]:
    """Wait until a connection is granted. One wait is one ticket; it leaves the line in every
    case.
    """
    kernel = state.kernel
    taken = None if front else overload.overtake(state)
    if taken is not None:
        return taken
    ticket = overload.new_ticket(state)
    told: Refusal | None = None
    try:
        state.tickets.add(ticket)
        with state.lock:
            if kernel.closed:
                raise state.closed_error()
            others = [t for t in kernel.enter(ticket, front=front) if t is not ticket]
            if not ticket.done and not front:
                told, late = overload.joined(state, ticket, until)
                others += late
        state.wake(others)
        if told is not None:
            raise overload.overload_error(state, told, 0.0)
        if not ticket.done:
            state.ensure_connecting()
            yield from _wait(state, ticket, started, until)
    except BaseException as exc:
        _give_up(state, ticket, was_cancelled=not isinstance(exc, Exception))
        raise
    if ticket.error is not None:
        overload.raise_told(state, ticket)
    entry = ticket.entry
    assert entry is not None
    entry.queued = entry.uses + 1, ticket.since
    ticket.entry = None
    return entry


def _give_up(state: PoolState, ticket: Ticket, *, was_cancelled: bool) -> None:
    """Leave the line. An entry that was granted at the last moment goes to the next caller."""
    with state.lock:
        if was_cancelled:
            overload.left(state, ticket)
        is_idle_again = state.kernel.give_up(ticket)
    if is_idle_again:
        state.dispatch()


def _wait(state: PoolState, ticket: Ticket, started: float, until: float) -> Flow[None]:
    with state.lock:
        state.counters.waits += 1
    begun = state.clock()
    pause = overload.pause(state, FIRST_LOOK)
    overload.recall(state)
    try:
        while not ticket.done:
            now = state.clock()
            _raise_if_hopeless(state, now, started, until, begun)
            if state.no_thread is not None:
                yield from state.connect_here(until)
                if ticket.done:
                    return
            yield Wait(ticket.signal, min(pause, max(until - now, 0.0)))
            if ticket.called:
                overload.answer_call(state, ticket)
            elif not ticket.done:
                _look_around(state, until)
                # an entry is a stray only if it is found twice
                pause = FIRST_LOOK if state.suspects else overload.pause(state, LOOK_AROUND)
    finally:
        if ticket.called:  # and got a connection or an error before it looked
            overload.answer_call(state, ticket)
        with state.lock:
            state.counters.wait_seconds += state.clock() - begun
            if ticket.entry is not None:
                overload.waited(state)
        if state.no_thread is not None:
            state.stop_connecting_here()


def _raise_if_hopeless(
    state: PoolState, now: float, started: float, until: float, came: float
) -> None:
    """Raise if the caller must not wait longer: its time is up, or the server was down for too long
    and no connection can be returned.
    """
    if _has_no_login(state, now, until, came):
        with state.lock:
            state.counters.turned_away += 1
        raise login_error(state, now)
    if now >= until:
        outage = state.server.outage
        with state.lock:
            state.counters.timeouts += 1
        if outage.active and not _may_come_back(state):
            with state.server.lock:
                state.server.toll.callers += 1
            raise _outage_error(state, now, started)
        raise _timeout_error(state, now, started)
    if not _may_come_back(state) and state.server.outage.turns_away(
        now, state.settings.outage_wait, came
    ):
        with state.lock, state.server.lock:
            state.counters.turned_away += 1
            state.server.toll.callers += 1
        raise _outage_error(state, now, started)


def _has_no_login(state: PoolState, now: float, until: float, came: float) -> bool:
    """Whether a caller has waited long enough for a login."""
    refusals, patience = state.refusals, state.settings.outage_wait
    return (
        refusals.active
        and (now >= until or refusals.turns_away(now, patience, came))
        and not _may_come_back(state)
    )


def _may_come_back(state: PoolState) -> bool:
    """Whether a connection of another caller may still be returned and serve this one. A dead or
    drained connection cannot.

    A connection that was granted to a caller that has not woken up yet counts as in use.
    """
    return any(
        e.cause is None and e.generation == state.kernel.generation
        for e in list(state.kernel.entries.values())
    )


def _outage_error(state: PoolState, now: float, started: float) -> UnbrokenError:
    waited = f"within {now - started:.1f} s " if now - started > 0.1 else ""
    outage = state.server.outage
    if outage.is_misnamed and outage.fault is not None:
        return state.error(
            ConnectRejectedError,
            NAME_LEADS_NOWHERE(
                f"cannot connect to {state.driver.target.label}: {outage.fault.text}; this"
                " process has never resolved that host name, so check its spelling"
            ),
        )
    return state.error(
        OutageError,
        OUTAGE(
            f"no connection to {state.driver.target.label} {waited}({state.describe_load()});"
            f" {state.describe_outage(now)}; the pool keeps trying and recovers by itself"
        ),
        retry_after=1.0,
    )


def _timeout_error(state: PoolState, now: float, started: float) -> PoolTimeoutError:
    holders = {str(e.place) for e in list(state.kernel.in_use.values())[:50] if e.place is not None}
    held = (
        f"; held by {', '.join(sorted(holders)[:3])}{' …' if len(holders) > 3 else ''}"
        if holders
        else ""
    )
    outage = state.describe_outage(now)
    busy = "all connections are in use: release them earlier, or raise max_size or acquire_timeout"
    asked = still_asking(state)
    silent = (
        f"the callable for the {asked} has not returned yet; give it a time limit"
        if asked
        else "the server has not answered yet; check whether it is overloaded or frozen"
    )
    if state.no_thread is not None:
        silent = f"the pool cannot start a thread to connect ({state.no_thread})"
    kernel = state.kernel
    is_full = len(kernel.in_use) + len(kernel.resetting) >= kernel.max_size
    if state.share is not None and state.share.hungry:
        is_full, busy = (
            True,
            (
                "the other pools on this host use the remaining connections: release connections"
                " earlier, or raise the server's limit"
            ),
        )
    why = outage or (busy if is_full else silent)
    error = state.error(
        PoolTimeoutError,
        POOL_TIMEOUT(
            f"no connection to {state.driver.target.label} within {now - started:.1f} s"
            f" ({state.describe_load()}){held}; {why}"
        ),
    )
    log.warning("callers turned away", POOL_TIMEOUT(str(error)), pool=state.name)
    return error


def _look_around(state: PoolState, until: float) -> None:
    """The checks that a waiting caller with time *until* can make itself: find forgotten
    connections, and ensure that a worker connects.
    """
    now = state.clock()
    with state.lock:
        if now < state.next_look_around:
            return  # another caller has just checked, for all
        state.next_look_around = now + LOOKS_APART
    _recover(state)
    if _should_collect(state, until):
        _collect(state)
        _recover(state)


def _should_collect(state: PoolState, until: float) -> bool:
    """Whether only a collection can find a connection for a caller with time *until*.

    It takes a second in a large process, and blocks everything else. So it waits while an entry is
    suspected to be a stray, which the next check recovers.
    """
    now = state.clock()
    with state.lock:
        due = now - state.last_collect > max(COLLECT_EVERY, COLLECT_SHARE * state.collect_cost)
        collects = (
            due
            and not state.suspects
            and not state.kernel.idle
            and len(state.kernel.entries) >= state.kernel.bound
            and until - now > 2 * state.collect_took
            and (not state.line.moves(now) or overload.is_held_long(state, now))
        )
        if collects:
            state.last_collect = now
    return collects


def _collect(state: PoolState) -> None:
    now, began = state.clock(), thread_time()  # other threads and processes run meanwhile
    gc.collect()
    state.collect_cost = thread_time() - began
    # Counted from its end: on an event loop, all other tasks have waited for it.
    state.last_collect = state.clock()
    state.collect_took = state.last_collect - now


def _recover(state: PoolState) -> None:
    """Find connections that were forgotten, lost or left behind, and give them to waiting
    callers.
    """
    discard_forgotten(state)
    recover_strays(state)
    recover_left(state)
    overload.recall(state)
    state.sweep()
    state.dispatch()


@atexit.register
def _take_no_short_cuts() -> None:
    """Make each acquire call :func:`_refuse_at_the_end` from now on. While the interpreter is
    finalizing, a statement could still be sent, but its COMMIT could not.
    """
    for state in every_state():
        state.fresh_for = -1.0
