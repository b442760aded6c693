"""How a thread or a greenlet waits for a selector, and how another thread wakes it."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

from unbroken.net.patched import threads_are_greenlets
from unbroken.net.selector import Selector


class Wake:
    """An object that another thread can make readable: an eventfd or, on other systems, a pair of
    sockets.

    Wait for ``fd``.
    """

    def __init__(self) -> None:
        self._pair: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._pair = socket.socketpair()
            self.fd = self._pair[0].fileno()
            for end in self._pair:
                end.setblocking(False)

    def set(self) -> None:
        """Make ``fd`` readable."""
        try:
            if self._pair is None:
                os.eventfd_write(self.fd, 1)
            else:
                self._pair[1].send(b"\0")
        except BlockingIOError:
            pass  # it is readable already

    def clear(self) -> None:
        """Make ``fd`` unreadable again."""
        try:
            if self._pair is None:
                os.eventfd_read(self.fd)
            else:
                self._pair[0].recv(4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close its descriptors."""
        if self._pair is None:
            os.close(self.fd)
        else:
            for end in self._pair:
                end.close()


def wait(selector: Selector, timeout: float | None) -> list[int]:
    """Call ``selector.wait(timeout)``. Where threads are greenlets, the hub runs meanwhile."""
    number = selector.fileno() if threads_are_greenlets() else None
    if number is None:
        return selector.wait(timeout)
    _give_way(number, timeout)
    return selector.wait(0)


def _give_way(fd: int, timeout: float | None) -> None:
    """Let gevent's hub run until *fd* is readable.

    Both events are weak: they do not keep a hub alive that has finished its work.
    """
    hub_module: Any = importlib.import_module("gevent.hub")
    hub = hub_module.get_hub()
    waiter = hub_module.Waiter(hub)
    readable = hub.loop.io(fd, 1, ref=False)
    timer = None if timeout is None else hub.loop.timer(timeout, ref=False)
    try:
        readable.start(waiter.switch, None)
        if timer is not None:
            timer.start(waiter.switch, None)
        waiter.get()
    finally:
        for event in (readable, timer):
            if event is not None:
                event.stop()
                event.close()
