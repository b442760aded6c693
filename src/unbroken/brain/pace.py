"""How soon a server that cannot serve is tried again, and how many connects one process makes in
parallel, given the number of other processes.

A process cannot see the others. A closed port refuses a thousand processes as quickly as one, so
latency does not reveal their number. While it is up, the server counts its sessions, and the pool
asks for that number now and then (:class:`Crowd`). A process that holds one of a thousand sessions
makes a thousandth of the attempts that all may make together.
"""

from __future__ import annotations

import math
from random import Random

from unbroken.abc import FaultKind

#: Seconds between attempts (from, to) while callers wait and the port refuses connections: an
#: attempt costs the server nothing.
REFUSED_PACE = (0.010, 0.040)
#: The same if the server answers but is full or not ready, or if nothing answers: growing from … to
#: ….
BUSY_PACE = (0.050, 0.250)
#: A server that answers but is not ready yet most often needs only a fraction of a second more. Its
#: first answers of that kind are followed by quicker attempts, once each, before the pace above
#: begins.
STARTING_PACE = (0.015, 0.025, 0.040)
#: Every pace is spread by this fraction: thousands of processes that lost the server together must
#: not retry together, again and again.
SPREAD = 0.25
#: Seconds for which such a server is tried at the quick end of that pace: most restarts take less.
BUSY_PATIENCE = 2.0
#: Seconds between attempts at a cluster whose servers accept the login but have the wrong role:
#: each attempt costs them a login.
ROLE_PACE = (0.250, 0.350)

#: Attempts per second of all processes together while the port refuses: each costs the kernel one
#: packet.
REFUSED_RATE = 4000.0
#: The same while something answers: PostgreSQL starts a process to report that it is not ready.
BUSY_RATE = 1000.0
#: … and the longest pauses, in seconds, that may follow from these.
LONGEST = 0.5
LONGEST_BUSY = 1.0
#: If the server never reported its sessions, a pause is this fraction of the outage's age beyond
#: this many seconds …
AGE_PART, YOUNG = 0.01, 30.0
#: … but never longer than this.
LONGEST_UNKNOWN = 0.25
#: Parallel connects of all processes together while the server may be up. A process that has logged
#: in makes more.
TOGETHER = 200.0
#: More other processes than this are a crowd: slow logins are then explained by their number.
LARGE = 50.0
#: In a crowd, a login should not take longer than CROWDED seconds. If it does, a pool that has a
#: connection opens no other for LEFT times the login's duration …
CROWDED = 0.25
LEFT = 3.0
#: … spread by this (from, to). If logins were not answered in time at all, the server's queue must
#: become shorter. Each pool then pauses for so long that about IN_LINE of them are in the queue.
SPREAD_LEFT = (0.5, 1.5)
IN_LINE = 60.0
#: In a crowd, a login that is not answered in time is followed by a pause of at most this many
#: seconds, doubled each time. (Twice connect_timeout: then half of all that tried may try again.)
FIRST_REST = 10.0
#: The longest of these pauses still allows this many attempts per second of all processes together
#: …
RESTED_RATE = 40.0
#: … and is never longer than this.
LAST_REST = 60.0
#: Seconds for which an acknowledgement by the server, or by its kernel, counts.
ACKNOWLEDGED_FOR = 10.0
#: Seconds between two requests for the session count (from, to), also after an outage. Before that
#: there are few sessions, and all clients want to log in.
COUNT_AGAIN = (60.0, 120.0)
#: … on a connection that was used within this many seconds. A connection that is idle for longer
#: may be about to show an idle limit, and must be able to end while no caller uses it.
WARM = 0.25


