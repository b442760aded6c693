"""A login that is refused, or a secret that cannot be had: when is it tried again, and when are
callers told?

For pools that ask for their password (or user) at each attempt to connect: the next answer may be
another one. Each pool has a record of its own, because another pool of the same server may log in
well. Nothing here does I/O or knows the clock.

Servers lock accounts after many refusals. So a refused login is tried again once, at once, and then
at a growing pace, and only while callers wait.
"""

from __future__ import annotations

import math
from random import Random

from unbroken.abc import Fault, FaultKind
from unbroken.brain.outage import SILENCES, SILENT

#: Seconds between two attempts: the first pause, by how much each is longer than the one before it,
#: and the longest one while the trouble is young.
FIRST_PAUSE = 0.25
GROWTH = 1.6
LONGEST_PAUSE = 1.0
#: The longest one of all. On the way there it is this part of the trouble's age.
LAST_PAUSE = 10.0
SHARE = 0.2
#: The pause where this user has too many connections: one may be closed at any moment.
BUSY_PAUSE = 0.1
#: Each pause is spread by this part: many processes lose their password at one moment.
SPREAD = 0.2


class Refusals:
    """What one pool knows of its refused logins. The caller holds the pool's lock."""

    __slots__ = (
        "error", "fault", "is_apart", "last_failure", "next_try", "seen", "since", "tries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.since: float | None = None
        self.fault: Fault | None = None
        self.error: BaseException | None = None  #: what the last attempt raised
        self.is_apart = False  #: others are let in, and this pool never was
        self.tries = 0
        self.last_failure = -math.inf
        self.seen = -math.inf  #: what the last failure shows was so then
        self.next_try = -math.inf

    @property
    def active(self) -> bool:
        """Whether the last attempt failed by the login, or for want of one."""
        return self.since is not None

    def age(self, now: float) -> float:
        """For how many seconds nobody has been let in; 0 where all is well."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def failed(
        self, started: float, now: float, fault: Fault, error: BaseException, random: Random
    ) -> bool:
        """An attempt that began at *started* was refused, or had no secret. True: it is the first
        one.

        Attempts that began beside one that has failed already bring nothing new: the pace is not
        changed by them.
        """
        is_first = self.since is None
        if is_first:
            self.since, self.tries = started, 0
        elif started < self.last_failure:
            return False
        self.tries += 1
        self.fault, self.error, self.last_failure = fault, error, now
        self.seen = min(now, started + SILENT) if fault.kind in SILENCES else now
        self.next_try = now + self._pause(now, fault) * random.uniform(1.0, 1.0 + SPREAD)
        return is_first

    def _pause(self, now: float, fault: Fault) -> float:
        # a refusal may be about a secret that has just been replaced: the next answer is another
        if fault.kind in (FaultKind.TOO_MANY, FaultKind.LOST, FaultKind.UNREACHABLE):
            return BUSY_PAUSE
        paced = self.tries - 1 if fault.kind is FaultKind.REJECTED else self.tries
        if paced == 0:
            return 0.0
        longest = min(LAST_PAUSE, max(LONGEST_PAUSE, SHARE * self.age(now)))
        return min(longest, FIRST_PAUSE * GROWTH ** min(paced - 1, 20))

    def delay(self, now: float) -> float:
        """In how many seconds the next attempt may begin."""
        return max(0.0, self.next_try - now) if self.active else 0.0

    def turns_away(self, now: float, patience: float, came: float) -> bool:
        """Whether a caller who came at *came* should be told at once: nobody has been let in for
        longer than *patience*, and that is known to be so still.
        """
        if self.since is None or now - self.since < patience:
            return False
        if self.seen < self.last_failure:  # nobody answered an attempt that began long ago
            is_next_silent = now >= self.next_try + SILENT
            return self.seen >= came or (self.last_failure >= came and is_next_silent)
        return self.last_failure >= came or now < self.next_try

    def over(self) -> float | None:
        """An attempt ended otherwise. When the trouble began, or None if there was none."""
        since, self.since = self.since, None
        self.is_apart = False
        self.fault = self.error = None
        self.last_failure = self.seen = self.next_try = -math.inf
        return since
