"""Each body shares a server's connections with the pools of other processes, by the setting
alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import unbroken
from unbroken_drill.servers import PostgreSQL

from .bodies import SQLAlchemyBody
from .every import BODIES, opened
from .test_behaviours import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such locks are Linux's")
#: PyMongo's own pool has MongoDB's connections.
NAMES = sorted(set(BODIES) - {"mongodb"})


@pytest.fixture(autouse=True)
def _a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def others(postgres: PostgreSQL) -> Iterator[unbroken.Pool]:
    """A pool that stands for the other workers of the host."""
    with unbroken.Pool(postgres.url("psycopg"), share=3) as pool:
        yield pool


@pytest.mark.parametrize("name", NAMES)
def test_a_body_waits_for_what_others_have_and_gives_back_what_it_does_not_use(
    name: str, postgres: PostgreSQL, others: unbroken.Pool
) -> None:
    held = [others.acquire() for _ in range(3)]
    with opened(name, postgres.url, 4, share=3) as body, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(body.ask)
        until(lambda: (share := body.stats().share) is not None and share.is_waiting)
        assert not asked.done()
        for conn in held:
            others.release(conn)
        assert asked.result(20.0)
        for done in body.crowd(6, 5, 0.01):
            assert done == 5
        assert len(postgres.sessions()) <= 3
        held = [others.acquire(timeout=20.0) for _ in range(3)]
        share = body.stats().share
        assert share is not None
        assert (share.limit, share.held) == (3, 0)
        for conn in held:
            others.release(conn)


@pytest.mark.parametrize("name", NAMES)
def test_a_body_asks_its_server_how_many_connections_it_grants(
    name: str, postgres: PostgreSQL
) -> None:
    with opened(name, postgres.url, 4, share="auto") as body:
        assert body.ask()
        share = body.stats().share
        assert share is not None
        assert (share.limit, share.off_because) == (87, "")


def test_callers_of_an_engine_that_connect_by_themselves_share_a_number(
    postgres: PostgreSQL, others: unbroken.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a driver that only SQLAlchemy knows: the pool cannot ask its server anything."""
    from unbroken.integrations.sqlalchemy.plan import Plan

    monkeypatch.setattr(Plan, "is_blind", True)
    held = [others.acquire() for _ in range(2)]
    with opened(SQLAlchemyBody.name, postgres.url, 4, share=3) as body:
        for done in body.crowd(3, 3):
            assert done == 3
        assert len(postgres.sessions()) <= 3
        for conn in held:
            others.release(conn)
    with opened(SQLAlchemyBody.name, postgres.url, 4, share="auto") as body:
        assert body.ask()
        share = body.stats().share
        assert share is not None
        assert "cannot ask the server" in share.off_because
