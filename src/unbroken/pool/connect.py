"""Opening connections: as many at a time as the server's record allows; in an outage, one prober
for all.
"""

from __future__ import annotations

import errno
import logging
import math
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.abc import Connection, Fault, FaultKind
from unbroken.backends.system import one_line
from unbroken.brain.entry import Entry
from unbroken.brain.hosts import After
from unbroken.brain.outage import SILENT, Try
from unbroken.pool.knowledge import AT_THE_LIMIT
from unbroken.pool.places import after_failure, came_about, choose, follow, host_of, look
from unbroken.pool.registry import every
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Connect, Flow, Wait
from unbroken.pool.upkeep import schedule

log = logging.getLogger("unbroken")

#: So long after its beginning an attempt may still be on its way, however long the server usually
#: takes.
MOVING = 1.0
#: Seconds that an attempt has to end once its time is up, before it counts as failed: a name lookup
#: cannot be ended.
AFTERWARDS = 0.25


def connector(state: PoolState) -> Flow[None]:
    """One worker: opens what is wanted, one after the other, and ends when nothing is.

    ``connectors`` counts it.
    """
    yield from work(state, _open_one)


def work(state: PoolState, open_one: Callable[[Any, Try], Flow[bool]]) -> Flow[None]:
    """As :func:`connector`, with another way to make an attempt. *open_one* says whether to go on;
    the attempt's place is reserved.
    """
    try:
        while True:
            asked = _ask(state)
            if asked is None:
                return
            if not isinstance(asked, Try):
                yield from _sleep(state, asked)
                continue
            watch_over(state)
            try:
                goes_on = yield from open_one(state, asked)
            finally:
                _over(state, asked)
            if not goes_on:
                return
    finally:
        with state.lock, state.server.lock:
            state.at_work -= 1
            resigned = state.connectors == 0 and state.server.outage.resign(state)
        state.ensure_connecting()  # who came while this one was leaving
        if resigned:
            tell_others(state)


def _ask(state: PoolState) -> Try | float | None:
    """What this worker may do: an attempt now (its place is reserved), later (in so many seconds),
    or nothing more (None).
    """
    with state.lock, state.server.lock:
        kernel, outage, now = state.kernel, state.server.outage, state.clock()
        if kernel.closed or not (state.wants or (outage.active and state.places > 0)):
            return None
        delay = outage.ask(state, now, len(kernel.waiting))
        if delay is None or not outage.room(state, now, state.connectors - 1):
            return None
        if delay > 0.0:
            return delay
        if not kernel.reserve(spare=True):
            return None
        attempt = outage.began(state, now)
        choose(state, attempt)
        state.tries[attempt] = state.runtime.dialing(state.connect_limit)
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
    """Sleep until the next attempt is due; a caller who arrives during a lonely sleep ends it."""
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
    """Look at the attempts under way when one of them will have been silent for too long, if none
    ends before.
    """
    state.oversee = watch_over
    with state.lock, state.server.lock:
        outage, now = state.server.outage, state.clock()
        when = outage.look_again(state, now, bool(state.kernel.waiting) or outage.is_called(now))
        before = state.oversight
        if when is None or (before is not None and before.when <= when):
            return
        this = weakref.ref(state)
        state.oversight = state.runtime.watcher.at(when, lambda: _look(this))
    if before is not None:
        before.cancel()


