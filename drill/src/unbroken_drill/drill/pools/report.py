"""The drill of pools on a screen: every number, the league table, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from unbroken_drill.drill.pools.scenarios import SCENARIOS, Scenario
from unbroken_drill.drill.pools.traffic import WATCHDOG
from unbroken_drill.drill.pools.verdict import breaches
from unbroken_drill.drill.report import (
    BAD,
    FAINT,
    GOOD,
    POOR,
    SERVERS,
    SLOW,
    STYLE,
    WRONG,
    explained,
    league,
    ranked,
    remarks,
    seconds,
)
from unbroken_drill.drill.results import Contestant, Result


def details(rows: Sequence[Result], server: str) -> Iterable[RenderableType]:
    """Every number of one server: a block for each scenario, best first."""
    for scenario in SCENARIOS:
        own = sorted(
            (r for r in rows if (r.server, r.scenario) == (server, scenario.name)), key=_rank
        )
        if own:
            yield _block(scenario, own)


def _rank(row: Result) -> tuple[float, ...]:
    return (*row.badness, row.slowest)


def _block(scenario: Scenario, rows: Sequence[Result]) -> Group:
    title = Text.assemble((scenario.name, "bold"), (f"  {scenario.title}", FAINT))
    table = Table(**STYLE)
    table.add_column("", width=20, no_wrap=True)
    for name, width in (
        ("errors", 6),
        ("slowest", 7),
        ("back in", 7),
        ("sessions", 8),
        ("CLOSE_WAIT", 10),
    ):
        table.add_column(name, width=width, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows:
        table.add_row(*_numbers(row))
    return Group(title, table)


def _numbers(row: Result) -> list[Text]:
    name = Text(row.title, "bold" if row.is_ours else "")
    if row.failure is not None:
        return [name, *(Text("-", FAINT) for _ in range(5)), remarks(row)]
    back = "never" if row.never_back else seconds(row.recovery)
    stuck = row.close_wait
    return [
        name,
        Text(str(row.errors), BAD if row.errors else GOOD),
        Text(seconds(row.slowest), POOR if row.slowest > SLOW else ""),
        Text(back, BAD if row.never_back else POOR if (row.recovery or 0.0) > 0.25 else ""),
        Text(str(row.sessions)),
        Text("-" if stuck is None else str(stuck), POOR if stuck else ""),
        remarks(row),
    ]


_SQUARES = (
    ("✓", GOOD, "nobody noticed"),
    ("12", BAD, "errors that users saw; 12! = and requests still fail after everything has healed"),
    ("4.0s", POOR, f"no error, but the slowest request took that long (shown above {SLOW} s)"),
    (
        "D9",
        GOOD,
        "requests ended by their own deadline, in time and with the reason (unbroken in freeze)",
    ),
    ("H3", "bold red", f"requests without an answer within {WATCHDOG:.0f} s"),
    (
        "W3",
        WRONG,
        (
            "wrong data: another's answer, a shared session, an acknowledged write lost, a write"
            " doubled"
        ),
    ),
)
_COLUMNS = (
    ("slowest", "the slowest request, failed ones included"),
    (
        "back in",
        (
            "first success after the server accepts again (the drill's own probe says when), thaws,"
            " kills, or the burst begins"
        ),
    ),
    (
        "sessions",
        "on the server, at rest after the fault; left = still there after the pool was closed",
    ),
    (
        "CLOSE_WAIT",
        "sockets whose other end is gone and nobody noticed, one second after the fault",
    ),
    (
        "in doubt",
        "writes whose COMMIT got no answer, reported as unknown: stored once or not at all",
    ),
)


def legend() -> Table:
    """What the squares and the columns mean."""
    return explained([*_SQUARES, *((name, FAINT, meaning) for name, meaning in _COLUMNS)])


def broken(rows: Sequence[Result], *, verbose: bool) -> Iterable[Text]:
    """What unbroken broke of its contract, with what it said; who could not be measured; all errors
    with *verbose*.
    """
    for row in rows:
        where = f"{SERVERS[row.server]} {row.scenario}, {row.title}:"
        lines = breaches(row)
        for line in lines:
            yield Text(f"✗ {where} {line}", BAD)
        if row.failure is not None and not lines:
            yield Text(f"{where} not measured: {row.failure}", POOR)
        if lines or (verbose and row.samples):
            if not lines:
                yield Text(where)
            most = sorted(row.samples.items(), key=lambda item: -item[1])[:5]
            for sample, times in most:
                yield Text(f"    {times} x {sample}", FAINT)


def final(
    console: Console,
    rows: Sequence[Result],
    entrants: Sequence[Contestant],
    versions: dict[str, str],
    *,
    verbose: bool = False,
) -> None:
    """Print everything: details, league tables, breaches, legend."""
    servers = [server for server in SERVERS if any(r.server == server for r in rows)]
    for server in servers:
        console.print(
            Rule(Text(f"{SERVERS[server]} {versions.get(server, '')}".strip(), "bold"), style=FAINT)
        )
        for block in details(rows, server):
            console.print(block, Text())
    console.print(Rule(Text("league table", "bold"), style=FAINT))
    for server in servers:
        title = f"{SERVERS[server]} {versions.get(server, '')}".strip()
        names = [
            scenario.name
            for scenario in SCENARIOS
            if any(row.scenario == scenario.name for row in rows)
        ]
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
