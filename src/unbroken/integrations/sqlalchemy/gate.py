"""Connecting for SQLAlchemy: callers stand in line, and workers connect for them, a few at a time; in an outage one prober tries.

A worker calls the very function that SQLAlchemy would have called, in the caller's context, and hands over what it gives. So a
caller who has no more time can leave while the attempt is stuck, and others can begin beside it.
"""

from __future__ import annotations

import contextvars
import errno
import logging
from collections.abc import Callable
from typing import Any

from unbroken.abc import OUTAGE_KINDS, Fault
from unbroken.core.fault import chain
from unbroken.core.outage import Try
from unbroken.core.unit import current
from unbroken.errors import OutageError, PoolTimeoutError
from unbroken.flows.connect import ask_limit, prove, tell_others, work
from unbroken.flows.steps import Attempt, Connect, Flow, Wait
from unbroken.integrations.sqlalchemy.body import Body

log = logging.getLogger("unbroken")

__all__ = ["arrived", "ask_limit", "connect", "prove", "seek"]

#: A caller in line looks around this often, in case that the worker that should have woken it got lost.
GLANCE = 0.25


class Seeker:
    """One caller's place in the line."""

    __slots__ = ("context", "error", "made", "make", "signal", "tries")

    def __init__(self, make: Callable[[], Any], signal: Any) -> None:
        self.make = make  #: opens a connection for this caller
        self.context = contextvars.copy_context()
        self.signal = signal
        self.tries = 0  #: attempts under way for it
        self.made: Any = None  #: the connection that was opened for it
        self.error: BaseException | None = None  #: what the server said that waiting does not cure


def connect(body: Body, make: Callable[[], Any], patience: float) -> Flow[Any]:
    """What *make* gives, as soon as the server can be reached. Its place is counted until :func:`arrived`.

    Raises what *make* raised when waiting does not help; OutageError or PoolTimeoutError after *patience* seconds, or when
    the server has been away for longer than ``outage_wait``.
    """
    started = body.clock()
    unit = current()
    until = started + patience if unit is None else min(started + patience, unit.until)
    seeker = Seeker(make, body.shell.new_signal())
    with body.lock:
        body.line.append(seeker)
        body.counters.waits += 1
    try:
        body.order()
        while seeker.made is None and seeker.error is None:
            now = body.clock()
            _raise_if_hopeless(body, now, started, until)
            yield Wait(seeker.signal, min(GLANCE, max(until - now, 0.0)))
            if seeker.made is None and seeker.error is None:
                body.order()
    except BaseException:
        _give_up(body, seeker)
        raise
    finally:
        with body.lock:
            body.counters.wait_seconds += body.clock() - started
    if seeker.error is not None:
        raise seeker.error
    return seeker.made


def arrived(body: Body) -> None:
    """What :func:`connect` gave is in the pool's books now, or closed."""
    with body.lock:
        body.kernel.opening -= 1
    body.order()


def _give_up(body: Body, seeker: Seeker) -> None:
    """Leave the line; what was granted at the last moment is closed."""
    with body.lock:
        if seeker in body.line:
            body.line.remove(seeker)
        made, seeker.made = seeker.made, None
    if made is not None:
        try:
            body.pool._close_connection(made, terminate=True)
        finally:
            arrived(body)


def _raise_if_hopeless(body: Body, now: float, started: float, until: float) -> None:
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
    raise error from body.last_failure


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
        ended = body.server.outage.succeeded(body.clock(), took)
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


# -- the workers -----------------------------------------------------------------------------------------------------


def seek(body: Body) -> Flow[None]:
    """One worker: connects for those in line, and during an outage for nobody, only to know."""
    yield from work(body, _open_one)


def _open_one(body: Body, attempt: Try) -> Flow[bool]:
    """Try once, for the caller who has waited longest among those for whom fewest attempts are under way. False: end."""
    dialing = body.tries[attempt]
    with body.lock:
        seeker: Seeker | None = min(body.line, key=lambda each: each.tries, default=None)
        if seeker is not None:
            seeker.tries += 1
        pool = body.pool
    handed = False
    made: Any = None
    try:
        if pool is None:
            return False
        make, context = (pool.look_in, None) if seeker is None else (seeker.make, seeker.context.copy())
        made = yield Connect(body.connect_limit, dialing, make, context)
        if dialing.is_ended:
            raise TimeoutError(errno.ETIMEDOUT, "it came too late")
        succeeded(body, body.clock() - attempt.started)
        handed = made is not None and _hand_over(body, seeker, made)
        return True
    except Exception as exc:
        return attempt.is_ended or attempt.is_late or _failed(body, seeker, exc, attempt.started)
    finally:
        with body.lock:
            if seeker is not None:
                seeker.tries -= 1
            if not handed:
                body.kernel.opening -= 1
        if made is not None and not handed and pool is not None:
            yield Attempt(lambda: pool._close_connection(made, terminate=True))


def _without_frames(exc: Exception) -> Exception:
    """*exc*, to be kept: its tracebacks would keep all that the attempt had in its hands."""
    for link in chain(exc):
        link.__traceback__ = None
    return exc


def _hand_over(body: Body, seeker: Seeker | None, made: Any) -> bool:
    """Give *made* to *seeker*, for whom it was made. False: he has left, or was served by another attempt."""
    with body.lock:
        if seeker is None or seeker not in body.line:
            return False
        body.line.remove(seeker)
        seeker.made = made
    body.shell.wake(seeker.signal)
    return True


def _failed(body: Body, seeker: Seeker | None, exc: Exception, began: float) -> bool:
    """An attempt failed. Whether the worker should go on."""
    fault = body.classify(exc)
    if fault.kind in OUTAGE_KINDS:
        body.last_failure = _without_frames(exc)
        failed(body, fault, began)
        return True
    failed(body, None, began)
    succeeded(body, None)  # refused: it is there, and each caller shall hear why for itself
    with body.lock:
        waits = seeker is not None and seeker in body.line
        if seeker is not None and waits:
            body.line.remove(seeker)
            seeker.error = exc
    if seeker is not None and waits:
        body.shell.wake(seeker.signal)
    return bool(body.line)
