"""A cluster of several hosts: which of them does the next attempt to connect go to?

One object per cluster, role and process. The pools of a cluster are at one host at a time, its
*place*: attempts go there for as long as it lets us in. A host that fails, refuses or is silent is
left for the next one at once. After a full round the pace of the outage begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

from unbroken.abc import OUTAGE_KINDS, Address, Fault, FaultKind, address
from unbroken.brain.tries import Try

#: A host that turned us down for good (a wrong password, say) is not asked again for so long while
#: others can be asked.
REJECTED_FOR = 1.0
#: Where standbys are preferred and one did not answer, it is asked again this much later.
LOOK_AGAIN = 10.0
#: A place where an attempt has been silent for so long, while another host lets us in, is left.
LEAVE_AFTER = 1.0
#: Longest reason that an error gives for one host.
_MOST = 120


class After(Enum):
    """What follows a failed attempt."""

    ELSEWHERE = auto()  #: another attempt, at once: it goes to another host
    AWAY = auto()  #: all hosts failed, or are silent: this is an outage
    REJECTED = auto()  #: all hosts turned us down for good
    NOTHING = auto()  #: connections have come about since it began: it says nothing


class Hosts:
    """What is known of the hosts of one cluster. The caller holds the lock of the record.

    *silent*, in all methods: the attempts under way that nobody can count on any more.
    """

    __slots__ = (
        "addresses",
        "beside",
        "failed_at",
        "faults",
        "moves",
        "place",
        "prefers_standby",
        "round",
        "since",
        "succeeded_at",
        "takes_writes",
    )

    def __init__(
        self, addresses: tuple[Address, ...] = (), *, prefers_standby: bool = False
    ) -> None:
        self.addresses = addresses
        self.prefers_standby = prefers_standby
        self.place: Address | None = None
        self.succeeded_at = -math.inf  #: when a connection came about there last
        #: a host that let us in while the place was silent
        self.beside: Address | None = None
        self.moves = 0  #: how often connections elsewhere than at the place became unwanted
        self.failed_at: dict[Address, float] = {}  #: when each host failed last …
        self.faults: dict[Address, Fault] = {}  #: … and why
        self.round: set[Address] = set()  #: hosts that failed in this round
        self.since = 0.0  #: when the first attempt of this round began
        #: hosts that take writes, as far as they were asked
        self.takes_writes: set[Address] = set()

    @property
    def are_several(self) -> bool:
        """Whether there is a choice at all."""
        return len(self.addresses) > 1

    def next(self, now: float, silent: Sequence[Try]) -> Address | None:
        """Where the next attempt goes; None: where the URL says."""
        if not self.are_several:
            return None
        waiting = [each.address for each in silent]

        def rank(host: Address) -> tuple[int, bool, bool, int, bool]:
            return (
                waiting.count(host),
                host in self.round,
                self._is_rejected(host, now),
                self._preference(host, now),
                host != self.place,
            )

        return min(self.addresses, key=rank)

    def _preference(self, host: Address, now: float) -> int:
        """The lower, the better is *host* where standbys are preferred."""
        if not self.prefers_standby:
            return 0
        return 2 if self._has_failed(host, now, LOOK_AGAIN) else int(host in self.takes_writes)

    def _is_rejected(self, host: Address, now: float) -> bool:
        return (
            self._has_failed(host, now, REJECTED_FOR) and self.faults[host].kind not in OUTAGE_KINDS
        )

    def _has_failed(self, host: Address, now: float, within: float) -> bool:
        return now - self.failed_at.get(host, -math.inf) < within

    # -- how attempts end --------------------------------------------------------------------------

    def failed(self, attempt: Try, now: float, fault: Fault, silent: Sequence[Try]) -> After:
        """*attempt* failed with *fault*."""
        host = attempt.address
        if host is None:
            return After.AWAY if fault.kind in OUTAGE_KINDS else After.REJECTED
        if attempt.is_passed_over:
            return After.ELSEWHERE
        self.failed_at[host], self.faults[host] = now, fault
        self.leave(now, silent)
        if attempt.started < self.succeeded_at:
            return After.NOTHING
        if not self.round:
            self.since = attempt.started
        self.since = min(self.since, attempt.started)
        self.round.add(host)
        if self._is_one_left(now, silent):
            return After.ELSEWHERE
        self.round.clear()
        lately = [self.faults[each] for each, at in self.failed_at.items() if at >= self.since]
        is_final = len(lately) == len(self.addresses) and not any(
            each.kind in OUTAGE_KINDS for each in lately
        )
        return After.REJECTED if is_final else After.AWAY

    def _is_one_left(self, now: float, silent: Sequence[Try]) -> bool:
        """Whether a host is left to ask in this round."""
        waiting = {each.address for each in silent}
        return any(
            each not in self.round and each not in waiting and not self._is_rejected(each, now)
            for each in self.addresses
        )

    def passes_over(self, attempt: Try, now: float, silent: Sequence[Try]) -> bool:
        """The host of *attempt* takes writes: whether another host, which may be a standby, is
        asked first.
        """
        self.saw(attempt.address, True)
        if attempt.address is None or not self.prefers_standby:
            return False
        waiting = {each.address for each in silent}
        attempt.is_passed_over = any(
            each not in self.takes_writes
            and each not in waiting
            and not self._has_failed(each, now, LOOK_AGAIN)
            for each in self.addresses
        )
        return attempt.is_passed_over

    def succeeded(self, attempt: Try, now: float, silent: Sequence[Try]) -> bool:
        """*attempt* came about. False: its connection is unwanted, since others have come about
        elsewhere since it began.
        """
        host = attempt.address
        if host is None:
            return True
        if self.place not in (None, host) and not self._is_better(host):
            if self.succeeded_at > attempt.started:
                return False
            self.beside = host
            self.leave(now, silent)
            return True
        if self.place != host:
            self.moves += self.place is not None
            self.place = host
        self.moves += self.beside is not None
        self.beside, self.succeeded_at = None, now
        self.round.clear()
        return True

    def _is_better(self, host: Address) -> bool:
        """Whether the place was a makeshift for one such as *host*."""
        return (
            self.prefers_standby
            and self.place in self.takes_writes
            and host not in self.takes_writes
        )

    def leave(self, now: float, silent: Sequence[Try]) -> None:
        """Leave the place where it is no good any more and another host lets us in."""
        if self.beside is None or self.place is None:
            return
        has_failed = self.failed_at.get(self.place, -math.inf) > self.succeeded_at
        is_silent = any(
            each.address == self.place and now - each.started >= LEAVE_AFTER for each in silent
        )
        if has_failed or is_silent:
            self.place, self.beside, self.succeeded_at = self.beside, None, now
            self.moves += 1
            self.round.clear()

    def saw(self, host: Address | None, takes_writes: bool) -> None:
        """*host* was asked for its role."""
        if host is not None and takes_writes:
            self.takes_writes.add(host)
        else:
            self.takes_writes -= {host}

    def is_move(self, attempt: Try) -> bool:
        """Whether *attempt* goes elsewhere than the last connections did."""
        return attempt.address not in (None, self.place)

    def take(self, host: Address, now: float, *, takes_writes: bool) -> None:
        """Leave the place for *host*, which was seen to let us in."""
        self.saw(host, takes_writes)
        self.moves += self.place != host
        self.place, self.beside, self.succeeded_at = host, None, now
        self.round.clear()

    # -- in words ----------------------------------------------------------------------------------

    def why_away(self, fault: Fault, silent: Sequence[Try]) -> Fault:
        """What makes the outage, where *fault* was the last to be told: a reason that waiting may
        cure, in the words of all hosts.
        """
        if not self.are_several:
            return fault
        lately = [self.faults[each] for each, at in self.failed_at.items() if at >= self.since]
        cures = [each for each in (fault, *lately) if each.kind in OUTAGE_KINDS]
        kind = cures[0].kind if cures else FaultKind.UNREACHABLE
        return Fault(kind, text=self.told(self.since, silent))

    def told(self, since: float, silent: Sequence[Try]) -> str:
        """Why no host has let us in since *since*, each host with its own reason; "" where there is
        one host only.
        """
        if not self.are_several:
            return ""
        waiting = {each.address for each in silent}
        return "; ".join(
            f"{address(*each)}: {self._reason(each, since, each in waiting)}"
            for each in self.addresses
        )

    def _reason(self, host: Address, since: float, is_silent: bool) -> str:
        if is_silent:
            return "no answer"
        if self.failed_at.get(host, -math.inf) < since:
            return "not asked yet"
        text = self.faults[host].text
        return text if len(text) <= _MOST else text[: _MOST - 1] + "…"
