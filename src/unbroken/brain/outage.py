"""Track whether a server is down, which pool may try it and when, and when callers fail fast.

There is one object per server and process, shared by all pools there. During an outage one *prober*
tries; all others wait for its result. Its pace depends on the cost of an attempt for the server and
on whether a caller waits for the answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from random import Random

from unbroken.abc import Fault, FaultKind
from unbroken.brain.pace import BUSY_PACE, Crowd, Pace
from unbroken.brain.tries import Try

#: Seconds between attempts when no caller waits; an arriving caller triggers one immediately.
LONELY_PACE = 1.0
#: A failure older than this proves nothing about now: it is no reason to turn a caller away.
FRESH = 10.0
#: If a connection in use reports an outage again within this many seconds after the server seemed
#: to be back, it was not back.
RELAPSE = 2.0
#: Seconds after such an outage in which each new connection must prove that its server can serve.
PROOF_FOR = 60.0
#: Minimum seconds for which a caller can wait for an attempt: a port that refuses does so at once.
#: If connects usually take longer, the caller waits for TRIES times as long, but not longer than
#: for an attempt that is silent.
ONE_TRY, TRIES = 0.04, 2.0

#: Maximum number of concurrent attempts of one pool.
AT_ONCE = 4
#: Seconds after a connect during which the number of parallel connects is known.
PROVEN_FOR = 1.0
#: An attempt that takes longer than SILENT seconds, and than USUAL times a usual connect, is
#: silent. Callers cannot count on it, and another attempt begins beside it.
SILENT = 0.2
USUAL = 4.0
#: The same for a server that is up but slow. Either it recently answered that it is full or not
#: ready yet, or it is back and has accepted no login quickly yet. More attempts, or new ones
#: instead of those in its queue, would make it slower.
SLOW = 1.0
SLOW_FOR = 10.0
#: Number of recent connects for the usual duration. The quickest of them counts, so that one that
#: waited for the end of an outage has no effect.
LAST = 3
#: The oldest silent attempt may continue until its time is up: the server may just be slow. The
#: others are ended, the oldest first, so that a new one begins every SILENT seconds. After this
#: many seconds without an answer …
QUICK_FOR = 30.0
#: … new ones become rarer: after a minute twice, after two minutes this many seconds apart.
QUIETEST = 1.0
#: With room for one attempt only, three in four are ended after that time. Every fourth may take
#: twice as long as the fourth before it.
PATIENT_ONE = 4

#: Failures that the server itself, or a program in its place, has reported with a message.
ANSWERS = (FaultKind.NOT_READY, FaultKind.TOO_MANY, FaultKind.REFUSED)
#: Failures that show the state at the start of the attempt, however late it ends.
SILENCES = (FaultKind.REFUSED, FaultKind.UNREACHABLE)
#: Failures that do not show that the server's name has resolved.
_NAMELESS = (FaultKind.UNKNOWN_NAME, FaultKind.UNREACHABLE)


class Outage:
    """The state of one server's outage.

    The caller holds the lock of the server's record.
    """

    __slots__ = (
        "called", "checked", "counted", "crowd", "ended", "failures", "fault", "last_failure",
        "last_success", "named", "next_lonely_try", "next_more", "next_try", "pace", "parallel",
        "prober", "proof_until", "quiet_since", "recalled", "relapse", "since",
        "slow_since", "told_at", "tried", "tries", "unheard", "usual",
    )  # fmt: skip

    #: Maximum number of parallel connects of one pool when all is well.
    PARALLEL = AT_ONCE

    def __init__(self) -> None:
        self.since: float | None = None
        self.fault: Fault | None = None
        self.last_failure = 0.0
        self.last_success = -math.inf
        self.failures = 0
        #: The pools that have checked for themselves. Needed if the first one to meet the outage
        #: has never logged in, so that its error may concern it alone. None: not needed.
        self.checked: set[int] | None = None
        self.next_try = 0.0  #: while callers wait …
        self.next_lonely_try = 0.0  #: … and while none does, whichever pool is the prober then
        self.crowd = Crowd()
        self.pace = Pace(self.crowd)
        self.next_more = -math.inf  #: when pools that have connections may open more
        self.prober: object | None = None
        self.recalled = -math.inf  #: when the first caller came after a while without any
        #: When a caller of any pool last wanted the server, even if it was turned away.
        self.called = -math.inf
        self.parallel = self.PARALLEL
        self.tries: list[Try] = []  #: attempts in progress, of all pools, the oldest first
        self.tried = 0  #: attempts begun since the server last answered
        self.quiet_since = -math.inf  #: when the first of these began
        self.unheard = False  #: an attempt was not even acknowledged: the network or host was down
        self.slow_since = -math.inf  #: when the server was last seen to be up but slow
        self.usual: deque[float] = deque(maxlen=LAST)  #: durations of the last connects
        self.named = False  #: the server's name has resolved in this process
        self.counted = 0.0  #: start of the part of this outage that is not counted yet
        #: Start and end of the last outage that connections in use reported.
        self.relapse, self.ended = 0.0, -math.inf
        self.told_at = -math.inf  #: when a connection in use began this outage, or the last
        #: Until this time a new connection must prove that its server can serve.
        self.proof_until = -math.inf

    @property
    def active(self) -> bool:
        """Whether the server cannot serve, and waiting may cure that: the last attempt to connect,
        or a connection in use, reported it.
        """
        return self.since is not None

    @property
    def is_misnamed(self) -> bool:
        """Whether the name service does not know the name, and has not known it since this process
        began.
        """
        fault = self.fault
        return fault is not None and fault.kind is FaultKind.UNKNOWN_NAME and not self.named

    def age(self, now: float) -> float:
        """How long the server has been down, in seconds; 0 when it is up."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def ask(
        self, who: object, now: float, waiting: int, *, is_served: bool = False
    ) -> float | None:
        """Whether *who* may try to connect. 0: now; more: ask again in this many seconds; None: no,
        because another pool is the prober. *is_served*: *who* has connections and wants more.
        """
        if self.since is None:
            return max(0.0, min(LONELY_PACE, self.next_more - now)) if is_served else 0.0
        if self.prober is None:
            self.prober = who
            self.last_failure = -math.inf  # no pool was trying, so earlier knowledge is old
        if self.prober is not who and not self.checks(who):
            return None
        wanted = waiting or self.is_called(now)
        when = self.next_try if wanted else self.next_lonely_try
        mine = self.mine(who)
        if mine:  # beside a silent one
            when = max(when, mine[-1].started + (self.silent_after(now) if wanted else LONELY_PACE))
        return max(0.0, when - now)

    def checks(self, who: object) -> bool:
        """Whether *who* must check for itself: the outage may concern only another pool."""
        return self.since is not None and self.checked is not None and id(who) not in self.checked

    def call(self, now: float) -> None:
        """A caller of any pool waits for a connection."""
        if not self.is_called(now):
            self.recalled = now
        self.called = now

    def is_called(self, now: float) -> bool:
        """Whether a caller of any pool has wanted the server a moment ago."""
        return now - self.called < LONELY_PACE

    # -- attempts that hang ------------------------------------------------------------------------

    def began(self, who: object, now: float) -> Try:
        """*who* begins an attempt. Call :meth:`over` when it has ended, however it ended."""
        if not self.tried:
            self.quiet_since, self.unheard = now, False
        self.tried += 1
        attempt = Try(who, now, self.tried)
        self.tries.append(attempt)
        if self.checked is not None:
            self.checked.add(id(who))
        return attempt

    def over(self, attempt: Try) -> None:
        """The attempt has ended, or now does something other than connecting."""
        if attempt in self.tries:
            self.tries.remove(attempt)

    def goes_on(self, attempt: Try, now: float) -> None:
        """The attempt did something else before, and now connects to the server."""
        attempt.started = now
        self.tries.append(attempt)

    def mine(self, who: object) -> list[Try]:
        """The attempts of *who* that are in progress, the oldest first."""
        return [each for each in self.tries if each.who is who]

    def seen(self, now: float, connected: Iterable[bool | None]) -> None:
        """Record how far silent attempts have come. False: not even the first packet was
        acknowledged. True: it was.
        """
        found = set(connected)
        if True in found and all(each.address is None for each in self.tries):
            self.crowd.acknowledged(now)
        if self.unheard and True in found:
            self.slow_since = now  # the host is back, and has not answered us yet
        self.unheard = self.unheard or False in found

    def is_slow(self, now: float) -> bool:
        """Whether the server is known to be up but slow."""
        return now - self.slow_since < SLOW_FOR

    def silent_after(self, now: float) -> float:
        """Seconds that an attempt may take before another begins beside it."""
        least = SLOW if self.is_slow(now) else SILENT
        if len(self.usual) == LAST:
            least = max(least, USUAL * min(self.usual))
        quiet = now - self.quiet_since if self.tried else 0.0
        return least if quiet < QUICK_FOR else max(least, min(QUIETEST, SILENT * quiet / QUICK_FOR))

    def is_silent(self, attempt: Try, now: float) -> bool:
        """Whether callers cannot count on the attempt any more."""
        return (
            attempt.is_ended or attempt.is_late or now - attempt.started >= self.silent_after(now)
        )

    def silent_tries(self, now: float) -> list[Try]:
        """The silent attempts of all pools."""
        return [each for each in self.tries if self.is_silent(each, now)]

    def silent(self, who: object, now: float) -> int:
        """The number of silent attempts of *who*: no connections can be expected from them."""
        return sum(self.is_silent(each, now) for each in self.mine(who))

    def room(self, who: object, now: float, workers: int) -> int:
        """How many more connects *who* may start, with this many *workers* already."""
        fresh = workers - self.silent(who, now)
        most = 1 if self.crowd.is_in_line(now) else AT_ONCE
        return max(0, min((1 if self.active else self._parallel(now)) - fresh, most - workers))

    def _parallel(self, now: float) -> int:
        """Maximum number of parallel connects of one pool while no outage is known.

        The more processes there are, the fewer each opens before its first one succeeds.
        """
        if now - self.last_success < PROVEN_FOR:
            return self.parallel
        return min(self.parallel, self.crowd.at_once(self.PARALLEL))

    def to_end(
        self, who: object, now: float, places: int, moving: Iterable[Try] = ()
    ) -> Try | None:
        """The attempt of *who* that should be ended for a new one, with this many *places* left.
        None if no attempt should be ended now.

        *moving*: attempts on which the server has just sent something.
        """
        mine = [each for each in self.mine(who) if not each.is_late]
        if self.crowd.is_in_line(now):
            return None  # a new attempt would go to the end of a long queue
        if not mine or (places > 0 and len(mine) < AT_ONCE) or any(each.is_ended for each in mine):
            return None
        if mine[-1].started < self.recalled and now - mine[-1].started >= SILENT:
            return mine[0]  # a caller that came after a lull gets its own attempt
        if now - mine[-1].started < self.silent_after(now) or not all(
            self.is_silent(each, now) for each in mine
        ):
            return None
        if len(mine) > 1:
            if self.is_slow(now) and now - mine[-1].started < 2 * SLOW:
                return None  # they are in the server's queue
            # With several attempts, the oldest one at each host of a cluster may also continue.
            first = {each.address: each for each in reversed(mine)}
            spare = [each for each in mine[1:] if each not in moving]
            others = [each for each in spare if each is not first[each.address]]
            return next(iter(others or spare), None)
        only = mine[0]
        return (
            only
            if only not in moving and now - only.started >= self._life(only.number, now)
            else None
        )

    def _life(self, number: int, now: float) -> float:
        """How long attempt *number* may take if there is room for only one."""
        is_known = len(self.usual) == LAST or any(took < SILENT for took in self.usual)
        base = self.silent_after(now) if is_known else max(SLOW, self.silent_after(now))
        return base if number % PATIENT_ONE else base * 2.0 ** (number // PATIENT_ONE)

    def look_again(self, who: object, now: float, waiting: bool) -> float | None:
        """When to check the attempts of *who* again, if none of them ends before. None if there are
        none.
        """
        mine = self.mine(who)
        if not mine:
            return None
        newest = mine[-1].started
        when = newest + (SILENT if newest < self.recalled else self.silent_after(now))
        return when if when > now else now + (SILENT / 5 if waiting else LONELY_PACE)

    # -- outages reported by connections in use ----------------------------------------------------

    def cannot_serve(self, now: float, fault: Fault, random: Random) -> bool:
        """A connection in use reported that the server cannot serve. Return whether an outage
        begins.

        The first attempt may follow immediately, because it may lead to another server. If the
        server seemed to be back a moment ago, it was not: that outage continues, at its pace.
        """
        if self.since is not None:
            return False
        is_relapse = self.is_relapse(now)
        self.since, self.counted = self.relapse if is_relapse else now, now
        self.fault, self.prober, self.parallel = fault, None, 1
        self.failures, self.tried, self.told_at, self.checked = 0, 0, now, None
        if not is_relapse:
            self.pace.reset()
        pace = self._pace(now, fault.kind, random) if is_relapse else 0.0
        self.next_try = max(self.next_try, now + pace)
        self.next_lonely_try = self.next_try
        self.proof_until = math.inf
        return True

    def is_contradicted(self, now: float, patience: float) -> bool:
        """Whether the reports of connections in use are contradicted. For longer than *patience*
        they reported that the server cannot serve, and each time the next new connection showed
        that it can. Then there is nothing to wait for.
        """
        is_relapse = self.since is None and now - self.ended < RELAPSE
        return is_relapse and now - self.relapse >= patience

    def is_relapse(self, now: float) -> bool:
        """Whether a report of a connection in use at *now* continues the last outage."""
        return now - self.ended < RELAPSE

    def needs_proof(self, now: float) -> bool:
        """Whether a new connection must prove that its server can serve: a login is no proof."""
        return now < self.proof_until

    # -- how attempts end --------------------------------------------------------------------------

    def failed(
        self,
        who: object,
        started: float,
        now: float,
        fault: Fault,
        random: Random,
        *,
        alone: bool = False,
    ) -> bool:
        """An attempt by *who*, begun at *started*, failed at *now*. Return whether an outage
        begins. *alone*: the failure may concern only *who*, so the other pools check it, once each.

        The outage counts from the start of the attempt: a frozen server is noticed only when the
        attempt's time is up.
        """
        began = self.since is None
        self.named = self.named or fault.kind not in _NAMELESS
        if began and started < self.last_success:
            # It hung until its time was up; later attempts have been answered since.
            self.next_try = max(self.next_try, now + self._pace(now, fault.kind, random))
            return False
        if began:
            self.since, self.counted, self.failures = started, started, 0
            self.pace.reset()
            self.prober = who
            self.checked = {id(who)} if alone else None
        elif not alone:
            self.checked = None
        # A refusal takes no time. If it seems to, this process was suspended, and it proves nothing
        # about now. Nor does the end of an unanswered attempt: the server may be back since.
        seen = min(now, started + SILENT) if fault.kind in SILENCES else now
        self.fault, self.last_failure = fault, max(self.last_failure, seen)
        if fault.kind in ANSWERS:
            self.slow_since = now
        if fault.kind in ANSWERS or fault.kind is FaultKind.WRONG_SERVER:
            self.tried = 0
        self.failures += 1
        self.parallel = 1
        self.next_try = now + self._pace(now, fault.kind, random)
        # the later of the two
        self.next_lonely_try = max(self.next_try, now + LONELY_PACE)
        return began

    def _pace(self, now: float, kind: FaultKind, random: Random) -> float:
        return self.pace.after(now, kind, random, self.age(now))

    def succeeded(
        self, now: float, took: float | None = None, random: Random | None = None
    ) -> float | None:
        """An attempt succeeded, in *took* seconds. Return the length of the outage that this ends,
        in seconds. Return None if there was none, or if the attempt began before a connection in
        use reported that the server cannot serve.

        After an outage the number of parallel connects starts at one and grows with each success. A
        thousand processes that all find the server back together must not overload it.
        """
        if self.active and took is not None and now - took < self.told_at:
            return None
        ended = None if self.since is None else now - self.counted
        if self.since is not None and self.proof_until == math.inf:
            self.relapse, self.ended, self.proof_until = self.since, now, now + PROOF_FOR
        if ended is not None:
            self.crowd.was_away(now, random)
            self.parallel = 1
        else:
            self.parallel = min(self.PARALLEL, self._parallel(now) + 1)
        self.last_success, self.named = now, True
        if took is not None:
            self.next_more = now + self.crowd.succeeded(took, random)
            self.usual.append(took)
            if took < SILENT:
                self.slow_since = -math.inf
            elif ended is not None or self.tried > 1:
                self.slow_since = now
        self.tried = 0
        self.since = self.fault = self.prober = None
        return ended

    def hurry(self, now: float) -> None:
        """The next attempt goes to another host, without delay."""
        self.next_try = self.next_lonely_try = now

    def resign(self, who: object) -> bool:
        """*who* stops trying. Return whether an outage lost its prober; the next to ask is it."""
        if self.prober is not who:
            return False
        self.prober = None
        return self.since is not None

    def turns_away(self, now: float, patience: float, came: float = -math.inf) -> bool:
        """Whether to turn a caller away now: the server is down for longer than *patience*, and
        that was confirmed recently.

        A caller that came (at *came*) after a lull waits for the attempt that it caused: the server
        may be back. That attempt begins later if an older one is silent.
        """
        if self.since is None or self.prober is None or now - self.since < patience:
            return False
        silences = [each.started + self.silent_after(now) for each in self.tries]
        made_sure = max([self.last_failure, *(each for each in silences if each <= now)])
        if now - made_sure >= FRESH and now >= self.next_try:
            return False
        his = [each.started for each in self.tries if each.started >= came]
        one_try = min(max(ONE_TRY, TRIES * max(self.usual, default=0.0)), SILENT)
        told_at = min(his, default=came) + one_try
        if self.tries and not his:  # one begins when these are silent
            told_at = max(came, min(max(silences), came + SLOW)) + SILENT
        return made_sure >= came - BUSY_PACE[1] or now >= told_at
