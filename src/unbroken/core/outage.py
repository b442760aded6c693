"""Is the server away? Who may try to reach it, when next, and when should callers be told at once?

One object per server and process, shared by all pools there. During an outage one *prober* tries; everybody else waits
for its result. Its pace depends on what an attempt costs the server and on whether somebody waits for the answer.
"""

from __future__ import annotations

import math
from random import Random

from unbroken.abc import Fault, FaultKind

#: Seconds between attempts (from, to) while callers wait and nothing listens: an attempt costs the server nothing.
REFUSED_PACE = (0.010, 0.040)
#: The same when the server answers but is not ready, is full, or nothing answers: from … growing to …
BUSY_PACE = (0.050, 0.250)
#: A server that begins to answer but is not ready yet is most often the fraction of a second from it: its first answers
#: of that kind are followed up sooner, once each, before the pace above begins.
STARTING_PACE = (0.015, 0.025, 0.040)
#: Every pace is spread by this part: what thousands of processes lost at one moment they must not ask for at one moment, again and again.
SPREAD = 0.25
#: How long such a server is asked at the quick end of that pace before it grows: most restarts take less.
BUSY_PATIENCE = 2.0
#: Seconds between attempts when nobody waits; an arriving caller tries at once.
LONELY_PACE = 1.0
#: A failure older than this says nothing about now: a caller may not be turned away on its word.
FRESH = 10.0
#: What an attempt takes when nobody listens, or somebody does: a caller can wait for that.
ONE_TRY = 0.04


class Outage:
    """What is known about one server's absence. The caller holds the lock of the server's record."""

    __slots__ = (
        "busy",
        "busy_since",
        "called",
        "failures",
        "fault",
        "last_failure",
        "last_success",
        "next_lonely_try",
        "next_try",
        "parallel",
        "prober",
        "since",
    )

    #: How many connections one pool opens at a time when all is well.
    PARALLEL = 4

    def __init__(self) -> None:
        self.since: float | None = None
        self.fault: Fault | None = None
        self.last_failure = 0.0
        self.last_success = -math.inf
        self.failures = 0
        self.next_try = 0.0  #: while callers wait …
        self.next_lonely_try = 0.0  #: … and while nobody does, whoever the prober is by then
        self.busy = 0  #: failures in a row that were not refusals: the server, or something in its place, is there
        self.busy_since = 0.0
        self.prober: object | None = None
        self.called = -math.inf  #: when a caller of any pool last wanted the server, be it that he was turned away
        self.parallel = self.PARALLEL

    @property
    def active(self) -> bool:
        """Whether the last attempt to connect failed for a reason that waiting may cure."""
        return self.since is not None

    def age(self, now: float) -> float:
        """How long the server has been away, in seconds; 0 when it is not."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def ask(self, who: object, now: float, waiting: int) -> float | None:
        """May *who* try to connect? 0: now; more: in so many seconds; None: no, somebody else is the prober."""
        if self.since is None:
            return 0.0
        if self.prober is None:
            self.prober = who
            self.last_failure = -math.inf  # nobody was looking: what was known is old
        if self.prober is not who:
            return None
        wanted = waiting or now - self.called < LONELY_PACE
        return max(0.0, (self.next_try if wanted else self.next_lonely_try) - now)

    def failed(self, who: object, started: float, now: float, fault: Fault, random: Random) -> bool:
        """An attempt by *who*, begun at *started*, failed at *now*. True: this is the beginning of an outage.

        The outage counts from the beginning of the attempt: a frozen server is noticed only when its time is up.
        """
        began = self.since is None
        if began and started < self.last_success:
            return False  # it hung until its time was up; others, begun later, have been answered since
        if began:
            self.since, self.failures, self.busy = started, 0, 0
            self.prober = who
        self.fault, self.last_failure = fault, now
        self.failures += 1
        self.parallel = 1
        self.next_try = now + self._pace(now, fault.kind, random)
        self.next_lonely_try = now + LONELY_PACE  # never the sooner of the two
        return began

    def _pace(self, now: float, kind: FaultKind, random: Random) -> float:
        if kind is FaultKind.REFUSED:
            self.busy = 0
            return random.uniform(*REFUSED_PACE)
        if self.busy == 0:
            self.busy_since = now
        self.busy += 1
        if kind is FaultKind.NOT_READY and self.busy <= len(STARTING_PACE):
            return STARTING_PACE[self.busy - 1] * random.uniform(1.0, 1.0 + SPREAD)
        shortest, longest = BUSY_PACE
        growth = max(1.0, (now - self.busy_since) / BUSY_PATIENCE)
        most = min(longest, shortest * max(growth, 1.0 + SPREAD))
        return random.uniform(max(shortest, most / (1.0 + SPREAD)), most)

    def succeeded(self, now: float) -> float | None:
        """An attempt succeeded. The length of the outage that this ends, in seconds, or None if there was none.

        After an outage the number of connections opened at a time starts at one and grows with each success: a
        thousand processes that all find the server back at once must not knock it over.
        """
        ended = None if self.since is None else now - self.since
        self.last_success = now
        self.since = self.fault = self.prober = None
        self.parallel = 1 if ended is not None else min(self.PARALLEL, self.parallel + 1)
        return ended

    def resign(self, who: object) -> bool:
        """*who* will not try any more; the next who asks becomes the prober. False: it was not the prober."""
        if self.prober is not who:
            return False
        self.prober = None
        return self.since is not None

    def turns_away(self, now: float, patience: float, came: float = -math.inf) -> bool:
        """Whether a caller should be told at once: away for longer than *patience*, and somebody has just made sure of it.

        Who came (at *came*) after a lull is given the time of the attempt that he has called for: the server may be back.
        """
        if self.since is None or self.prober is None or now - self.since < patience or now - self.last_failure >= FRESH:
            return False
        return self.last_failure >= came - BUSY_PACE[1] or now - came >= ONE_TRY
