"""Compares what clients were told with what is stored. Pure: numbers in, a verdict out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from .journal import History
from .workload import ACCOUNTS, COUNTERS, START, MixedAnswersError, Unit

#: Why a unit is not run again whose statement two faults have met, one after the other, on
#: connections that had just worked; and one unit in so many may meet that.
GIVEN_UP, RARELY = "that statement ends its session", 200


@dataclass(frozen=True)
class Stored:
    """What the database holds in the end."""

    rows: Counter[tuple[int, int]]  #: how often each (number, part)
    balances: dict[int, int]
    counters: dict[int, int]


@dataclass
class Verdict:
    """Everything that is wrong, as a list for each kind of wrong.

    All empty: the history is exact.
    """

    lost: list[int] = field(default_factory=list)  #: acknowledged, and nothing of it is stored
    torn: list[int] = field(default_factory=list)  #: one part of it is stored, another is not
    doubled: list[int] = field(default_factory=list)  #: stored more than once
    refused: list[int] = field(default_factory=list)  #: refused, and stored yet
    strange: list[tuple[int, int]] = field(default_factory=list)  #: rows that nobody wrote
    #: accounts that do not hold what the stored transfers left them
    balances: list[str] = field(default_factory=list)
    #: counters below what was acknowledged, or above that and the unknown
    counters: list[str] = field(default_factory=list)
    #: refused, though they were to be replayed and had time enough
    denied: list[str] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)  #: heard the answer to another statement
    unknown_stored: int = 0  #: no wrong: of the unknown so many are stored

    @property
    def wrongs(self) -> dict[str, list[object]]:
        """What is wrong, by its kind; empty when nothing is."""
        found = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name != "unknown_stored"
        }
        return {name: list(what) for name, what in found.items() if what}


def check(
    history: History, stored: Stored, unit: Callable[[int], Unit], *, replayed: bool = True
) -> Verdict:
    """Hold *stored* against *history*; *unit* tells what a number stands for. *replayed*: units
    were run again where that was safe.

    Acknowledged: each row of it once. Unknown: each row once, or none at all. Refused, or never
    begun: none. Each account holds what it began with and what the stored transfers moved; each
    counter at least the acknowledged increments, at most these and the unknown.
    """
    verdict = Verdict()
    units = {number: unit(number) for number in history.begun}
    for each in units.values():
        _check_rows(
            each, [stored.rows[each.number, part] for part in range(each.parts)], history, verdict
        )
    verdict.strange += sorted(
        (n, part) for n, part in stored.rows if n not in units or part >= units[n].parts
    )
    _check_balances(units, stored, verdict)
    _check_counters(units, history, stored, verdict)
    denied = {
        n: why for n, why in history.refused.items() if replayed and units[n].manner == "unit"
    }
    verdict.mixed += sorted(
        n for n, why in history.refused.items() if why.startswith(MixedAnswersError.__name__)
    )
    given_up = {n for n, why in denied.items() if GIVEN_UP in why}
    rare = len(given_up) <= 1 + len(history.acknowledged) / RARELY
    verdict.denied += [
        f"{n}: {why}" for n, why in sorted(denied.items()) if not (rare and n in given_up)
    ]
    return verdict


def _check_rows(unit: Unit, times: list[int], history: History, verdict: Verdict) -> None:
    n = unit.number
    if any(count > 1 for count in times):
        verdict.doubled.append(n)
    if any(times) and not all(times):
        verdict.torn.append(n)
    if n in history.refused and any(times):
        verdict.refused.append(n)
    if n in history.acknowledged and times and not any(times):
        verdict.lost.append(n)
    if n in history.unknown and any(times):
        verdict.unknown_stored += 1


def _check_balances(units: dict[int, Unit], stored: Stored, verdict: Verdict) -> None:
    due = dict.fromkeys(range(ACCOUNTS), START)
    for each in units.values():
        if each.kind == "transfer":
            moved = each.amount * stored.rows[each.number, 0]
            due[each.source] -= moved
            due[each.target] += moved
    wrong = [n for n in due.keys() | stored.balances.keys() if due.get(n) != stored.balances.get(n)]
    verdict.balances += [
        f"account {n} holds {stored.balances.get(n)}, due {due.get(n)}" for n in sorted(wrong)
    ]


def _check_counters(
    units: dict[int, Unit], history: History, stored: Stored, verdict: Verdict
) -> None:
    increments = {n: each.counter for n, each in units.items() if each.kind == "increment"}
    least = Counter(counter for n, counter in increments.items() if n in history.acknowledged)
    doubtful = Counter(counter for n, counter in increments.items() if n in history.unknown)
    for n in range(COUNTERS):
        most, value = least[n] + doubtful[n], stored.counters.get(n)
        if value is None or not least[n] <= value <= most:
            verdict.counters.append(f"counter {n} is {value}, due {least[n]} to {most}")
