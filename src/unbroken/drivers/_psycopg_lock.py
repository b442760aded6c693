"""The lock of a psycopg connection, without waits that never end.

psycopg holds its lock as long as a ``stream()``, ``notifies()`` or ``copy()`` is half read, and for
ever after an exception struck between two lines of its own. A holder that asked for it again waited
for itself, and no deadline ended that. These locks raise in such a case. A wait for another thread
or task ends when the connection's socket closes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from unbroken.net.liveness import Liveness, look
from unbroken.net.patched import threads_are_greenlets

#: The interval, in seconds, at which a wait for another thread or task checks the socket.
LOOK_AROUND = 0.05
#: The number of checks after which a lock that is locked but has no living owner counts as never
#: released.
ORPHANED = 5


class _Base:
    """The common part of both locks: the current owner, and whether a wait for it can end."""

    __slots__ = ("_error", "_fileno", "_inner", "locked", "owner", "turns")

    def __init__(
        self, inner: Any, fileno: Callable[[], int | None], error: Callable[[], BaseException]
    ) -> None:
        self._inner, self._fileno, self._error = inner, fileno, error
        self.locked: Callable[[], bool] = inner.locked  #: whether it is held
        self.turns = 0  #: how often it was taken
        self.owner: object = (
            None  #: the thread or task that holds it; an exception may strike before it is noted
        )

    def release(self) -> None:
        """Release the lock for the next caller."""
        self.owner = None
        self._inner.release()

    def _raise_if_hopeless(self, me: object, orphaned: int) -> int:
        """Raise if *me* waits for itself, for an owner that no longer exists, or for an answer that
        cannot come any more.

        *orphaned* is the number of checks so far that found it locked without a living owner.
        Returns the new count.
        """
        orphaned = orphaned + 1 if self.locked() and not self._is_owned() else 0
        fd = self._fileno()
        if self.owner == me or orphaned == ORPHANED or fd is None or look(fd) is Liveness.DEAD:
            raise self._error()
        return orphaned

    def _is_owned(self) -> bool:
        """Return whether the thread or task that holds it is alive and running."""
        raise NotImplementedError


class ThreadLock(_Base):
    """The lock for psycopg's blocking connections, in place of a ``threading.Lock``."""

    __slots__ = ()

    def __init__(
        self, fileno: Callable[[], int | None], error: Callable[[], BaseException]
    ) -> None:
        super().__init__(threading.Lock(), fileno, error)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire like a ``threading.Lock``. Raises OperationalError if the wait could not end."""
        me = threading.get_ident()
        if not self._inner.acquire(blocking=False) and (
            not blocking or not self._wait(me, timeout)
        ):
            return False
        self.owner = me
        self.turns += 1
        return True

    def _wait(self, me: int, timeout: float) -> bool:
        left, orphaned = timeout, 0
        while True:
            step = LOOK_AROUND if timeout < 0 else min(LOOK_AROUND, left)
            if self._inner.acquire(timeout=step):
                return True
            left -= step
            if timeout >= 0 and left <= 0:
                return False
            orphaned = self._raise_if_hopeless(me, orphaned)

    def _is_owned(self) -> bool:
        if self.owner is None:
            return False
        return threads_are_greenlets() or any(
            thread.ident == self.owner for thread in threading.enumerate()
        )

    def __enter__(self) -> bool:
        # like acquire, inline: each statement runs this
        me = threading.get_ident()
        if not self._inner.acquire(False):
            self._wait(me, -1)
        self.owner = me
        self.turns += 1
        return True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.owner = None
        self._inner.release()


class TaskLock(_Base):
    """The lock for psycopg's async connections, in place of an ``asyncio.Lock``."""

    __slots__ = ()

    def __init__(
        self, fileno: Callable[[], int | None], error: Callable[[], BaseException]
    ) -> None:
        super().__init__(asyncio.Lock(), fileno, error)

    async def acquire(self) -> bool:
        """Acquire like an ``asyncio.Lock``. Raises OperationalError if the wait could not end."""
        me = asyncio.current_task()
        if self._inner.locked():
            await self._wait(me)
        else:
            await self._inner.acquire()
        self.owner = me
        self.turns += 1
        return True

    async def _wait(self, me: object) -> None:
        orphaned = 0
        while True:
            try:
                async with asyncio.timeout(LOOK_AROUND) as limit:
                    await self._inner.acquire()
                return
            except TimeoutError:
                if not limit.expired():
                    raise
            orphaned = self._raise_if_hopeless(me, orphaned)

    def _is_owned(self) -> bool:
        return isinstance(self.owner, asyncio.Task) and not self.owner.done()

    async def __aenter__(self) -> bool:
        return await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
