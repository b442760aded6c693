"""The drill on a screen: progress while it runs, then every number, the league table, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unbroken_drill.drill.results import Contestant, Result
from unbroken_drill.drill.scenarios import DEADLINE, SCENARIOS, Scenario
from unbroken_drill.drill.traffic import WATCHDOG
from unbroken_drill.drill.verdict import DEADLINE_GRACE, breaches

Cell: TypeAlias = tuple[str, str, str]  #: server, scenario, contender

C = TypeVar("C", bound=Contestant)

SERVERS = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "mongodb": "MongoDB"}

#: From here on a request is slow enough to be shown where nothing else went wrong.
_SLOW = DEADLINE + DEADLINE_GRACE

_WRONG, _BAD, _POOR, _GOOD, _FAINT = "bold white on red", "red", "yellow", "green", "dim"


#: Tables without lines, one space between columns: everything fits into 80 columns.
STYLE: Final[Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0), "header_style": _FAINT}


def seconds(value: float | None) -> str:
    """A time for people: ``12 ms``, ``1.6 s``."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def cell(row: Result | None) -> Text:
    """One square of the league table: at most five characters, the worst thing that happened."""
    if row is None:
        return Text("·", _FAINT)
    if row.failure is not None:
        return Text("fail", _BAD)
    if row.wrong:
        return Text(f"W{short(row.wrong)}", _WRONG)
    if row.hung:
        return Text(f"H{short(row.hung)}", "bold red")
    if row.errors or row.unwell:
        return Text(f"{short(row.errors or row.unwell)}{'!' if row.unwell or row.never_back else ''}", _BAD)
    if row.told:
        return Text(f"D{short(row.told)}", _GOOD if row.slowest <= _SLOW else _POOR)
    if row.slowest > _SLOW:
        return Text(f"{row.slowest:.1f}s", _POOR)
    return Text("✓", _GOOD)


def short(number: int) -> str:
    """A count in at most four characters."""
    return str(number) if number < 10_000 else f"{number // 1000}k"


def remarks(row: Result) -> Text:
    """What the columns do not show."""
    parts: list[tuple[str, str]] = []
    if row.failure is not None:
        parts.append(("not measured", _BAD))
    if row.wrong:
        parts.append((f"{row.wrong} wrong", _WRONG))
    if row.hung:
        parts.append((f"{row.hung} hung", _BAD))
    if row.unwell:
        parts.append(("stays broken", _BAD))
    if row.told:
        parts.append((f"{row.told} deadlines", ""))
    if row.in_doubt:
        parts.append((f"{row.in_doubt} in doubt", ""))
    if row.left:
        parts.append((f"{row.left} left", _POOR))
    text = Text()
    for at, (part, style) in enumerate(parts):
        text.append(", " if at else "").append(part, style)
    return text


def details(rows: Sequence[Result], server: str) -> Iterable[RenderableType]:
    """Every number of one server: a block for each scenario, best first."""
    for scenario in SCENARIOS:
        own = sorted((r for r in rows if (r.server, r.scenario) == (server, scenario.name)), key=_rank)
        if own:
            yield _block(scenario, own)


def _rank(row: Result) -> tuple[float, ...]:
    return (*row.badness, row.slowest)


def _block(scenario: Scenario, rows: Sequence[Result]) -> Group:
    title = Text.assemble((scenario.name, "bold"), (f"  {scenario.title}", _FAINT))
    table = Table(**STYLE)
    table.add_column("", width=20, no_wrap=True)
    for name, width in (("errors", 6), ("slowest", 7), ("back in", 7), ("sessions", 8), ("CLOSE_WAIT", 10)):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*_numbers(row))
    return Group(title, table)


def _numbers(row: Result) -> list[Text]:
    name = Text(row.title, "bold" if row.is_ours else "")
    if row.failure is not None:
        return [name, *(Text("-", _FAINT) for _ in range(5)), remarks(row)]
    back = "never" if row.never_back else seconds(row.recovery)
    stuck = row.close_wait
    return [
        name,
        Text(str(row.errors), _BAD if row.errors else _GOOD),
        Text(seconds(row.slowest), _POOR if row.slowest > _SLOW else ""),
        Text(back, _BAD if row.never_back else _POOR if (row.recovery or 0.0) > 0.25 else ""),
        Text(str(row.sessions)),
        Text("-" if stuck is None else str(stuck), _POOR if stuck else ""),
        remarks(row),
    ]


