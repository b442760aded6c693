"""Threads that work for everybody: in nobody's context, and without signals.

Signals are for the main thread, or for the web server that owns the process.

The kernel hands a signal that is sent to a process to any of its threads that does not block it.
uWSGI's handler then ends the worker from within that thread: Python waits there for the main
thread, which waits for the next request, and the worker never ends.
"""

from __future__ import annotations

# The C module itself: signal makes an enumeration of all 64 each time, which takes 45 µs instead of
# 9.
import _signal  # type: ignore[import-not-found]
import contextvars
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unbroken.net.ending import FINALIZING, NoThreadError, is_finalizing, no_executor, no_thread
from unbroken.net.patched import threads_are_greenlets

#: What a thread does to itself, and what a profiler counts threads by, stays where it is.
_THREADS_OWN = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_BLOCKED = tuple(int(each) for each in signal.Signals if each.name not in _THREADS_OWN)


@contextmanager
def unsignalled() -> Iterator[None]:
    """Threads that are started inside, and those that they start, block signals. What comes
    meanwhile is handled afterwards.

    Does nothing where a thread is a greenlet: that has no signals of its own.
    """
    if threads_are_greenlets() or not hasattr(_signal, "pthread_sigmask"):
        yield
        return
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _BLOCKED)
    try:
        yield
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def refused() -> NoThreadError | None:
    """Why no thread can be started now that the interpreter is shutting down; None: one can, or
    nobody knows.
    """
    if no_executor() is None:
        return None
    try:
        start_thread(_nothing, name="unbroken-probe")
    except NoThreadError as why:
        return why
    return None


def _nothing() -> None:
    pass


#: An attribute of threads that are in no unit of work, even if a unit starts them
#: (:mod:`unbroken.pool.contexts`).
IN_NO_UNIT = "_unbroken_in_no_unit"


def start_thread(function: Callable[..., object], *args: Any, name: str) -> threading.Thread:
    """Start a daemon thread that takes no signals and is in no unit of work, whoever starts it.

    A free-threaded Python 3.14 has a thread inherit the context of who starts it. Raises
    NoThreadError where none can be started.
    """
    if is_finalizing():
        raise NoThreadError(FINALIZING, is_ending=True)
    apart: dict[str, Any] = (
        {"context": contextvars.Context()} if sys.version_info >= (3, 14) else {}
    )
    try:
        # a subinterpreter of its own allows no daemon threads, and says so here
        thread = threading.Thread(target=function, args=args, name=name, daemon=True, **apart)
        thread.__dict__[IN_NO_UNIT] = True
        with unsignalled():
            thread.start()
    except RuntimeError as exc:
        raise no_thread(exc) from exc
    return thread
