"""Closing a pool: it waits for the connections in use, and logs the lines of code that hold
them.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from unbroken.logs import Part
from unbroken.messages.pool import CLOSED_IN_USE
from unbroken.net.ending import is_finalizing
from unbroken.pool.leaks import discard_forgotten
from unbroken.pool.steps import Flow, Wait
from unbroken.pool.wording import counted

log = Part("pool")

#: Default number of seconds that ``close()`` waits for the connections in use.
TIMEOUT = 5.0
#: Seconds before it logs the holders: most connections are returned within a moment.
QUIET = 0.1
#: Seconds between two checks.
EVERY = 0.01
#: Maximum number of places in a message.
NAMED = 3


def close(state: Any, timeout: float) -> Flow[None]:
    """Close *state*, and wait up to *timeout* seconds until the connections in use are returned.

    The lines of code that hold them are logged after a moment, and again if they still hold them at
    the end.
    """
    state.close()
    began = monotonic()
    yield from _wait(state, began + min(QUIET, timeout))
    if timeout > QUIET:
        tell(state, "is closing", f"it waits up to {timeout:g} s for them")
        yield from _wait(state, began + timeout)
    tell(state, "is closed", "each is closed when it is returned")


def _wait(state: Any, end: float) -> Flow[None]:
    while _held(state) and monotonic() < end and not is_finalizing():
        discard_forgotten(state)
        yield Wait(state.runtime.new_signal(), min(EVERY, max(0.0, end - monotonic())))


def _held(state: Any) -> list[Any]:
    return [*state.kernel.in_use.values(), *state.kernel.resetting.values()]


def tell(state: Any, what: str, then: str) -> None:
    """Log the lines of code that hold connections of *state*. *what*: the pool's action ("is
    closing"). *then*: the fate of the connections. Logs nothing if all are returned.
    """
    # A framework returns connections that it does not use now.
    held = [entry for entry in _held(state) if entry.recall() is None]
    held.sort(key=lambda entry: entry.taken_at)
    if not held:
        return
    now, count = monotonic(), len(held)
    connections = counted(count, "connection")
    places = "; ".join(f"{entry.place}, {now - entry.taken_at:.1f} s ago" for entry in held[:NAMED])
    more = f"; and {count - NAMED} more" if count > NAMED else ""
    log.warning(
        "closed while in use",
        CLOSED_IN_USE(
            f"{state.name}: the pool {what} with {connections} in use (taken at {places}{more});"
            f" {then}"
        ),
        about=what,
        pool=state.name,
        place=str(held[0].place),
        held=now - held[0].taken_at,
    )
