"""What tells a pooler, and one that shares sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.brain.pooler import LARGEST, LONGEST_REST, TRY_AGAIN, Pooler

MADE_UP = [LARGEST + 1, 2**31 - 1, -1, -(2**31), 0]


def test_nothing_is_known_at_first_so_the_session_is_asked() -> None:
    assert Pooler().judge(4711) is None
    assert Pooler().judge(MADE_UP[0]) is None


def test_a_session_that_gives_itself_the_same_number_is_the_one_of_the_login() -> None:
    pooler = Pooler()
    pooler.hear(4711, 4711)
    assert pooler.stands is False
    assert pooler.judge(4712) is False


@pytest.mark.parametrize("number", MADE_UP)
def test_after_a_pooler_was_found_each_made_up_number_tells_without_a_question(number: int) -> None:
    pooler = Pooler()
    pooler.hear(MADE_UP[1], 4711)
    assert pooler.stands is True
    assert pooler.judge(number) is True


def test_a_number_that_could_be_true_is_asked_about_where_a_pooler_was_found() -> None:
    pooler = Pooler()
    pooler.hear(MADE_UP[1], 4711)
    assert pooler.judge(4712) is None
    pooler.hear(4712, 4712)  # the name leads to the server itself now
    assert pooler.judge(4713) is False
    assert pooler.judge(MADE_UP[0]) is None


def test_a_server_of_another_make_may_have_large_numbers_of_its_own() -> None:
    pooler = Pooler()
    pooler.hear(MADE_UP[0], MADE_UP[0])
    assert pooler.judge(MADE_UP[1]) is False
    assert pooler.judge(4711) is False


def test_two_open_connections_in_one_session_prove_that_sessions_are_shared() -> None:
    pooler = Pooler()
    assert not pooler.meets(1, [])
    assert not pooler.meets(2, [1])
    assert not pooler.shares
    assert pooler.meets(1, [1, 2])
    assert pooler.shares
    assert not pooler.meets(1, [1])  # no news


def test_a_statement_that_another_session_does_not_know_is_a_proof_too() -> None:
    pooler = Pooler()
    assert pooler.found_sharing()
    assert not pooler.found_sharing()
    assert pooler.stands
    assert pooler.shares


def test_each_warning_is_given_once() -> None:
    pooler = Pooler()
    assert pooler.warns("a setting")
    assert not pooler.warns("a setting")
    assert pooler.warns("a lock")


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31), st.integers(1, LARGEST))))
def test_a_direct_connection_is_never_assumed_of_a_number_that_was_not_true(
    heard: list[tuple[int, int]],
) -> None:
    pooler = Pooler()
    for number, session in heard:
        pooler.hear(number, session)
        assert (pooler.judge(number) is False) == (number == session)


def test_a_server_that_ends_all_connections_at_once_is_tried_again() -> None:
    pooler = Pooler()
    pooler.pipelines = True
    assert not pooler.lost_in_flight(100.0, born=50.0)
    assert pooler.pipelines is None
    pooler.pipelines = True
    for _ in range(10):  # opened before the first was lost
        assert not pooler.lost_in_flight(100.1, born=60.0)
    assert pooler.pipelines is True


def test_connections_that_are_lost_one_after_the_other_are_once_too_often() -> None:
    pooler = Pooler()
    assert not pooler.lost_in_flight(100.0, born=99.0)
    assert pooler.lost_in_flight(101.0, born=100.5)
    assert pooler.pipelines is False
    assert not pooler.lost_in_flight(102.0, born=101.5)  # no news
    assert pooler.pipelines is False


def test_losses_that_are_far_apart_are_of_different_causes() -> None:
    pooler = Pooler()
    for minute in range(1, 10):
        pooler.pipelines = True
        assert not pooler.lost_in_flight(minute * 61.0, born=minute * 61.0 - 1.0)
        assert pooler.pipelines is None


def test_what_closed_such_connections_is_tried_again_at_a_growing_distance() -> None:
    pooler, now = Pooler(), 1000.0
    assert not pooler.lost_in_flight(now, born=now - 1.0)
    assert pooler.lost_in_flight(now + 1.0, born=now + 0.5)
    now, rest = now + 1.0, TRY_AGAIN
    for _ in range(20):
        assert not pooler.wants_flight(now + rest - 1.0)
        now += rest
        assert pooler.wants_flight(now)
        assert not pooler.lost_in_flight(now, born=now - 0.1)  # no news
        assert pooler.pipelines is False
        rest = min(2 * rest, LONGEST_REST)
    assert rest == LONGEST_REST


def test_a_statement_that_a_session_does_not_know_is_a_proof_unless_no_pooler_stands() -> None:
    unknown, behind, direct = Pooler(), Pooler(), Pooler()
    behind.hear(1 << 30, 7)
    direct.hear(7, 7)
    assert unknown.met_stranger()
    assert behind.met_stranger()
    assert not behind.met_stranger()  # no news any more
    assert not direct.met_stranger()  # its holder had it forget
    assert (direct.stands, direct.shares) == (False, False)


def test_answers_that_are_not_their_own_prove_it_at_once() -> None:
    pooler, now = Pooler(), 1000.0
    assert pooler.lost_in_flight(now, born=now - 1.0, is_proven=True)
    assert pooler.pipelines is False
    assert not pooler.wants_flight(now + TRY_AGAIN - 1.0)
    assert pooler.wants_flight(now + TRY_AGAIN)
    assert not pooler.lost_in_flight(now + TRY_AGAIN, born=now + TRY_AGAIN, is_proven=True)
    assert not pooler.wants_flight(now + 2 * TRY_AGAIN)


def test_nothing_is_tried_where_a_pooler_stands() -> None:
    pooler = Pooler()
    pooler.hear(MADE_UP[0], 4711)
    assert not pooler.wants_flight(0.0)
    pooler.hear(4712, 4712)  # the name leads to the server itself now
    assert pooler.wants_flight(0.0)
