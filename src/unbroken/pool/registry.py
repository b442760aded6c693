"""All pool states of this process, for code that checks them all from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

T = TypeVar("T")


def every(things: WeakSet[T]) -> list[T]:
    """The members of *things* now, while other threads add and remove some."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # "set changed size during iteration"
            continue


class Registry:
    """Tracks states without keeping them alive. States are made rarely; nothing here is on a hot
    path.
    """

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
        """Call *meet* with every state during the block: with the existing ones immediately, and
        with new ones when they are made.
        """
        self._watchers.append(meet)
        try:
            for state in every(self._states):
                meet(state)
            yield
        finally:
            self._watchers.remove(meet)

    def states(self) -> list[Any]:
        """All current states."""
        return every(self._states)


registry = Registry()
every_state = registry.states
