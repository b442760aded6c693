"""AsyncPool: lending and giving back, transactions, what goes over the wire, closing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

import unbroken
from unbroken.net.sent_bytes import counter

# -- transactions ----------------------------------------------------------------------------------


def test_a_block_that_succeeds_is_committed(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            async with pool.connection() as conn:
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
            assert body.rows() == [1]

    body.run(main())


def test_a_block_that_raises_is_rolled_back_and_its_connection_kept(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            for number in range(3):
                with pytest.raises(KeyError):
                    async with pool.connection() as conn:
                        await body.do(conn, f"INSERT INTO {table} VALUES ({number})")
                        raise KeyError
            assert (pool.stats().opened, pool.stats().idle) == (1, 1)
        assert body.rows() == []

    body.run(main())


def test_a_statement_that_fails_costs_no_connection(body: Any) -> None:
    async def main() -> None:
        async with body.pool() as pool:
            error = await body.outcome(_fail(body, pool))
            assert error is not None
            assert not isinstance(error, unbroken.UnbrokenError)
            async with pool.connection() as conn:
                await body.who(conn)
            assert pool.stats().opened == 1

    body.run(main())


async def _fail(body: Any, pool: unbroken.AsyncPool) -> None:
    async with pool.connection() as conn:
        await body.do(conn, "SELECT no_such_thing FROM nowhere")


@pytest.mark.parametrize("way", ["connection", "run"])
def test_work_that_postgresql_rolled_back_is_not_taken_for_stored(body: Any, way: str) -> None:
    """It answers the COMMIT of a failed transaction with a friendly ROLLBACK: an error that was
    caught would cost the work.
    """
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:

            async def work(conn: Any) -> None:
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                await body.outcome(body.do(conn, "SELECT no_such_thing"))

            async def lease() -> None:
                async with pool.connection() as conn:
                    await work(conn)

            error = await body.outcome(lease() if way == "connection" else pool.run(work))
            if body.is_mysql:  # a failed statement is undone, the transaction goes on
                assert error is None
                assert body.rows() == [1]
            else:
                assert "InFailedS" in type(error).__name__
                assert "savepoint" in str(error)
                assert body.rows() == []
            assert (pool.stats().idle, pool.stats().opened) == (1, 1)

    body.run(main())


def test_without_a_transaction_nothing_is_committed_that_was_begun(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            async with pool.connection(transaction=False) as conn:
                await body.do(conn, "BEGIN")
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")
            assert body.rows() == []
            async with pool.connection() as conn:
                assert await body.ask(conn, f"SELECT COUNT(*) FROM {table}") == 0
            assert pool.stats().opened == 1

    body.run(main())


def test_release_rolls_back_what_is_open(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            await body.do(conn, "BEGIN")
            await body.do(conn, f"INSERT INTO {table} VALUES (1)")
            await pool.release(conn)
            assert pool.stats().rollbacks == 1
            assert body.rows() == []
            again = await pool.acquire()
            assert again is conn
            assert await body.ask(again, f"SELECT COUNT(*) FROM {table}") == 0
            await pool.release(again)

    body.run(main())


def test_what_was_acquired_and_committed_by_hand_is_stored(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            await body.do(conn, "BEGIN")
            await body.do(conn, f"INSERT INTO {table} VALUES (7)")
            await body.do(conn, "COMMIT")
            await pool.release(conn)
            assert pool.stats().rollbacks == 0
        assert body.rows() == [7]

    body.run(main())


def test_a_released_connection_is_released_once(body: Any) -> None:
    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            await pool.release(conn)
            with pytest.raises(unbroken.NotYoursError, match="once"):
                await pool.release(conn)
            with pytest.raises(unbroken.NotYoursError):
                await pool.release(object())
            assert (pool.stats().idle, pool.stats().size) == (1, 1)

    body.run(main())


class TestAsyncpgsTransaction:
    """asyncpg begins nothing by itself: ``connection()`` does, with asyncpg's own object."""

    @pytest.fixture
    def body(self, body: Any) -> Iterator[Any]:
        if not body.is_asyncpg:
            pytest.skip("asyncpg only")
        return body

    def test_an_inner_transaction_is_a_savepoint_in_it(self, body: Any) -> None:
        table = body.table()

        async def main() -> None:
            async with body.pool() as pool, pool.connection() as conn:
                assert conn.is_in_transaction()
                await conn.execute(f"INSERT INTO {table} VALUES (1)")
                with pytest.raises(KeyError):
                    async with conn.transaction():
                        await conn.execute(f"INSERT INTO {table} VALUES (2)")
                        raise KeyError
                async with conn.transaction():
                    await conn.execute(f"INSERT INTO {table} VALUES (3)")
                assert body.rows() == []
            assert body.rows() == [1, 3]

        body.run(main())

    def test_the_applications_own_transactions_work_without_one_and_leave_nothing(
        self, body: Any
    ) -> None:
        table = body.table()

        async def main() -> None:
            async with body.pool() as pool:
                async with pool.connection(transaction=False) as conn:
                    assert not conn.is_in_transaction()
                    async with conn.transaction(isolation="serializable"):
                        await conn.execute(f"INSERT INTO {table} VALUES (1)")
                    await conn.transaction().start()  # and forgotten
                    await conn.execute(f"INSERT INTO {table} VALUES (2)")
                async with pool.connection() as conn:
                    # asyncpg would refuse a second outermost transaction here
                    await conn.execute(f"INSERT INTO {table} VALUES (3)")
                assert pool.stats().opened == 1
            assert body.rows() == [1, 3]

        body.run(main())

    def test_a_commit_written_as_text_ends_it(self, body: Any) -> None:
        table = body.table()

        async def main() -> None:
            async with body.pool() as pool:
                for number in (1, 2):
                    async with pool.connection() as conn:
                        await conn.execute(f"INSERT INTO {table} VALUES ({number})")
                        await conn.execute("COMMIT")
                assert pool.stats().opened == 1
            assert body.rows() == [1, 2]

        body.run(main())


