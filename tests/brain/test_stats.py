"""A frozen picture of one moment."""

from __future__ import annotations

import dataclasses
import math
import pickle
from random import Random

import pytest

from unbroken.abc import Fault, FaultKind, Target
from unbroken.brain.entry import Entry
from unbroken.brain.idle_limit import IdleLimit
from unbroken.brain.kernel import Kernel, Ticket
from unbroken.brain.outage import Outage
from unbroken.brain.stats import Counters, Stats, snapshot


class Conn:
    pass


def picture(
    kernel: Kernel | None = None,
    counters: Counters | None = None,
    outage: Outage | None = None,
    limit: float | None = None,
) -> Stats:
    known = IdleLimit()
    known.tell(limit)
    mine = kernel or Kernel(5, 1), counters or Counters(), outage or Outage()
    target = Target("mysql", "mysql", "db", 3306)
    return snapshot(*mine, known, 200.0, name="shop", target=target, pid=7)


def test_a_new_pool_has_nothing_and_has_done_nothing() -> None:
    stats = picture()
    assert (
        stats.max_size,
        stats.min_size,
        stats.size,
        stats.idle,
        stats.used,
        stats.opening,
        stats.waiting,
    ) == (5, 1, 0, 0, 0, 0, 0)
    assert (stats.name, stats.server, stats.pid) == ("shop", "db:3306", 7)
    assert not any(
        [
            stats.acquired,
            stats.opened,
            stats.waits,
            stats.timeouts,
            stats.outages,
            stats.leaked,
            stats.closed,
        ]
    )


def test_it_counts_what_is_where() -> None:
    kernel = Kernel(5)
    for _ in range(3):
        kernel.opening += 1
        kernel.opened(Entry(Conn(), 0.0, 0, math.inf))
    lent = kernel.idle.pop()
    kernel.in_use[lent.key] = lent
    kernel.opening += 1
    kernel.waiting.append(Ticket(0.0, None))
    stats = picture(kernel)
    assert (stats.size, stats.idle, stats.used, stats.opening, stats.waiting) == (4, 2, 1, 1, 1)


def test_uses_of_connections_that_are_gone_are_not_forgotten() -> None:
    kernel, counters = Kernel(5), Counters()
    kernel.opening += 1
    entry = Entry(Conn(), 0.0, 0, math.inf)
    entry.uses = 3
    kernel.opened(entry)
    counters.retired_uses = 10
    assert picture(kernel, counters).acquired == 13


def test_it_says_how_long_the_server_is_away_and_why() -> None:
    outage = Outage()
    outage.failed(
        self := object(),
        190.0,
        190.0,
        Fault(FaultKind.REFUSED, text="Connection refused"),
        Random(1),
    )
    stats = picture(outage=outage)
    assert self is outage.prober
    assert (stats.away_for, stats.away_because) == (10.0, "Connection refused")
    assert picture().away_for == 0.0


def test_no_limit_is_none() -> None:
    assert picture(limit=None).idle_limit is None
    assert picture(limit=30.0).idle_limit == 30.0


def test_it_cannot_be_changed_and_does_not_change() -> None:
    counters = Counters()
    counters.closed["killed"] += 1
    stats = picture(counters=counters)
    counters.closed["killed"] += 1
    assert stats.closed == {"killed": 1}
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.size = 9  # type: ignore[misc]


def test_it_can_be_sent_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(picture())) == picture()
