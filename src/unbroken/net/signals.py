"""Start threads that serve the whole process: outside any caller's context, and without signals.

Signals are for the main thread, or for the web server that owns the process.

The kernel delivers a signal for a process to any of its threads that does not block it. uWSGI's
handler then ends the worker from within that thread. Python waits there for the main thread, which
waits for the next request, so the worker never ends.
"""

from __future__ import annotations

# The C module itself: signal builds an enumeration of all 64 on each call, which takes 45 µs
# instead of 9.
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

#: Signals that a thread causes itself, and the profiler's, stay unblocked.
_THREADS_OWN = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGPROF", "SIGSEGV", "SIGSYS", "SIGTRAP"}
_BLOCKED = tuple(int(each) for each in signal.Signals if each.name not in _THREADS_OWN)


@contextmanager
def unsignalled() -> Iterator[None]:
    """Threads that are started inside the block, and their own threads, block signals. A signal
    that arrives meanwhile is handled afterwards.

    Does nothing where a thread is a greenlet: a greenlet has no signals of its own.
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
    """Return why no thread can be started during shutdown. None if one can, or if that is
    unknown.
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


#: An attribute of threads that belong to no unit of work, even if a unit starts them
#: (:mod:`unbroken.pool.contexts`).
IN_NO_UNIT = "_unbroken_in_no_unit"


def start_thread(function: Callable[..., object], *args: Any, name: str) -> threading.Thread:
    """Start a daemon thread that receives no signals and belongs to no unit of work, whichever
    thread starts it.

    A free-threaded Python 3.14 would make the new thread inherit its starter's context. Raises
    NoThreadError if no thread can be started.
    """
    if is_finalizing():
        raise NoThreadError(FINALIZING, is_ending=True)
    apart: dict[str, Any] = (
        {"context": contextvars.Context()} if sys.version_info >= (3, 14) else {}
    )
    try:
        # A subinterpreter allows no daemon threads, and raises here.
        thread = threading.Thread(target=function, args=args, name=name, daemon=True, **apart)
        thread.__dict__[IN_NO_UNIT] = True
        with unsignalled():
            thread.start()
    except RuntimeError as exc:
        raise no_thread(exc) from exc
    return thread
