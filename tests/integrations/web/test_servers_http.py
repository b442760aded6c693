"""The example apps under real web servers: users see nothing of what happens to the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

#: The smallest choice with each kind of server, fork and driver in it; the whole matrix is below.
FEW = [
    ("sync", "pymysql"),
    ("gthread --preload", "mysqldb"),
    ("gevent", "pymysql"),
    ("uwsgi", "psycopg"),
]
#: MySQL 9 takes 4 s to stop and start, and so is away for longer than people wait by default
#: (outage_wait, 5 s).
MYSQL9 = [
    ("sync", "mysql9 pymysql"),
    ("gthread --preload", "mysql9 mysqldb"),
    ("gevent", "mysql9 pymysql"),
    ("uwsgi", "mysql9 mysqldb"),
]
WEBS = [
    "sync",
    "gthread",
    "gevent",
    "sync --preload",
    "gthread --preload",
    "gevent --preload",
    "uwsgi",
]
ALL = [(web, driver) for web in WEBS for driver in ("pymysql", "mysqldb", "psycopg")] + MYSQL9


def hold(outcome: Any) -> None:
    """What users of an unbroken app may see: 200; and on a POST 503 while the server is away, or
    that its outcome is unknown.
    """
    assert outcome.gets > 100
    assert outcome.posts[200] > 20
    assert not outcome.not_200
    assert outcome.other == []
    assert (outcome.lost, outcome.doubled, outcome.ghosts) == ([], [], [])


@pytest.mark.parametrize(("web", "driver"), FEW)
def test_flask_answers_200_through_idleness_kills_a_restart_and_a_crash(
    web: str, driver: str, stands: Any, ordeals: Any
) -> None:
    stand = stands(web, driver)
    outcome = ordeals(stand)
    print(f"\n{web:18s} {driver:10s} unbroken  {outcome.row()}")
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None
    # a signal must not end in one of our threads: uWSGI then waits for a minute
    assert stand.site.ends(), stand.site.tail()


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("web", "driver"), ALL)
def test_flask_under_every_server_and_driver_beside_the_same_app_without_unbroken(
    web: str, driver: str, stands: Any, ordeals: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ordeals(stands(web, driver, plain=True))
    stand = stands(web, driver, query="outage_wait=15" if driver.startswith("mysql9") else "")
    outcome = ordeals(stand)
    with capsys.disabled():
        print(
            f"\n{web:18s} {driver:10s} plain     {plain.row()}\n{web:18s} {driver:10s} unbroken "
            f" {outcome.row()}"
        )
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None
    assert sum(plain.not_200.values()) > 0  # else this would show nothing


def query(number: int) -> tuple[str, dict[str, Any] | None]:
    return f"/items?number={number}", None


def test_fastapi_answers_200_through_idleness_kills_a_restart_and_a_crash(
    stands: Any, ordeals: Callable[..., Any]
) -> None:
    stand = stands("uvicorn", "asyncpg", app="fastapi_app")
    outcome = ordeals(stand, query)
    print(f"\nuvicorn asyncpg unbroken {outcome.row()}")
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "aiomysql"])
def test_fastapi_beside_the_same_app_without_unbroken(
    driver: str, stands: Any, ordeals: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ordeals(stands("uvicorn", driver, app="fastapi_app", plain=True), query)
    stand = stands("uvicorn", driver, app="fastapi_app")
    outcome = ordeals(stand, query)
    with capsys.disabled():
        print(
            f"\nuvicorn            {driver:10s} plain     {plain.row()}\nuvicorn           "
            f" {driver:10s} unbroken  {outcome.row()}"
        )
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None
    assert sum(plain.not_200.values()) > 0
