"""The line of waiting callers, which refuses callers while it is too long.

Pure: the time is an argument. One :class:`Line` belongs to one pool. It learns the seconds between
two grants while callers wait. From that it estimates the wait of a caller at its end.

* A caller that would wait much longer than its remaining time is refused immediately.
* Where a user waits (in a web request), and where ``shed_target`` is set, the line has a limit. A
  line that was short a moment ago may be long: a burst is served. In a standing line, callers
  come faster than they are served. Its limit is halved until it is short or few are refused.
* Where callers leave before their time (a cancelled task), the line has such a limit too. It is at
  most half of the time after which they leave. Callers that would leave before they are
  served are refused.

The estimate of a wait from the line's length is PIE's (RFC 8033). A limit for a standing line, and
none for a burst, is CoDel's (RFC 8289). ``bench/overload_model.py`` compares the rule with others;
docs/overload.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from unbroken.brain.ranks import Rank, Ticket

#: Number of grants before the pace is trusted, and number of grants that it is averaged over. (At
#: least 2 and 4 for each connection: the connections of a large pool may be returned in step.)
ENOUGH, MEMORY = 6, 64
#: Seconds after which an unconfirmed pace is learned again.
STALE = 300.0
#: A pause without a grant counts as at most this many units of work: one long unit says little
#: about the next ones.
OUTLIER = 4.0
#: The line is moving if the last grant was at most this many seconds ago.
MOVES = 0.25
#: A caller is refused immediately if it would wait this many times its remaining time.
SURE = 1.2
#: The limit of a line with waiting users, in callers. At 90 % of a pool's capacity, one line in a
#: hundred is that long, for any pool size (0.9 ** 44 = 0.01).
CALLERS = 44
#: … in seconds: the minimum, and the maximum where units of work are short.
LEAST, MOST = 0.05, 0.5
#: … and at least this many units of work.
UNITS = 3.0
#: After this many seconds, or twice as many units, a user is assumed to have left.
USERS = 1.0
#: Maximum length of a burst, in seconds of waiting.
BURST = 0.5
#: A line that has stood for this many seconds, or grants, stands because of overload.
STANDS, STANDS_GRANTS = 0.25, 80
#: At the end of an interval the limit is halved if more than MANY of the callers were refused, or
#: if none were although the line stands. It is doubled if less than FEW were refused.
MANY, FEW = 0.25, 0.1
#: A line that was never shorter than this fraction of its length, nor than so many units of work,
#: is kept at that length. (At 90 % of the capacity, shorter lines stay alike by chance.)
PINNED, PINNED_UNITS = 0.75, 2.0
#: Maximum number of halvings. The limit stays at or above this many callers, or one unit of work.
STRICTEST, LEAST_CALLERS = 8, 4
#: Fraction of the callers that must leave early before their patience counts.
LEAVERS = 0.1
#: Seconds for which that patience is kept after it last made a difference …
REMEMBERED = 10.0
#: … and after a caller left early. Then it is learned again.
BELIEVED = 60.0
#: Minimum seconds between two searches of the line for callers that will be served too late.
SEARCHES = 0.005
#: A caller that leaves sooner than this, or than six units of work, leaves for other reasons.
LEAST_PATIENCE = 0.2

NO_TIME = "its time would be up before its turn"
OVERLOAD = "callers arrive faster than they are served"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller is refused immediately."""

    ahead: int  #: callers before it
    expected: float  #: seconds that it would have waited
    limit: float  #: seconds that it would accept, or that are allowed
    why: str


def crowded(rank: Rank, ahead: int, most: int | None, coming: int = 0) -> Refusal | None:
    """Why a caller of class *rank* does not get into a line for *most* callers at most; None: it
    does. *ahead* callers are served before it, *coming* of them by connections that are being
    opened.
    """
    if most is None or rank is Rank.HEALTH or ahead - coming < most:
        return None
    return Refusal(ahead, 0.0, 0.0, f"max_waiting={most}")


