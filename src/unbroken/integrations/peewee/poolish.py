"""playhouse's methods to manage its pool by hand, and the pool's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any

from unbroken.abc import Cause
from unbroken.brain.stats import Stats
from unbroken.pool.leaks import reclaim
from unbroken.pool.state import state_of


class Poolish:
    """The methods of playhouse's pooled databases beside peewee's own."""

    def stats(self) -> Stats:
        """Return the pool's numbers in this process at this moment."""
        return self.pool.stats()  # type: ignore[attr-defined, no-any-return] # the database's

    def _count_replay(self: Any, _why: str) -> None:
        state = state_of(self.pool)
        with state.lock:
            state.counters.replays += 1

    def manual_close(self: Any) -> bool:
        """Close this thread's connection for good instead of returning it.

        False: there was none.
        """
        slot = self._state
        if slot.closed:
            return False
        if slot.loan is not None:
            slot.loan.entry.condemn(Cause.DISCARDED)
        self.close()
        return True

    def close_idle(self: Any) -> None:
        """Close the idle connections."""
        if self._made is not None:
            state = state_of(self._made)
            for entry in state.kernel.all_idle():
                with state.lock:
                    taken = state.kernel.take([entry])
                for each in taken:
                    each.condemn(Cause.DISCARDED)
                    state.close_entry(each)

    def close_stale(self: Any, age: float = 600) -> int:
        """End the connections that were acquired more than *age* seconds ago, with any holder.
        Returns how many.

        Their sockets are shut down, and their holders' next calls raise. The setting ``reclaim``
        does this by itself.
        """
        if self._made is None:
            return 0
        state = state_of(self._made)
        old = [
            entry
            for entry in list(state.kernel.in_use.values())
            if monotonic() - entry.taken_at > age
        ]
        before = len(state.kernel.reclaimed)
        for entry in old:
            reclaim(state, entry, entry.uses)
        return len(state.kernel.reclaimed) - before

    def close_all(self: Any) -> None:
        """Close all connections: this thread's and the idle ones now, others' on their return.

        The next use opens a new one.
        """
        if not self.is_closed():
            self.close()
        self._retire()

    def dispose(self: Any) -> None:
        """Drop this thread's connection, and close the others.

        A forked child need not call it.
        """
        slot = self._state
        if not slot.closed:
            if slot.loan is not None:
                slot.loan.entry.condemn(Cause.DISCARDED)
            self._give_back(slot)
        slot.reset()
        self._retire()

    @property
    def _in_use(self: Any) -> Mapping[int, Any]:
        """playhouse's attribute, for code that counts it."""
        return {} if self._made is None else dict(state_of(self._made).kernel.in_use)

    @property
    def _connections(self: Any) -> list[Any]:
        """playhouse's attribute, for code that counts it."""
        return [] if self._made is None else state_of(self._made).kernel.all_idle()
