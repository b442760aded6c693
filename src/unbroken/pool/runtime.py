"""The interface between the flows and threads, or an event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, Protocol

from unbroken.brain.entry import Entry
from unbroken.net.watcher import Watcher
from unbroken.pool.steps import Flow


class Runtime(Protocol):
    """The operations that the flows need from a body: with threads or tasks, with locks or
    without.
    """

    patience: float  #: seconds: see :mod:`unbroken.brain.waiting`
    limits: Mapping[str, float]  #: see :func:`unbroken.pool.bounds.limits_of`

    @property
    def watcher(self) -> Watcher:
        """The watcher, which detects closed sockets and runs timers."""

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock for decisions."""

    def new_signal(self) -> Any:
        """A new signal that a ``Wait`` step waits for."""

    def wake(self, signal: Any) -> None:
        """Wake the waiter of *signal*. Calling it more than once is harmless."""

    def spawn(self, flow: Flow[Any], name: str) -> None:
        """Run *flow* in the background."""

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* where this pool's state can be accessed."""

    def is_awake(self) -> bool:
        """Whether spawned flows make progress: an event loop may be stopped.

        Any thread may call this.
        """

    def in_hands(self, wanted: set[int]) -> set[int] | None:
        """The ids in *wanted* of entries that any stack refers to. None if stacks cannot be
        read.
        """

    def stacks(self) -> list[FrameType] | None:
        """The current frames of all running threads. None if they cannot be read."""

    def stacks_aside(self) -> list[FrameType]:
        """The frames of all that are suspended and will continue. Expensive."""

    def dialing(self, limit: float) -> Any:
        """An attempt to connect that can be ended from outside: see :mod:`unbroken.net.dialing`."""

    def describe_holder(self, entry: Entry) -> str:
        """The thread or task that has *entry* in use, with its current stack."""
