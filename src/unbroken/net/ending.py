"""The interpreter's shutdown, and which operations still work at each of its stages.

Python shuts down in stages, and each stage removes something:

1. The main thread has ended. Other non-daemon threads continue; then the ``atexit`` callbacks run.
   From here on Python 3.12 starts no new threads (3.12.3 and newer: once those threads have
   ended). The executors of ``concurrent.futures`` accept no more work.
2. The interpreter is *finalizing* (``sys.is_finalizing()``): finalizers run, on the main thread
   alone. All other threads are frozen for ever, and their locks stay locked. A thread
   that is started now never runs: before Python 3.12, ``Thread.start`` waits for it for ever.

All code that starts a thread calls :func:`unbroken.net.signals.start_thread`. It raises
:class:`NoThreadError` if no thread can be started.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

# Bound to a name here, so that it can still be called while modules are torn down.
is_finalizing = sys.is_finalizing

FINALIZING = "the interpreter is shutting down"

#: Texts of the errors by which Python, its executors and its import system refuse work during
#: shutdown.
_WORDS = (
    "interpreter shutdown",
    "after shutdown",
    "Python is likely shutting down",
    "Python is shutting down",
)


class NoThreadError(RuntimeError):
    """No thread can be started. If ``is_ending`` is true, none ever will be: the interpreter is
    shutting down.
    """

    def __init__(self, why: str, *, is_ending: bool) -> None:
        super().__init__(why)
        self.is_ending = is_ending


def no_thread(exc: RuntimeError) -> NoThreadError:
    """Translate *exc*, which ``Thread.start`` raised, into a :class:`NoThreadError`."""
    if said_by(exc):
        return NoThreadError(f"{FINALIZING} ({exc})", is_ending=True)
    return NoThreadError(str(exc), is_ending=False)


def said_by(exc: BaseException | None) -> bool:
    """Whether *exc*, or an exception that caused it, reports that the interpreter is shutting
    down.
    """
    for _ in range(6):
        if exc is None:
            return False
        if isinstance(exc, RuntimeError | ImportError):
            text = str(exc)
            if is_finalizing() or any(words in text for words in _WORDS):
                return True
        exc = exc.__cause__ or exc.__context__
    return False


def no_executor() -> NoThreadError | None:
    """Return why asyncio cannot look up addresses any more: its executor accepts no new work. None
    if it still does.
    """
    # Python 3.9 to 3.14 have no public name for this flag.
    if is_finalizing() or getattr(threading, "_SHUTTING_DOWN", False):
        return NoThreadError(f"{FINALIZING}: its main thread has ended", is_ending=True)
    return None


class _NoLock:
    """Replaces a lock while the interpreter is finalizing, when only one thread is left."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_exc: object) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002 - as a lock's
        """Return True: the lock is always free."""
        return True

    def release(self) -> None:
        """Do nothing: the lock is always free."""


NO_LOCK: Any = _NoLock()


class Guarded:
    """A base class with a lock, ``lock``, that never blocks while the interpreter is finalizing. A
    frozen thread may hold the real lock for ever.

    ``with`` enters Python's own lock, so a signal's exception cannot strike between acquiring it
    and entering the block.
    """

    _guard: Any

    @property
    def lock(self) -> Any:
        """The lock, for ``with``."""
        return NO_LOCK if is_finalizing() else self._guard