def _look(state_ref: Callable[[], PoolState | None]) -> None:
    """On the watcher: some attempts are silent.

    Begin others, end one for another to begin, count those whose time is up.
    """
    state = state_ref()
    if state is None or not state.here[0]:
        return
    now = state.clock()
    tries = list(state.tries.items())
    moving = [
        each for each, dialing in tries if now - each.started < MOVING and dialing.is_moving(SILENT)
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
        late = [
            each
            for each in state.tries
            if not each.is_late and now - each.started > state.connect_limit + AFTERWARDS
        ]
        for each in late:
            each.is_late = True
    if dialing is not None:
        dialing.end(overtaken=True)
    for each in late:
        _failed(
            state,
            TimeoutError(
                errno.ETIMEDOUT,
                f"no end of the connect after {state.connect_limit:g} s (name lookup?)",
            ),
            each,
        )
    follow(state)
    state.ensure_connecting()
    if called:
        state.hasten()
    watch_over(state)


# -- one attempt -----------------------------------------------------------------------------------


def _open_one(state: PoolState, attempt: Try) -> Flow[bool]:
    """Try once, with the place that is reserved. False: this worker should end."""
    started, generation = attempt.started, state.kernel.generation
    dialing = state.tries[attempt]
    conn: Connection = None
    entry: Entry | None = None
    try:
        conn = yield Connect(state.settings.connect_timeout, dialing, host_of(attempt))
        if dialing.is_ended:
            raise TimeoutError(errno.ETIMEDOUT, "it came too late")
        dialing.has_made(state.driver.fileno(conn))
        until = started + state.connect_limit  # one limit for all of it
        if not state.server.limit.asked:
            yield from ask_limit(state, conn, until)
        yield from prove(state, conn, until)
        if state.hidden.is_due(started):
            yield from state.ask_hidden(conn, until=until)
        opening = (
            (yield from remember(state, conn, until)) if state.settings.reset == "session" else None
        )
        if not came_about(state, attempt):
            return True
        entry = state.adopt(conn, generation)
        entry.address = attempt.address
        entry.opening = opening
    except Exception as exc:
        if attempt.is_ended or attempt.is_late:
            return True  # counted already, or given up for another: it says nothing
        lost = conn is None or dialing.is_ended or state.classify(exc).is_lost
        return _failed(state, exc, attempt) if lost else _reject_object(state, conn, exc)
    finally:
        if entry is None:
            with state.lock:
                state.kernel.unreserve()
            if conn is not None:  # cancelled in between, or not a connection at all
                state.driver.close(conn)
    _over(state, attempt)
    _succeeded(state, entry, state.clock() - started)
    return True


def _reject_object(state: PoolState, conn: Connection, exc: Exception) -> bool:
    """What the caller's own ``connect=`` gave is no connection of this driver."""
    text = (
        f"connect= gave {type(conn).__name__}, which is no connection of {state.driver.name}"
        f" ({type(exc).__name__}: {exc})"
    )
    _reject(state, exc, Fault(FaultKind.REJECTED, text=one_line(text)))
    return False


def _within(state: PoolState, until: float) -> float:
    """How long a question may take that must be answered by *until*."""
    return min(state.settings.ping_timeout, max(until - state.clock(), AT_THE_LIMIT))


def ask_limit(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Ask the server for its idle limit, once per process.

    Where it may not be asked, learning has to do.
    """
    with state.server.lock:
        if state.server.limit.asked:
            return
        state.server.limit.asked = True  # one asks; the others do not wait for the answer
    try:
        limit = yield Call("idle_limit", conn, timeout=_within(state, until))
    except Exception as exc:
        if state.classify(exc).is_lost:
            state.server.limit.asked = False
            # it must not be lent: a driver that knows it to be closed shows no socket to look at
            # any more
            raise
        log.debug(
            "%s: the server's idle limit is not known: %s", state.name, state.classify(exc).text
        )
        if state.knows_status and not state.driver.is_quiet(conn):
            # Its answer may still come: nobody may get this connection. The next one is not asked.
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the question for the idle limit was broken off"
            ) from exc
        return
    with state.server.lock:
        state.server.limit.tell(limit)
    state.limit_changed()


def remember(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[Any]:
    """What a reset of this session has to set again; None where that is not known.

    One round trip.
    """
    try:
        return (yield Call("remember", conn, timeout=_within(state, until)))
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost or not state.driver.is_quiet(conn):
            raise
        log.debug("%s: sessions are closed instead of reset: %s", state.name, fault.text)
        return None


def prove(state: PoolState, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Have the driver prove, once per process, that it sees what its library sends; without proof
    no unit is replayed.
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
            conn, f"a trial of what it sends failed: {fault.text or repr(exc)}", final=False
        )
    else:
        driver.tried(conn, flaw)


def _succeeded(state: PoolState, entry: Entry, took: float) -> None:
    with state.lock, state.server.lock:
        ended = _end_outage(state, took)
        state.rejected_at = -math.inf
        state.counters.opened += 1
        state.counters.connect_seconds += took
        tickets, stale = state.kernel.opened(entry)
    state.wake(tickets)
    for old in stale:
        state.close_entry(old)
    schedule(state)
    state.ensure_connecting()  # the number opened at a time may have grown
    state.emit("opened", {"pool": state.name, "session": entry.session, "seconds": took})
    _announce_end(state, ended)


def _end_outage(state: PoolState, took: float | None = None) -> float | None:
    """The server answers: how long it was away, if it was. The caller holds both locks."""
    ended = state.server.outage.succeeded(state.clock(), took)
    if ended is not None:
        state.counters.outages += 1
        state.counters.outage_seconds += ended
    return ended


def _announce_end(state: PoolState, ended: float | None) -> None:
    if ended is not None:
        log.warning("%s: %s is back after %.2f s", state.name, state.driver.target.server, ended)
        state.emit("outage ended", {"pool": state.name, "seconds": ended})
        tell_others(state)


def tell_others(state: PoolState) -> None:
    """The other pools of this server may connect again, or one of them must become the prober."""
    with state.server.lock:
        pools = every(state.server.pools)
    for other in pools:
        if other is not state:
            other.runtime.call(other.ensure_connecting)


def _failed(state: PoolState, exc: Exception, attempt: Try) -> bool:
    began = False
    with state.lock, state.server.lock:
        after, fault = after_failure(state, attempt, state.classify(exc))
        if after is After.AWAY:
            began = state.server.outage.failed(
                state, attempt.started, state.clock(), fault, state.random
            )
        if after is not After.REJECTED:
            state.counters.connect_failures += 1
    follow(state)
    if after is After.REJECTED:
        _reject(state, exc, fault)
        return False
    if began:
        log.warning("%s: %s is away: %s", state.name, state.driver.target.server, fault.text)
        state.emit(
            "outage began", {"pool": state.name, "kind": fault.kind.value, "why": fault.text}
        )
    return True


def _reject(state: PoolState, exc: Exception, fault: Fault) -> None:
    """The server said no.

    Waiting does not help: everybody in the line is told, each by an error of their own.
    """

    state.rejected_at = state.clock()
    with state.lock, state.server.lock:
        ended = _end_outage(state)  # it says no, so it is there
        state.counters.connect_failures += 1
        tickets = state.kernel.fail(lambda: state.rejection(exc, fault))
    log.error("%s: cannot connect to %s: %s", state.name, state.driver.target.label, fault.text)
    state.wake(tickets)
    _announce_end(state, ended)
