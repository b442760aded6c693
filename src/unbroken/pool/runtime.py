"""What the flows need of threads, or of an event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Protocol

from unbroken.brain.entry import Entry
from unbroken.net.watcher import Watcher
from unbroken.pool.steps import Flow


class Runtime(Protocol):
    """What the flows need of a body: threads or tasks, locks or none."""

    limits: Mapping[str, float]  #: see :func:`unbroken.pool.bounds.limits_of`

    @property
    def watcher(self) -> Watcher:
        """Who sees sockets end and keeps the time."""

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock for decisions."""

    def new_signal(self) -> Any:
        """Something that a ``Wait`` step waits for."""

    def wake(self, signal: Any) -> None:
        """Wake who waits for *signal*; once too often does no harm."""

    def spawn(self, flow: Flow[Any], name: str) -> None:
        """Run *flow* in the background."""

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* where this pool's state may be touched."""

    def is_awake(self) -> bool:
        """Whether what is spawned makes progress: an event loop may stand still.

        From any thread.
        """

    def in_hands(self, wanted: set[int]) -> set[int] | None:
        """Which of the entries with these ids somebody's stack refers to; None where stacks cannot
        be read.
        """

    def stacks(self) -> list[FrameType] | None:
        """Where all are that run now; None where that cannot be seen."""

    def stacks_aside(self) -> list[FrameType]:
        """Where all are that were put aside and will go on. Expensive."""

    def dialing(self, limit: float) -> Any:
        """An attempt to connect that can be ended from outside: see :mod:`unbroken.net.dialing`."""

    def describe_holder(self, entry: Entry) -> str:
        """Who has a lent *entry*, and where they are now: a thread or a task with its stack."""
