"""Decides whether a line may be logged now, and counts the lines that are suppressed.

Pure: the time is an argument, and nothing is logged here. The first line of a kind is logged
immediately. Lines that follow within a window are counted, and one line at its end gives their
number. As long as more follow, each window is twice as long as the one before.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

#: Seconds of the first window after a line, and of the longest one.
SHORTEST = 10.0
LONGEST = 600.0
#: The maximum number of kinds of lines with windows of their own. Further kinds share a window by
#: the first part of their key.
MOST = 500


@dataclass(slots=True)
class _Window:
    began: float
    lasts: float
    count: int = 0
    last: Any = None

    @property
    def ends(self) -> float:
        return self.began + self.lasts


@dataclass(frozen=True, slots=True)
class Rest:
    """The suppressed lines of one window: their number, the window's seconds, the last line."""

    count: int
    seconds: float
    last: Any


class Allowance:
    """The recent lines of one process. Callers must hold a lock."""

    __slots__ = ("_once", "_windows", "due")

    def __init__(self) -> None:
        self._windows: dict[Hashable, _Window] = {}
        self._once: set[Hashable] = set()
        self.due = math.inf  #: when :meth:`rest` returns something

    def once(self, key: Hashable) -> bool:
        """Return True on the first call for *key*. After :data:`MOST` keys: False."""
        if key in self._once or len(self._once) >= MOST:
            return False
        self._once.add(key)
        return True

    def may(self, key: tuple[Hashable, ...], line: Any, now: float) -> bool:
        """Return whether *line*, of the kind *key*, may be logged at *now*. Otherwise it is counted
        and kept as the last line of its kind.
        """
        window = self._windows.get(key)
        if window is None and len(self._windows) >= MOST and not self._made_room(now):
            key = key[:1]
            window = self._windows.get(key)
        if window is None:
            self._windows[key] = _Window(now, SHORTEST)
            return True
        if now < window.ends or window.count:
            window.count, window.last = window.count + 1, line
            self.due = min(self.due, window.ends)
            return False
        quiet = now - window.ends
        lasts = min(LONGEST, 2 * window.lasts) if quiet < LONGEST else SHORTEST
        self._windows[key] = _Window(now, lasts)
        return True

    def rest(self, now: float) -> list[Rest]:
        """Return the suppressed lines of the windows that are over at *now*."""
        if now < self.due:
            return []
        found = []
        for key, window in list(self._windows.items()):
            if window.count and now >= window.ends:
                found.append(Rest(window.count, now - window.began, window.last))
                self._windows[key] = _Window(now, min(LONGEST, 2 * window.lasts))
        self.due = min(
            (each.ends for each in self._windows.values() if each.count), default=math.inf
        )
        return found

    def forget_windows(self) -> None:
        """Forget suppressed lines in a forked child: the parent logs them."""
        self._windows.clear()
        self.due = math.inf

    def _made_room(self, now: float) -> bool:
        """Forget kinds that have been quiet for long. Return whether there is room now."""
        for key, window in list(self._windows.items()):
            if not window.count and now - window.ends >= LONGEST:
                del self._windows[key]
        return len(self._windows) < MOST
