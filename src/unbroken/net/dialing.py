"""Connect attempts that other code can end: when their time is up, or in favour of another attempt.

They work with any client library. A thread's attempt is ended by shutting down the socket that the
thread is blocked on (see blocked.py). A greenlet's attempt is ended by throwing an exception into
it. A task's attempt is ended in the way of ``asyncio.timeout``.

Two kinds cannot be ended: a name lookup on a thread and, on systems other than Linux, a C library's
connect. They finish on their own, and the connection that they open then is closed.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import socket
import threading
from abc import ABC, abstractmethod
from threading import get_native_id
from time import monotonic
from types import TracebackType
from typing import Any

from unbroken.net.blocked import end_wait, heard_for, is_connected
from unbroken.net.fork_guard import abort, identity
from unbroken.net.keepalive import close_on_exec
from unbroken.net.patched import threads_are_greenlets
from unbroken.net.sent_bytes import last_data
from unbroken.net.watcher import Watcher

#: Seconds between two tries to end an attempt. A library may try the next address of a host.
_AGAIN = 0.02

_TCP = frozenset({socket.AF_INET, socket.AF_INET6})
_UNIX: frozenset[int] = frozenset({socket.AF_UNIX}) if hasattr(socket, "AF_UNIX") else frozenset()


class Dialing(ABC):
    """One connect attempt: a context manager on the thread, or in the task, that connects.

    After :meth:`end`, an exception of the attempt becomes a TimeoutError that names the reason. An
    ended attempt may still have succeeded a moment before: check ``is_ended``, and close the
    connection that it opened.
    """

    def __init__(self, watcher: Watcher, limit: float) -> None:
        self.limit = limit  #: seconds
        self.is_ended = False  #: its connection must not be used
        self.is_overtaken = False  #: ended in favour of another attempt, not by its own time limit
        self.is_over = False
        self.asks = ""  #: the name of the request, if this is no connect: ``password``
        self._watcher = watcher
        self._timer: Any = None
        self._made: tuple[int, tuple[int, int]] | None = None

    def end(self, *, overtaken: bool = False) -> None:
        """End the attempt, or the connection that it opened. Any thread may call this; with
        asyncio, only the loop's thread.
        """
        if self.is_ended:
            return
        self.is_ended, self.is_overtaken = True, overtaken
        if not self.is_over:
            self._end()
        elif self._made is not None:
            abort(*self._made)

    def has_made(self, fd: int | None) -> None:
        """The attempt opened a connection, and the pool sends it queries before using it. From now
        on :meth:`end` ends that connection.
        """
        if fd is not None:
            close_on_exec(fd)
        who = None if fd is None else identity(fd)
        self._made = None if fd is None or who is None else (fd, who)

    def is_moving(self, within: float) -> bool:  # noqa: ARG002 - for those that can tell
        """Whether the server has sent data in the last *within* seconds. False where that is
        unknown.
        """
        return False

    def is_asking(self, within: float) -> bool:
        """Whether the server has accepted the login, and has answered one of the pool's own queries
        in the last *within* seconds. False where that is unknown.
        """
        heard = None if self._made is None else last_data(self._made[0])
        return heard is not None and heard[1] < within

    def is_connected(self) -> bool | None:
        """Whether the other side has acknowledged the first packet. None where that is unknown."""
        return None

    @abstractmethod
    def _end(self) -> None:
        """Make the attempt end."""

    def _begin(self) -> None:
        self._timer = self._watcher.at(monotonic() + self.limit, self.end)

    def _leave(self, error: BaseException | None) -> None:
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if self.is_ended and isinstance(error, Exception):
            raise self._why() from error

    def _why(self) -> TimeoutError:
        words = (
            "the pool gave it up for another attempt"
            if self.is_overtaken
            else f"the server did not complete it within {self.limit:g} s"
        )
        return TimeoutError(errno.ETIMEDOUT, f"the connect failed: {words}")


class Blocking(Dialing):
    """A ``with`` block on a thread or a greenlet."""

    def __enter__(self) -> Blocking:
        self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave(error)


class OnThread(Blocking):
    """An attempt on a thread: to a TCP socket or, with *is_unix*, to a unix socket."""

    def __init__(self, watcher: Watcher, limit: float, *, is_unix: bool) -> None:
        super().__init__(watcher, limit)
        self._families = _UNIX | _TCP if is_unix else _TCP
        self._thread = 0
        # A thread that has left the block must not be interrupted in its later work.
        self._lock = threading.Lock()

    def _begin(self) -> None:
        self._thread = get_native_id()
        super()._begin()

    def is_moving(self, within: float) -> bool:
        """Whether the server has sent data in the last *within* seconds. False where unknown."""
        seen = None if self.is_over else heard_for(self._thread)
        return seen is not None and seen < within

    def is_connected(self) -> bool | None:
        """Whether the other side has acknowledged the first packet. None where unknown."""
        return None if self.is_over else is_connected(self._thread)

    def _end(self) -> None:
        with self._lock:
            if self.is_over:
                return
            end_wait(self._thread, self._families)
        self._watcher.at(monotonic() + _AGAIN, self._end)

    def _leave(self, error: BaseException | None) -> None:
        with self._lock:
            self.is_over = True
        super()._leave(error)


class InGreenlet(Blocking):
    """An attempt in a gevent greenlet.

    A connect inside a C library blocks all greenlets, so it blocks the watcher too.
    """

    def _begin(self) -> None:
        self._greenlet: Any = importlib.import_module("greenlet").getcurrent()
        super()._begin()

    def _end(self) -> None:
        importlib.import_module("gevent.hub").get_hub().loop.run_callback(self._strike)

    def _strike(self) -> None:
        if not self.is_over:
            self._greenlet.throw(self._why())


class OnLoop(Dialing):
    """An ``async with`` block in a task."""

    async def __aenter__(self) -> OnLoop:
        self._task = asyncio.current_task()
        self._bound = asyncio.timeout(None)
        await self._bound.__aenter__()
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._bound.__aexit__(kind, error, trace)
        except TimeoutError as late:
            self._leave(late)
            raise
        self._leave(error)

    def is_connected(self) -> bool | None:
        """False while the task is still inside the loop's ``sock_connect``: the connect is not
        complete. None otherwise.
        """
        inside: Any = None if self._task is None or self.is_over else self._task.get_coro()
        found: bool | None = None
        while inside is not None:
            code = getattr(inside, "cr_code", None)
            found = False if code is not None and code.co_name == "sock_connect" else found
            inside = getattr(inside, "cr_await", None)
        return found

    def _end(self) -> None:
        if not self.is_over:
            self._bound.reschedule(asyncio.get_running_loop().time())


def blocking(watcher: Watcher, limit: float, *, is_unix: bool = False) -> Blocking:
    """Return an attempt for the calling thread or greenlet, limited to *limit* seconds."""
    return (
        InGreenlet(watcher, limit)
        if threads_are_greenlets()
        else OnThread(watcher, limit, is_unix=is_unix)
    )
