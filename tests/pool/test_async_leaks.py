"""AsyncPool: connections that are held for too long, forgotten, or taken back."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import unbroken

#: The pool promises one second; the rest is for machines that are busy with something else.
SOON = 3.0


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("unbroken") and words in record.getMessage()
    ]


def test_a_connection_held_too_long_is_reported_once_with_place_task_and_stack(
    body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def hold_it(pool: unbroken.AsyncPool) -> None:
        async with pool.connection() as conn:
            await rest_with(conn)

    async def rest_with(_conn: Any) -> None:
        await asyncio.sleep(30)

    async def handler(pool: unbroken.AsyncPool) -> None:
        await hold_it(pool)

    async def also_in_there(pool: unbroken.AsyncPool) -> None:
        async with pool.connection():
            pass
        await hold_it(pool)

    async def main() -> None:
        async with body.pool(leak_after=0.3, max_size=2) as pool:
            culprit = asyncio.create_task(handler(pool), name="the culprit")
            await body.until(lambda: told(caplog, "has been held"))
            await asyncio.sleep(0.3)
            (text,) = told(caplog, "has been held")
            assert "test_async_leaks.py" in text
            assert "hold_it" in text
            assert "the culprit" in text
            assert "rest_with" in text  # where it is now, however deep
            assert pool.stats().leaked == 1
            culprit.cancel()
            await asyncio.wait([culprit])

    with caplog.at_level(logging.WARNING, "unbroken"):
        body.run(main())


def test_the_task_that_holds_it_is_named_among_others_in_the_same_function(
    body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def worker(pool: unbroken.AsyncPool, *, holds: bool) -> None:
        if not holds:
            await asyncio.sleep(30)
        conn = await pool.acquire()
        try:
            await asyncio.sleep(30)
        finally:
            await pool.release(conn)

    async def main() -> None:
        async with body.pool(leak_after=0.2) as pool:
            tasks = [
                asyncio.create_task(worker(pool, holds=n == 3), name=f"worker {n}")
                for n in range(6)
            ]
            await body.until(lambda: told(caplog, "has been held"))
            (text,) = told(caplog, "has been held")
            assert "worker 3" in text
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    with caplog.at_level(logging.WARNING, "unbroken"):
        body.run(main())


def test_what_is_taken_by_run_is_reported_with_the_place_of_the_work(
    body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def my_work(_conn: Any) -> None:
        await asyncio.sleep(0.5)

    async def main() -> None:
        async with body.pool(leak_after=0.2) as pool:
            await pool.run(my_work)
            (text,) = told(caplog, "has been held")
            place = text.split("taken at")[1].split(" by ")[0]
            assert "test_async_leaks.py" in place, place

    with caplog.at_level(logging.WARNING, "unbroken"):
        body.run(main())


def test_forgotten_connections_come_back_are_told_and_leave_no_session(
    body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def forget(pool: unbroken.AsyncPool) -> None:
        conn = await pool.acquire()
        await body.who(conn)

    async def main() -> None:
        async with body.pool(max_size=3, acquire_timeout=5.0) as pool:
            for _ in range(7):
                await forget(pool)
            conns = await asyncio.gather(*(pool.acquire() for _ in range(3)))
            assert pool.stats().size == 3
            # the forgotten ones have ended on the server too
            await body.until(lambda: len(body.ids()) == 3)
            await body.until(lambda: not body.close_waits(), SOON)
            for conn in conns:
                await pool.release(conn)
            # A new connection may be given the address, and with it the place, of one whose end
            # nobody has noted yet.
            await body.until(lambda: pool.stats().leaked == 7)
            messages = told(caplog, "forgotten")
            assert len(messages) == 1, (pool.stats(), messages)  # all of one place
            assert all("test_async_leaks.py" in text and "forget" in text for text in messages)
            assert pool.stats().closed == {"forgotten": 7}
            assert pool.stats().leaked == 7

    with caplog.at_level(logging.WARNING, "unbroken"):
        body.run(main())


def test_those_forgotten_in_a_cycle_are_found_by_who_waits(body: Any) -> None:
    class Holder:
        def __init__(self, conn: Any) -> None:
            self.conn, self.me = conn, self

    async def main() -> None:
        async with body.pool(max_size=3) as pool:
            gc.disable()
            try:
                for _ in range(3):
                    Holder(await pool.acquire())
                assert await asyncio.wait_for(pool.run(body.who), 5.0)
            finally:
                gc.enable()

    body.run(main())


@pytest.mark.parametrize("clean", [True, False])
def test_a_block_that_is_collected_in_the_middle_gives_its_connection_back(
    body: Any, clean: bool
) -> None:
    """A coroutine or generator that nobody ends is closed by the collector: there, nothing can be
    awaited.
    """
    table = body.table()

    async def main() -> None:
        async with body.pool(max_size=1) as pool:

            async def work() -> None:
                async with pool.connection(transaction=not clean) as conn:
                    if not clean:
                        await body.do(conn, f"INSERT INTO {table} VALUES (1)")
                    await asyncio.get_running_loop().create_future()

            coroutine = work()
            task = asyncio.current_task()
            assert task is not None
            helper = asyncio.ensure_future(_drive(coroutine))
            await body.until(lambda: pool.stats().used == 1 and helper.done())
            coroutine.close()
            assert pool.stats().used == 0
            assert await pool.run(body.who)
            assert pool.stats().size == 1
        assert body.rows() == []

    body.run(main())


async def _drive(coroutine: Any) -> None:
    """Run *coroutine* until it waits for something that will never come, and leave it there."""
    result = None
    while True:
        waits_for = coroutine.send(result)
        if waits_for is not None:
            waits_for._asyncio_future_blocking = False
            done, _ = await asyncio.wait([waits_for], timeout=0.3)
            if not done:
                return
        else:
            await asyncio.sleep(0)


def test_a_generator_that_is_left_early_gives_its_connection_back(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=1) as pool:

            async def session() -> AsyncIterator[Any]:
                async with pool.connection() as conn:
                    await body.who(conn)
                    yield conn

            async for conn in session():
                await body.who(conn)
                break
            gc.collect()
            assert await asyncio.wait_for(pool.run(body.who), 3.0)
            assert pool.stats().used == 0

    body.run(main())


def test_reclaim_ends_a_connection_under_its_holders_hands_and_gives_the_place_back(
    body: Any,
) -> None:
    async def main() -> None:
        async with body.pool(max_size=1, leak_after=0.3, reclaim=True, acquire_timeout=5.0) as pool:
            conn = await pool.acquire()
            me = await body.who(conn)
            other = await asyncio.wait_for(pool.acquire(), 5.0)
            assert await body.who(other) != me
            assert pool.stats().size == 1
            assert await body.outcome(body.who(conn)) is not None
            await pool.release(conn)
            with pytest.raises(unbroken.NotYoursError):
                await pool.release(conn)
            await pool.release(other)
            assert pool.stats().closed == {"reclaimed": 1}
            await body.until(lambda: len(body.ids()) == 1)
            await body.until(lambda: not body.close_waits(), SOON)

    body.run(main())


def test_reclaim_wakes_a_holder_that_is_blocked(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=1, leak_after=0.3, reclaim=True) as pool:

            async def work() -> None:
                async with pool.connection() as conn:
                    await body.slow(conn, 20)

            error = await body.outcome(asyncio.wait_for(work(), 10.0))
            assert error is not None
            assert not isinstance(error, TimeoutError)
            assert await pool.run(body.who)
        await asyncio.to_thread(body.server.kill_sessions)

    body.run(main())
