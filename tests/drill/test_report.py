"""The tables, as people see them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unbroken_drill.drill import report
from unbroken_drill.drill.contenders import ENTRANTS, choose
from unbroken_drill.drill.progress import line
from unbroken_drill.drill.scenarios import SMALL
from unbroken_drill.drill.verdict import Judge
from unbroken_drill.drill.worker.results import SmallResult

ENTRANTS_SHOWN = choose(["unbroken/psycopg", "one"], ["postgresql"])


def row(
    scenario: str, key: str = "one", title: str = "one connection", **values: object
) -> SmallResult:
    made = SmallResult(
        "postgresql",
        scenario,
        key,
        title,
        key.startswith("unbroken"),
        requests=500,
        recoveries=[0.012],
        slowest=0.02,
    )
    for name, value in values.items():
        setattr(made, name, value)
    return made


def ours(scenario: str, **values: object) -> SmallResult:
    return row(scenario, "unbroken/psycopg", "unbroken psycopg", **values)


def shown(rows: list[SmallResult], width: int = 80, *, verbose: bool = False) -> str:
    out = io.StringIO()
    report.final(
        Console(file=out, width=width, highlight=False),
        rows,
        ENTRANTS_SHOWN,
        Judge(),
        {"postgresql": "18.4"},
        verbose=verbose,
    )
    return out.getvalue()


@pytest.mark.parametrize(
    ("values", "square"),
    [
        ({}, "✓"),
        ({"errors": 312}, "312"),
        ({"errors": 312, "unwell": 8}, "312!"),
        ({"errors": 12345, "unwell": 8}, "12k!"),
        ({"told": 8, "slowest": 2.1}, "D8"),
        ({"slowest": 4.04}, "4.0s"),
        ({"hung": 3, "errors": 5}, "H3"),
        ({"wrong": 2, "hung": 3, "errors": 5}, "W2"),
        ({"failure": "no server"}, "fail"),
    ],
)
def test_a_square_shows_the_worst_that_happened_in_five_characters(
    values: dict[str, object], square: str
) -> None:
    assert report.cell(row("kill", **values)).plain == square
    assert len(square) <= 5


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off_or_overflows(width: int) -> None:
    bad = {
        "errors": 9999,
        "unwell": 8,
        "wrong": 44,
        "hung": 3,
        "in_doubt": 1,
        "left": 5,
        "recoveries": [None],
        "close_wait": 10,
    }
    text = shown(
        [made(s.name, **values) for s in SMALL for made, values in ((ours, {}), (row, bad))],
        width,
    )
    assert "…" not in text
    assert max(len(shown_line) for shown_line in text.splitlines()) <= width
    for scenario in SMALL:
        assert scenario.name in text
    for entrant in ENTRANTS:
        assert len(entrant.title) <= 20


def test_the_best_comes_first_and_losses_are_shown() -> None:
    text = shown(
        [ours("freeze", told=8), row("freeze", slowest=4.0), row("kill", errors=7), ours("kill")]
    )
    freeze = text[text.index("freeze") :]
    # it told its callers; the other only hung
    assert freeze.index("one connection") < freeze.index("unbroken psycopg")
    table = text[text.index("league table") :]
    assert table.index("unbroken psycopg") < table.index("one connection")


def test_a_breach_is_told_with_what_was_said() -> None:
    text = shown(
        [
            ours("kill", errors=2, samples={"OperationalError: gone": 2}),
            row("kill", errors=9, samples={"secret noise": 9}),
        ]
    )
    assert (
        "✗ PostgreSQL kill, unbroken psycopg: 2 errors that a user would have seen, 0 allowed"
        in " ".join(text.split())
    )
    assert "2 x OperationalError: gone" in text
    assert "secret noise" not in text
    assert "unbroken broke its contract in 1 of 1 rows" in text


def test_what_everybody_said_is_shown_when_asked_for() -> None:
    text = shown([ours("kill"), row("kill", errors=9, samples={"server closed": 9})], verbose=True)
    assert "9 x server closed" in text
    assert "unbroken kept its contract in all 1 rows" in text


def test_who_could_not_be_measured_is_named_with_the_reason() -> None:
    assert "one connection: not measured: no memory" in shown([row("kill", failure="no memory")])


def test_a_plain_line_tells_a_result() -> None:
    assert line(row("restart", errors=3, in_doubt=1)) == (
        "PostgreSQL restart, one connection: 3 errors, slowest 20 ms, back in 12 ms, 1 in doubt"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0 ms"), (0.0124, "12 ms"), (0.9999, "1.0 s"), (1.64, "1.6 s")],
)
def test_times_are_short(value: float | None, text: str) -> None:
    assert report.seconds(value) == text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_everything_is_legible_at_any_width(width: int) -> None:
    rows = [ours("kill"), row("kill", errors=312, unwell=8, sessions=3, close_wait=2, hung=1)]
    text = shown(rows, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "\x1b" not in text
    words = " ".join(text.split())
    for number in ("312", "stays broken", "20 ms", "12 ms", "one connection"):
        assert number in words
    if width == 40:
        assert "errors 312, hung 1, slowest 20 ms, back in 12 ms, sessions 3, CLOSE_WAIT 2" in words


def test_a_pipe_and_a_dumb_terminal_get_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from unbroken_drill.drill.progress import Progress

    monkeypatch.setenv("TERM", "dumb")
    for is_terminal in (False, True):
        out = io.StringIO()
        console = Console(file=out, width=40, force_terminal=is_terminal, highlight=False)
        with Progress(console, ENTRANTS_SHOWN, ["kill"], 1) as progress:
            progress.tick()
        assert out.getvalue() == ""
