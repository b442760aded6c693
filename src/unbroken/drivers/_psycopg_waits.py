"""Waits on an event loop for a psycopg connection, and how such a connection is closed.

psycopg waits for a descriptor's number. If the connection were closed meanwhile, the number could
belong to another connection when the wait goes on. That connection would lose its reader. Data that
it receives would resume the wait, which then works on memory that libpq has freed.

A wait that outlives the use of its connection is not rare. The event loop ends an asynchronous
generator (``stream()``, ``executemany()``) that was left half-way in a task of its own.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from unbroken.net.fork_guard import abort, identity

#: The interval, in seconds, between two checks whether the waits for a connection that was shut
#: down have ended.
LOOK_AGAIN = 0.02
#: The maximum number of these checks. After that the connection is closed when no reference to it
#: is left.
LOOKS = 250


def note_wait(state: dict[str, Any], wait: Coroutine[Any, Any, Any]) -> None:
    """Record that *wait*, which begins now, is for the connection with this *state*.

    The coroutine itself shows later whether it has ended, for any reason.
    """
    waits = state.get("_unbroken_waits", ())
    state["_unbroken_waits"] = (weakref.ref(wait), *filter(_lasts, waits))


def _lasts(ref: Callable[[], Any]) -> bool:
    wait = ref()
    return wait is not None and wait.cr_frame is not None


def is_waited_for(state: dict[str, Any]) -> bool:
    """Return whether a task waits for the connection with this *state*."""
    waits = [ref() for ref in state.get("_unbroken_waits", ())]
    return any(wait is not None and wait.cr_suspended for wait in waits)


def close_later(fd: int | None, state: dict[str, Any], close: Callable[[], None]) -> None:
    """Shut the socket *fd* down, if it still exists. Call *close* once no task waits for the
    connection with this *state* any more.
    """
    who = None if fd is None else identity(fd)
    if fd is not None and who is not None:
        abort(fd, who)
    looks = LOOKS

    def look() -> None:
        nonlocal looks
        looks -= 1
        if not is_waited_for(state):
            close()
        elif looks:
            loop.call_later(LOOK_AGAIN, look)

    with suppress(RuntimeError):  # no loop runs, so no task can go on waiting
        loop = asyncio.get_running_loop()
        loop.call_later(LOOK_AGAIN, look)


def forget_descriptor(fd: int) -> None:
    """Remove from the event loop the remains of a wait for *fd* that an exception ended. *fd* is
    closed next.

    The loop would keep the number, and the next connection that gets it could not be waited for.
    """
    with suppress(RuntimeError, OSError, ValueError):  # no loop runs here
        loop = asyncio.get_running_loop()
        loop.remove_reader(fd)
        loop.remove_writer(fd)
