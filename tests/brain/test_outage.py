"""One prober, at a pace that costs the server little, and callers who are told in time."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.abc import OUTAGE_KINDS, Fault, FaultKind
from unbroken.brain.outage import (
    AT_ONCE,
    FRESH,
    LONELY_PACE,
    PROOF_FOR,
    QUICK_FOR,
    QUIETEST,
    RELAPSE,
    SILENT,
    SLOW,
    USUAL,
    Outage,
    Try,
)
from unbroken.brain.pace import BUSY_PACE, REFUSED_PACE, ROLE_PACE, SPREAD, STARTING_PACE

ME, OTHER = object(), object()


def away(kind: FaultKind = FaultKind.REFUSED, at: float = 100.0) -> Outage:
    outage = Outage()
    assert outage.failed(ME, at, at, Fault(kind, text="away"), Random(1))
    return outage


def test_while_all_is_well_everybody_may_try() -> None:
    outage = Outage()
    assert outage.ask(ME, 0.0, 1) == outage.ask(OTHER, 0.0, 1) == 0.0
    assert not outage.active


def test_the_first_failure_begins_it_and_the_next_do_not() -> None:
    outage = away()
    assert outage.active
    assert not outage.failed(ME, 101.0, 101.0, Fault(FaultKind.REFUSED), Random(1))
    assert outage.age(103.0) == pytest.approx(3.0)


def test_it_counts_from_the_beginning_of_the_attempt_that_hung() -> None:
    outage = Outage()
    outage.failed(ME, 100.0, 105.0, Fault(FaultKind.UNREACHABLE), Random(1))
    assert outage.age(105.0) == 5.0


def test_an_attempt_that_hung_since_before_the_last_success_begins_nothing() -> None:
    outage = Outage()
    outage.succeeded(103.0)
    assert not outage.failed(ME, 100.0, 105.0, Fault(FaultKind.UNREACHABLE), Random(1))
    assert not outage.active


def test_only_who_found_it_tries() -> None:
    outage = away()
    assert outage.ask(OTHER, 101.0, 5) is None
    assert outage.ask(ME, 101.0, 5) == 0.0


def test_who_resigns_leaves_the_place_to_the_next_who_asks() -> None:
    outage = away()
    assert not outage.resign(OTHER)
    assert outage.resign(ME)
    assert outage.ask(OTHER, 101.0, 1) == 0.0
    assert outage.ask(ME, 101.0, 1) is None


def test_while_nobody_waits_it_tries_once_a_second() -> None:
    assert away().ask(ME, 100.0, 0) == pytest.approx(LONELY_PACE)


def test_who_takes_the_place_over_at_once_goes_on_at_the_same_pace() -> None:
    outage = away()
    outage.resign(ME)
    assert outage.ask(OTHER, 100.25, 0) == pytest.approx(LONELY_PACE - 0.25)


def test_who_takes_the_place_over_turns_nobody_away_before_having_tried() -> None:
    outage = away(at=100.0)
    outage.resign(ME)
    outage.ask(OTHER, 100.25, 1)
    assert not outage.turns_away(106.0, 5.0)
    outage.failed(OTHER, 106.0, 106.0, Fault(FaultKind.REFUSED), Random(1))
    assert outage.turns_away(106.0, 5.0)


def test_a_caller_who_was_just_here_counts_as_one_who_waits() -> None:
    outage = away()
    outage.called = 99.9
    delay = outage.ask(ME, 100.0, 0)
    assert delay is not None
    assert delay <= REFUSED_PACE[1]


@given(st.integers(), st.sampled_from(sorted(OUTAGE_KINDS)), st.integers(1, 60))
def test_the_pace_keeps_within_its_bounds(seed: int, kind: FaultKind, failures: int) -> None:
    outage, random, now = Outage(), Random(seed), 100.0
    for number in range(failures):
        outage.failed(ME, now, now, Fault(kind), random)
        delay = outage.ask(ME, now, 1)
        assert delay is not None
        if kind is FaultKind.REFUSED:
            assert REFUSED_PACE[0] - 1e-9 <= delay <= REFUSED_PACE[1] + 1e-9
        elif kind is FaultKind.NOT_READY and number < len(STARTING_PACE):
            assert STARTING_PACE[number] <= delay <= (1 + SPREAD) * STARTING_PACE[number] + 1e-9
        elif kind is FaultKind.WRONG_SERVER:
            assert ROLE_PACE[0] - 1e-9 <= delay <= ROLE_PACE[1] + 1e-9
        else:
            assert BUSY_PACE[0] - 1e-9 <= delay <= BUSY_PACE[1] + 1e-9
        now += delay


def test_a_busy_server_is_asked_less_often_the_longer_it_takes() -> None:
    outage, random, now = Outage(), Random(1), 100.0
    while now < 120.0:
        outage.failed(ME, now, now, Fault(FaultKind.TOO_MANY), random)
        now += (delay := outage.ask(ME, now, 1) or 0.0)
    assert delay >= 0.8 * BUSY_PACE[1] - 1e-9


def test_success_ends_it_and_says_how_long_it_was() -> None:
    outage = away(at=100.0)
    assert outage.succeeded(107.0) == 7.0
    assert not outage.active
    assert outage.succeeded(108.0) is None


def test_after_an_outage_the_pool_fills_slowly_then_faster() -> None:
    outage = away()
    seen = []
    for _ in range(6):
        outage.succeeded(101.0)
        seen.append(outage.parallel)
    assert seen == [1, 2, 3, 4, 4, 4]


def test_callers_are_turned_away_once_it_is_older_than_their_patience() -> None:
    outage = away(at=100.0)
    assert not outage.turns_away(104.9, 5.0)
    assert outage.turns_away(105.0, 5.0)


def test_old_knowledge_turns_nobody_away() -> None:
    assert not away(at=100.0).turns_away(100.0 + FRESH, 5.0)


def test_nobody_is_turned_away_while_nobody_tries() -> None:
    outage = away(at=100.0)
    outage.resign(ME)
    assert not outage.turns_away(106.0, 5.0)


def test_the_end_of_an_attempt_that_nobody_answered_says_nothing_of_now() -> None:
    """It was begun five seconds ago; the server may be back since, and nobody has looked."""
    outage = Outage()
    outage.failed(ME, 100.0, 105.0, Fault(FaultKind.UNREACHABLE), Random(1))
    outage.failed(OTHER, 100.6, 105.6, Fault(FaultKind.UNREACHABLE), Random(1))
    assert not outage.turns_away(105.7, 5.0, came=105.7)
    assert outage.turns_away(105.75, 5.0, came=105.7), (
        "the attempt that was called for did not help"
    )


def test_who_comes_after_a_lull_is_given_the_time_of_one_try() -> None:
    outage = away(at=100.0)
    assert not outage.turns_away(106.0, 5.0, came=106.0)
    assert outage.turns_away(106.05, 5.0, came=106.0), "it did not help"
    outage.failed(ME, 106.01, 106.01, Fault(FaultKind.REFUSED), Random(1))
    assert outage.turns_away(106.02, 5.0, came=106.0), "the try was refused"


@pytest.mark.parametrize(("usual", "one_try"), [(0.001, 0.04), (0.06, 0.12), (3.0, SILENT)])
def test_one_try_has_the_time_that_connects_usually_take(usual: float, one_try: float) -> None:
    """TLS to a server that is far takes longer than a refusal."""
    outage = Outage()
    outage.succeeded(90.0, usual)
    outage.failed(ME, 100.0, 100.0, Fault(FaultKind.REFUSED), Random(1))
    assert not outage.turns_away(106.0 + 0.99 * one_try, 5.0, came=106.0)
    assert outage.turns_away(106.0 + 1.01 * one_try, 5.0, came=106.0)


@pytest.mark.parametrize(
    "kind", [FaultKind.REFUSED, FaultKind.NOT_READY, FaultKind.TOO_MANY, FaultKind.UNREACHABLE]
)
def test_processes_that_lost_the_server_at_one_moment_do_not_go_on_asking_at_one_moment(
    kind: FaultKind,
) -> None:
    """A hundred records of one server, each with its own prober, all told at once that it is
    away.
    """
    tries = []
    for seed in range(100):
        outage, random, now = Outage(), Random(seed), 100.0
        for _ in range(12):
            outage.failed("me", now, now, Fault(kind), random)
            now += outage.ask("me", now, 1) or 0.0
            tries.append(now)
    later = [now for now in tries if now > 100.2]
    assert len(later) > 50
    at_once = Counter(round(now, 3) for now in later).most_common(1)[0][1]
    assert at_once <= 15


# -- attempts that hang ----------------------------------------------------------------------------


def begun(outage: Outage, *times: float, who: object = ME) -> list[Try]:
    return [outage.began(who, when) for when in times]


def test_an_attempt_that_is_silent_makes_room_for_another_beside_it() -> None:
    outage = Outage()
    begun(outage, 100.0)
    assert outage.room(ME, 100.0 + SILENT / 2, 1) == outage.PARALLEL - 1
    outage.parallel = 1
    assert outage.room(ME, 100.0 + SILENT / 2, 1) == 0
    assert outage.room(ME, 100.0 + SILENT, 1) == 1
    assert outage.silent(ME, 100.0 + SILENT) == 1


def test_in_an_outage_the_prober_begins_one_beside_a_silent_one_and_never_more_than_a_few() -> None:
    outage = away(FaultKind.UNREACHABLE)
    now = 101.0
    for number in range(1, AT_ONCE + 1):
        begun(outage, now)
        assert outage.ask(ME, now, 1) == pytest.approx(SILENT), "not before it is silent"
        now += SILENT
        assert outage.ask(ME, now, 1) == 0.0
        assert outage.room(ME, now, number) == (number < AT_ONCE)


def test_of_the_silent_ones_the_oldest_goes_on_and_the_next_gives_way() -> None:
    outage = Outage()
    first, second, *_, last = begun(outage, *(100.0 + n * SILENT for n in range(AT_ONCE)))
    assert outage.to_end(ME, last.started, 9) is None, "the last one may still succeed"
    now = last.started + SILENT
    assert outage.to_end(ME, now, 9) is second
    assert outage.to_end(ME, now, 9, moving=[second]) not in (
        first,
        second,
    ), "the server has just said something on it"
    second.is_ended = True
    assert outage.to_end(ME, now, 9) is None, "one at a time"


def test_none_is_ended_while_there_is_room_for_another() -> None:
    outage = Outage()
    begun(outage, 100.0, 100.0 + SILENT)
    assert outage.to_end(ME, 101.0, 1) is None
    assert outage.to_end(ME, 101.0, 0) is not None


def test_with_room_for_one_each_fourth_has_more_and_more_time() -> None:
    outage = Outage()
    outage.usual.append(0.01)
    lives, now = [], 100.0
    for _ in range(12):
        (attempt,) = begun(outage, now)
        while outage.to_end(ME, now, 0) is None:
            now += 0.05
        lives.append(now - attempt.started)
        outage.over(attempt)
    assert lives[:3] == pytest.approx([SILENT] * 3, abs=0.06)
    assert lives[3] == pytest.approx(2 * SILENT, abs=0.06)
    assert lives[11] == pytest.approx(8 * SILENT, abs=0.06)


def test_a_server_whose_connects_take_long_is_given_that_time() -> None:
    outage = Outage()
    for took in (0.5, 0.9, 0.7):
        outage.succeeded(99.0, took)
    assert outage.silent_after(200.0) == pytest.approx(USUAL * 0.5)
    outage.succeeded(99.0, 0.01)
    assert outage.silent_after(200.0) == SILENT


def test_one_connect_that_waited_for_the_end_of_an_outage_says_nothing_of_the_server() -> None:
    outage = Outage()
    for took in (0.01, 4.0, 0.01):
        outage.succeeded(99.0, took)
    assert outage.silent_after(200.0) == SILENT


def test_a_server_that_said_no_a_moment_ago_is_there_and_slow() -> None:
    outage = away(FaultKind.NOT_READY)
    assert outage.silent_after(100.0) == SLOW
    outage.succeeded(101.0, 0.01)
    assert outage.silent_after(101.0) == SILENT, "it lets in quickly"


def test_a_server_that_was_away_and_now_acknowledges_is_slow_until_it_lets_somebody_in_quickly() -> (  # noqa: E501
    None
):
    """A fleet stands in its line: those who have the patience are served soonest."""
    outage = Outage()
    begun(outage, 100.0)
    outage.seen(100.5, [False, None])
    assert outage.silent_after(100.5) == SILENT, (
        "nothing is there: to try again costs nobody anything"
    )
    outage.seen(101.0, [False, True])
    assert outage.silent_after(101.0) == SLOW
    outage.succeeded(102.0, 1.4)
    assert outage.silent_after(102.0) == SLOW
    outage.succeeded(103.0, 0.02)
    assert outage.silent_after(103.0) == SILENT


def test_what_acknowledged_from_the_beginning_is_not_called_slow_for_that() -> None:
    outage = Outage()
    begun(outage, 100.0)
    outage.seen(100.5, [True])
    outage.seen(101.0, [True, True])
    assert outage.silent_after(101.0) == SILENT


def test_the_longer_the_silence_the_less_often_another_attempt_begins() -> None:
    outage = Outage()
    begun(outage, 100.0)
    assert outage.silent_after(100.0 + QUICK_FOR - 1) == SILENT
    assert (
        SILENT
        < outage.silent_after(100.0 + 2 * QUICK_FOR)
        < outage.silent_after(100.0 + 4 * QUICK_FOR)
        <= QUIETEST
    )


def test_an_attempt_whose_time_is_up_keeps_its_place_and_is_not_ended_again() -> None:
    """A name lookup that hangs."""
    outage = Outage()
    (attempt,) = begun(outage, 100.0)
    attempt.is_late = True
    assert outage.silent(ME, 105.0) == 1
    assert outage.to_end(ME, 105.0, 0) is None


def test_who_comes_after_a_lull_is_given_an_attempt_although_an_older_one_hangs() -> None:
    outage = away(FaultKind.UNREACHABLE, at=100.0)
    (attempt,) = begun(outage, 103.0)
    outage.call(108.0)
    assert outage.to_end(ME, 108.0, 0) is attempt
    assert not outage.turns_away(108.0, 5.0, came=108.0)
    outage.over(attempt)
    begun(outage, 108.05)
    assert not outage.turns_away(108.06, 5.0, came=108.0), "it may succeed"
    assert outage.turns_away(108.05 + SILENT, 5.0, came=108.0)


# ---- names ---------------------------------------------------------------------------------------


def test_a_name_that_has_led_nowhere_yet_may_be_spelled_wrong() -> None:
    assert away(FaultKind.UNKNOWN_NAME).is_misnamed
    assert not away(FaultKind.UNREACHABLE).is_misnamed


@pytest.mark.parametrize("kind", [FaultKind.REFUSED, FaultKind.NOT_READY, FaultKind.LOST])
def test_a_name_that_has_led_anywhere_is_right(kind: FaultKind) -> None:
    outage = away(kind)
    outage.failed(ME, 101.0, 101.0, Fault(FaultKind.UNKNOWN_NAME), Random(1))
    assert outage.active
    assert not outage.is_misnamed


def test_a_name_that_was_connected_to_is_right() -> None:
    outage = Outage()
    outage.succeeded(100.0)
    outage.failed(ME, 101.0, 101.0, Fault(FaultKind.UNKNOWN_NAME), Random(1))
    assert not outage.is_misnamed


def test_a_server_that_only_never_answered_may_still_have_a_wrong_name() -> None:
    outage = away(FaultKind.UNREACHABLE)
    outage.failed(ME, 101.0, 101.0, Fault(FaultKind.UNKNOWN_NAME), Random(1))
    assert outage.is_misnamed


# -- told in use -----------------------------------------------------------------------------------

READ_ONLY = Fault(FaultKind.WRONG_SERVER, text="read-only")


def told(at: float = 100.0) -> Outage:
    outage = Outage()
    assert outage.cannot_serve(at, READ_ONLY, Random(1))
    return outage


def test_a_connection_in_use_may_begin_an_outage_and_the_first_attempt_follows_at_once() -> None:
    outage = told()
    assert outage.active
    assert outage.fault is READ_ONLY
    assert outage.ask(ME, 100.0, 1) == 0.0
    assert outage.ask(OTHER, 100.0, 1) is None
    assert not outage.cannot_serve(100.1, READ_ONLY, Random(1))


def test_its_end_has_to_be_proved_and_so_has_every_connection_for_a_while_after_it() -> None:
    outage = Outage()
    assert not outage.needs_proof(0.0)
    outage = told()
    assert outage.needs_proof(1e6)
    assert outage.succeeded(103.0) == pytest.approx(3.0)
    assert outage.needs_proof(103.0 + PROOF_FOR - 1)
    assert not outage.needs_proof(103.0 + PROOF_FOR + 1)


def test_a_server_that_only_seemed_to_be_back_has_been_away_since_the_beginning() -> None:
    outage = told()
    assert outage.succeeded(103.0) == pytest.approx(3.0)
    assert outage.cannot_serve(103.0 + RELAPSE / 2, READ_ONLY, Random(1))
    assert outage.age(104.0) == pytest.approx(4.0)
    assert outage.ask(ME, 103.0 + RELAPSE / 2, 1) >= ROLE_PACE[0]  # type: ignore[operator]
    assert outage.succeeded(105.0) == pytest.approx(2.0 - RELAPSE / 2)  # no second counts twice
    assert outage.cannot_serve(106.0 + RELAPSE, READ_ONLY, Random(1))
    assert outage.age(107.0 + RELAPSE) == pytest.approx(1.0)


def test_an_attempt_that_began_before_a_connection_was_told_does_not_end_the_outage() -> None:
    outage = told(100.0)
    assert outage.succeeded(100.1, 0.2) is None
    assert outage.active
    assert outage.succeeded(100.2, 0.1) == pytest.approx(0.2)


def test_what_new_connections_contradict_for_long_enough_is_nothing_to_wait_for() -> None:
    outage, now = told(100.0), 100.0
    while now < 105.0:
        assert not outage.is_contradicted(now, 5.0)
        outage.succeeded(now + 0.1, 0.05)
        now += 0.2
        if not outage.is_contradicted(now, 5.0):
            assert outage.cannot_serve(now, READ_ONLY, Random(1))
    outage.succeeded(now + 0.1, 0.05)
    assert outage.is_contradicted(now + 0.2, 5.0)
    assert not outage.is_contradicted(now + 0.2, 10.0)
    assert not outage.is_contradicted(now + 0.2 + RELAPSE, 5.0)


def test_attempts_at_a_server_that_lets_us_in_and_cannot_serve_are_paced() -> None:
    outage, now, attempts = told(), 100.0, 0
    while now < 102.0:
        delay = outage.ask(ME, now, 50)
        assert delay is not None
        now += delay
        attempts += 1
        outage.failed(ME, now, now, READ_ONLY, Random(attempts))
    assert attempts <= 2.0 / ROLE_PACE[0] + 1
    assert outage.turns_away(105.5, 5.0)


def test_an_outage_that_was_told_in_use_needs_no_prober_to_stay_one() -> None:
    outage = told()
    assert not outage.turns_away(200.0, 5.0)  # nobody has made sure
    outage.ask(ME, 200.0, 1)
    outage.failed(ME, 200.0, 200.0, READ_ONLY, Random(1))
    assert outage.turns_away(200.0, 5.0, came=200.0)
