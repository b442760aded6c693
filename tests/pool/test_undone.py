"""Work that is lost with its connection and not run again: its error and the log say why, in the
same words; what nobody noticed stays below WARNING.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from typing import Any

import psycopg
import pytest

import unbroken
from unbroken_drill.servers import PostgreSQL


@pytest.fixture
def pool(postgres: PostgreSQL) -> Any:
    with unbroken.Pool(postgres.url("psycopg"), max_size=4) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TEMPORARY TABLE warm (n int)")
        yield pool


def lose(server: PostgreSQL, conn: Any) -> None:
    conn.execute("SELECT 1")
    server.kill_sessions()
    conn.execute("SELECT 2")


def place(level: str, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name.startswith("unbroken") and r.levelname == level]


def test_a_plain_block_says_on_its_error_and_in_the_log_why_and_what_to_write(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(psycopg.OperationalError) as caught, pool.connection() as conn:
        lose(postgres, conn)
    (note,) = caught.value.__notes__
    assert note.startswith("unbroken did not run this work again: it is not in a unit of work")
    assert "test_undone.py:" in note
    assert "If it may run twice, call it with pool.run, or mark its function" in note
    (record,) = place("WARNING", caplog)
    assert record.getMessage().endswith(note)
    assert "ended: killed" in record.getMessage()
    assert (record.unbroken_cause, record.unbroken_pool) == ("killed", pool.name)
    assert record.unbroken_age >= record.unbroken_idle >= 0.0


def test_a_connection_that_was_acquired_and_released_is_noticed_if_something_was_under_way(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    conn = pool.acquire()
    with pytest.raises(psycopg.OperationalError):
        lose(postgres, conn)
    pool.release(conn)
    (record,) = place("WARNING", caplog)
    assert record.unbroken_event == "work lost"


def test_a_unit_that_was_run_again_is_told_at_info_with_its_function_and_the_death(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def order(conn: Any) -> None:
        seen.append(1)
        conn.execute("SELECT 1")
        if len(seen) == 1:
            lose(postgres, conn)

    with caplog.at_level(logging.INFO, "unbroken"):
        pool.run(order)
    assert place("WARNING", caplog) == []
    events = {record.unbroken_event: record for record in place("INFO", caplog)}
    assert set(events) == {"connection ended", "replayed"}
    for record in events.values():
        assert record.unbroken_function.endswith("<locals>.order")
        assert "order" in record.getMessage()
        assert record.unbroken_cause == "killed"
        assert record.unbroken_age >= 0.0
        assert record.unbroken_idle >= 0.0


def test_a_unit_that_is_not_run_again_gives_the_ledgers_reason_and_its_function(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    @unbroken.replayable
    def order() -> None:
        with pool.connection() as conn:
            conn.execute("CREATE TEMPORARY TABLE one (n int)")
        with pool.connection() as conn:
            lose(postgres, conn)

    with pytest.raises(psycopg.OperationalError) as caught:
        order()
    (note,) = caught.value.__notes__
    assert note.startswith("unbroken did not replay this unit of work (")
    assert "<locals>.order): an earlier COMMIT was acknowledged" in note
    (record,) = place("WARNING", caplog)
    assert note in record.getMessage()
    assert record.unbroken_fate == "stored"


def test_sessions_that_are_killed_while_idle_are_no_warning(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture, until: Any
) -> None:
    with caplog.at_level(logging.INFO, "unbroken"):
        postgres.kill_sessions()
        until(lambda: pool.stats().closed)
        with pool.connection() as conn:
            conn.execute("SELECT 1")
    assert place("WARNING", caplog) == []
    (record,) = place("INFO", caplog)
    assert "idle for" in record.getMessage()


def test_each_open_and_close_is_seen_at_debug(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "unbroken.pool"),
        unbroken.Pool(postgres.url("psycopg")) as pool,
        pool.connection() as conn,
    ):
        conn.execute("SELECT 1")
    events = [record.unbroken_event for record in place("DEBUG", caplog)]
    assert (events.count("opened"), events.count("closed")) == (1, 1)


def test_a_task_is_told_as_a_thread_is(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with unbroken.AsyncPool(postgres.url("psycopg")) as pool:
            with pytest.raises(psycopg.OperationalError) as caught:
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
                    await asyncio.to_thread(postgres.kill_sessions)
                    await conn.execute("SELECT 2")
            assert "it is not in a unit of work" in caught.value.__notes__[0]

    asyncio.run(main())
    (record,) = place("WARNING", caplog)
    assert record.unbroken_event == "work lost"


PROGRAM = """
import sys, unbroken
from unbroken_drill.servers import PostgreSQL
with PostgreSQL() as server, unbroken.Pool(server.url("psycopg"), max_size=4) as pool:
    held = [pool.acquire() for _ in range(4)]
    for conn in held:
        conn.execute("SELECT 1")
        if sys.argv[1] == "idle":
            conn.rollback()
            pool.release(conn)
    server.kill_sessions()
    for conn in held if sys.argv[1] == "in use" else []:
        try:
            conn.execute("SELECT 2")
        except Exception:
            pass
        pool.release(conn)
    with pool.connection() as conn:
        conn.execute("SELECT 3")
"""


@pytest.mark.parametrize(("which", "lines"), [("in use", 1), ("idle", 0)])
def test_without_any_configuration_of_logging_four_killed_sessions_are_one_line_if_in_use(
    which: str, lines: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, which], capture_output=True, text=True, check=True
    )
    said = done.stderr.splitlines()
    assert len(said) == lines, done.stderr
    assert all("ended: killed" in line for line in said)
