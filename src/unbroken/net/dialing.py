"""Attempts to connect that can be ended from outside, whatever library is inside them: when their
time is up, or for another.

A thread's attempt is ended by shutting down the socket that it waits for (see blocked.py); a
greenlet's by an exception that is thrown into it; a task's as by ``asyncio.timeout``. A name lookup
on a thread cannot be ended, and on systems other than Linux neither can a C library's connect: they
end by themselves, and what they open then is closed.
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

#: Seconds between two tries to end what goes on: a library may go on to the next address of a host.
_AGAIN = 0.02

_TCP = frozenset({socket.AF_INET, socket.AF_INET6})
_UNIX: frozenset[int] = frozenset({socket.AF_UNIX}) if hasattr(socket, "AF_UNIX") else frozenset()


class Dialing(ABC):
    """One attempt. A context manager around it, on the thread or in the task that makes it.

    What it raises after it was ended becomes a TimeoutError that says why. One that was ended may
    still have succeeded a moment before: look at ``is_ended``, and close what came of it.
    """

    def __init__(self, watcher: Watcher, limit: float) -> None:
        self.limit = limit  #: seconds
        self.is_ended = False  #: nothing that comes of it is to be used
        self.is_overtaken = False  #: ended for another, and not because its time was up
        self.is_over = False
        self.asks = ""  #: what is asked for instead of connecting: ``password``
        self._watcher = watcher
        self._timer: Any = None
        self._made: tuple[int, tuple[int, int]] | None = None

    def end(self, *, overtaken: bool = False) -> None:
        """End it, or what it has made. From any thread (asyncio: on its loop)."""
        if self.is_ended:
            return
        self.is_ended, self.is_overtaken = True, overtaken
        if not self.is_over:
            self._end()
        elif self._made is not None:
            abort(*self._made)

    def has_made(self, fd: int | None) -> None:
        """It gave a connection, which is asked something before it is used: from now on :meth:`end`
        ends that.
        """
        if fd is not None:
            close_on_exec(fd)
        who = None if fd is None else identity(fd)
        self._made = None if fd is None or who is None else (fd, who)

    def is_moving(self, within: float) -> bool:  # noqa: ARG002 - for those that can tell
        """Whether the server has said something in the last *within* seconds; False where that is
        not known.
        """
        return False

    def is_asking(self, within: float) -> bool:
        """Whether the server has let it in, and has answered one of the pool's own questions in the
        last *within* seconds; False where that is not known.
        """
        heard = None if self._made is None else last_data(self._made[0])
        return heard is not None and heard[1] < within

    def is_connected(self) -> bool | None:
        """Whether something has acknowledged its first packet; None where that is not known."""
        return None

    @abstractmethod
    def _end(self) -> None:
        """Have it end."""

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
            "it was given up for another"
            if self.is_overtaken
            else f"it did not end within {self.limit:g} s"
        )
        return TimeoutError(
            errno.ETIMEDOUT, f"the server did not let the connect come to an end: {words}"
        )


class Blocking(Dialing):
    """As ``with``, on a thread or a greenlet."""

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
    """An attempt that a thread makes, to a TCP or (with *is_unix*) a unix socket."""

    def __init__(self, watcher: Watcher, limit: float, *, is_unix: bool) -> None:
        super().__init__(watcher, limit)
        self._families = _UNIX | _TCP if is_unix else _TCP
        self._thread = 0
        # a thread that has left must not be struck in what it does next
        self._lock = threading.Lock()

    def _begin(self) -> None:
        self._thread = get_native_id()
        super()._begin()

    def is_moving(self, within: float) -> bool:
        """See :class:`Dialing`."""
        seen = None if self.is_over else heard_for(self._thread)
        return seen is not None and seen < within

    def is_connected(self) -> bool | None:
        """See :class:`Dialing`."""
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
    """An attempt that a greenlet of gevent's makes.

    One in a C library blocks all of them, and so the watcher too.
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
    """As ``async with``, in a task."""

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
        """See :class:`Dialing`: a task that is still inside the loop's ``sock_connect`` has not got
        through.
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
    """An attempt that the calling thread or greenlet is about to make; *limit* seconds at most."""
    return (
        InGreenlet(watcher, limit)
        if threads_are_greenlets()
        else OnThread(watcher, limit, is_unix=is_unix)
    )
