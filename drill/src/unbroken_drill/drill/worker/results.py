"""The result of one small app in one scenario, compared with the data on its server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unbroken_drill.drill.contenders.base import DOUBT, ERROR, OK, TOLD, WRONG
from unbroken_drill.drill.results import Mark, Result, spans
from unbroken_drill.drill.worker.load import Record


@dataclass(slots=True)
class SmallResult(Result):
    """A row of a small app: the drill knows the writes of each request, and the stored data."""

    def count(self, records: Iterable[Record]) -> None:
        """Add the requests' outcomes."""
        for record in records:
            self.requests += record.number > 0
            self.slowest = max(self.slowest, record.end - record.start)
            self.errors += record.outcome == ERROR
            self.wrong += record.outcome == WRONG
            self.told += record.outcome == TOLD
            self.in_doubt += record.outcome == DOUBT

    def check_journal(self, records: Iterable[Record], journal: Mapping[int, int]) -> None:
        """Compare the journal with the app's reports: acknowledged writes are there once, and no
        write is there twice.

        For unbroken also: writes that it reported as failed are absent. Other apps pass on the
        driver's error, which does not describe a COMMIT in progress. So for them a failed write
        that is there is not a wrong report.
        """
        said = {record.number: record.outcome for record in records if record.writes}
        for number, outcome in said.items():
            there = journal.get(number, 0)
            if there > 1:
                self._lie(f"write {number} is stored {there} times")
            elif outcome == OK and not there:
                self._lie(f"write {number} was acknowledged, but is lost")
            elif outcome in (ERROR, TOLD) and there and self.is_ours:
                self._lie(f"write {number} was reported as failed, but is stored")

    def _lie(self, text: str) -> None:
        self.wrong += 1
        self.samples[text] = self.samples.get(text, 0) + 1


def recoveries(records: Sequence[Record], marks: Sequence[Mark]) -> list[float | None]:
    """Return how long each fault of *marks* had an effect after its end; None: no request succeeded
    afterwards.
    """
    found = []
    for _, end in spans(marks):
        since = min(
            (mark.since for mark in marks if mark.end == end and mark.since is not None),
            default=end,
        )
        found.append(recovery(records, since, end))
    return found


def recovery(records: Iterable[Record], since: float, up: float) -> float | None:
    """Return the time from *up*, when the server could answer, to the first success after
    *since*.
    """
    ends = [record.end for record in records if record.outcome == OK and record.end > since]
    return max(0.0, min(ends) - up) if ends else None
