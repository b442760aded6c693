"""Which retry budget: the rules of the field and ours, in simulated time.

    python bench/budget_model.py

Requests come at random for 60 s. A server loses a part of all attempts. A lost attempt is followed
by another one as long as the rule allows it, ten times at most. *Attempts per request* is what the
server has to bear. A restart loses each connection of a pool once, all at one moment, and nothing
has succeeded before; *not healed* are the callers that get an error.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from unbroken.brain.budget import Budget

SECONDS, MOST = 60.0, 10


class Rule(Protocol):
    """Who may try again."""

    def succeeded(self, now: float) -> None:
        """An attempt has succeeded."""

    def take(self, now: float) -> bool:
        """Whether an attempt that has failed may be followed by another one."""


class Unbound:
    """Ten replays for each."""

    def __init__(self, connections: int) -> None:
        del connections

    def succeeded(self, now: float) -> None:
        """See Rule."""

    def take(self, now: float) -> bool:
        """See Rule."""
        del now
        return True


class Grpc(Unbound):
    """gRPC's retryThrottling, as in its proposal A6: maxTokens 10, tokenRatio 0.1."""

    tokens = 10.0

    def succeeded(self, now: float) -> None:
        """See Rule."""
        del now
        self.tokens = min(10.0, self.tokens + 0.1)

    def take(self, now: float) -> bool:
        """See Rule."""
        del now
        self.tokens = max(0.0, self.tokens - 1.0)
        return self.tokens > 5.0


class Finagle(Unbound):
    """Finagle's and Linkerd's RetryBudget: a fifth, and ten a second, of the last ten seconds."""

    def __init__(self, connections: int) -> None:
        super().__init__(connections)
        self.deposits: deque[float] = deque()
        self.spent: deque[float] = deque()

    def succeeded(self, now: float) -> None:
        """See Rule."""
        self.deposits.append(now)

    def take(self, now: float) -> bool:
        """See Rule."""
        for each in (self.deposits, self.spent):
            while each and each[0] < now - 10.0:
                each.popleft()
        if len(self.spent) + 1 > 0.2 * len(self.deposits) + 100:
            return False
        self.spent.append(now)
        return True


class Ours(Unbound):
    """unbroken's."""

    def __init__(self, connections: int) -> None:
        super().__init__(connections)
        self.budget, self.connections, self.earned = Budget(), connections, 0.0

    def succeeded(self, now: float) -> None:
        """See Rule."""
        del now
        self.earned += 0.2

    def take(self, now: float) -> bool:
        """See Rule."""
        earned, self.earned = self.earned, 0.0
        return self.budget.take(now, self.connections, earned)


RULES: dict[str, Callable[[int], Rule]] = {
    "ten replays each": Unbound, "gRPC": Grpc, "Finagle": Finagle, "unbroken": Ours,
}  # fmt: skip


def storm(
    make: Callable[[int], Rule], rate: float, part: float, connections: int = 10, seed: int = 1
) -> tuple[float, float]:
    """Attempts per request, and the part of the requests that failed."""
    random, rule = Random(seed), make(connections)
    now, requests, attempts, failed = 0.0, 0, 0, 0
    while (now := now + random.expovariate(rate)) < SECONDS:
        requests += 1
        for number in range(MOST + 1):
            attempts += 1
            if random.random() >= part:
                rule.succeeded(now)
                break
            if number == MOST or not rule.take(now):
                failed += 1
                break
    return attempts / requests, failed / requests


def restarts(make: Callable[[int], Rule], connections: int, times: int, apart: float) -> int:
    """How many callers are not healed."""
    rule = make(connections)
    return sum(not rule.take(event * apart) for event in range(times) for _ in range(connections))


def fleet(make: Callable[[int], Rule], processes: int, rate: float, connections: int) -> float:
    """Attempts per request where all are lost, and each of *processes* has a rule of its own."""
    return (
        sum(storm(make, rate, 1.0, connections, seed)[0] for seed in range(processes)) / processes
    )


def main() -> None:
    """Print the tables."""
    print("| requests a second | part lost |", " | ".join(RULES), "|")
    print("|---|---|" + "---|" * len(RULES))
    for rate in (1, 10, 100, 1000):
        for part in (0.1, 0.5, 1.0):
            cells = [storm(make, rate, part) for make in RULES.values()]
            print(
                f"| {rate} | {part:g} |",
                " | ".join(f"{ratio:.2f} ({failed:.0%})" for ratio, failed in cells),
                "|",
            )
    print("\n| pool | restarts |", " | ".join(RULES), "|")
    print("|---|---|" + "---|" * len(RULES))
    for connections in (10, 100, 1000):
        for times, apart in ((1, 0.0), (3, 0.5), (6, 10.0)):
            cells2 = [restarts(make, connections, times, apart) for make in RULES.values()]
            words = "one" if times == 1 else f"{times}, each {apart:g} s"
            print(f"| {connections} | {words} |", " | ".join(str(each) for each in cells2), "|")
    print("\n| processes, requests a second of each |", " | ".join(RULES), "|")
    print("|---|" + "---|" * len(RULES))
    for processes, rate, connections in ((100, 5.0, 5), (1000, 1.0, 2)):
        cells3 = [fleet(make, processes, rate, connections) for make in RULES.values()]
        print(f"| {processes}, {rate:g} |", " | ".join(f"{each:.2f}" for each in cells3), "|")


if __name__ == "__main__":
    main()
