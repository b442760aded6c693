"""Check all sockets of a pool with one system call, which costs less than checking a single socket.

``HangUps.look()`` queries an epoll set. Each socket is registered in it once, when it is opened,
for hang-ups only. A false result means that the kernel knows of no hang-up among them. The kernel
queues hang-ups when they happen, so it walks through no list. Unread data does not count: it is no
hang-up. The set is level-triggered: a hang-up is reported until its socket is removed.

The call keeps the interpreter's lock. ``epoll.poll`` itself takes 0.1 µs less but releases the
lock, so that any computing thread may take over. Beside one such thread, an acquire and release
then took 22 µs and up to 13 ms, instead of 5 µs and at most 0.2 ms. With 32 threads that only
acquire and release it took 4.6 µs instead of 1.4 (Linux 6.18, CPython 3.11).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial
from typing import Any

from unbroken.net.liveness import SUPPORTED, Liveness, sweep
from unbroken.net.patched import has, original

#: The event to register. Errors and full hang-ups (EPOLLERR, EPOLLHUP) are always reported.
_HANG_UP = getattr(select, "EPOLLRDHUP", 0x2000)


class HangUps:
    """The sockets of one pool in one process.

    ``look`` is built for the current epoll set. A caller may keep it until :meth:`renew`.
    """

    def __init__(self) -> None:
        self._epoll = _new_epoll()
        self._fds: set[int] = set()
        blind = self.dead if SUPPORTED else self.doubtful
        self.look: Callable[[], Any] = blind if self._epoll is None else _looker(self._epoll)

    def add(self, fd: int) -> None:
        """Check *fd* from now on."""
        self._fds.add(fd)
        if self._epoll is not None:
            try:
                self._epoll.register(fd, _HANG_UP)
            except FileExistsError:
                self._epoll.modify(fd, _HANG_UP)
            except OSError:
                pass  # it cannot hang up; a ping has to do

    def forget(self, fd: int) -> None:
        """Stop checking *fd*. Must be called before *fd* is closed.

        Calling it for a descriptor that is not checked is harmless.
        """
        self._fds.discard(fd)
        if self._epoll is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass

    def dead(self) -> list[int]:
        """The descriptors whose other side has hung up."""
        looks = sweep(list(self._fds))
        return [fd for fd, look in looks.items() if look is Liveness.DEAD]

    def doubtful(self) -> list[int]:
        """The descriptors that have hung up or have something to read. For kernels that show no
        hang-up behind unread data: that data may be a goodbye packet.
        """
        return list(sweep(list(self._fds)))

    def renew(self) -> None:
        """Replace the epoll set. A socket that was closed without :meth:`forget`, while a child
        still holds it, stays in the old set.
        """
        if self._epoll is None:
            return
        self._epoll = _new_epoll()  # not closed here: another thread may be using it
        self.look = _looker(self._epoll)
        for fd in list(self._fds):
            self.add(fd)


def _new_epoll() -> Any:
    return original("select", "epoll")() if has("select", "epoll") else None


def _looker(epoll: Any) -> Callable[[], Any]:
    """A function that reports whether *epoll* has an event: 0, or a true value. It does not block,
    and does not let other threads run.
    """
    try:
        import ctypes

        wait = ctypes.PyDLL(None).epoll_wait
    except (
        ImportError,
        AttributeError,
        OSError,
    ):  # no ctypes, or no C library visible
        return partial(epoll.poll, 0, 1)
    event = ctypes.create_string_buffer(16)  # one struct epoll_event
    look = partial(wait, epoll.fileno(), ctypes.byref(event), 1, 0)
    look.epoll = epoll  # type: ignore[attr-defined] # lives as long as its number is used here
    return look
