"""The kernel's queue of socket hang-ups: epoll, kqueue, or none.

Sockets are registered for hang-ups only, so reads and writes on a connection in use wake no thread.
After a hang-up the socket reports nothing until it is added again (with kqueue: until its next
event). So a dead connection that is still in use does not cause a busy loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from unbroken.net.patched import has, original

_LONGEST = 86400.0  # seconds; epoll counts milliseconds in an int


class Selector(Protocol):
    """The operations that a watcher needs from the kernel.

    Not thread-safe, except that ``add`` and ``remove`` may be called during a ``wait``.
    """

    def add(self, fd: int) -> None:
        """Report when the other side of *fd* hangs up.

        Adding the same number again starts over. Never raises.
        """

    def add_reader(self, fd: int) -> None:
        """Report whenever *fd* is readable."""

    def remove(self, fd: int) -> None:
        """Stop reporting *fd*. Never raises."""

    def wait(self, timeout: float | None) -> list[int]:
        """The descriptors to report, after at most *timeout* seconds (None: no limit)."""

    def fileno(self) -> int | None:
        """A descriptor that is readable while there is something to report. None if there is no
        such descriptor.
        """

    def close(self) -> None:
        """Close only the kernel's object. A forked child may call this."""


class EpollSelector:
    """The selector on Linux."""

    def __init__(self) -> None:
        self._hangup: int = original("select", "EPOLLRDHUP") | original("select", "EPOLLONESHOT")
        self._readable: int = original("select", "EPOLLIN")
        self._epoll = original("select", "epoll")()

    def add(self, fd: int) -> None:
        """Report when the other side of *fd* hangs up, once."""
        try:
            self._epoll.register(fd, self._hangup)
        except FileExistsError:
            with contextlib.suppress(OSError):
                self._epoll.modify(fd, self._hangup)
        except (OSError, ValueError):
            pass  # closed: its next user finds out

    def add_reader(self, fd: int) -> None:
        """Report whenever *fd* is readable."""
        self._epoll.register(fd, self._readable)

    def remove(self, fd: int) -> None:
        """Stop reporting *fd*."""
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None) -> list[int]:
        """The descriptors to report, after at most *timeout* seconds."""
        return [fd for fd, _ in self._epoll.poll(-1 if timeout is None else min(timeout, _LONGEST))]

    def fileno(self) -> int | None:
        """The descriptor of the epoll set."""
        number: int = self._epoll.fileno()
        return number

    def close(self) -> None:
        """Close the epoll set."""
        self._epoll.close()


class KqueueSelector:
    """The selector on macOS and the BSDs. *api* provides the names of the select module; tests pass
    a substitute.
    """

    _LOW_WATER = 0x1  # NOTE_LOWAT, sys/event.h
    _MUCH = 0x7FFFFFFF

    def __init__(self, api: Any = None) -> None:
        self._get: Callable[[str], Any] = (
            partial(original, "select") if api is None else partial(getattr, api)
        )
        self._queue = self._get("kqueue")()

    def _change(self, fd: int, flags: int, fflags: int = 0, data: int = 0) -> None:
        event = self._get("kevent")(fd, self._get("KQ_FILTER_READ"), flags, fflags, data)
        with contextlib.suppress(OSError, ValueError, OverflowError):
            self._queue.control([event], 0, 0)

    def add(self, fd: int) -> None:
        """Report when the other side of *fd* hangs up.

        The low-water mark is above any buffer size: the server's answers wake no thread, EOF does.
        """
        self._change(
            fd, self._get("KQ_EV_ADD") | self._get("KQ_EV_CLEAR"), self._LOW_WATER, self._MUCH
        )

    def add_reader(self, fd: int) -> None:
        """Report whenever *fd* is readable."""
        self._change(fd, self._get("KQ_EV_ADD"))

    def remove(self, fd: int) -> None:
        """Stop reporting *fd*."""
        self._change(fd, self._get("KQ_EV_DELETE"))

    def wait(self, timeout: float | None) -> list[int]:
        """The descriptors to report, after at most *timeout* seconds."""
        return [
            event.ident
            for event in self._queue.control(
                None, 64, None if timeout is None else min(timeout, _LONGEST)
            )
        ]

    def fileno(self) -> int | None:
        """The descriptor of the kqueue."""
        number: int = self._queue.fileno()
        return number

    def close(self) -> None:
        """Close the kqueue."""
        self._queue.close()


class BlindSelector:
    """The selector on other systems. It reports no hang-up: the check at each acquire finds them.
    Timers still work.
    """

    def __init__(self) -> None:
        self._readers: list[int] = []

    def add(self, fd: int) -> None:
        """Do nothing: hang-ups are not reported."""

    def add_reader(self, fd: int) -> None:
        """Report whenever *fd* is readable."""
        self._readers.append(fd)

    def remove(self, fd: int) -> None:
        """Do nothing."""

    def wait(self, timeout: float | None) -> list[int]:
        """The readers to report, after at most *timeout* seconds."""
        ready: list[int] = original("select", "select")(
            self._readers, [], [], None if timeout is None else min(timeout, _LONGEST)
        )[0]
        return ready

    def fileno(self) -> int | None:
        """The reader, the only descriptor that is waited for under gevent."""
        return self._readers[0] if self._readers else None

    def close(self) -> None:
        """Do nothing: there is no kernel object."""


def new_selector() -> Selector:
    """The best selector that this system supports."""
    if has("select", "epoll"):
        return EpollSelector()
    return KqueueSelector() if has("select", "kqueue") else BlindSelector()
