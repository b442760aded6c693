"""The result of one app in one scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from unbroken_drill.drill.apps.replies import HUNG, OK, Reply
from unbroken_drill.drill.results import Mark, Result, added, spans


@dataclass  # without slots: super() does not work with them here
class AppResult(Result):
    """A row of the user's app, with facts about HTTP and the app's process."""

    #: the count of each; "none": no HTTP response
    statuses: dict[str, int] = field(default_factory=dict)
    needed_restart: bool = False  #: it did not recover by itself: the drill restarted it
    restart_helped: bool | None = None  #: whether it served after that; None: no restart
    ended: str | None = None  #: the app's process ended by itself: its last output
    late: float = 0.0  #: the longest delay of a request by the drill itself, in seconds
    quiet_latency: float | None = None  #: the median before the first fault, in seconds
    marks: list[Mark] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)  #: every request, in the order they were due
    began: float = 0.0  #: when the timeline begins, ``time.monotonic()``

    def take(
        self,
        replies: Sequence[Reply],
        marks: Sequence[Mark],
        began: float,
        targets: Sequence[str] = (),
    ) -> None:
        """Count *replies*, and find how soon after each mark's end everything worked. *targets*:
        the names of the URLs, if there are several.
        """
        self.replies, self.marks, self.began = sorted(replies), list(marks), began
        self.requests = len(replies)
        self.hung = sum(reply.outcome == HUNG for reply in replies)
        self.errors = sum(reply.outcome != OK for reply in replies) - self.hung
        self.slowest = max((reply.end - reply.due for reply in replies), default=0.0)
        self.statuses = dict(
            Counter(str(reply.status or "none") for reply in replies).most_common()
        )
        self.samples = dict(
            Counter(
                (f"{targets[reply.target]}: " if targets else "") + said(reply)
                for reply in replies
                if reply.outcome != OK
            ).most_common(20)
        )
        self.late = max(
            (reply.sent - reply.due for reply in replies if reply.outcome == OK), default=0.0
        )
        first = marks[0].begin if marks else float("inf")
        before = sorted(
            reply.end - reply.due
            for reply in self.replies
            if reply.end < first and reply.outcome == OK
        )
        self.quiet_latency = before[len(before) // 2] if before else None
        last = self.replies[-1].due if replies else 0.0
        # nobody can recover from a fault that lasts to the end
        faults = [span for span in spans(marks) if span[1] < last]
        until = [*(begin for begin, _ in faults), float("inf")][1:]
        # a request in progress at the next fault reveals nothing about this one
        windows = [
            (up, [r for r in self.replies if up <= r.due and r.end < end])
            for (_, up), end in zip(faults, until, strict=True)
        ]
        self.recoveries = [recovery(after, up) for up, after in windows if after]

    def as_json(self) -> dict[str, Any]:
        """Return the row as JSON data; times on the timeline count from its beginning."""
        own = super().as_json()
        own["marks"] = [
            {"text": m.text, "begin": self._since(m.begin), "end": self._since(m.end)}
            for m in self.marks
        ]
        own["replies"] = [
            [self._since(r.due), round(r.end - r.due, 4), r.status, r.target] for r in self.replies
        ]
        for name in ("began", "is_ours", "wrong", "told", "in_doubt"):  # fields of small apps only
            del own[name]
        return own

    def _since(self, moment: float) -> float:
        return round(moment - self.began, 4)

    @classmethod
    def combined(cls, rows: Sequence[Self]) -> Self:
        """Return all rows as one, with the timeline of the run with the most failed requests."""
        total = super().combined(rows)
        worst = max(rows, key=lambda row: row.errors + row.hung)
        total.marks, total.replies, total.began = worst.marks, worst.replies, worst.began
        total.statuses = added(row.statuses for row in rows)
        total.needed_restart = any(row.needed_restart for row in rows)
        helped = [row.restart_helped for row in rows if row.restart_helped is not None]
        total.restart_helped = all(helped) if helped else None
        total.ended = next((row.ended for row in rows if row.ended is not None), None)
        total.late = max(row.late for row in rows)
        return total


def said(reply: Reply) -> str:
    """Return a failed request's answer, for counting: its status and the body's first line, which
    may begin with the status itself.
    """
    status = str(reply.status or "")
    return f"{status} {reply.line.removeprefix(status).strip(' :-')}".strip()


def recovery(replies: Sequence[Reply], up: float) -> float | None:
    """Return the time from *up* to the first of *replies* after which no request failed; None:
    requests still failed at the end.

    *replies* are those due since then, in that order.
    """
    failed = [at for at, reply in enumerate(replies) if reply.outcome != OK]
    well = replies[failed[-1] + 1 :] if failed else replies
    return max(0.0, min(reply.end for reply in well) - up) if well else None
