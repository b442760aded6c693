"""The answer to the pool's COMMIT or ROLLBACK is read later, and BEGIN goes with the first
statement: how many round trips that leaves with asyncpg, and that nobody gets another's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from statistics import median
from typing import Any

import pytest

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import PostgreSQL

WAY = 0.002  #: seconds each way, in tests that count
TABLE = "answers_due_asyncpg"


@pytest.fixture
def line(
    postgres: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy]
) -> Iterator[tuple[PostgreSQL, FaultProxy]]:
    """The server with a table, and a proxy before it."""
    postgres.admin(f"DROP TABLE IF EXISTS {TABLE}")
    postgres.admin(f"CREATE TABLE {TABLE} (n INT)")
    postgres.admin(f'ALTER TABLE {TABLE} OWNER TO "{postgres.user}"')
    yield postgres, unbroken_proxy((postgres.host, postgres.port))
    postgres.admin(f"DROP TABLE {TABLE}")


async def ask(pool: Any, sql: str = f"SELECT n FROM {TABLE}") -> None:
    async with pool.connection() as conn:
        await conn.fetch(sql)


async def write(pool: Any) -> None:
    async with pool.connection() as conn:
        await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")


def within(
    line: Any,
    work: Callable[[Any, FaultProxy], Awaitable[Any]],
    *,
    options: str = "",
    **settings: Any,
) -> Any:
    """What *work* gives, with a pool of one connection that knows its server, and whose first
    answer was as expected.
    """
    server, proxy = line
    url = proxy.url(server.url("asyncpg"))
    if options:
        url += ("&" if "?" in url else "?") + options

    async def main() -> Any:
        async with (
            asyncio.timeout(60),
            unbroken.AsyncPool(url, max_size=1, **settings) as pool,
        ):
            await ask(pool)
            state = pool._current()
            while state.hidden.answer is None:
                await asyncio.sleep(0.02)
            for _ in range(3):
                await ask(pool)
                await asyncio.sleep(0.02)
            return await work(pool, proxy)

    return asyncio.run(main())


async def trips(
    proxy: FaultProxy, work: Callable[[], Coroutine[Any, Any, object]], times: int = 5
) -> float:
    """Round trips of one call of *work*, which is done again at once: the median of some counts."""
    proxy.latency(WAY)
    await work()
    counts = []
    for _ in range(7):
        before = proxy.round_trips
        for _ in range(times):
            await work()
        counts.append(float(proxy.round_trips - before) / times)
    proxy.latency(0)
    return median(counts)


def test_a_request_that_reads_once_costs_one_round_trip_and_a_write_two(line: Any) -> None:
    async def work(pool: Any, proxy: FaultProxy) -> list[float]:
        async def simple() -> None:
            async with pool.connection() as conn:
                await conn.execute(f"SELECT n FROM {TABLE}")

        async def argued() -> None:
            async with pool.connection() as conn:
                assert await conn.fetchval("SELECT $1::int", 7) == 7

        async def in_a_unit() -> None:
            await pool.run(lambda conn: conn.fetch(f"SELECT n FROM {TABLE}"))

        works = (lambda: ask(pool), simple, argued, in_a_unit, lambda: write(pool))
        return [await trips(proxy, each) for each in works]

    assert within(line, work) == [1, 1, 1, 1, 2]