class Crowd:
    """The number of other processes that use one server. The caller holds the lock of the server's
    record.
    """

    __slots__ = (
        "asked_own", "heard_at", "is_settling", "next_count", "number", "pools", "rests",
        "was_late",
    )  # fmt: skip

    def __init__(self) -> None:
        #: All sessions divided by those of this process, by the server's last answer. None: it gave
        #: none.
        self.number: float | None = None
        self.pools = 0  #: number of pools on this host that share the server, if known
        self.next_count = -math.inf  #: when the server is asked again …
        self.asked_own = 0  #: … and the number of this process's connections at the last request
        self.is_settling = False  #: an outage has just ended
        self.heard_at = -math.inf  #: when an attempt was last acknowledged but not answered
        self.rests = 0  #: how many attempts in a row ended in this way …
        self.was_late = False  #: … and whether one has since the last quick login

    @property
    def size(self) -> float:
        """Estimated number of processes like this one, including this one; 1 if unknown."""
        return max(1.0, self.number or 0.0, float(self.pools))

    @property
    def is_large(self) -> bool:
        """Whether there are so many processes that together they make a server slow."""
        return self.size > LARGE

    def is_due(self, now: float, own: int) -> bool:
        """Whether to ask the server for its session count, with *own* connections of this process.
        True if the last answer is old, or if this process has grown much since.
        """
        return now >= self.next_count or (own >= 2 * self.asked_own and not self.is_settling)

    def asks(self, now: float, own: int, random: Random) -> None:
        """The server is asked now; no other connection asks for a while."""
        self.next_count, self.asked_own = now + random.uniform(*COUNT_AGAIN), own
        self.is_settling = False

    def told(self, sessions: int | None, own: int) -> None:
        """The server has this many *sessions*, *own* of them of this process. None: it reports
        none.
        """
        if sessions is not None:
            self.number = max(1.0, sessions / max(1, own))

    def was_away(self, now: float, random: Random | None) -> None:
        """An outage has just ended: the numbers from before it are correct again soon."""
        shortest, longest = COUNT_AGAIN
        self.next_count = now + (longest if random is None else random.uniform(shortest, longest))
        self.is_settling = True

    def at_once(self, most: int) -> int:
        """Maximum number of parallel connects of a process, at most *most*, before it knows that
        the server is up.
        """
        return max(1, min(most, int(TOGETHER / self.size)))

    # -- a server with more logins than it can answer quickly --------------------------------------

    def acknowledged(self, now: float) -> None:
        """An attempt was acknowledged, but not answered."""
        self.heard_at = now

    def is_in_line(self, now: float) -> bool:
        """Whether silent attempts most likely wait in the queue of a running server: another one
        beside them would make it slower for all.
        """
        return self.is_large and now - self.heard_at < ACKNOWLEDGED_FOR

    def rest(self, now: float, random: Random) -> float:
        """Seconds to pause after an attempt that the server did not answer in time."""
        if not self.is_in_line(now):
            return 0.0
        longest = min(LAST_REST, max(FIRST_REST, self.size / RESTED_RATE))
        most = min(longest, FIRST_REST * 2.0 ** min(self.rests, 10))
        self.rests, self.was_late = self.rests + 1, True
        return random.uniform(0.0, most)

    def succeeded(self, took: float, random: Random | None = None) -> float:
        """A connection was opened in *took* seconds. Return the seconds until a pool that has
        connections opens the next one.
        """
        self.rests, self.heard_at = 0, -math.inf
        if took <= CROWDED:
            self.was_late = False
        if not self.is_large or took <= CROWDED:
            return 0.0
        left = (took - CROWDED) * self.size / IN_LINE if self.was_late else LEFT * took
        return left * (1.0 if random is None else random.uniform(*SPREAD_LEFT))


class Pace:
    """When the next attempt follows a failed one."""

    __slots__ = ("busy", "busy_since", "crowd")

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        #: Consecutive failures that were not refusals: the server, or something in its place, is
        #: there.
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
        """The pause that gives this process its part of *rate* attempts per second."""
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
    """A random time of at most *seconds*, and at least half of it."""
    return seconds * random.uniform(0.5, 1.0)
