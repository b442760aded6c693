"""The retry budget on real servers: what it bounds, what it leaves alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from pymongo.errors import CursorNotFound

import unbroken
import unbroken.wsgi
from unbroken.abc import Fault, FaultKind
from unbroken.brain import budget
from unbroken.integrations.mongo.units import _meaning
from unbroken.ledger.scope import current
from unbroken.ledger.unit import Unit
from unbroken.pool import servers
from unbroken.pool.budget import ELSEWHERE, may_replay
from unbroken_drill import FaultProxy

from .kill_storm import Report, storm

LOST = "SELECT 41 + 1"


def spend(record: Any) -> None:
    """The bank of *record* is empty."""
    with record.lock:
        record.budget.by_time = record.budget.by_success = 1e9
        record.budget.since = time.monotonic()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time brings nothing, however long a test takes."""
    monkeypatch.setattr(budget, "EVENT_EVERY", 1e12)


def hold(report: Report, slack: float) -> None:
    """What must be true after each storm."""
    print(report)
    assert report.wrong == 0
    assert report.ends["done"] > 0
    assert set(report.ends) <= {"done", "unknown", "twice", "no replay: budget"}
    assert report.attempts <= 1.2 * report.requests + slack
    assert report.at_the_server <= report.attempts
    assert report.recovered < 1.0
    assert report.longest < 15.0
    assert report.stats.not_replayed == report.ends["no replay: budget"]


@pytest.mark.parametrize("driver", ["psycopg", "pymysql"])
def test_replays_add_a_fifth_at_most_while_every_second_connection_is_killed(
    driver: str, postgres: Any, mariadb: Any
) -> None:
    """In so short a time the bank counts as well."""
    server = mariadb if driver == "pymysql" else postgres
    hold(storm(server, driver, 2.0), 30 + 2.0 * 10.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("driver", ["psycopg", "pymysql", "asyncpg", "aiomysql"])
def test_the_same_for_a_minute(driver: str, postgres: Any, mariadb: Any) -> None:
    server = mariadb if driver in ("pymysql", "aiomysql") else postgres
    without = storm(server, driver, 60.0, retry_budget="off")
    print("without:", without)
    report = storm(server, driver, 60.0)
    hold(report, 0.0)
    assert report.ends["no replay: budget"] > 0
    assert without.ratio > 1.3


def test_a_restart_under_a_large_pool_costs_nobody_his_replay(new_postgres: Any) -> None:
    """All connections are in use, all are lost at once, and nothing has succeeded before; twice."""
    server, size = new_postgres({"max_connections": 100}), 60
    with unbroken.Pool(server.url("psycopg"), max_size=size, outage_wait=30.0) as pool:
        for _ in range(2):
            ready, go, ends = threading.Barrier(size + 1), threading.Event(), []

            def unit(conn: Any, first: list[int], ready: Any = ready, go: Any = go) -> None:
                conn.execute("SELECT 1")
                if first:
                    first.pop()
                    ready.wait(60.0)
                    go.wait(60.0)
                conn.execute("SELECT 2")

            def caller(ends: list[Any] = ends, unit: Any = unit) -> None:
                try:
                    pool.run(unit, [1])
                    ends.append("done")
                except Exception as error:
                    ends.append(error)

            threads = [threading.Thread(target=caller) for _ in range(size)]
            [each.start() for each in threads]
            ready.wait(60.0)
            server.restart()
            go.set()
            [each.join() for each in threads]
            assert ends == ["done"] * size
        stats = pool.stats()
        assert stats.replays >= 2 * size
        assert stats.not_replayed == 0


def test_what_ends_its_own_session_is_no_matter_of_the_budget(postgres: Any) -> None:
    runs = []
    with unbroken.Pool(postgres.url("psycopg"), max_size=2) as pool:

        def unit(conn: Any) -> None:
            runs.append(1)
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(Exception) as caught:
            pool.run(unit)
        notes = " ".join(caught.value.__notes__)
        assert "ends its session" in notes
        assert "retry budget" not in notes
        assert len(runs) == 2
        assert pool.stats().not_replayed == 0
        assert 29.0 <= pool.stats().replays_left <= 30.0


def test_replays_after_an_outage_that_was_waited_for_cost_one_together(postgres: Any) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=2) as pool:
        pool.check()
        state = pool._state
        spend(state.server)
        state.server.budget.by_time = 29.0  # of 30: one is left
        unit, error = Unit(), RuntimeError()
        for _ in range(20):
            unit.begin_attempt()
            unit.join(1, state)
            assert may_replay(unit, error, Fault(FaultKind.WRONG_SERVER))
            assert may_replay(unit, error, Fault(FaultKind.LOST))  # asked again: the same attempt
        unit.begin_attempt()
        unit.join(1, state)
        state.server.budget.by_time = 1e9
        assert may_replay(unit, error, Fault(FaultKind.RETRY))
        assert not may_replay(unit, error, Fault(FaultKind.LOST))
        assert not may_replay(unit, error, Fault(FaultKind.NOT_READY))
        (note,) = error.__notes__
        assert "no replay: budget" in note


