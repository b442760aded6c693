"""AsyncPool under cancellation: tasks struck at any moment, with sessions killed in between.

Afterwards it is whole.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
import uvloop

import unbroken

TASKS = 300
SIZE = 8
#: The pool promises one second; the rest is for machines that are busy with something else.
SOON = 3.0


async def settled(body: Any, pool: unbroken.AsyncPool, others: set[int]) -> None:
    """Wait until the pool rests, and hold it to what it must be then. *others*: sessions that were
    there before it.
    """

    def rests() -> bool:
        stats = pool.stats()
        return (stats.used, stats.waiting, stats.opening) == (
            0,
            0,
            0,
        ) and stats.idle == stats.size <= SIZE

    await body.until(rests)
    conns = await asyncio.wait_for(asyncio.gather(*(pool.acquire() for _ in range(SIZE))), 10.0)
    ids = [await body.who(conn) for conn in conns]
    assert len(set(ids)) == SIZE
    assert pool.stats().size == SIZE
    for conn in conns:
        await pool.release(conn)
    assert rests()
    # nothing that was thrown away lives on at the server
    await body.until(lambda: body.ids() - others == set(ids))
    await body.until(lambda: not body.close_waits(), SOON)


class Storm:
    """Each task's answer must be its own: it asks for a number that nobody else asks for."""

    def __init__(self, body: Any, pool: unbroken.AsyncPool, seed: int) -> None:
        self.body, self.pool, self.random = body, pool, random.Random(seed)
        self.foreign: list[Any] = []
        self.unexpected: list[BaseException] = []
        self.done = 0
        self.killed: set[int] = set()

    async def check(self, conn: Any, number: int, pause: float) -> None:
        body = self.body
        sql = (
            f"SELECT {number}, SLEEP({pause:.4f})"
            if body.is_mysql
            else f"SELECT {number}, pg_sleep({pause:.4f})::text"
        )
        answer = await body.ask(conn, sql)
        if answer != number:
            self.foreign.append((number, answer))

    async def work(self, number: int) -> None:
        how = self.random.randrange(4)
        pause = self.random.choice([0, 0, 0.001, 0.01])
        try:
            if how == 0:
                async with self.pool.connection() as conn:
                    await self.check(conn, number, pause)
            elif how == 1:
                await self.pool.run(lambda conn: self.check(conn, number, pause))
            elif how == 2:
                conn = await self.pool.acquire()
                try:
                    await self.check(conn, number, pause)
                finally:
                    await self.pool.release(conn)
            else:
                async with self.pool.connection(transaction=False, deadline=60.0) as conn:
                    await self.check(conn, number, pause)
                    await asyncio.sleep(0)
            self.done += 1
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # lease and release do not replay: a kill may be seen there
            expected = self.pool._driver.classify(error).is_lost or isinstance(
                error, unbroken.ConnectionLostError | unbroken.CommitUnknownError
            )
            # run() replays a unit, but sends no statement a third time whose session ended on two
            # fresh connections
            is_given_up = any(
                "ends its session" in note for note in getattr(error, "__notes__", ())
            )
            if not expected or (how == 1 and not is_given_up):
                self.unexpected.append(error)

    async def rage(self, *, kills: int) -> None:
        tasks = []
        for number in range(1000, 1000 + TASKS):
            tasks.append(asyncio.create_task(self.work(number)))
            if number % 10 == 0:
                await asyncio.sleep(0)
        killer = asyncio.create_task(self.kill(kills))
        for task in self.random.sample(tasks, TASKS * 2 // 3):
            await asyncio.sleep(self.random.choice([0, 0, 0, 0.0005, 0.002]))
            task.cancel()
        _, pending = await asyncio.wait([*tasks, killer], timeout=40)
        # a server under load takes its time
        await self.body.until(lambda: not self.killed & self.body.ids())
        assert not pending, (
            f"{len(pending)} tasks hang: {[task.get_stack() for task in list(pending)[:2]]}"
        )

    async def kill(self, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(self.random.uniform(0.01, 0.06))
            for session in self.random.sample(
                sorted(self.body.ids()), k=min(3, len(self.body.ids()))
            ):
                self.killed.add(session)
                await asyncio.to_thread(self.body.server._kill_session, session)


@pytest.mark.parametrize(("kills", "loop"), [(0, "asyncio"), (12, "asyncio"), (12, "uvloop")])
def test_a_storm_of_cancellations_leaves_the_pool_whole(body: Any, kills: int, loop: str) -> None:
    body.loop_factory = uvloop.new_event_loop if loop == "uvloop" else None

    async def main() -> None:
        others = body.ids()  # what another test has dropped goes when the collector runs
        async with body.pool(max_size=SIZE, acquire_timeout=30.0) as pool:
            for seed in range(2):
                storm = Storm(body, pool, seed)
                await storm.rage(kills=kills)
                assert storm.foreign == []
                # so many cancelled callers teach the line that callers leave early
                told = [e for e in storm.unexpected if getattr(e, "code", None) == "UB212"]
                assert storm.unexpected == told
                assert storm.done > 20
                await settled(body, pool, others)

    body.run(main(), timeout=120)


def test_a_storm_while_the_server_restarts_leaves_the_pool_whole(own_body: Any) -> None:
    body = own_body

    async def main() -> None:
        async with body.pool(max_size=SIZE, acquire_timeout=30.0, outage_wait=30.0) as pool:
            storm = Storm(body, pool, 7)
            raging = asyncio.create_task(storm.rage(kills=0))
            await body.until(lambda: storm.done > 5)
            await asyncio.to_thread(body.server.crash, 0.2)
            await raging
            assert storm.foreign == []
            assert storm.unexpected == []
            await settled(body, pool, set())

    body.run(main(), timeout=120)


def test_callers_struck_in_line_take_nothing_with_them(body: Any) -> None:
    async def main() -> None:
        rng = random.Random(3)
        async with body.pool(max_size=1) as pool:
            for _ in range(40):
                conn = await pool.acquire()
                waiters = [asyncio.create_task(pool.acquire()) for _ in range(10)]
                await asyncio.sleep(0)
                assert pool.stats().waiting == 10
                struck = rng.sample(waiters, 9)
                # in the very turn of the loop in which the connection is granted to one of them
                before = rng.random() < 0.5
                if before:
                    for waiter in struck:
                        waiter.cancel()
                await pool.release(conn)
                if not before:
                    for waiter in struck:
                        waiter.cancel()
                done, pending = await asyncio.wait(
                    waiters, timeout=5, return_when=asyncio.ALL_COMPLETED
                )
                assert not pending
                (lucky,) = (waiter for waiter in done if not waiter.cancelled())
                await pool.release(lucky.result())
                assert (pool.stats().waiting, pool.stats().used, pool.stats().idle) == (0, 0, 1)
            assert pool.stats().opened == 1

    body.run(main())


def test_a_task_struck_outside_of_an_exchange_costs_no_connection(body: Any) -> None:
    table = body.table()

    async def main() -> None:
        async with body.pool(max_size=1) as pool:
            for clean in (True, False) * 3:
                working = asyncio.Event()

                async def work(clean: bool = clean, working: asyncio.Event = working) -> None:
                    async with pool.connection() as conn:
                        await body.do(
                            conn, "SELECT 1" if clean else f"INSERT INTO {table} VALUES (1)"
                        )
                        working.set()
                        await asyncio.sleep(30)

                task = asyncio.create_task(work())
                await working.wait()
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()
                assert (pool.stats().opened, pool.stats().idle) == (1, 1)
        assert body.rows() == []

    body.run(main())


@pytest.mark.parametrize("reset", ["rollback", None])
@pytest.mark.parametrize("way", ["connection", "acquire"])
def test_a_task_struck_in_a_query_leaves_no_answer_for_the_next(
    body: Any, way: str, reset: Any
) -> None:
    async def main() -> None:
        async with body.pool(max_size=1, reset=reset) as pool:
            for number in range(5):

                async def work(number: int = number) -> None:
                    if way == "connection":
                        async with pool.connection() as conn:
                            await body.slow(conn, 0.2)
                            return
                    conn = await pool.acquire()
                    try:
                        await body.slow(conn, 0.2)
                    finally:
                        await pool.release(conn)

                task = asyncio.create_task(work())
                await body.until(lambda: pool.stats().used == 1)
                await asyncio.sleep(0.03)
                task.cancel()
                await asyncio.wait([task])
                assert pool.stats().used == 0
                async with pool.connection(transaction=False) as conn:
                    if reset is None:
                        await body.do(conn, "ROLLBACK")  # reset=None leaves that to the application
                    assert await body.ask(conn, f"SELECT {number}") == number
            closed = dict(pool.stats().closed)
            assert set(closed) <= {"cancelled"}, closed

    body.run(main())


def test_a_task_struck_in_its_commit_is_told_so_and_costs_no_more_than_its_connection(
    body: Any,
) -> None:
    table = body.table()

    async def main() -> None:
        rng = random.Random(1)
        async with body.pool(max_size=2) as pool:

            async def work(number: int, committing: asyncio.Event) -> None:
                async with pool.connection() as conn:
                    await body.do(conn, f"INSERT INTO {table} VALUES ({number})")
                    committing.set()

            done = []
            for number in range(60):
                committing = asyncio.Event()
                task = asyncio.create_task(work(number, committing))
                await committing.wait()
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    done.append(number)
                assert (pool.stats().used, pool.stats().waiting) == (0, 0)
            assert set(done) <= set(body.rows())
            assert len(set(body.rows())) == len(body.rows())
            assert set(pool.stats().closed) <= {"cancelled"}, pool.stats().closed
            assert await asyncio.gather(*(pool.run(body.who) for _ in range(8)))

    body.run(main())


def test_a_timeout_around_an_acquire_gives_the_place_in_line_up(body: Any) -> None:
    async def main() -> None:
        async with body.pool(max_size=1) as pool:
            conn = await pool.acquire()
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await pool.acquire()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(pool.run(body.who), 0.02)
                assert pool.stats().waiting == 0
            await pool.release(conn)
            assert await pool.run(body.who)
            assert pool.stats().opened == 1

    body.run(main())


def test_a_timeout_in_the_middle_of_a_query_is_the_callers_own(body: Any) -> None:
    async def main() -> None:
        calls = 0
        async with body.pool(max_size=1) as pool:

            async def work(conn: Any) -> None:
                nonlocal calls
                calls += 1
                async with asyncio.timeout(0.1):
                    await body.slow(conn, 1.0)

            error = await body.outcome(pool.run(work))
            assert type(error) is TimeoutError
            assert calls == 1
            assert await pool.run(body.who)
            assert pool.stats().used == 0

    body.run(main())


def test_a_task_struck_while_connecting_leaves_the_connecting_to_the_pool(body: Any) -> None:
    async def main() -> None:
        inner = body.pool()._driver
        go = asyncio.Event()

        async def connect() -> Any:
            await go.wait()
            return await inner.connect(5.0)

        async with unbroken.AsyncPool(connect=connect, driver=body.name, max_size=2) as pool:
            tasks = [asyncio.create_task(pool.acquire()) for _ in range(2)]
            await body.until(lambda: pool.stats().opening == 2)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            go.set()
            await body.until(lambda: pool.stats().idle == 2)
            assert (pool.stats().waiting, pool.stats().opening) == (0, 0)

    body.run(main())
