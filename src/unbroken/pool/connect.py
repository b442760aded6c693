"""Open connections: as many in parallel as the server's record allows; in an outage, one prober for
all.
"""

from __future__ import annotations

import errno
import math
import weakref
from collections.abc import Callable

from unbroken.abc import Connection, Fault, FaultKind
from unbroken.backends.fault import is_own, shows_server
from unbroken.brain.entry import Entry
from unbroken.brain.hosts import After
from unbroken.brain.outage import SILENT
from unbroken.brain.tries import Try
from unbroken.pool import crowd, news
from unbroken.pool.admission import CannotServeError, admit
from unbroken.pool.ending import was_too_late
from unbroken.pool.first_questions import (
    ask_limit,
    ask_share,
    ask_uptime,
    prove,
    remember,
    try_flight,
)
from unbroken.pool.knowledge import AT_THE_LIMIT
from unbroken.pool.login import (
    check_keys,
    fault_of,
    is_alone,
    is_of_one_host,
    is_put_off,
    let_in,
    login_of,
    refused,
    scrub,
    text_of,
    time_left,
)
from unbroken.pool.places import (
    after_failure,
    came_about,
    choose,
    condemn_elsewhere,
    follow,
    look,
)
from unbroken.pool.poolers import compare, recognise
from unbroken.pool.registry import every
from unbroken.pool.rejections import GAVE
from unbroken.pool.secrets import LoginError, late
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Connect, Flow, Wait
from unbroken.pool.strangers import ask_if_silent, ask_stranger, may_be_stranger, refuse_stranger
from unbroken.pool.upkeep import schedule

#: Seconds after its start in which an attempt may still be making progress, however long the server
#: usually takes.
MOVING = 1.0
#: Seconds that an attempt has after its time is up, before it counts as failed: a name lookup
#: cannot be ended.
AFTERWARDS = 0.25


def connector(state: PoolState, until: float | None = None) -> Flow[None]:
    """One worker: opens the wanted connections one after the other, and ends when none is wanted.

    With *until* a caller does a worker's work: at most one attempt, which ends by then.
    ``connectors`` counts it.
    """
    attempt: Try | None = None
    try:
        while True:
            asked = _ask(state, math.inf if until is None else until)
            if asked is None:
                return
            if not isinstance(asked, Try):
                if until is not None:
                    return
                yield from _sleep(state, asked)
                continue
            attempt = asked
            watch_over(state)
            try:
                goes_on = yield from _open_one(state, attempt)
            finally:
                _over(state, attempt)
            if not goes_on or attempt.is_late or until is not None:
                return
    finally:
        with state.lock, state.server.lock:
            state.at_work -= 1
            state.stuck -= attempt is not None and attempt.is_late
            # a caller makes its next attempt after a pause, unless it leaves: see acquire
            is_last = state.connectors == 0 and until is None
            resigned = is_last and state.server.outage.resign(state)
        state.ensure_connecting()  # for callers that came meanwhile
        if resigned:
            tell_others(state)


def _ask(state: PoolState, until: float) -> Try | float | None:
    """Decide what this worker may do. A Try: start this attempt, whose place is reserved and which
    ends by *until*. A number: ask again in this many seconds. None: end.
    """
    with state.lock, state.server.lock:
        kernel, outage, now = state.kernel, state.server.outage, state.clock()
        if kernel.closed or not (state.wants or (outage.active and state.places > 0)):
            return None
        if state.refusals.active and not kernel.waiting:
            return None
        delay = outage.ask(state, now, len(kernel.waiting), is_served=bool(kernel.entries))
        if delay is None or state.room(state.connectors - 1) <= 0:
            return None
        if state.refusals.delay(now) > delay:
            delay = state.refusals.delay(now)
            outage.resign(state)  # another pool of this server may be able to log in
        if delay > 0.0:
            return delay
        if not kernel.reserve(spare=True):
            return None
        attempt = outage.began(state, now)
        limit = min(state.connect_limit, max(AT_THE_LIMIT, until - now))
        attempt.until = now + limit
        choose(state, attempt)
        state.tries[attempt] = state.runtime.dialing(limit)
        return attempt


