"""Whether a ``with`` block that a framework keeps in a list has ended although it was not removed:
an exception interrupted its exit.
"""

from __future__ import annotations

import gc
import inspect
import sys
from types import FrameType, TracebackType
from typing import Any

#: The reference count of a block to which only the list of blocks refers: that reference, and the
#: one that ``getrefcount`` itself holds.
_ALONE = 2
#: Until Python 3.13, a frame whose variables were read holds each of them once more.
_TWICE = 2 if sys.version_info < (3, 13) else 1
#: Functions whose frames may be left without being at their end.
_CAN_GO_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_left(
    blocks: list[Any], owner: tuple[type, str] | None = None, *, thoroughly: bool = False
) -> bool:
    """Return whether no code runs inside the outermost of *blocks* any more, so that no ``with``
    can end it.

    The stack of the function that runs a block refers to it. A block has ended if only the list of
    blocks refers to it, and variables of functions that an exception has left.

    *thoroughly*: look for all such functions (milliseconds); otherwise only for those in the
    traceback of the exception that is being handled. *owner*: the class of the object that a
    ``with`` enters if that is not the block itself, and the attribute by which it refers to the
    block.
    """
    if sys.getrefcount(blocks[0]) <= _ALONE:
        return True
    frames = _passed(sys.exc_info()[1])
    if thoroughly:  # the collector sees nothing of a frame that runs
        frames.update(
            {id(each): each for each in gc.get_referrers(blocks[0]) if isinstance(each, FrameType)}
        )
    if not frames:
        return False
    here: FrameType | None = sys._getframe()
    while here is not None:
        frames.pop(id(here), None)
        here = here.f_back
    left = [frame for frame in frames.values() if not frame.f_code.co_flags & _CAN_GO_ON]
    harmless = _times(blocks[0], left)
    if owner is not None:
        kind, name = owner
        owners = {
            id(each): each
            for frame in left
            for each in frame.f_locals.values()
            if issubclass(type(each), kind)
        }
        for number in list(owners):
            if getattr(owners[number], name, None) is blocks[0] and sys.getrefcount(
                owners[number]
            ) <= _ALONE + _times(owners[number], left):
                harmless += 1
    return bool(harmless) and sys.getrefcount(blocks[0]) <= _ALONE + harmless


def _times(what: Any, frames: list[FrameType]) -> int:
    """Return how many references to *what* the variables of *frames* hold."""
    return sum(value is what for frame in frames for value in frame.f_locals.values()) * _TWICE


def _passed(exc: BaseException | None) -> dict[int, FrameType]:
    """Return the frames that *exc*, and the exceptions behind it, have passed through."""
    frames: dict[int, FrameType] = {}
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        trace: TracebackType | None = exc.__traceback__
        while trace is not None:
            frames[id(trace.tb_frame)] = trace.tb_frame
            trace = trace.tb_next
        exc = exc.__context__
    return frames