def league(
    rows: Sequence[Result],
    entrants: Sequence[Contestant],
    server: str,
    title: str,
    names: Sequence[str],
    running: Iterable[Cell] = (),
    width: int = 20,
) -> Table:
    """Contenders against scenarios, both in the order given, one square each; *running* are those under way."""
    now = set(running)
    table = Table(title=Text(title, "bold") if title else None, title_justify="left", **STYLE)
    table.add_column("", width=width, no_wrap=True)
    for name in names:
        table.add_column(name, width=max(5, len(name)), justify="center", no_wrap=True)
    found = {(r.scenario, r.key): r for r in rows if r.server == server}
    for entrant in entrants:
        if entrant.backend == server:
            squares = [
                Text("…", "bold cyan") if (server, name, entrant.key) in now else cell(found.get((name, entrant.key))) for name in names
            ]
            table.add_row(Text(entrant.title, "bold" if entrant.is_ours else ""), *squares)
    return table


def ranked(rows: Sequence[Result], entrants: Sequence[C]) -> list[C]:
    """The entrants, best first: by wrong data, then what hangs, what stays broken, errors, deadlines, slowest request."""

    def key(entrant: C) -> tuple[float, ...]:
        own = [r for r in rows if (r.server, r.key) == (entrant.backend, entrant.key)]
        return (*(sum(column) for column in zip(*(r.badness for r in own), strict=True)), max((r.slowest for r in own), default=0.0))

    return sorted(entrants, key=key)


_SQUARES = (
    ("✓", _GOOD, "nobody noticed"),
    ("12", _BAD, "errors that users saw; 12! = and requests still fail after everything has healed"),
    ("4.0s", _POOR, f"no error, but the slowest request took that long (shown above {_SLOW} s)"),
    ("D9", _GOOD, "requests ended by their own deadline, in time and with the reason (unbroken in freeze)"),
    ("H3", "bold red", f"requests without an answer within {WATCHDOG:.0f} s"),
    ("W3", _WRONG, "wrong data: another's answer, a shared session, an acknowledged write lost, a write doubled"),
)
_COLUMNS = (
    ("slowest", "the slowest request, failed ones included"),
    ("back in", "first success after the server accepts again (the drill's own probe says when), thaws, kills, or the burst begins"),
    ("sessions", "on the server, at rest after the fault; left = still there after the pool was closed"),
    ("CLOSE_WAIT", "sockets whose other end is gone and nobody noticed, one second after the fault"),
    ("in doubt", "writes whose COMMIT got no answer, reported as unknown: stored once or not at all"),
)


def legend() -> Table:
    """What the squares and the columns mean."""
    return explained([*_SQUARES, *((name, _FAINT, meaning) for name, meaning in _COLUMNS)])


def explained(signs: Iterable[tuple[str, str, str]]) -> Table:
    """Signs, each with its style and its meaning, below each other."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style=_FAINT)
    for sign, style, meaning in signs:
        table.add_row(Text(sign, style), meaning)
    return table


def broken(rows: Sequence[Result], *, verbose: bool) -> Iterable[Text]:
    """What unbroken broke of its contract, with what it said; who could not be measured; all errors with *verbose*."""
    for row in rows:
        where = f"{SERVERS[row.server]} {row.scenario}, {row.title}:"
        lines = breaches(row)
        for line in lines:
            yield Text(f"✗ {where} {line}", _BAD)
        if row.failure is not None and not lines:
            yield Text(f"{where} not measured: {row.failure}", _POOR)
        if lines or (verbose and row.samples):
            if not lines:
                yield Text(where)
            most = sorted(row.samples.items(), key=lambda item: -item[1])[:5]
            for sample, times in most:
                yield Text(f"    {times} x {sample}", _FAINT)


def final(
    console: Console, rows: Sequence[Result], entrants: Sequence[Contestant], versions: dict[str, str], *, verbose: bool = False
) -> None:
    """Print everything: details, league tables, breaches, legend."""
    servers = [server for server in SERVERS if any(r.server == server for r in rows)]
    for server in servers:
        console.print(Rule(Text(f"{SERVERS[server]} {versions.get(server, '')}".strip(), "bold"), style=_FAINT))
        for block in details(rows, server):
            console.print(block, Text())
    console.print(Rule(Text("league table", "bold"), style=_FAINT))
    for server in servers:
        title = f"{SERVERS[server]} {versions.get(server, '')}".strip()
        names = [scenario.name for scenario in SCENARIOS if any(row.scenario == scenario.name for row in rows)]
        console.print(league(rows, ranked(rows, entrants), server, title, names), Text())
    console.print(legend(), Text())
    for text in broken(rows, verbose=verbose):
        console.print(text)
    ours = [row for row in rows if row.is_ours]
    bad = sum(bool(breaches(row)) for row in ours)
    if bad:
        console.print(Text(f"unbroken broke its contract in {bad} of {len(ours)} rows", "bold red"))
    elif ours:
        console.print(Text(f"unbroken kept its contract in all {len(ours)} rows", "bold green"))
