"""What is refused when the interpreter is shutting down, and in which words.

See :mod:`unbroken.net.ending` for what Python still does then.
"""

from __future__ import annotations

from typing import Any

from unbroken.errors import PoolClosedError, for_driver
from unbroken.messages.processes import AT_THE_END
from unbroken.net.ending import FINALIZING, is_finalizing, said_by

REMEDY = "finish the work with the database before the program ends"


def no_connection(label: str, why: object) -> str:
    """What an acquire is told."""
    return f"no connection to {label}: {why}; {REMEDY}"


def not_sent(what: str, why: object) -> str:
    """What a call of the pool's own is told that needs a time limit."""
    return f"the pool did not send {what}: {why}, and nothing could end the call in time; {REMEDY}"


def refuse_at_the_end(label: str, foreign: type[BaseException] | None = None) -> None:
    """Raise PoolClosedError (a *foreign* error too) where the interpreter is finalizing: a pool
    that is made now could not even import what it needs.
    """
    if is_finalizing():
        raise for_driver(PoolClosedError, foreign, AT_THE_END(no_connection(label, FINALIZING)))


def was_too_late(state: Any, exc: BaseException) -> bool:
    """Whether *exc*, which ended an attempt to connect, is Python's: it refuses what a connect
    needs (a name lookup on an event loop) because the interpreter is ending.

    That says nothing of the server. Callers who wait are told so.
    """
    if not said_by(exc):
        return False
    with state.lock:
        tickets = state.kernel.fail(lambda: state.ending_error(f"{FINALIZING} ({exc})"))
    state.wake(tickets)
    return True
