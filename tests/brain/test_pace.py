"""How soon a server is asked again, and by how many at a time, given how many others there are."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from unbroken.abc import Fault, FaultKind
from unbroken.brain.outage import AT_ONCE, LONELY_PACE, PROVEN_FOR, SILENT, Outage
from unbroken.brain.pace import (
    AGE_PART,
    BUSY_RATE,
    COUNT_AGAIN,
    FIRST_REST,
    LAST_REST,
    LONGEST,
    LONGEST_BUSY,
    LONGEST_UNKNOWN,
    REFUSED_PACE,
    REFUSED_RATE,
    YOUNG,
    Crowd,
    Pace,
)

ME = object()
OWN = 8  #: connections of each process


def of(processes: int) -> Outage:
    """What each of so many *processes* knows."""
    outage = Outage()
    outage.crowd.asks(0.0, OWN, Random(1))
    outage.crowd.told(OWN * processes, OWN)
    return outage


def attempts(outage: Outage, kind: FaultKind, seconds: float, seed: int) -> list[float]:
    """When the prober tries, while the server fails so for so many *seconds*."""
    random, now, found = Random(seed), 100.0, []
    while now < 100.0 + seconds:
        found.append(now - 100.0)
        outage.failed(ME, now, now, Fault(kind), random)
        now += outage.ask(ME, now, 1) or 0.0
    return found


@pytest.mark.parametrize("processes", [1, 8, 50])
def test_few_processes_ask_a_server_that_refuses_as_often_as_one_alone(processes: int) -> None:
    pace, random = of(processes).pace, Random(1)
    pauses = [pace.after(200.0, FaultKind.REFUSED, random, 60.0) for _ in range(200)]
    assert REFUSED_PACE[0] <= min(pauses)
    assert max(pauses) <= REFUSED_PACE[1]


@pytest.mark.parametrize("processes", [200, 1000, 2000])
@pytest.mark.parametrize(
    ("kind", "rate", "longest"),
    [
        (FaultKind.REFUSED, REFUSED_RATE, LONGEST),
        (FaultKind.NOT_READY, BUSY_RATE, LONGEST_BUSY),
        (FaultKind.TOO_MANY, BUSY_RATE, LONGEST_BUSY),
    ],
)
def test_many_processes_share_a_number_of_attempts(
    processes: int, kind: FaultKind, rate: float, longest: float
) -> None:
    mine = len(attempts(of(processes), kind, 20.0, 1)) / 20.0
    # a pause is anything between its limit and a half of that
    assert mine * processes <= 1.5 * max(rate, processes / longest)


def test_a_thousand_make_a_fifth_of_the_attempts_and_the_first_finds_it_within_50_ms() -> None:
    tries = sorted(
        when
        for seed in range(1000)
        for when in attempts(of(1000), FaultKind.REFUSED, 5.0, seed)
        if when >= 0.5
    )
    before = 1000 / (sum(REFUSED_PACE) / 2)
    assert len(tries) / 4.5 <= before / 5
    assert max(later - sooner for sooner, later in pairwise(tries)) < 0.050


def test_who_was_never_told_a_count_asks_less_often_the_longer_it_takes() -> None:
    pace, random = Pace(Crowd()), Random(1)

    def pauses(age: float) -> list[float]:
        return [pace.after(1e4, FaultKind.REFUSED, random, age) for _ in range(100)]

    assert max(pauses(YOUNG)) <= REFUSED_PACE[1], "a restart"
    assert REFUSED_PACE[1] < max(pauses(YOUNG + 10.0)) <= 10.0 * AGE_PART
    oldest = pauses(3600.0)
    assert LONGEST_UNKNOWN / 2 <= min(oldest) <= max(oldest) <= LONGEST_UNKNOWN


def test_processes_that_share_a_host_are_at_least_so_many() -> None:
    crowd = Crowd()
    crowd.pools = 64
    assert crowd.size == 64
    crowd.told(OWN * 1000, OWN)
    assert crowd.size == 1000


def test_a_process_whose_sessions_are_most_of_all_is_alone() -> None:
    crowd = Crowd()
    crowd.told(3, 10)  # the server counts what is not closed yet, or not open yet
    assert crowd.size == 1
    crowd.told(None, 10)
    assert crowd.size == 1


def test_the_more_there_are_the_fewer_each_opens_before_the_first_has_come_about() -> None:
    assert [of(number).room(ME, 100.0, 0) for number in (1, 50, 100, 200, 1000)] == [
        AT_ONCE, AT_ONCE, 2, 1, 1,
    ]  # fmt: skip
    outage, seen = of(1000), []
    for number in range(5):
        now = 100.0 + number * 0.01
        seen.append(outage.room(ME, now, 0))
        outage.succeeded(now, 0.005, Random(1))
    assert seen == [1, 2, 3, 4, 4], "it is well"
    assert outage.room(ME, now + PROVEN_FOR, 0) == 1, "nobody knows any more"


def test_the_count_is_asked_for_now_and_then_and_when_the_process_has_grown() -> None:
    crowd, random = Crowd(), Random(1)
    assert crowd.is_due(100.0, 1)
    crowd.asks(100.0, 1, random)
    assert not crowd.is_due(100.1, 1)
    assert crowd.is_due(100.1, 2)
    crowd.asks(100.1, 2, random)
    assert not crowd.is_due(100.2 + COUNT_AGAIN[0] / 2, 3)
    assert crowd.is_due(100.2 + COUNT_AGAIN[1], 3)


def test_a_thousand_do_not_count_each_other_when_all_have_just_come_back() -> None:
    due = []
    for seed in range(1000):
        outage, random = of(1000), Random(seed)
        outage.failed(ME, 100.0, 100.0, Fault(FaultKind.REFUSED), random)
        outage.succeeded(105.0, 0.01, random)
        assert outage.crowd.size == 1000
        due.append(next(at for at in range(105, 400) if outage.crowd.is_due(at, 4 * OWN)))
    assert min(due) >= 105 + COUNT_AGAIN[0]
    assert max(due.count(at) for at in due) < 100


# -- logins that take long -------------------------------------------------------------------------


def in_line(processes: int = 1000) -> Outage:
    outage = of(processes)
    outage.began(ME, 100.0)
    outage.seen(100.0 + SILENT, [True])
    return outage


def test_in_a_long_line_no_other_attempt_begins_beside_a_silent_one_nor_in_its_place() -> None:
    outage = in_line()
    for now in (100.2, 101.5, 104.9):
        outage.seen(now, [True])
        assert outage.room(ME, now, 1) == 0
        assert outage.to_end(ME, now, 0) is None
    few = in_line(8)
    few.seen(101.5, [True])
    assert few.room(ME, 101.5, 1) >= 1


def test_what_nothing_acknowledges_is_tried_beside_and_so_is_another_host() -> None:
    outage = of(1000)
    outage.began(ME, 100.0)
    outage.seen(101.0, [False])
    assert outage.room(ME, 101.0, 1) >= 1
    outage = of(1000)
    outage.began(ME, 100.0).address = ("db1", 5432)
    outage.seen(101.0, [True])
    assert outage.room(ME, 101.0, 1) >= 1


def test_an_answer_that_does_not_come_in_time_is_followed_by_longer_and_longer_pauses() -> None:
    pauses: list[list[float]] = [[], [], [], []]
    for seed in range(300):
        outage, now, random = in_line(), 100.0, Random(seed)
        for each in pauses:
            outage.seen(now + 4.9, [True])
            outage.failed(ME, now, now + 5.0, Fault(FaultKind.UNREACHABLE), random)
            pause = outage.ask(ME, now + 5.0, 1)
            assert pause is not None
            each.append(pause)
            now += 5.0 + pause
    means = [sum(each) / len(each) for each in pauses]
    assert means[0] == pytest.approx(FIRST_REST / 2, rel=0.2)
    assert means[1] == pytest.approx(FIRST_REST, rel=0.2)
    assert max(pauses[3]) <= LAST_REST


def test_callers_are_told_at_once_while_it_rests() -> None:
    outage = in_line(5000)
    random = Random(3)
    for _ in range(5):
        outage.seen(104.9, [True])
        outage.failed(ME, 100.0, 105.0, Fault(FaultKind.UNREACHABLE), random)
    outage.over(outage.tries[0])
    pause = outage.ask(ME, 105.0, 1)
    assert pause is not None
    assert pause > 20
    assert outage.turns_away(105.0 + pause - 1, 5.0, came=105.0 + pause - 1.1)


@pytest.mark.parametrize(("processes", "took", "waits"), [
    (8, 4.0, False), (1000, 0.1, False), (1000, 4.0, True),
])  # fmt: skip
def test_after_a_slow_login_in_a_crowd_those_who_have_one_leave_the_line_to_others(
    processes: int, took: float, waits: bool
) -> None:
    outage = of(processes)
    outage.succeeded(100.0, took, Random(1))
    pause = outage.ask(ME, 100.0, 1, is_served=True)
    assert pause is not None
    assert (pause > 0) is waits
    assert pause <= LONELY_PACE, "a pool that has lost its connections must not go on waiting"
    assert outage.ask(ME, 100.0, 1) == 0.0, "it has none"


def test_where_logins_were_not_answered_in_time_the_line_is_made_shorter() -> None:
    served, late = in_line(), in_line()
    served.succeeded(104.0, 4.0, Random(1))
    late.seen(104.9, [True])
    late.failed(ME, 100.0, 105.0, Fault(FaultKind.UNREACHABLE), Random(1))
    late.succeeded(109.0, 4.0, Random(1))
    quick, slow = served.next_more - 104.0, late.next_more - 109.0
    assert 4.0 <= quick <= 20.0
    assert slow > 2 * quick
    late.succeeded(209.0, 0.1, Random(1))
    assert late.ask(ME, 209.0, 1, is_served=True) == 0.0, "it is well again"
