"""The kernel's list of sockets to tell us about when they hang up: epoll, kqueue, or nothing at
all.

Sockets are added for hang-ups only: what a lent connection reads and writes wakes nobody. After a
hang-up is reported the socket is silent until it is added again (or, by kqueue, until something new
happens to it), so that a dead connection that is still lent does not spin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from unbroken.net.patched import has, original

_LONGEST = 86400.0  # seconds; epoll counts milliseconds in an int


class Selector(Protocol):
    """What a watcher needs of the kernel.

    Not thread-safe by itself, but for add and remove during a wait.
    """

    def add(self, fd: int) -> None:
        """Report when the other side of *fd* hangs up.

        Again for the same number: as if new. Never raises.
        """

    def add_reader(self, fd: int) -> None:
        """Report whenever *fd* can be read."""

    def remove(self, fd: int) -> None:
        """Forget *fd*. Never raises."""

    def wait(self, timeout: float | None) -> list[int]:
        """The descriptors to report, after at most *timeout* seconds (None: for ever)."""

    def fileno(self) -> int | None:
        """A descriptor that is readable while there is something to report; None where there is
        none.
        """

    def close(self) -> None:
        """Let go of the kernel's object, and of nothing else: a forked child may call it."""


class EpollSelector:
    """Linux."""

    def __init__(self) -> None:
        self._hangup: int = original("select", "EPOLLRDHUP") | original("select", "EPOLLONESHOT")
        self._readable: int = original("select", "EPOLLIN")
        self._epoll = original("select", "epoll")()

    def add(self, fd: int) -> None:
        """See :class:`Selector`."""
        try:
            self._epoll.register(fd, self._hangup)
        except FileExistsError:
            with contextlib.suppress(OSError):
                self._epoll.modify(fd, self._hangup)
        except (OSError, ValueError):
            pass  # closed: whoever uses it next finds out

    def add_reader(self, fd: int) -> None:
        """See :class:`Selector`."""
        self._epoll.register(fd, self._readable)

    def remove(self, fd: int) -> None:
        """See :class:`Selector`."""
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None) -> list[int]:
        """See :class:`Selector`."""
        return [fd for fd, _ in self._epoll.poll(-1 if timeout is None else min(timeout, _LONGEST))]

    def fileno(self) -> int | None:
        """See :class:`Selector`."""
        number: int = self._epoll.fileno()
        return number

    def close(self) -> None:
        """See :class:`Selector`."""
        self._epoll.close()


class KqueueSelector:
    """macOS and the BSDs. *api* has the names of the select module; tests hand in a stand-in."""

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
        """See :class:`Selector`.

        A low-water mark above any buffer: answers of the server wake nobody, EOF does.
        """
        self._change(
            fd, self._get("KQ_EV_ADD") | self._get("KQ_EV_CLEAR"), self._LOW_WATER, self._MUCH
        )

    def add_reader(self, fd: int) -> None:
        """See :class:`Selector`."""
        self._change(fd, self._get("KQ_EV_ADD"))

    def remove(self, fd: int) -> None:
        """See :class:`Selector`."""
        self._change(fd, self._get("KQ_EV_DELETE"))

    def wait(self, timeout: float | None) -> list[int]:
        """See :class:`Selector`."""
        return [
            event.ident
            for event in self._queue.control(
                None, 64, None if timeout is None else min(timeout, _LONGEST)
            )
        ]

    def fileno(self) -> int | None:
        """See :class:`Selector`."""
        number: int = self._queue.fileno()
        return number

    def close(self) -> None:
        """See :class:`Selector`."""
        self._queue.close()


class BlindSelector:
    """Elsewhere: no hang-up is reported (the look at each acquire finds them); timers work all the
    same.
    """

    def __init__(self) -> None:
        self._readers: list[int] = []

    def add(self, fd: int) -> None:
        """See :class:`Selector`."""

    def add_reader(self, fd: int) -> None:
        """See :class:`Selector`."""
        self._readers.append(fd)

    def remove(self, fd: int) -> None:
        """See :class:`Selector`."""

    def wait(self, timeout: float | None) -> list[int]:
        """See :class:`Selector`."""
        ready: list[int] = original("select", "select")(
            self._readers, [], [], None if timeout is None else min(timeout, _LONGEST)
        )[0]
        return ready

    def fileno(self) -> int | None:
        """See :class:`Selector`. Under gevent the reader alone is waited for."""
        return self._readers[0] if self._readers else None

    def close(self) -> None:
        """See :class:`Selector`."""


def new_selector() -> Selector:
    """The best that this system has."""
    if has("select", "epoll"):
        return EpollSelector()
    return KqueueSelector() if has("select", "kqueue") else BlindSelector()
