"""Blocks of ``atomic`` that an exception interrupted: a signal handler or a worker's time limit may
raise at any instruction.

Django's ``Atomic`` keeps two stacks on its connection, and decides at its end by them whether to
commit. If a block's exit was interrupted, the stacks still contain a block that no code runs in. Or
its work should have been rolled back and was not. Anything committed afterwards would be lost, or
would commit that work too. So the stacks here watch their own ``pop``.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

from django.db.transaction import Atomic, TransactionManagementError

from unbroken.integrations._ended import is_left
from unbroken.messages.integrations import BLOCK_BROKEN_OFF

_EXIT = Atomic.__exit__.__code__
#: its name for the block, and for the class of the exception that ends it
_BLOCK, _ERROR = _EXIT.co_varnames[:2]


class Savepoints(list[Any]):
    """Django's ``savepoint_ids``: the ids of the savepoints of all open blocks but the
    outermost.
    """

    def __init__(self, wrapper: Any, ids: Any = ()) -> None:
        super().__init__(ids)
        self._wrapper = weakref.ref(wrapper)

    def pop(self, *at: Any) -> Any:
        """Remove the last one, whose block ends. From here until the result is known, its work must
        be undone if it failed.
        """
        frame, wrapper = sys._getframe(1), self._wrapper()
        if (
            frame.f_code is _EXIT
            and wrapper is not None
            and (frame.f_locals[_ERROR] is not None or wrapper.needs_rollback)
        ):
            wrapper.unbroken_due(len(self) - 1)
        return super().pop(*at)


class Blocks(list[Any]):
    """Django's ``atomic_blocks``: all open blocks, the outermost first."""

    def __init__(self, wrapper: Any, blocks: Any = ()) -> None:
        super().__init__(blocks)
        self._wrapper = weakref.ref(wrapper)

    def append(self, block: Any) -> None:
        """Add a block that begins.

        Raises TransactionManagementError within one that was interrupted: it would never be
        committed.
        """
        wrapper = self._wrapper()
        if self and wrapper is not None and is_left(self):
            wrapper.unbroken_abandon_blocks()
            raise TransactionManagementError(
                BLOCK_BROKEN_OFF(
                    "the atomic block before this one was interrupted by a signal handler or a time"
                    " limit, and is rolled back; run its work again"
                )
            )
        super().append(block)

    def pop(self, *at: Any) -> Any:
        """Remove a block that ends.

        Blocks inside it that were interrupted end with it, and their writes must be undone.
        """
        frame, wrapper = sys._getframe(1), self._wrapper()
        if self and frame.f_code is _EXIT and wrapper is not None:
            self._end_inner(frame.f_locals[_BLOCK], wrapper)
        return super().pop(*at)

    def _end_inner(self, block: Any, wrapper: Any) -> None:
        while len(self) > 1 and self[-1] is not block:
            super().pop()
        # the outermost has a savepoint only if autocommit was off before
        own = len(self) - bool(wrapper.commit_on_exit)
        if len(wrapper.savepoint_ids) > own:
            wrapper.unbroken_due(own)
            del wrapper.savepoint_ids[own:]


__all__ = ["Blocks", "Savepoints", "is_left"]
