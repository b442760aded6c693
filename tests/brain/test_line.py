"""A line that knows that it is too long: the rule by itself, and in a model of overload."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from unbroken.brain.entry import Entry
from unbroken.brain.kernel import Kernel
from unbroken.brain.line import ENOUGH, Line
from unbroken.brain.ranks import PASSED, Rank, Ticket, Turns

NORMAL = Rank.NORMAL


@pytest.fixture(scope="module")
def overload() -> Iterator[ModuleType]:
    bench = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, bench)
    try:
        import overload_model

        yield overload_model
    finally:
        sys.path.remove(bench)


# -- the rule by itself ----------------------------------------------------------------------------


def learned(gap: float = 0.01, places: int = 5) -> tuple[Line, float]:
    """A line that has learned its pace, and what time it is."""
    line, now = Line(), 0.0
    line.came(now, NORMAL, 0, 10.0, places)
    for _ in range(10 * ENOUGH):
        now += gap
        line.granted(now, places, others=True)
    return line, now


def test_a_line_that_does_not_know_its_pace_refuses_nobody() -> None:
    assert Line().came(0.0, NORMAL, 10_000, 0.1, 5, users=10_000) is None


def test_the_pace_is_the_time_between_two_grants_while_callers_wait() -> None:
    line, now = learned(0.01)
    assert line.gap == pytest.approx(0.01)
    line.granted(now + 0.01, 5, others=False)
    line.granted(now + 100.0, 5, others=True)  # nobody waited in between
    assert line.gap == pytest.approx(0.01, rel=0.05)


def test_a_caller_is_told_at_once_only_if_it_would_surely_wait_longer_than_it_can() -> None:
    line, now = learned(0.01)
    told = line.came(now, NORMAL, 200, 1.0, 5)
    assert told is not None
    assert told.expected == pytest.approx(2.01)
    assert told.limit == 1.0
    assert line.came(now, NORMAL, 110, 1.0, 5) is None  # about as long as it can
    assert line.came(now, NORMAL, 100_000, math.inf, 5) is None


def test_one_long_unit_of_work_hardly_changes_the_pace() -> None:
    line, now = learned(0.01)
    line.granted(now + 60.0, 5, others=True)
    assert line.gap < 0.02


def test_a_pace_is_forgotten_when_nobody_has_waited_for_long() -> None:
    line, now = learned(0.01)
    assert line.came(now + 1000.0, NORMAL, 100_000, 1.0, 5) is None


def test_a_health_check_is_never_told_to_go() -> None:
    line, now = learned(0.01)
    assert line.came(now, Rank.HEALTH, 10_000, 0.1, 5, users=10_000) is None


def test_a_line_of_others_is_no_reason_to_refuse_a_user() -> None:
    line, now = learned(0.004)
    for i in range(5000):
        assert line.came(now + i * 0.002, NORMAL, 500, 10.0, 5, users=2) is None
        line.granted(now + i * 0.002, 5, others=True)


def test_time_that_callers_have_is_learned_from_those_that_leave() -> None:
    line, now = learned(0.01)
    assert line.came(now, NORMAL, 60, 10.0, 5) is None
    for _ in range(20):
        line.left(now, 1.0, 5)
    assert line.patience(now) == pytest.approx(1.0)
    assert line.patience(now + 11.0) == math.inf
    assert line.came(now, NORMAL, 60, 10.0, 5) is not None
    old, young = Ticket(now - 0.99, None), Ticket(now - 0.5, None)
    assert line.late(now, [old, young], 5) == [old]


def test_users_who_came_before_the_pace_was_known_are_told_when_others_are_refused() -> None:
    line, now = learned(0.01)
    users = [Ticket(now - 0.3, None, is_users=True) for _ in range(100)]
    others = [Ticket(now - 0.3, None) for _ in range(100)]
    late = line.late(now, users + others, 5)
    assert set(late) < set(users)
    assert 30 < len(late) < 40  # those who would wait for more than a second in all


def test_callers_that_leave_early_set_no_limit_where_it_is_turned_off() -> None:
    line, now = learned(0.01)
    for _ in range(100):
        line.granted(now, 5, others=True)
        line.left(now, 1.0, 5)
    assert line.came(now, NORMAL, 500, 1e6, 5, users=500, target=math.inf) is None
    assert line.came(now, NORMAL, 500, 1e6, 5, target=math.inf) is None
    assert line.came(now, NORMAL, 500, 1e6, 5) is not None


def test_those_that_leave_at_once_say_nothing_and_the_next_in_line_is_never_told_to_go() -> None:
    line, now = learned(0.01)
    for _ in range(100):
        line.left(now, 0.001, 5)
    assert line.patience(now) == math.inf
    for _ in range(100):
        line.left(now, 0.31, 5)
    for ahead in range(5):
        assert line.came(now, NORMAL, ahead, 10.0, 5) is None
    for later in range(70):  # whatever is refused, it is learned anew after a minute
        line.came(now + later, NORMAL, 60, 10.0, 5)
        line.granted(now + later, 5, others=False)
    assert line.patience(now + 69) == math.inf


def test_a_few_that_leave_say_nothing() -> None:
    line, now = learned(0.01)
    for i in range(1000):
        line.granted(now + i * 0.01, 5, others=True)
        if i % 20 == 0:
            line.left(now + i * 0.01, 0.5, 5)
    assert line.patience(now) == math.inf


# -- classes ---------------------------------------------------------------------------------------


class Conn:
    """A driver's connection, as far as the kernel cares."""


