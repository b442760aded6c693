"""A thousand processes of ten connections each before one server that goes away and comes back: in
simulated time.

Ours run the real flows and policies. They are compared with a model of a pool in which each caller
that finds nothing idle connects for itself, and tries again after a fixed pause. See
``fleet_ground.py`` for what the server is.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import fleet_plot
from fleet_ground import Events, Naive, Process, Server, without_sockets
from measure import Effort, Result, Row, Table, Target

from unbroken.errors import UnbrokenError
from unbroken.pool.steps import Wait

SIZE = 10  #: connections, and requests at a time, of each process
HOLD, THINK = 0.2, 0.2  #: seconds that a request has its connection; at most between two
BUSY = 2.0  #: seconds of traffic before the outage

#: What happens to the server: (mode, seconds), one after the other; then it is up again.
SCENES: dict[str, tuple[tuple[str, float], ...]] = {
    "restart": (("refusing", 5.0), ("starting", 1.0)),
    "crash recovery": (("starting", 6.0),),
    "failover": (("unreachable", 6.0),),
}

Make = Callable[[Server, Random], Any]
KINDS: dict[str, Make] = {
    "unbroken": lambda server, random: Process(server, SIZE, random),
    "again after 20 ms": lambda server, random: Naive(server, random, 0.02),
    "again after 1 s": lambda server, random: Naive(server, random, 1.0),
}


@dataclass(slots=True)
class Outcome:
    """One fleet through one scene. Times in seconds since the server was back."""

    away: float  #: how long it was
    #: to connect, since it went away: when, since then, and what became of it
    attempts: list[tuple[float, str]]
    served: list[float]  #: when each user was first served afterwards
    users: int

    @property
    def per_second(self) -> float:
        """Attempts a second while it was away."""
        return sum(when < self.away for when, _ in self.attempts) / self.away

    def worst(self, window: float = 0.01) -> float:
        """The most attempts that came within *window* seconds, from the second one of those on: all
        must try once.
        """
        counts: dict[int, int] = {}
        for when, _ in self.attempts:
            if 0.1 <= when < self.away:
                counts[int(when / window)] = counts.get(int(when / window), 0) + 1
        return max(counts.values(), default=0)

    def until(self, part: float) -> float:
        """When that part of all users had been served; infinity if they never were."""
        number = max(1, round(part * self.users))
        return sorted(self.served)[number - 1] if len(self.served) >= number else float("inf")


def play(
    make: Make,
    scene: Iterable[tuple[str, float]],
    processes: int,
    *,
    seed: int = 1,
    places: int = 8,
    patience: float = 60.0,
) -> Outcome:
    """One fleet through one scene.

    The server opens two connections a second for each process, and has so many *places* for each.
    """
    events, random, scene = Events(), Random(seed), tuple(scene)
    # it has been up for long
    server = Server(events, connects_per_second=1e6, max_connections=places * processes)
    served: dict[tuple[int, int], float] = {}
    away = sum(seconds for _, seconds in scene)
    back = BUSY + away
    users = processes * SIZE

    def user(process: Any, name: tuple[int, int]) -> Any:
        while True:
            try:
                began = events.now
                if (yield from process.request(HOLD)) and events.now >= back:
                    served.setdefault(name, max(0.0, events.now - HOLD - back))
            except UnbrokenError:
                yield _pause(1.0 - 0.1 * random.random())  # Retry-After: 1
            yield _pause(random.random() * THINK + (0.0 if events.now > began else 0.001))

    with without_sockets(), _in_silence():
        for number in range(processes):
            process = make(server, Random(random.random()))
            for place in range(SIZE):
                flow = user(process, (number, place))
                events.at(random.random(), lambda flow=flow: events.start(flow))
        events.run(BUSY)
        server.attempts.clear()
        server.connects_per_second = 2.0 * processes
        for mode, seconds in scene:
            server.lose_all(mode)
            events.run(events.now + seconds)
        server.mode = "up"
        events.run(back + patience, lambda: len(served) == users)
    return Outcome(
        away, [(when - BUSY, what) for when, what in server.attempts], list(served.values()), users
    )


@contextmanager
def _in_silence() -> Iterator[None]:
    """A thousand processes that each report their outage would be all that one sees."""
    logger = logging.getLogger("unbroken")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _pause(seconds: float) -> Wait:
    return Wait(None, seconds)


def run(effort: Effort) -> Result:
    """Restart, crash recovery and failover."""
    processes = 100 if effort.repeats == 1 else 1000
    result, found = Result(), {}
    for name, scene in SCENES.items():
        outcomes = {kind: play(make, scene, processes) for kind, make in KINDS.items()}
        found[name] = outcomes
        result.tables += _tables(f"{name}, {processes} processes of {SIZE} connections", outcomes)
    ours = found["crash recovery"]["unbroken"]
    result.targets += [
        Target(
            "fleet, crash recovery: the first is served after", ours.until(0.0) * 1e3, 250.0, "ms"
        ),
        Target(
            "fleet, crash recovery: at most half of all processes ask in the same 10 ms",
            ours.worst() / processes,
            0.5,
        ),
    ]
    title = (
        f"A server that recovers for 6 s: attempts to connect per second, {processes} processes of"
        f" {SIZE} connections"
    )
    result.plots["fleet"] = fleet_plot.draw(found["crash recovery"], title)
    return result


def _tables(title: str, outcomes: dict[str, Outcome]) -> list[Table]:
    figures: dict[str, tuple[str, Callable[[Outcome], float]]] = {
        "attempts to connect while it is away": ("attempts/s", lambda o: o.per_second),
        "the most at once": ("in 10 ms", lambda o: float(o.worst())),
        "first served after its return": ("s", lambda o: o.until(0.0)),
        "all users served after": ("s", lambda o: o.until(1.0)),
    }
    return [
        Table(
            f"A fleet in a {title}: {what}",
            unit,
            [Row(kind, read(outcome)) for kind, outcome in outcomes.items()],
        )
        for what, (unit, read) in figures.items()
    ]


def main() -> int:
    """By hand: one fleet through one scene."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("kind", choices=KINDS, nargs="?", default="unbroken")
    parser.add_argument("--processes", type=int, default=100)
    options = parser.parse_args()
    outcome = play(KINDS[options.kind], SCENES[options.scene], options.processes)
    print(
        f"{options.kind}, {options.scene}: {outcome.per_second:.0f} attempts/s, at most"
        f" {outcome.worst():.0f} in 10 ms"
    )
    print(
        f"served: first {outcome.until(0):.3f} s, half {outcome.until(0.5):.3f} s, all"
        f" {outcome.until(1):.3f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
