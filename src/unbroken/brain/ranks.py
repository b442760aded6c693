"""The order of waiting callers: their classes, and each caller's ticket.

Within a class, callers are served in the order of their arrival. A lower class is passed over a
limited number of times, so no caller starves.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from unbroken.brain.entry import Entry


class Rank(IntEnum):
    """A class of callers."""

    HEALTH = 0  #: first: health checks, administrators' pages
    NORMAL = 1
    BACKGROUND = 2  #: last: work that no user waits for


#: Maximum number of grants to other classes while a caller of this class waits: the next one is its
#: own.
PASSED = {Rank.HEALTH: 0, Rank.NORMAL: 4, Rank.BACKGROUND: 9}


class Ticket:
    """One caller's place in the line. A grant changes the state immediately, not when the caller
    wakes.
    """

    __slots__ = (
        "__weakref__", "called", "entry", "error", "is_first", "is_users", "rank", "signal",
        "since",
    )  # fmt: skip

    def __init__(
        self, since: float, signal: Any, rank: Rank = Rank.NORMAL, *, is_users: bool = False
    ) -> None:
        self.since = since
        self.signal = signal  #: the object that the body uses to wake it: a lock, a future
        self.rank = rank
        self.is_users = is_users  #: a user waits, so the line has a limit for it
        self.is_first = False  #: it was put before all others
        self.called = False  #: its caller was woken to look for an idle entry, and has not looked
        self.entry: Entry | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the caller can wake up: it has an entry or an error."""
        return self.entry is not None or self.error is not None


class Turns:
    """Decides which class is next in a line with several classes."""

    __slots__ = ("passed",)

    def __init__(self) -> None:
        self.passed = dict.fromkeys(Rank, 0)  #: grants to others while this class waited

    def first(self, line: Sequence[Ticket]) -> Ticket | None:
        """The next ticket in *line* without an entry or error. Changes nothing."""
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
        """*ticket* was granted an entry while the tickets in *line* waited."""
        waiting = {each.rank for each in line if not each.done}
        for rank in Rank:
            is_passed = rank in waiting and rank is not ticket.rank
            self.passed[rank] = self.passed[rank] + 1 if is_passed else 0


__all__ = ["PASSED", "Rank", "Ticket", "Turns"]
