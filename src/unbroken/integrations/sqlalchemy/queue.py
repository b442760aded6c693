"""SQLAlchemy's queue for blocking pools, with the same order, limits and waiting, and less to pay when nobody waits.

Taking an item that is there is one atomic operation on a deque and takes no lock; a taker looks first whether somebody waits.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from time import monotonic, thread_time
from typing import Any

from sqlalchemy.util.queue import Empty, Full, Queue

#: At least this long between two collections of garbage: they cost tens of milliseconds in a large process.
COLLECT_EVERY = 1.0
#: … and this many times what the last one took of the processor: where it takes seconds, a crowd that waits must not do one each.
COLLECT_SHARE = 5.0
#: Who waits has it collected after these times: forgotten connections are often part of a cycle that nobody has collected yet.
LOOKS = (0.05, COLLECT_EVERY)


class Collector:
    """Has the garbage collected for those who wait, but leaves most of the time to those who work."""

    __slots__ = ("began", "ended", "took")

    def __init__(self) -> None:
        self.began = self.ended = -math.inf
        self.took = 0.0

    def looks(self, end: float | None) -> Iterator[float]:
        """For how many seconds who comes now, and waits until *end* (None: for ever), does so each time before :meth:`collect`.

        Soon, which mostly is enough, and then when it is due, until there has been one since he came. No more: who looks stands at
        the end of the line again.
        """
        came = monotonic()
        yield from LOOKS
        while self.began < came and self._has_time(max(self._due, monotonic()), end):
            yield max(self._due - monotonic(), LOOKS[0])

    @property
    def _due(self) -> float:
        return self.ended + max(COLLECT_EVERY, COLLECT_SHARE * self.took)

    def _has_time(self, now: float, end: float | None) -> bool:
        return end is None or end - now >= 2 * self.took

    def collect(self, end: float | None) -> None:
        """Collect the garbage. Not when that ended a short while ago, nor when who waits, until *end*, has less time than it takes.

        Counted from the end: on an event loop all others wait for it too, and each would find it long ago by then.
        """
        now = monotonic()
        if now < self._due or not self._has_time(now, end):
            return
        self.began = self.ended = now  # at once: other threads come here meanwhile
        began = thread_time()
        gc.collect()
        self.took = thread_time() - began
        self.ended = monotonic()


class SlotQueue(Queue):  # type: ignore[type-arg] # of records, whatever SQLAlchemy says of its own
    """``take`` is the way without a lock to the next item, in the order of ``use_lifo``; IndexError when there is none."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self.waiting = 0
        self.collector = Collector()
        self.take: Callable[[], Any] = self.queue.pop if use_lifo else self.queue.popleft
        self.append = self.queue.append  #: for who knows that there is room; call :meth:`announce` if somebody waits then

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As SQLAlchemy's, which the pool only ever calls without blocking."""
        if block:
            super().put(item, block, timeout)
            return
        with self.mutex:
            if 0 < self.maxsize <= len(self.queue):
                raise Full
            self.queue.append(item)
            if self.waiting:
                self.not_empty.notify()

    def announce(self) -> None:
        """Something was appended: wake a waiter."""
        with self.mutex:
            self.not_empty.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """As SQLAlchemy's. Who has waited for a moment has the garbage collected: a forgotten connection may be in it."""
        end = None if timeout is None else monotonic() + timeout
        for patience in self.collector.looks(end) if block else ():
            left = patience if end is None else min(patience, end - monotonic())
            try:
                return self._get_within(left)
            except Empty:
                self.collector.collect(end)
        return self._get_within(0.0 if not block else None if end is None else max(0.0, end - monotonic()))

    def _get_within(self, seconds: float | None) -> Any:
        end = None if seconds is None else monotonic() + seconds
        with self.mutex:
            self.waiting += 1
            try:
                while True:
                    try:
                        return self._get()
                    except IndexError:
                        pass  # nothing there, or somebody who takes no lock was quicker
                    left = None if end is None else end - monotonic()
                    if left is not None and left <= 0.0:
                        raise Empty
                    self.not_empty.wait(left)
            finally:
                self.waiting -= 1

    def take_out(self, item: Any) -> bool:
        """Remove *item*; False when it is not there."""
        with self.mutex:
            try:
                self.queue.remove(item)
            except ValueError:
                return False
            return True

    def put_in(self, item: Any) -> None:
        """Put back an item of :meth:`take_out` where it is used last."""
        with self.mutex:
            (self.queue.appendleft if self.use_lifo else self.queue.append)(item)
            if self.waiting:
                self.not_empty.notify()
