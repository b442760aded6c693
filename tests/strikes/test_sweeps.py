"""An exception at any moment of a job costs nobody else an answer or an acknowledged write, and the
pool keeps working.

Strikes at every so many points (test_signals.py: real signals). Whole sweeps: ``python -m
strikes.run all``.
"""

from __future__ import annotations

import pytest

from unbroken_drill.servers import MariaDB, PostgreSQL

from .run import How, sweep

#: Whatever a strike does, these never happen.
NEVER = ("wrong", "lost", "doubled", "undead", "hang", "crash")


def never(name: str, how: How, mariadb: MariaDB, postgres: PostgreSQL) -> None:
    report = sweep(name, {"mariadb": mariadb, "postgresql": postgres}, how)
    assert report.points > 100, str(report)
    assert {what: report.wrongs[what] for what in NEVER if what in report.wrongs} == {}, str(report)


@pytest.mark.timeout(170)
@pytest.mark.parametrize("name", ["pool-pymysql", "pool-psycopg"])
def test_strikes_at_many_points_cost_no_answer_and_no_acknowledged_write(
    name: str, mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    passes = [(1, "exception"), (1, "base")]
    never(
        name,
        How(
            passes=passes,
            scenes=[],
            step=25,
            share=True,
            all=False,
            signals=0.0,
            seed=1,
            loud=False,
        ),
        mariadb,
        postgres,
    )


@pytest.mark.timeout(170)
@pytest.mark.parametrize("name", ["django-pymysql", "peewee-pymysql"])
def test_strikes_in_frameworks_cost_no_answer_and_store_nothing_that_was_rolled_back(
    name: str, mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    scenes = ["write", "fail", "error", "own_commit", "caught_write"]
    passes = [(1, "exception"), (1, "base")]
    never(
        name,
        How(
            passes=passes,
            scenes=scenes,
            step=15,
            share=True,
            all=False,
            signals=0.0,
            seed=1,
            loud=False,
        ),
        mariadb,
        postgres,
    )
