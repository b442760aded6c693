"""A connection that a framework keeps for its caller between calls. An exception may interrupt its
return, which is then resumed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.pool.loan import Loan


class _Giver:
    """A call that returns a connection. This object disappears with that call, wherever an
    exception strikes.
    """

    __slots__ = ("__weakref__", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()  # gevent may have patched it since import


class Kept(Loan):
    """A loan that its body still knows until the connection is returned.

    The call that begins first returns the connection. If an exception interrupts it, the next call
    resumes the return: from the same thread, or from a caller that waits for a connection, on any
    thread.
    """

    __slots__ = ("__weakref__", "_giver", "_lock", "uses")

    uses: int
    _giver: Any
    _lock: Any

    def keep(self) -> None:
        """The loan begins."""
        self.uses = self.entry.uses
        self._giver = None  #: a weak reference to the call that returns it
        self._lock = threading.RLock()  # reentrant: a finalizer may run in between
        self.entry.recall = weakref.WeakMethod(self.yield_to_waiter)

    @property
    def is_over(self) -> bool:
        """Whether the connection was returned."""
        entry, kernel = self.entry, self.state.kernel
        return entry.uses != self.uses or not (
            kernel.is_out(entry) or kernel.reclaimed.get(entry.key) is entry
        )

    @property
    def was_broken_off(self) -> bool:
        """Whether a call that returned the connection was interrupted."""
        return self._giver is not None and self._giver() is None and not self.is_over

    def begin_end(self) -> object:
        """The call that returns the connection begins.

        That call must keep the result in a variable.
        """
        giver = _Giver()
        with self._lock:
            if self._giver is None or self._giver() is None:
                self._giver = weakref.ref(giver)
        return giver

    def end_once(self, give: Callable[[], None], may: Callable[[], bool] = lambda: True) -> bool:
        """Return the connection by *give*, unless another call is doing that. *may*: checked under
        the lock. Return False if it was not done.
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
        """A caller waits: resume an interrupted return. Any thread may call this."""
        return self.was_broken_off and self.end_once(self.put_back, lambda: self.was_broken_off)

    def put_back(self) -> None:
        """Return the connection. Called again if it was interrupted."""
        raise NotImplementedError


__all__ = ["Kept"]
