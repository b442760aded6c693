"""Rules for when the processes of a fleet try to connect, compared in simulated time.

``fleet.py`` plays the real flows of ``unbroken.Pool``; here only what a rule decides is played, so
that rules can be compared, with up to 5,000 processes: when the one prober of a process tries
again, how many connections a process opens at a time, and what follows a login that takes too long.

The server refuses for five seconds and is up again. It works on all logins at a time, each costs it
processor time: 0.5 ms on one core (*cheap*: 2,000 a second), or 100 ms on eight cores (*costly*: 80
a second, as with PostgreSQL, SCRAM and TLS on a small machine). A login that takes longer than five
seconds is given up by its process; what the server has spent on it is lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from statistics import median
from typing import Any

from unbroken.abc import FaultKind
from unbroken.brain.outage import AT_ONCE, SLOW
from unbroken.brain.pace import REFUSED_PACE, Crowd, Pace

WANTED = 8  #: connections that each process wants
AWAY = 5.0  #: seconds
TIMEOUT = 5.0  #: connect_timeout
ROUND_TRIP = 0.0005
COSTS = {"cheap": (0.0005, 1), "costly": (0.1, 8)}  #: seconds of one core for a login, cores
PATIENCE = 300.0  #: seconds after which a fleet that is not well again is left alone


class Rule:
    """Today's, before there was any other: it knows nothing of other processes."""

    name = "before: 10 to 40 ms"
    beside = AT_ONCE  #: attempts beside silent ones at most, those included

    def __init__(self, random: Random, processes: int) -> None:
        self.random, self.parallel, self.failures = random, AT_ONCE, 0

    def refused(self, now: float, took: float) -> float:
        """Seconds until the next attempt after one was refused at *now*, after *took* seconds."""
        self.failures += 1
        return self.random.uniform(*REFUSED_PACE)

    def timed_out(self, now: float) -> float:
        """Seconds until the next attempt after a login took too long."""
        self.failures += 1
        return self.random.uniform(0.05, 0.25)

    def succeeded(self, now: float, took: float, was_away: bool) -> float:
        """Seconds until the next connection is opened."""
        self.failures = 0
        self.parallel = 1 if was_away else min(AT_ONCE, self.parallel + 1)
        return 0.0


class FullJitter(Rule):
    """The pause is anything between nothing and a limit that doubles (AWS)."""

    name = "full jitter, 20 ms to 5 s"
    beside = 1
    base, most = 0.02, 5.0

    def refused(self, now: float, took: float) -> float:
        self.failures += 1
        return self.random.uniform(0.0, min(self.most, self.base * 2.0 ** min(self.failures, 30)))

    def timed_out(self, now: float) -> float:
        return self.refused(now, TIMEOUT)


class Grpc(Rule):
    """1 s, 1.6 times as much each time, at most 120 s, spread by a fifth (gRPC)."""

    name = "gRPC, 1 s x 1.6"
    beside = 1

    def refused(self, now: float, took: float) -> float:
        pause = min(120.0, 1.6 ** min(self.failures, 20))
        self.failures += 1
        return pause * self.random.uniform(0.8, 1.2)

    def timed_out(self, now: float) -> float:
        return self.refused(now, TIMEOUT)


class Decorrelated(FullJitter):
    """The pause is anything between the first one and three times the last one."""

    name = "decorrelated, 20 ms to 5 s"
    last = 0.02

    def refused(self, now: float, took: float) -> float:
        self.last = min(self.most, self.random.uniform(self.base, 3.0 * self.last))
        return self.last

    def succeeded(self, now: float, took: float, was_away: bool) -> float:
        self.last = self.base
        return super().succeeded(now, took, was_away)


class Aimd(Rule):
    """Twice the pause where an answer took twice as long as the quickest one, else a step back."""

    name = "AIMD on latency"
    beside = 1

    def __init__(self, random: Random, processes: int) -> None:
        super().__init__(random, processes)
        self.pause, self.quickest = 0.025, TIMEOUT

    def refused(self, now: float, took: float) -> float:
        self.quickest = min(self.quickest, took)
        slow = took > 2.0 * self.quickest
        self.pause = min(5.0, 2.0 * self.pause) if slow else max(0.025, self.pause - 0.005)
        return self.pause * self.random.uniform(0.75, 1.25)

    def timed_out(self, now: float) -> float:
        return self.refused(now, TIMEOUT)


