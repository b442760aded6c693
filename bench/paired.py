"""Telling two per cent: two contenders in turn in short blocks, block beside block, and how sure
the ratio is.

What disturbs a machine for longer than a block (another process, the clock's frequency) disturbs
both of a pair, so their ratio keeps still where their times do not; what disturbs one block only is
an outlier, which a median does not mind. What stays is luck that lasts as long as a connection:
which core its server's thread runs on, where its objects lie. So both are made anew for each *leg*,
a leg's figure is the median of its pairs' ratios, and the figure is the median of the legs'. The
interval is of these: it needs no assumption but that legs do not depend on each other.

Each contender has a process of its own, as in an application, and waits while it is the other's
turn: the interpreter adapts its code to the types that it meets, and two kinds of client in one
process spoil it for each other.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter, thread_time
from typing import Any, TypeAlias

from measure import Slice

#: Seconds, about, of one block.
BLOCK = 0.003

#: Seconds for one operation in one block: of the wall's clock, and of the calling thread's
#: processor time.
Cost: TypeAlias = tuple[float, float]

# what both need is imported once, and lies in the same place in both
_forking = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times the base's time a contender takes: the median, and the interval that holds it
    with 95 % certainty.
    """

    middle: float
    low: float
    high: float
    pairs: int
    legs: int

    def __str__(self) -> str:
        return (
            f"{self.middle:.4f} (95 %: {self.low:.4f} to {self.high:.4f}; {self.pairs} pairs in"
            f" {self.legs} legs)"
        )


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds for one operation of each contender, block by block, and the ratios of all but the
    base to the base.
    """

    times: Mapping[str, list[float]]
    ratios: Mapping[str, Ratio]


def compare(
    make: Callable[[str], AbstractContextManager[Slice]],
    names: Sequence[str],
    base: str,
    legs: int,
    seconds: float,
) -> tuple[Found, Found]:
    """Time each of *names* beside *base*, each made by *make* in a process of its own, in so many
    *legs* of so many *seconds*.

    What the wall's clock says, and what the calling thread's processor time was: in that is neither
    a server's part nor what the thread waited for, so it is the steadier on a busy machine.
    """
    played: dict[str, list[list[tuple[Cost, Cost]]]] = {name: [] for name in names}
    for leg, name in itertools.product(range(legs), names):
        with ExitStack() as stack:
            order = (name, base) if leg % 2 else (base, name)  # neither is always made first
            made = {each: stack.enter_context(apart(make, each)) for each in order}
            played[name].append(_played(made[name], made[base], seconds))
    return _found(played, base, 0), _found(played, base, 1)


def _found(played: Mapping[str, list[list[tuple[Cost, Cost]]]], base: str, clock: int) -> Found:
    times: dict[str, list[float]] = {base: []}
    ratios = {}
    for name, legs in played.items():
        times[name] = [mine[clock] for pairs in legs for mine, _ in pairs]
        times[base] += [others[clock] for pairs in legs for _, others in pairs]
        medians = [
            statistics.median(mine[clock] / others[clock] for mine, others in pairs)
            for pairs in legs
        ]
        ratios[name] = Ratio(
            statistics.median(medians), *interval(medians), len(times[name]), len(legs)
        )
    return Found(times, ratios)


@contextmanager
def apart(
    make: Callable[[str], AbstractContextManager[Slice]], name: str
) -> Iterator[Callable[[int], Cost]]:
    """A contender in a process of its own, which does so many operations when it is told to and
    says what one cost.
    """
    here, there = _forking.Pipe()
    process = _forking.Process(target=_serve, args=(make, name, there), daemon=True)
    process.start()
    there.close()

    def block(count: int) -> Cost:
        here.send(count)
        wall, busy = here.recv()
        return wall / count, busy / count

    try:
        yield block
    finally:
        here.send(0)
        process.join()


def _serve(make: Callable[[str], AbstractContextManager[Slice]], name: str, told: Any) -> None:
    with make(name) as run:
        run(300)  # warm
        gc.collect()
        gc.freeze()  # what was there before is nobody's garbage
        while count := told.recv():
            began = thread_time()
            wall = run(count)
            told.send((wall, thread_time() - began))


def _played(
    run: Callable[[int], Cost], beside: Callable[[int], Cost], seconds: float
) -> list[tuple[Cost, Cost]]:
    """Pairs of neighbouring blocks, A B B A A B B A ..."""
    quickest = min(each(20)[0] for each in (run, beside) for _ in range(10))
    count = max(1, round(BLOCK / quickest))  # the same for both
    pairs: list[tuple[Cost, Cost]] = []
    end = perf_counter() + seconds
    while perf_counter() < end:
        if len(pairs) % 2:
            others, mine = beside(count), run(count)
        else:
            mine, others = run(count), beside(count)
        pairs.append((mine, others))
    return pairs


def interval(sample: list[float]) -> tuple[float, float]:
    """Between which of its members the median of what *sample* was drawn from lies, with at least
    95 % certainty.

    By order statistics: the number of members below the median is binomial (n, 1/2). From six
    members on; of fewer, all of them.
    """
    ordered, number = sorted(sample), len(sample)
    cut, below = 0, 0.5**number
    while 2 * below <= 0.05:
        cut += 1
        below += math.comb(number, cut) * 0.5**number
    cut = max(cut, 1)
    return ordered[cut - 1], ordered[number - cut]
