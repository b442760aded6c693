"""PgBouncer in front of PostgreSQL: the pools are at home behind it, in session and in transaction
mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import unbroken
from unbroken_drill.servers import PgBouncer, PostgreSQL, ServerError

MODES = ["session", "transaction"]
DRIVERS = ["psycopg", "psycopg2", "pg8000"]


@pytest.fixture(params=MODES)
def bouncer(
    request: pytest.FixtureRequest, new_postgres: Callable[..., PostgreSQL]
) -> Iterator[PgBouncer]:
    with PgBouncer(new_postgres(), request.param) as made:
        yield made


def ask(conn: Any) -> int:
    cursor = conn.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


@pytest.mark.parametrize("driver", DRIVERS)
def test_no_fault_of_either_is_an_error_that_a_unit_of_work_sees(
    bouncer: PgBouncer, driver: str
) -> None:
    url = (
        bouncer.url(driver, prepare_threshold=1000) if driver == "psycopg" else bouncer.url(driver)
    )
    with unbroken.Pool(url, max_size=3) as pool:
        pool.run(ask)
        assert len(bouncer.sessions()) == 1
        for fault in (
            bouncer.kill_sessions,
            bouncer.restart,
            bouncer.crash,
            bouncer.server.kill_sessions,
            bouncer.server.restart,
        ):
            fault()
            assert pool.run(ask) > 0, fault
        bouncer.admin("RECONNECT")
        assert pool.run(ask) > 0
        assert pool.stats().used == 0


def test_a_paused_bouncer_holds_its_clients_and_lets_them_go_on(
    new_postgres: Callable[..., PostgreSQL],
) -> None:
    with (
        PgBouncer(new_postgres(), "transaction") as bouncer,
        unbroken.Pool(bouncer.url("psycopg2"), max_size=2) as pool,
    ):
        before = pool.run(ask)
        bouncer.admin("PAUSE")
        with pytest.raises(unbroken.DeadlineExceeded):
            pool.run(ask, deadline=0.5)
        bouncer.admin("RESUME")
        assert pool.run(ask) != before  # PAUSE had let go of PostgreSQL's session


def test_asyncpg_without_prepared_statements_works_in_transaction_mode(bouncer: PgBouncer) -> None:
    import asyncio

    async def main() -> int:
        async with unbroken.AsyncPool(bouncer.url("asyncpg", statement_cache_size=0)) as pool:
            first = await pool.run(lambda conn: conn.fetchval("SELECT 41 + 1"))
            bouncer.kill_sessions()
            return int(first) + int(await pool.run(lambda conn: conn.fetchval("SELECT 0")))

    assert asyncio.run(main()) == 42


def test_it_is_a_server_like_any_other(bouncer: PgBouncer) -> None:
    assert ("pool_mode", bouncer.mode) in [row[:2] for row in bouncer.admin("SHOW CONFIG")]
    with bouncer.temporarily(server_idle_timeout=7):
        assert bouncer._present("server_idle_timeout") == "7"
    assert bouncer._present("server_idle_timeout") == "600"
    with pytest.raises(ServerError):
        bouncer.admin("NO SUCH COMMAND")
    with pytest.raises(ServerError, match="kill_sessions"):
        bouncer._kill_session(1)
    bouncer.freeze()
    started = time.monotonic()
    bouncer.stop()
    assert not bouncer.is_running
    assert time.monotonic() - started < 20


def test_tls_is_offered_with_a_private_ca(postgres: PostgreSQL) -> None:
    with PgBouncer(postgres, tls=True) as bouncer:
        url = bouncer.url("psycopg2", sslmode="verify-ca", sslrootcert=str(bouncer.ca_file))
        with unbroken.Pool(url) as pool, pool.connection() as conn:
            assert conn.info.ssl_in_use
