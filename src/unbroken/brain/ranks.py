"""Who is served first of those who wait: classes of callers, and one place in the line.

Equals are served in the order in which they came. A lower class is passed over a bounded number of
times, so none starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from unbroken.brain.entry import Entry


class Rank(IntEnum):
    """A class of callers."""

    HEALTH = 0  #: first: health checks, the pages of administrators
    NORMAL = 1
    BACKGROUND = 2  #: last: work that no user waits for


#: So many grants go to others at most while a caller of this class waits: then one is theirs.
PASSED = {Rank.HEALTH: 0, Rank.NORMAL: 4, Rank.BACKGROUND: 9}


class Ticket:
    """One caller's place in the line. Granting changes state at once, not when the caller wakes."""

    __slots__ = ("__weakref__", "entry", "error", "is_users", "rank", "signal", "since")

    def __init__(
        self, since: float, signal: Any, rank: Rank = Rank.NORMAL, *, is_users: bool = False
    ) -> None:
        self.since = since
        self.signal = signal  #: what the body wakes: a lock, a future
        self.rank = rank
        self.is_users = is_users  #: the line has a limit for it: a user waits
        self.entry: Entry | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether there is something to wake up for."""
        return self.entry is not None or self.error is not None


class Turns:
    """Whose turn it is in a line in which several classes wait."""

    __slots__ = ("passed",)

    def __init__(self) -> None:
        self.passed = dict.fromkeys(Rank, 0)  #: grants to others while one of this class waited

    def first(self, line: Sequence[Ticket]) -> Ticket | None:
        """The ticket in *line* to be granted next, which has nothing yet. Changes nothing."""
        heads: dict[Rank, Ticket] = {}
        for ticket in line:
            if ticket.rank not in heads and not ticket.done:
                heads[ticket.rank] = ticket
                if len(heads) == len(Rank):
                    break
        if not heads:
            return None
        due = [rank for rank in heads if self.passed[rank] >= PASSED[rank] > 0]
        return heads[max(due) if due else min(heads)]

    def took(self, ticket: Ticket, line: Sequence[Ticket]) -> None:
        """*ticket* was granted something while those in *line* waited."""
        waiting = {each.rank for each in line if not each.done}
        for rank in Rank:
            is_passed = rank in waiting and rank is not ticket.rank
            self.passed[rank] = self.passed[rank] + 1 if is_passed else 0


__all__ = ["PASSED", "Rank", "Ticket", "Turns"]
