"""The drill on a screen: every number, the errors' texts, the league table, and the meaning of all
that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.results import Contestant, Result
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.verdict import Judge

Cell: TypeAlias = tuple[str, str, str]  #: server, scenario, contender

C = TypeVar("C", bound=Contestant)

SERVERS = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "mongodb": "MongoDB"}

#: Seconds from which a request is slow enough to be shown if nothing else went wrong.
SLOW: Final = 2.5

#: Seconds. A drill that sends requests later than this reports that.
_LATE: Final = 0.1

#: This many of the errors' texts are shown; all with ``-v``.
_SAID: Final = 3

_COLUMNS: Final = (
    ("errors", 6),
    ("hung", 5),
    ("slowest", 7),
    ("back in", 7),
    ("sessions", 8),
    ("CLOSE_WAIT", 10),
)

WRONG, BAD, POOR, GOOD, FAINT = "bold white on red", "red", "yellow", "green", "dim"


#: Tables without lines, one space between columns: everything fits into 80 columns.
STYLE: Final[Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0), "header_style": FAINT}


def seconds(value: float | None) -> str:
    """Return a time for people: ``12 ms``, ``1.6 s``."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def cell(row: Result | None) -> Text:
    """Return one square of the league table, at most five characters: the worst result."""
    if row is None:
        return Text("·", FAINT)
    if row.failure is not None:
        return Text("fail", BAD)
    if row.wrong:
        return Text(f"W{short(row.wrong)}", WRONG)
    if row.hung:
        return Text(f"H{short(row.hung)}", "bold red")
    if row.errors or row.unwell:
        return Text(
            f"{short(row.errors or row.unwell)}{'!' if row.unwell or row.never_back else ''}", BAD
        )
    if row.told:
        return Text(f"D{short(row.told)}", GOOD if row.slowest <= SLOW else POOR)
    if row.slowest > SLOW:
        return Text(f"{row.slowest:.1f}s", POOR)
    return Text("✓", GOOD)


def short(number: int) -> str:
    """Return a count in at most four characters."""
    return str(number) if number < 10_000 else f"{number // 1000}k"


def remarks(row: Result) -> Text:
    """Return facts that the columns do not show."""
    parts: list[tuple[str, str]] = []
    if row.failure is not None:
        parts.append(("not measured", BAD))
    if row.wrong:
        parts.append((f"{row.wrong} wrong", WRONG))
    if isinstance(row, AppResult):
        parts += _of_app(row)
    elif row.unwell:
        parts.append(("stays broken", BAD))
    if row.told:
        parts.append((f"{row.told} deadlines", ""))
    if row.in_doubt:
        parts.append((f"{row.in_doubt} in doubt", ""))
    if row.left:
        parts.append((f"{row.left} left", POOR))
    return Text(", ").join(Text(part, style) for part, style in parts)


def _of_app(row: AppResult) -> Iterable[tuple[str, str]]:
    """Yield the statuses of the requests that failed, and how the process ended."""
    for status, times in row.statuses.items():
        if status == "none" or int(status) >= 400:
            yield f"{times} x {'no response' if status == 'none' else status}", ""
    if row.ended is not None:
        yield "the app ended", BAD
    if row.needed_restart:
        yield "restarted" if row.restart_helped else "a restart did not help", BAD


def league(
    rows: Sequence[Result],
    contenders: Sequence[Contestant],
    server: str,
    title: str,
    names: Sequence[str],
    running: Iterable[Cell] = (),
    width: int = 20,
) -> Table:
    """Return contenders against scenarios, both in the order given, one square each. *running* are
    those that are being played.
    """
    now = set(running)
    table = Table(title=Text(title, "bold") if title else None, title_justify="left", **STYLE)
    table.add_column("", width=width, no_wrap=True)
    for name in names:
        table.add_column(name, width=max(5, len(name)), justify="center", no_wrap=True)
    found = {(r.scenario, r.key): r for r in rows if r.server == server}
    for contender in contenders:
        if contender.backend == server:
            squares = [
                Text("…", "bold cyan")
                if (server, name, contender.key) in now
                else cell(found.get((name, contender.key)))
                for name in names
            ]
            table.add_row(Text(contender.title, "bold" if contender.is_ours else ""), *squares)
    return table