# -- round trips -----------------------------------------------------------------------------------


def _counter(conn: Any, body: Any) -> Any:
    if body.is_mysql:
        sock = conn._writer.transport.get_extra_info("socket")
    elif body.is_asyncpg:
        sock = conn._transport.get_extra_info("socket")
    else:
        sock = conn.pgconn
    return counter(sock.socket if body.name == "psycopg" else sock.fileno())


def test_nothing_is_sent_for_a_connection_that_was_not_used(body: Any) -> None:
    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            sent = _counter(conn, body)
            before = sent()
            assert before
            await pool.release(conn)
            for _ in range(20):
                async with pool.connection(transaction=False):
                    pass
                await pool.release(await pool.acquire())
                if not body.is_asyncpg:
                    async with pool.connection():
                        pass
            assert sent() == before
            assert (pool.stats().pings, pool.stats().rollbacks) == (0, 0)

    body.run(main())


def test_nothing_more_is_sent_where_it_is_known_that_no_transaction_is_open(body: Any) -> None:
    async def main() -> None:
        async with body.pool() as pool:
            conn = await pool.acquire()
            sent = _counter(conn, body)
            await body.do(conn, "BEGIN")
            await body.who(conn)
            await body.do(conn, "COMMIT")
            before = sent()
            await pool.release(conn)
            assert sent() == before

    body.run(main())


def test_an_idle_connection_is_lent_without_a_ping_and_the_warmest_first(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=3) as pool:
            await body.fill(pool, 3)
            one = await pool.acquire()
            await pool.release(one)
            for _ in range(5):
                conn = await pool.acquire()
                assert conn is one
                await pool.release(conn)
            assert pool.stats().pings == 0

    body.run(main())


# -- settings --------------------------------------------------------------------------------------


def test_the_users_own_reset_is_awaited(body: Any) -> None:
    seen = []

    async def reset(conn: Any) -> None:
        seen.append(await body.who(conn))

    async def main() -> None:
        async with body.pool(reset=reset) as pool:
            async with pool.connection() as conn:
                me = await body.who(conn)
            assert seen == [me]
            await pool.release(await pool.acquire())
            assert seen == [me, me]
            assert pool.stats().idle == 1

    body.run(main())