def _over(state: PoolState, attempt: Try) -> None:
    """The attempt has ended."""
    with state.lock, state.server.lock:
        state.server.outage.over(attempt)
        state.tries.pop(attempt, None)
        timer = None
        if not state.tries:
            timer, state.oversight = state.oversight, None
    if timer is not None:
        timer.cancel()


def _sleep(state: PoolState, delay: float) -> Flow[None]:
    """Sleep until the next attempt is due. If no caller waits, one that arrives ends the sleep."""
    signal = state.runtime.new_signal()
    with state.lock:
        if not state.kernel.waiting:
            state.prober_wakeup = signal
    try:
        yield Wait(signal, delay)
    finally:
        with state.lock:
            if state.prober_wakeup is signal:
                state.prober_wakeup = None


# -- attempts that hang ----------------------------------------------------------------------------


def watch_over(state: PoolState) -> None:
    """Check the attempts in progress when one of them will have been silent for too long, unless
    one ends before.
    """
    state.oversee = watch_over
    with state.lock, state.server.lock:
        outage, now = state.server.outage, state.clock()
        when = outage.look_again(state, now, bool(state.kernel.waiting) or outage.is_called(now))
        ends = min((each.until for each in state.tries), default=math.inf) + AFTERWARDS
        when = min(ends, math.inf if when is None else when)
        before = state.oversight
        if when == math.inf or (before is not None and before.when <= when):
            return
        this = weakref.ref(state)
        state.oversight = state.runtime.watcher.at(when, lambda: _look(this))
    if before is not None:
        before.cancel()


def _look(state_ref: Callable[[], PoolState | None]) -> None:
    """On the watcher: some attempts are silent.

    Begin new ones, end one to make room for another, and count those whose time is up.
    """
    state = state_ref()
    if state is None or not state.here[0]:
        return
    now = state.clock()
    tries = [(each, dialing) for each, dialing in list(state.tries.items()) if not dialing.asks]
    moving = [
        each
        for each, dialing in tries
        if (now - each.started < MOVING and dialing.is_moving(SILENT)) or dialing.is_asking(MOVING)
    ]
    connected = [dialing.is_connected() for each, dialing in tries if now - each.started >= SILENT]
    with state.lock, state.server.lock:
        state.oversight = None
        outage, kernel = state.server.outage, state.kernel
        outage.seen(now, connected)
        look(state)
        kernel.silent = outage.silent(state, now)
        called = outage.active and outage.prober is state and outage.is_called(now)
        victim = (
            outage.to_end(state, now, state.places, moving)
            if state.unserved > 0 or called
            else None
        )
        if victim is not None:
            victim.is_ended = True
        dialing = None if victim is None else state.tries.get(victim)
        given_up = _give_up_late(state, now)
    if dialing is not None:
        dialing.end(overtaken=True)
    for attempt, asks in given_up:
        _tell_late(state, attempt, asks)
    with state.lock, state.server.lock:
        resigned = bool(given_up) and state.connectors == 0 and state.server.outage.resign(state)
    follow(state)
    ask_if_silent(state, [each for each, _ in tries], now, _reject)
    state.ensure_connecting()
    if resigned:
        tell_others(state)
    if called:
        state.hasten()
    watch_over(state)


def _give_up_late(state: PoolState, now: float) -> list[tuple[Try, str]]:
    """Give up the attempts that still block after their time is up: free their places, and count
    their workers as stuck. Return each with the name of its request. The caller holds both locks.
    """
    found = [
        (each, dialing.asks)
        for each, dialing in state.tries.items()
        if now >= each.until + AFTERWARDS
    ]
    for each, _ in found:
        each.is_late = True
        state.tries.pop(each, None)
        state.server.outage.over(each)
        state.kernel.unreserve()
        state.stuck += 1
    return found


