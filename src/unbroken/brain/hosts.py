"""Choose the host of a cluster for the next attempt to connect.

There is one object per cluster, role and process. The pools of a cluster use one host at a time,
its *place*. Attempts go to the place for as long as it accepts logins. If a host fails, refuses or
is silent, the next attempt goes to another host without delay. After a full round the pace of the
outage begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

from unbroken.abc import OUTAGE_KINDS, Address, Fault, FaultKind, address
from unbroken.brain.tries import Try

#: Seconds for which a host that rejected us permanently (a wrong password, for example) is not
#: tried again while other hosts can be tried.
REJECTED_FOR = 1.0
#: If standbys are preferred and one did not answer, it is tried again after this many seconds.
LOOK_AGAIN = 10.0
#: If an attempt at the place is silent for this many seconds and another host accepts logins, the
#: pools leave the place.
LEAVE_AFTER = 1.0
#: Maximum length of one host's reason in an error, in characters.
_MOST = 120


class After(Enum):
    """The next step after a failed attempt."""

    ELSEWHERE = auto()  #: another attempt, without delay: it goes to another host
    AWAY = auto()  #: all hosts failed or are silent: this is an outage
    REJECTED = auto()  #: all hosts rejected us permanently
    NOTHING = auto()  #: connections were opened since it began, so it proves nothing


class Hosts:
    """The state of the hosts of one cluster. The caller holds the lock of the record.

    *silent*, in all methods: attempts in progress that callers cannot count on any more.
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
        self.succeeded_at = -math.inf  #: when a connection to it was last opened
        #: A host that accepted a login while the place was silent.
        self.beside: Address | None = None
        self.moves = 0  #: how often connections to hosts other than the place became unwanted
        self.failed_at: dict[Address, float] = {}  #: when each host last failed …
        self.faults: dict[Address, Fault] = {}  #: … and why
        self.round: set[Address] = set()  #: hosts that failed in this round
        self.since = 0.0  #: when the first attempt of this round began
        #: Hosts that accept writes, among those that were asked.
        self.takes_writes: set[Address] = set()

    @property
    def are_several(self) -> bool:
        """Whether there is more than one host."""
        return len(self.addresses) > 1

    def next(self, now: float, silent: Sequence[Try]) -> Address | None:
        """The host for the next attempt. None: the URL's host."""
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
        """Preference of *host* where standbys are preferred; lower is better."""
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
        """*attempt* failed with *fault*. Return the next step."""
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
        """Whether this round has a host that was not tried yet."""
        waiting = {each.address for each in silent}
        return any(
            each not in self.round and each not in waiting and not self._is_rejected(each, now)
            for each in self.addresses
        )

    def passes_over(self, attempt: Try, now: float, silent: Sequence[Try]) -> bool:
        """The host of *attempt* accepts writes. Return whether another host, which may be a
        standby, must be tried first.
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
        """*attempt* opened a connection. Return False if the connection is unwanted, because others
        were opened elsewhere since the attempt began.
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
        """Whether *host* is preferred to the current place."""
        return (
            self.prefers_standby
            and self.place in self.takes_writes
            and host not in self.takes_writes
        )

    def leave(self, now: float, silent: Sequence[Try]) -> None:
        """Leave the place if it has failed or is silent, and another host accepts logins."""
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
        """The server at *host* reported its role."""
        if host is not None and takes_writes:
            self.takes_writes.add(host)
        else:
            self.takes_writes -= {host}

    def is_move(self, attempt: Try) -> bool:
        """Whether *attempt* goes to another host than the last connections did."""
        return attempt.address not in (None, self.place)

    def take(self, host: Address, now: float, *, takes_writes: bool) -> None:
        """Move to *host*, which has accepted a login."""
        self.saw(host, takes_writes)
        self.moves += self.place != host
        self.place, self.beside, self.succeeded_at = host, None, now
        self.round.clear()

    # -- texts -------------------------------------------------------------------------------------

    def why_away(self, fault: Fault, silent: Sequence[Try]) -> Fault:
        """The fault that describes the outage; *fault* is the last one. Its kind is one that
        waiting may cure, and its text names the reasons of all hosts.
        """
        if not self.are_several:
            return fault
        lately = [self.faults[each] for each, at in self.failed_at.items() if at >= self.since]
        cures = [each for each in (fault, *lately) if each.kind in OUTAGE_KINDS]
        kind = cures[0].kind if cures else FaultKind.UNREACHABLE
        return Fault(kind, text=self.told(self.since, silent))

    def told(self, since: float, silent: Sequence[Try]) -> str:
        """Why no host has accepted a login since *since*, with each host's own reason. "" if there
        is only one host.
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
