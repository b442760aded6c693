"""Opening connections: as many at a time as the server's record allows; in an outage, one prober for all."""

from __future__ import annotations

import logging
import math
from typing import Any

from unbroken.abc import OUTAGE_KINDS, Connection, Fault, FaultKind
from unbroken.core.entry import Entry
from unbroken.core.fault import one_line
from unbroken.errors import ConnectRejectedError
from unbroken.flows.registry import every
from unbroken.flows.state import State
from unbroken.flows.steps import Call, Connect, Flow, Wait
from unbroken.flows.upkeep import schedule

log = logging.getLogger("unbroken")


def connector(state: State) -> Flow[None]:
    """One worker: opens what is wanted, one after the other, and ends when nothing is. ``connectors`` counts it."""
    try:
        while True:
            delay = _ask(state)
            if delay is None:
                return
            if delay > 0.0:
                yield from _sleep(state, delay)
            elif not (yield from _open_one(state)):
                return
    finally:
        with state.lock, state.server.lock:
            state.connectors -= 1
            resigned = state.connectors == 0 and state.server.outage.resign(state)
        state.order()  # who came while this one was leaving
        if resigned:
            tell_others(state)


def _ask(state: State) -> float | None:
    """When this worker may try: 0.0 now (a place is reserved), more: later; None: not at all."""
    with state.lock, state.server.lock:
        kernel, outage = state.kernel, state.server.outage
        if kernel.closed or (state.wants == 0 and not (outage.active and kernel.size < kernel.max_size)):
            return None
        delay = outage.ask(state, state.clock(), len(kernel.waiting))
        if delay is None or (outage.active and state.connectors > 1) or state.connectors > outage.parallel:
            return None
        if delay == 0.0:
            kernel.opening += 1
        return delay


def _sleep(state: State, delay: float) -> Flow[None]:
    """Sleep until the next attempt is due; a caller who arrives during a lonely sleep ends it."""
    signal = state.shell.new_signal()
    with state.lock:
        if not state.kernel.waiting:
            state.bell = signal
    try:
        yield Wait(signal, delay)
    finally:
        with state.lock:
            if state.bell is signal:
                state.bell = None


def _open_one(state: State) -> Flow[bool]:
    """Try once, with the place that is reserved. False: this worker should end."""
    started, generation = state.clock(), state.kernel.generation
    conn: Connection = None
    entry: Entry | None = None
    try:
        conn = yield Connect(state.settings.connect_timeout)
        if not state.server.limit.asked:
            yield from ask_limit(state, conn)
        yield from prove(state, conn)
        opening = (yield from remember(state, conn)) if state.settings.reset == "session" else None
        entry = state.adopt(conn, generation)
        entry.opening = opening
    except Exception as exc:
        lost = conn is None or state.classify(exc).is_lost
        return _failed(state, exc, started) if lost else _reject_object(state, conn, exc)
    finally:
        if entry is None:
            with state.lock:
                state.kernel.unreserve()
            if conn is not None:  # cancelled in between, or not a connection at all
                state.driver.close(conn)
    _succeeded(state, entry, state.clock() - started)
    return True


def _reject_object(state: State, conn: Connection, exc: Exception) -> bool:
    """What the caller's own ``connect=`` gave is no connection of this driver."""
    text = f"connect= gave {type(conn).__name__}, which is no connection of {state.driver.name} ({type(exc).__name__}: {exc})"
    _reject(state, exc, Fault(FaultKind.REJECTED, text=one_line(text)))
    return False


def ask_limit(state: State, conn: Connection) -> Flow[None]:
    """Ask the server for its idle limit, once per process. Where it may not be asked, learning has to do."""
    with state.server.lock:
        if state.server.limit.asked:
            return
        state.server.limit.asked = True  # one asks; the others do not wait for the answer
    try:
        limit = yield Call("idle_limit", conn, timeout=state.settings.ping_timeout)
    except Exception as exc:
        if state.classify(exc).is_lost:
            state.server.limit.asked = False
            raise  # it must not be lent: a driver that knows it to be closed shows no socket to look at any more
        log.debug("%s: the server's idle limit is not known: %s", state.name, state.classify(exc).text)
        return
    with state.server.lock:
        state.server.limit.tell(limit)
    state.limit_changed()