class Place:
    """A pool of one connection, always in use, whose grants come one by one."""

    def __init__(self) -> None:
        self.kernel = Kernel(1)
        self.kernel.opening += 1
        self.kernel.opened(Entry(Conn(), 0.0, 0, math.inf))
        self.entry = self.kernel.idle.pop()
        self.kernel.lend(self.entry)

    def give(self) -> Ticket | None:
        """The connection goes back, and to the ticket that is returned."""
        del self.kernel.in_use[self.entry.key]
        self.kernel.put(self.entry)
        granted, _ = self.kernel.serve()
        if granted:
            granted[0].entry = None
        else:
            self.kernel.idle.pop()
        self.kernel.lend(self.entry)
        return granted[0] if granted else None

    def enter(self, rank: Rank) -> Ticket:
        ticket = Ticket(0.0, None, rank)
        assert self.kernel.enter(ticket) == []
        return ticket


def test_health_checks_are_served_first_and_background_work_last() -> None:
    place = Place()
    line = [place.enter(rank) for rank in (Rank.BACKGROUND, NORMAL, NORMAL, Rank.HEALTH)]
    assert place.kernel.ahead(line[-1]) == 0
    background, first, second, health = line
    assert [place.give() for _ in range(5)] == [health, first, second, background, None]
    assert place.kernel.turns is not None
    place.enter(NORMAL)
    place.give()
    assert place.kernel.turns is None


def test_one_who_stands_at_the_front_is_the_first_of_its_class() -> None:
    place = Place()
    place.enter(NORMAL)
    place.enter(Rank.BACKGROUND)
    again = Ticket(0.0, None)
    place.kernel.enter(again, front=True)
    assert place.give() is again


def starve(random: Random) -> None:
    """One schedule: callers of all classes come and are served, some leave. Raises AssertionError
    where one of them waits for longer than its class may.
    """
    place, line = Place(), []
    bounds: dict[Ticket, tuple[int, int]] = {}
    weights = [random.random() for _ in Rank]
    load = random.uniform(0.3, 2.0)
    for grants in range(random.randint(10, 30)):
        for _ in range(1 + (random.random() < load)):
            rank = random.choices(list(Rank), weights)[0]
            before = sum(t.rank is rank for t in line)
            ticket = place.enter(rank)
            line.append(ticket)
            most = (before + 1) * (PASSED[rank] + len(Rank))
            bounds[ticket] = (grants, most if rank is not Rank.HEALTH else before + 2)
        if line and random.random() < 0.1:
            left = line.pop(random.randrange(len(line)))
            place.kernel.give_up(left)
        served = place.give()
        if served is not None:
            since, most = bounds[served]
            if served.rank is not Rank.HEALTH:
                assert grants + 1 - since <= most, served.rank
            first = next(t for t in line if t.rank is served.rank)
            assert served is first  # equals in the order in which they came
            line.remove(served)


def test_no_class_starves_whatever_comes_in_which_order() -> None:
    for seed in range(1_000):
        starve(Random(seed))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_class_starves_in_a_hundred_thousand_schedules() -> None:
    for seed in range(100_000):
        starve(Random(seed))


def test_a_health_check_waits_for_few_others_however_many_wait() -> None:
    place = Place()
    for _ in range(500):
        place.enter(NORMAL)
        place.enter(Rank.BACKGROUND)
    for _ in range(200):
        health = place.enter(Rank.HEALTH)
        served = [place.give() for _ in range(3)]
        assert health in served


# -- in the model: many callers, few connections ---------------------------------------------------

USERS: dict[str, Any] = {"patience": 1.0, "web": True}
SIZES, KINDS = (1, 5, 50), ("constant", "exponential", "heavy")


def play(overload: ModuleType, size: int, kind: str, factor: float, rule: Any = None) -> Any:
    """Users of a web application for some seconds, then half the load that can be served."""
    model = overload.Model(size, rule or overload.Ours(), overload.UNITS[kind])
    model.open_loop(0.0, 4.0, factor, **USERS)
    model.open_loop(4.0, 7.0, 0.5, **USERS)
    return model.run()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_at_three_times_the_load_as_many_are_served_in_time_and_fast_and_the_others_told_at_once(
    overload, size, kind
):
    calm = play(overload, size, kind, 0.9).between(0.0, 4.0)
    full = play(overload, size, kind, 1.0).between(0.0, 4.0)
    model = play(overload, size, kind, 3.0)
    found, steady = model.between(0.0, 4.0), model.between(1.5, 4.0)
    assert found.goodput >= 0.9 * full.goodput
    assert steady.p99 <= 3 * calm.p99
    assert found.quantile(0.95, "shed") == 0.0
    late = [c for c in model.callers if c.came >= 5.0 and not c.in_time]
    assert len(late) <= 0.02 * len(model.callers)


