"""What a connection needs before it is lent, and while it is idle."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.abc import Capabilities, Cause
from unbroken.brain.entry import Entry
from unbroken.brain.health import AGE_JITTER, CLOSE_TO_LIMIT, Need, Policy
from unbroken.settings import Settings

SHOWN = Capabilities()


class Conn:
    pass


def policy(
    *,
    is_tcp: bool = True,
    limit: float | None = None,
    capabilities: Capabilities = SHOWN,
    **given: object,
) -> Policy:
    return Policy.decide(Settings.of(**given), capabilities, is_tcp=is_tcp, idle_limit=limit)


def entry(last_used: float = 0.0, retire_at: float = math.inf) -> Entry:
    made = Entry(Conn(), 0.0, 0, retire_at)
    made.last_used = last_used
    return made


def test_over_tcp_a_ping_is_needed_after_a_minute() -> None:
    assert policy().need(entry(), 59.9) is Need.NOTHING
    assert policy().need(entry(), 60.0) is Need.PING


def test_on_a_unix_socket_a_ping_is_never_needed() -> None:
    assert policy(is_tcp=False).need(entry(), 1e9) is Need.NOTHING


def test_a_driver_that_hides_its_socket_is_asked_for_a_ping_after_a_second() -> None:
    hidden = policy(capabilities=Capabilities(fileno=False), is_tcp=False)
    assert hidden.need(entry(), 0.9) is Need.NOTHING
    assert hidden.need(entry(), 1.0) is Need.PING


def test_without_a_server_nothing_is_ever_pinged() -> None:
    assert (
        policy(capabilities=Capabilities(fileno=False, server=False)).need(entry(), 1e9)
        is Need.NOTHING
    )


def test_the_setting_wins_over_what_is_automatic() -> None:
    assert policy(ping_after=5.0).need(entry(), 5.0) is Need.PING
    assert policy(idle_limit=100.0, limit=10.0).idle_limit == 100.0


def test_close_to_the_servers_limit_a_ping_is_needed_whatever_ping_after_says() -> None:
    close = policy(limit=10.0, ping_after=1000.0)
    assert close.need(entry(), 10.0 * CLOSE_TO_LIMIT - 0.1) is Need.NOTHING
    assert close.need(entry(), 10.0 * CLOSE_TO_LIMIT + 0.1) is Need.PING


def test_an_old_connection_is_retired_even_when_it_was_just_used() -> None:
    assert policy().need(entry(last_used=100.0, retire_at=100.0), 100.0) is Need.RETIRE


@given(st.floats(0, 1), st.floats(0.1, 1e6))
def test_retirement_is_spread_over_the_last_quarter_of_the_age(jitter: float, age: float) -> None:
    at = policy(max_age=age).retire_at(1000.0, jitter)
    assert 1000.0 + age * (1 - AGE_JITTER) - 1e-6 <= at <= 1000.0 + age + 1e-6


def test_what_is_spare_goes_after_max_idle_and_what_is_kept_stays() -> None:
    idle = policy(max_idle=10.0)
    assert idle.overdue(entry(), 10.0, spare=True) is Cause.MAX_IDLE
    assert idle.overdue(entry(), 1e6, spare=False) is None


def test_what_is_spare_goes_before_the_server_ends_it() -> None:
    assert policy(limit=10.0).overdue(entry(), 9.0, spare=True) is Cause.MAX_IDLE


def test_what_is_too_old_goes_whether_it_is_spare_or_not() -> None:
    assert policy().overdue(entry(retire_at=5.0), 5.0, spare=False) is Cause.MAX_AGE


def test_what_is_kept_is_exercised_well_before_the_limit() -> None:
    limited = policy(limit=10.0)
    assert not limited.wants_exercise(entry(), 4.0)
    assert limited.wants_exercise(entry(), 5.0)
    assert not policy().wants_exercise(entry(), 1e9)


@given(st.floats(0.01, 1e5), st.floats(0.01, 1e5), st.floats(0.01, 1e5))
def test_ticks_are_neither_frantic_nor_too_late(limit: float, idle: float, age: float) -> None:
    decided = policy(idle_limit=limit, max_idle=idle, max_age=age)
    assert 0.05 <= decided.tick <= 1.0
    assert decided.tick <= max(0.05, limit / 4)


@pytest.mark.parametrize("limit", [None, 0.5, 10.0, 28_800.0, math.inf])
def test_fresh_for_is_below_the_servers_limit(limit: float | None) -> None:
    assert policy(limit=limit).fresh_for < (limit or math.inf)