class OneThenDouble(Rule):
    """One attempt first of all; after a success twice as many at a time as before."""

    name = "one, then double"
    beside = 1

    def __init__(self, random: Random, processes: int) -> None:
        super().__init__(random, processes)
        self.parallel = 1

    def succeeded(self, now: float, took: float, was_away: bool) -> float:
        self.failures = 0
        self.parallel = 1 if was_away else min(WANTED, 2 * self.parallel)
        return 0.0


class Counted(Rule):
    """Ours: the server's own count of sessions says how many others there are."""

    name = "unbroken: the server's count"

    def __init__(self, random: Random, processes: int) -> None:
        super().__init__(random, processes)
        crowd = Crowd()
        crowd.told(WANTED * processes, WANTED)
        self.crowd, self.pace = crowd, Pace(crowd)
        self.parallel = crowd.at_once(AT_ONCE)
        self.beside = 1 if crowd.is_large else AT_ONCE

    def refused(self, now: float, took: float) -> float:
        return self.pace.after(now, FaultKind.REFUSED, self.random, now)

    def timed_out(self, now: float) -> float:
        self.crowd.acknowledged(now)
        return self.pace.after(now, FaultKind.UNREACHABLE, self.random, now)

    def succeeded(self, now: float, took: float, was_away: bool) -> float:
        super().succeeded(now, took, was_away)
        return self.crowd.succeeded(took, self.random)


class LessAndLess(Rule):
    """The pause is a part of the outage's age: nothing else is known."""

    name = "a tenth of the age, to 0.5 s"
    beside = 1

    def refused(self, now: float, took: float) -> float:
        least, most = REFUSED_PACE
        return max(self.random.uniform(least, most), min(0.5, 0.1 * now)) * self.random.uniform(
            0.75, 1.0
        )


RULES: tuple[type[Rule], ...] = (
    Rule, FullJitter, Grpc, Decorrelated, Aimd, LessAndLess, OneThenDouble, Counted,
)  # fmt: skip


@dataclass(slots=True, eq=False)
class Login:
    """One attempt that the server works on."""

    process: Process
    begun: float
    is_over: bool = False


