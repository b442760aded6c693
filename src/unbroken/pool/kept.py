"""A connection that a framework keeps for its caller between calls: its end may be broken off, and
is then gone on with.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.pool.loan import Loan


class _Giver:
    """A call that gives a connection back; it goes with that call, wherever an exception
    strikes.
    """

    __slots__ = ("__weakref__", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()  # gevent may have patched it since import


class Kept(Loan):
    """A loan that its body still knows of until the connection is back.

    Whoever begins :meth:`end` first gives the connection back. Where an exception strikes that
    call, whoever comes next goes on with it: the same thread, or a caller that waits for a
    connection, from any thread.
    """

    __slots__ = ("__weakref__", "_giver", "_lock", "uses")

    uses: int
    _giver: Any
    _lock: Any

    def keep(self) -> None:
        """The loan begins."""
        self.uses = self.entry.uses
        self._giver = None  #: a weak reference to the call that gives it back
        self._lock = threading.RLock()  # reentrant: a finalizer may come in between
        self.entry.recall = weakref.WeakMethod(self.yield_to_waiter)

    @property
    def is_over(self) -> bool:
        """Whether the connection has gone back."""
        entry, kernel = self.entry, self.state.kernel
        return entry.uses != self.uses or not (
            kernel.is_out(entry) or kernel.reclaimed.get(entry.key) is entry
        )

    @property
    def was_broken_off(self) -> bool:
        """Whether a call that gave the connection back did not come to its end."""
        return self._giver is not None and self._giver() is None and not self.is_over

    def begin_end(self) -> object:
        """The call that gives the connection back begins.

        What it gets is to be kept in a variable of that call.
        """
        giver = _Giver()
        with self._lock:
            if self._giver is None or self._giver() is None:
                self._giver = weakref.ref(giver)
        return giver

    def end_once(self, give: Callable[[], None], may: Callable[[], bool] = lambda: True) -> bool:
        """Give the connection back by *give*, unless another call is at it. *may*: asked with the
        lock. False: it was not done.
        """
        giver = _Giver()
        with self._lock:
            other = None if self._giver is None else self._giver()
            if (other is not None and other.thread != giver.thread) or not may():
                return False
            self._giver = weakref.ref(giver)
        if not self.is_over:
            give()
        return True

    def yield_to_waiter(self) -> bool:
        """A caller waits: go on with an end that was broken off. From any thread."""
        return self.was_broken_off and self.end_once(self.put_back, lambda: self.was_broken_off)

    def put_back(self) -> None:
        """Give the connection back. To be called again where it was broken off."""
        raise NotImplementedError


__all__ = ["Kept"]