def test_others_serve_nobody_in_time_or_late(overload):
    ours, everybody, ecto = (
        play(overload, 5, "constant", 3.0, rule()).between(0.0, 4.0)
        for rule in (overload.Ours, overload.Waits, overload.Ecto)
    )
    assert everybody.goodput < 0.5 < 0.9 < ours.goodput
    assert ours.p99 < ecto.p99


@pytest.mark.parametrize("threads", [12, 20, 40])
def test_a_line_that_a_web_servers_threads_keep_short_is_seen_to_stand(overload, threads):
    """Those that the server has no thread for wait before it, where no pool sees them."""
    found = []
    for rule in (overload.Ours(), overload.MaxWaiting(50)):
        model = overload.Model(5, rule, threads=threads)
        model.open_loop(0.0, 6.0, 3.0, **USERS)
        found.append(model.run().between(2.0, 6.0))
    assert found[0].goodput > 0.8 > 0.3 > found[1].goodput


@pytest.mark.parametrize("threads", [20, 40])
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_such_a_line_is_noticed_before_requests_pile_up_that_nobody_waits_for(
    overload, monkeypatch, threads, factor
):
    """Each answer costs a threaded server 2.7 ms under Python's lock, an error too. What has piled
    up before the line counts as standing takes as long to be answered.
    """
    monkeypatch.setattr(overload, "UNIT", 0.05)
    model = overload.Model(5, overload.Ours(), overload.constant, 1, threads, answering=0.0027)
    model.open_loop(0.0, 3.0, 0.9, **USERS)
    model.open_loop(3.0, 9.0, factor, **USERS)
    found = model.run()
    assert found.between(3.0, 9.0).goodput >= 0.9
    assert found.between(0.0, 3.0).share("shed") == 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [20, 100, 1000])
def test_nobody_of_a_batch_job_is_told_to_go(overload, number, kind):
    model = overload.Model(5, overload.Ours(), overload.UNITS[kind])
    model.closed_loop(number, 5.0)
    model.run()
    assert {c.how for c in model.callers} == {"served"}


def test_users_beside_a_batch_job_are_served_as_before(overload):
    model = overload.Model(5, overload.Ours())
    model.closed_loop(50, 5.0)
    model.open_loop(0.0, 5.0, 0.1, **USERS)
    assert {c.how for c in model.run().callers} == {"served"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "number"), [(1, 12), (5, 90), (50, 900)])
def test_nobody_of_a_burst_is_lost(overload, size, number, kind):
    model = overload.Model(size, overload.Ours(), overload.UNITS[kind])
    model.open_loop(0.0, 2.0, 0.3, **USERS)
    model.burst(2.0, number, **USERS)
    model.open_loop(2.0, 4.0, 0.3, **USERS)
    assert {c.how for c in model.run().callers} == {"served"}


def test_few_are_told_to_go_while_the_pool_can_serve_all(overload):
    for size in SIZES:
        assert play(overload, size, "exponential", 0.9).between(0.0, 4.0).share("shed") < 0.02
        assert play(overload, size, "constant", 0.9).between(0.0, 4.0).share("shed") == 0.0


def test_where_users_take_their_requests_with_them_their_patience_is_learned(overload):
    users = {"patience": 1.0, "cancels": True}
    found = []
    for rule in (overload.Ours(), overload.Waits()):
        model = overload.Model(5, rule, overload.constant)
        model.open_loop(0.0, 6.0, 3.0, **users)
        found.append(model.run().between(1.5, 6.0))
    assert found[0].goodput > 0.9 > 0.3 > found[1].goodput
    assert found[0].p99 < 0.6


def test_health_checks_are_answered_at_once_at_five_times_the_load(overload):
    model = overload.Model(5, overload.Ours())
    model.open_loop(0.0, 4.0, 5.0, **USERS)
    for i in range(40):
        model.burst(0.1 * i, 1, rank=Rank.HEALTH, web=True)
        model.burst(0.1 * i, 5, rank=Rank.BACKGROUND)
    model.run()
    health = model.between(0.0, 4.0, Rank.HEALTH)
    waits = [c.granted - c.came for c in health.callers]
    assert max(waits) < 0.1
    background = model.between(0.0, 4.0, Rank.BACKGROUND)
    assert background.share("served") > 0.9


def test_callers_that_would_time_out_anyhow_are_told_at_once(overload):
    model = overload.Model(5, overload.Ours(), overload.constant)
    model.open_loop(0.0, 20.0, 3.0, timeout=2.0)
    found = model.run().between(10.0, 20.0)
    assert found.share("timed out") < 0.5 * found.share("shed")
    assert found.goodput > 0.9


def test_the_same_callers_have_the_same_fate(overload):
    first, second = (play(overload, 5, "heavy", 3.0) for _ in range(2))
    assert [c.how for c in first.callers] == [c.how for c in second.callers]


def test_turns_name_nobody_where_all_have_something() -> None:
    ticket = Ticket(0.0, None)
    ticket.error = ValueError()
    assert Turns().first([ticket]) is None
