"""What came of one contender in one scenario, and how several runs of it become one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unbroken_drill.drill.pools.contenders.base import DOUBT, ERROR, OK, TOLD, WRONG
from unbroken_drill.drill.pools.traffic import Record
from unbroken_drill.drill.results import Result


@dataclass(slots=True)
class PoolResult(Result):
    """A row of the drill of pools, whose drill knows what each contender wrote, and what is
    stored.
    """

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
        """Hold the journal against what the contender said: acknowledged is there once, nothing is
        there twice.

        For unbroken also: what it reported as failed is absent. Other contenders hand the driver's
        error through, which says nothing about a COMMIT under way, so for them a failed write that
        is there is no lie.
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


def recovery(records: Iterable[Record], down: float, up: float) -> float | None:
    """From *up*, when the server could answer again, to the first success that ended after *down*,
    when none could.
    """
    ends = [record.end for record in records if record.outcome == OK and record.end > down]
    return max(0.0, min(ends) - up) if ends else None


def combined(rows: Sequence[PoolResult]) -> PoolResult:
    """Several runs of the same scenario as one row: counts added up, the slowest and the fullest
    kept.
    """
    first = rows[0]
    total = PoolResult(
        first.server, first.scenario, first.key, first.title, first.is_ours, runs=len(rows)
    )
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
