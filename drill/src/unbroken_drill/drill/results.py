"""What came of one contender in one scenario, and how several runs of it become one row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from unbroken_drill.drill.contenders.base import DOUBT, ERROR, OK, TOLD, WRONG
from unbroken_drill.drill.traffic import Record


class Named(Protocol):
    """A scenario, of any kind."""

    @property
    def name(self) -> str:
        """What it is called."""


class Contestant(Protocol):
    """Who a row is about: a contender of ours, or somebody's app."""

    @property
    def key(self) -> str:
        """What tells it from the others."""

    @property
    def title(self) -> str:
        """As the table shows it, at most 20 characters."""

    @property
    def backend(self) -> str:
        """On which kind of server."""

    @property
    def is_ours(self) -> bool:
        """Whether it is held to unbroken's contract."""


@dataclass(slots=True)
class Result:
    """One row of the table. Counts are requests unless said otherwise, times seconds."""

    server: str
    scenario: str
    key: str
    title: str
    is_ours: bool
    requests: int = 0
    errors: int = 0  #: that a user would have seen
    wrong: int = 0  #: answers of somebody else, shared sessions, acknowledged writes lost, writes doubled
    hung: int = 0  #: no answer within the watchdog's 15 s
    told: int = 0  #: ended by their own deadline, in time
    in_doubt: int = 0  #: writes honestly reported as unknown
    slowest: float = 0.0
    recoveries: list[float | None] = field(default_factory=list)  #: heal to first success, once per fault; None: never
    sessions: int = 0  #: on the server, at rest after the fault
    left: int = 0  #: still on the server after the contender was closed
    close_wait: int | None = 0  #: sockets, one second after the fault
    unwell: int = 0  #: of the requests sent after everything had healed: failed
    failure: str | None = None  #: why it could not be measured at all
    samples: dict[str, int] = field(default_factory=dict)  #: what was said, and how often
    runs: int = 1

    @property
    def recovery(self) -> float | None:
        """The median time to the first success; None when there was none to measure, or no success at all."""
        times = [time for time in self.recoveries if time is not None]
        return statistics.median(times) if times else None

    @property
    def never_back(self) -> bool:
        """Whether a fault was never recovered from while we watched."""
        return None in self.recoveries

    @property
    def badness(self) -> tuple[int, ...]:
        """For ranking, best first: wrong data is worst, then hanging, staying broken, errors, and what it told in time."""
        return (self.failure is not None, self.wrong, self.hung, self.unwell, self.errors, self.told)

    def count(self, records: Iterable[Record]) -> None:
        """Take the requests' outcomes in."""
        for record in records:
            self.requests += record.number > 0
            self.slowest = max(self.slowest, record.end - record.start)
            self.errors += record.outcome == ERROR
            self.wrong += record.outcome == WRONG
            self.told += record.outcome == TOLD
            self.in_doubt += record.outcome == DOUBT

    def check_journal(self, records: Iterable[Record], journal: Mapping[int, int]) -> None:
        """Hold the journal against what the contender said: acknowledged is there once, nothing is there twice.

        For unbroken also: what it reported as failed is absent. Other contenders hand the driver's error through, which
        says nothing about a COMMIT under way, so for them a failed write that is there is no lie.
        """
        said = {record.number: record.outcome for record in records if record.writes}
        for number, outcome in said.items():
            there = journal.get(number, 0)
            if there > 1:
                self._lie(f"write {number} is stored {there} times")
            elif outcome == OK and not there:
                self._lie(f"write {number} was acknowledged and is lost")
            elif outcome in (ERROR, TOLD) and there and self.is_ours:
                self._lie(f"write {number} was reported as failed and is stored")

    def _lie(self, text: str) -> None:
        self.wrong += 1
        self.samples[text] = self.samples.get(text, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """The row for machines."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "recovery": self.recovery, "slowest": round(self.slowest, 6)}


def recovery(records: Iterable[Record], down: float, up: float) -> float | None:
    """From *up*, when the server could answer again, to the first success that ended after *down*, when none could."""
    ends = [record.end for record in records if record.outcome == OK and record.end > down]
    return max(0.0, min(ends) - up) if ends else None


def combined(rows: Sequence[Result]) -> Result:
    """Several runs of the same scenario as one row: counts added up, the slowest and the fullest kept."""
    first = rows[0]
    total = Result(first.server, first.scenario, first.key, first.title, first.is_ours, runs=len(rows))
    samples: Counter[str] = Counter()
    for row in rows:
        for name in ("requests", "errors", "wrong", "hung", "told", "in_doubt", "unwell"):
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.slowest = max(total.slowest, row.slowest)
        total.sessions, total.left = max(total.sessions, row.sessions), max(total.left, row.left)
        if row.close_wait is None or total.close_wait is None:
            total.close_wait = None
        else:
            total.close_wait = max(total.close_wait, row.close_wait)
        total.recoveries += row.recoveries
        total.failure = total.failure or row.failure
        samples.update(row.samples)
    total.samples = dict(samples)
    return total
