"""Follow the addresses of a host name, and decide whether it has moved away from one.

There is one object per name. It is fed with the answers of lookups some seconds apart. A name that
moved stops giving an address. A name that rotates also stops giving one, but gives it again later,
so connections to that address are kept. This module does no I/O and does not know the clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

#: Number of consecutive lookups without an address after which the name has left it.
LOOKS = 2
#: A name that gave an address again this often within RECENT seconds rotates. Then no address
#: counts as left.
RETURNS = 2
RECENT = 1800.0
#: Maximum number of stored addresses; a name with more of them rotates anyway.
MOST = 1000


class Name:
    """The results of one name's lookups."""

    __slots__ = ("absent", "answers", "returns", "seen_at")

    def __init__(self) -> None:
        self.answers: frozenset[str] = frozenset()  #: of the last lookup
        #: For each address that it gave before: the number of lookups without it since then.
        self.absent: dict[str, int] = {}
        self.seen_at: dict[str, float] = {}  #: when it last gave each address
        #: When addresses came back, the last ones.
        self.returns: deque[float] = deque(maxlen=RETURNS)

    def look(self, now: float, answers: Iterable[str]) -> None:
        """A lookup gave *answers*. Leave out a lookup that failed or gave nothing: it proves
        nothing.
        """
        found = frozenset(answers)
        for address in found - self.answers:
            if now - self.seen_at.get(address, -math.inf) < RECENT:
                self.returns.append(now)
        for address in found:
            self.absent.pop(address, None)
            self.seen_at[address] = now
        for address in self.seen_at.keys() - found:
            self.absent[address] = self.absent.get(address, 0) + 1
        self.answers = found
        for address in sorted(self.seen_at, key=self.seen_at.__getitem__)[:-MOST]:
            del self.seen_at[address]
            self.absent.pop(address, None)

    def rotates(self, now: float) -> bool:
        """Whether the name gives different addresses in turn."""
        return len(self.returns) == RETURNS and now - self.returns[0] < RECENT

    def has_left(self, address: str, now: float) -> bool:
        """Whether the name led to *address* before, and does not any more. False for an address
        that it never gave.
        """
        return self.absent.get(address, 0) >= LOOKS and not self.rotates(now)
