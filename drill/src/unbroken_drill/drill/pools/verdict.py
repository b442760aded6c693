"""What unbroken owes in a drill, in one place: a row that breaks one of these makes the drill's
exit status 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from unbroken_drill.drill.pools.scenarios import DEADLINE, SCENARIOS, Scenario
from unbroken_drill.drill.report import SLOW
from unbroken_drill.drill.results import Result

#: From the server's accepting to the first success, the median of at least five runs …
RECOVERY: Final = 0.050
RECOVERY_RUNS: Final = 5
#: … and of fewer: one run on a busy machine says little, but a pool that sleeps a second shows.
RECOVERY_ONCE: Final = 0.250
#: By how much a request may outlive its deadline (the deadline is kept by a thread that must get
#: its turn).
DEADLINE_GRACE: Final = SLOW - DEADLINE

_SCENARIOS: Final = {scenario.name: scenario for scenario in SCENARIOS}


def breaches(row: Result) -> list[str]:
    """What *row*, one of unbroken's, breaks of the contract: a line each.

    Empty for other contenders: they promised nothing.
    """
    if not row.is_ours:
        return []
    if row.failure is not None:
        return [f"could not be measured: {row.failure}"]
    scenario = _SCENARIOS[row.scenario]
    return [*_requests(row, scenario), *_connections(row, scenario)]


def _requests(row: Result, scenario: Scenario) -> Iterable[str]:
    if row.wrong:
        yield f"{row.wrong} wrong answers or writes, 0 allowed"
    if row.hung:
        yield f"{row.hung} requests hung, 0 allowed"
    if row.errors:
        yield f"{row.errors} errors that a user would have seen, 0 allowed"
    if row.unwell:
        yield f"{row.unwell} requests failed after everything had healed, 0 allowed"
    if scenario.plan.deadline is None and row.told:
        yield f"{row.told} requests ended by a deadline that was not set"
    if scenario.plan.deadline is not None and row.slowest > scenario.plan.deadline + DEADLINE_GRACE:
        yield (
            f"a request took {row.slowest:.2f} s with a deadline of {scenario.plan.deadline:.0f} s,"
            f" {DEADLINE_GRACE} s grace"
        )
    if scenario.is_outage:
        allowed = RECOVERY if len(row.recoveries) >= RECOVERY_RUNS else RECOVERY_ONCE
        if row.recovery is not None and row.recovery > allowed:
            yield (
                f"first success {row.recovery * 1000:.0f} ms after the server accepted,"
                f" {allowed * 1000:.0f} ms allowed"
            )
    if row.never_back:
        yield "no success after the fault"


def _connections(row: Result, scenario: Scenario) -> Iterable[str]:
    if row.close_wait:
        yield f"{row.close_wait} sockets in CLOSE_WAIT one second after the fault, 0 allowed"
    most = scenario.plan.size * scenario.processes
    if row.sessions > most:
        yield f"{row.sessions} sessions on the server, {most} allowed"
    if row.left:
        yield f"{row.left} sessions left on the server after the pool was closed, 0 allowed"
