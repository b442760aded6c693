"""Detects immediately when a connection's other side hangs up, and runs timers.

A connection's socket is registered once, when it is opened; acquire and release cost nothing here.
A hang-up (FIN or RST) calls its callback once. There is one :class:`ThreadWatcher` per process (a
daemon thread, under gevent a greenlet), or a :class:`LoopWatcher` on an asyncio loop. Without a
timer, no thread wakes up.

Callbacks run on the watcher, outside its lock, and must not block. Their exceptions are logged.

Descriptor numbers are reused, so call ``unwatch`` before closing the socket. A hang-up that was
reported for a number's previous socket never reaches the next one: before each callback, the socket
is checked under the lock that ``watch`` and ``unwatch`` take.

In a forked child every method of an inherited watcher does nothing: it shares the kernel's object
with the parent.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop, TimerHandle, _get_running_loop
from collections.abc import Callable, Iterable
from typing import TypeAlias

from unbroken.logs import Part, keep_time_by
from unbroken.messages.pool import CALLBACK_FAILED, NO_THREAD
from unbroken.messages.processes import WATCHER_LOST
from unbroken.net.ending import FINALIZING, Guarded, NoThreadError, is_finalizing
from unbroken.net.fork_guard import fork_mark, identity
from unbroken.net.liveness import Liveness, look
from unbroken.net.patched import threads_are_greenlets
from unbroken.net.selector import Selector, new_selector
from unbroken.net.signals import start_thread
from unbroken.net.wake import Wake, wait

__all__ = ["LoopWatcher", "ThreadWatcher", "Timer", "Watcher"]

log = Part("net")

Callback: TypeAlias = Callable[[], object]


class Timer:
    """A scheduled callback. ``when`` is in seconds of time.monotonic()."""

    __slots__ = ("_callback", "_on_cancel", "when")

    def __init__(self, when: float, callback: Callback, on_cancel: Callback | None = None) -> None:
        self.when = when
        self._callback: Callback | None = callback
        self._on_cancel = on_cancel

    @property
    def is_pending(self) -> bool:
        """Whether the callback is still pending."""
        return self._callback is not None

    def cancel(self) -> None:
        """Cancel the callback, unless it has begun. Any thread may call this repeatedly."""
        if self._callback is not None:
            self._callback = None
            if self._on_cancel is not None:
                self._on_cancel()

    def _run(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            _call(callback)


def _call(callback: Callback) -> None:
    try:
        callback()
    except BaseException:  # not even a SystemExit may end the watcher: others rely on it
        log.exception(
            "callback failed",
            CALLBACK_FAILED(f"a callback on the watcher raised an error: {callback!r}"),
            about=getattr(callback, "__code__", None),
        )


class Watcher(Guarded, ABC):
    """The interface of both watchers that the pools use."""

    def __init__(self) -> None:
        self._mark = fork_mark()
        self._guard = threading.RLock()  # reentrant: a finalizer that runs inside may call unwatch
        self._callbacks: dict[int, Callback] = {}
        self._selector: Selector | None = None
        self._closed = False

    @property
    def is_usable(self) -> bool:
        """Whether the watcher is open and belongs to this process."""
        return bool(self._mark[0]) and not self._closed

    def watch(self, fd: int, callback: Callback) -> None:
        """Call *callback* once when the other side of the socket *fd* hangs up (immediately if it
        has).

        If *fd* cannot be watched (not an open socket, no kernel support), nothing happens; the
        check at acquire covers it.
        """
        if not self.is_usable or identity(fd) is None:
            # A number that its user closed may be our own descriptor now. It must not be watched as
            # a connection.
            return
        with self.lock:
            selector = self._start()
            if selector is not None:
                self._callbacks[fd] = callback
                selector.add(fd)

    def unwatch(self, fd: int) -> None:
        """Stop watching *fd*. Must be called before *fd* is closed.

        A callback that has begun is not stopped.
        """
        if not self.is_usable:
            return
        with self.lock:
            if self._callbacks.pop(fd, None) is not None and self._selector is not None:
                self._selector.remove(fd)

    def stopped(self) -> NoThreadError | None:
        """Why timers do not run now. None if they do, or will as soon as they are needed."""
        return None

    @abstractmethod
    def at(self, when: float, callback: Callback) -> Timer:
        """Call *callback* when ``time.monotonic()`` reaches *when* (never, for ``math.inf``)."""

    @abstractmethod
    def close(self) -> None:
        """Stop the watcher: no callback begins after this. On another thread, one may be in
        progress.

        Idempotent.
        """

    @abstractmethod
    def _start(self) -> Selector | None:
        """Begin to watch, if that has not happened yet. Called under the lock."""

    def _report(self, fds: Iterable[int]) -> None:
        for fd in fds:
            callback = self._gone(fd)
            if callback is not None:
                _call(callback)

    def _gone(self, fd: int) -> Callback | None:
        """The callback of *fd*, if its current socket has hung up. A report may be about the
        number's previous socket.
        """
        with self.lock:
            if fd not in self._callbacks or self._selector is None:
                return None
            if look(fd) is not Liveness.DEAD:
                self._selector.add(fd)
                return None
            self._selector.remove(fd)
            return self._callbacks.pop(fd)


class ThreadWatcher(Watcher):
    """The watcher of a process: one daemon thread (under gevent's patching a greenlet), started
    when first needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._wakes_at = -math.inf  # when the thread wakes by itself; -inf while it is awake
        self._wake: Wake | None = None
        self._thread: threading.Thread | None = None
        self._refused: NoThreadError | None = None  #: why there is no thread

    @classmethod
    def get(cls) -> ThreadWatcher:
        """This process's watcher: a new one in a forked child, and after :meth:`close`."""
        global _current
        found = _current
        if found is not None and found.is_usable:
            return found
        with _making:
            if _current is None or not _current.is_usable:
                if _current is not None and not _current._mark[0]:
                    _inherited.append(_current)
                _current = cls()
            return _current

    def at(self, when: float, callback: Callback) -> Timer:
        """Call *callback* when ``time.monotonic()`` reaches *when*."""
        timer = Timer(when, callback, self._count_cancelled)
        if not self.is_usable or when == math.inf or is_finalizing():
            return timer
        with self.lock:
            heapq.heappush(self._timers, (when, next(self._numbers), timer))
            self._start()
            if when < self._wakes_at and self._wake is not None:
                self._wakes_at = when
                self._wake.set()
        return timer

    def close(self) -> None:
        """Stop the watcher, and wait for its thread unless called on it."""
        if not self.is_usable:
            return
        with self.lock:
            self._closed = True
            self._callbacks.clear()
            self._timers.clear()
            thread = self._thread
            if self._wake is not None:
                self._wake.set()
        if thread is None:
            self._let_go()
        elif thread is not threading.current_thread():
            thread.join(5.0)

    def _count_cancelled(self) -> None:
        """Cancelled timers stay in the heap until they are due or make up more than half of it."""
        self._cancelled += 1
        if self._cancelled < 64 or self._cancelled * 2 < len(self._timers) or not self._mark[0]:
            return
        with self.lock:
            self._timers = [item for item in self._timers if item[2].is_pending]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _start(self) -> Selector | None:
        if self._selector is None:
            self._wake = Wake()
            self._selector = new_selector()
            self._selector.add_reader(self._wake.fd)
        if self._thread is None:
            self._start_thread()
        return self._selector

    def _start_thread(self) -> None:
        try:
            self._thread = start_thread(self._run, name="unbroken-watcher")
        except NoThreadError as why:  # acquire still finds dead connections
            if self._refused is None and not why.is_ending:
                log.warning(
                    "no watcher",
                    NO_THREAD(
                        f"the watcher cannot start its thread ({why}); time limits are delayed"
                        " until it can"
                    ),
                )
            self._refused = why
        else:
            self._refused = None

    def stopped(self) -> NoThreadError | None:
        """Why timers do not run now. Tries again to start the thread."""
        if is_finalizing():
            return NoThreadError(FINALIZING, is_ending=True)
        if self._thread is not None or not self.is_usable:
            return None
        with self.lock:
            self._start()
        return self._refused

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:  # also when a greenlet is killed: the next watch or timer starts a new one
            if self._mark[0]:
                with self.lock:
                    self._thread = None
                    if self._closed:
                        self._let_go()

    def _turn(self) -> bool:
        with self.lock:
            selector, wake = self._selector, self._wake
            if self._closed or selector is None or wake is None:
                return False
            self._wakes_at = self._timers[0][0] if self._timers else math.inf
            timeout = (
                None if self._wakes_at == math.inf else max(0.0, self._wakes_at - time.monotonic())
            )
        try:
            fds = wait(selector, timeout)
        except (OSError, ValueError):
            return self._mark[0] == 1 and self._begin_anew()
        if not self._mark[0]:
            return False  # a greenlet that was forked along with its hub
        self._wakes_at = -math.inf
        if wake.fd in fds:
            wake.clear()
        self._report(fds)
        self._run_timers()
        return True

    def _begin_anew(self) -> bool:
        """Open new descriptors after other code closed ours (a program that closes all descriptors
        that it does not know).
        """
        log.warning(
            "watcher renewed",
            WATCHER_LOST("the watcher's descriptors were closed by other code; it opened new ones"),
        )
        with self.lock:
            _lost.append((self._selector, self._wake))
            self._selector = self._wake = None
            selector = self._start()
            for fd in self._callbacks:
                if selector is not None:
                    selector.add(fd)
        return True

    def _run_timers(self) -> None:
        now = time.monotonic()
        while True:
            with self.lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                timer = heapq.heappop(self._timers)[2]
                if not timer.is_pending:
                    self._cancelled = max(0, self._cancelled - 1)
            timer._run()

    def _let_go(self) -> None:
        selector, wake = self._selector, self._wake
        self._selector = self._wake = None
        for item in (selector, wake):
            if item is not None:
                with contextlib.suppress(OSError):
                    item.close()

    def _leave_behind(self) -> None:
        """In a child, right after the fork: close our copies of its descriptors.

        Changes nothing for the parent.
        """
        if not threads_are_greenlets():  # else the child's hub may still wait for them
            self._let_go()


class LoopWatcher(Watcher):
    """The same on an asyncio loop. All methods must be called on that loop's thread."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self._timers: set[TimerHandle] = set()

    def at(self, when: float, callback: Callback) -> Timer:
        """Call *callback* on the loop when ``time.monotonic()`` reaches *when*."""
        handle: list[TimerHandle] = []

        def cancel() -> None:
            self._timers.discard(handle[0])
            handle[0].cancel()

        timer = Timer(when, callback, cancel)
        if not self.is_usable or when == math.inf:
            timer._on_cancel = None
            return timer

        def due() -> None:
            self._timers.discard(handle[0])
            if self._closed or not self._mark[0]:
                return
            if time.monotonic() < when:  # the loop's clock may differ, and may lag
                handle[0] = self._later(when, due)
            else:
                timer._run()

        handle.append(self._later(when, due))
        return timer

    def _later(self, when: float, due: Callback) -> TimerHandle:
        handle = self._loop.call_at(self._loop.time() + max(0.0, when - time.monotonic()), due)
        self._timers.add(handle)
        return handle

    def close(self) -> None:
        """Stop the watcher. The loop may be closed already."""
        if not self.is_usable:
            return
        with self.lock:
            self._closed = True
            self._callbacks.clear()
            for handle in self._timers:
                handle.cancel()
            self._timers.clear()
            selector, self._selector = self._selector, None
        if selector is not None:
            number = selector.fileno()
            if number is not None and not self._loop.is_closed():
                self._loop.remove_reader(number)
            selector.close()

    def _start(self) -> Selector | None:
        if self._selector is None:
            self._selector = new_selector()
            number = self._selector.fileno()
            if number is not None:
                self._loop.add_reader(number, self._ready)
        return self._selector

    def _ready(self) -> None:
        if self._mark[0] and self._selector is not None:
            self._report(self._selector.wait(0))


_current: ThreadWatcher | None = None
# Kept, so that they close nothing: their descriptors' numbers may be in use by other code.
_inherited: list[ThreadWatcher] = []
_lost: list[object] = []
_making = threading.Lock()


def _later(when: float, callback: Callback) -> object:
    """Call *callback* at *when*, using the running watcher or loop. None if there is neither."""
    if _current is not None and _current.is_usable:
        return _current.at(when, callback)
    loop = _get_running_loop()
    return None if loop is None else loop.call_later(when - time.monotonic(), callback)


keep_time_by(_later)


def _after_fork_in_child() -> None:
    global _current, _making
    _making = threading.Lock()
    if _current is not None:
        _current._leave_behind()
        _inherited.append(_current)
        _current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
