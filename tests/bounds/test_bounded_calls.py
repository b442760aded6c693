"""What the pool itself asks of a server that has frozen is ended from outside: pings, rollbacks,
resets, commits on exit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import unbroken
from unbroken.abc import Cause

from .bodies import KINDS
from .conftest import Crowd, Outcome, timed

LIMIT = 0.7
SLACK = 2.5


class Enough(Exception):  # noqa: N818 - what happened, not a kind of error
    """The application's own."""


def late(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {
        name: str(outcome) for name, outcome in outcomes.items() if outcome.seconds > LIMIT + SLACK
    }


@pytest.fixture
def table(servers: Callable[[bool], Any]) -> str:
    """A table on each server, for one row of each body's."""
    name = "frozen"
    for is_mysql in (True, False):
        server = servers(is_mysql)
        server.kill_sessions()
        server.admin(f"DROP TABLE IF EXISTS {name}")
        server.admin(f"CREATE TABLE {name} (who VARCHAR(80) NOT NULL)")
        if not is_mysql:
            server.admin(f'ALTER TABLE {name} OWNER TO "{server.user}"')
    return name


def well_again(made: Crowd) -> None:
    for proxy in made.proxies.values():
        proxy.heal()
    again = made.all(lambda _name, body: body.work("SELECT 3"))
    assert {name: str(o) for name, o in again.items() if o.value != 3} == {}


def test_a_rollback_on_a_frozen_server_is_bounded_with_every_body(crowd: Any, table: str) -> None:
    made: Crowd = crowd(list(KINDS), reset_timeout=LIMIT, max_size=2)

    def fail(name: str) -> None:
        made.proxies[name].blackhole("drop", on="existing")
        raise Enough

    outcomes = made.all(
        lambda name, body: body.work(f"INSERT INTO {table} VALUES ('{name}')", lambda: fail(name))
    )
    assert late(outcomes) == {}
    assert {name: str(o) for name, o in outcomes.items() if o.error is None} == {}
    # it said nothing: to tell that it had closed the connection would be false
    blamed = {name: body.stats().closed for name, body in made.bodies.items()}
    assert {name: why for name, why in blamed.items() if set(why) - {Cause.SILENT_DROP}} == {}
    assert any(blamed.values())  # where nobody waits for the answer, upkeep finds out later
    well_again(made)


def test_a_commit_on_a_frozen_server_is_bounded_and_unknown_with_every_body(
    crowd: Any, table: str
) -> None:
    made: Crowd = crowd(list(KINDS), commit_timeout=LIMIT, max_size=2)

    def write(name: str, body: Any) -> Any:
        return body.work(
            f"INSERT INTO {table} VALUES ('{name}')",
            lambda: made.proxies[name].blackhole("drop", on="existing"),
        )

    outcomes = made.all(write)
    assert late(outcomes) == {}
    assert {
        name: str(o)
        for name, o in outcomes.items()
        if not isinstance(o.error, unbroken.CommitUnknownError)
    } == {}
    well_again(made)


def test_a_ping_on_a_frozen_server_is_bounded_and_the_caller_gets_another_connection(
    crowd: Any,
) -> None:
    made: Crowd = crowd(list(KINDS), ping_timeout=LIMIT, ping_after=0.001, max_size=2)

    def ask(name: str, body: Any) -> Any:
        made.proxies[name].blackhole("drop", on="existing")
        return body.work("SELECT 2")

    outcomes = made.all(ask)
    assert late(outcomes) == {}
    assert {name: str(o) for name, o in outcomes.items() if o.value != 2} == {}


@pytest.mark.parametrize(
    "name", [name for name in KINDS if "-" not in name or name.startswith("async-")]
)
def test_a_reset_function_is_bounded(crowd: Any, name: str) -> None:
    def frozen(conn: Any) -> Any:
        made.proxies[name].blackhole("drop", on="existing")
        return (
            pool._driver.rollback(conn) if KINDS[name].is_mysql else pool._driver.ping(conn, 30.0)
        )

    made: Crowd = crowd([name], reset_timeout=LIMIT, max_size=2, warm=False, reset=frozen)
    body = made.bodies[name]
    pool = body.pool
    outcome = timed(lambda: body.work("SELECT 1"))
    assert outcome.value == 1, str(outcome)
    assert outcome.seconds < LIMIT + SLACK
