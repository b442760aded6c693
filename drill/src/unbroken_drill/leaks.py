"""Finds connections that were checked out and not returned, and the lines that took them: for
tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from unbroken.brain.entry import Entry
from unbroken.pool.registry import registry
from unbroken.pool.state import PoolState

#: Seconds. A pool's worker takes a forgotten connection and reports it a moment later, on a busy
#: machine much later.
BETWEEN = 2.0


@dataclass(frozen=True, slots=True)
class Leak:
    """A connection that was checked out and not returned."""

    pool: str
    place: str  #: ``file:line in function`` of the code that took it
    forgotten: bool  #: True: its holder was collected; False: some code still has it

    def __str__(self) -> str:
        what = (
            "was garbage-collected without being released"
            if self.forgotten
            else "is still checked out"
        )
        return f"a connection of pool {self.pool} {what}; it was acquired at {self.place}"


class LeakWatch:
    """A context manager that watches every unbroken pool in this process, in any framework.

    :meth:`leaks` returns connections that were checked out since the block began and were not
    returned. Pools that are created inside are kept until the end of the block, so that a pool that
    was dropped with its connections is also seen.
    """

    def __init__(self) -> None:
        self._states: list[PoolState] = []
        self._before: set[tuple[Entry, int]] = set()
        self._forgotten: list[Leak] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(registry.watching(self._meet))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()
        self._states.clear()

    def _meet(self, state: PoolState) -> None:
        self._states.append(state)
        self._before.update((entry, entry.uses) for entry in (*_lent(state), *_dropped(state)))
        tell = state.emit

        def emit(event: str, fields: Mapping[str, Any]) -> None:
            if event == "forgotten":
                self._forgotten.append(Leak(state.name, str(fields["place"]), forgotten=True))
            tell(event, fields)

        state.emit = emit
        self._stack.callback(_put_back, state, emit, tell)

    def leaks(self, grace: float = 0.0) -> list[Leak]:
        """Return the connections that are still checked out.

        Threads that are about to return a connection have *grace* seconds to do so.
        """
        now = time.monotonic()
        deadline, decided = now + grace, now + BETWEEN
        while True:
            found, now = self._now(), time.monotonic()
            if now >= deadline if found else (now >= decided or not self._is_between()):
                return found
            time.sleep(0.005)

    def _is_between(self) -> bool:
        """Return whether a pool has taken a forgotten connection and has not reported it
        yet.
        """
        return any(state.kernel.strays() for state in self._states if state.here[0])

    def _now(self) -> list[Leak]:
        out = list(self._forgotten)
        for state in self._states:
            if state.here[0]:  # otherwise it belongs to a parent process
                out += [
                    Leak(state.name, str(e.place), forgotten=False)
                    for e in _lent(state)
                    if self._is_new(e)
                ]
                out += [
                    Leak(state.name, str(e.place), forgotten=True)
                    for e in _dropped(state)
                    if self._is_new(e)
                ]
        return out

    def _is_new(self, entry: Entry) -> bool:
        return (entry, entry.uses) not in self._before


def _lent(state: PoolState) -> list[Entry]:
    return _copied(lambda: list(state.in_use.values()))


def _dropped(state: PoolState) -> list[Entry]:
    return _copied(lambda: list(state.forgotten))


def _copied(copy: Callable[[], list[Entry]]) -> list[Entry]:
    while True:
        try:
            return copy()
        except RuntimeError:  # it changed meanwhile
            continue


def _put_back(state: PoolState, ours: Any, theirs: Any) -> None:
    if state.emit is ours:
        state.emit = theirs
