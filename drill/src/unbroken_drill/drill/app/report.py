"""The app's drill on a screen: every number, what the errors said, the league table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unbroken_drill.drill import report
from unbroken_drill.drill.app.plan import Plan
from unbroken_drill.drill.app.results import AppResult
from unbroken_drill.drill.app.run import Player
from unbroken_drill.drill.app.verdict import breaches
from unbroken_drill.drill.report import BAD, FAINT, GOOD, POOR, seconds

_COLUMNS: Final = (
    ("errors", 6),
    ("hung", 5),
    ("slowest", 7),
    ("back in", 7),
    ("sessions", 8),
    ("CLOSE_WAIT", 10),
)

#: A drill that sends requests later than this, in seconds, says so.
_LATE: Final = 0.1

#: Of what errors said, so many lines are shown (all with ``-v``).
_SAID: Final = 3

LEGEND: Final = (
    ("✓", GOOD, "no request failed, none was slow"),
    (
        "12",
        BAD,
        (
            "requests that failed; 12! = and some still do after everything has healed: the app"
            " needed a restart"
        ),
    ),
    ("4.0s", POOR, "none failed, but the slowest took that long, counted from when it was due"),
    ("H3", "bold red", "requests without an answer in time (--timeout)"),
    (
        "back in",
        FAINT,
        (
            "from the end of the fault to the answer of the first request from which on all went"
            " well; the worst fault counts"
        ),
    ),
    ("sessions", FAINT, "on the server, after it all; left = still there after the app was ended"),
    (
        "CLOSE_WAIT",
        FAINT,
        (
            "the app's database sockets whose other end is gone and nobody noticed, a second after"
            " the last traffic"
        ),
    ),
)


def final(
    console: Console,
    rows: Sequence[AppResult],
    players: Sequence[Player],
    plan: Plan,
    server: str,
    *,
    verbose: bool = False,
) -> None:
    """Print everything: details, the league table, what breaks the limits."""
    console.print(Rule(Text(server, "bold"), style=FAINT))
    for block in details(rows, plan, verbose=verbose):
        console.print(block, Text())
    console.print(Rule(Text("league table", "bold"), style=FAINT))
    for table in leagues(rows, players, plan, server, console.width):
        console.print(table, Text())
    console.print(report.explained(LEGEND), Text())
    for text in (*judgement(rows, plan), *lateness(rows)):
        console.print(text)


def lateness(rows: Sequence[AppResult]) -> Iterable[Text]:
    """A word of warning where the drill itself was not in time, which says more of the machine than
    of the app.
    """
    late = max((row.late for row in rows), default=0.0)
    if late > _LATE:
        yield Text(
            f"requests were sent up to {seconds(late)} late (it counts as latency): the machine is"
            " busy, or --concurrency low",
            POOR,
        )


def leagues(
    rows: Sequence[AppResult], players: Sequence[Player], plan: Plan, title: str, room: int
) -> Iterable[Table]:
    """Apps against scenarios, best app first; in several tables where one would be wider than
    *room*.
    """
    ranked, width = report.ranked(rows, players), _width(players)
    names: list[str] = []
    for name in (scenario.name for scenario in plan.scenarios):
        if names and width + sum(max(5, len(each)) + 1 for each in (*names, name)) > room:
            yield report.league(rows, ranked, plan.backend, title, names, width=width)
            names = []
        names.append(name)
    yield report.league(rows, ranked, plan.backend, title, names, width=width)


def _width(players: Sequence[Player]) -> int:
    return max(len(player.title) for player in players)


def details(rows: Sequence[AppResult], plan: Plan, *, verbose: bool) -> Iterable[RenderableType]:
    """A block for each scenario."""
    for scenario in plan.scenarios:
        own = [row for row in rows if row.scenario == scenario.name]
        if own:
            title = Text.assemble((scenario.name, "bold"), (f"  {scenario.title}", FAINT))
            yield Group(
                title, _numbers(own), *_said(own, len(own[0].samples) if verbose else _SAID)
            )


def _numbers(rows: Sequence[AppResult]) -> Table:
    table = Table(**report.STYLE)
    table.add_column("", width=max(8, *(len(row.title) for row in rows)), no_wrap=True)
    for name, width in _COLUMNS:
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*_line(row))
    return table


def _line(row: AppResult) -> list[Text]:
    if row.failure is not None:
        return [Text(row.title), *(Text("-", FAINT) for _ in _COLUMNS), Text("not measured", BAD)]
    stuck = row.close_wait
    return [
        Text(row.title),
        Text(str(row.errors), BAD if row.errors else GOOD),
        Text(str(row.hung), BAD if row.hung else ""),
        Text(seconds(row.slowest)),
        Text("never" if row.never_back else seconds(row.recovery), BAD if row.never_back else ""),
        Text(str(row.sessions)),
        Text("-" if stuck is None else str(stuck), POOR if stuck else ""),
        remarks(row),
    ]


def remarks(row: AppResult) -> Text:
    """What the columns do not show, with the statuses of the requests that failed."""
    bad = {
        status: times
        for status, times in row.statuses.items()
        if status == "none" or int(status) >= 400
    }
    parts = [
        (f"{times} x {'no response' if status == 'none' else status}", "")
        for status, times in bad.items()
    ]
    if row.ended is not None:
        parts.append(("the app ended", BAD))
    if row.needed_restart:
        parts.append(("restarted" if row.restart_helped else "a restart did not help", BAD))
    if row.left:
        parts.append((f"{row.left} left", POOR))
    return Text(", ").join(Text(part, style) for part, style in parts)


def _said(rows: Sequence[AppResult], most: int) -> Iterable[Text]:
    for row in rows:
        if row.failure is not None:
            yield Text(f"  {row.title}: {row.failure}", POOR)
        for line, times in list(row.samples.items())[:most]:
            yield Text(f"  {row.title}: {times} x {line}", FAINT)


def judgement(rows: Sequence[AppResult], plan: Plan) -> Iterable[Text]:
    """A line for each limit that is broken, and one for all."""
    judged = [row for row in rows if not plan.judge or row.key in plan.judge]
    whose = f" of {', '.join(plan.judge)}" if plan.judge else ""
    bad = 0
    for row in judged:
        lines = breaches(row, plan)
        bad += bool(lines)
        for line in lines:
            yield Text(f"✗ {row.scenario}, {row.title}: {line}", BAD)
    if bad:
        yield Text(f"limits broken in {bad} of {len(judged)} rows{whose}", "bold red")
    else:
        yield Text(f"limits kept in all {len(judged)} rows{whose}", "bold green")