def _tell_late(state: PoolState, attempt: Try, asks: str) -> None:
    """An attempt was given up."""
    if asks:
        slow = late(asks, state.settings.connect_timeout)
        refused(state, slow, slow.fault, attempt.started)
        return
    text = f"the connect did not end within {state.connect_limit:g} s (in {_what_blocks(state)}?)"
    error = TimeoutError(errno.ETIMEDOUT, text)
    _failed(state, error, fault_of(state, error), attempt)


def _what_blocks(state: PoolState) -> str:
    own = getattr(state.driver, "_connect", None)
    return "the host name lookup" if own is None else "your own connect="


# -- one attempt -----------------------------------------------------------------------------------


def _open_one(state: PoolState, attempt: Try) -> Flow[bool]:
    """Try once, in the reserved place. Return False if this worker should end."""
    started, generation = attempt.started, state.kernel.generation
    dialing = state.tries[attempt]
    conn: Connection = None
    entry: Entry | None = None
    try:
        login = yield from login_of(state, attempt)
        dialing = state.tries.get(attempt, dialing)
        check_keys(state)
        refuse_stranger(state)
        conn = yield Connect(time_left(state, attempt), dialing, login)
        if dialing.is_ended:
            raise TimeoutError(errno.ETIMEDOUT, "the connection came too late")
        dialing.has_made(state.driver.fileno(conn))
        until = attempt.until  # one limit for all steps
        led_to = yield from recognise(state, conn, until)
        yield from ask_limit(state, conn, until)
        if state.server.limit.wants_uptime:
            yield from ask_uptime(state, conn, attempt.address, until)
        yield from prove(state, conn, until)
        yield from admit(state, attempt, conn, until)
        yield from crowd.ask_new(state, conn, until)
        if state.share is not None and state.share.wants_word(was_away=state.server.outage.active):
            yield from ask_share(state, conn, until)
        if state.hidden.is_due(started):
            yield from state.ask_hidden(conn, until=until)
        if not (yield from try_flight(state, conn, until)):
            return True  # the next one uses that knowledge
        opening = (
            (yield from remember(state, conn, until)) if state.settings.reset == "session" else None
        )
        _over(state, attempt)  # from here on it cannot be given up any more
        if attempt.is_late:
            raise TimeoutError(errno.ETIMEDOUT, "the connection came too late")
        if not came_about(state, attempt):
            return True
        entry = state.adopt(conn, generation)
        entry.address, entry.led_to, entry.opening = attempt.address, led_to, opening
    except Exception as exc:
        if attempt.is_ended or attempt.is_late:
            return True  # counted already, or ended for another: it proves nothing
        scrub(state, exc)
        if was_too_late(state, exc):
            return False
        fault = fault_of(state, exc, is_open=conn is not None)
        if conn is None and may_be_stranger(state, fault):
            found = yield from ask_stranger(state)
            if found is not None:
                return _failed(state, found, found.fault, attempt)
        if is_put_off(state, exc, fault):
            return _put_off(state, exc, fault, attempt)
        lost = (
            conn is None or dialing.is_ended or isinstance(exc, CannotServeError) or fault.is_lost
        )
        return _failed(state, exc, fault, attempt) if lost else _reject_object(state, conn, exc)
    finally:
        if entry is None:
            _over(state, attempt)
            if not attempt.is_late:
                with state.lock:
                    state.kernel.unreserve()
            if conn is not None:  # cancelled in between, or not a connection at all
                state.driver.close(conn)
    _succeeded(state, entry, state.clock() - started)
    compare(state, entry)
    return True


