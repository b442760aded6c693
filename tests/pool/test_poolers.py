"""Behind a real PgBouncer: every driver as it comes, in session and in transaction mode.

``UNBROKEN_PGBOUNCER`` names another version to try.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import unbroken
from unbroken.ledger.residue import Left
from unbroken.pool.state import state_of
from unbroken_drill.servers import PgBouncer, PostgreSQL

MODES = ["session", "transaction"]
BLOCKING = ["psycopg", "psycopg2", "pg8000"]
ASYNC = ["psycopg_async", "asyncpg"]
CLIENTS = 6


@pytest.fixture(scope="module", params=MODES)
def bouncer(request: pytest.FixtureRequest, postgres: PostgreSQL) -> Iterator[PgBouncer]:
    """Fewer sessions than the pools want."""
    with PgBouncer(postgres, request.param, {"default_pool_size": 3}) as made:
        yield made


@pytest.fixture(scope="module")
def sharing(postgres: PostgreSQL) -> Iterator[PgBouncer]:
    with PgBouncer(postgres, "transaction", {"default_pool_size": 2}) as made:
        yield made


@pytest.fixture(autouse=True)
def table(postgres: PostgreSQL) -> Iterator[None]:
    ask(postgres, "CREATE TABLE entries (client int, number int)")
    yield
    ask(postgres, "DROP TABLE entries")


def ask(server: PostgreSQL, sql: str) -> list[Any]:
    with psycopg.connect(server.url(), autocommit=True) as conn:
        cursor = conn.execute(sql)
        return cursor.fetchall() if cursor.description else []


def work(conn: Any, client: int, number: int) -> int:
    cursor = conn.cursor()
    cursor.execute("SELECT %s::int + 1", (number,))
    assert cursor.fetchone()[0] == number + 1
    cursor.execute("INSERT INTO entries VALUES (%s, %s)", (client, number))
    cursor.execute(
        "SELECT count(*) FROM entries WHERE client = %s AND number = %s", (client, number)
    )
    return int(cursor.fetchone()[0])


async def asyncpg_work(conn: Any, client: int, number: int) -> int:
    assert await conn.fetchval("SELECT $1::int + 1", number) == number + 1
    await conn.execute("INSERT INTO entries VALUES ($1, $2)", client, number)
    sql = "SELECT count(*) FROM entries WHERE client = $1 AND number = $2"
    return int(await conn.fetchval(sql, client, number))


async def psycopg_work(conn: Any, client: int, number: int) -> int:
    cursor = await conn.execute("SELECT %s::int + 1", (number,))
    assert (await cursor.fetchone())[0] == number + 1
    await conn.execute("INSERT INTO entries VALUES (%s, %s)", (client, number))
    sql = "SELECT count(*) FROM entries WHERE client = %s AND number = %s"
    cursor = await conn.execute(sql, (client, number))
    return int((await cursor.fetchone())[0])


def requests(url: str, driver: str, each: int) -> list[str]:
    """Have each client make *each* requests; the errors that they saw."""
    errors: list[str] = []
    if driver in ASYNC:
        asyncio.run(_requests(url, driver, each, errors))
        return errors

    def client(pool: Any, me: int) -> None:
        for number in range(each):
            try:
                assert pool.run(work, me, number) == 1
            except Exception as error:
                errors.append(repr(error))

    with unbroken.Pool(url, max_size=5) as pool:
        threads = [threading.Thread(target=client, args=(pool, me)) for me in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return errors


async def _requests(url: str, driver: str, each: int, errors: list[str]) -> None:
    job: Callable[..., Any] = asyncpg_work if driver == "asyncpg" else psycopg_work
    async with unbroken.AsyncPool(url, max_size=5) as pool:

        async def client(me: int) -> None:
            for number in range(each):
                try:
                    assert await pool.run(job, me, number) == 1
                except Exception as error:
                    errors.append(repr(error))

        await asyncio.gather(*(client(me) for me in range(CLIENTS)))


@pytest.mark.parametrize("driver", BLOCKING + ASYNC)
def test_no_request_fails_as_each_driver_comes(bouncer: PgBouncer, driver: str) -> None:
    assert requests(bouncer.url(driver), driver, 50) == []
    found = ask(bouncer.server, "SELECT count(*), count(DISTINCT (client, number)) FROM entries")
    assert [int(value) for value in found[0]] == [50 * CLIENTS] * 2


@pytest.mark.soak
@pytest.mark.parametrize("driver", BLOCKING + ASYNC)
def test_none_of_ten_thousand_requests_fails(bouncer: PgBouncer, driver: str) -> None:
    assert requests(bouncer.url(driver), driver, 10_000 // CLIENTS + 1) == []


@pytest.mark.parametrize("driver", BLOCKING)
def test_statements_in_autocommit_keep_their_session(sharing: PgBouncer, driver: str) -> None:
    """pg8000 asks in three requests; each might reach another session, with another statement."""
    errors: list[str] = []

    def client(pool: Any, me: int) -> None:
        try:
            for number in range(60):
                with pool.connection(transaction=False) as conn:
                    conn.autocommit = True
                    assert work(conn, me, number) == 1
        except Exception as error:
            errors.append(repr(error))

    with unbroken.Pool(sharing.url(driver), max_size=4) as pool:
        threads = [threading.Thread(target=client, args=(pool, me)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_what_must_not_be_in_a_transaction_is_not_put_into_one(sharing: PgBouncer) -> None:
    with (
        unbroken.Pool(sharing.url("pg8000")) as pool,
        pool.connection(transaction=False) as conn,
    ):
        conn.autocommit = True
        conn.cursor().execute("VACUUM entries")
        with pytest.raises(Exception, match="division by zero"):
            conn.cursor().execute("SELECT 1 / %s::int", (0,))
        assert conn._transaction_status == b"I"


def test_prepared_statements_of_asyncpg_live_through_all_sessions(sharing: PgBouncer) -> None:
    async def main() -> None:
        async with unbroken.AsyncPool(sharing.url("asyncpg"), max_size=3) as pool:

            async def client() -> None:
                async with pool.connection(transaction=False) as conn:
                    prepared = await conn.prepare("SELECT $1::int + 1")
                    for number in range(50):
                        assert await prepared.fetchval(number) == number + 1
                        async with conn.transaction():
                            rows = conn.cursor("SELECT generate_series(1, $1::int)", 120)
                            assert len([row async for row in rows]) == 120

            await asyncio.gather(*(client() for _ in range(3)))

    asyncio.run(main())


def test_a_setting_that_was_asked_for_is_kept_and_warned_about_once(
    sharing: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "unbroken")
    with (
        unbroken.Pool(sharing.url("psycopg", prepare_threshold=7), max_size=3) as pool,
        pool.connection() as one,
        pool.connection() as other,
    ):
        assert (one.prepare_threshold, other.prepare_threshold) == (7, 7)

    async def main() -> None:
        url = sharing.url("asyncpg", statement_cache_size=9)
        async with unbroken.AsyncPool(url, max_size=3) as pool, pool.connection() as conn:
            assert conn._stmt_cache_enabled

    asyncio.run(main())
    warned = [r.getMessage() for r in caplog.records if "is kept as it was set" in r.getMessage()]
    assert len(warned) == 2
    assert "prepare_threshold=7" in warned[0]
    assert "statement_cache_size=9" in warned[1]


def test_statements_that_another_session_does_not_know_are_replayed(sharing: PgBouncer) -> None:
    """As the application asked for it: psycopg prepares at once."""
    errors: list[str] = []

    def client(pool: Any, me: int) -> None:
        for number in range(30):
            try:
                assert pool.run(work, me, number) == 1
            except Exception as error:
                errors.append(repr(error))

    url = sharing.url("psycopg", prepare_threshold=3)
    with unbroken.Pool(url, max_size=4) as pool:
        threads = [threading.Thread(target=client, args=(pool, me)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert state_of(pool).server.pooler.shares
    assert errors == []


def test_a_server_without_a_pooler_is_used_as_before(postgres: PostgreSQL) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=3) as pool:
        with pool.connection() as one, pool.connection() as other:
            assert (one.prepare_threshold, other.prepare_threshold) == (5, 5)
        assert state_of(pool).server.pooler.stands is False

    async def main() -> bool:
        async with (
            unbroken.AsyncPool(postgres.url("asyncpg")) as pool,
            pool.connection() as conn,
        ):
            enabled: bool = conn._stmt_cache_enabled
            return enabled

    assert asyncio.run(main())


def test_a_holder_that_has_its_session_forget_statements_proves_no_pooler(
    postgres: PostgreSQL,
) -> None:
    async def main() -> None:
        async with unbroken.AsyncPool(postgres.url("asyncpg"), max_size=2) as pool:
            async with pool.connection() as other:
                await other.fetchval("SELECT 1")
                with pytest.raises(Exception, match="does not exist"):
                    async with pool.connection() as conn:
                        await conn.fetchval("SELECT $1::int", 1)
                        await conn.execute("DEALLOCATE ALL")
                        await conn.fetchval("SELECT $1::int", 1)
            pooler = state_of(pool).server.pooler
            assert (pooler.stands, pooler.shares) == (False, False)
            assert pool.stats().closed == {"discarded": 1}

    asyncio.run(main())


def test_the_servers_idle_limit_is_not_the_poolers(
    sharing: PgBouncer, postgres: PostgreSQL
) -> None:
    with (
        postgres.temporarily(idle_session_timeout="7s"),
        unbroken.Pool(sharing.url("psycopg")) as pool,
    ):
        pool.run(lambda conn: None)
        assert state_of(pool).server.pooler.stands
        assert state_of(pool).server.limit.told is None


def test_a_begin_that_no_session_was_free_for_begins_an_outage(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    """asyncpg's pool sends BEGIN before the caller has the connection."""
    caplog.set_level(logging.INFO, "unbroken")

    async def main(bouncer: PgBouncer) -> int:
        async with unbroken.AsyncPool(bouncer.url("asyncpg"), max_size=2) as pool:
            async with pool.connection(transaction=False), pool.connection(transaction=False):
                pass
            with psycopg.connect(bouncer.url()) as holder:
                holder.execute("SELECT 1")
                waiting = asyncio.ensure_future(pool.run(asyncpg_work, 1, 1))
                while not any("cannot serve" in r.getMessage() for r in caplog.records):
                    await asyncio.sleep(0.02)
                    assert not waiting.done()
            return int(await waiting)

    options = {"default_pool_size": 1, "query_wait_timeout": 1}
    with PgBouncer(postgres, "transaction", options) as bouncer:
        assert asyncio.run(main(bouncer)) == 1