def test_a_connection_whose_reset_fails_is_thrown_away(body: Any) -> None:
    def reset(_conn: Any) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with body.pool(reset=reset) as pool:
            async with pool.connection() as conn:
                await body.who(conn)
            assert (pool.stats().size, pool.stats().closed) == (0, {"reset failed": 1})
            await body.until(lambda: not body.ids())

    body.run(main())


def test_connections_of_the_users_own_making_are_lent(body: Any) -> None:
    async def main() -> None:
        made = []
        inner = body.pool()._driver

        async def connect() -> Any:
            made.append(await inner.connect(5.0))
            return made[-1]

        async with (
            unbroken.AsyncPool(connect=connect, driver=body.name, max_size=2) as pool,
            pool.connection() as conn,
        ):
            assert conn is made[0]
            await body.who(conn)

    body.run(main())


def test_pools_of_the_users_own_making_share_no_outage(body: Any) -> None:
    """What is not known to be the same server is not one: an outage of the first must not close the
    second.
    """

    async def main() -> None:
        inner = body.pool()._driver

        async def refused() -> Any:
            raise ConnectionRefusedError(111, "Connection refused")

        async with (
            unbroken.AsyncPool(connect=refused, driver=body.name, acquire_timeout=0.3) as away,
            unbroken.AsyncPool(
                connect=lambda: inner.connect(5.0), driver=body.name, acquire_timeout=2.0
            ) as well,
        ):
            assert isinstance(await body.outcome(away.acquire()), unbroken.OutageError)
            async with well.connection() as conn:
                await body.who(conn)
            assert well.stats().away_for == 0.0
            assert away.stats().away_for > 0.0

    body.run(main())


@pytest.mark.parametrize("made", [None, 7, "a string"])
def test_a_connect_that_gives_no_connection_is_told_at_once(body: Any, made: Any) -> None:
    async def main() -> None:
        async def connect() -> Any:
            return made

        async with unbroken.AsyncPool(
            connect=connect, driver=body.name, acquire_timeout=5.0
        ) as pool:
            for _ in range(12):  # more often than there are places
                error = await body.outcome(asyncio.wait_for(pool.acquire(), 2.0))
                assert isinstance(error, unbroken.ConnectRejectedError), error
            assert (pool.stats().opening, pool.stats().size) == (0, 0)

    body.run(main())


# -- bounds ----------------------------------------------------------------------------------------


def test_never_more_than_max_size_and_the_line_is_served_in_order(body: Any) -> None:
    async def main() -> None:
        order = []
        async with body.pool(max_size=2) as pool:

            async def turn(number: int) -> None:
                async with pool.connection(
                    transaction=False
                ) as conn:  # asyncpg's BEGINs may overtake one another
                    order.append(number)
                    await body.slow(conn, 0.01)
                    assert pool.stats().size <= 2

            tasks = []
            for number in range(20):
                tasks.append(asyncio.create_task(turn(number)))
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            # The grants are in order; two that are granted in the same turn of the loop may wake in
            # either.
            assert all(abs(place - number) <= 1 for place, number in enumerate(order)), order
            assert (pool.stats().opened, pool.stats().idle, pool.stats().used) == (2, 2, 0)
            assert len(body.ids()) == 2

    body.run(main())


def test_a_caller_who_waits_too_long_is_told_who_holds_them(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=1, acquire_timeout=0.15) as pool, pool.connection():
            error = await body.outcome(pool.acquire())
            assert isinstance(error, unbroken.PoolTimeoutError | TimeoutError)
            assert isinstance(error, pool._driver.errors[0])
            assert "in use 1" in str(error)
            assert "test_async_lending.py" in str(error)
            assert "acquire_timeout" in str(error)
            assert "\n" not in str(error)
            assert pool.stats().waiting == 0

    body.run(main())


def test_min_size_is_opened_at_first_use_and_refilled(body: Any) -> None:
    async def main() -> None:
        async with body.pool(min_size=3, max_size=5) as pool:
            async with pool.connection() as conn:
                await body.who(conn)
            await body.until(lambda: pool.stats().idle == 3)
            await asyncio.to_thread(body.server.kill_sessions)
            await body.until(lambda: pool.stats().opened >= 6 and pool.stats().idle == 3)

    body.run(main())


