"""A clock that stands still until the test moves it, with timers."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class FakeTimer:
    """A callback that is due later, as the pools' watcher has them."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], Any]) -> None:
        self.when = when
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        """Cancel the callback."""
        self.callback = None


class FakeClock:
    """A clock that moves only when the test moves it.

    Calling it returns the time, in seconds; ``at`` sets a timer.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._count = 0

    def __call__(self) -> float:
        """Return the time, in seconds."""
        return self.now

    def at(self, when: float, callback: Callable[[], Any]) -> FakeTimer:
        """Call *callback* when the clock reaches *when* (never, for ``math.inf``)."""
        timer = FakeTimer(when, callback)
        self._count += 1
        heappush(self._timers, (when, self._count, timer))
        return timer

    @property
    def next_timer(self) -> float | None:
        """The time at which the next timer is due; None: there is none."""
        while self._timers and self._timers[0][2].callback is None:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass. Timers in between are called at their time, in order."""
        self.advance_to(self.now + seconds)

    def advance_to(self, when: float) -> None:
        """Let time pass until *when*."""
        while (due := self.next_timer) is not None and due <= when:
            self.now = max(self.now, due)
            timer = heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        self.now = max(self.now, when)
