"""A selector that waits no longer than its timeout.

On Linux ``selectors.EpollSelector`` rounds each timeout up to the next millisecond, because
``epoll_wait(2)`` counts in milliseconds. A delay of half a millisecond would take more than one.
"""

from __future__ import annotations

import select
import selectors

#: ``select(2)`` takes descriptors below FD_SETSIZE, which is 1024 in glibc and musl.
_MOST = 1024


class PreciseSelector(selectors.DefaultSelector):
    """The system's best selector, with timeouts in microseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for events, as the base class does. *timeout*: seconds; None: no limit; 0 or less:
        do not wait.
        """
        if timeout is not None and timeout > 0 and self.fileno() < _MOST:
            # the descriptor of the selector is readable once one of its own is ready
            select.select([self.fileno()], [], [], timeout)
            timeout = 0.0
        return super().select(timeout)
