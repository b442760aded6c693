"""Where does a name lead, and has it left an address for good?

One object per name, fed with the answers of lookups some seconds apart. A name that moved stops
giving an address. A name that rotates stops giving one too, and gives it again later: connections
to such an address are left alone. Nothing here does I/O or knows the clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

#: So many lookups in a row without an address mean that the name has left it.
LOOKS = 2
#: A name that gave an address again so often within RECENT seconds rotates: nothing is left then.
RETURNS = 2
RECENT = 1800.0
#: Addresses that are remembered; a name that has more rotates anyway.
MOST = 1000


class Name:
    """What the lookups of one name have given."""

    __slots__ = ("absent", "answers", "returns", "seen_at")

    def __init__(self) -> None:
        self.answers: frozenset[str] = frozenset()  #: of the last lookup
        #: addresses that it gave before: in how many lookups since then it did not
        self.absent: dict[str, int] = {}
        self.seen_at: dict[str, float] = {}  #: when it gave each address last
        #: when addresses came back, the last ones
        self.returns: deque[float] = deque(maxlen=RETURNS)

    def look(self, now: float, answers: Iterable[str]) -> None:
        """A lookup gave *answers*. One that failed, or gave nothing, says nothing: leave it out."""
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
        """Whether it gives different addresses in turn."""
        return len(self.returns) == RETURNS and now - self.returns[0] < RECENT

    def has_left(self, address: str, now: float) -> bool:
        """Whether it led to *address*, and does so no more. An address that it never gave is not
        the name's affair.
        """
        return self.absent.get(address, 0) >= LOOKS and not self.rotates(now)