@dataclass(slots=True)
class World:
    """The events, and the server: it shares its cores among all logins under way."""

    cost: float
    cores: int
    now: float = 0.0
    attempts: list[float] = field(default_factory=list)
    peak: int = 0
    given_up: int = 0
    _heap: list[tuple[float, int, Callable[..., None], Any]] = field(default_factory=list)
    _count: int = 0
    _virtual: float = 0.0  #: processor time that a login has had which is under way since 0
    _since: float = 0.0
    _active: int = 0
    _working: list[tuple[float, int, Login]] = field(default_factory=list)
    _plan: int = 0

    def at(self, when: float, do: Callable[..., None], what: Any = None) -> None:
        self._count += 1
        heappush(self._heap, (when, self._count, do, what))

    def run(self, until: float, enough: Callable[[], bool]) -> None:
        while self._heap and self._heap[0][0] <= until and not enough():
            self.now, _, do, what = heappop(self._heap)
            do(what)

    def connect(self, process: Process) -> None:
        self.attempts.append(self.now)
        if self.now < AWAY:
            process.flying += 1
            self.at(self.now + ROUND_TRIP, process.refused, self.now)
            return
        self._pass()
        login = Login(process, self.now)
        self._active += 1
        process.flying += 1
        self.peak = max(self.peak, self._active)
        self._count += 1
        heappush(self._working, (self._virtual + self.cost, self._count, login))
        self.at(self.now + TIMEOUT, self._give_up, login)
        if process.rule.beside > 1:
            self.at(self.now + SLOW, process.silent, login)
        self._next()

    def _pass(self) -> None:
        if self._active:
            self._virtual += (self.now - self._since) * min(1.0, self.cores / self._active)
        self._since = self.now

    def _next(self) -> None:
        """Plan for the login that is ready first."""
        while self._working and self._working[0][2].is_over:
            heappop(self._working)
        self._plan += 1
        if self._working:
            left = max(0.0, self._working[0][0] - self._virtual)
            share = min(1.0, self.cores / self._active)
            self.at(self.now + left / share, self._done, self._plan)

    def _done(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._pass()
        while self._working and (
            self._working[0][2].is_over or self._working[0][0] <= self._virtual + 1e-9
        ):
            login = heappop(self._working)[2]
            if not login.is_over:
                login.is_over = True
                self._active -= 1
                login.process.succeeded(login)
        self._next()

    def _give_up(self, login: Login) -> None:
        if login.is_over:
            return
        self._pass()
        login.is_over = True
        self._active -= 1
        self.given_up += 1
        login.process.timed_out()
        self._next()


class Process:
    """One process, as far as a rule matters."""

    def __init__(self, world: World, rule: Rule) -> None:
        self.world, self.rule = world, rule
        self.flying = self.opened = 0
        self.is_away = self.is_waiting = False
        self.first = self.all = float("inf")

    def begin(self, _: object = None) -> None:
        self._open()

    def _open(self) -> None:
        limit = 1 if self.is_away else self.rule.parallel
        while self.opened + self.flying < WANTED and self.flying < limit and not self.is_waiting:
            self.world.connect(self)

    def _wait(self, seconds: float) -> None:
        if not self.is_waiting:
            self.is_waiting = True
            self.world.at(self.world.now + seconds, self._go_on)

    def _go_on(self, _: object) -> None:
        self.is_waiting = False
        self._open()

    def refused(self, begun: float) -> None:
        self.flying -= 1
        self.is_away = True
        now = self.world.now
        self._wait(self.rule.refused(now, now - begun))

    def timed_out(self) -> None:
        self.flying -= 1
        self.is_away = self.is_away or not self.opened
        self._wait(self.rule.timed_out(self.world.now))

    def silent(self, login: Login) -> None:
        if not login.is_over and self.flying < self.rule.beside:
            self.world.connect(self)

    def succeeded(self, login: Login) -> None:
        self.flying -= 1
        self.opened += 1
        now = self.world.now
        pause = self.rule.succeeded(now, now - login.begun, self.is_away)
        self.is_away = False
        self.first = min(self.first, now)
        if self.opened == WANTED:
            self.all = now
        if pause:
            self._wait(pause)
        self._open()


def play(rule: type[Rule], processes: int, costs: str, seed: int = 1) -> dict[str, float]:
    """One fleet before one server. Times in seconds since the server accepts."""
    random = Random(seed)
    world = World(*COSTS[costs])
    fleet = [Process(world, rule(Random(random.random()), processes)) for _ in range(processes)]
    for each in fleet:
        world.at(random.random() * 0.01, each.begin)
    every, left = AWAY + PATIENCE, set(fleet)

    def is_enough() -> bool:
        # looked at now and then
        if world._count & 1023:
            return False
        left.difference_update([each for each in left if each.opened == WANTED])
        return not left

    world.run(every, is_enough)
    firsts = sorted(each.first - AWAY for each in fleet)
    return {
        "attempts/s": sum(when < AWAY for when in world.attempts) / AWAY,
        "first moment": sum(when < 0.012 for when in world.attempts),
        "first": firsts[0],
        "half": median(firsts),
        "each": firsts[-1],
        "all": max(each.all for each in fleet) - AWAY,
        "peak": world.peak,
        "given up": world.given_up,
    }


def main() -> int:
    """Print what each rule gives."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 8, 100, 1000, 5000])
    parser.add_argument("--costs", choices=COSTS, nargs="*", default=list(COSTS))
    parser.add_argument("--rule", default="", help="part of a rule's name")
    options = parser.parse_args()
    for costs in options.costs:
        cost, cores = COSTS[costs]
        print(f"\n{costs}: {cost * 1e3:g} ms for a login on {cores} core(s)")
        for number in options.processes:
            print(
                f"\n{number} processes{'':<17} attempts/s  first moment   first    half    each"
                "     all s     peak  given up"
            )
            for rule in RULES:
                if options.rule not in rule.name:
                    continue
                found = play(rule, number, costs)
                print(
                    f"  {rule.name:<30} {found['attempts/s']:>8.0f} {found['first moment']:>12.0f}"
                    f" {found['first']:>8.3f} {found['half']:>7.2f} {found['each']:>7.1f}"
                    f" {found['all']:>9.1f} {found['peak']:>8.0f} {found['given up']:>9.0f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
