"""One app in one scenario as a picture: each request is a dot at its latency, the faults are bands,
and requests per second are below.

It is plain SVG, stretched to the available width. All text is HTML beside it, so that it stays
readable on a phone. A dot is a stroke without length and with round ends, which costs eight bytes
and stays round when stretched. Failed requests differ in shape and not only in colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Final

from unbroken_drill.drill.apps.replies import ERROR, HUNG, OK, Reply
from unbroken_drill.drill.apps.results import AppResult
from unbroken_drill.drill.results import spans

_WIDTH: Final = 1000  #: of the picture's own coordinates
_HEIGHT: Final = 400
_FASTEST: Final = 0.001  #: seconds, at the bottom of the latency axis
_BIN: Final = 0.25  #: seconds per bar of the lower plot

_WORDS: Final = ((OK, "answered well"), (ERROR, "failed"), (HUNG, "no answer in time"))


@dataclass(frozen=True, slots=True)
class Scale:
    """Converts seconds to the picture's coordinates: time is linear, latency logarithmic."""

    length: float  #: of the timeline
    slowest: float  #: at the top of the latency axis

    def x(self, moment: float) -> int:
        """Return the horizontal position of *moment* (since the beginning)."""
        return round(_WIDTH * min(max(moment / self.length, 0.0), 1.0))

    def y(self, latency: float) -> int:
        """Return the vertical position of *latency*."""
        share = math.log(max(latency, _FASTEST) / _FASTEST) / math.log(self.slowest / _FASTEST)
        return round(_HEIGHT * (1.0 - min(share, 1.0)))


def plot(row: AppResult, patience: float) -> str:
    """Return the picture of *row* with its axes, as HTML. *patience*: the timeout, which is the top
    of the latency axis.
    """
    ends = [reply.end for reply in row.replies if reply.outcome == OK] + [
        reply.due for reply in row.replies
    ]
    scale = Scale(
        max([1.0, *(end - row.began for end in ends)]),
        10.0 ** math.ceil(math.log10(max(patience, 0.01))),
    )
    rate = _rate(row)
    return "\n".join(
        [
            f'<div class="plot" role="img" aria-label="{escape(summary(row))}">',
            f'<div class="faults">{"".join(_fault_labels(row, scale))}</div>',
            f'<div class="y">{"".join(_latency_labels(scale))}</div>',
            _picture("latency", [*_grid(scale), *_bands(row, scale), *_dots(row, scale)]),
            (
                f'<div class="y rate"><span style="top:0">{rate:.0f}/s</span><span'
                ' style="top:100%">0</span></div>'
            ),
            _picture("rate", [*_bands(row, scale), *_bars(row, scale, rate)]),
            f'<div class="x">{"".join(_time_labels(scale))}</div>',
            "</div>",
        ]
    )


def summary(row: AppResult) -> str:
    """Return a text that describes the picture."""
    faults = ", ".join(f"{mark.text} at {mark.begin - row.began:.1f} s" for mark in row.marks)
    return (
        f"{row.title}, {row.scenario}: {row.requests} requests, {row.errors} errors, {row.hung}"
        f" hung; faults: {faults or 'none'}"
    )


def _picture(name: str, shapes: Iterable[str]) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none"'
        f' aria-hidden="true">{"".join(shapes)}</svg>'
    )


def _grid(scale: Scale) -> Iterable[str]:
    path = "".join(f"M0 {scale.y(latency)}H{_WIDTH}" for latency in _decades(scale))
    yield f'<path class="grid" d="{path}"/>'


def _decades(scale: Scale) -> list[float]:
    return [10.0**power for power in range(-3, round(math.log10(scale.slowest)) + 1)]


def _bands(row: AppResult, scale: Scale) -> Iterable[str]:
    for begin, end in spans(row.marks):
        left, right = scale.x(begin - row.began), scale.x(end - row.began)
        yield f'<rect class="fault" x="{left}" y="0" width="{right - left}" height="{_HEIGHT}"/>'
        yield f'<path class="edge" d="M{left} 0V{_HEIGHT}M{right} 0V{_HEIGHT}"/>'