# -- state of a session ----------------------------------------------------------------------------


def set_and_lock(conn: Any) -> None:
    cursor = conn.cursor()
    cursor.execute("SET work_mem = '5MB'")
    cursor.execute("SELECT pg_advisory_lock(7)")
    cursor.execute("SELECT pg_advisory_unlock(7)")
    cursor.execute("RESET work_mem")


@pytest.mark.parametrize("reset", ["rollback", "session"])
def test_state_of_a_session_is_warned_about_once(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture, reset: str
) -> None:
    caplog.set_level(logging.WARNING, "unbroken")
    with (
        PgBouncer(postgres, "transaction", {"default_pool_size": 1}) as bouncer,
        unbroken.Pool(bouncer.url("psycopg"), max_size=2, reset=reset) as pool,
    ):
        for _ in range(2):
            pool.run(set_and_lock)
        with pool.connection(), pool.connection(), pytest.raises(unbroken.PoolTimeoutError):
            pool.acquire(0.01)  # two connections, one session
        pool.run(set_and_lock)
        assert state_of(pool).server.pooler.shares
    warned = [r.getMessage() for r in caplog.records if "on a session behind" in r.getMessage()]
    assert len(warned) == 1
    assert "a setting and a lock" in warned[0]
    assert "SET LOCAL" in warned[0]
    assert "pg_advisory_xact_lock" in warned[0]


def test_state_of_a_session_is_the_connections_own_in_session_mode(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "unbroken")
    with (
        PgBouncer(postgres, "session") as bouncer,
        unbroken.Pool(bouncer.url("psycopg"), max_size=2, reset="session") as pool,
    ):
        with pool.connection() as conn, pool.connection():
            conn.execute("SET work_mem = '5MB'")
        with pool.connection() as one, pool.connection() as other:
            for conn in (one, other):
                assert conn.execute("SHOW work_mem").fetchone() != ("5MB",)
        assert not state_of(pool).server.pooler.shares
    assert not [r for r in caplog.records if "behind" in r.getMessage()]


def test_every_kind_of_state_has_a_word_for_the_warning() -> None:
    from unbroken.pool.poolers import _INSTEAD

    named = {Left.SETTING, Left.LOCK, Left.LISTENER, Left.TEMPORARY, Left.PREPARED, Left.CURSOR}
    assert set(_INSTEAD) == named
