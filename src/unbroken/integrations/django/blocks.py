"""Blocks of ``atomic`` that an exception broke off: a signal handler or a worker's time limit may raise at any instruction.

Django's ``Atomic`` keeps two stacks on its connection, and decides at its end by them whether to commit. Where a block's end
was broken off, the stacks tell of a block that nobody is in any more, or its work was to be rolled back and was not. What
is committed afterwards would be lost, or would commit that work too. So the stacks here watch who takes from them.
"""

from __future__ import annotations

import gc
import inspect
import sys
import weakref
from types import FrameType, TracebackType
from typing import Any

from django.db.transaction import Atomic, TransactionManagementError

_EXIT = Atomic.__exit__.__code__
_BLOCK, _ERROR = _EXIT.co_varnames[:2]  #: what it calls the block, and the class of the exception that ends it

#: The references to a block that only the stack of blocks has, and who counts them.
_ALONE = 2
#: Until Python 3.13, a frame that was asked for its variables has each of them once more.
_TWICE = 2 if sys.version_info < (3, 13) else 1
#: Functions whose frames may be left without being at their end.
_CAN_GO_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Savepoints(list[Any]):
    """Django's ``savepoint_ids``: the ids of the savepoints of all open blocks but the outermost."""

    def __init__(self, wrapper: Any, ids: Any = ()) -> None:
        super().__init__(ids)
        self._wrapper = weakref.ref(wrapper)

    def pop(self, *at: Any) -> Any:
        """The block of the last one ends: from here until it is told otherwise, its work is to be undone if it failed."""
        frame, wrapper = sys._getframe(1), self._wrapper()
        if frame.f_code is _EXIT and wrapper is not None and (frame.f_locals[_ERROR] is not None or wrapper.needs_rollback):
            wrapper.unbroken_due(len(self) - 1)
        return super().pop(*at)


class Blocks(list[Any]):
    """Django's ``atomic_blocks``: all open blocks, the outermost first."""

    def __init__(self, wrapper: Any, blocks: Any = ()) -> None:
        super().__init__(blocks)
        self._wrapper = weakref.ref(wrapper)

    def append(self, block: Any) -> None:
        """A block begins. Raises TransactionManagementError within one that was broken off: it would never be committed."""
        wrapper = self._wrapper()
        if self and wrapper is not None and is_left(self):
            wrapper.unbroken_abandon_blocks()
            raise TransactionManagementError(
                "the atomic block before this one was broken off (by a signal handler or a time limit) and is rolled back; begin again"
            )
        super().append(block)

    def pop(self, *at: Any) -> Any:
        """A block ends. Blocks inside it that were broken off end with it, and what they wrote is to be undone."""
        frame, wrapper = sys._getframe(1), self._wrapper()
        if self and frame.f_code is _EXIT and wrapper is not None:
            self._end_inner(frame.f_locals[_BLOCK], wrapper)
        return super().pop(*at)

    def _end_inner(self, block: Any, wrapper: Any) -> None:
        while len(self) > 1 and self[-1] is not block:
            super().pop()
        own = len(self) - bool(wrapper.commit_on_exit)  # the outermost has a savepoint only where autocommit was off before
        if len(wrapper.savepoint_ids) > own:
            wrapper.unbroken_due(own)
            del wrapper.savepoint_ids[own:]


def is_left(blocks: list[Any], *, thoroughly: bool = False) -> bool:
    """Whether nobody is in the outermost of *blocks* any more: no ``with`` can end it.

    A block that is being run is referred to by the stack of the function that runs it. One to which nothing refers but the
    list of blocks, and variables of functions that an exception has left, has ended. *thoroughly*: look for all such
    functions (milliseconds); else only for those in the traceback of the exception that is handled now.
    """
    if sys.getrefcount(blocks[0]) <= _ALONE:
        return True
    frames = _passed(sys.exc_info()[1])
    if thoroughly:  # of a frame that runs, the collector sees nothing
        frames.update({id(each): each for each in gc.get_referrers(blocks[0]) if isinstance(each, FrameType)})
    if not frames:
        return False
    here: FrameType | None = sys._getframe()
    while here is not None:
        frames.pop(id(here), None)
        here = here.f_back
    left = [frame for frame in frames.values() if not frame.f_code.co_flags & _CAN_GO_ON]
    harmless = sum(value is blocks[0] for frame in left for value in frame.f_locals.values())
    return bool(harmless) and sys.getrefcount(blocks[0]) <= _ALONE + harmless * _TWICE


def _passed(exc: BaseException | None) -> dict[int, FrameType]:
    """The frames that *exc*, and what it came from, has passed through."""
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


__all__ = ["Blocks", "Savepoints", "is_left"]