def _dots(row: AppResult, scale: Scale) -> Iterable[str]:
    """Yield one path for each outcome. Failed requests are drawn last, on top."""
    for outcome in (OK, ERROR, HUNG):
        at = (
            f"M{scale.x(reply.due - row.began)} {scale.y(reply.end - reply.due)}h0"
            for reply in row.replies
            if reply.outcome == outcome
        )
        path = "".join(at)
        if path:
            yield f'<path class="{outcome}" d="{path}"/>'


def _bins(row: AppResult) -> dict[int, list[Reply]]:
    found: dict[int, list[Reply]] = {}
    for reply in row.replies:
        found.setdefault(int((reply.due - row.began) / _BIN), []).append(reply)
    return found


def _rate(row: AppResult) -> float:
    """Return the largest number of requests a second in any bin: the top of the lower plot."""
    return max((len(replies) / _BIN for replies in _bins(row).values()), default=1.0)


def _bars(row: AppResult, scale: Scale, top: float) -> Iterable[str]:
    paths = dict.fromkeys((OK, ERROR, HUNG), "")
    for number, replies in _bins(row).items():
        left = scale.x(number * _BIN)
        width = max(scale.x((number + 1) * _BIN) - left - 1, 1)
        floor = float(_HEIGHT)
        for outcome in (HUNG, ERROR, OK):
            # failed requests are at the bottom, where they can be compared
            height = _HEIGHT * sum(reply.outcome == outcome for reply in replies) / _BIN / top
            if height:
                paths[outcome] += f"M{left} {floor:.0f}v-{height:.0f}h{width}v{height:.0f}z"
                floor -= height
    for outcome, path in paths.items():
        if path:
            yield f'<path class="bar {outcome}" d="{path}"/>'


def _fault_labels(row: AppResult, scale: Scale) -> Iterable[str]:
    """Yield the name of each fault at the moment it began, cut off where the next one begins. Two
    faults at the same moment share one label.
    """
    labels: list[tuple[float, list[str]]] = []
    for mark in sorted(row.marks, key=lambda mark: mark.begin):
        share = scale.x(mark.begin - row.began) / _WIDTH
        if labels and share - labels[-1][0] < 0.02:
            labels[-1][1].append(mark.text)
        else:
            labels.append((share, [mark.text]))
    for at, (share, texts) in enumerate(labels):
        end = labels[at + 1][0] if at + 1 < len(labels) else 1.0
        text = escape(" + ".join(texts))
        yield (
            f'<span style="left:{share:.1%};width:{max(end - share - 0.01, 0.0):.1%}"'
            f' title="{text}">{text}</span>'
        )


def _latency_labels(scale: Scale) -> Iterable[str]:
    for latency in _decades(scale):
        yield f'<span style="top:{scale.y(latency) / _HEIGHT:.1%}">{_time(latency)}</span>'


def _time_labels(scale: Scale) -> Iterable[str]:
    step = next((step for step in (1, 2, 5, 10, 20, 60) if scale.length / step <= 6), 300)
    for second in range(0, math.ceil(scale.length), step):
        share = second / scale.length
        if share <= 0.96:
            yield f'<span style="left:{share:.1%}">{second} s</span>'


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def legend() -> str:
    """Return the meaning of the dots, drawn as they are."""
    signs = [(f'<path class="{name}" d="M10 10h0"/>', text) for name, text in _WORDS]
    signs.append(('<rect class="fault" width="20" height="20"/>', "the fault"))
    keys = (
        '<span class="key"><svg viewBox="0 0 20 20" width="16" height="16"'
        f' aria-hidden="true">{sign}</svg>{text}</span>'
        for sign, text in signs
    )
    return f'<p class="legend">{"".join(keys)}</p>'
