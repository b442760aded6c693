"""What came of one app in one scenario."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from unbroken_drill.drill.apps.replies import HUNG, OK, Reply
from unbroken_drill.drill.results import Mark, Result, added, spans


@dataclass  # without slots, which super() does not find its way through
class AppResult(Result):
    """A row of somebody's app, which knows of HTTP and of the app's process."""

    #: how often each; "none": no HTTP response
    statuses: dict[str, int] = field(default_factory=dict)
    needed_restart: bool = False  #: it did not recover by itself: the drill restarted it
    restart_helped: bool | None = None  #: and whether it served then; None: there was no restart
    ended: str | None = None  #: the app's process ended by itself: what it said
    late: float = (
        0.0  #: the most that the drill itself sent a request later than it was due, in seconds
    )
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
        """Count *replies*, and see how soon after each mark's end all was well. *targets*: what
        people call each URL, where there are several.
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
        # of one that lasts to the end nobody recovers
        faults = [span for span in spans(marks) if span[1] < last]
        until = [*(begin for begin, _ in faults), float("inf")][1:]
        # a request that is under way when the next fault comes says nothing of this one
        windows = [
            (up, [r for r in self.replies if up <= r.due and r.end < end])
            for (_, up), end in zip(faults, until, strict=True)
        ]
        self.recoveries = [recovery(after, up) for up, after in windows if after]

    def as_json(self) -> dict[str, Any]:
        """The row for machines; times on the timeline count from its beginning."""
        own = super().as_json()
        own["marks"] = [
            {"text": m.text, "begin": self._since(m.begin), "end": self._since(m.end)}
            for m in self.marks
        ]
        own["replies"] = [
            [self._since(r.due), round(r.end - r.due, 4), r.status, r.target] for r in self.replies
        ]
        for name in ("began", "is_ours", "wrong", "told", "in_doubt"):  # what only small apps have
            del own[name]
        return own

    def _since(self, moment: float) -> float:
        return round(moment - self.began, 4)

    @classmethod
    def combined(cls, rows: Sequence[Self]) -> Self:
        """As all rows, with the timeline of the run in which most requests failed."""
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
    """What a failed request was told, for counting: its status and the body's first line, which may
    begin with the status itself.
    """
    status = str(reply.status or "")
    return f"{status} {reply.line.removeprefix(status).strip(' :-')}".strip()


def recovery(replies: Sequence[Reply], up: float) -> float | None:
    """From *up* to the answer of the first of *replies* from which on all went well; None: they
    still failed at the end.

    *replies* are those due since then, in that order.
    """
    failed = [at for at, reply in enumerate(replies) if reply.outcome != OK]
    well = replies[failed[-1] + 1 :] if failed else replies
    return max(0.0, min(reply.end for reply in well) - up) if well else None