def _reject_object(state: PoolState, conn: Connection, exc: Exception) -> bool:
    """The caller's own ``connect=`` returned something that is no connection of this driver."""
    text = (
        f"{GAVE} {type(conn).__name__}, which is not a connection of {state.driver.name}"
        f" ({type(exc).__name__}: {exc})"
    )
    _reject(state, exc, Fault(FaultKind.REJECTED, text=text_of(state, text)))
    return False


def _succeeded(state: PoolState, entry: Entry, took: float) -> None:
    with state.lock, state.server.lock:
        ended = _end_outage(state, took)
        let_in(state)
        state.rejected_at = -math.inf
        state.count_opened()
        state.counters.connect_seconds += took
        condemn_elsewhere(state, entry)  # the pool may have moved meanwhile
        tickets, stale = state.kernel.opened(entry)
    state.wake(tickets)
    for old in stale:
        state.close_entry(old)
    schedule(state)
    state.ensure_connecting()  # the limit of parallel connects may have grown
    news.opened(state, entry, took)
    _announce_end(state, ended)


def _end_outage(state: PoolState, took: float | None = None) -> float | None:
    """The server answers. Return the length of its outage, if any. The caller holds both locks."""
    ended = state.server.outage.succeeded(state.clock(), took, state.random)
    if ended is not None:
        state.counters.outages += 1
        state.counters.outage_seconds += ended
    return ended


def _announce_end(state: PoolState, ended: float | None) -> None:
    if ended is not None:
        news.ended(state, ended)
        tell_others(state)


def tell_others(state: PoolState) -> None:
    """The other pools of this server may connect again, or one of them must become the prober."""
    with state.server.lock:
        pools = every(state.server.pools)
    for other in pools:
        if other is not state:
            other.runtime.call(other.ensure_connecting)


def _failed(state: PoolState, exc: Exception, fault: Fault, attempt: Try) -> bool:
    began = False
    everywhere = is_own(fault) and not is_of_one_host(state, fault)
    if isinstance(exc, LoginError) or everywhere:  # any host, and any attempt, would end like this
        _reject(state, exc, fault)
        return False
    with state.lock, state.server.lock:
        let_in(state)
        after, fault = after_failure(state, attempt, fault)
        if after is After.AWAY:
            began = state.server.outage.failed(
                state,
                attempt.started,
                state.clock(),
                fault,
                state.random,
                alone=is_alone(state, fault),
            )
        if after is not After.REJECTED:
            state.counters.connect_failures += 1
    follow(state)
    if after is After.REJECTED:
        _reject(state, exc, fault)
        return False
    if began:
        news.began(state, fault)
    else:
        news.goes_on(state)
    return True


def _put_off(state: PoolState, exc: Exception, fault: Fault, attempt: Try) -> bool:
    """This pool alone was rejected, in this attempt. The next attempt may succeed."""
    ended = None
    asked = not isinstance(exc, LoginError) and shows_server(fault)
    with state.lock, state.server.lock:
        if asked:
            ended = _end_outage(state)  # the server is up
            if state.refusals.active:  # again: another host may accept the login
                after_failure(state, attempt, fault)
        resigned = not asked and state.server.outage.resign(state)
    refused(state, exc, fault, attempt.started)
    _announce_end(state, ended)
    if resigned:  # another pool can try the server
        tell_others(state)
    return True


def _reject(state: PoolState, exc: Exception, fault: Fault) -> None:
    """The server rejected the login, or the client's own settings do not work.

    Waiting does not help: all callers in the line get an error, each its own.
    """
    ended = None
    state.rejected_at = state.clock()
    with state.lock, state.server.lock:
        if not isinstance(exc, LoginError) and shows_server(fault):
            ended = _end_outage(state)  # the server answered, so it is up
        let_in(state)
        state.counters.connect_failures += 1
        tickets = state.kernel.fail(lambda: state.rejection(exc, fault))
    news.rejected(state, exc, fault)
    state.wake(tickets)
    _announce_end(state, ended)
