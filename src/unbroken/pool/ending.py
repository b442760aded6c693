"""The operations that a pool refuses while the interpreter is shutting down, and the texts of these
errors.

:mod:`unbroken.net.ending` describes what Python can still do then.
"""

from __future__ import annotations

from typing import Any

from unbroken.errors import PoolClosedError, for_driver
from unbroken.messages.processes import AT_THE_END
from unbroken.net.ending import FINALIZING, is_finalizing, said_by

REMEDY = "finish all database work before the program ends"


def no_connection(label: str, why: object) -> str:
    """The error text for an acquire."""
    return f"no connection to {label}: {why}; {REMEDY}"


def not_sent(what: str, why: object) -> str:
    """The error text for the pool's own calls that need a time limit."""
    return f"the pool did not send {what}: {why}, so no time limit could end the call; {REMEDY}"


def refuse_at_the_end(label: str, foreign: type[BaseException] | None = None) -> None:
    """Raise PoolClosedError (also a *foreign* error) if the interpreter is finalizing: a pool that
    is made now could not even import its modules.
    """
    if is_finalizing():
        raise for_driver(PoolClosedError, foreign, AT_THE_END(no_connection(label, FINALIZING)))


def was_too_late(state: Any, exc: BaseException) -> bool:
    """Whether Python caused *exc*, which ended an attempt to connect: it refuses a step of the
    connect (a name lookup on an event loop) because the interpreter is shutting down.

    That proves nothing about the server. Waiting callers get an error.
    """
    if not said_by(exc):
        return False
    with state.lock:
        tickets = state.kernel.fail(lambda: state.ending_error(f"{FINALIZING} ({exc})"))
    state.wake(tickets)
    return True
