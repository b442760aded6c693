"""A table as bars, in SVG: ours in one colour, all others in another."""

from __future__ import annotations

from html import escape

from measure import Row, Table

WIDTH, BAR, NAMES = 760, 22, 330
OURS, OTHERS = "#0b7a4b", "#9aa5ad"


def draw(table: Table, scale: float = 1e6) -> str:
    """One bar for each row, of its best figure; rows that are far off the others are cut, with
    their figure beside them.
    """
    rows = sorted(table.rows, key=lambda row: row.best)
    longest = _longest(rows)
    height = 48 + BAR * len(rows)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="22" font-size="14">{escape(table.title)}, {table.unit}</text>',
    ]
    for number, row in enumerate(rows):
        parts += _bar(row, 36 + number * BAR, longest, scale)
    return "\n".join([*parts, "</svg>", ""])


def _longest(rows: list[Row]) -> float:
    """The longest bar that is drawn whole: five times the median at most."""
    figures = [row.best for row in rows]
    return min(figures[-1], 5 * figures[len(figures) // 2])


def _bar(row: Row, y: int, longest: float, scale: float) -> list[str]:
    room = WIDTH - NAMES - 80
    length = room * min(1.0, row.best / longest)
    colour = OURS if row.is_ours else OTHERS
    cut = (
        f'<line x1="{NAMES + length - 14:.0f}" x2="{NAMES + length - 8:.0f}" y1="{y + 17}"'
        f' y2="{y - 1}" stroke="white" stroke-width="3"/>'
    )
    return [
        f'<text x="{NAMES - 8}" y="{y + 12}" text-anchor="end">{escape(row.name)}</text>',
        f'<rect x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR - 6}" fill="{colour}"/>',
        *([cut] if row.best > longest else []),
        f'<text x="{NAMES + length + 6:.1f}" y="{y + 12}">{row.best * scale:.2f}</text>',
    ]
