"""The obligations of a contender, in one place. A row that breaks one of these makes the drill's
exit status 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.results import Result
from unbroken_drill.drill.scenarios import SMALL, Scenario

#: From the server's accepting to the first success: of unbroken, the median of at least five runs …
RECOVERY: Final = 0.050
RECOVERY_RUNS: Final = 5
#: … and of fewer. One run on a busy machine proves little, but shows a pool that sleeps a second.
RECOVERY_ONCE: Final = 0.250
#: How much a request may outlive its deadline. (A thread keeps the deadline, and must get its
#: turn.)
DEADLINE_GRACE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Judge:
    """Reports the breaches of a row: of unbroken's contract, or of an app's own limits.

    *names* are the apps that are judged; none: all. *max_errors* requests of each may fail in a
    scenario.
    """

    scenarios: Sequence[Scenario] = SMALL
    max_errors: int = 0
    names: tuple[str, ...] = ()

    def judges(self, row: Result) -> bool:
        """Return whether *row* is judged. The other ways to connect have promised nothing."""
        if isinstance(row, AppResult):
            return not self.names or row.key in self.names
        return row.is_ours

    def breaches(self, row: Result) -> list[str]:
        """Return the breaches of *row*, a line each."""
        if not self.judges(row):
            return []
        if row.failure is not None:
            return [f"not measured: {row.failure}"]
        if isinstance(row, AppResult):
            return list(_limits(row, self.max_errors))
        scenario = next(each for each in self.scenarios if each.name == row.scenario)
        return [*_requests(row, scenario), *_connections(row, scenario)]


def _limits(row: AppResult, max_errors: int) -> Iterable[str]:
    failed = row.errors + row.hung
    if failed > max_errors:
        hung = f", {row.hung} of them hung" if row.hung else ""
        yield f"{failed} of {row.requests} requests failed{hung}; {max_errors} allowed"
    if row.never_back:
        yield "requests were still failing when the traffic ended"
    if row.ended is not None:
        yield f"the app ended by itself: {row.ended}"
    if row.needed_restart:
        helped = "which helped" if row.restart_helped else "which did not help"
        yield f"the app did not recover by itself; the drill restarted it, {helped}"


def _requests(row: Result, scenario: Scenario) -> Iterable[str]:
    if row.wrong:
        yield f"{row.wrong} wrong answers or writes, 0 allowed"
    if row.hung:
        yield f"{row.hung} requests hung, 0 allowed"
    if row.errors:
        yield f"{row.errors} errors that a user would have seen, 0 allowed"
    if row.unwell:
        yield f"{row.unwell} requests failed after all faults had ended, 0 allowed"
    deadline = scenario.pool.deadline
    if deadline is None and row.told:
        yield f"{row.told} requests reported a deadline, but none was set"
    if deadline is not None and row.slowest > deadline + DEADLINE_GRACE:
        took = f"a request took {row.slowest:.2f} s"
        yield f"{took} with a deadline of {deadline:.0f} s, {DEADLINE_GRACE} s grace"
    if scenario.is_outage:
        allowed = RECOVERY if row.runs >= RECOVERY_RUNS else RECOVERY_ONCE
        if row.recovery is not None and row.recovery > allowed:
            took = (
                f"first success {row.recovery * 1000:.0f} ms after the server accepted connections"
            )
            yield f"{took}, {allowed * 1000:.0f} ms allowed"
    if row.never_back:
        yield "no success after the fault"


def _connections(row: Result, scenario: Scenario) -> Iterable[str]:
    if row.close_wait:
        yield f"{row.close_wait} sockets in CLOSE_WAIT one second after the fault, 0 allowed"
    most = scenario.pool.size * scenario.processes
    if row.sessions > most:
        yield f"{row.sessions} sessions on the server, {most} allowed"
    if row.left:
        yield f"{row.left} sessions left on the server after the pool was closed, 0 allowed"
