"""Refused logins are tried again soon, and rarely enough for a server that counts them."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from unbroken.abc import Fault, FaultKind
from unbroken.brain.refusals import LAST_PAUSE, SPREAD, Refusals

REFUSED = Fault(FaultKind.REJECTED, None, 1045, "access denied")
MISSING = Fault(FaultKind.NOT_READY, None, None, "password= raised OSError")
ERROR = OSError()


def attempts(fault: Fault, until: float) -> list[float]:
    """When a pool tries to log in whose callers wait all the time, if each attempt fails at
    once.
    """
    refusals, now, found = Refusals(), 0.0, []
    while now < until:
        found.append(now)
        refusals.failed(now, now, fault, ERROR, Random(1))
        now += max(refusals.delay(now), 1e-6)
    return found


def test_a_refused_login_is_tried_again_at_once_and_then_at_a_growing_pace() -> None:
    times = attempts(REFUSED, 60.0)
    assert times[1] < 0.001
    pauses = [b - a for a, b in pairwise(times[1:])]
    assert 0.25 <= pauses[0] <= 0.25 * (1 + SPREAD)
    assert max(pauses) <= LAST_PAUSE * (1 + SPREAD)
    assert pauses[-1] > 3.0


def test_a_server_hears_a_few_refused_logins_a_second_at_most() -> None:
    times = attempts(REFUSED, 300.0)
    assert sum(at < 1.0 for at in times) <= 4
    assert sum(at < 5.0 for at in times) <= 9
    assert len(times) < 50


def test_the_secret_that_comes_within_the_usual_wait_is_tried_within_it() -> None:
    for came in (0.5, 1.5, 3.0, 3.7):
        assert any(came <= at < 5.0 for at in attempts(REFUSED, 6.0))


def test_a_secret_that_cannot_be_had_is_not_asked_for_again_at_once() -> None:
    assert attempts(MISSING, 5.0)[1] >= 0.25


def test_attempts_that_ran_beside_the_first_do_not_slow_the_next() -> None:
    refusals = Refusals()
    assert refusals.failed(0.0, 0.10, REFUSED, ERROR, Random(1))
    assert not refusals.failed(0.0, 0.11, REFUSED, ERROR, Random(1))
    assert not refusals.failed(0.0, 0.12, REFUSED, ERROR, Random(1))
    assert refusals.delay(0.12) == 0.0
    refusals.failed(0.13, 0.14, REFUSED, ERROR, Random(1))
    assert refusals.delay(0.14) > 0.2


def test_a_caller_is_told_after_the_wait_and_only_of_what_is_known_to_be_so_still() -> None:
    refusals = Refusals()
    assert not refusals.turns_away(100.0, 5.0, 100.0)
    refusals.failed(0.0, 0.1, REFUSED, ERROR, Random(1))
    refusals.failed(5.9, 6.0, REFUSED, ERROR, Random(1))
    assert not refusals.turns_away(4.0, 5.0, 0.0)
    assert refusals.turns_away(6.1, 5.0, 0.0)
    assert refusals.turns_away(6.1, 5.0, 6.1)  # the next attempt is not due yet
    assert not refusals.turns_away(60.0, 5.0, 60.0)  # it is: its result may be another one
    refusals.failed(60.0, 60.1, REFUSED, ERROR, Random(1))
    assert refusals.turns_away(60.1, 5.0, 60.0)


def test_the_end_of_an_attempt_that_nobody_answered_says_nothing_of_now() -> None:
    """A caller that comes then gets its error after the next attempt, which begins at once."""
    refusals, silent = Refusals(), Fault(FaultKind.UNREACHABLE, None, 110, "timed out")
    refusals.failed(100.0, 105.0, silent, ERROR, Random(1))
    refusals.failed(105.1, 110.1, silent, ERROR, Random(1))
    assert not refusals.turns_away(110.15, 5.0, came=110.15)
    assert not refusals.turns_away(110.15, 5.0, came=107.0)
    assert refusals.turns_away(110.5, 5.0, came=107.0), "the next one is silent, too"
    assert refusals.turns_away(110.15, 5.0, came=105.2), "that one was made for him"


def test_it_is_over_when_an_attempt_ends_otherwise() -> None:
    refusals = Refusals()
    assert refusals.over() is None
    refusals.failed(1.0, 1.1, REFUSED, ERROR, Random(1))
    assert refusals.age(3.0) == pytest.approx(2.0)
    assert refusals.over() == 1.0
    assert not refusals.active
    assert refusals.error is None
    assert refusals.delay(1.2) == 0.0
