"""A statement whose BEGIN was sent before it, and was lost, was never sent: the driver knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from unbroken_drill.servers import PostgreSQL, Server

from .due import POSTGRESQL, Bench, servers

INSERT = "INSERT INTO sold VALUES ($1)"
ALONE = "SAVEPOINT here"  # no driver sends it together with its BEGIN


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[type[Server]], Server]]:
    yield from servers()


@pytest.fixture(params=[each for each in POSTGRESQL if each != "asyncpg"])
def bench(request: pytest.FixtureRequest, server_of: Any) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(request.param, server_of(PostgreSQL), stack)


def lost(bench: Bench, words: str, *statements: str) -> bool:
    """Whether the last of *statements*, the first in its transaction, counts as never sent, where
    the connection is cut before *words* reach the server.
    """
    proxy = bench.proxy()
    url = bench.url().replace(f":{bench.server.port}/", f":{proxy.port}/")
    pool = bench.pool(url)
    for _ in range(2):
        with bench.lent(pool) as conn:
            bench.do(conn, "SELECT n FROM stock")
    conn = bench.take(pool)
    cut = proxy.cut_at(words, before=True)
    with pytest.raises(Exception):  # noqa: B017 - each driver has its own
        for sql in statements:
            bench.do(conn, sql)
    assert cut.hits == 1
    was_unsent = bool(bench.driver.was_unsent(conn))
    bench.give(pool, conn)
    return was_unsent


def test_a_statement_behind_a_begin_of_its_own_that_was_lost_was_never_sent(bench: Bench) -> None:
    assert lost(bench, "BEGIN", ALONE)


def test_a_statement_that_went_with_its_begin_may_have_been_executed(bench: Bench) -> None:
    assert not lost(bench, "BEGIN", "SELECT 1")
    assert not lost(bench, "SELECT 1", "SELECT 1")


def test_the_next_statement_is_judged_by_itself(bench: Bench) -> None:
    assert not lost(bench, "SELECT 7", ALONE, "SELECT 7")


def test_asyncpg_knows_it_of_an_executemany(server_of: Any) -> None:
    async def lose(pool: Any, proxy: Any) -> bool:
        async with pool.connection() as conn:
            await conn.executemany(INSERT, [(1,)])  # which prepares it
        conn = await pool.acquire()
        await conn.transaction().start()
        cut = proxy.cut_at("BEGIN", before=True)
        with pytest.raises(bench.driver.errors):
            await conn.executemany(INSERT, [(1,), (2,)])
        assert cut.hits == 1
        was_unsent = bool(bench.driver.was_unsent(conn))
        await pool.release(conn)
        return was_unsent

    with ExitStack() as stack:
        bench = Bench("asyncpg", server_of(PostgreSQL), stack)
        proxy = bench.proxy()
        pool = bench.pool(bench.url().replace(f":{bench.server.port}/", f":{proxy.port}/"))
        assert bench.wait(lose(pool, proxy))
