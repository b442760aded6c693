"""How long this server (or a NAT or balancer before it) lets a connection idle: told by the server,
or learned.

Learning takes facts, not guesses. A death without a word counts only where nothing else explains
it: no other connection ended at that moment otherwise than it, no connect failed before the next
one worked, and the server, asked for its uptime on that next connection, was up all the time that
the dead one was open. Three such deaths at about the same idle time, at different moments, of
connections of different ages, make a limit, unless a connection was seen alive for longer since.

A learned limit is taken back by a connection that outlives it. It is also dropped after a while,
for no connection can show any more that it does not hold; one death then brings it back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Two idle times that differ by less than this part (or by ROUGHLY seconds) are "about the same".
AGREEMENT = 0.1
ROUGHLY = 0.1
#: Ends of connections closer together than this, in seconds, count as one event.
SAME_MOMENT = 0.5
#: Shorter idle times than this teach nothing: a kill just after use looks the same.
SHORTEST = 0.5
#: So many deaths make a limit.
ENOUGH = 3
#: A learned limit is believed for so many seconds.
KEPT = 600.0
#: A server that is up for less than a second longer than a connection was open may have restarted.
MARGIN = 1.0
_REMEMBERED = 16


@dataclass(slots=True)
class Death:
    """Connections that ended without a word at one moment, after *idle* seconds each."""

    when: float
    idle: float
    born: float  #: when the oldest of them was opened
    place: object = None  #: the host that they led to, where the cluster has several
    is_spoiled: bool = False  #: something else ended at that moment too: a restart
    until: float = 0.0  #: when the last of them ended


class IdleLimit:
    """What is known of one server's idle limit.

    ``asked`` says whether the server's own word is in.
    """

    __slots__ = (
        "_broke_at",
        "_facts",
        "_former",
        "_learned_at",
        "_pending",
        "asked",
        "learned",
        "learned_from",
        "told",
    )

    def __init__(self) -> None:
        self.asked = False
        self.told: float | None = None
        self.learned: float | None = None
        self.learned_from = ""  #: the facts, for people
        self._learned_at = -math.inf
        self._former: float | None = None  # a limit that was believed for long enough
        self._pending: list[Death] = []  # which the server was not asked about yet
        self._facts: list[Death] = []  # which nothing else explains, newest last
        self._broke_at = -math.inf

    @property
    def limit(self) -> float:
        """The lower of what was told and what was learned, in seconds; ``math.inf`` when
        neither.
        """
        return min(self.told or math.inf, self.learned or math.inf)

    def tell(self, limit: float | None) -> None:
        """The server's own word; None: it has no limit, or may not be asked."""
        self.asked, self.told = True, limit

    def explains(self, idle: float) -> bool:
        """Whether a death without a word after *idle* seconds is most likely this limit's doing."""
        return idle >= self.limit * (1 - AGREEMENT / 2)

    # -- deaths ------------------------------------------------------------------------------------

    def died(self, now: float, idle: float, born: float, place: object = None) -> None:
        """An idle connection, open since *born*, was found ended by the other side without a word
        after *idle* seconds. *place*: its host.
        """
        last = self._pending[-1] if self._pending else None
        if last is not None and now - last.until < SAME_MOMENT:
            last.until = now
            last.born = min(last.born, born)
            if not _agree(last.idle, idle) or last.place != place:
                last.is_spoiled = True
            return
        spoiled = idle < SHORTEST or now - self._broke_at < SAME_MOMENT
        self._pending.append(Death(now, idle, born, place, spoiled, now))
        del self._pending[:-_REMEMBERED]

    def broke(self, now: float) -> None:
        """A connection ended that was in use, or with words that tell of no idle limit: what ends
        at this moment does not end because it is idle.
        """
        self._broke_at = now
        if self._pending and now - self._pending[-1].until < SAME_MOMENT:
            self._pending[-1].is_spoiled = True

    @property
    def wants_uptime(self) -> bool:
        """Whether the server is to be asked how long it is up, on the next connection."""
        return any(not death.is_spoiled for death in self._pending)

    def take_pending(self) -> list[Death]:
        """The deaths that the server is asked about now; nobody else asks about them."""
        pending, self._pending = self._pending, []
        return [death for death in pending if not death.is_spoiled]

    def heard(
        self,
        now: float,
        deaths: list[Death],
        uptime: float | None,
        *,
        was_away: bool,
        place: object = None,
    ) -> bool:
        """The server at *place*, asked after *deaths*, is up for *uptime* seconds (None: it does
        not say). *was_away*: connects failed before this one.

        True: a limit was learned.
        """
        if uptime is None or was_away:
            return False
        learned = False
        for death in deaths:
            if death.place == place and death.born >= now - uptime + MARGIN:
                self._facts = [*self._facts[-_REMEMBERED:], death]
                learned = self._learn(now, death) or learned
        return learned

    def _learn(self, now: float, death: Death) -> bool:
        agreeing = [each for each in self._facts if _agree(each.idle, death.idle)]
        apart = {each.born: each for each in agreeing}.values()
        enough = len(apart) >= ENOUGH or (
            self._former is not None and _agree(self._former, death.idle)
        )
        limit = min(each.idle for each in agreeing)
        if not enough:
            return False
        if self.learned is not None and limit >= self.learned:
            return False
        self.learned, self._learned_at, self._former = limit, now, None
        idles = ", ".join(f"{each.idle:.2f}" for each in agreeing[-5:])
        self.learned_from = (
            f"{len(agreeing)} {'deaths' if len(agreeing) > 1 else 'death'} without a word after"
            f" {idles} s of idleness, the server being up all the while"
        )
        return True

    # -- what contradicts --------------------------------------------------------------------------

    @property
    def is_watching(self) -> bool:
        """Whether :meth:`alive` matters now."""
        return bool(self.learned or self._former or self._facts or self._pending)

    def alive(self, now: float, idle: float) -> bool:
        """A connection is alive after *idle* seconds without use.

        True: that, or the time that has passed, took a learned limit back.
        """
        self._facts = [each for each in self._facts if idle <= _above(each.idle)]
        for death in self._pending:
            death.is_spoiled = death.is_spoiled or idle > _above(death.idle)
        if self._former is not None and idle > _above(self._former):
            self._former = None
        if self.learned is None:
            return False
        if idle > _above(self.learned):
            self._forget()
            return True
        if now - self._learned_at < KEPT:
            return False
        former = self.learned
        self._forget()
        self._former = former
        return True

    def _forget(self) -> None:
        self.learned, self.learned_from, self._former = None, "", None
        self._facts.clear()


def _agree(one: float, other: float) -> bool:
    return abs(one - other) <= max(AGREEMENT * max(one, other), ROUGHLY)


def _above(limit: float) -> float:
    return limit + max(AGREEMENT * limit, 2 * ROUGHLY)
