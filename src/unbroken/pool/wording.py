"""Texts about a pool for messages: its load and its server."""

from __future__ import annotations

from typing import Any

from unbroken.abc import Fault, FaultKind
from unbroken.brain.line import Refusal

#: The state of a server in an outage, now and so far, by the kind of its last refusal.
_STATES = {
    FaultKind.TOO_MANY: ("is at its connection limit", "has been at its connection limit"),
    FaultKind.WRONG_SERVER: ("cannot serve", "has not been able to serve"),
}
_DOWN = ("is down", "has been down")


def counted(number: int, thing: str) -> str:
    """*number* and its noun: ``1 caller``, ``14 callers``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def times(number: int) -> str:
    """``once``, ``4 times``."""
    return "once" if number == 1 else f"{number:,} times"


def connection(session: object) -> str:
    """A connection by the server's number for it, if that is known: ``connection 4711``."""
    return f"connection {session}" if session else "connection"


def condition(fault: Fault) -> str:
    """The state of a server that refused with *fault*: ``is down``."""
    return _STATES.get(fault.kind, _DOWN)[0]


def load(state: Any) -> str:
    """The pool's load: ``in use 10, idle 0, opening 0, waiting 14, max_size 10``."""
    k = state.kernel
    shared = "" if state.share is None else state.share.words
    return (
        f"in use {len(k.in_use)}, idle {len(k.idle)}, opening {k.opening}, waiting"
        f" {len(k.waiting)}, max_size {k.max_size}{shared}"
    )


def line(refusal: Refusal, waited: float, loaded: str) -> str:
    """``refused immediately: 14 callers ahead (in use 10, …)``: the line in front of a caller that
    has *waited* so many seconds. The load of the pool is *loaded*, in words.
    """
    figures = f"{counted(refusal.ahead, 'caller')} ahead"
    if refusal.expected > 0.0:
        figures = f"{figures}, expected wait {refusal.expected:.2f} s, limit {refusal.limit:.2f} s"
    if waited:  # it was not counted how many callers were ahead then
        return f"refused after {waited:.2f} s ({loaded})"
    return f"refused immediately: {figures} ({loaded})"


def outage(state: Any, now: float) -> str:
    """The outage or "": ``the server has been down for 7.2 s: [Errno 111] Connection refused``."""
    record = state.server.outage
    if not record.active or record.fault is None:
        return ""
    what = _STATES.get(record.fault.kind, _DOWN)[1]
    silent = record.silent_tries(now)
    why = state.server.hosts.told(record.since or now, silent) or record.fault.text
    return f"the server {what} for {record.age(now):.1f} s: {why}"
