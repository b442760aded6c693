"""The idle limit of a server (or of a NAT or balancer before it): reported by the server, or
learned.

Learning uses facts, not guesses. An unexplained end of an idle connection counts only if nothing
else explains it. That means: no other connection ended at that moment in another way, and no
connect failed before the next one succeeded. Also, the server, asked for its uptime on that next
connection, was up for the whole life of the lost one.

Three such ends make a limit. They must come after about the same idle time, at different moments,
from connections of different ages. No connection may have been alive for a longer idle time since.

A connection that outlives a learned limit cancels it. The limit is also dropped after a while,
because no connection can disprove it any more. One more such end then restores it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Two idle times are "about the same" if they differ by less than this fraction, or by less than
#: ROUGHLY seconds.
AGREEMENT = 0.1
ROUGHLY = 0.1
#: Connections that end within this many seconds count as one event.
SAME_MOMENT = 0.5
#: Shorter idle times, in seconds, are ignored: a kill just after use looks the same.
SHORTEST = 0.5
#: Number of unexplained ends that make a limit.
ENOUGH = 3
#: Seconds for which a learned limit is trusted.
KEPT = 600.0
#: If the uptime exceeds the age of a connection by less than this many seconds, the server may have
#: restarted.
MARGIN = 1.0
_REMEMBERED = 16


@dataclass(slots=True)
class Death:
    """Connections that ended without a message at one moment, each after *idle* seconds."""

    when: float
    idle: float
    born: float  #: when the oldest of them was opened
    place: object = None  #: their host, if the cluster has several
    is_spoiled: bool = False  #: another connection ended then too: a restart
    until: float = 0.0  #: when the last of them ended


class IdleLimit:
    """The state of one server's idle limit.

    ``asked`` is true once the server has been asked for its own limit.
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
        self.learned_from = ""  #: the facts, as text
        self._learned_at = -math.inf
        self._former: float | None = None  # a limit that was trusted until it expired
        self._pending: list[Death] = []  # not checked with the server yet
        self._facts: list[Death] = []  # not explained by anything else; newest last
        self._broke_at = -math.inf

    @property
    def limit(self) -> float:
        """The lower of the reported and the learned limit, in seconds. ``math.inf`` if there is
        neither.
        """
        return min(self.told or math.inf, self.learned or math.inf)

    def tell(self, limit: float | None) -> None:
        """Set the server's own limit. None: it has no limit, or must not be asked."""
        self.asked, self.told = True, limit

    def explains(self, idle: float) -> bool:
        """Whether this limit most likely explains an end without a message after *idle* seconds."""
        return idle >= self.limit * (1 - AGREEMENT / 2)

    # -- deaths ------------------------------------------------------------------------------------

    def died(self, now: float, idle: float, born: float, place: object = None) -> None:
        """The other side ended an idle connection without a message, after *idle* seconds. The
        connection was open since *born*. *place*: its host.
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
        """A connection ended while in use, or with a message about something other than an idle
        limit. Connections that end at this moment do not end because they are idle.
        """
        self._broke_at = now
        if self._pending and now - self._pending[-1].until < SAME_MOMENT:
            self._pending[-1].is_spoiled = True

    @property
    def wants_uptime(self) -> bool:
        """Whether the next connection must ask the server for its uptime."""
        return any(not death.is_spoiled for death in self._pending)

    def take_pending(self) -> list[Death]:
        """Return the ends that the caller now checks with the server. No other caller checks
        them.
        """
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
        """The server at *place*, asked because of *deaths*, reports *uptime* seconds (None: it
        reports none). *was_away*: connects failed before this one.

        Return whether a limit was learned.
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
            f"{len(agreeing)} {'connections' if len(agreeing) > 1 else 'connection'} lost without"
            f" a message after {idles} s of idleness, while the server was up"
        )
        return True

    # -- what contradicts --------------------------------------------------------------------------

    @property
    def is_watching(self) -> bool:
        """Whether :meth:`alive` has an effect now."""
        return bool(self.learned or self._former or self._facts or self._pending)

    def alive(self, now: float, idle: float) -> bool:
        """A connection is alive after *idle* seconds without use.

        Return True if that, or the passage of time, cancelled a learned limit.
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
