"""Periodic work: retire, close and exercise idle connections, find leaks, keep min_size."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from unbroken.abc import Cause
from unbroken.pool import crowd
from unbroken.pool.acquire import ping, take_answer
from unbroken.pool.answers import is_overdue
from unbroken.pool.endings import TICK
from unbroken.pool.leaks import discard_forgotten, is_leak, recover_strays, report_leaks
from unbroken.pool.scouting import look_at_place
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Flow
from unbroken.pool.windows import bear

#: Seconds between two checks of the answers that are due, if a frozen host can be left.
LOOK_AT_PLACE = 0.25


def schedule(state: PoolState) -> None:
    """Schedule the next check of the pool.

    While the pool has no connection and wants none, there are no ticks.
    """
    with state.lock:
        if state.upkeep_timer is not None or state.kernel.closed:
            return
        tick = min(state.policy.tick, max(0.05, state.settings.leak_after / 4))
        if state.server.hosts.are_several:
            tick = min(tick, LOOK_AT_PLACE)
        this = weakref.ref(state)
        state.upkeep_timer = state.runtime.watcher.at(state.clock() + tick, lambda: _tick(this))


def _tick(state_ref: Callable[[], PoolState | None]) -> None:
    """On the watcher: no I/O here. Most ticks find nothing to do and cost some microseconds."""
    state = state_ref()
    if state is None or not state.here[0]:
        return
    state.now = state.clock()
    _note_who_lives(state)
    with state.lock:
        state.upkeep_timer = None
        if state.kernel.closed:
            return
        bear(state)
        due = not state.upkeep_running and _is_due(state, state.clock())
        state.upkeep_running = state.upkeep_running or due
        live = bool(state.kernel.size or state.forgotten or state.kernel.min_size)
    if due:
        try:
            state.runtime.spawn(upkeep(state), "upkeep")
        except RuntimeError:  # no thread available now: the next tick tries again
            state.upkeep_running = False
            schedule(state)
    elif live:
        schedule(state)
    if live:
        look_at_place(state)


def _note_who_lives(state: PoolState) -> None:
    """While an idle limit is learned, or about to be: a connection that lives longer contradicts
    it.
    """
    limit, now = state.server.limit, state.now
    if not limit.is_watching:
        return
    longest = min(state.kernel.all_idle(), key=lambda each: each.last_used, default=None)
    with state.server.lock:
        lived = 0.0
        if longest is not None and not state.hung_up():
            lived = state.idle_for(longest, now) - (0.0 if longest.fd is not None else TICK)
        taken_back = limit.alive(now, lived)
    if taken_back:
        state.forgot_limit()


def _is_due(state: PoolState, now: float) -> bool:
    if (state.hidden.is_due(now) and state.kernel.idle) or crowd.is_due(state, now):
        return True
    if state.forgotten or state.wants or state.strays() or state.suspects:
        return True
    spare = len(state.kernel.entries) > state.kernel.min_size
    policy = state.policy
    for entry in state.kernel.all_idle():
        if (
            policy.overdue(entry, now, spare=spare)
            or (not spare and policy.wants_exercise(entry, now))
            or is_overdue(entry, now)
        ):
            return True
    for entry in list(state.kernel.in_use.values()):
        if now >= entry.retire_at:
            # closed on return; the hot path does not check the age
            entry.condemn(Cause.MAX_AGE)
    return any(is_leak(state, e, now) for e in list(state.kernel.in_use.values()))


def upkeep(state: PoolState) -> Flow[None]:
    """One check of the whole pool."""
    try:
        discard_forgotten(state)
        recover_strays(state)
        report_leaks(state)
        yield from _tend_idle(state)
        yield from _ask_hidden(state)
        yield from crowd.ask(state)
        state.ensure_connecting()
    finally:
        state.upkeep_running = False
        schedule(state)


def _ask_hidden(state: PoolState) -> Flow[None]:
    """Keep the knowledge about SELECTs that may store something up to date, if units of work need
    it.
    """
    for entry in state.kernel.all_idle() if state.hidden.is_due(state.clock()) else ():
        with state.lock:
            if not state.kernel.claim(entry):
                continue
        try:
            yield from state.ask_hidden(entry.conn, entry)
        except Exception as exc:
            fault = state.classify(exc)
            state.discard(entry, fault.cause or Cause.LOST, fault.text)
        else:
            entry.sent = entry.count()
            state.put(entry, entry.conn)
        return


def _tend_idle(state: PoolState) -> Flow[None]:
    now = state.clock()
    for entry in state.kernel.all_idle():
        with state.lock:
            spare = len(state.kernel.entries) > state.kernel.min_size
            cause = state.policy.overdue(entry, now, spare=spare)
            exercise = cause is None and not spare and state.policy.wants_exercise(entry, now)
            owed = is_overdue(entry, now)
            if not (cause or exercise or owed) or not state.kernel.claim(entry):
                continue
        if cause is not None:
            state.discard(entry, cause)
        elif owed and not exercise:
            used = entry.last_used  # the server counts from the ROLLBACK
            if (yield from take_answer(state, entry, state.settings.reset_timeout)):
                state.put(entry, entry.conn, used)
        elif (yield from ping(state, entry, state.settings.ping_timeout)):
            state.put(entry, entry.conn)
