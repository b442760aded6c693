"""More callers than connections, with real servers: told early where the line is too long, never
where it is not.
"""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc as sqla_exc
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
from unbroken.brain.ranks import Rank
from unbroken.pool import callers

#: Seconds of a unit of work, and of one where the processor must not count.
UNIT, LONG = 0.01, 0.05


class Request:
    """What a web body knows of a request."""

    begun = False


@pytest.fixture
def pool(postgres) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(postgres.url("psycopg"), max_size=2) as pool:
        yield pool


def work(pool: unbroken.Pool, seconds: float = UNIT, **how: Any) -> float:
    """One unit of work: how long its caller waited for a connection."""
    began = time.monotonic()
    with pool.connection(**how):
        waited = time.monotonic() - began
        time.sleep(seconds)
    return waited


def busy(pool: unbroken.Pool, callers_: int, seconds: float) -> list[BaseException]:
    """A batch job: so many threads, each of which comes again at once. What they were told."""
    ends, told = time.monotonic() + seconds, []

    def again() -> None:
        while time.monotonic() < ends:
            try:
                work(pool)
            except unbroken.UnbrokenError as error:
                told.append(error)

    with ThreadPoolExecutor(callers_) as threads:
        for _ in range(callers_):
            threads.submit(again)
    return told


def test_nobody_of_a_batch_job_is_told_to_go_however_many_its_threads(pool) -> None:
    assert busy(pool, 40, 1.5) == []
    known = pool.stats()
    assert (known.shed, known.timeouts) == (0, 0)
    assert known.waits > 40


def test_one_who_would_surely_not_be_served_in_its_time_is_told_at_once(pool) -> None:
    job = threading.Thread(target=busy, args=(pool, 40, 2.0))
    job.start()
    time.sleep(1.0)
    began = time.monotonic()
    with pytest.raises(unbroken.PoolTimeoutError) as told:
        work(pool, timeout=0.1)
    took = time.monotonic() - began
    job.join()
    assert told.value.code == "UB212"
    assert re.search(r"\d callers? ahead", str(told.value))
    assert 1.0 <= told.value.retry_after <= 5.0
    assert took < 0.1
    assert pool.stats().shed == 1


def test_a_line_of_the_length_that_was_set_takes_nobody_in_but_health_checks(postgres) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=1, max_waiting=2) as pool:
        held = pool.acquire()
        with ThreadPoolExecutor(3) as threads:
            line = [threads.submit(work, pool, 0.0) for _ in range(2)]
            _until(lambda: pool.stats().waiting == 2)
            with pytest.raises(unbroken.PoolTimeoutError, match="max_waiting=2"):
                pool.acquire()
            with unbroken.priority("health"):
                check = threads.submit(_in_this_context(work), pool, 0.0)
            _until(lambda: pool.stats().waiting == 3)
            pool.release(held)
            assert [each.result(5.0) >= 0.0 for each in (*line, check)] == [True] * 3
        assert pool.stats().shed == 1


def test_a_line_may_be_as_long_as_connections_are_still_to_come(postgres) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=5, max_waiting=0) as pool:
        conns = [pool.acquire() for _ in range(5)]
        with pytest.raises(unbroken.PoolTimeoutError, match="max_waiting=0"):
            pool.acquire()
        for conn in conns:
            pool.release(conn)


def test_background_work_crowds_no_user_out_of_a_line_with_a_bound(postgres) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=1, max_waiting=2) as pool:
        held = pool.acquire()
        with ThreadPoolExecutor(3) as threads:
            with unbroken.priority("background"):
                line = [threads.submit(_in_this_context(work), pool, 0.0) for _ in range(2)]
                _until(lambda: pool.stats().waiting == 2)
                with pytest.raises(unbroken.PoolTimeoutError, match="max_waiting=2"):
                    pool.acquire()
            user = threads.submit(work, pool, 0.0)
            _until(lambda: pool.stats().waiting == 3)
            pool.release(held)
            assert user.result(5.0) <= line[1].result(5.0) + 5.0


def test_an_outage_is_not_overload(new_postgres) -> None:
    server = new_postgres()
    with unbroken.Pool(server.url("psycopg"), max_size=2, outage_wait=0.3) as pool:
        assert busy(pool, 40, 1.0) == []
        server.stop()
        told = busy(pool, 40, 1.0)
        assert {error.code for error in told} == {"UB301"}
        assert pool.stats().shed == 0


def test_callers_of_a_class_are_served_by_its_rank(postgres) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=1) as pool:
        held, served = pool.acquire(), []
        with ThreadPoolExecutor(9) as threads:
            for name in ("background", "normal", "health", "background", "normal", "health"):

                def one(name: str = name) -> None:
                    with unbroken.priority(name), pool.connection():
                        served.append(name)

                before = pool.stats().waiting
                threads.submit(one)
                _until(lambda before=before: pool.stats().waiting == before + 1)
            pool.release(held)
        assert served == ["health"] * 2 + ["normal"] * 2 + ["background"] * 2


