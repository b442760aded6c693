"""The answer to the pool's COMMIT or ROLLBACK is read later, and BEGIN goes with the first
statement: how many round trips that leaves with asyncpg, and that nobody gets another's answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from statistics import mode
from typing import Any

import asyncpg
import pytest

import unbroken
from unbroken_drill import FaultProxy

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

WAY = 0.004  #: seconds each way, in tests that count
TABLE = "answers_due_asyncpg"


async def ask(pool: Any, sql: str = f"SELECT n FROM {TABLE}") -> None:
    async with pool.connection() as conn:
        await conn.fetch(sql)


async def write(pool: Any) -> None:
    async with pool.connection() as conn:
        await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")


async def _sink(_data: bytes) -> None:
    pass


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
    """Round trips of one call of *work*, which is done again at once: the most frequent of some
    counts. A busy machine stops this process for longer than an answer is on its way; the answer is
    then one more for the proxy, though nobody waited for it. If that spoils all counts, the answers
    are made to take longer.
    """
    counts: list[float] = []
    for way in (WAY, 4 * WAY, 16 * WAY):
        proxy.latency(way)
        await work()
        for _ in range(5):
            before = proxy.round_trips
            for _ in range(times):
                await work()
            counts.append(float(proxy.round_trips - before) / times)
        if any(each.is_integer() for each in counts):
            break
    proxy.latency(0)
    return mode([each for each in counts if each.is_integer()] or counts)


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


def test_a_statement_that_is_new_costs_a_round_trip_more_to_prepare(line: Any) -> None:
    async def work(pool: Any, proxy: FaultProxy) -> list[float]:
        number = 0

        async def new() -> None:
            nonlocal number
            number += 1
            async with pool.connection() as conn:
                assert await conn.fetchval(f"SELECT {number}") == number

        async def several() -> None:
            async with pool.connection() as conn:
                await conn.fetch(f"SELECT n FROM {TABLE}")
                await conn.fetch(f"SELECT n FROM {TABLE}")

        return [await trips(proxy, new), await trips(proxy, several)]

    assert within(line, work) == [2, 2]


def test_no_rollback_costs_a_round_trip_of_its_own(line: Any) -> None:
    async def work(pool: Any, proxy: FaultProxy) -> list[float]:
        async def refused() -> None:
            with suppress(asyncpg.UndefinedColumnError):
                async with pool.connection() as conn:
                    await conn.execute(f"SELECT nothing FROM {TABLE}")

        async def left() -> None:
            conn = await pool.acquire()
            await conn.transaction().start()
            await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")
            await pool.release(conn)

        async def nothing() -> None:
            async with pool.connection():
                pass

        async def theirs() -> None:
            async with pool.connection(transaction=False) as conn, conn.transaction():
                await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")

        works = (refused, left, nothing, theirs)
        return [await trips(proxy, each) for each in works]

    assert within(line, work) == [1, 1, 0, 2]
    assert int(line[0].admin(f"SELECT count(*) FROM {TABLE}")[0][0]) == 26


def test_what_cannot_go_with_its_begin_waits_for_it(line: Any) -> None:
    async def work(pool: Any, proxy: FaultProxy) -> list[float]:
        async def many() -> None:
            async with pool.connection() as conn:
                await conn.executemany(f"INSERT INTO {TABLE} VALUES ($1)", [(1,), (2,)])

        async def copied() -> None:
            async with pool.connection() as conn:
                assert await conn.copy_from_query("SELECT 7", output=_sink) == "COPY 1"

        return [await trips(proxy, many), await trips(proxy, copied)]

    # an INSERT, its BEGIN and COMMIT; a BEGIN and a COPY, whose COMMIT is waited for
    assert within(line, work) == [3, 3]


def test_it_is_as_few_with_sqlalchemy(line: Any) -> None:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    server, proxy = line
    url = sa.make_url(proxy.url(server.url("asyncpg")))

    async def main() -> list[float]:
        engine = create_async_engine(url, plugins=["unbroken"], pool_size=1, max_overflow=0)

        async def read() -> None:
            async with engine.connect() as conn:
                assert (await conn.execute(sa.text("SELECT 7"))).scalar() == 7

        async def write() -> None:
            async with engine.begin() as conn:
                await conn.execute(sa.text(f"INSERT INTO {TABLE} VALUES (1)"))

        async def committed() -> None:
            async with engine.begin() as conn:
                assert (await conn.execute(sa.text("SELECT 7"))).scalar() == 7
            # what was left is nobody's but the transaction's that it ended
            async with engine.begin() as conn:
                await conn.execute(sa.text(f"INSERT INTO {TABLE} VALUES (2)"))

        async def strict() -> None:
            async with engine.connect() as conn:
                conn = await conn.execution_options(isolation_level="SERIALIZABLE")
                level = await conn.execute(sa.text("SHOW transaction_isolation"))
                assert level.scalar() == "serializable"

        async with asyncio.timeout(60):
            state: Any = None
            for _ in range(500):
                await read()
                state = engine.pool._body  # type: ignore[attr-defined] # unbroken's pool has it
                if state.server.pooler.shares is False and state.hidden.answer is not None:
                    break
                await asyncio.sleep(0.02)
            for _ in range(3):
                await read()
                await asyncio.sleep(0.02)
            counts = [await trips(proxy, each) for each in (read, write, committed, strict)]
        await engine.dispose()
        return counts

    assert asyncio.run(main()) == [1, 2, 3, 1]


# -- COMMITs that may fail although their transaction only read ------------------------------------


def test_the_commit_of_a_serializable_transaction_is_waited_for(line: Any) -> None:
    async def made_so(pool: Any, proxy: FaultProxy) -> float:
        async def strict() -> None:
            async with pool.connection(transaction=False) as conn:
                await conn.execute("SET default_transaction_isolation = 'serializable'")
            await ask(pool)
            async with pool.connection(transaction=False) as conn:
                await conn.execute("RESET default_transaction_isolation")

        return await trips(proxy, strict)

    # SET, RESET, the statement and its COMMIT; each of the sessions' resets
    assert within(line, made_so, reset=None) == 4

    async def so_by_default(pool: Any, proxy: FaultProxy) -> float:
        return await trips(proxy, lambda: ask(pool))

    by_default = "options=-cdefault_transaction_isolation%3Dserializable"
    assert within(line, so_by_default, options=by_default) == 2


def test_a_statement_that_goes_with_the_question_for_the_level_may_change_it(line: Any) -> None:
    change = "SELECT set_config('default_transaction_isolation', 'serializable', false)"

    async def is_believed(pool: Any, _proxy: FaultProxy) -> bool:
        async with pool.connection() as conn:
            layer = conn._protocol
            layer._weak_until = 0.0
            await conn.execute(change)
            return bool(layer._weak_until)

    assert within(line, is_believed) is False


# -- any first command -----------------------------------------------------------------------------


async def _copies(conn: Any) -> None:
    assert await conn.copy_from_query("SELECT 7", output=_sink) == "COPY 1"
    assert await conn.copy_records_to_table(TABLE, records=[(7,), (8,)]) == "COPY 2"


async def _many(conn: Any) -> None:
    await conn.executemany(f"INSERT INTO {TABLE} VALUES ($1)", [(7,), (8,)])
    with pytest.raises(asyncpg.DataError):
        await conn.executemany(f"INSERT INTO {TABLE} VALUES ($1)", [(7,), ("x",)])
    assert conn.is_in_transaction()
    assert await conn.fetchval(f"SELECT count(*) FROM {TABLE}") == 2


async def _many_of_many(conn: Any) -> None:
    values: list[Any] = [(each,) for each in range(50_000)]
    with pytest.raises(asyncpg.DataError):
        await conn.executemany(f"INSERT INTO {TABLE} VALUES ($1)", [*values, ("x",)])
    assert conn.is_in_transaction()
    assert await conn.fetchval("SELECT 7") == 7


async def _cursor(conn: Any) -> None:
    found = [each[0] async for each in conn.cursor("SELECT generate_series(1, 120)")]
    assert found == list(range(1, 121))
    cursor = await conn.cursor("SELECT generate_series(1, 9)")
    assert [each[0] for each in await cursor.fetch(2)] == [1, 2]


async def _prepared(conn: Any) -> None:
    statement = await conn.prepare("SELECT $1::int")
    assert await statement.fetchval(7) == 7
    assert [each[0] async for each in statement.cursor(8)] == [8]


async def _only_prepared(conn: Any) -> None:
    await conn.prepare("SELECT $1::int + 1")
    assert conn.is_in_transaction()


async def _block(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(f"INSERT INTO {TABLE} VALUES (7)")
    with suppress(ZeroDivisionError):
        async with conn.transaction():
            await conn.execute(f"INSERT INTO {TABLE} VALUES (8)")
            raise ZeroDivisionError
    assert await conn.fetchval(f"SELECT sum(n) FROM {TABLE}") == 7


async def _level(conn: Any) -> None:
    await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    assert await conn.fetchval("SHOW transaction_isolation") == "serializable"


async def _several(conn: Any) -> None:
    await conn.execute(f"INSERT INTO {TABLE} VALUES (7); SELECT 8")


async def _by_text(conn: Any) -> None:
    await conn.execute("ROLLBACK")
    assert not conn.is_in_transaction()
    assert await conn.fetchval("SELECT 7") == 7


async def _bad_arguments(conn: Any) -> None:
    with pytest.raises(asyncpg.InterfaceError, match="expects 1 argument"):
        await conn.fetch("SELECT $1::int", 1, 2)
    assert conn.is_in_transaction()
    assert await conn.fetchval("SELECT pg_current_xact_id() = pg_current_xact_id()")
    with pytest.raises(asyncpg.DataError):
        await conn.fetch("SELECT $1::int", "x")
    assert await conn.fetchval("SELECT $1::int", 7) == 7


async def _refused(conn: Any) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError, match='"nope" does not'):
        await conn.fetch("SELECT nope")
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await conn.fetch("SELECT 7")


async def _refused_text(conn: Any) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError, match='"nope" does not'):
        await conn.execute("SELECT nope")
    assert conn.is_in_transaction()


async def _too_slow(conn: Any) -> None:
    with pytest.raises(TimeoutError):
        await conn.fetchval("SELECT pg_sleep(20)", timeout=0.05)
    assert conn.is_in_transaction()
    with pytest.raises(asyncpg.InFailedSQLTransactionError):
        await conn.fetchval("SELECT 7")


async def _too_late(conn: Any) -> None:
    with pytest.raises(TimeoutError):
        await conn.fetchval("SELECT 7", timeout=0)
    assert conn.is_in_transaction()


async def _types(conn: Any) -> None:
    assert await conn.fetchval("SELECT ROW(7, 'x')::record") == (7, "x")
    await conn.execute("CREATE TYPE pg_temp.mood AS ENUM ('sad', 'glad')")
    assert await conn.fetchval("SELECT $1::pg_temp.mood", "glad") == "glad"


async def _empty(conn: Any) -> None:
    with pytest.raises(AttributeError):  # asyncpg cannot read that answer
        await conn.execute("")
    assert conn.is_in_transaction()


async def _closes(conn: Any) -> None:
    await conn.close()


FIRST = [
    _copies, _many, _many_of_many, _cursor, _prepared, _only_prepared, _block, _level, _several,
    _by_text, _bad_arguments, _refused, _refused_text, _too_slow, _too_late, _types,
    lambda _conn: asyncio.sleep(0), lambda conn: conn.reset(), _empty,
    lambda conn: conn.reload_schema_state(), _closes,
]  # fmt: skip


def test_any_first_command_gets_its_own_answer(line: Any) -> None:
    async def work(pool: Any, proxy: FaultProxy) -> None:
        proxy.latency(0.005)
        driver, idle = pool._driver, pool._current().kernel.idle
        for number, first in enumerate(FIRST):
            await ask(pool)
            await ask(pool)
            left = idle[-1].conn
            assert driver.owes_answer(left), number
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, unbroken.UnbrokenError):
                async with pool.connection() as conn:
                    assert conn is left, number
                    try:
                        await first(conn)
                    except BaseException as error:
                        raise AssertionError(number) from error
                    raise asyncpg.InterfaceError("over")  # it is rolled back
            async with pool.connection() as conn:
                assert await conn.fetchval("SELECT $1::int", number) == number
                assert await conn.fetchval(f"SELECT count(*) FROM {TABLE}") == 0

    within(line, work)
