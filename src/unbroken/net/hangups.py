"""One look at all sockets of a pool at once, whatever their number, for less than a look at one of
them.

``HangUps.look()`` asks an epoll set in which each socket stands once, from its birth, for a hang-up
only: a false answer means that the kernel knows of no death among them. Nothing is walked through:
deaths are queued when they happen. What waits to be read does not count: it is no hang-up.
Level-triggered: a death is reported until its socket is forgotten.

It keeps the interpreter's lock. ``epoll.poll`` itself takes 0.1 µs less but lets go of it, which
invites every thread that computes to take over: beside one such thread an acquire and release then
took 22 µs and up to 13 ms instead of 5 µs and at most 0.2 ms, and with 32 threads that do nothing
else 4.6 µs instead of 1.4 (Linux 6.18, CPython 3.11).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial
from typing import Any

from unbroken.net.liveness import SUPPORTED, Liveness, sweep
from unbroken.net.patched import has, original

#: Asked for; errors and full hang-ups (EPOLLERR, EPOLLHUP) come unasked.
_HANG_UP = getattr(select, "EPOLLRDHUP", 0x2000)


class HangUps:
    """The sockets of one pool in one process.

    ``look`` is built for the kernel's present set: keep it at hand until :meth:`renew`.
    """

    def __init__(self) -> None:
        self._epoll = _new_epoll()
        self._fds: set[int] = set()
        blind = self.dead if SUPPORTED else self.doubtful
        self.look: Callable[[], Any] = blind if self._epoll is None else _looker(self._epoll)

    def add(self, fd: int) -> None:
        """Look at *fd* from now on."""
        self._fds.add(fd)
        if self._epoll is not None:
            try:
                self._epoll.register(fd, _HANG_UP)
            except FileExistsError:
                self._epoll.modify(fd, _HANG_UP)
            except OSError:
                pass  # not a thing that can hang up; a ping will have to do

    def forget(self, fd: int) -> None:
        """Look at *fd* no more; to be called before it is closed.

        One that is not looked at does no harm.
        """
        self._fds.discard(fd)
        if self._epoll is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass

    def dead(self) -> list[int]:
        """The descriptors that have hung up."""
        looks = sweep(list(self._fds))
        return [fd for fd, look in looks.items() if look is Liveness.DEAD]

    def doubtful(self) -> list[int]:
        """Those and all that have something to read: where the kernel shows no hang-up behind a
        goodbye, that may be one.
        """
        return list(sweep(list(self._fds)))

    def renew(self) -> None:
        """Make the kernel's set anew: a socket that was closed unseen, while a child still holds
        it, stays in the old one.
        """
        if self._epoll is None:
            return
        self._epoll = _new_epoll()  # the old one is not closed here: another thread may be looking
        self.look = _looker(self._epoll)
        for fd in list(self._fds):
            self.add(fd)


def _new_epoll() -> Any:
    return original("select", "epoll")() if has("select", "epoll") else None


def _looker(epoll: Any) -> Callable[[], Any]:
    """A function that says, at once and without letting other threads run, whether *epoll* has
    anything: 0, or something true.
    """
    try:
        import ctypes

        wait = ctypes.PyDLL(None).epoll_wait
    except (
        ImportError,
        AttributeError,
        OSError,
    ):  # a Python without ctypes, or one that does not see the C library
        return partial(epoll.poll, 0, 1)
    event = ctypes.create_string_buffer(16)  # one struct epoll_event
    look = partial(wait, epoll.fileno(), ctypes.byref(event), 1, 0)
    look.epoll = epoll  # type: ignore[attr-defined] # lives as long as its number is used here
    return look
