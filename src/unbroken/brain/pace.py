"""How soon is a server that cannot serve asked again, and how many connections does one process
open at a time, given how many others there are?

A process cannot see the others. A port that nobody listens on refuses a thousand processes as
quickly as one, so no latency tells them apart. The server counts its sessions while it is well, and
is asked for that number now and then (:class:`Crowd`). A process that holds one of a thousand
sessions takes a thousandth of the attempts that all may make together.
"""

from __future__ import annotations

import math
from random import Random

from unbroken.abc import FaultKind

#: Seconds between attempts (from, to) while callers wait and nothing listens: an attempt costs the
#: server nothing.
REFUSED_PACE = (0.010, 0.040)
#: The same when the server answers but is not ready, is full, or nothing answers: from … growing to
#: …
BUSY_PACE = (0.050, 0.250)
#: A server that begins to answer but is not ready yet is most often the fraction of a second from
#: it: its first answers of that kind are followed up sooner, once each, before the pace above
#: begins.
STARTING_PACE = (0.015, 0.025, 0.040)
#: Every pace is spread by this part: what thousands of processes lost at one moment they must not
#: ask for at one moment, again and again.
SPREAD = 0.25
#: How long such a server is asked at the quick end of that pace before it grows: most restarts take
#: less.
BUSY_PATIENCE = 2.0
#: Seconds between attempts at a cluster whose servers let us in and have the wrong role: each
#: attempt costs them a login.
ROLE_PACE = (0.250, 0.350)

#: Attempts a second that all processes make together where nothing listens: the answer to each is
#: one packet of the kernel's.
REFUSED_RATE = 4000.0
#: The same where something answers: to say that it is not ready costs PostgreSQL a process.
BUSY_RATE = 1000.0
#: … and the longest pauses that may follow from these.
LONGEST = 0.5
LONGEST_BUSY = 1.0
#: Where the server never said how many there are, a pause is this part of what the outage takes
#: longer than so many seconds …
AGE_PART, YOUNG = 0.01, 30.0
#: … and never longer than this.
LONGEST_UNKNOWN = 0.25
#: Connections that all processes open at a time where the server may be well. A process that has
#: been let in opens more.
TOGETHER = 200.0
#: More others than these are a crowd: what is slow is so because all of them stand in its line.
LARGE = 50.0
#: In a crowd a login should not take longer than this. A pool that has a connection leaves the line
#: to others then, for so many times as long …
CROWDED = 0.25
LEFT = 3.0
#: … spread by this (from, to). Where logins were not answered in time at all, the line must become
#: shorter: there each pauses for so long that about so many stand in it.
SPREAD_LEFT = (0.5, 1.5)
IN_LINE = 60.0
#: In a crowd a login that is not answered in time is followed by a pause of at most so many
#: seconds, twice as many each time. (Twice connect_timeout: half of all that tried may try then.)
FIRST_REST = 10.0
#: The longest that may become: so many attempts a second are always made by all together …
RESTED_RATE = 40.0
#: … and never longer than this.
LAST_REST = 60.0
#: How long it counts that the server, or its kernel, acknowledged an attempt.
ACKNOWLEDGED_FOR = 10.0
#: The server's count is asked for again after so many seconds (from, to), also after an outage:
#: before that there are few, and all want to be let in.
COUNT_AGAIN = (60.0, 120.0)
#: … on a connection that was used within so many seconds. What idles for longer may be about to
#: show an idle limit, and must be able to end where nobody uses it.
WARM = 0.25


