"""Faults of a real PgBouncer and of the PostgreSQL behind it, under load: no request fails.

A short selection; all cells (both modes, pools and engines, each driver, each fault) are the long
test's. ``UNBROKEN_PGBOUNCER`` names another version to try.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unbroken_drill.servers import PgBouncer, PostgreSQL

from .behind_pgbouncer import ASYNC, BLOCKING, EVENTS, OPTIONS, run

CELLS = [
    ("session", "pool", "psycopg", "pgrestart"),
    ("session", "engine", "psycopg", "pgrestart"),
    ("session", "pool", "psycopg2", "pgcrash"),
    ("transaction", "pool", "psycopg", "full"),
    ("transaction", "engine", "psycopg", "full"),
    ("transaction", "pool", "psycopg2", "pgrestart"),
    ("transaction", "pool", "pg8000", "restart"),
    ("transaction", "pool", "asyncpg", "disable"),
    ("transaction", "pool", "psycopg_async", "pgcrash"),
    ("transaction", "engine", "asyncpg", "kill"),
    ("transaction", "pool", "psycopg", "limits"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as made:
        yield made


@pytest.fixture(scope="module")
def bouncers(server: PostgreSQL) -> Iterator[dict[str, PgBouncer]]:
    with (
        PgBouncer(server, "session", OPTIONS) as session,
        PgBouncer(server, "transaction", OPTIONS) as transaction,
    ):
        yield {"session": session, "transaction": transaction}


@pytest.mark.parametrize(("mode", "how", "driver", "event"), CELLS)
def test_no_request_fails(
    bouncers: dict[str, PgBouncer], mode: str, how: str, driver: str, event: str
) -> None:
    tally = run(bouncers[mode], how, driver, event, 2.5)
    assert not tally.errors
    assert tally.requests > 20


@pytest.mark.soak
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("driver", BLOCKING + ASYNC)
@pytest.mark.parametrize("how", ["pool", "engine"])
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_no_request_fails_in_any_cell(
    bouncers: dict[str, PgBouncer], mode: str, how: str, driver: str, event: str
) -> None:
    if (mode, event) == ("session", "pause"):
        pytest.skip("there PAUSE waits until all clients have left")
    assert not run(bouncers[mode], how, driver, event, 6.0).errors
