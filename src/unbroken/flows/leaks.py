"""What callers did not give back: forgotten, held for too long, struck out of their hands."""

from __future__ import annotations

import logging
import math

from unbroken.abc import Cause
from unbroken.core.entry import Entry
from unbroken.flows.registry import every
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


#: An entry that nobody is seen to have counts as lost after so many seconds. Moving one between two owners takes microseconds.
STRAY_AFTER = 0.04
#: … and where stacks cannot be read, after longer than any worker has one to itself.
STRAY_UNSEEN = 30.0


def recover_strays(state: State) -> None:
    """Take back the places of connections that an exception struck out of their holder's hands.

    A signal handler or a worker's time limit may raise at any instruction, also between taking an entry out of one place
    and noting it in the next. Such an entry is in none of the pool's books, and no thread's stack knows it any more.
    """
    with state.lock:
        now = state.clock()
        strays = {(e, e.uses): e for e in state.kernel.strays() if e not in state.forgotten}
        state.suspects = {key: state.suspects.get(key, now) for key in strays}
        ripe = [e for key, e in strays.items() if now - state.suspects[key] >= STRAY_AFTER]
    if not ripe:
        return
    held = state.shell.in_hands({id(e) for e in ripe})
    owned = {id(ticket.entry) for ticket in every(state.tickets)} | (held or set())
    with state.lock:
        patience = max(STRAY_UNSEEN, 5 * state.settings.ping_timeout) if held is None else STRAY_AFTER
        still = {(e, e.uses) for e in state.kernel.strays()}
        lost = [e for e in ripe if (e, e.uses) in still and id(e) not in owned]
        lost = [e for e in lost if now - state.suspects.get((e, e.uses), now) >= patience]
        for entry in lost:
            entry.condemn(Cause.FORGOTTEN)
            state.kernel.forget(entry)
    for entry in lost:
        state.cut(entry)
        if entry.conn is None and entry.ref is not None:
            entry.conn = entry.ref()
        state.finish_off(entry)
    if lost:
        state.order()


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