def ranked(rows: Sequence[Result], contenders: Sequence[C]) -> list[C]:
    """Return the contenders, best first: by wrong data, then hanging requests, failed recoveries,
    errors, deadlines, slowest request.
    """

    def key(contender: C) -> tuple[float, ...]:
        own = [r for r in rows if (r.server, r.key) == (contender.backend, contender.key)]
        return (
            *(sum(column) for column in zip(*(r.badness for r in own), strict=True)),
            max((r.slowest for r in own), default=0.0),
        )

    return sorted(contenders, key=key)


def explained(signs: Iterable[tuple[str, str, str]]) -> Table:
    """Return signs, each with its style and its meaning, below each other."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style=FAINT)
    for sign, style, meaning in signs:
        table.add_row(Text(sign, style), meaning)
    return table


# ----------------------------------------------------------------------------------------------
# the whole


def final(
    console: Console,
    rows: Sequence[Result],
    contenders: Sequence[Contestant],
    judge: Judge,
    versions: Mapping[str, str],
    *,
    verbose: bool = False,
) -> None:
    """Print everything: every number, the league tables, the legend, and the breaches."""
    servers = [name for name in SERVERS if any(row.server == name for row in rows)]
    for server in servers:
        console.print(Rule(Text(titled(server, versions), "bold"), style=FAINT))
        for block in details(rows, server, judge, verbose=verbose, room=console.width):
            console.print(block, Text())
    console.print(Rule(Text("league table", "bold"), style=FAINT))
    for server in servers:
        for table in leagues(
            rows, contenders, server, judge.scenarios, titled(server, versions), console.width
        ):
            console.print(table, Text())
    console.print(explained(legend(rows)), Text())
    for text in (*judgement(rows, judge), *lateness(rows)):
        console.print(text)


def titled(server: str, versions: Mapping[str, str]) -> str:
    """Return the server with its version."""
    return f"{SERVERS[server]} {versions.get(server, '')}".strip()


def details(
    rows: Sequence[Result], server: str, judge: Judge, *, verbose: bool, room: int = 80
) -> Iterable[RenderableType]:
    """Yield every number of one server: a block for each scenario, best first, with the errors'
    texts. If *room* is too narrow for a table, the numbers are lines of text.
    """
    for scenario in judge.scenarios:
        own = [row for row in rows if (row.server, row.scenario) == (server, scenario.name)]
        if own:
            own.sort(key=lambda row: (*row.badness, row.slowest))
            title = Text.assemble((scenario.name, "bold"), (f"  {scenario.title}", FAINT))
            numbers = [_numbers(own)] if room >= _width(own) else [_in_words(row) for row in own]
            yield Group(title, *numbers, *_said(own, judge, verbose=verbose))


def _width(rows: Sequence[Result]) -> int:
    """Return the width of the table of *rows*, with a little for its remarks."""
    names = max(8, *(len(row.title) for row in rows))
    return names + sum(width + 1 for _, width in _COLUMNS) + 12


def _in_words(row: Result) -> RenderableType:
    """Return the numbers of *row*, below its name."""
    name, *squares, more = _line(row)
    told = [] if row.failure is not None else [
        Text.assemble((f"{heading} ", FAINT), square)
        for (heading, _), square in zip(_COLUMNS, squares, strict=True)
    ]  # fmt: skip
    rest = Text(", ").join([*told, *([more] if more.plain else [])])
    return Group(name, Padding(rest, (0, 0, 0, 2)))


def _numbers(rows: Sequence[Result]) -> Table:
    table = Table(**STYLE)
    table.add_column("", width=max(8, *(len(row.title) for row in rows)), no_wrap=True)
    for name, width in _COLUMNS:
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*_line(row))
    return table


def _line(row: Result) -> list[Text]:
    name = Text(row.title, "bold" if row.is_ours else "")
    if row.failure is not None:
        return [name, *(Text("-", FAINT) for _ in _COLUMNS), remarks(row)]
    stuck = row.close_wait
    return [
        name,
        Text(str(row.errors), BAD if row.errors else GOOD),
        Text(str(row.hung), BAD if row.hung else ""),
        Text(seconds(row.slowest), POOR if row.slowest > SLOW else ""),
        Text("never" if row.never_back else seconds(row.recovery), BAD if row.never_back else ""),
        Text(str(row.sessions)),
        Text("-" if stuck is None else str(stuck), POOR if stuck else ""),
        remarks(row),
    ]


def _said(rows: Sequence[Result], judge: Judge, *, verbose: bool) -> Iterable[Text]:
    """Yield the errors' texts. For apps and broken contracts these are the most frequent ones; for
    the others they appear only on request.
    """
    for row in rows:
        if row.failure is not None:
            yield Text(f"  {row.title}: not measured: {row.failure}", POOR)
        if verbose or isinstance(row, AppResult) or judge.breaches(row):
            samples = sorted(row.samples.items(), key=lambda item: -item[1])
            for line, times in samples[: None if verbose else _SAID]:
                yield Text(f"  {row.title}: {times} x {line}", FAINT)


def leagues(
    rows: Sequence[Result],
    contenders: Sequence[Contestant],
    server: str,
    scenarios: Sequence[Scenario],
    title: str,
    room: int,
) -> Iterable[Table]:
    """Yield contenders against scenarios, the best first. Several tables are used if one would be
    wider than *room*.
    """
    best, width = ranked(rows, contenders), max(len(each.title) for each in contenders)
    played = [each.name for each in scenarios if any(row.scenario == each.name for row in rows)]
    for names in parted(played, width, room):
        yield league(rows, best, server, title, names, width=width)


def parted(scenarios: Iterable[str], width: int, room: int) -> Iterable[list[str]]:
    """Yield the names of *scenarios* in parts, so that no table is wider than *room*, beside a
    column of this *width*.
    """
    names: list[str] = []
    for name in scenarios:
        if names and width + sum(max(5, len(each)) + 1 for each in (*names, name)) > room:
            yield names
            names = []
        names.append(name)
    yield names


_SIGNS: Final = (
    ("✓", GOOD, "no request failed, and no request was slow"),
    ("12", BAD, "failed requests; 12!: some still failed after all faults had ended"),
    ("4.0s", POOR, f"no request failed, but the slowest took this long (shown above {SLOW} s)"),
    ("H3", "bold red", "requests without an answer in time"),
)
_SMALL_SIGNS: Final = (
    ("D9", GOOD, "requests that their own deadline ended, in time and with the reason (in freeze)"),
    ("W3", WRONG, "wrong: another request's answer, a shared session, a lost or doubled write"),
    ("in doubt", FAINT, "writes reported as unknown, because their COMMIT got no answer"),
    (
        "back in",
        FAINT,
        "time from the end of the fault to the first success; of several faults the worst",
    ),
)
_APP_SIGNS: Final = (
    ("slowest", FAINT, "the longest latency, counted from the time when the request was due"),
    (
        "back in",
        FAINT,
        "time from the end of the fault until no request failed; of several faults the worst",
    ),
)
_COUNTS: Final = (
    (
        "sessions",
        FAINT,
        "open on the server at the end; left: still there after the contender ended",
    ),
    (
        "CLOSE_WAIT",
        FAINT,
        "sockets whose other end is closed, one second after the fault",
    ),
)


def legend(rows: Sequence[Result]) -> Iterable[tuple[str, str, str]]:
    """Yield the meaning of the squares and columns of *rows*: sign, style and meaning."""
    are_apps = any(isinstance(row, AppResult) for row in rows)
    return (*_SIGNS, *(_APP_SIGNS if are_apps else _SMALL_SIGNS), *_COUNTS)


def judgement(rows: Sequence[Result], judge: Judge) -> Iterable[Text]:
    """Yield a line for each breach of a judged row, and one for all."""
    judged = [row for row in rows if judge.judges(row)]
    bad = 0
    for row in judged:
        lines = judge.breaches(row)
        bad += bool(lines)
        for line in lines:
            yield Text(f"✗ {SERVERS[row.server]} {row.scenario}, {row.title}: {line}", BAD)
    if not judged:
        return
    of_apps = isinstance(judged[0], AppResult)
    whose = f" of {', '.join(judge.names)}" if judge.names else ""
    if bad:
        broken = "limits broken" if of_apps else "unbroken broke its contract"
        yield Text(f"{broken} in {bad} of {len(judged)} rows{whose}", "bold red")
    else:
        kept = "limits kept" if of_apps else "unbroken kept its contract"
        yield Text(f"{kept} in all {len(judged)} rows{whose}", "bold green")


def lateness(rows: Sequence[Result]) -> Iterable[Text]:
    """Yield a warning if the drill itself was late, which depends more on the machine than on the
    app.
    """
    late = max((row.late for row in rows if isinstance(row, AppResult)), default=0.0)
    if late > _LATE:
        sent = f"requests were sent up to {seconds(late)} late, which counts as latency"
        yield Text(f"{sent}: the machine is busy, or --concurrency is low", POOR)
