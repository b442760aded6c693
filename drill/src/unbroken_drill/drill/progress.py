"""The drill's display while it runs: a table that fills in on a terminal, a line per result
elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from unbroken_drill.drill import report
from unbroken_drill.drill.contest import Job
from unbroken_drill.drill.results import Contestant, Result


class Progress:
    """Watches a drill (see :class:`unbroken_drill.drill.campaign.Watcher`). A context manager that
    removes its display at the end.
    """

    def __init__(
        self,
        console: Console,
        contenders: Sequence[Contestant],
        scenarios: Sequence[str],
        total: int,
    ) -> None:
        self._console, self._contenders, self._scenarios, self._total = (
            console,
            contenders,
            scenarios,
            total,
        )
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, str], Result] = {}
        self._running: list[Job] = []
        self._done = 0
        self._began = time.monotonic()
        self._live = (
            Live(console=console, transient=True, auto_refresh=False)
            if console.is_terminal and not console.is_dumb_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, job: Job) -> None:
        """*job* has begun."""
        with self._lock:
            self._running.append(job)

    def ended(self, job: Job, result: Result, done: int, total: int) -> None:
        """*job* gave *result*."""
        with self._lock:
            self._running.remove(job)
            self._rows[job.cell] = result
            self._done = done
        if self._live is None:
            self._console.print(
                Text(f"[{done:>{len(str(total))}}/{total}] {line(result)}"), soft_wrap=True
            )

    def tick(self) -> None:
        """Draw the table again."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        with self._lock:
            rows, running = list(self._rows.values()), list(self._running)
        backend = (
            running[0].contender.backend
            if running
            else rows[-1].server
            if rows
            else self._contenders[0].backend
        )
        since = time.monotonic() - self._began
        done = f"{self._done} of {self._total}, {since:.0f} s"
        title = f"unbroken drill: {report.SERVERS[backend]}, {done}"
        now = [job.cell for job in running]
        under_way = ", ".join(
            f"{job.scenario.name}: {job.contender.title}{f' ({job.detail})' if job.detail else ''}"
            for job in running
        )
        width = max(len(each.title) for each in self._contenders)
        tables = [
            report.league(rows, self._contenders, backend, "", names, now, width)
            for names in report.parted(self._scenarios, width, self._console.width)
        ]
        return Group(
            Text(title, "bold"), *tables, Text(f"now {under_way}" if under_way else "", "cyan")
        )


def line(row: Result) -> str:
    """Return a result on one line."""
    where = f"{report.SERVERS[row.server]} {row.scenario}, {row.title}:"
    if row.failure is not None:
        return f"{where} {row.failure}"
    back = "never" if row.never_back else report.seconds(row.recovery)
    text = f"{where} {row.errors} errors, slowest {report.seconds(row.slowest)}, back in {back}"
    more = report.remarks(row).plain
    return f"{text}, {more}" if more else text
