"""No line repeats itself without a bound, and what is left out is counted."""

from __future__ import annotations

import math
from itertools import count, takewhile

import pytest

from unbroken.logs.allowance import LONGEST, MOST, SHORTEST, Allowance

DAY = 86_400.0
KEY = ("connection ended", "shop")


def lines_of(moments: list[float]) -> tuple[int, int]:
    """How many lines are logged of events at *moments*, and how many events they tell of."""
    allowance, lines, told = Allowance(), 0, 0
    for now in moments:
        while allowance.due <= now:
            (rest,) = allowance.rest(allowance.due)
            lines, told = lines + 1, told + rest.count
        if allowance.may(KEY, None, now):
            lines, told = lines + 1, told + 1
    if allowance.due < math.inf:
        (rest,) = allowance.rest(allowance.due)
        lines, told = lines + 1, told + rest.count
    return lines, told


def test_the_first_line_is_logged_at_once_and_the_others_of_its_window_as_one_with_their_number():
    allowance = Allowance()
    assert allowance.may(KEY, "first", 100.0)
    assert not any(allowance.may(KEY, f"line {n}", 100.0 + n / 10) for n in range(1, 50))
    assert allowance.due == 100.0 + SHORTEST
    assert allowance.rest(100.0 + SHORTEST - 0.01) == []
    (rest,) = allowance.rest(100.0 + SHORTEST)
    assert (rest.count, rest.seconds, rest.last) == (49, SHORTEST, "line 49")
    assert allowance.due == math.inf


@pytest.mark.parametrize("every", [0.01, 0.5, 3.0, 11.0, 25.0, 300.0])
def test_a_day_of_the_same_event_takes_a_bounded_number_of_lines_and_loses_none(every):
    moments = list(takewhile(lambda t: t < min(DAY, 100_000 * every), count(0.0, every)))
    lines, told = lines_of(moments)
    assert told == len(moments)
    assert lines <= 10 + DAY / LONGEST


def test_events_that_are_far_apart_are_each_logged_at_once():
    allowance = Allowance()
    assert all(allowance.may(KEY, None, n * 2 * LONGEST) for n in range(50))


def test_an_event_after_a_quiet_window_is_logged_at_once():
    allowance = Allowance()
    assert allowance.may(KEY, None, 0.0)
    assert allowance.may(KEY, None, SHORTEST + 1.0)


def test_kinds_do_not_share_a_window():
    allowance = Allowance()
    assert all(allowance.may(("ended", n), None, 0.0) for n in range(MOST))


def test_more_kinds_than_can_be_told_apart_share_one_window_and_no_memory_grows():
    allowance = Allowance()
    said = [allowance.may(("ended", n), None, 0.0) for n in range(10 * MOST)]
    assert sum(said) == MOST + 1
    (rest,) = allowance.rest(SHORTEST)
    assert rest.count == 9 * MOST - 1
    assert len(allowance._windows) == MOST + 1
    assert allowance.may(("ended", "new"), None, SHORTEST + 3 * LONGEST)
    assert len(allowance._windows) <= MOST


def test_a_line_that_is_said_once_is_never_said_again():
    allowance = Allowance()
    assert allowance.once(KEY)
    assert not allowance.once(KEY)
    assert sum(allowance.once(("hint", n)) for n in range(2 * MOST)) == MOST - 1


def test_a_child_does_not_tell_what_its_parent_left_out():
    allowance = Allowance()
    assert allowance.once(("hint",))
    assert [allowance.may(KEY, None, 0.0), allowance.may(KEY, None, 1.0)] == [True, False]
    allowance.forget_windows()
    assert allowance.rest(10 * LONGEST) == []
    assert allowance.may(KEY, None, 2.0)
    assert not allowance.once(("hint",))
