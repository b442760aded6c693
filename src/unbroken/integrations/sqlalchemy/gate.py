"""Connecting for SQLAlchemy: callers connect by themselves, a few at a time; in an outage one prober tries, and all wait for it.

The prober is a worker of its own, so that it goes on when callers have given up, and new ones can be told at once. What it
opens is handed to the caller who has waited longest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from unbroken.abc import OUTAGE_KINDS, Fault
from unbroken.core.unit import current
from unbroken.errors import OutageError, PoolTimeoutError
from unbroken.flows.connect import ask_limit, prove, tell_others
from unbroken.flows.steps import Attempt, Flow, Wait
from unbroken.integrations.sqlalchemy.body import Body

log = logging.getLogger("unbroken")

__all__ = ["ask_limit", "connect", "let_in", "prove"]

#: Who waits looks around this often, in case that whoever should have woken it got lost.
GLANCE = 0.25


class Seeker:
    """One caller's place in the line."""

    __slots__ = ("go", "made", "make", "signal")

    def __init__(self, make: Callable[[], Any], signal: Any) -> None:
        self.make = make  #: opens a connection for this caller
        self.signal = signal
        self.go = False  #: it may connect now, and is counted among the connectors
        self.made: Any = None  #: the connection that the prober opened for it


def connect(body: Body, make: Callable[[], Any], patience: float) -> Flow[Any]:
    """What *make* gives, as soon as the server can be reached. Raises what it raised when waiting does not help.

    Raises OutageError after *patience* seconds, or when the server has been away for longer than ``outage_wait``.
    """
    started = body.clock()
    unit = current()
    until = started + patience if unit is None else min(started + patience, unit.until)
    last: BaseException | None = None
    while True:
        seeker = _enter(body, make)
        if seeker is not None:
            made = yield from _stand(body, seeker, started, until, last)
            if made is not None:
                return made
        began = body.clock()
        try:
            made = yield Attempt(make)
        except BaseException as exc:
            fault = body.classify(exc) if isinstance(exc, Exception) else None
            away = fault is not None and fault.kind in OUTAGE_KINDS
            failed(body, fault if away else None, began)
            _leave(body)
            if not away:
                raise
            last = exc
        else:
            succeeded(body, body.clock() - began)
            _leave(body)
            return made


def _enter(body: Body, make: Callable[[], Any]) -> Seeker | None:
    """A place in the line; None: go ahead (counted among the connectors)."""
    with body.lock, body.server.lock:
        outage = body.server.outage
        if not (outage.active or body.line or body.connectors >= outage.parallel):
            body.connectors += 1
            return None
        seeker = Seeker(make, body.shell.new_signal())
        body.line.append(seeker)
    body.order()
    return seeker


def _leave(body: Body) -> None:
    with body.lock:
        body.connectors -= 1
    body.order()


def _stand(body: Body, seeker: Seeker, started: float, until: float, last: BaseException | None) -> Flow[Any]:
    """Wait for the prober's connection, or for leave to try (None)."""
    begun = body.clock()
    with body.lock:
        body.counters.waits += 1
    try:
        while seeker.made is None and not seeker.go:
            now = body.clock()
            _raise_if_hopeless(body, now, started, until, last)
            yield Wait(seeker.signal, min(GLANCE, max(until - now, 0.0)))
            if seeker.made is None and not seeker.go:
                body.order()
    except BaseException:
        _give_up(body, seeker)
        raise
    finally:
        with body.lock:
            body.counters.wait_seconds += body.clock() - begun
    return seeker.made


def _give_up(body: Body, seeker: Seeker) -> None:
    """Leave the line; what was granted at the last moment goes back."""
    with body.lock:
        if seeker in body.line:
            body.line.remove(seeker)
        made, seeker.made = seeker.made, None
    if seeker.go:
        _leave(body)
    if made is not None:
        body.pool._close_connection(made, terminate=True)


def _raise_if_hopeless(body: Body, now: float, started: float, until: float, last: BaseException | None) -> None:
    away = body.server.outage.turns_away(now, body.settings.outage_wait)
    if not away and now < until:
        return
    with body.lock:
        if away:
            body.counters.turned_away += 1
        else:
            body.counters.timeouts += 1
    where, waited = body.driver.target.label, f"within {now - started:.1f} s " if now - started > 0.1 else ""
    outage = body.describe_outage(now)
    kind = OutageError if outage else PoolTimeoutError
    why = f"{outage}; the engine goes on trying and recovers by itself" if outage else "the server is slow to answer"
    message = f"no connection to {where} {waited}({body.describe_load()}); {why}"
    error = body.error(kind, message, retry_after=1.0) if outage else body.error(kind, message)
    raise error from last


