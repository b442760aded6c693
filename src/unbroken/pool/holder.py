"""Describe the holder of a connection for messages: a thread or a greenlet, and its current
stack.
"""

from __future__ import annotations

import dis
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import CodeType, FrameType, GeneratorType
from typing import Any

from unbroken.brain.entry import Entry
from unbroken.brain.kernel import Ticket
from unbroken.net.forks import has_threads_of_parent

#: Maximum number of stack frames in a description.
DEPTH = 8
#: Called each time, because importing an extension module can enable the lock again. Python has
#: this function from 3.13 on.
_one_at_a_time: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)


def thread_frames() -> dict[int, FrameType] | None:
    """The current frame of each thread, by its ident. None if it cannot be read.

    In a free-threaded interpreter a frame keeps running while another thread reads it, which may
    crash the interpreter (Python's free-threading HOWTO). If threads of the parent process are
    listed, the call itself may crash.
    """
    return sys._current_frames() if _one_at_a_time() and not has_threads_of_parent() else None


def outside(packages: frozenset[str]) -> FrameType:
    """The nearest frame above the caller's that belongs to none of these top-level *packages*: the
    code that took a connection.

    Takes 0.1 µs per frame.
    """
    frame = sys._getframe(2)
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] in packages
    ):
        frame = frame.f_back
    return frame


#: Other kinds of objects that stand for an entry, with a function that returns it: a framework's
#: own record of a connection, for example.
HANDLES: dict[type, Callable[[Any], Entry | None]] = {Ticket: lambda ticket: ticket.entry}


def referred_to(frames: Iterable[FrameType], wanted: set[int]) -> set[int]:
    """Which of the pool entries with the ids in *wanted* are in a variable of one of the stacks
    that end in *frames*.

    A flow that waits for one of its steps is searched as well: it is a variable of the function
    that runs it.
    """
    found: set[int] = set()
    seen: set[int] = set()  # flows
    for top in frames:
        frame: FrameType | None = top
        while frame is not None:
            _look_into(frame, wanted, found, seen)
            frame = frame.f_back
    return found


def _look_into(frame: FrameType, wanted: set[int], found: set[int], seen: set[int]) -> None:
    for value in list(frame.f_locals.values()):
        for each in value if type(value) in (list, tuple) and len(value) < 100 else (value,):
            if isinstance(each, GeneratorType):
                _look_into_flow(each, wanted, found, seen)
            elif isinstance(each, Entry):
                found.update({id(each)} & wanted)
            elif (entry_of := HANDLES.get(type(each))) is not None:
                found.update({id(entry_of(each))} & wanted)


def _look_into_flow(flow: Any, wanted: set[int], found: set[int], seen: set[int]) -> None:
    while isinstance(flow, GeneratorType):
        if id(flow) in seen or flow.gi_running or flow.gi_frame is None:
            return  # a running one is on its thread's stack
        seen.add(id(flow))
        _look_into(flow.gi_frame, wanted, found, seen)
        flow = flow.gi_yieldfrom


@lru_cache(maxsize=256)
def enters_block(code: CodeType, lasti: int) -> bool:
    """Whether instruction *lasti* of *code* enters a ``with`` block that ends no later than its
    call of *code*.

    False for a generator or coroutine: its frame may be suspended inside the block.
    """
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    before = ""
    for instruction in dis.get_instructions(code):
        if instruction.offset == lasti:  # from Python 3.14 on it is a call of LOAD_SPECIAL's result
            return instruction.opname == "BEFORE_WITH" or before == "LOAD_SPECIAL"
        before = instruction.opname
    return False


def suspended() -> list[FrameType]:
    """The frame of each suspended greenlet.

    The search takes tens of milliseconds in a large process.
    """
    module: Any = sys.modules.get("greenlet")
    if module is None:
        return []
    return [
        each.gr_frame
        for each in gc.get_objects()
        if issubclass(type(each), module.greenlet) and each.gr_frame is not None
    ]


def is_inside(tops: Iterable[FrameType], code: CodeType, lasti: int | None) -> bool:
    """Whether a call of *code* is in progress on one of these stacks, at instruction *lasti* if
    given.
    """
    for top in tops:
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code is code and lasti in (None, frame.f_lasti):
                return True
            frame = frame.f_back
    return False


def describe(ident: int) -> str:
    """The thread or greenlet with *ident* (``get_ident()`` of the current ``threading``), and its
    stack if it can be read.
    """
    frames = thread_frames()
    name = next((thread.name for thread in threading.enumerate() if thread.ident == ident), None)
    frame, who = (frames or {}).get(ident), f"thread {ident if name is None else name}"
    if frames is None and name is not None:
        return f"{who} (its stack cannot be read in this process)"
    if frame is None:
        frame, who = _greenlet(ident, who)
    if frame is None:
        return f"{who}, which has ended"
    stack: list[FrameType] = []
    while frame is not None and len(stack) < DEPTH:
        stack.append(frame)
        frame = frame.f_back
    return f"{who}, which is now at {in_a_line(stack)}"


def in_a_line(frames: Iterable[FrameType]) -> str:
    """The positions of *frames*, the innermost first."""
    return " < ".join(
        f"{each.f_code.co_filename}:{each.f_lineno} in {each.f_code.co_qualname}" for each in frames
    )


def _greenlet(ident: int, otherwise: str) -> tuple[FrameType | None, str]:
    """Find a greenlet by its id, which is its thread's ident under gevent.

    The search takes milliseconds, so it is only made for a leak report.
    """
    module: Any = sys.modules.get("greenlet")
    if module is not None:
        for found in gc.get_objects():
            if id(found) == ident and isinstance(found, module.greenlet):
                frame = found.gr_frame or (
                    sys._getframe() if found is module.getcurrent() else None
                )
                return frame, f"greenlet {getattr(found, 'name', ident)}"
    return None, otherwise
