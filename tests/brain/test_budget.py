"""How much lost work is sent again: never above the bound, and never less than the trickle."""

from __future__ import annotations

import math
from random import Random

import pytest

from unbroken.brain.budget import EVERY, Budget, bank_of, trickle_of

SCHEDULES = 10_000


def test_a_new_budget_is_full_and_an_empty_one_refuses() -> None:
    budget = Budget()
    assert budget.left(0.0, 20) == 60.0
    assert sum(budget.take(0.0, 20, 0.0) for _ in range(100)) == 60
    assert budget.left(0.0, 20) == 0.0
    assert not budget.take(0.2, 20, 0.0)
    assert budget.take(0.25, 20, 0.0)
    assert not budget.take(0.25, 20, 0.0)


def test_a_success_brings_its_part() -> None:
    budget = Budget()
    while budget.take(0.0, 4, 0.0):
        pass
    assert [budget.take(0.0, 4, 0.2) for _ in range(10)].count(True) == 2


def test_the_better_income_counts_and_not_both() -> None:
    """4 a second from success, 2 from time."""
    budget, granted = Budget(), 0
    while budget.take(0.0, 4, 0.0):
        pass
    for tick in range(1, 10_001):
        granted += budget.take(tick * 0.01, 4, 0.04)
    assert granted in (399, 400)


@pytest.mark.parametrize("connections", [1, 2, 3, 10, 100, 1000])
def test_no_restart_meets_it_whatever_the_size_of_the_pool(connections: int) -> None:
    """Each connection is lost at once, and nothing has ever succeeded; three times in a row, and
    then every five seconds for ever.
    """
    budget = Budget()
    for _ in range(3):
        assert all(budget.take(0.0, connections, 0.0) for _ in range(connections))
    for event in range(1, 21):
        assert all(budget.take(event * 5.0, connections, 0.0) for _ in range(connections))


def test_a_pool_that_grows_brings_its_bank() -> None:
    budget = Budget()
    while budget.take(0.0, 4, 0.0):
        pass
    assert budget.left(0.0, 20) == 30.0
    assert budget.left(0.0, 2) == 0.0


def test_an_incident_is_told_once_and_then_each_minute() -> None:
    budget = Budget()
    told: list[int] = []
    while budget.take(0.0, 4, 0.0):
        pass
    for second in range(180):
        told += [
            second
            for caller in range(50)
            if not budget.take(second + caller / 100, 4, 0.0) and budget.is_news(second)
        ]
    assert told == [0, 60, 120]
    assert EVERY == 60.0
    assert budget.refused > 50 * 150
    budget.take(1000.0, 4, 0.0)
    assert not budget.is_spent
    while budget.take(1000.0, 4, 0.0):
        pass
    assert budget.is_news(1000.0)
    assert budget.refused == 1


def test_never_above_the_bound_and_never_below_the_trickle() -> None:
    """Random servers and loads. In each window from any refusal on, and over all: at most the
    bank, the trickle and the part of the successes; and as many as the trickle brings, at least,
    where so many are wanted.
    """
    for seed in range(SCHEDULES):
        random = Random(seed)
        connections = random.choice([1, 3, 10, 50])
        fraction = random.choice([0.0, 0.1, 0.2, 1.0])
        bank, trickle = bank_of(connections), trickle_of(connections)
        budget, now, successes = Budget(), 0.0, 0
        granted, brought = 0, 0.0
        starved_since, granted_since = math.inf, 0
        mood, until = 0.5, 0.0
        for _ in range(random.randrange(10, 40)):
            if now >= until:
                mood, until = random.choice([0.0, 0.1, 0.5, 0.9, 1.0]), now + random.uniform(0, 5)
            now += random.expovariate(random.choice([1.0, 10.0, 100.0]))
            if random.random() >= mood:
                successes += 1
                continue
            earned, successes = fraction * successes, 0
            brought += earned
            left = budget.left(now, connections, earned)
            was_granted = budget.take(now, connections, earned)
            assert was_granted == (left >= 1.0 - 1e-9)
            assert -1e-6 <= budget.left(now, connections) <= bank
            granted += was_granted
            assert granted <= bank + trickle * now + brought + 1e-6, seed
            if budget.by_time <= 1.0:
                starved_since = math.inf  # the bank was full: what time brings is lost
            if not was_granted:
                if starved_since == math.inf:
                    starved_since, granted_since = now, granted
                # refused: what time has brought since the first refusal was all given out
                assert granted - granted_since > trickle * (now - starved_since) - 1.0 - 1e-6, seed
