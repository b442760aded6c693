"""Interleaved timing: every contender gets a short slice in every round (A B C A B C ...), so that
a noisy machine hits all alike.

What disturbs a measurement only ever adds time, so the best of many short slices is the figure; the
median says how noisy the run was, and how steady the contender.
"""

from __future__ import annotations

import gc
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

#: Does an operation so often and gives the seconds that took.
Slice: TypeAlias = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure."""

    rounds: int
    slice: float  #: seconds, about, of one contender in one round
    repeats: int  #: of what takes seconds each, such as a restart

    @classmethod
    def of(cls, *, quick: bool) -> Effort:
        return (
            cls(rounds=8, slice=0.003, repeats=1)
            if quick
            else cls(rounds=60, slice=0.006, repeats=5)
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One contender's figure: seconds for one operation, or a number of something."""

    name: str
    best: float
    median: float | None = None
    ratio: float | None = None  #: to the table's base, best to best
    more: tuple[float, ...] = ()  #: a figure for each of the table's further columns

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("unbroken")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one question. *unit* is ``µs``, ``ms``, or what is counted."""

    title: str
    unit: str
    rows: list[Row]
    base: str | None = None
    note: str = ""
    labels: tuple[str, str] = ("best", "median")  #: of the two figures of a row
    columns: tuple[str, ...] = ()  #: further ones, in the same unit


@dataclass(frozen=True, slots=True)
class Target:
    """A promise: *figure* must not exceed *limit*."""

    promise: str
    figure: float
    limit: float
    unit: str = "x"

    @property
    def kept(self) -> bool:
        return self.figure <= self.limit


@dataclass(slots=True)
class Result:
    """What one subject found."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)  #: by file name without its end, SVG


def interleaved(
    contenders: Mapping[str, Slice], effort: Effort, base: str | None = None
) -> list[Row]:
    """Time all *contenders* in one run; rows sorted by cost."""
    counts = {name: _calibrated(run, effort.slice) for name, run in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    gc.collect()
    gc.freeze()  # what was there before is nobody's garbage
    for number in range(effort.rounds):
        turn = number % len(names)  # nobody always comes after the same one
        for name in names[turn:] + names[:turn]:
            times[name].append(contenders[name](counts[name]) / counts[name])
    gc.unfreeze()
    best = {name: min(found) for name, found in times.items()}
    rows = [
        Row(
            name,
            best[name],
            statistics.median(times[name]),
            best[name] / best[base] if base else None,
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: row.best)


def _calibrated(run: Slice, seconds: float) -> int:
    run(8)  # warm: the first acquire connects
    count = 8
    while (took := run(count)) < seconds / 2:
        count = max(count * 2, min(count * 16, int(count * seconds / max(took, 1e-7))))
    return max(1, int(count * seconds / took))


def best_of(rows: list[Row], name: str) -> float:
    """The figure of *name*."""
    return next(row.best for row in rows if row.name == name)


def repeated(operation: Callable[[], Any]) -> Slice:
    """*operation*, again and again. For what takes so long that the call does not count."""

    def run(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            operation()
        return perf_counter() - began

    return run


def shared(count: int, workers: int) -> int:
    """How many of *count* operations each worker does; together they may do a few more, which the
    caller must allow for.
    """
    return -(-count // workers)


def threaded(run: Slice, threads: int) -> Slice:
    """*run* on so many threads at once: the time from the first one's start to the last one's
    end.
    """
    if threads == 1:
        return run

    def together(count: int) -> float:
        each = shared(count, threads)
        gate = threading.Barrier(threads + 1)
        ended: list[float] = []

        def work() -> None:
            gate.wait()
            run(each)
            ended.append(perf_counter())

        workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        began = perf_counter()
        gate.wait()
        for worker in workers:
            worker.join()
        if len(ended) < threads:
            raise RuntimeError("a thread of the benchmark failed; its error stands above")
        return (max(ended) - began) * count / (each * threads)

    return together