def test_priority_is_a_word_of_the_context_and_a_decorator_too() -> None:
    @unbroken.priority("background")
    def blocking() -> Rank:
        return callers.caller()[0]

    @unbroken.priority("health")
    async def waiting() -> Rank:
        return callers.caller()[0]

    assert blocking() is Rank.BACKGROUND
    assert asyncio.run(waiting()) is Rank.HEALTH
    assert callers.caller()[0] is Rank.NORMAL
    for wrong in ("backgroud", "", None, 3):
        with pytest.raises(unbroken.ConfigurationError, match="unknown priority"):
            unbroken.priority(wrong)  # type: ignore[arg-type]
    with pytest.raises(unbroken.ConfigurationError, match="generator"):

        @unbroken.priority("health")
        def numbers() -> Iterator[int]:
            yield 1


async def _users(
    pool: unbroken.AsyncPool, rate: float, seconds: float, *, web: bool, patience: float = math.inf
) -> list[tuple[float, float, str]]:
    """Users who come at *rate* a second: when each came, how long it took, and what became of
    it.
    """
    found: list[tuple[float, float, str]] = []
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(came: float) -> None:
        if web:
            callers.enter((Rank.NORMAL, Request()))
        how = "served"
        try:
            async with asyncio.timeout(None if patience == math.inf else patience):
                async with pool.connection(transaction=False):
                    await asyncio.sleep(LONG)
        except unbroken.PoolTimeoutError:
            how = "shed"
        except TimeoutError:
            how = "left"
        found.append((came - start, loop.time() - came, how))

    async with asyncio.TaskGroup() as tasks:
        number = 0
        while (now := loop.time()) < start + seconds:
            while number < (now - start) * rate:
                tasks.create_task(one(now))
                number += 1
            await asyncio.sleep(0.002)
    return found


@pytest.mark.parametrize("how", ["web", "cancelled", "target"])
def test_at_three_times_the_load_the_pool_serves_as_many_as_ever_and_is_well_at_once_afterwards(
    postgres, how
) -> None:
    async def main() -> None:
        target = 0.2 if how == "target" else None
        url = postgres.url("psycopg")
        async with unbroken.AsyncPool(url, max_size=4, shed_target=target) as pool:
            rate = 4 / LONG
            for conn in [await pool.acquire() for _ in range(4)]:
                await pool.release(conn)
            patience = 0.6 if how == "cancelled" else math.inf
            found = await _users(pool, 3 * rate, 4.0, web=how == "web", patience=patience)
            after = await _users(pool, 0.3 * rate, 2.0, web=how == "web", patience=patience)
            known = pool.stats()
        served = [took for came, took, what in found if what == "served" and came > 1.5]
        told = sorted(took for _, took, what in found if what == "shed")
        # a busy machine serves less, but it serves those in time that it serves
        assert len(served) >= 0.3 * 2.5 * rate, known
        assert sum(took < 1.0 for took in served) >= 0.8 * len(served)
        assert known.shed >= len(told) > 0.3 * len(found)
        assert told[len(told) // 2] < 0.1
        late = [each for each in after if each[0] > 1.0 and each[2] != "served"]
        assert late == []

    asyncio.run(main())


def test_engines_and_their_callers_hear_it_in_sqlalchemys_words(postgres) -> None:
    engine = sa.create_engine(
        postgres.url("psycopg").replace("postgresql+", "postgresql+", 1),
        plugins=["unbroken"], pool_size=1, max_overflow=0, unbroken={"max_waiting": 0},
    )  # fmt: skip
    with engine.connect(), pytest.raises(sqla_exc.TimeoutError, match="max_waiting=0") as told:
        engine.connect()
    assert isinstance(told.value, unbroken.PoolTimeoutError)
    assert unbroken.PoolTimeoutError.code.fget(told.value) == "UB212"  # type: ignore[attr-defined]
    assert told.value.retry_after >= 1.0
    engine.dispose()


def test_callers_of_an_async_engine_have_classes_too(postgres) -> None:
    async def main() -> None:
        engine = create_async_engine(
            postgres.url("psycopg"), plugins=["unbroken"], pool_size=1, max_overflow=0
        )
        order: list[str] = []

        async def one(name: str) -> None:
            with unbroken.priority(name):
                async with engine.connect():
                    order.append(name)

        async with engine.connect():
            tasks = []
            for name in ("background", "normal", "health"):
                tasks.append(asyncio.create_task(one(name)))
                waiting = len(tasks)
                async with asyncio.timeout(10):
                    while engine.pool._body.stats().waiting < waiting:
                        await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        assert order == ["health", "normal", "background"]
        await engine.dispose()

    asyncio.run(main())


def _in_this_context(function: Any) -> Any:
    from contextvars import copy_context

    context = copy_context()
    return lambda *args: context.run(function, *args)


def _until(condition: Any, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "not true in time"
        time.sleep(0.002)
