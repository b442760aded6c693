"""``close()`` with something lent: it says at once whose line has it, and then waits."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

import unbroken

#: Seconds within which a line counts as said at once.
AT_ONCE = 1.0


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if "in use" in each.getMessage()]


def said_within(caplog: pytest.LogCaptureFixture, seconds: float) -> logging.LogRecord:
    end = time.monotonic() + seconds
    while not lines(caplog):
        assert time.monotonic() < end, "close() waits in silence"
        time.sleep(0.01)
    return lines(caplog)[0]


def test_close_says_at_once_whose_line_has_a_connection_and_ends_when_it_is_back(
    unbroken_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = unbroken.Pool(unbroken_postgres.url("psycopg"), name="shop")
    lease = pool.connection()
    lease.__enter__()
    closer = threading.Thread(target=pool.close, kwargs={"timeout": 30.0})
    closer.start()
    record = said_within(caplog, AT_ONCE)
    assert record.levelno == logging.WARNING
    assert f"{__file__}:" in record.getMessage()
    assert "waits up to 30 s" in record.getMessage()
    lease.__exit__(None, None, None)
    closer.join(5.0)
    assert not closer.is_alive()
    assert len(lines(caplog)) == 1


def test_close_says_at_the_end_of_its_time_what_it_leaves(
    unbroken_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = unbroken.Pool(unbroken_postgres.url("psycopg"))
    conn = pool.acquire()
    began = time.monotonic()
    pool.close(timeout=0.3)
    assert time.monotonic() - began < AT_ONCE
    assert [each.getMessage().partition(" with ")[0] for each in lines(caplog)] == [
        f"{pool.name}: the pool is closing", f"{pool.name}: the pool is closed"
    ]  # fmt: skip
    pool.release(conn)


def test_close_says_nothing_of_what_comes_back_at_once(
    unbroken_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool = unbroken.Pool(unbroken_postgres.url("psycopg"))
    with pool.connection():
        pass
    pool.close()
    assert lines(caplog) == []


def test_an_async_close_says_at_once_whose_line_has_a_connection(
    unbroken_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        pool = unbroken.AsyncPool(unbroken_postgres.url("asyncpg"))
        conn = await pool.acquire()
        closing = asyncio.create_task(pool.close(timeout=30.0))
        record = await asyncio.to_thread(said_within, caplog, AT_ONCE)
        assert f"{__file__}:" in record.getMessage()
        await pool.release(conn)
        await asyncio.wait_for(closing, 5.0)

    asyncio.run(main())


def test_an_engine_that_is_disposed_of_says_what_is_checked_out(
    unbroken_postgres: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(unbroken_postgres.url("psycopg"), plugins=["unbroken"])
    with engine.connect() as conn:
        engine.dispose()
        assert f"{__file__}:" in lines(caplog)[0].getMessage()
        assert conn.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()
    assert len(lines(caplog)) == 1
