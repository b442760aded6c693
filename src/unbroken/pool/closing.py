"""How a pool closes: it waits for the connections in use, and logs which lines have them."""

from __future__ import annotations

from time import monotonic
from typing import Any

from unbroken.logs import Part
from unbroken.messages.pool import CLOSED_IN_USE
from unbroken.net.ending import is_finalizing
from unbroken.pool.leaks import discard_forgotten
from unbroken.pool.steps import Flow, Wait

log = Part("pool")

#: Seconds that ``close()`` waits for the connections in use, unless it is told otherwise.
TIMEOUT = 5.0
#: Seconds before it says who has them: most come back within a moment.
QUIET = 0.1
#: Seconds between two looks.
EVERY = 0.01
#: How many places a message names.
NAMED = 3


def close(state: Any, timeout: float) -> Flow[None]:
    """Close *state*, and wait up to *timeout* seconds until the connections in use are returned.

    Whose lines have them is logged at once, and again where they are still there at the end.
    """
    state.close()
    began = monotonic()
    yield from _wait(state, began + min(QUIET, timeout))
    if timeout > QUIET:
        tell(state, "closes", f"it waits up to {timeout:g} s for them")
        yield from _wait(state, began + timeout)
    tell(state, "is closed", "each is closed when it is returned")


def _wait(state: Any, end: float) -> Flow[None]:
    while _held(state) and monotonic() < end and not is_finalizing():
        discard_forgotten(state)
        yield Wait(state.runtime.new_signal(), min(EVERY, max(0.0, end - monotonic())))


def _held(state: Any) -> list[Any]:
    return [*state.kernel.in_use.values(), *state.kernel.resetting.values()]


def tell(state: Any, what: str, then: str) -> None:
    """Log whose lines have connections of *state*, whose pool *what* (closes, say), and what
    becomes of them *then*; nothing where all are back.
    """
    # a framework gives back what it has at rest
    held = [entry for entry in _held(state) if entry.recall() is None]
    held.sort(key=lambda entry: entry.taken_at)
    if not held:
        return
    now, count = monotonic(), len(held)
    places = "; ".join(f"{entry.place}, {now - entry.taken_at:.1f} s ago" for entry in held[:NAMED])
    more = f"; and {count - NAMED} more" if count > NAMED else ""
    log.warning(
        "closed while in use",
        CLOSED_IN_USE(
            f"{state.name}: the pool {what} with {count} of its connections in use, taken at"
            f" {places}{more}; {then}"
        ),
        about=what,
        pool=state.name,
        place=str(held[0].place),
        held=now - held[0].taken_at,
    )
