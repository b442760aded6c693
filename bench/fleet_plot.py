"""Attempts to connect over time, as an SVG: a line for each kind of fleet, on a logarithmic
scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, HEIGHT = 760, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 50, 45
BIN = 0.1  #: seconds of a point
COLOURS = ("#0b7a4b", "#c0392b", "#7f6000", "#34495e")


def draw(outcomes: Mapping[str, Any], title: str, after: float = 6.0) -> str:
    """The picture, from the beginning of the outage until *after* seconds after its end."""
    end = max(outcome.away for outcome in outcomes.values()) + after
    curves = {kind: _per_second(outcome.attempts, end) for kind, outcome in outcomes.items()}
    top = max(1, math.ceil(math.log10(max(max(curve) for curve in curves.values()))))
    parts = [*_frame(title, end, top, next(iter(outcomes.values())).away)]
    for curve, colour in zip(curves.values(), COLOURS, strict=False):
        points = " ".join(
            f"{_x((number + 0.5) * BIN, end):.1f},{_y(value, top):.1f}"
            for number, value in enumerate(curve)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
    for number, (kind, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        x = LEFT + 10 + number * 190
        parts.append(
            f'<rect x="{x}" y="30" width="14" height="4" fill="{colour}"/><text x="{x + 20}"'
            f' y="36">{escape(kind)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _per_second(attempts: list[tuple[float, str]], end: float) -> list[float]:
    counts = [0.0] * round(end / BIN)
    for when, _ in attempts:
        if 0.0 <= when < end:
            counts[min(int(when / BIN), len(counts) - 1)] += 1.0 / BIN
    return counts


def _x(seconds: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end


def _y(value: float, top: int) -> float:
    height = HEIGHT - TOP - BOTTOM
    return HEIGHT - BOTTOM - height * (math.log10(max(value, 1.0)) / top)


def _frame(title: str, end: float, top: int, away: float) -> list[str]:
    back = _x(away, end)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        (
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="18"'
            f' font-size="14">{escape(title)}</text>'
        ),
        (
            f'<rect x="{LEFT}" y="{TOP}" width="{back - LEFT:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
            ' fill="#f3f0ea"/>'
        ),
        (
            f'<text x="{LEFT + 6}" y="{TOP + 14}" fill="#666">away</text><text x="{back + 6:.1f}"'
            f' y="{TOP + 14}" fill="#666">back</text>'
        ),
    ]
    for power in range(top + 1):
        y = _y(10.0**power, top)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    seconds = range(math.floor(end) + 1)
    parts += [
        f'<text x="{_x(second, end):.1f}" y="{HEIGHT - BOTTOM + 18}"'
        f' text-anchor="middle">{second}</text>'
        for second in seconds
    ]
    parts.append(
        f'<text x="{(WIDTH + LEFT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">seconds since it'
        " went away</text>"
    )
    return parts
