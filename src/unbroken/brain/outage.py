"""Is the server away? Who may try to reach it, when next, and when should callers be told at once?

One object per server and process, shared by all pools there. During an outage one *prober* tries;
everybody else waits for its result. Its pace depends on what an attempt costs the server and on
whether somebody waits for the answer.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from random import Random

from unbroken.abc import Fault, FaultKind
from unbroken.brain.pace import BUSY_PACE, Crowd, Pace
from unbroken.brain.tries import Try

#: Seconds between attempts when nobody waits; an arriving caller tries at once.
LONELY_PACE = 1.0
#: A failure older than this says nothing about now: a caller may not be turned away on its word.
FRESH = 10.0
#: A server that seemed to be back, and says within this time to a connection in use that it cannot
#: serve, has not been back.
RELAPSE = 2.0
#: So long after such an outage each new connection still has to prove that its server can serve.
PROOF_FOR = 60.0
#: What an attempt takes when nobody listens, or somebody does: a caller can wait for that.
ONE_TRY = 0.04

#: How many attempts one pool has under way at a time.
AT_ONCE = 4
#: For so many seconds after a connect it is known how many connections may be opened at a time.
PROVEN_FOR = 1.0
#: An attempt that takes longer than this, and than USUAL times what connects take, is silent: no
#: connection is coming that callers could count on, and another attempt begins beside it.
SILENT = 0.2
USUAL = 4.0
#: The same for a server that is there, and slow: a short while ago it answered that it is not ready
#: yet, or full, or it is back and has let in nobody quickly yet. More attempts, or other ones for
#: those that stand in its line, would make it slower.
SLOW = 1.0
SLOW_FOR = 10.0
#: How many of the last connects tell what they usually take: the quickest of them, so that one that
#: waited for the end of an outage says nothing.
LAST = 3
#: Of the attempts that are silent the oldest may go on until its time is up: the server may just be
#: slow. The others are ended, the oldest first, for a new one to begin every SILENT seconds. After
#: so many seconds without an answer …
QUICK_FOR = 30.0
#: … a new one begins less and less often, after a minute twice, after two minutes this much later.
QUIETEST = 1.0
#: With room for one attempt only, each but every fourth is ended after that time; every fourth may
#: take twice as long as the fourth before it.
PATIENT_ONE = 4

#: Failures that the server itself, or what stands in its place, has put into words.
ANSWERS = (FaultKind.NOT_READY, FaultKind.TOO_MANY, FaultKind.REFUSED)
#: Failures that say how it was when the attempt began, however late it ends.
SILENCES = (FaultKind.REFUSED, FaultKind.UNREACHABLE)
#: Failures that do not show that the server's name has led anywhere.
_NAMELESS = (FaultKind.UNKNOWN_NAME, FaultKind.UNREACHABLE)


class Outage:
    """What is known about one server's absence.

    The caller holds the lock of the server's record.
    """

    __slots__ = (
        "called", "checked", "counted", "crowd", "ended", "failures", "fault", "last_failure",
        "last_success", "named", "next_lonely_try", "next_more", "next_try", "pace", "parallel",
        "prober", "proof_until", "quiet_since", "recalled", "relapse", "since",
        "slow_since", "told_at", "tried", "tries", "unheard", "usual",
    )  # fmt: skip

    #: How many connections one pool opens at a time when all is well.
    PARALLEL = AT_ONCE

    def __init__(self) -> None:
        self.since: float | None = None
        self.fault: Fault | None = None
        self.last_failure = 0.0
        self.last_success = -math.inf
        self.failures = 0
        #: Who has seen for himself, where the one who met it first has never been let in and may
        #: have met something of his own; None: no need.
        self.checked: set[int] | None = None
        self.next_try = 0.0  #: while callers wait …
        self.next_lonely_try = 0.0  #: … and while nobody does, whoever the prober is by then
        self.crowd = Crowd()
        self.pace = Pace(self.crowd)
        self.next_more = -math.inf  #: when those that have connections may open more
        self.prober: object | None = None
        self.recalled = -math.inf  #: when the first caller came after a while without any
        #: when a caller of any pool last wanted the server, be it that he was turned away
        self.called = -math.inf
        self.parallel = self.PARALLEL
        self.tries: list[Try] = []  #: attempts under way, of all pools, the oldest first
        self.tried = 0  #: attempts begun since the server last answered
        self.quiet_since = -math.inf  #: when the first of these began
        self.unheard = (
            False  #: one of these was not even acknowledged: the network, or the machine, was away
        )
        self.slow_since = -math.inf  #: when the server was last seen to be there, and slow
        self.usual: deque[float] = deque(maxlen=LAST)  #: what the last connects took
        self.named = False  #: the server's name has led somewhere in this process
        self.counted = 0.0  #: since when this outage has not been counted yet
        #: of the last outage that was told to connections in use: when it began and ended
        self.relapse, self.ended = 0.0, -math.inf
        self.told_at = -math.inf  #: when a connection in use began this outage, or the last
        #: until when a new connection has to prove that its server can serve
        self.proof_until = -math.inf

    @property
    def active(self) -> bool:
        """Whether the server cannot serve, as the last attempt to connect or a connection in use
        was told, and waiting may cure that.
        """
        return self.since is not None

    @property
    def is_misnamed(self) -> bool:
        """Whether the name service knows no such name, and has not known it since this process
        began.
        """
        fault = self.fault
        return fault is not None and fault.kind is FaultKind.UNKNOWN_NAME and not self.named

    def age(self, now: float) -> float:
        """How long the server has been away, in seconds; 0 when it is not."""
        return 0.0 if self.since is None else max(0.0, now - self.since)

    def ask(
        self, who: object, now: float, waiting: int, *, is_served: bool = False
    ) -> float | None:
        """May *who* try to connect? 0: now; more: ask again in so many seconds; None: no, somebody
        else is the prober. *is_served*: it has connections, and would like more.
        """
        if self.since is None:
            return max(0.0, min(LONELY_PACE, self.next_more - now)) if is_served else 0.0
        if self.prober is None:
            self.prober = who
            self.last_failure = -math.inf  # nobody was looking: what was known is old
        if self.prober is not who and not self.checks(who):
            return None
        wanted = waiting or self.is_called(now)
        when = self.next_try if wanted else self.next_lonely_try
        mine = self.mine(who)
        if mine:  # beside one that is silent
            when = max(when, mine[-1].started + (self.silent_after(now) if wanted else LONELY_PACE))
        return max(0.0, when - now)

    def checks(self, who: object) -> bool:
        """Whether *who* should see for himself: the one who met the outage may be alone with it."""
        return self.since is not None and self.checked is not None and id(who) not in self.checked

    def call(self, now: float) -> None:
        """A caller, of whatever pool, waits for a connection."""
        if not self.is_called(now):
            self.recalled = now
        self.called = now

    def is_called(self, now: float) -> bool:
        """Whether a caller, of whatever pool, has wanted the server a moment ago."""
        return now - self.called < LONELY_PACE

    # -- attempts that hang ------------------------------------------------------------------------

    def began(self, who: object, now: float) -> Try:
        """*who* begins an attempt. Say with :meth:`over` when it has ended, however it did."""
        if not self.tried:
            self.quiet_since, self.unheard = now, False
        self.tried += 1
        attempt = Try(who, now, self.tried)
        self.tries.append(attempt)
        if self.checked is not None:
            self.checked.add(id(who))
        return attempt

    def over(self, attempt: Try) -> None:
        """It has ended, or does something else than to connect."""
        if attempt in self.tries:
            self.tries.remove(attempt)

    def goes_on(self, attempt: Try, now: float) -> None:
        """After it did something else, it turns to the server now."""
        attempt.started = now
        self.tries.append(attempt)

    def mine(self, who: object) -> list[Try]:
        """The attempts of *who* that are under way, the oldest first."""
        return [each for each in self.tries if each.who is who]

    def seen(self, now: float, connected: Iterable[bool | None]) -> None:
        """How far silent attempts have come: False where nothing acknowledged even the first
        packet, True where something did.
        """
        found = set(connected)
        if True in found and all(each.address is None for each in self.tries):
            self.crowd.acknowledged(now)
        if self.unheard and True in found:
            self.slow_since = now  # what was away is back, and has not got round to us yet
        self.unheard = self.unheard or False in found

    def is_slow(self, now: float) -> bool:
        """Whether the server is known to be there, and slow."""
        return now - self.slow_since < SLOW_FOR

    def silent_after(self, now: float) -> float:
        """How many seconds an attempt may take before another begins beside it."""
        least = SLOW if self.is_slow(now) else SILENT
        if len(self.usual) == LAST:
            least = max(least, USUAL * min(self.usual))
        quiet = now - self.quiet_since if self.tried else 0.0
        return least if quiet < QUICK_FOR else max(least, min(QUIETEST, SILENT * quiet / QUICK_FOR))

    def is_silent(self, attempt: Try, now: float) -> bool:
        """Whether nobody can count on it any more."""
        return (
            attempt.is_ended or attempt.is_late or now - attempt.started >= self.silent_after(now)
        )

    def silent_tries(self, now: float) -> list[Try]:
        """The attempts of all pools that are silent."""
        return [each for each in self.tries if self.is_silent(each, now)]

    def silent(self, who: object, now: float) -> int:
        """How many attempts of *who* are silent: they are no connections to come."""
        return sum(self.is_silent(each, now) for each in self.mine(who))

    def room(self, who: object, now: float, workers: int) -> int:
        """How many more *who*, with so many *workers* already, may set to connecting."""
        fresh = workers - self.silent(who, now)
        most = 1 if self.crowd.is_in_line(now) else AT_ONCE
        return max(0, min((1 if self.active else self._parallel(now)) - fresh, most - workers))

    def _parallel(self, now: float) -> int:
        """How many connections one pool opens at a time, where the server is not known to be away.

        The more processes there are, the fewer each opens before the first has come about.
        """
        if now - self.last_success < PROVEN_FOR:
            return self.parallel
        return min(self.parallel, self.crowd.at_once(self.PARALLEL))

    def to_end(
        self, who: object, now: float, places: int, moving: Iterable[Try] = ()
    ) -> Try | None:
        """The attempt of *who* that should give way to a new one, for which there are so many
        *places*. None: none, now.

        *moving*: attempts on which the server has just said something.
        """
        mine = [each for each in self.mine(who) if not each.is_late]
        if self.crowd.is_in_line(now):
            return None  # it would go to the end of a long line
        if not mine or (places > 0 and len(mine) < AT_ONCE) or any(each.is_ended for each in mine):
            return None
        if mine[-1].started < self.recalled and now - mine[-1].started >= SILENT:
            return mine[0]  # the caller who came after a lull is given an attempt of his own
        if now - mine[-1].started < self.silent_after(now) or not all(
            self.is_silent(each, now) for each in mine
        ):
            return None
        if len(mine) > 1:
            if self.is_slow(now) and now - mine[-1].started < 2 * SLOW:
                return None  # they stand in its line
            # the oldest at each host of a cluster goes on, too, where there are others to end
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
        """How long attempt *number* may take where there is room for one only."""
        is_known = len(self.usual) == LAST or any(took < SILENT for took in self.usual)
        base = self.silent_after(now) if is_known else max(SLOW, self.silent_after(now))
        return base if number % PATIENT_ONE else base * 2.0 ** (number // PATIENT_ONE)

    def look_again(self, who: object, now: float, waiting: bool) -> float | None:
        """When the attempts of *who* are to be looked at again, if none of them ends before; None:
        there are none.
        """
        mine = self.mine(who)
        if not mine:
            return None
        newest = mine[-1].started
        when = newest + (SILENT if newest < self.recalled else self.silent_after(now))
        return when if when > now else now + (SILENT / 5 if waiting else LONELY_PACE)

    # -- told in use -------------------------------------------------------------------------------

    def cannot_serve(self, now: float, fault: Fault, random: Random) -> bool:
        """A connection in use was told *fault*: nobody can be served. True: an outage begins.

        The first attempt may follow at once: it may lead to another server. Where the server seemed
        to be back a moment ago, it has not been: that outage goes on, at its pace.
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
        """Whether connections in use were told for longer than *patience* that nobody can be
        served, and each time the next new connection showed that it can: nothing to wait for.
        """
        is_relapse = self.since is None and now - self.ended < RELAPSE
        return is_relapse and now - self.relapse >= patience

    def is_relapse(self, now: float) -> bool:
        """Whether an outage that is told in use at *now* is the one that seemed to have ended."""
        return now - self.ended < RELAPSE

    def needs_proof(self, now: float) -> bool:
        """Whether a new connection must prove that its server can serve: it was let in only."""
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
        """An attempt by *who*, begun at *started*, failed at *now*. True: this is the beginning of
        an outage. *alone*: he may have met something of his own, so others check it, once each.

        The outage counts from the beginning of the attempt: a frozen server is noticed only when
        its time is up.
        """
        began = self.since is None
        self.named = self.named or fault.kind not in _NAMELESS
        if began and started < self.last_success:
            # it hung until its time was up; others, begun later, have been answered since
            self.next_try = max(self.next_try, now + self._pace(now, fault.kind, random))
            return False
        if began:
            self.since, self.counted, self.failures = started, started, 0
            self.pace.reset()
            self.prober = who
            self.checked = {id(who)} if alone else None
        elif not alone:
            self.checked = None
        # A refusal takes no time. Where it seems to, this process stood still: it says nothing of
        # now. Nor does the end of an attempt that nobody answered: the server may be back since.
        seen = min(now, started + SILENT) if fault.kind in SILENCES else now
        self.fault, self.last_failure = fault, max(self.last_failure, seen)
        if fault.kind in ANSWERS:
            self.slow_since = now
        if fault.kind in ANSWERS or fault.kind is FaultKind.WRONG_SERVER:
            self.tried = 0
        self.failures += 1
        self.parallel = 1
        self.next_try = now + self._pace(now, fault.kind, random)
        # never the sooner of the two
        self.next_lonely_try = max(self.next_try, now + LONELY_PACE)
        return began

    def _pace(self, now: float, kind: FaultKind, random: Random) -> float:
        return self.pace.after(now, kind, random, self.age(now))

    def succeeded(
        self, now: float, took: float | None = None, random: Random | None = None
    ) -> float | None:
        """An attempt succeeded, in *took* seconds. The length of the outage that this ends, in
        seconds, or None if there was none, or if the attempt began before a connection in use told
        that the server cannot serve.

        After an outage the number of connections opened at a time starts at one and grows with each
        success: a thousand processes that all find the server back at once must not knock it over.
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
        """The next attempt goes to another host: at once."""
        self.next_try = self.next_lonely_try = now

    def resign(self, who: object) -> bool:
        """*who* will not try any more; the next who asks is the prober. False: it was not one."""
        if self.prober is not who:
            return False
        self.prober = None
        return self.since is not None

    def turns_away(self, now: float, patience: float, came: float = -math.inf) -> bool:
        """Whether a caller should be told at once: away for longer than *patience*, and somebody
        has just made sure of it.

        A caller who came (at *came*) after a lull is given the time of the attempt that he has
        called for: the server may be back. That attempt begins later where an older one is silent.
        """
        if self.since is None or self.prober is None or now - self.since < patience:
            return False
        silences = [each.started + self.silent_after(now) for each in self.tries]
        made_sure = max([self.last_failure, *(each for each in silences if each <= now)])
        if now - made_sure >= FRESH and now >= self.next_try:
            return False
        his = [each.started for each in self.tries if each.started >= came]
        told_at = min(his, default=came) + ONE_TRY
        if self.tries and not his:  # one begins when these are silent
            told_at = max(came, min(max(silences), came + SLOW)) + SILENT
        return made_sure >= came - BUSY_PACE[1] or now >= told_at
