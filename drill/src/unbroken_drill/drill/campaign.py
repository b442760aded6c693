"""Jobs, a few at a time; each lane has the things that it needs for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

J = TypeVar("J")
J_contra = TypeVar("J_contra", contravariant=True)
R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

#: How often the main thread wakes up while it waits, so that Ctrl-C and the display are prompt.
_TICK: Final = 0.1


def run_lanes(
    count: int, lane: Callable[[], None], tick: Callable[[], None], interrupt: Callable[[], None]
) -> None:
    """Run *lane* in *count* threads until each has ended, and call *tick* ten times a second
    meanwhile.

    After any exception here, including a KeyboardInterrupt, *interrupt* is called. It must make the
    lanes end, and the function waits for them.
    """
    ended = threading.Semaphore(0)

    def one() -> None:
        try:
            lane()
        finally:
            ended.release()

    lanes = [threading.Thread(target=one, name=f"drill lane {number}") for number in range(count)]
    begun: list[threading.Thread] = []
    try:
        for each in lanes:
            each.start()
            begun.append(each)
        left = count
        # not Thread.join: after a Ctrl-C within it, Python 3.11 believes that the thread has ended
        while left:
            left -= ended.acquire(timeout=_TICK)
            tick()
    except BaseException:
        interrupt()
        raise
    finally:
        for each in begun:
            each.join()


class Interrupted(Exception):  # noqa: N818 - not an error
    """The drill was told to stop."""


class Watcher(Protocol[J_contra, R_contra]):
    """Gets the drill's progress from its lanes' threads; :meth:`tick` from the main thread."""

    def began(self, job: J_contra) -> None:
        """*job* has begun."""

    def ended(self, job: J_contra, result: R_contra, done: int, total: int) -> None:
        """*job* gave *result*."""

    def tick(self) -> None:
        """A moment has passed."""


@dataclass(slots=True)
class Campaign(Generic[J, R]):
    """Plays *jobs*. *open_lane* gives each lane its stage: a context manager whose value plays one
    job.

    *stop* ends every lane after its current job. *kill* is called to end all of them immediately.
    """

    jobs: Sequence[J]
    open_lane: Callable[[], AbstractContextManager[Callable[[J], R]]]
    stop: threading.Event
    kill: Callable[[], None] = lambda: None
    _left: deque[J] = field(default_factory=deque)
    _found: list[tuple[J, R]] = field(default_factory=list)
    _failure: Exception | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, lanes: int, watcher: Watcher[J, R]) -> list[tuple[J, R]]:
        """Return the result of each job, *lanes* at a time, in the order in which they ended.

        Raises a lane's exception, for instance because its server did not start, after all lanes
        have ended.
        """
        self._left.extend(self.jobs)
        run_lanes(
            min(lanes, len(self.jobs)), partial(self._lane, watcher), watcher.tick, self._end_all
        )
        if self._failure is not None:
            raise self._failure
        return self._found

    def _end_all(self) -> None:
        self.stop.set()
        self.kill()

    def _lane(self, watcher: Watcher[J, R]) -> None:
        try:
            with self.open_lane() as play:
                while not self.stop.is_set():
                    try:
                        job = self._left.popleft()
                    except IndexError:
                        return
                    watcher.began(job)
                    self._note(job, play(job), watcher)
        except Interrupted:
            pass
        except Exception as error:
            self._failure = self._failure or error
            self.stop.set()

    def _note(self, job: J, result: R, watcher: Watcher[J, R]) -> None:
        with self._lock:
            self._found.append((job, result))
            done = len(self._found)
        watcher.ended(job, result, done, len(self.jobs))
