"""When to retry a refused login or an unavailable secret, and when to fail callers.

This is for pools that ask for their password (or user) at each attempt to connect: the next answer
may differ. Each pool has its own record, because another pool of the same server may log in
successfully. This module does no I/O and does not know the clock.

Servers lock accounts after many refusals. So a refused login is retried once without delay. Further
retries follow at a growing pace, and only while callers wait.
"""

from __future__ import annotations

import math
from random import Random

from unbroken.abc import Fault, FaultKind
from unbroken.brain.outage import SILENCES, SILENT

#: Seconds between two attempts: the first pause, the growth factor, and the longest pause while the
#: trouble is recent.
FIRST_PAUSE = 0.25
GROWTH = 1.6
LONGEST_PAUSE = 1.0
#: The longest pause of all. Until then a pause is this fraction of the trouble's age.
LAST_PAUSE = 10.0
SHARE = 0.2
#: The pause if this user has too many connections: one may be closed at any moment.
BUSY_PAUSE = 0.1
#: Each pause is spread by this fraction: many processes lose their password together.
SPREAD = 0.2


class Refusals:
    """The state of one pool's refused logins. The caller holds the pool's lock."""

    __slots__ = (
        "error", "fault", "is_apart", "last_failure", "next_try", "seen", "since", "tries",
    )  # fmt: skip

    def __init__(self) -> None:
        self.since: float | None = None
        self.fault: Fault | None = None
        self.error: BaseException | None = None  #: the exception of the last attempt
        self.is_apart = False  #: others can log in, and this pool never could
        self.tries = 0
        self.last_failure = -math.inf
        self.seen = -math.inf  #: the time for which the last failure is proof
        self.next_try = -math.inf

    @property
    def active(self) -> bool:
        """Whether the last attempt failed at its login, or because it had no secret."""
        return self.since is not None

    def age(self, now: float) -> float:
        """Seconds for which no login has succeeded; 0 if all is well."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def failed(
        self, started: float, now: float, fault: Fault, error: BaseException, random: Random
    ) -> bool:
        """An attempt that began at *started* was refused, or had no secret. Return whether it is
        the first one.

        Attempts that began before the last failure add nothing new: they do not change the pace.
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
        # A refusal may concern a secret that has just been replaced: the next answer may differ.
        if fault.kind in (FaultKind.TOO_MANY, FaultKind.LOST, FaultKind.UNREACHABLE):
            return BUSY_PAUSE
        paced = self.tries - 1 if fault.kind is FaultKind.REJECTED else self.tries
        if paced == 0:
            return 0.0
        longest = min(LAST_PAUSE, max(LONGEST_PAUSE, SHARE * self.age(now)))
        return min(longest, FIRST_PAUSE * GROWTH ** min(paced - 1, 20))

    def delay(self, now: float) -> float:
        """Seconds until the next attempt may begin."""
        return max(0.0, self.next_try - now) if self.active else 0.0

    def turns_away(self, now: float, patience: float, came: float) -> bool:
        """Whether to turn away a caller that came at *came*: no login has succeeded for longer than
        *patience*, and that is known to be still so.
        """
        if self.since is None or now - self.since < patience:
            return False
        if self.seen < self.last_failure:  # an attempt that began long ago got no answer
            is_next_silent = now >= self.next_try + SILENT
            return self.seen >= came or (self.last_failure >= came and is_next_silent)
        return self.last_failure >= came or now < self.next_try

    def over(self) -> float | None:
        """An attempt ended in another way. Return when the trouble began. None if there was
        none.
        """
        since, self.since = self.since, None
        self.is_apart = False
        self.fault = self.error = None
        self.last_failure = self.seen = self.next_try = -math.inf
        return since
