"""The app's drill as one page: it loads nothing from elsewhere and runs no script. All output of an
app is only text on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from unbroken_drill.drill import plot, report
from unbroken_drill.drill.apps.plan import AppPlan
from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.report import judgement, legend, remarks, seconds
from unbroken_drill.drill.results import Contestant
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.verdict import Judge

_CLASSES = {
    "red": "bad",
    "bold red": "bad",
    "bold white on red": "bad",
    "yellow": "poor",
    "green": "good",
    "bold green": "good",
}


def page(
    rows: Sequence[AppResult],
    players: Sequence[Contestant],
    plan: AppPlan,
    judge: Judge,
    server: str,
    facts: Mapping[str, Any],
) -> str:
    """Return the whole page. It ends with *facts*, which another person needs to repeat it."""
    ranked = report.ranked(rows, players)
    css = files(__package__).joinpath("page.css").read_text()
    names = ", ".join(player.title for player in players)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy"'
        """ content="default-src 'none'; style-src 'unsafe-inline'">""",
        f"<title>Drill: {escape(names)}</title>",
        f"<style>{css}</style></head><body>",
        "<header><h1>Drill</h1>",
        (
            f'<p class="faint">{escape(names)} · {escape(server)} · {plan.rate:g} requests a second'
            f" · {len(rows)} rows</p></header>"
        ),
        "<main>",
        _verdict(rows, judge),
        _league(rows, ranked, judge.scenarios),
        plot.legend(),
        *(
            _scenario(
                scenario,
                [row for row in rows if row.scenario == scenario.name],
                ranked,
                plan.timeout,
            )
            for scenario in judge.scenarios
        ),
        _meanings(rows),
        _facts(facts),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _verdict(rows: Sequence[AppResult], judge: Judge) -> str:
    *lines, last = judgement(rows, judge)
    items = "".join(f"<li>{escape(line.plain.removeprefix('✗ '))}</li>" for line in lines)
    more = f"<details><summary>which</summary><ul>{items}</ul></details>" if items else ""
    return (
        f'<div class="verdict {_CLASSES.get(str(last.style), "")}">{escape(last.plain)}{more}</div>'
    )


def _league(
    rows: Sequence[AppResult], players: Sequence[Contestant], scenarios: Sequence[Scenario]
) -> str:
    found = {(row.scenario, row.key): row for row in rows}
    head = "".join(f'<th scope="col">{escape(scenario.name)}</th>' for scenario in scenarios)
    body = "".join(
        f'<tr><th scope="row">{escape(player.title)}</th>'
        + "".join(
            _square(found.get((scenario.name, player.key)), scenario) for scenario in scenarios
        )
        + "</tr>"
        for player in players
    )
    return (
        '<h2>League table</h2><div class="scroll"><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _square(row: AppResult | None, scenario: Scenario) -> str:
    text = report.cell(row)
    return (
        f'<td class="{_CLASSES.get(str(text.style), "faint")}"><a'
        f' href="#{escape(scenario.name)}">{escape(text.plain)}</a></td>'
    )


def _scenario(
    scenario: Scenario, rows: Sequence[AppResult], players: Sequence[Contestant], patience: float
) -> str:
    steps = escape(", ".join(step.text for step in scenario.steps))
    order = [player.key for player in players]
    figures = "".join(
        _figure(row, patience) for row in sorted(rows, key=lambda row: order.index(row.key))
    )
    story = f'<p class="faint">{escape(scenario.title)} · <code>{steps}</code></p>'
    title = f"<h2>{escape(scenario.name)}</h2>{story}"
    return f'<section id="{escape(scenario.name)}">{title}{figures}</section>'


def _figure(row: AppResult, patience: float) -> str:
    if row.failure is not None:
        return (
            f'<figure><figcaption><h3>{escape(row.title)}</h3></figcaption><p class="poor">not'
            f" measured: {escape(row.failure)}</p></figure>"
        )
    facts = "".join(f"<span>{escape(fact)}</span>" for fact in _numbers(row))
    said = "".join(
        f"<li><b>{times} ×</b> {escape(line)}</li>" for line, times in row.samples.items()
    )
    caption = f"<figcaption><h3>{escape(row.title)}</h3>{facts}</figcaption>"
    return (
        f"<figure>{caption}{plot.plot(row, patience)}"
        + (f'<ul class="said">{said}</ul>' if said else "")
        + "</figure>"
    )


def _numbers(row: AppResult) -> Iterable[str]:
    yield f"{row.requests} requests"
    yield f"{row.errors} errors" + (f", {row.hung} hung" if row.hung else "")
    yield f"slowest {seconds(row.slowest)}"
    yield "never back" if row.never_back else f"back in {seconds(row.recovery)}"
    yield f"{row.sessions} sessions"
    if row.close_wait:
        yield f"{row.close_wait} in CLOSE_WAIT"
    more = remarks(row).plain
    if more:
        yield more


def _meanings(rows: Sequence[AppResult]) -> str:
    items = "".join(
        f"<dt>{escape(sign)}</dt><dd>{escape(meaning)}</dd>" for sign, _, meaning in legend(rows)
    )
    return f"<h2>Legend</h2><dl>{items}</dl>"


def _facts(facts: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{'<br>'.join(_lines(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<h2>Repeat this drill</h2><dl>{items}</dl>"


def _lines(value: Any) -> Iterable[str]:
    texts = (
        [f"{name}: {one}" for name, one in value.items()]
        if isinstance(value, Mapping)
        else [str(value)]
    )
    return (f"<code>{escape(text)}</code>" for text in texts)
