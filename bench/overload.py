"""Overload in simulated time: who is served, how fast, and when the others are told, by rule.

``python bench/overload.py`` prints the tables of docs/overload.md and writes docs/overload.svg.
``overload_model.py`` is the model, ``overload_http.py`` the same with real web servers.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from overload_model import RULES, UNITS, Figures, Model, Ours

LOADS = (0.5, 0.7, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0)
SECONDS = 20.0
USERS: dict[str, Any] = {"patience": 1.0, "web": True}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 340, 60, 20, 55, 45
#: Pools and units of work in the table.
CASES = [(5, kind) for kind in UNITS] + [(1, "exponential"), (50, "exponential")]
COLOURS = ("#c0392b", "#7f6000", "#34495e", "#0b7a4b")


def play(
    rule: str,
    factor: float,
    size: int = 5,
    kind: str = "exponential",
    since: float = 0.0,
    threads: int | None = None,
) -> Figures:
    """Users of a web application for a while: what became of those that came from *since* on."""
    model = Model(size, RULES[rule](), UNITS[kind], threads=threads)
    model.open_loop(0.0, SECONDS, factor, **USERS)
    return model.run().between(since, SECONDS)


def table() -> None:
    """Each rule at nine tenths of what can be served and at three times as much."""
    heads = (
        "pool", "unit of work", "rule", "in time at 3 ×", "p99 at 3 ×", "… after 2 s",
        "p99 at 0.9 ×", "refused at 0.9 ×", "others told after",
    )  # fmt: skip
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for size, kind in CASES:
        for rule in RULES:
            calm, found = (play(rule, factor, size, kind) for factor in (0.9, 3.0))
            steady = play(rule, 3.0, size, kind, since=2.0)
            print(
                f"| {size} | {kind} | {rule} | {found.goodput:.2f} | {found.p99 * 1000:.0f} ms"
                f" | {steady.p99 * 1000:.0f} ms"
                f" | {calm.p99 * 1000:.0f} ms | {100 * calm.share('shed'):.1f} %"
                f" | {found.quantile(0.5, 'shed', 'timed out') * 1000:.0f} ms |"
            )


def threads() -> None:
    """Behind a web server with few threads."""
    print("\n| threads | rule | in time at 3 × |\n|---|---|---|")
    for number in (8, 12, 20, 40):
        for rule in RULES:
            found = play(rule, 3.0, threads=number)
            print(f"| {number} | {rule} | {found.goodput:.2f} |")


def draw(curves: dict[str, list[float]]) -> str:
    """Answers in time over the load, as an SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">Answers within a second, as a share of what a pool'
        " of 5 can serve (model, exponential units of 20 ms)</text>",
    ]
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(share):.0f}" y2="{_y(share):.0f}"'
        f' stroke="#ddd"/><text x="{LEFT - 30}" y="{_y(share) + 4:.0f}">{share}</text>'
        for share in (0.0, 0.5, 1.0)
    ]
    parts += [
        f'<text x="{_x(load) - 8:.0f}" y="{HEIGHT - 22}">{load} ×</text>'
        for load in (0.5, 1, 2, 3, 4, 5)
    ]
    for number, ((rule, values), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        points = " ".join(
            f"{_x(load):.1f},{_y(value):.1f}" for load, value in zip(LOADS, values, strict=True)
        )
        x = LEFT + 10 + number * 170
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<rect x="{x}" y="32" width="14" height="4" fill="{colour}"/>'
            f'<text x="{x + 20}" y="38">{escape(rule)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _x(load: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * load / max(LOADS)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share / 1.2


def batch() -> None:
    """A batch job whose line is long and whose callers have time."""
    for number in (20, 100, 1000):
        model = Model(5, Ours())
        model.closed_loop(number, 20.0)
        found = model.run().between(0.0, 20.0)
        print(f"batch job of {number} threads: {100 * found.share('shed', 'timed out'):.1f} % lost")


def main() -> None:
    table()
    threads()
    batch()
    curves = {rule: [min(play(rule, load).goodput, 1.2) for load in LOADS] for rule in RULES}
    page = Path(__file__).parents[1] / "docs" / "overload.svg"
    page.write_text(draw(curves))


if __name__ == "__main__":
    main()
