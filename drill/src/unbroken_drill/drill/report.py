"""The drill on a screen, whoever is drilled: squares, the league table, and how numbers are
spelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from rich.table import Table
from rich.text import Text

from unbroken_drill.drill.results import Contestant, Result

Cell: TypeAlias = tuple[str, str, str]  #: server, scenario, contender

C = TypeVar("C", bound=Contestant)

SERVERS = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "mysql": "MySQL", "mongodb": "MongoDB"}

#: From here on a request is slow enough to be shown where nothing else went wrong.
SLOW: Final = 2.5

WRONG, BAD, POOR, GOOD, FAINT = "bold white on red", "red", "yellow", "green", "dim"


#: Tables without lines, one space between columns: everything fits into 80 columns.
STYLE: Final[Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0), "header_style": FAINT}


def seconds(value: float | None) -> str:
    """A time for people: ``12 ms``, ``1.6 s``."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def cell(row: Result | None) -> Text:
    """One square of the league table: at most five characters, the worst thing that happened."""
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
    """A count in at most four characters."""
    return str(number) if number < 10_000 else f"{number // 1000}k"


def remarks(row: Result) -> Text:
    """What the columns do not show."""
    parts: list[tuple[str, str]] = []
    if row.failure is not None:
        parts.append(("not measured", BAD))
    if row.wrong:
        parts.append((f"{row.wrong} wrong", WRONG))
    if row.hung:
        parts.append((f"{row.hung} hung", BAD))
    if row.unwell:
        parts.append(("stays broken", BAD))
    if row.told:
        parts.append((f"{row.told} deadlines", ""))
    if row.in_doubt:
        parts.append((f"{row.in_doubt} in doubt", ""))
    if row.left:
        parts.append((f"{row.left} left", POOR))
    text = Text()
    for at, (part, style) in enumerate(parts):
        text.append(", " if at else "").append(part, style)
    return text


def league(
    rows: Sequence[Result],
    entrants: Sequence[Contestant],
    server: str,
    title: str,
    names: Sequence[str],
    running: Iterable[Cell] = (),
    width: int = 20,
) -> Table:
    """Contenders against scenarios, both in the order given, one square each; *running* are those
    under way.
    """
    now = set(running)
    table = Table(title=Text(title, "bold") if title else None, title_justify="left", **STYLE)
    table.add_column("", width=width, no_wrap=True)
    for name in names:
        table.add_column(name, width=max(5, len(name)), justify="center", no_wrap=True)
    found = {(r.scenario, r.key): r for r in rows if r.server == server}
    for entrant in entrants:
        if entrant.backend == server:
            squares = [
                (
                    Text("…", "bold cyan")
                    if (server, name, entrant.key) in now
                    else cell(found.get((name, entrant.key)))
                )
                for name in names
            ]
            table.add_row(Text(entrant.title, "bold" if entrant.is_ours else ""), *squares)
    return table


def ranked(rows: Sequence[Result], entrants: Sequence[C]) -> list[C]:
    """The entrants, best first: by wrong data, then what hangs, what stays broken, errors,
    deadlines, slowest request.
    """

    def key(entrant: C) -> tuple[float, ...]:
        own = [r for r in rows if (r.server, r.key) == (entrant.backend, entrant.key)]
        return (
            *(sum(column) for column in zip(*(r.badness for r in own), strict=True)),
            max((r.slowest for r in own), default=0.0),
        )

    return sorted(entrants, key=key)


def explained(signs: Iterable[tuple[str, str, str]]) -> Table:
    """Signs, each with its style and its meaning, below each other."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(style=FAINT)
    for sign, style, meaning in signs:
        table.add_row(Text(sign, style), meaning)
    return table
