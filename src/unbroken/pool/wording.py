"""Texts about a pool for messages: its load and its server."""

from __future__ import annotations

from typing import Any

from unbroken.abc import FaultKind
from unbroken.brain.line import Refusal

#: The state of a server in an outage, by the kind of its last refusal.
_STATES = {
    FaultKind.TOO_MANY: "has been full",
    FaultKind.WRONG_SERVER: "has not been able to serve",
}


def load(state: Any) -> str:
    """The pool's load: ``in use 10, idle 0, opening 0, waiting 14, max_size 10``."""
    k = state.kernel
    shared = "" if state.share is None else state.share.words
    return (
        f"in use {len(k.in_use)}, idle {len(k.idle)}, opening {k.opening}, waiting"
        f" {len(k.waiting)}, max_size {k.max_size}{shared}"
    )


def line(refusal: Refusal, waited: float, loaded: str) -> str:
    """``told at once: 14 callers before it (in use 10, …)``: the line in front of a caller that has
    *waited* so many seconds. The load of the pool is *loaded*, in words.
    """
    figures = f"{refusal.ahead} callers before it"
    if refusal.expected > 0.0 and not waited:
        figures = (
            f"{figures}, an expected wait of {refusal.expected:.2f} s, of which"
            f" {refusal.limit:.2f} s would be within its limit"
        )
    when = f"told after {waited:.2f} s" if waited else "told at once"
    return f"{when}: {figures} ({loaded})"


def outage(state: Any, now: float) -> str:
    """The outage or "": ``the server has been away for 7.2 s: [Errno 111] Connection refused``."""
    record = state.server.outage
    if not record.active or record.fault is None:
        return ""
    what = _STATES.get(record.fault.kind, "has been away")
    silent = record.silent_tries(now)
    why = state.server.hosts.told(record.since or now, silent) or record.fault.text
    return f"the server {what} for {record.age(now):.1f} s: {why}"
