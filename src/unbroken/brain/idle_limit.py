"""How long this server (or a NAT or balancer before it) lets a connection idle: told by the server,
or learned.

Learning: deaths of idle connections are noted with how long each had been idle. Two deaths at about
the same idle time, at different moments, make a limit. Deaths at one moment do not: that was a
restart. A connection found alive beyond the learned limit takes it back.
"""

from __future__ import annotations

import math

#: Two idle times that differ by less than this part are "about the same".
AGREEMENT = 0.15
#: Deaths closer together than this, in seconds, count as one event.
SAME_MOMENT = 0.2
#: Shorter idle times than this teach nothing: a kill just after use looks the same.
SHORTEST = 0.5


class IdleLimit:
    """What is known of one server's idle limit.

    ``asked`` says whether the server's own word is in.
    """

    __slots__ = ("_deaths", "asked", "learned", "told")

    def __init__(self) -> None:
        self.asked = False
        self.told: float | None = None
        self.learned: float | None = None
        self._deaths: list[tuple[float, float]] = []  # (when, idle for), newest last

    @property
    def limit(self) -> float:
        """The lower of what was told and what was learned, in seconds; ``math.inf`` when
        neither.
        """
        return min(self.told or math.inf, self.learned or math.inf)

    def tell(self, limit: float | None) -> None:
        """The server's own word; None: it has no limit, or may not be asked."""
        self.asked, self.told = True, limit

    def died(self, now: float, idle: float) -> bool:
        """An idle connection was found ended by the other side after *idle* seconds.

        True: a limit was learned.
        """
        if idle < SHORTEST:
            return False
        if self._deaths and now - self._deaths[-1][0] < SAME_MOMENT:
            # several at once: a restart, whatever their idle times
            self._deaths[-1] = (now, -math.inf)
            return False
        agreeing = [d for _, d in self._deaths if abs(d - idle) <= AGREEMENT * idle]
        self._deaths = [*self._deaths[-7:], (now, idle)]
        if not agreeing:
            return False
        learned = min(idle, *agreeing)
        if self.learned is not None and learned >= self.learned:
            return False
        self.learned = learned
        return True

    def survived(self, idle: float) -> bool:
        """A connection was found alive after *idle* seconds.

        True: that took a learned limit back.
        """
        if self.learned is not None and idle > self.learned * (1 + AGREEMENT):
            self.learned = None
            self._deaths.clear()
            return True
        return False

    def explains(self, idle: float) -> bool:
        """Whether a death without a word after *idle* seconds is most likely this limit's doing."""
        return idle >= self.limit * (1 - AGREEMENT / 2)
