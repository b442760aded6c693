"""Texts about a pool for messages: its load and its server."""

from __future__ import annotations

from typing import Any

from unbroken.abc import FaultKind

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


def outage(state: Any, now: float) -> str:
    """The outage or "": ``the server has been away for 7.2 s: [Errno 111] Connection refused``."""
    record = state.server.outage
    if not record.active or record.fault is None:
        return ""
    what = _STATES.get(record.fault.kind, "has been away")
    silent = record.silent_tries(now)
    why = state.server.hosts.told(record.since or now, silent) or record.fault.text
    return f"the server {what} for {record.age(now):.1f} s: {why}"
