"""Results as text, as JSON, and in docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from measure import Effort, Result, Row, Table, Target

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tables: written by make bench ARGS=--write -->", "<!-- end of tables -->"
_SECTION = re.compile(r"<!-- subject: (\w+) -->\n(.*?)(?=<!-- subject: |\Z)", re.DOTALL)
_SCALE = {"µs": 1e6, "ms": 1e3, "s": 1.0}
_PACKAGES = (
    "SQLAlchemy psycopg psycopg-pool asyncpg DBUtils peewee PyMySQL mysqlclient aiomysql".split()
)


def as_text(result: Result) -> str:
    """Tables and verdicts for a terminal."""
    parts = [f"\n{table.title}\n{_grid(table, pad=True)}{_note(table)}" for table in result.tables]
    return "\n".join(
        [*parts, *([""] if result.targets else []), *(_verdict(t) for t in result.targets)]
    )


def _note(table: Table) -> str:
    return f"\n{table.note}" if table.note else ""


def _verdict(target: Target) -> str:
    return (
        f"{'pass' if target.kept else 'FAIL'}  {target.promise}: {target.figure:.3g} {target.unit}"
        f" (limit {target.limit:.3g})"
    )


def _grid(table: Table, *, pad: bool) -> str:
    lines = [_header(table), *(_cells(table, row) for row in table.rows)]
    if not pad:
        rule = ["---", *["---:"] * (len(lines[0]) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _header(table: Table) -> list[str]:
    first, second = table.labels
    spread = [second] if any(row.median is not None for row in table.rows) else []
    return [
        "",
        f"{first}, {table.unit}" if spread else table.unit,
        *spread,
        *table.columns,
        *([f"x {table.base}"] if table.base else []),
    ]


def _cells(table: Table, row: Row) -> list[str]:
    scale = _SCALE.get(table.unit)
    spread = [_figure(row.median, scale)] if any(r.median is not None for r in table.rows) else []
    return [
        row.name,
        _figure(row.best, scale),
        *spread,
        *(_figure(value, scale) for value in row.more),
        *([f"{row.ratio:.2f}" if row.ratio is not None else ""] if table.base else []),
    ]


def _figure(value: float | None, scale: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if scale is None else f"{value * scale:.2f}"


def footer(effort: Effort) -> str:
    """What this was measured with and on."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions())
    return (
        f"\n{_machine()}; Python {platform.python_version()}; {versions}.\nInterleaved:"
        f" {effort.rounds} rounds, {effort.slice * 1e3:.0f} ms each a round; the best round counts."
        " Lower is better."
    )


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass  # not Linux, or a processor without a name
    return f"{os.cpu_count()} x {model}, {platform.system()} {platform.release()}"


def _versions() -> Iterable[tuple[str, str]]:
    for name in ("unbroken", *_PACKAGES):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue


def as_json(results: dict[str, Result], effort: Effort) -> str:
    """Everything, in seconds."""
    found = {
        "machine": _machine(),
        "python": platform.python_version(),
        "versions": dict(_versions()),
        "effort": dataclasses.asdict(effort),
        "subjects": {
            name: {
                "tables": [dataclasses.asdict(table) for table in result.tables],
                "targets": [
                    {**dataclasses.asdict(target), "kept": target.kept} for target in result.targets
                ],
            }
            for name, result in results.items()
        },
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def write(results: dict[str, Result], effort: Effort) -> None:
    """Replace what docs/benchmarks.md says of these subjects, and their plots beside it; all others
    stay as they are.
    """
    before, _, rest = PAGE.read_text().partition(BEGIN)
    between, _, after = rest.partition(END)
    sections = {match[1]: match[2].strip() for match in _SECTION.finditer(between)}
    for name, result in results.items():
        for plot, picture in result.plots.items():
            (PAGE.parent / f"{plot}.svg").write_text(picture)
        sections[name] = _section(result, effort)
    parts = "\n\n".join(f"<!-- subject: {name} -->\n\n{text}" for name, text in sections.items())
    PAGE.write_text(f"{before}{BEGIN}\n\n{parts}\n\n{END}{after}")


def _section(result: Result, effort: Effort) -> str:
    plots = [f"![{name}]({name}.svg)" for name in result.plots]
    tables = [
        f"### {table.title}\n\n{_grid(table, pad=False)}\n{_note(table)}".rstrip()
        for table in result.tables
    ]
    verdicts = [
        f"| {'yes' if t.kept else '**no**'} | {t.promise} | {t.figure:.3g} {t.unit} |"
        f" {t.limit:.3g} |"
        for t in result.targets
    ]
    promises = (
        ["\n".join(["| kept | promise | figure | limit |", "|---|---|---:|---:|", *verdicts])]
        if verdicts
        else []
    )
    return "\n\n".join([*plots, *tables, *promises, f"<sub>{footer(effort).strip()}</sub>"])
