"""Connections that a thread took before its unit of work began: their statements are not
recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

from unbroken.brain.entry import Entry
from unbroken.ledger.unit import Unit
from unbroken.net.sent_bytes import segments_sent
from unbroken.pool.registry import every_state


def watching(unit: Unit, work: Callable[[], Any]) -> Callable[[], Any]:
    """Wrap *work*, an attempt of *unit* on this thread. If it fails after using a connection from
    before the unit, the unit is doubted.

    The kernel counts the bytes. A connection that was returned to its pool meanwhile is not
    checked: the pool itself may have written to it.
    """

    def attempt() -> Any:
        before = _lent_here()
        if not before:
            return work()
        try:
            return work()
        except Exception:
            if any(_was_used(*each) for each in before):
                unit.doubt("a connection was used that was acquired before the unit of work began")
            raise

    return attempt


def _lent_here() -> list[tuple[Any, Entry, int, int | None]]:
    """The connections that this thread has taken and no unit records: the pool's state, the entry,
    its use, and the bytes sent so far.
    """
    me = get_ident()
    return [
        (state, entry, entry.uses, segments_sent(entry.fd))
        for state in every_state()
        if state.here[0]
        # an event loop's thread has the connections of all its tasks
        and not getattr(state.driver, "is_async", False)
        for entry in list(state.kernel.in_use.values())
        if entry.holder == me and not entry.watched
    ]


def _was_used(state: Any, entry: Entry, uses: int, sent: int | None) -> bool:
    if entry.uses != uses or entry.watched or state.kernel.in_use.get(entry.key) is not entry:
        return False
    now = segments_sent(entry.fd)
    return now is None or now != sent