class Crowd:
    """How many others use one server. The caller holds the lock of the server's record."""

    __slots__ = (
        "asked_own", "heard_at", "is_settling", "next_count", "number", "pools", "rests",
        "was_late",
    )  # fmt: skip

    def __init__(self) -> None:
        #: all sessions by those of this process, as the server said last; None: it did not
        self.number: float | None = None
        self.pools = 0  #: that share the server on this host, as far as that is known
        self.next_count = -math.inf  #: when the server is asked again …
        self.asked_own = 0  #: … and how many connections this process had when it was asked last
        self.is_settling = False  #: an outage has just ended
        self.heard_at = -math.inf  #: when the server last acknowledged an attempt and was silent
        self.rests = 0  #: how often in a row an attempt ended so …
        self.was_late = False  #: … and whether one has since the last quick login

    @property
    def size(self) -> float:
        """How many processes like this one there are, this one included; 1 where that is not
        known.
        """
        return max(1.0, self.number or 0.0, float(self.pools))

    @property
    def is_large(self) -> bool:
        """Whether there are so many that all of them together make a server slow."""
        return self.size > LARGE

    def is_due(self, now: float, own: int) -> bool:
        """Whether the server should be asked for its count, where this process has so many
        connections of its *own*: what the server said is old, or this process has grown much since.
        """
        return now >= self.next_count or (own >= 2 * self.asked_own and not self.is_settling)

    def asks(self, now: float, own: int, random: Random) -> None:
        """It is asked now; nobody else asks for a while."""
        self.next_count, self.asked_own = now + random.uniform(*COUNT_AGAIN), own
        self.is_settling = False

    def told(self, sessions: int | None, own: int) -> None:
        """The server has so many *sessions*, *own* of them of this process; None: it does not
        say.
        """
        if sessions is not None:
            self.number = max(1.0, sessions / max(1, own))

    def was_away(self, now: float, random: Random | None) -> None:
        """An outage has just ended: what was known before it is true again soon."""
        shortest, longest = COUNT_AGAIN
        self.next_count = now + (longest if random is None else random.uniform(shortest, longest))
        self.is_settling = True

    def at_once(self, most: int) -> int:
        """How many connections a process opens at a time, *most* at most, before it knows that
        the server is well.
        """
        return max(1, min(most, int(TOGETHER / self.size)))

    # -- a server that all want to be let in by ----------------------------------------------------

    def acknowledged(self, now: float) -> None:
        """Something acknowledged an attempt, and says nothing."""
        self.heard_at = now

    def is_in_line(self, now: float) -> bool:
        """Whether attempts that are silent most likely stand in the line of a server that is
        there: another beside them would make it slower for all.
        """
        return self.is_large and now - self.heard_at < ACKNOWLEDGED_FOR

    def rest(self, now: float, random: Random) -> float:
        """Seconds to leave the server alone after an attempt that it did not answer in time."""
        if not self.is_in_line(now):
            return 0.0
        longest = min(LAST_REST, max(FIRST_REST, self.size / RESTED_RATE))
        most = min(longest, FIRST_REST * 2.0 ** min(self.rests, 10))
        self.rests, self.was_late = self.rests + 1, True
        return random.uniform(0.0, most)

    def succeeded(self, took: float, random: Random | None = None) -> float:
        """A connection came about in *took* seconds: seconds until a pool that has some opens the
        next one.
        """
        self.rests, self.heard_at = 0, -math.inf
        if took <= CROWDED:
            self.was_late = False
        if not self.is_large or took <= CROWDED:
            return 0.0
        left = (took - CROWDED) * self.size / IN_LINE if self.was_late else LEFT * took
        return left * (1.0 if random is None else random.uniform(*SPREAD_LEFT))


class Pace:
    """When the next attempt follows one that failed."""

    __slots__ = ("busy", "busy_since", "crowd")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        #: failures in a row that were not refusals: the server, or something in its place, is there
        self.busy = 0
        self.busy_since = 0.0

    def reset(self) -> None:
        """An outage begins."""
        self.busy = 0

    def after(self, now: float, kind: FaultKind, random: Random, age: float) -> float:
        """Seconds until the next attempt after one that failed for the reason *kind*, *age* seconds
        after the outage began.
        """
        if kind is FaultKind.REFUSED:
            self.busy = 0
            alone = random.uniform(*REFUSED_PACE)
            if self.crowd.number is None and not self.crowd.pools:
                return max(alone, min(LONGEST_UNKNOWN, _spread(AGE_PART * (age - YOUNG), random)))
            return max(alone, self._part(REFUSED_RATE, LONGEST, random))
        pause = max(self._busy(now, kind, random), self._part(BUSY_RATE, LONGEST_BUSY, random))
        if kind is FaultKind.UNREACHABLE:
            return max(pause, self.crowd.rest(now, random))
        return pause

    def _part(self, rate: float, longest: float, random: Random) -> float:
        """This process's part of so many attempts a second."""
        return _spread(min(longest, self.crowd.size / rate), random)

    def _busy(self, now: float, kind: FaultKind, random: Random) -> float:
        if self.busy == 0:
            self.busy_since = now
        self.busy += 1
        if kind is FaultKind.WRONG_SERVER:
            return random.uniform(*ROLE_PACE)
        if kind is FaultKind.NOT_READY and self.busy <= len(STARTING_PACE):
            return STARTING_PACE[self.busy - 1] * random.uniform(1.0, 1.0 + SPREAD)
        shortest, longest = BUSY_PACE
        growth = max(1.0, (now - self.busy_since) / BUSY_PATIENCE)
        most = min(longest, shortest * max(growth, 1.0 + SPREAD))
        return random.uniform(max(shortest, most / (1.0 + SPREAD)), most)


def _spread(seconds: float, random: Random) -> float:
    """At most so many *seconds*, and a half of that at least."""
    return seconds * random.uniform(0.5, 1.0)
