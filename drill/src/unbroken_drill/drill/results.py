"""A row of the drill's tables: the result of one contender in one scenario."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self


class Contestant(Protocol):
    """The subject of a row: a small app of the drill's own, or the user's app."""

    @property
    def key(self) -> str:
        """Its unique key."""

    @property
    def title(self) -> str:
        """Its name in the table, at most 20 characters."""

    @property
    def backend(self) -> str:
        """The kind of its server."""

    @property
    def is_ours(self) -> bool:
        """Whether it is held to unbroken's contract."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A fault on the timeline. Times are ``time.monotonic()``; *begin* and *end* are equal for a
    fault of one moment.

    Only an answer that came after *since* shows that the contender has recovered. None: after
    *end*.
    """

    text: str
    begin: float
    end: float
    since: float | None = None


def spans(marks: Sequence[Mark]) -> list[tuple[float, float]]:
    """Return the times in which a fault lasted. Marks that overlap give one span."""
    found: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda mark: mark.begin):
        if found and mark.begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], mark.end))
        else:
            found.append((mark.begin, mark.end))
    return found


@dataclass(slots=True)
class Result:
    """One row of the table. Counts are requests unless stated otherwise, times are seconds."""

    server: str
    scenario: str
    key: str
    title: str
    is_ours: bool
    requests: int = 0
    errors: int = 0  #: that a user would have seen
    wrong: int = 0  #: another's answers, shared sessions, acknowledged writes lost, writes doubled
    hung: int = 0  #: no answer in time
    told: int = 0  #: ended by their own deadline, in time
    in_doubt: int = 0  #: writes correctly reported as unknown
    slowest: float = 0.0
    recoveries: list[float | None] = field(default_factory=list)  #: one for each fault; None: never
    sessions: int = 0  #: on the server, at rest after the fault
    left: int = 0  #: sessions on the server after the contender was closed
    close_wait: int | None = 0  #: sockets, one second after the fault
    unwell: int = 0  #: failed requests of those sent after all faults had ended
    failure: str | None = None  #: why it could not be measured at all
    samples: dict[str, int] = field(default_factory=dict)  #: the texts of errors, and how often
    runs: int = 1

    @property
    def recovery(self) -> float | None:
        """The longest recovery of a run, because users notice the worst one; the median of several
        runs.

        None if there was none to measure, or if the contender did not recover.
        """
        faults = max(1, len(self.recoveries) // self.runs)
        runs = [self.recoveries[at : at + faults] for at in range(0, len(self.recoveries), faults)]
        worst = [max(time for time in run if time is not None) for run in runs if None not in run]
        return statistics.median(worst) if worst else None

    @property
    def never_back(self) -> bool:
        """Whether the contender did not recover from a fault during the scenario."""
        return None in self.recoveries

    @property
    def badness(self) -> tuple[int, ...]:
        """The sort key: wrong data is worst, then hanging, no recovery, errors, and deadlines."""
        return (
            self.failure is not None,
            self.wrong,
            self.hung,
            self.unwell,
            self.errors,
            self.told,
        )

    @classmethod
    def combined(cls, rows: Sequence[Self]) -> Self:
        """Return several runs of the same scenario as one row: counts are added, maxima kept."""
        total = replace(rows[0], runs=len(rows))
        for name in ("requests", "errors", "wrong", "hung", "told", "in_doubt", "unwell"):
            setattr(total, name, sum(getattr(row, name) for row in rows))
        for name in ("slowest", "sessions", "left"):
            setattr(total, name, max(getattr(row, name) for row in rows))
        known = [row.close_wait for row in rows if row.close_wait is not None]
        total.close_wait = max(known) if len(known) == len(rows) else None
        total.recoveries = [time for row in rows for time in row.recoveries]
        total.failure = next((row.failure for row in rows if row.failure is not None), None)
        total.samples = added(row.samples for row in rows)
        return total

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON data."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "recovery": self.recovery, "slowest": round(self.slowest, 6)}


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return several counts as one, the most frequent first."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total.most_common())


def one_line(error: BaseException) -> str:
    """Return the error's class, text, notes and cause on one line, bounded."""
    # SQLAlchemy adds statement, values and a link
    text = " ".join(str(error).split()).split(" [SQL: ")[0]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    cause = f"; because of {one_line(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{said}{notes}{cause}"[:400]
