"""Connections that callers did not return: forgotten, held for too long, or lost by an
exception.
"""

from __future__ import annotations

import math
from types import CodeType, FrameType
from typing import Any

from unbroken.abc import Cause
from unbroken.brain.entry import Entry
from unbroken.logs import Part
from unbroken.messages.processes import FORGOTTEN, HELD_TOO_LONG, LEFT_BEHIND
from unbroken.pool.holder import enters_block, is_inside
from unbroken.pool.registry import every
from unbroken.pool.state import PoolState

log = Part("leak")


def discard_forgotten(state: PoolState) -> None:
    """Recover the places of connections whose holders let them be garbage-collected, and log where
    they were taken.
    """
    while True:
        try:
            entry = state.forgotten.popleft()
        except IndexError:
            return
        with state.lock:
            state.counters.leaked += 1
        if entry.reported != entry.uses:
            log.warning(
                "forgotten",
                FORGOTTEN(
                    f"{state.name}: a connection was forgotten and never released; it was"
                    f" taken at {entry.place}"
                ),
                about=str(entry.place),
                pool=state.name,
                session=entry.session,
                place=str(entry.place),
            )
        state.emit("forgotten", {"pool": state.name, "place": str(entry.place)})
        entry.conn = None  # garbage-collected: its driver has closed it
        state.discard(entry, Cause.FORGOTTEN)


#: Seconds after which an entry without a visible owner counts as lost. Moving one between two
#: owners takes microseconds.
STRAY_AFTER = 0.04
#: … and if stacks cannot be read, longer than any worker owns one.
STRAY_UNSEEN = 30.0


def recover_strays(state: PoolState) -> None:
    """Recover the places of connections whose holder lost them by an exception.

    A signal handler or a worker's time limit may raise at any instruction, also between taking an
    entry out of one place and recording it in the next. The pool has no record of the owner of such
    an entry, and no thread's stack refers to it any more.
    """
    with state.lock:
        now = state.clock()
        strays = {(e, e.uses): e for e in state.strays() if e not in state.forgotten}
        state.suspects = {key: state.suspects.get(key, now) for key in strays}
        ripe = [e for key, e in strays.items() if now - state.suspects[key] >= STRAY_AFTER]
    if not ripe:
        return
    owned = {id(ticket.entry) for ticket in every(state.tickets)}
    wanted = {id(e) for e in ripe} - owned
    if not wanted:
        return
    held = state.runtime.in_hands(wanted)
    owned |= held or set()
    with state.lock:
        patience = (
            max(STRAY_UNSEEN, 5 * state.settings.ping_timeout) if held is None else STRAY_AFTER
        )
        still = {(e, e.uses) for e in state.strays()}
        lost = [e for e in ripe if (e, e.uses) in still and id(e) not in owned]
        lost = [e for e in lost if now - state.suspects.get((e, e.uses), now) >= patience]
        for entry in lost:
            entry.condemn(Cause.FORGOTTEN)
            state.kernel.drop(entry)
    for entry in lost:
        state.shutdown_socket(entry)
        if entry.conn is None and entry.ref is not None:
            entry.conn = entry.ref()
        state.close_entry(entry)
    if lost:
        state.ensure_connecting()


#: Minimum seconds between two checks for abandoned uses …
LOOK_EVERY = 0.2
#: … and between two wide ones this many times the duration of the last one: at most 5 % of the time
#: while a caller waits.
WIDE_SHARE = 20.0


def recover_left(state: PoolState) -> None:
    """Recover connections whose ``with`` block, or whose call of ``run``, was left without
    returning them.

    An exception that strikes before the first instruction of ``__exit__`` causes that. While any
    code keeps that exception, its traceback keeps the connection. Each use is checked twice before
    its connection is taken: a greenlet may be resumed meanwhile.
    """
    now = state.clock()
    with state.lock:
        if now < state.next_look:
            return
        state.next_look = now + LOOK_EVERY
    left = _left_blocks(state, now)
    if left is None:
        return
    again, state.unseen = left & state.unseen, left
    for entry, uses in again:
        place = entry.place
        if not reclaim(state, entry, uses, Cause.FORGOTTEN):
            continue
        with state.lock:
            state.counters.leaked += 1
        log.warning(
            "forgotten",
            LEFT_BEHIND(
                f"{state.name}: a connection was left behind by an exception during its release;"
                f" it was taken at {place}"
            ),
            about=str(place),
            pool=state.name,
            session=entry.session,
            place=str(place),
        )
        state.emit("forgotten", {"pool": state.name, "place": str(place)})


