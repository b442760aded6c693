"""Keep work that a unit of work hands to another thread, task, greenlet or executor in the unit.

A unit lives in a context variable. Tasks inherit it. So does work that ``asyncio.to_thread``,
``sync_to_async`` and anyio run on a thread. Threads, executors and greenlets do not inherit it. So
the first unit that is entered wraps the places where work is handed over, once per process. The
work then gets the unit, and the unit is not run again before that work has ended.

- A thread, a job of an executor or of a thread pool, and a greenlet get the unit of the code that
  started them.

- A queue item is processed in the unit of the code that put it there, if a thread or task without
  a unit takes it.

- A task with a context of its own gets the unit of the code that created it.

- Code in an empty context (``contextvars.Context().run(...)``) is in the unit that was entered on
  the same thread, greenlet or task.

- If the starter of some code is unknown, no unit that might have started it is run again.

- Another process cannot report, so starting one inside a unit forbids its replay.

Threads, tasks and greenlets that were started outside of units belong to none, even if other code
of the process is in one.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType
from typing import Any

from unbroken.ledger import scope
from unbroken.ledger.scope import Token
from unbroken.ledger.unit import Unit
from unbroken.net.signals import IN_NO_UNIT
from unbroken.pool.jobs import TASKS_SHOW_CONTEXTS, running_task, suspects, unit_of_job
from unbroken.pool.wrapping import PLACES


class SurroundingsOfPython:
    """The core's view of threads, tasks and greenlets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = dict(PLACES)

    def renew(self) -> None:
        """In a forked child: a thread that no longer exists may hold the lock."""
        self._lock = threading.Lock()

    def entering(self) -> None:
        """Wrap the modules that were imported since the last call."""
        modules = sys.modules
        for name in self._left:
            if name in modules:
                break
        else:
            return
        with self._lock:
            import concurrent.futures.thread  # noqa: F401 - the application may import it at any time

            for name in [name for name in self._left if name in modules]:
                self._left[name](modules[name])
                self._left = {each: wrap for each, wrap in self._left.items() if each != name}

    def place(self) -> object:
        """Identify the running task, else the greenlet, else the thread."""
        task = running_task()
        if task is not None:
            return threading.get_ident(), "task", id(task)
        return threading.get_ident(), "greenlet", id(_greenlet())

    def is_running(self, frame: int) -> bool:
        """Whether the frame with this ``id`` is among the callers of this code, including those of
        its greenlet's parents.
        """
        caller: FrameType | None = sys._getframe(1)
        greenlet = _greenlet()
        while caller is not None:
            if id(caller) == frame:
                return True
            caller = caller.f_back
            while caller is None and greenlet is not None:
                greenlet = greenlet.parent
                caller = None if greenlet is None else greenlet.gr_frame
        return False

    def find_out(self) -> Unit | None:
        """The unit of a context that was never assigned one.

        If several units are possible and none is certain, none of them is ever run again.
        """
        unit, maybe = self.look()
        for each in maybe:
            each.doubt(
                "code used a connection, and it is not known whether this unit started that code"
            )
        if unit is None:
            suspects.set(None)
            scope.tell(None)
        return unit

    def look(self) -> tuple[Unit | None, list[Unit]]:
        """The same, without side effects: the unit, and the possible ones."""
        tokens = scope.entered()
        place: Any = self.place() if tokens else None
        here = [token.unit for token in tokens if token.place == place]
        job = unit_of_job.get(place)
        if here or (job is not None and not job.is_over):
            return (here[-1] if here else job), []
        given = suspects.get()
        if given is not None or not tokens:
            units = [ref() for ref in given or ()]
            return None, [each for each in units if each is not None and not each.is_over]
        unit, creators = _creator(place, tokens)
        return unit, [token.unit for token in creators]


def _creator(place: Any, tokens: list[Token]) -> tuple[Unit | None, list[Token]]:
    """The unit that started the code at *place*, or else the units of which one may have."""
    task = running_task()
    if task is not None:
        is_known, unit = _unit_of(task)
        if is_known:
            return unit, []
    same_thread = [token for token in tokens if token.place[0] == place[0]]  # type: ignore[index]
    if task is None:
        thread = threading._active.get(place[0])  # type: ignore[attr-defined] # current_thread() would make one up
        is_free = IN_NO_UNIT in getattr(thread, "__dict__", ()) and (
            not same_thread or _is_callback()
        )
        if is_free or getattr(_greenlet(), IN_NO_UNIT, False):
            return None, []
    return None, same_thread if task is not None or same_thread else tokens


def _unit_of(task: Any) -> tuple[bool, Unit | None]:
    """Whether the unit of *task* is known, and the unit."""
    if TASKS_SHOW_CONTEXTS:
        context = task.get_context()
        return scope.is_told(context), scope.told(context)
    ref: Any = getattr(task, "_unbroken_unit", False)
    unit = ref() if ref else None
    return ref is not False, None if unit is None or unit.is_over else unit


def _is_callback() -> bool:
    """Whether an event loop runs this outside of any task: a callback of the loop itself, as for a
    new client.
    """
    asyncio: Any = sys.modules.get("asyncio")
    return (
        asyncio is not None
        and asyncio._get_running_loop() is not None
        and asyncio.current_task() is None
    )


def _greenlet() -> Any:
    greenlet: Any = sys.modules.get("greenlet")
    return None if greenlet is None else greenlet.getcurrent()


_surroundings = scope.around = SurroundingsOfPython()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_surroundings.renew)