def test_a_refused_password_is_not_tried_again_and_again_for_min_size(body: Any) -> None:
    async def main() -> None:
        url = body.server.url(body.name).replace(body.server.password, "not-it")
        async with body.pool(url=url, min_size=2) as pool:
            assert isinstance(await body.outcome(pool.acquire()), unbroken.ConnectRejectedError)
            await asyncio.sleep(0.5)
            assert pool.stats().connect_failures < 10

    body.run(main())


def test_drain_replaces_every_connection(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=3) as pool:
            before = set(await body.fill(pool, 3))
            async with pool.connection(transaction=False) as conn:
                await pool.drain()
                assert await body.who(conn) in before
                assert pool.stats().size == 1
            assert pool.stats().closed == {"drained": 3}
            assert not before & set(await body.fill(pool, 3))

    body.run(main())


def test_resize_both_ways(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=2) as pool:
            await pool.resize(max_size=4)
            await body.fill(pool, 4)
            conns = [await pool.acquire() for _ in range(3)]
            await pool.resize(max_size=1)
            for conn in conns:
                await pool.release(conn)
            assert (pool.stats().size, pool.stats().idle) == (1, 1)
            assert pool.stats().closed == {"surplus": 3}
            with pytest.raises(unbroken.ConfigurationError):
                await pool.resize(max_size=0)

    body.run(main())


# -- closing ---------------------------------------------------------------------------------------


def test_a_closed_pool_lends_nothing_and_leaves_no_session(body: Any) -> None:
    async def main() -> None:
        pool = body.pool(max_size=3)
        await body.fill(pool, 3)
        await pool.close()
        with pytest.raises(unbroken.PoolClosedError, match="closed"):
            await pool.acquire()
        await body.until(lambda: not body.ids())
        await pool.close()

    body.run(main())


def test_close_tells_those_who_wait_and_waits_for_what_is_lent(body: Any) -> None:
    async def main() -> None:
        pool = body.pool(max_size=1)
        conn = await pool.acquire()
        waiters = [asyncio.create_task(body.outcome(pool.acquire())) for _ in range(5)]
        await body.until(lambda: pool.stats().waiting == 5)
        closing = asyncio.create_task(pool.close())
        assert all(
            isinstance(e, unbroken.PoolClosedError)
            for e in await asyncio.wait_for(asyncio.gather(*waiters), 2.0)
        )
        assert not closing.done()
        await body.who(conn)
        await pool.release(conn)
        await asyncio.wait_for(closing, 2.0)
        await body.until(lambda: not body.ids())

    body.run(main())


def test_what_is_being_opened_while_the_pool_closes_does_not_stay(body: Any) -> None:
    async def main() -> None:
        inner = body.pool()._driver
        go = asyncio.Event()

        async def connect() -> Any:
            if pool.stats().opened:
                await go.wait()
            return await inner.connect(5.0)

        pool = unbroken.AsyncPool(connect=connect, driver=body.name, max_size=3)
        conn = await pool.acquire()
        waiter = asyncio.create_task(body.outcome(pool.acquire()))
        await body.until(lambda: pool.stats().opening == 1)
        closing = asyncio.create_task(pool.close())
        assert isinstance(await waiter, unbroken.PoolClosedError)
        go.set()
        await body.until(lambda: pool.stats().opening == 0)
        await pool.release(conn)
        await closing
        assert pool.stats().size == 0
        await body.until(lambda: not body.ids())

    body.run(main())


@pytest.mark.parametrize("cyclic", [False, True])
def test_a_pool_that_is_dropped_without_close_leaves_no_session(body: Any, cyclic: bool) -> None:
    async def main() -> None:
        pool = body.pool(max_size=2)
        await body.fill(pool, 2)
        assert len(body.ids()) == 2
        if cyclic:
            pool.itself = pool  # as part of an application object would be
        del pool
        gc.collect()
        await body.until(lambda: not body.ids())
        await body.until(lambda: not body.close_waits())

    body.run(main())