def _left_blocks(state: PoolState, now: float) -> set[tuple[Entry, int]] | None:
    """The uses, by entry and number, that no stack is inside of any more. None if that cannot be
    determined now.
    """
    lent = {
        (e, e.uses): (e.code, e.lasti, e.run_in == e.uses)
        for e in list(state.kernel.in_use.values())
    }
    spots = {
        key: (code, ~lasti if by_run else None)
        for key, (code, lasti, by_run) in lent.items()
        if code is not None and (by_run or (lasti >= 0 and enters_block(code, lasti)))
    }
    spots = _outside(spots, state.runtime.stacks() if spots else None)
    if not spots:
        return set()
    if now < state.next_wide_look:
        return None
    spots = _outside(spots, state.runtime.stacks_aside())
    state.next_wide_look = now + WIDE_SHARE * (state.clock() - now)
    # a suspended one may have been resumed meanwhile
    return set(_outside(spots, state.runtime.stacks()))


def _outside(
    spots: dict[Any, tuple[CodeType, int | None]], tops: list[FrameType] | None
) -> dict[Any, tuple[CodeType, int | None]]:
    """Those of *spots* that none of the stacks that end in *tops* is inside of."""
    return (
        {}
        if tops is None
        else {key: spot for key, spot in spots.items() if not is_inside(tops, *spot)}
    )


def is_leak(state: PoolState, entry: Entry, now: float) -> bool:
    """Whether an *entry* in use is held for too long and still has to be reported or reclaimed."""
    held = now - entry.taken_at
    return held >= state.settings.leak_after and (
        entry.reported != entry.uses or state.settings.reclaim
    )


def report_leaks(state: PoolState) -> None:
    """Warn once about each connection held longer than leak_after; with reclaim on, end it."""
    if state.settings.leak_after == math.inf:
        return
    now = state.clock()
    for entry in list(state.kernel.in_use.values()):
        if not is_leak(state, entry, now):
            continue
        uses, taken_at = entry.uses, entry.taken_at
        if entry.reported != entry.uses:
            _report(state, entry, now)
        if (
            state.settings.reclaim
            and now - taken_at >= state.settings.leak_after
            and entry.uses == uses
        ):
            reclaim(state, entry, uses)


def _report(state: PoolState, entry: Entry, now: float) -> None:
    entry.reported = entry.uses
    with state.lock:
        state.counters.leaked += 1
    held = now - entry.taken_at
    log.warning(
        "leaked",
        HELD_TOO_LONG(
            f"{state.name}: a connection has been held for {held:.1f} s (leak_after"
            f" {state.settings.leak_after:.1f} s); it was taken at {entry.place} by"
            f" {state.runtime.describe_holder(entry)}"
        ),
        about=str(entry.place),
        pool=state.name,
        session=entry.session,
        held=held,
        place=str(entry.place),
    )
    state.emit(
        "leaked", {"pool": state.name, "place": str(entry.place), "seconds": now - entry.taken_at}
    )


def reclaim(state: PoolState, entry: Entry, uses: int, cause: Cause = Cause.RECLAIMED) -> bool:
    """End a connection while its holder has it, safely: by shutdown, never by close. The pool
    recovers its place.

    Return False if it was returned meanwhile.
    """
    # kept until the end: else a new connection may get its key
    held = entry.anchor if entry.ref is None else entry.ref()
    if held is None or not state.abort(entry, uses, cause):
        return False
    with state.lock:
        taken = state.kernel.reclaim(entry)
    if not taken:
        return False
    # The object still belongs to its holder: closing it here could crash the driver.
    entry.conn, ref = (None, entry.ref)
    state.close_entry(entry)
    entry.ref = ref  # reports when the holder drops it
    state.ensure_connecting()
    return True
