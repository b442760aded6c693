"""Keep connects and forks apart: Python does not fork in the middle of one of unbroken's connects.

A connect acquires locks of OpenSSL, of the name resolver and of the client library. If another
thread held them at the fork, no code in the child can ever release them. The child's own first
connect would wait for them for ever.

So a fork that Python sees (``os.fork``, multiprocessing, gunicorn, Celery) waits until the connects
of other threads have ended, and delays new ones meanwhile. A ``fork(2)`` without Python's hooks
cannot be detected here.

This code uses no lock, so it cannot leave one locked. Each side first registers its own action, and
then checks the other's registrations. Of two concurrent sides, the later one always sees the
earlier one.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
from collections.abc import Iterable

# Per thread: if a thread forks, none of its greenlets and tasks is inside a locked section.
from threading import get_native_id
from time import monotonic
from types import TracebackType

from unbroken.net.patched import original

#: Seconds that a fork waits for a connect, counted from the connect's start: an upper bound for the
#: fork. Loading the CA store takes 20 ms. Four round trips across an ocean with TLS take 0.6 s. On
#: a machine so busy that everything takes ten times as long, a connect takes more than a second. A
#: longer connect waits for a server that does not answer, and then it sleeps in poll, where it
#: holds no lock.
PATIENCE = 3.0

_TICK = 0.001  #: seconds between two checks; a fork takes about as long

_connects: dict[object, tuple[int, float]] = {}  #: connects in progress: thread and start time
_forks: dict[int, float] = {}  #: threads that are about to fork, with their start times


class Connecting:
    """A ``with`` or ``async with`` block around one connect attempt. It waits while another thread
    forks, for at most PATIENCE seconds.

    A fork by the connecting thread itself (from a callback, another greenlet, another task) does
    not wait for it.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        while not self._begin():
            original("time", "sleep")(_TICK)

    async def __aenter__(self) -> None:
        while not self._begin():
            await asyncio.sleep(_TICK)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _connects.pop(self, None)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _connects.pop(self, None)

    def _begin(self) -> bool:
        """Register the connect, unless it must wait for a fork."""
        me, now = get_native_id(), monotonic()
        _connects[self] = (me, now)
        if not _others(_forks.copy().items(), me, now):
            return True
        if any(thread == me and each is not self for each, (thread, _) in _connects.copy().items()):
            # The fork waits for another task of this thread. Blocking the thread here would block
            # that task.
            return True
        del _connects[self]
        return False


def _others(begun: Iterable[tuple[int, float]], me: int, now: float) -> bool:
    """Whether an entry of *begun* belongs to another thread and is younger than PATIENCE. A fork or
    connect stops waiting for older ones.
    """
    return any(thread != me and now < since + PATIENCE for thread, since in begun)


def _before() -> None:
    me = get_native_id()
    _forks[me] = began = now = monotonic()
    sleep = original("time", "sleep")
    while now < began + PATIENCE and _others(_connects.copy().values(), me, now):
        sleep(_TICK)
        now = monotonic()


def _after_in_parent() -> None:
    _forks.pop(get_native_id(), None)


def _after_in_child() -> None:
    global _home
    _home = os.getpid()
    _forks.clear()
    _connects.clear()


#: The process in which the interpreter's list of threads is correct.
_home = os.getpid()


def has_threads_of_parent() -> bool:
    """Whether the interpreter may list threads of the parent that this process does not have. uWSGI
    forks its workers without Python's hooks, which would remove them from the list.

    Their stacks are reused by new threads. CPython 3.11 and 3.12 keep a part of each thread's state
    there, and ``sys._current_frames()`` then crashes. Later versions may report the position of a
    parent's thread for a thread that has the same number here.
    """
    if _home == os.getpid():
        return False
    try:
        tasks = set(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        return True
    # A thread is counted before it is entered in _active, and also after it is removed. The main
    # thread, and threads that Python did not start, are not counted.
    known = sum(
        isinstance(each, threading.Thread)
        and not isinstance(each, (threading._DummyThread, threading._MainThread))  # type: ignore[attr-defined] # how threading tells them apart
        and str(each.native_id) in tasks
        for each in list(threading._active.values())  # type: ignore[attr-defined] # enumerate() has those not begun yet, too
    )
    return _thread._count() > known


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