# -- in and out of an outage -------------------------------------------------------------------------------------


def failed(body: Body, fault: Fault | None, began: float) -> None:
    """An attempt that began at *began* failed; *fault* is None where waiting does not help: the server has answered."""
    with body.lock, body.server.lock:
        body.counters.connect_failures += 1
        if fault is None:
            return
        new = body.server.outage.failed(body, began, body.clock(), fault, body.random)
    if new:
        log.warning("%s: %s is away: %s", body.name, body.driver.target.server, fault.text)
        body.emit("outage began", {"pool": body.name, "kind": fault.kind.value, "why": fault.text})


def succeeded(body: Body, took: float | None) -> None:
    """An attempt succeeded after *took* seconds (None: it was refused, but the server is there)."""
    with body.lock, body.server.lock:
        ended = body.server.outage.succeeded(body.clock())
        if took is not None:
            body.counters.opened += 1
            body.counters.connect_seconds += took
        if ended is not None:
            body.counters.outages += 1
            body.counters.outage_seconds += ended
    if ended is not None:
        log.warning("%s: %s is back after %.2f s", body.name, body.driver.target.server, ended)
        body.emit("outage ended", {"pool": body.name, "seconds": ended})
        tell_others(body)


def let_in(body: Body) -> None:
    """Let those in who may connect now; in an outage, see to it that somebody probes, and hears of the callers."""
    woken: list[Seeker] = []
    prober: Any = None
    with body.lock, body.server.lock:
        outage = body.server.outage
        spawn = outage.active and not body.probing and outage.prober in (None, body)
        if outage.active:
            body.probing = body.probing or spawn
            if body.line:
                outage.called, prober = body.clock(), outage.prober
        while not outage.active and body.line and body.connectors < outage.parallel:
            seeker = body.line.popleft()
            seeker.go = True
            body.connectors += 1
            woken.append(seeker)
    for seeker in woken:
        body.shell.wake(seeker.signal)
    if prober is not None:
        prober.shell.call(prober.ring)
    if spawn:
        try:
            body.shell.spawn(_probe(body), "prober")
        except RuntimeError:  # no more threads, or the interpreter is ending: whoever waits asks again
            body.probing = False
            log.exception("%s: cannot start a thread to probe the server with", body.name)


def _probe(body: Body) -> Flow[None]:
    """Try at the outage's pace until it is over."""
    try:
        while True:
            with body.lock, body.server.lock:
                outage = body.server.outage
                delay = outage.ask(body, body.clock(), len(body.line)) if outage.active and body.mark[0] else None
            if delay is None or body.pool is None:
                return
            if delay > 0.0:
                yield from _sleep(body, delay)
            else:
                yield from _try(body)
    finally:
        with body.lock, body.server.lock:
            body.probing = False
            resigned = body.server.outage.resign(body)
        if resigned:
            tell_others(body)
        if body.line:
            body.order()


def _sleep(body: Body, delay: float) -> Flow[None]:
    signal = body.shell.new_signal()
    with body.lock:
        if not body.line:
            body.bell = signal
    try:
        yield Wait(signal, delay)
    finally:
        with body.lock:
            if body.bell is signal:
                body.bell = None


def _try(body: Body) -> Flow[None]:
    """One attempt, for the caller who has waited longest, or for nobody: then only to know."""
    with body.lock:
        seeker = body.line[0] if body.line else None
    began = body.clock()
    try:
        made = yield Attempt(seeker.make if seeker is not None else body.pool.look_in)
    except Exception as exc:
        fault = body.classify(exc)
        if fault.kind in OUTAGE_KINDS:
            failed(body, fault, began)
        else:  # refused: it is there, and each caller shall hear why for itself
            failed(body, None, began)
            succeeded(body, None)
        return
    succeeded(body, body.clock() - began)
    if seeker is None:
        return
    with body.lock:
        waits = seeker in body.line
        if waits:
            body.line.remove(seeker)
            seeker.made = made
    if waits:
        body.shell.wake(seeker.signal)
    else:
        yield Attempt(lambda: body.pool._close_connection(made, terminate=True))
