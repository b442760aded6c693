"""How long a server lets a connection idle: what is told, and what deaths teach."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from unbroken.brain.idle_limit import AGREEMENT, SAME_MOMENT, IdleLimit


def test_nothing_is_known_at_first() -> None:
    limit = IdleLimit()
    assert limit.limit == math.inf
    assert not limit.asked
    assert not limit.explains(1e9)


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


def test_one_death_teaches_nothing() -> None:
    limit = IdleLimit()
    assert not limit.died(100.0, 60.0)
    assert limit.limit == math.inf


def test_two_deaths_at_about_the_same_idle_time_make_a_limit() -> None:
    limit = IdleLimit()
    limit.died(100.0, 62.0)
    assert limit.died(300.0, 60.0)
    assert limit.limit == 60.0


def test_two_deaths_at_different_idle_times_do_not() -> None:
    limit = IdleLimit()
    limit.died(100.0, 60.0)
    assert not limit.died(300.0, 5.0)
    assert limit.learned is None


def test_deaths_at_one_moment_were_a_restart() -> None:
    limit = IdleLimit()
    for _ in range(10):
        assert not limit.died(100.0, 60.0)
    assert not limit.died(500.0, 60.0), "the restart's deaths speak of no limit later either"


def test_a_death_just_after_use_teaches_nothing() -> None:
    limit = IdleLimit()
    limit.died(100.0, 0.1)
    assert not limit.died(300.0, 0.1)


def test_a_balancers_shorter_limit_is_learned_beside_what_the_server_said() -> None:
    limit = IdleLimit()
    limit.tell(28_800.0)
    limit.died(100.0, 350.0)
    limit.died(900.0, 350.0)
    assert limit.limit == 350.0


def test_a_connection_that_outlived_the_learned_limit_takes_it_back() -> None:
    limit = IdleLimit()
    limit.died(100.0, 60.0)
    limit.died(300.0, 60.0)
    assert not limit.survived(60.0)
    assert limit.survived(100.0)
    assert limit.limit == math.inf
    assert not limit.died(900.0, 60.0), "it starts anew"


def test_what_the_server_said_is_not_taken_back() -> None:
    limit = IdleLimit()
    limit.tell(30.0)
    assert not limit.survived(1000.0)
    assert limit.limit == 30.0


def test_a_limit_explains_deaths_from_just_below_it() -> None:
    limit = IdleLimit()
    limit.tell(100.0)
    assert limit.explains(95.0)
    assert not limit.explains(50.0)


@given(st.floats(0.5, 1e5), st.lists(st.floats(1.0, 1.1), min_size=2, max_size=20))
def test_a_steady_limit_is_learned_and_never_above_the_deaths(
    limit: float, spread: list[float]
) -> None:
    learns, now = IdleLimit(), 0.0
    idles = [limit * each for each in spread]
    for idle in idles:
        now += 10 * SAME_MOMENT + idle
        learns.died(now, idle)
    assert learns.learned is not None
    assert min(idles) <= learns.learned <= max(idles)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6), st.booleans()), max_size=30))
def test_no_story_of_deaths_gives_a_limit_that_nobody_died_at(
    story: list[tuple[float, float, bool]],
) -> None:
    learns, now, idles = IdleLimit(), 0.0, set()
    for pause, idle, died in story:
        now += pause
        if died:
            idles.add(idle)
            learns.died(now, idle)
        else:
            learns.survived(idle)
            assert learns.learned is None or idle <= learns.learned * (1 + AGREEMENT)
        assert learns.learned is None or learns.learned in idles
