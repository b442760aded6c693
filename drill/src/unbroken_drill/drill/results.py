"""A row of the drill's tables: what came of one contender, a pool or an app, in one scenario."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, fields
from typing import Any, Protocol


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
    wrong: int = (
        0  #: answers of somebody else, shared sessions, acknowledged writes lost, writes doubled
    )
    hung: int = 0  #: no answer within the watchdog's 15 s
    told: int = 0  #: ended by their own deadline, in time
    in_doubt: int = 0  #: writes honestly reported as unknown
    slowest: float = 0.0
    #: heal to first success, once per fault; None: never
    recoveries: list[float | None] = field(default_factory=list)
    sessions: int = 0  #: on the server, at rest after the fault
    left: int = 0  #: still on the server after the contender was closed
    close_wait: int | None = 0  #: sockets, one second after the fault
    unwell: int = 0  #: of the requests sent after everything had healed: failed
    failure: str | None = None  #: why it could not be measured at all
    samples: dict[str, int] = field(default_factory=dict)  #: what was said, and how often
    runs: int = 1

    @property
    def recovery(self) -> float | None:
        """The median time to the first success; None when there was none to measure, or no success
        at all.
        """
        times = [time for time in self.recoveries if time is not None]
        return statistics.median(times) if times else None

    @property
    def never_back(self) -> bool:
        """Whether a fault was never recovered from while we watched."""
        return None in self.recoveries

    @property
    def badness(self) -> tuple[int, ...]:
        """For ranking, best first: wrong data is worst, then hanging, staying broken, errors, and
        what it told in time.
        """
        return (
            self.failure is not None,
            self.wrong,
            self.hung,
            self.unwell,
            self.errors,
            self.told,
        )

    def as_json(self) -> dict[str, Any]:
        """The row for machines."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**own, "recovery": self.recovery, "slowest": round(self.slowest, 6)}


def one_line(error: BaseException) -> str:
    """The error's class, text, notes and cause on one line, bounded."""
    # SQLAlchemy adds statement, values and a link
    text = " ".join(str(error).split()).split(" [SQL: ")[0]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    cause = f"; because of {one_line(error.__cause__)}" if error.__cause__ is not None else ""
    return f"{said}{notes}{cause}"[:400]
