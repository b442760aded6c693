"""A standby on purpose, or the primary of a moment ago?"""

from __future__ import annotations

import pytest

from unbroken.brain.standing import ASK_AGAIN, LOOK_EVERY, News, Refused, Standing
from unbroken.roles import Role, Wanted


def primary() -> Standing:
    standing = Standing()
    assert standing.serves(Role.PRIMARY, Wanted.ANY, 0.0) is News.NOTHING
    return standing


@pytest.mark.parametrize(
    ("role", "want", "took_writes", "waited_enough", "objects"),
    [
        (Role.PRIMARY, Wanted.ANY, False, False, False),
        (Role.STANDBY, Wanted.ANY, False, False, False),
        (Role.STANDBY, Wanted.ANY, True, False, True),
        (Role.STANDBY, Wanted.ANY, True, True, False),
        (Role.STANDBY, Wanted.PRIMARY, False, True, True),
        (Role.PRIMARY, Wanted.STANDBY, True, True, True),
        (Role.STANDBY, Wanted.STANDBY, True, False, False),
        (Role.PRIMARY, Wanted.PREFER_STANDBY, True, False, False),
        (Role.UNREADY, Wanted.ANY, False, True, True),
        (None, Wanted.PRIMARY, True, True, True),
        (None, Wanted.STANDBY, False, True, True),
        (None, Wanted.PREFER_STANDBY, False, False, False),
        (None, Wanted.ANY, True, False, False),
    ],
)
def test_a_server_may_serve_or_not(
    role: Role | None, want: Wanted, took_writes: bool, waited_enough: bool, objects: bool
) -> None:
    standing = primary() if took_writes else Standing()
    said = standing.objection(role, want, waited_enough=waited_enough)
    assert (said is not None) is objects


def test_it_is_asked_until_it_was_seen_to_take_writes_and_always_where_the_role_matters() -> None:
    standing = Standing()
    assert standing.must_ask(Wanted.ANY, 0.0)
    standing.serves(Role.STANDBY, Wanted.ANY, 0.0)
    assert standing.must_ask(Wanted.ANY, 0.0)
    standing.serves(Role.PRIMARY, Wanted.ANY, 0.0)
    assert not standing.must_ask(Wanted.ANY, 1e6)
    assert standing.must_ask(Wanted.PRIMARY, 1e6)


def test_a_server_that_does_not_say_its_role_is_left_alone_for_a_while() -> None:
    standing = Standing()
    standing.serves(None, Wanted.ANY, 100.0)
    assert not standing.must_ask(Wanted.ANY, 100.0 + ASK_AGAIN - 1)
    assert standing.must_ask(Wanted.ANY, 100.0 + ASK_AGAIN)


def test_a_write_that_a_former_primary_refuses_is_an_outage() -> None:
    assert primary().refused(Wanted.ANY, 0.0) is Refused.OUTAGE
    assert Standing().refused(Wanted.PRIMARY, 0.0) is Refused.OUTAGE


def test_a_write_that_a_standby_refuses_is_the_callers_and_now_and_then_a_reason_to_look() -> None:
    standing = Standing()
    standing.serves(Role.STANDBY, Wanted.ANY, 100.0)
    seen = [standing.refused(Wanted.ANY, 100.0 + at) for at in (0.0, 0.1, LOOK_EVERY, 1.5)]
    assert seen == [Refused.LOOK, Refused.CALLERS, Refused.LOOK, Refused.CALLERS]
    assert standing.refused(Wanted.STANDBY, 200.0) is Refused.CALLERS


def test_a_former_primary_that_serves_what_only_reads_is_left_once_one_takes_writes() -> None:
    standing = primary()
    assert standing.serves(Role.STANDBY, Wanted.ANY, 1.0) is News.REDUCED
    assert standing.serves(Role.STANDBY, Wanted.ANY, 2.0) is News.NOTHING
    assert standing.must_ask(Wanted.ANY, 2.0)
    assert standing.refused(Wanted.ANY, 2.0) is Refused.LOOK
    assert standing.serves(Role.PRIMARY, Wanted.ANY, 3.0) is News.BETTER
    assert standing.refused(Wanted.ANY, 4.0) is Refused.OUTAGE
