"""What callers did not give back: forgotten, held for too long, struck out of their hands."""

from __future__ import annotations

import logging
import math

from unbroken.abc import Cause
from unbroken.core.entry import Entry
from unbroken.flows.state import State

log = logging.getLogger("unbroken")


def bury_forgotten(state: State) -> None:
    """Take back the places of connections whose holders let them be collected, and say who that was."""
    while True:
        try:
            entry = state.forgotten.popleft()
        except IndexError:
            return
        with state.lock:
            state.counters.leaked += 1
        if entry.reported != entry.uses:
            log.warning("%s: a connection was forgotten without being given back; it was taken at %s", state.name, entry.place)
        state.emit("forgotten", {"pool": state.name, "place": str(entry.place)})
        entry.conn = None  # collected: its driver has closed it
        state.bury(entry, Cause.FORGOTTEN)


def bury_strays(state: State) -> None:
    """Take back what an asynchronous exception (a signal, a worker's time limit) struck out of its holder's hands."""
    now = state.clock()
    patience = max(30.0, 5 * state.settings.ping_timeout)  # longer than any worker owns an entry
    with state.lock:
        strays = {(e, e.uses): e for e in state.kernel.strays()}
        state.suspects = {key: state.suspects.get(key, now) for key in strays}
        lost = [e for key, e in strays.items() if now - state.suspects[key] > patience]
        for entry in lost:
            entry.condemn(Cause.FORGOTTEN)
            state.kernel.forget(entry)
    for entry in lost:
        state.finish_off(entry)


def is_leak(state: State, entry: Entry, now: float) -> bool:
    """Whether a lent *entry* is held for too long and something is still to be done about it."""
    held = now - entry.taken_at
    return held >= state.settings.leak_after and (entry.reported != entry.uses or state.settings.reclaim)


def report_leaks(state: State) -> None:
    """Warn once about each connection held longer than leak_after; with reclaim on, end it."""
    if state.settings.leak_after == math.inf:
        return
    now = state.clock()
    for entry in list(state.kernel.lent.values()):
        if not is_leak(state, entry, now):
            continue
        uses, taken_at = entry.uses, entry.taken_at
        if entry.reported != entry.uses:
            _report(state, entry, now)
        if state.settings.reclaim and now - taken_at >= state.settings.leak_after and entry.uses == uses:
            reclaim(state, entry, uses)


def _report(state: State, entry: Entry, now: float) -> None:
    entry.reported = entry.uses
    with state.lock:
        state.counters.leaked += 1
    log.warning(
        "%s: a connection has been held for %.1f s (leak_after %.1f s); it was taken at %s by %s",
        state.name,
        now - entry.taken_at,
        state.settings.leak_after,
        entry.place,
        state.shell.describe_holder(entry),
    )
    state.emit("leaked", {"pool": state.name, "place": str(entry.place), "seconds": now - entry.taken_at})


def reclaim(state: State, entry: Entry, uses: int) -> None:
    """End a connection under its holder's hands, safely: shutdown, never close. The pool gets its place back."""
    held = entry.anchor if entry.ref is None else entry.ref()  # kept until the end: else a new connection may get its key
    if held is None or not state.abort(entry, uses, Cause.RECLAIMED):
        return
    with state.lock:
        taken = state.kernel.exile(entry)
    if not taken:
        return
    entry.conn, ref = None, entry.ref  # the object stays its holder's: closing it here could crash the driver
    state.finish_off(entry)
    entry.ref = ref  # tells when the holder drops it
    state.order()
