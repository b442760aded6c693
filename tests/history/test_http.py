"""An HTTP client that repeats what it is told it may repeat, and nothing else, doubles nothing;
what was acknowledged is stored.

Apps of each kind run under gunicorn or uvicorn; eight clients POST rows while the database, the way
to it and the web server's own workers suffer faults. ``make test`` gives 20 s to two of them,
``make soak`` ten minutes to each. ``UNBROKEN_SECONDS=60`` changes both, ``UNBROKEN_SEED=7`` the
history.
"""

from __future__ import annotations

import os

import pytest

from .http import CARELESS, STANDS, Report, play, server_of

SECONDS = float(os.environ.get("UNBROKEN_SECONDS", "0"))
SEED = int(os.environ.get("UNBROKEN_SEED", "1"))
LONG = SECONDS or 600.0


def _play(name: str, seconds: float) -> Report:
    with server_of(name) as server:
        report = play(name, server, seconds, SEED)
    print(report)
    return report


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("name", ["flask-mariadb", "asgi-postgresql"])
def test_what_http_clients_were_told_is_what_is_stored(name: str) -> None:
    report = _play(name, SECONDS or 20.0)
    assert report.wrongs == {}
    words = {word for told in report.told.values() for word in told.words}
    assert {"200", "503 service unavailable", "500 outcome unknown"} <= words, "too tame"
    assert any(len(told.words) > 1 and told.is_acknowledged for told in report.told.values()), (
        "nothing was repeated"
    )


@pytest.mark.timeout(240)
def test_an_app_that_always_says_try_again_is_caught() -> None:
    assert "doubled" in _play(CARELESS, SECONDS or 10.0).wrongs


@pytest.mark.soak
@pytest.mark.timeout(LONG + 600)
@pytest.mark.parametrize("name", STANDS)
def test_the_same_over_http_for_long(name: str) -> None:
    report = _play(name, LONG)
    assert report.wrongs == {}
    assert len(report.told) > LONG
