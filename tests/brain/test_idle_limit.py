"""How long a server lets a connection idle: what is told, and what deaths teach."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.brain.idle_limit import ENOUGH, KEPT, SAME_MOMENT, IdleLimit

LONG = 1e6  #: seconds that the server is up


def die(limit: IdleLimit, when: float, idle: float, uptime: float | None = LONG) -> bool:
    """A connection, opened a little before it idled, ends; the server is asked a second later."""
    limit.died(when, idle, when - idle - 0.1)
    return limit.heard(when + 1.0, limit.take_pending(), uptime, was_away=False)


def learned(at: float = 60.0) -> tuple[IdleLimit, float]:
    """A limit that was learned, and when."""
    limit, now = IdleLimit(), 0.0
    for _ in range(ENOUGH):
        now += at + 10.0
        die(limit, now, at)
    return limit, now


def test_nothing_is_known_at_first() -> None:
    limit = IdleLimit()
    assert limit.limit == math.inf
    assert not limit.asked
    assert not limit.explains(1e9)
    assert not limit.wants_uptime


def test_what_the_server_says_holds() -> None:
    limit = IdleLimit()
    limit.tell(30.0)
    assert limit.limit == 30.0
    assert limit.asked


def test_a_server_without_a_limit_was_asked_all_the_same() -> None:
    limit = IdleLimit()
    limit.tell(None)
    assert limit.asked
    assert limit.limit == math.inf


def test_two_deaths_teach_nothing_and_three_that_agree_make_a_limit() -> None:
    limit = IdleLimit()
    assert not die(limit, 100.0, 62.0)
    assert not die(limit, 300.0, 60.0)
    assert limit.limit == math.inf
    assert die(limit, 500.0, 61.0)
    assert limit.limit == 60.0
    assert limit.learned_from.startswith(
        "3 connections lost without a message after 62.00, 60.00, 61.00 s"
    )


@pytest.mark.parametrize("idles", [(60.0, 5.0, 30.0, 90.0, 12.0), (3.0, 2.0, 3.6, 2.4, 1.3)])
def test_deaths_at_different_idle_times_make_none(idles: tuple[float, ...]) -> None:
    limit = IdleLimit()
    for number, idle in enumerate(idles):
        assert not die(limit, 200.0 * (number + 1), idle)


@pytest.mark.parametrize("uptime", [None, 0.0, 30.0, 61.0])
def test_deaths_that_a_restart_may_explain_teach_nothing(uptime: float | None) -> None:
    limit = IdleLimit()
    for number in range(10):
        assert not die(limit, 200.0 * (number + 1), 60.0, uptime)
    assert limit.learned is None


def test_deaths_before_failed_connects_teach_nothing() -> None:
    limit = IdleLimit()
    for number in range(10):
        now = 200.0 * (number + 1)
        limit.died(now, 60.0, now - 61.0)
        assert not limit.heard(now + 1, limit.take_pending(), LONG, was_away=True)
    assert limit.learned is None


def test_another_hosts_uptime_says_nothing() -> None:
    limit = IdleLimit()
    for number in range(10):
        now = 200.0 * (number + 1)
        limit.died(now, 60.0, now - 61.0, ("db1", 5432))
        deaths = limit.take_pending()
        assert not limit.heard(now + 1, deaths, LONG, was_away=False, place=("db2", 5432))


def test_several_that_end_at_one_moment_after_different_idle_times_were_a_restart() -> None:
    limit = IdleLimit()
    for number in range(10):
        now = 200.0 * (number + 1)
        limit.died(now, 60.0, now - 61.0)
        limit.died(now + 0.01, 20.0, now - 61.0)
        assert not limit.wants_uptime
        assert limit.take_pending() == []


def test_several_that_end_at_one_moment_after_the_same_idle_time_count_as_one() -> None:
    limit = IdleLimit()
    for number in range(ENOUGH):
        now = 200.0 * (number + 1)
        for each in range(5):
            limit.died(now + each / 100, 60.0, now - 61.0)
        (death,) = limit.take_pending()
        taught = limit.heard(now + 1, [death], LONG, was_away=False)
        assert taught is (number == ENOUGH - 1)


@pytest.mark.parametrize("before", [True, False])
def test_a_death_beside_one_in_use_or_with_words_teaches_nothing(before: bool) -> None:
    limit = IdleLimit()
    for number in range(10):
        now = 200.0 * (number + 1)
        if before:
            limit.broke(now - 0.1)
        limit.died(now, 60.0, now - 61.0)
        if not before:
            limit.broke(now + 0.1)
        assert not limit.wants_uptime


def test_a_death_just_after_use_teaches_nothing() -> None:
    limit = IdleLimit()
    for number in range(10):
        assert not die(limit, 200.0 * (number + 1), 0.1)


def test_the_server_is_asked_once_after_a_death() -> None:
    limit = IdleLimit()
    limit.died(100.0, 60.0, 30.0)
    assert limit.wants_uptime
    assert limit.take_pending()
    assert not limit.wants_uptime


def test_a_balancers_shorter_limit_is_learned_beside_what_the_server_said() -> None:
    limit, _ = learned(350.0)
    limit.tell(28_800.0)
    assert limit.limit == 350.0


def test_a_connection_that_lived_longer_in_between_contradicts() -> None:
    limit = IdleLimit()
    for number in range(10):
        assert not die(limit, 200.0 * (number + 1), 60.0)
        limit.alive(200.0 * (number + 1) + 100.0, 80.0)
    assert limit.learned is None


def test_a_connection_that_outlived_the_learned_limit_takes_it_back() -> None:
    limit, now = learned()
    assert not limit.alive(now + 10.0, 60.0)
    assert limit.alive(now + 100.0, 100.0)
    assert limit.limit == math.inf
    assert limit.learned_from == ""
    assert not die(limit, now + 200.0, 60.0), "it starts anew"


def test_a_learned_limit_is_forgotten_after_a_while_and_one_death_brings_it_back() -> None:
    limit, now = learned()
    assert not limit.alive(now + KEPT - 10.0, 10.0)
    assert limit.alive(now + KEPT + 10.0, 10.0)
    assert limit.limit == math.inf
    assert limit.is_watching
    assert not die(limit, now + KEPT + 50.0, 20.0)
    assert die(limit, now + KEPT + 100.0, 60.0)
    assert limit.limit == 60.0


def test_what_is_forgotten_and_then_outlived_is_not_brought_back_by_one_death() -> None:
    limit, now = learned()
    limit.alive(now + KEPT + 10.0, 10.0)
    limit.alive(now + KEPT + 90.0, 90.0)
    assert not die(limit, now + KEPT + 200.0, 60.0)


def test_what_the_server_said_is_not_taken_back() -> None:
    limit = IdleLimit()
    limit.tell(30.0)
    assert not limit.alive(0.0, 1000.0)
    assert limit.limit == 30.0


def test_a_limit_explains_deaths_from_just_below_it() -> None:
    limit = IdleLimit()
    limit.tell(100.0)
    assert limit.explains(96.0)
    assert not limit.explains(50.0)


@given(st.floats(0.5, 1e5), st.lists(st.floats(1.0, 1.04), min_size=ENOUGH, max_size=20))
def test_a_steady_limit_is_learned_and_never_above_the_deaths(
    limit: float, spread: list[float]
) -> None:
    learns, now = IdleLimit(), 0.0
    idles = [limit * each for each in spread]
    for idle in idles:
        now += 10 * SAME_MOMENT + idle
        die(learns, now, idle, 1e9)
    assert learns.learned is not None
    assert min(idles) <= learns.learned <= max(idles)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from("died alive broke".split())
        ),
        max_size=30,
    )
)
def test_no_story_of_deaths_gives_a_limit_that_nobody_died_at(
    story: list[tuple[float, float, str]],
) -> None:
    learns, now, idles = IdleLimit(), 0.0, set()
    for pause, idle, what in story:
        now += pause
        if what == "died":
            idles.add(idle)
            die(learns, now, idle, 1e9)
        elif what == "broke":
            learns.broke(now)
        else:
            learns.alive(now, idle)
            assert learns.learned is None or idle <= learns.learned * 1.1 + 0.2
        assert learns.learned is None or learns.learned in idles
        assert (learns.learned is None) == (learns.learned_from == "")


@given(st.lists(st.tuples(st.floats(1.0, 600.0), st.floats(0.5, 60.0)), max_size=30))
def test_restarts_of_the_server_teach_nothing_however_many(
    story: list[tuple[float, float]],
) -> None:
    learns, now = IdleLimit(), 0.0
    for pause, idle in story:
        now += pause + idle
        died = now
        learns.died(died, idle, died - idle - 0.1)
        uptime = 0.5  # it was asked just after it was up again
        assert not learns.heard(died + 1.0, learns.take_pending(), uptime, was_away=False)
