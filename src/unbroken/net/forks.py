"""Connects and forks keep out of each other's way: Python does not fork in the middle of one that
unbroken makes.

A connect takes locks that no child can ever give back when another thread held them at the fork:
OpenSSL's, the name resolver's, a client library's. The child's own first connect would wait for
them for ever. So a fork that Python sees (``os.fork``, multiprocessing, gunicorn, Celery) waits
until the connects of other threads have ended, and holds new ones back meanwhile. Of a ``fork(2)``
without Python's hooks nobody here is told.

Nothing is locked here, so nothing can be left locked: both sides first write down what they are
about to do, and then look at what the other has written. Whoever comes second sees the first.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import threading
from collections.abc import Iterable

# of the thread itself: greenlets and tasks of a thread that forks are not inside anything
from threading import get_native_id
from time import monotonic
from types import TracebackType

from unbroken.net.patched import original

#: For how many seconds a fork waits for a connect, counted from the connect's beginning: a bound
#: for the fork, whatever hangs. Loading the CA store takes 20 ms, four round trips across an ocean,
#: with TLS, 0.6 s, on a machine so busy that all takes ten times as long more than a second. What
#: takes longer waits for a server that does not answer, and that is a sleep in poll, where no lock
#: is held.
PATIENCE = 3.0

_TICK = 0.001  #: seconds between two looks; a fork takes about as long

_connects: dict[
    object, tuple[int, float]
] = {}  #: those under way: the thread of each, and when it began
_forks: dict[int, float] = {}  #: threads that are about to fork, and since when


class Connecting:
    """``with Connecting():`` around one attempt to connect, or ``async with``. Waits while another
    thread forks, PATIENCE at most.

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
        """Write it down, unless it has to wait."""
        me, now = get_native_id(), monotonic()
        _connects[self] = (me, now)
        if not _others(_forks.copy().items(), me, now):
            return True
        if any(thread == me and each is not self for each, (thread, _) in _connects.copy().items()):
            # the fork waits for another of this thread's tasks: to stop the thread here would stop
            # that one
            return True
        del _connects[self]
        return False


def _others(begun: Iterable[tuple[int, float]], me: int, now: float) -> bool:
    """Whether one of *begun* is another thread's, and not so old that nobody waits for it any
    more.
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


#: The process in which the interpreter knows its own threads, and no others.
_home = os.getpid()


def has_threads_of_parent() -> bool:
    """Whether the interpreter may list threads that did not come along when this process was
    forked: uWSGI forks its workers without Python's hooks, which would forget them.

    Their stacks are given to new threads. CPython 3.11 and 3.12 keep a part of each thread's state
    there, and ``sys._current_frames()`` then crashes; later ones may give the place of a thread of
    the parent for one that has the same number here.
    """
    if _home == os.getpid():
        return False
    try:
        tasks = set(os.listdir("/proc/self/task"))
    except OSError:  # not Linux
        return True
    # A thread is counted before it stands in _active, and afterwards. The main thread, and those
    # that were not begun by Python, are not counted.
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