class Line:
    """The state of one pool's line. Its methods are called under the pool's lock."""

    __slots__ = (
        "_came",
        "_grants",
        "_knows",
        "_last",
        "_leavers",
        "_left",
        "_mattered",
        "_patience",
        "_quick",
        "_refused",
        "_searched",
        "_shortest",
        "_since",
        "_until",
        "gap",
        "strictness",
    )

    def __init__(self) -> None:
        self.gap = 0.0  #: seconds between two grants while callers wait
        self._quick = 0.0  #: the same, over the last few
        self._grants = 0  #: number of grants that this was learned from
        self._knows = False  #: whether these are enough
        self._since = -math.inf  #: time of the last grant or the line's start; -inf: empty
        self._last = -math.inf  #: when the last grant was
        self.strictness = 0  #: 0: a burst is allowed; else limit / 2 ** (strictness - 1)
        self._until = -math.inf  #: when it is decided again …
        self._came, self._refused = 0, 0  #: … by the callers that came since then, and were refused
        self._shortest = 0  #: … and by how short the line was in between
        self._leavers = 0.0  #: fraction of the callers that left before their time
        self._patience = 0.0  #: seconds that they waited
        self._searched = -math.inf  #: when the line was last searched
        self._left = self._mattered = -math.inf  #: when one left, and when that made a difference

    # -- events ------------------------------------------------------------------------------------

    def granted(self, now: float, places: int, *, others: bool) -> None:
        """A waiting caller got one of *places* connections. *others*: more callers still wait."""
        self._leavers -= self._leavers / MEMORY
        if self._since > -math.inf:
            took = now - self._since
            if self._since - self._last > STALE:
                self._grants = 0
            self._grants += 1
            enough, memory = max(ENOUGH, 2 * places), max(MEMORY, 4 * places)
            self._knows = self._grants >= enough
            if self._knows:
                took = min(took, OUTLIER * self.gap * places)
            self.gap += (took - self.gap) / min(self._grants, memory)
            self._quick += (took - self._quick) / min(self._grants, enough)
        self._last = now
        self._since = now if others else -math.inf

    def left(self, now: float, waited: float, places: int) -> None:
        """A caller left after *waited* seconds, before its time was up.

        A caller that was about to be served did not leave because of the line.
        """
        if waited < max(LEAST_PATIENCE, 2 * UNITS * self.gap * places):
            return
        self._leavers += (1.0 - self._leavers) / MEMORY
        if self.patience(now) == math.inf:
            self._patience = waited
        self._patience += (waited - self._patience) / 16
        if self._leavers > LEAVERS:
            self._mattered = self._left = now

    def interrupted(self) -> None:
        """Connections are being opened, or the server is down: grants do not show the pace."""
        self._since = -math.inf

    # -- conclusions -------------------------------------------------------------------------------

    def moves(self, now: float) -> bool:
        """Whether a waiting caller was served a moment ago."""
        return now - self._last < min(max(MOVES, 4 * self.gap), 1.0)

    def depends_on_holders(self, now: float, opening: int, places: int) -> bool:
        """Whether the holders of connections decide how long a caller waits, all *places* being
        taken. They do not while most of these are still *opening*.

        Where callers are cancelled at work, some connections are being replaced all the time.
        """
        return 2 * opening <= places and (opening == 0 or self.moves(now))

    def patience(self, now: float) -> float:
        """Seconds that callers wait before they leave; inf: they do not leave."""
        is_known = now - self._mattered <= REMEMBERED and now - self._left <= BELIEVED
        return self._patience if is_known else math.inf

    def came(
        self,
        now: float,
        rank: Rank,
        ahead: int,
        left: float,
        places: int,
        *,
        users: int | None = None,
        target: float | None = None,
    ) -> Refusal | None:
        """A caller of class *rank* has come with *left* seconds; *ahead* callers are served before
        it. Return why it is refused immediately. None: it may wait.

        *places*: how many connections the pool has. *users*: if the line has a limit for this
        caller, the number of those ahead with the same limit; else None. The limit is *target*
        seconds; None: the learned one; inf: none, even where callers leave. Other callers, such as
        a batch job's, do not count for a user's limit.
        """
        if self._since == -math.inf:
            self._since = now
        if users is not None:
            self._watch(now, users, ahead - users, places, target)
        if rank is Rank.HEALTH or not self._knows or now - self._last > STALE:
            return None
        surely = (ahead + 1) * min(self.gap, self._quick)
        if surely > SURE * left:
            return Refusal(ahead, surely, left, NO_TIME)
        patience = math.inf if target == math.inf else self.patience(now)
        if rank is Rank.BACKGROUND or (users is None and patience == math.inf):
            return None
        expected = ((ahead if users is None else users) + 1) * self.gap
        # A caller that is served next, or within a unit of work, is never refused.
        least = max(places, LEAST_CALLERS) * self.gap
        limit = min(self._limit(places, target, self.strictness), max(patience / 2, least))
        if expected <= limit:
            return None
        self._refused += 1
        if patience < math.inf:
            self._mattered = now
            return Refusal(
                ahead, expected, limit, f"{OVERLOAD}, and give up after {patience:.2f} s"
            )
        return Refusal(ahead, expected, limit, OVERLOAD)

    def _watch(
        self, now: float, users: int, others: int, places: int, target: float | None
    ) -> None:
        """A caller comes behind so many *users* and *others*. At the end of each interval, decide
        how strict the limit is.
        """
        self._came += 1
        self._shortest = min(self._shortest, users)
        if now < self._until:
            return
        interval = max(STANDS, STANDS_GRANTS * self.gap)
        share = self._refused / max(1, self._came)
        if now - self._until > interval or (self._shortest <= places / 2 and not self._refused):
            self.strictness = 0
        elif share > MANY:
            self.strictness = min(self.strictness + 1, STRICTEST)
        elif not self._refused:
            self.strictness = self._effective(users, others, places, target)
        elif share < FEW:
            self.strictness = max(self.strictness - 1, 1)
        self._until = now + interval
        self._came, self._refused, self._shortest = 0, 0, users

    def _effective(self, users: int, others: int, places: int, target: float | None) -> int:
        """The strictness that follows for a standing line in which nobody was refused.

        A line that always has nearly the same length is kept short by something else: the threads
        of a web server. Callers that nobody sees wait before it, so the limit is halved until it is
        below the line's length. Not so where most of the line are *others*: users behind a batch
        job always wait.
        """
        stricter = min(self.strictness + 1, STRICTEST)
        if self._shortest < max(PINNED * users, PINNED_UNITS * places) or others > users:
            return stricter
        wait = (self._shortest + 1) * self.gap
        while stricter < STRICTEST and self._limit(places, target, stricter) > wait:
            stricter += 1
        return stricter

    def _limit(self, places: int, target: float | None, strictness: int) -> float:
        """How many seconds a caller may have to wait, by so much *strictness*."""
        unit = self.gap * places
        learned = max(LEAST, min(CALLERS * self.gap, MOST), UNITS * unit)
        base = learned if target is None else target
        if not strictness:
            return max(BURST, base)
        least = max(unit, LEAST_CALLERS * self.gap)
        halved = base / (1 << (strictness - 1))
        return max(halved, min(base, least))

    def late(self, now: float, line: Iterable[Ticket], places: int) -> list[Ticket]:
        """The tickets in *line* whose callers will have waited too long when they are served. The
        pace was perhaps unknown when they came. Call this after a refusal, or where callers leave.

        Returns none if the line was searched a moment ago: a search takes as long as the line.
        """
        if now - self._searched < SEARCHES:
            return []
        self._searched = now
        patience = self.patience(now)
        users = max(USERS, 2 * UNITS * self.gap * places)
        late: list[Ticket] = []
        for number, ticket in enumerate(list(line)):
            if ticket.rank is not Rank.NORMAL or ticket.done:
                continue
            has = min(users, patience) if ticket.is_users else patience
            if now + (number + 1 + places) * self.gap - ticket.since > has:
                late.append(ticket)
        return late


__all__ = ["Line", "Refusal", "crowded"]
