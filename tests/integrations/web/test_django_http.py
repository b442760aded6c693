"""The Django example under real web servers: users see nothing of what happens to the database."""

from __future__ import annotations

from typing import Any

import pytest

FEW = [
    ("tornado", "mysqldb", "django_tornado"),
    ("gthread --preload", "psycopg", "django_app"),
    ("gevent", "pymysql", "django_app"),
    ("uvicorn", "mysqldb", "django_asgi"),
]
#: Not gevent with --preload: Django's own registry of connections is made before gevent patches
#: threads then, whatever the engine.
WEBS = [
    ("tornado", "django_tornado"),
    ("gthread", "django_app"),
    ("gthread --preload", "django_app"),
    ("gevent", "django_app"),
    ("uvicorn", "django_asgi"),
]
ALL = [(web, driver, app) for web, app in WEBS for driver in ("mysqldb", "psycopg")]
ENGINES = {
    "mysqldb": ("default", "persistent", "checked"),
    "psycopg": ("default", "persistent", "checked", "pool"),
}


def hold(outcome: Any) -> None:
    """200 for every GET; on a POST 503 while the server is away, or that its outcome is unknown."""
    assert outcome.gets > 100
    assert outcome.posts[200] > 20
    assert not outcome.not_200
    assert outcome.other == []
    assert (outcome.lost, outcome.doubled, outcome.ghosts) == ([], [], [])


@pytest.mark.parametrize(("web", "driver", "app"), FEW)
def test_django_answers_200_through_idleness_kills_a_restart_and_a_crash(
    web: str, driver: str, app: str, stands: Any, ordeals: Any
) -> None:
    stand = stands(web, driver, app=app)
    outcome = ordeals(stand)
    print(f"\n{web:18s} {driver:10s} unbroken  {outcome.row()}")
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("web", "driver", "app"), ALL)
def test_django_under_every_server_beside_its_own_backends(
    web: str, driver: str, app: str, stands: Any, ordeals: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    worst = 0
    for engine in ENGINES[driver]:
        try:
            plain = ordeals(stands(web, driver, app=app, query=f"engine={engine}"))
            row, bad = plain.row(), sum(plain.not_200.values())
        except (
            AssertionError
        ) as error:  # it never comes back: Django's own pool, inherited through a fork
            row, bad = f"does not answer: {str(error).splitlines()[0][:80]}", 1
        worst = max(worst, bad)
        with capsys.disabled():
            print(f"\n{web:18s} {driver:10s} {engine:10s} {row}", end="")
    stand = stands(web, driver, app=app)
    outcome = ordeals(stand)
    with capsys.disabled():
        print(f"\n{web:18s} {driver:10s} unbroken   {outcome.row()}")
    try:
        hold(outcome)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome}\n{stand.site.tail()}") from None
    assert worst > 0  # else this would show nothing