def remember(state: State, conn: Connection) -> Flow[Any]:
    """What a reset of this session has to set again; None where that is not known. One round trip."""
    try:
        return (yield Call("remember", conn, timeout=state.settings.ping_timeout))
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost or not state.driver.is_quiet(conn):
            raise
        log.debug("%s: sessions are closed instead of reset: %s", state.name, fault.text)
        return None


def prove(state: State, conn: Connection) -> Flow[None]:
    """Have the driver prove, once per process, that it sees what its library sends; without proof no unit is replayed."""
    driver = state.driver
    if not driver.needs_trial(conn):
        return
    try:
        flaw = yield Call("probe", conn, timeout=state.settings.ping_timeout)
    except Exception as exc:
        fault = state.classify(exc)
        if fault.is_lost:
            raise  # another connection has to prove it
        driver.tried(conn, f"a trial of what it sends failed: {fault.text or repr(exc)}", final=False)
    else:
        driver.tried(conn, flaw)


def _succeeded(state: State, entry: Entry, took: float) -> None:
    with state.lock, state.server.lock:
        ended = _end_outage(state)
        state.rejected_at = -math.inf
        state.counters.opened += 1
        state.counters.connect_seconds += took
        tickets, stale = state.kernel.opened(entry)
    state.wake(tickets)
    for old in stale:
        state.finish_off(old)
    schedule(state)
    state.order()  # the number opened at a time may have grown
    state.emit("opened", {"pool": state.name, "session": entry.session, "seconds": took})
    _announce_end(state, ended)


def _end_outage(state: State) -> float | None:
    """The server answers: how long it was away, if it was. The caller holds both locks."""
    ended = state.server.outage.succeeded(state.clock())
    if ended is not None:
        state.counters.outages += 1
        state.counters.outage_seconds += ended
    return ended


def _announce_end(state: State, ended: float | None) -> None:
    if ended is not None:
        log.warning("%s: %s is back after %.2f s", state.name, state.driver.target.server, ended)
        state.emit("outage ended", {"pool": state.name, "seconds": ended})
        tell_others(state)


def tell_others(state: State) -> None:
    """The other pools of this server may connect again, or one of them must become the prober."""
    with state.server.lock:
        pools = every(state.server.pools)
    for other in pools:
        if other is not state:
            other.shell.call(other.order)


def _failed(state: State, exc: Exception, started: float) -> bool:
    fault = state.classify(exc)
    if fault.kind not in OUTAGE_KINDS:
        _reject(state, exc, fault)
        return False
    with state.lock, state.server.lock:
        began = state.server.outage.failed(state, started, state.clock(), fault, state.random)
        state.counters.connect_failures += 1
    if began:
        log.warning("%s: %s is away: %s", state.name, state.driver.target.server, fault.text)
        state.emit("outage began", {"pool": state.name, "kind": fault.kind.value, "why": fault.text})
    return True


def _reject(state: State, exc: Exception, fault: Fault) -> None:
    """The server said no. Waiting does not help: everybody in the line is told, each by an error of their own."""

    def error() -> BaseException:
        told = state.error(ConnectRejectedError, f"cannot connect to {state.driver.target.label}: {fault.text}")
        told.__cause__ = exc
        return told

    state.rejected_at = state.clock()
    with state.lock, state.server.lock:
        ended = _end_outage(state)  # it says no, so it is there
        state.counters.connect_failures += 1
        tickets = state.kernel.fail(error)
    log.error("%s: cannot connect to %s: %s", state.name, state.driver.target.label, fault.text)
    state.wake(tickets)
    _announce_end(state, ended)
