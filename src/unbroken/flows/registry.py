"""Every pool's state in this process, for those who look at all of them from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet


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
        """Within the block *meet* is called with every state: those there are, now, and those to come, as they are made."""
        self._watchers.append(meet)
        try:
            for state in self._all():
                meet(state)
            yield
        finally:
            self._watchers.remove(meet)

    def _all(self) -> list[Any]:
        while True:
            try:
                return list(self._states)
            except RuntimeError:  # another thread has made one meanwhile
                continue


registry = Registry()