def test_one_servers_incident_does_not_spend_what_anothers_needs(
    postgres: Any, mariadb: Any
) -> None:
    with (
        unbroken.Pool(postgres.url("psycopg")) as one,
        unbroken.Pool(postgres.url("psycopg")) as same,
        unbroken.Pool(mariadb.url("pymysql")) as other,
    ):
        for pool in (one, same, other):
            pool.check()
        spend(one._state.server)
        assert one.stats().replays_left < 1.0
        assert same.stats().replays_left < 1.0
        assert other.stats().replays_left == 30.0


def test_success_fills_the_bank_again(postgres: Any, slow: None) -> None:
    """Units of work and uses without one alike; a unit that fails does not."""
    with unbroken.Pool(postgres.url("psycopg"), max_size=1) as pool:
        pool.check()
        spend(pool._state.server)
        before = pool.stats().replays_left

        def half(conn: Any) -> None:
            conn.execute("SELECT 1")
            raise ZeroDivisionError

        for _ in range(10):
            with pytest.raises(ZeroDivisionError):
                pool.run(half)
        assert pool.stats().replays_left == before
        for _ in range(10):
            pool.run(lambda conn: conn.execute("SELECT 1").fetchone())
        assert pool.stats().replays_left == pytest.approx(2.0, abs=0.3)
        for _ in range(10):
            with pool.connection() as conn:
                conn.execute("SELECT 1")
        assert pool.stats().replays_left == pytest.approx(4.0, abs=0.3)


def test_mongodbs_lost_cursors_count_in_a_budget_of_their_own(slow: None) -> None:
    """Of a unit that no pool knows the server of."""
    runs = []

    @unbroken.replayable
    def unit() -> str:
        runs.append(1)
        scope = current()
        assert scope is not None
        scope.ask(_meaning)
        if len(runs) == 1:
            raise CursorNotFound("gone", 43)
        return "done"

    assert unit() == "done"
    assert servers.server_at(ELSEWHERE).units == 1
    spend(servers.server_at(ELSEWHERE))
    runs.clear()
    with pytest.raises(CursorNotFound) as caught:
        unit()
    assert "no replay: budget" in caught.value.__notes__[0]
    assert len(runs) == 1


def test_a_web_request_is_told_to_come_again_once_the_budget_is_spent(
    postgres: Any, slow: None
) -> None:
    runs: list[int] = []
    with FaultProxy((postgres.host, postgres.port), protocol="postgresql") as proxy:
        pool = unbroken.Pool(proxy.url(postgres.url("psycopg")), max_size=2)

        def app(_environ: Any, start_response: Any) -> Any:
            runs.append(1)
            with pool.connection() as conn:
                conn.execute(LOST)
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        site, answers = unbroken.wsgi.Unbroken(app), []

        def get() -> str:
            body = site(
                {"REQUEST_METHOD": "GET", "PATH_INFO": "/"},
                lambda status, headers, exc_info=None: answers.append(status),
            )
            list(body)
            return str(answers[-1])

        with pool:
            assert get() == "200 OK"
            proxy.cut_at(LOST, before=True)
            assert get() == "200 OK"
            assert len(runs) == 3
            spend(pool._state.server)
            proxy.cut_at(LOST, before=True)
            assert get().startswith("503")
            assert len(runs) == 4
            assert pool.stats().not_replayed == 1
