"""Time limits that real signals keep, at random moments: nobody else gets a wrong answer, and what
was acknowledged is stored.

``make test`` gives each pool and some frameworks seconds, ``make soak`` two minutes to each pair of
a body and a driver.
"""

from __future__ import annotations

import os

import pytest

from unbroken_drill.servers import MariaDB, PostgreSQL

from .abodies import ABODIES
from .orders import How
from .run import pairs, sweep

#: For each kind of exception and each size of the pool; by default 2 in ``make test``, and 30 in
#: ``make soak``.
SECONDS = float(os.environ.get("UNBROKEN_SECONDS", "0"))
SEED = int(os.environ.get("UNBROKEN_SEED", "1"))
PASSES = [(1, "exception"), (3, "base")]
LONG_PASSES = [
    (size, kind) for size in (1, 3) for kind in ("exception", "base", "timeout", "interrupt")
]
SHORT = [name for name, (body, _) in pairs().items() if body == "pool"] + [
    "sqlalchemy-pymysql", "sqlalchemy-psycopg", "django-mysqldb", "django-psycopg",
    "peewee-pymysql", "peewee-psycopg",
]  # fmt: skip
LONG = [name for name, (body, _) in pairs().items() if body not in ABODIES]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool promises one second; the rest is for machines that are busy with something else."""
    monkeypatch.setenv("UNBROKEN_STRIKES_PATIENCE", "3")


@pytest.mark.timeout(2 * SECONDS + 180)
@pytest.mark.parametrize("name", SHORT)
def test_a_signal_at_a_random_moment_costs_nobody_else_anything(
    mariadb: MariaDB, postgres: PostgreSQL, name: str
) -> None:
    report = sweep(
        name,
        {"mariadb": mariadb, "postgresql": postgres},
        How(passes=PASSES, signals=SECONDS or 2.0, seed=SEED),
    )
    print(report)
    assert report.points > 20
    assert {what: places for what, places in report.wrongs.items() if what != "failed"} == {}
    # on a busy machine one may wait for too long, for a place or for a table's lock
    failed = report.wrongs.get("failed", [])
    assert len(failed) <= report.points / 200, failed


@pytest.mark.soak
@pytest.mark.timeout(8 * (SECONDS or 30.0) + 600)
@pytest.mark.parametrize("name", LONG)
def test_nor_does_one_in_minutes(name: str) -> None:
    with MariaDB() as mariadb, PostgreSQL() as postgres:
        how = How(passes=LONG_PASSES, signals=SECONDS or 30.0, seed=SEED)
        report = sweep(name, {"mariadb": mariadb, "postgresql": postgres}, how)
    print(report)
    assert report.wrongs == {}
