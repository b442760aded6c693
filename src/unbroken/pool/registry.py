"""Every pool's state in this process, for those who look at all of them from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")


def every(things: WeakSet[T]) -> list[T]:
    """What is in *things* now, while other threads make and drop such."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # "set changed size during iteration"
            continue


class Registry:
    """Knows states without keeping them. States are made rarely; nothing here is on a hot path."""

    def __init__(self) -> None:
        self._states: WeakSet[Any] = WeakSet()
        self._watchers: list[Callable[[Any], None]] = []

    def add(self, state: Any) -> None:
        """A state was made."""
        self._states.add(state)
        for meet in list(self._watchers):
            meet(state)

    @contextmanager
    def watching(self, meet: Callable[[Any], None]) -> Iterator[None]:
        """Within the block *meet* is called with every state: those there are, now, and those to
        come, as they are made.
        """
        self._watchers.append(meet)
        try:
            for state in every(self._states):
                meet(state)
            yield
        finally:
            self._watchers.remove(meet)

    def states(self) -> list[Any]:
        """All there are now."""
        return every(self._states)


registry = Registry()
every_state = registry.states
