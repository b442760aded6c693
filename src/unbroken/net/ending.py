"""The end of the interpreter, and of what can be done until then.

Python ends in steps, and each takes something away:

1. The main thread has ended; other threads that are no daemons go on, then the ``atexit`` callbacks
   run. Python 3.12 starts no more threads from here on (3.12.3 and newer: once those threads have
   ended). Nobody hands work to the executors of ``concurrent.futures`` any more.
2. The interpreter is *finalizing* (``sys.is_finalizing()``): finalizers run, on the main thread
   alone. All other threads stand still for ever, and what they have locked stays locked. A thread
   that is started now never runs: before Python 3.12, ``Thread.start`` waits for it for ever.

Whatever starts a thread does so by :func:`unbroken.net.signals.start_thread`, which raises
:class:`NoThreadError` where none can be started.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

# By name, so that it can still be called when the modules are taken apart.
is_finalizing = sys.is_finalizing

FINALIZING = "the interpreter is shutting down"

#: What Python, its executors and its import system say when they refuse something for that reason.
_WORDS = (
    "interpreter shutdown",
    "after shutdown",
    "Python is likely shutting down",
    "Python is shutting down",
)


class NoThreadError(RuntimeError):
    """No thread can be started. ``is_ending``: nor will one be, for the interpreter is shutting
    down.
    """

    def __init__(self, why: str, *, is_ending: bool) -> None:
        super().__init__(why)
        self.is_ending = is_ending


def no_thread(exc: RuntimeError) -> NoThreadError:
    """What to make of *exc*, which ``Thread.start`` raised."""
    if said_by(exc):
        return NoThreadError(f"{FINALIZING} ({exc})", is_ending=True)
    return NoThreadError(str(exc), is_ending=False)


def said_by(exc: BaseException | None) -> bool:
    """Whether *exc*, or what it came from, says that the interpreter is shutting down."""
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
    """Why asyncio looks up no addresses any more: its executor takes nothing new. None: it does."""
    # Python has no public name for it, from 3.9 to 3.14.
    if is_finalizing() or getattr(threading, "_SHUTTING_DOWN", False):
        return NoThreadError(f"{FINALIZING}: its main thread has ended", is_ending=True)
    return None


class _NoLock:
    """Stands in for a lock while the interpreter is finalizing: one thread is left."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_exc: object) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ARG002 - as a lock's
        """It is free."""
        return True

    def release(self) -> None:
        """It stays free."""


NO_LOCK: Any = _NoLock()


class Guarded:
    """Has a lock, ``lock``, that never blocks while the interpreter is finalizing: a thread that
    stands still may have it for ever.

    What is entered is Python's own lock: no exception of a signal's strikes between taking it and
    the block.
    """

    _guard: Any

    @property
    def lock(self) -> Any:
        """The lock, for ``with``."""
        return NO_LOCK if is_finalizing() else self._guard
