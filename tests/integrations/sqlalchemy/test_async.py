"""Async engines: the same faults, and what only asyncio has: cancellation, loops that end, garbage
that cannot be awaited.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import random
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import unbroken
from unbroken import replayable
from unbroken.sqlalchemy import stats

DRIVERS = ["asyncpg", "psycopg", "aiomysql"]


class AsyncFace:
    """One async driver on one server."""

    def __init__(self, name: str, server: Any) -> None:
        self.name, self.server = name, server
        self.is_mysql = name in ("aiomysql", "asyncmy")
        self.session_id = sa.text(
            "SELECT connection_id()" if self.is_mysql else "SELECT pg_backend_pid()"
        )

    @asynccontextmanager
    async def engine(self, **kwargs: Any) -> AsyncIterator[AsyncEngine]:
        engine = create_async_engine(self.server.url(self.name), plugins=["unbroken"], **kwargs)
        try:
            yield engine
        finally:
            await engine.dispose()

    async def ask(self, engine: AsyncEngine) -> int:
        async with engine.connect() as conn:
            return int(await conn.scalar(self.session_id))  # type: ignore[arg-type]

    async def warm(self, engine: AsyncEngine, count: int) -> list[int]:
        held = [await engine.connect() for _ in range(count)]
        numbers = [int(await conn.scalar(self.session_id)) for conn in held]  # type: ignore[arg-type]
        for conn in held:
            await conn.close()
        return numbers


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        await asyncio.sleep(0.002)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


@pytest.fixture(params=DRIVERS)
def aface(request: pytest.FixtureRequest) -> AsyncFace:
    return AsyncFace(
        request.param,
        request.getfixturevalue("mariadb" if request.param == "aiomysql" else "postgres"),
    )


@pytest.fixture(params=DRIVERS)
def own_aface(request: pytest.FixtureRequest) -> AsyncFace:
    return AsyncFace(
        request.param,
        request.getfixturevalue("new_mariadb" if request.param == "aiomysql" else "new_postgres")(),
    )


def test_what_the_server_ended_while_idle_is_replaced_unseen(
    aface: AsyncFace, in_close_wait: Any
) -> None:
    async def work() -> None:
        setting: dict[str, Any] = (
            {"wait_timeout": 1} if aface.is_mysql else {"idle_session_timeout": "1s"}
        )
        with aface.server.temporarily(**setting):
            async with aface.engine(unbroken={"idle_limit": math.inf}) as engine:
                before = await aface.warm(engine, 3)
                await until(lambda: stats(engine).size == 0)
                assert in_close_wait() == 0
                assert not {await aface.ask(engine) for _ in range(5)} & set(before)
                assert "lost in use" not in stats(engine).closed

    run(work())


def test_killed_idle_connections_are_never_an_error(aface: AsyncFace, in_close_wait: Any) -> None:
    async def work() -> None:
        async with aface.engine(pool_size=4) as engine:
            for _ in range(4):
                before = await aface.warm(engine, 4)
                await asyncio.to_thread(aface.server.kill_sessions)
                assert not {await aface.ask(engine) for _ in range(8)} & set(before)
            await until(lambda: in_close_wait() == 0)

    run(work())


def test_callers_wait_through_a_restart_without_blocking_the_loop(own_aface: AsyncFace) -> None:
    async def work() -> None:
        async with own_aface.engine(pool_size=6) as engine:
            await own_aface.warm(engine, 6)
            await asyncio.to_thread(own_aface.server.stop)
            starter = threading.Timer(0.7, own_aface.server.start)
            starter.start()
            beats = 0

            async def heart() -> None:
                nonlocal beats
                while True:
                    await asyncio.sleep(0.005)
                    beats += 1

            beating = asyncio.create_task(heart())
            assert len(await asyncio.gather(*(own_aface.ask(engine) for _ in range(6)))) == 6
            beating.cancel()
            # it answers a little before start() returns
            await asyncio.to_thread(starter.join)
            assert beats > 20
            assert stats(engine).outages == 1

    run(work())


def test_an_outage_is_told_in_time_and_ends_without_traffic(own_aface: AsyncFace) -> None:
    async def work() -> None:
        async with own_aface.engine(unbroken={"outage_wait": 0.3}) as engine:
            await own_aface.ask(engine)
            await asyncio.to_thread(own_aface.server.stop)
            for _ in range(5):
                with pytest.raises(unbroken.OutageError, match="down for") as caught:
                    await own_aface.ask(engine)
                assert isinstance(caught.value, sa.exc.OperationalError)
            await asyncio.to_thread(own_aface.server.start)
            await until(lambda: stats(engine).away_for == 0.0)
            await own_aface.ask(engine)

    run(work())


def test_a_session_that_lost_its_connection_is_run_again(aface: AsyncFace, faces: Any) -> None:
    table = faces("pymysql" if aface.is_mysql else "psycopg", aface.server).table("async_t")
    runs = 0

    async def work() -> None:
        async with aface.engine() as engine:

            @replayable
            async def unit() -> None:
                nonlocal runs
                async with AsyncSession(engine) as session:
                    await session.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
                    runs += 1
                    if runs == 1:
                        aface.server._kill_session(await session.scalar(aface.session_id))
                    await session.execute(sa.text(f"INSERT INTO {table} VALUES (2)"))
                    await session.commit()

            await unit()
            assert stats(engine).used == 0

    run(work())
    assert runs == 2
    assert sorted(aface.server.admin(f"SELECT n FROM {table}")) == [("1",), ("2",)]


def test_nothing_is_run_again_once_something_was_committed(aface: AsyncFace, faces: Any) -> None:
    table = faces("pymysql" if aface.is_mysql else "psycopg", aface.server).table("async_t")
    runs = 0

    async def work() -> None:
        async with aface.engine() as engine:

            @replayable
            async def unit() -> None:
                nonlocal runs
                runs += 1
                async with engine.begin() as conn:
                    await conn.execute(sa.text(f"INSERT INTO {table} VALUES ({runs})"))
                async with engine.begin() as conn:
                    aface.server._kill_session(await conn.scalar(aface.session_id))
                    await conn.execute(sa.text(f"INSERT INTO {table} VALUES (9)"))

            with pytest.raises(sa.exc.DBAPIError):
                await unit()

    run(work())
    assert aface.server.admin(f"SELECT n FROM {table}") == [("1",)]


def test_no_transaction_survives_a_cancelled_or_careless_user(aface: AsyncFace, faces: Any) -> None:
    table = faces("pymysql" if aface.is_mysql else "psycopg", aface.server).table("async_t")

    async def work() -> None:
        async with aface.engine(pool_size=1, max_overflow=0) as engine:

            async def hang() -> None:
                async with engine.connect() as conn:
                    await conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
                    await conn.execute(
                        sa.text("SELECT SLEEP(30)" if aface.is_mysql else "SELECT pg_sleep(30)")
                    )

            task = asyncio.create_task(hang())
            await until(lambda: stats(engine).used == 1)
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text(f"SELECT COUNT(*) FROM {table}")) == 0
            assert (stats(engine).size, stats(engine).idle) == (1, 1)

    run(work())


def test_a_second_event_loop_starts_with_connections_of_its_own(aface: AsyncFace) -> None:
    engine = create_async_engine(aface.server.url(aface.name), plugins=["unbroken"])
    first = run(aface.ask(engine))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        second = run(aface.ask(engine))
        gc.collect()
    assert first != second
    run(engine.dispose())


def test_its_numbers_can_be_asked_for_outside_of_every_loop(aface: AsyncFace) -> None:
    """As a thread that exports metrics does, before the first use and after the loop has ended."""
    engine = create_async_engine(aface.server.url(aface.name), plugins=["unbroken"])
    assert stats(engine).size == stats(engine).opened == 0

    async def use() -> None:
        await aface.warm(engine, 2)
        assert await asyncio.to_thread(lambda: stats(engine).opened) == 2
        await engine.dispose()

    asyncio.run(use())
    assert (stats(engine).size, stats(engine).opened) == (0, 2)


def test_the_place_of_a_leak_is_the_tasks_own_line(aface: AsyncFace, caplog: Any) -> None:
    async def work() -> None:
        async with aface.engine(unbroken={"leak_after": 0.2}) as engine, engine.connect() as conn:
            await conn.scalar(aface.session_id)
            await until(lambda: "has been held for" in caplog.text)

    with caplog.at_level(logging.WARNING, "unbroken"):
        run(work())
    assert "in test_the_place_of_a_leak_is_the_tasks_own_line.<locals>.work" in caplog.text


def spin(seconds: float) -> None:
    """Use the processor for so long."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_a_crowd_that_waits_does_not_collect_garbage_one_after_the_other(
    aface: AsyncFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large process it takes more than a second, in which the loop stands still: whoever came
    next would find it due again.
    """
    collections: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: collections.append(time.sleep(1.1)))

    async def work() -> None:
        async with aface.engine(pool_size=1, max_overflow=0, pool_timeout=30) as engine:
            async with engine.connect():
                crowd = [asyncio.create_task(aface.ask(engine)) for _ in range(40)]
                await until(lambda: collections)
            assert len(set(await asyncio.gather(*crowd))) == 1
            assert len(collections) <= 3

    run(work())


@pytest.mark.parametrize("seconds", [0.0, 0.15], ids=["a small process", "a large one"])
def test_what_is_forgotten_does_not_fill_the_pool(
    aface: AsyncFace, caplog: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    collect = gc.collect
    monkeypatch.setattr(gc, "collect", lambda: (spin(seconds), collect()))

    async def forgetful(engine: AsyncEngine) -> None:
        conn = await engine.connect()
        await conn.scalar(aface.session_id)
        cycle: list[Any] = [conn]
        cycle.append(cycle)

    async def work() -> None:
        async with aface.engine(pool_size=3, max_overflow=0, pool_timeout=20) as engine:
            for _ in range(8):
                await forgetful(engine)
            for _ in range(6):
                await aface.ask(engine)
            assert stats(engine).size <= 3
            await until(lambda: stats(engine).leaked >= 5)

    gc.disable()
    try:
        with caplog.at_level(logging.WARNING, "unbroken"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(work())
    finally:
        gc.enable()
    assert "forgetful" in caplog.text


def test_a_thousand_tasks_with_cancellations_and_kills_leave_nothing_behind(
    aface: AsyncFace,
) -> None:
    """Each asks for a number of its own: a row that is another's would show at once."""
    chance = random.Random(7)
    done: list[int] = []

    async def one(engine: AsyncEngine, number: int) -> None:
        @replayable
        async def unit() -> None:
            async with engine.connect() as conn:
                for _ in range(3):
                    assert await conn.scalar(sa.text(f"SELECT {number}")) == number

        await unit()
        done.append(number)

    async def disturb(engine: AsyncEngine, tasks: list[asyncio.Task[None]]) -> None:
        for turn in range(20):
            for task in chance.sample(tasks, 20):
                task.cancel()
            if turn % 5 == 4:
                await asyncio.to_thread(aface.server.kill_sessions)
            await asyncio.sleep(0.01)

    # A machine under such a load may be slow to connect. So many cancellations look like users that
    # leave early, for whom the line would be kept short.
    patient = {"outage_wait": 50, "connect_timeout": 30, "shed_target": math.inf}

    async def work() -> None:
        async with aface.engine(
            pool_size=8, max_overflow=4, pool_timeout=50, unbroken=patient
        ) as engine:
            tasks = [asyncio.create_task(one(engine, number)) for number in range(1000)]
            await disturb(engine, tasks)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            wrong = [
                r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)
            ]
            assert wrong == []
            assert len(done) >= 600
            found = stats(engine)
            assert found.used == 0
            assert found.size == found.idle <= 8
            pool: Any = engine.sync_engine.pool
            assert pool.checkedout() == 0
            for _ in range(12):
                await aface.ask(engine)

    run(work())


def test_a_loop_ends_although_a_driver_made_an_error_of_its_own_of_the_probers_cancellation() -> (
    None
):
    """aiomysql's connect does so.

    The prober would try again, and ``asyncio.run`` would wait for it for ever.
    """
    calls: list[int] = []

    async def connect() -> Any:
        calls.append(1)
        try:
            await asyncio.sleep(60 if len(calls) > 1 else 0)
        except asyncio.CancelledError:
            pass
        raise ConnectionRefusedError("nobody is there")

    async def main() -> None:
        url = "postgresql+asyncpg://app@127.0.0.1:1/shop?outage_wait=0.2"
        engine = create_async_engine(url, plugins=["unbroken"], async_creator=connect)
        with pytest.raises(unbroken.OutageError):
            await engine.connect()
        await engine.dispose()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len(calls) > 1


def test_a_statement_that_was_only_prepared_keeps_no_lock(postgres: Any) -> None:
    """asyncpg refuses a value after it has prepared its statement. In autocommit, SQLAlchemy sends
    no ROLLBACK behind that.
    """
    face = AsyncFace("asyncpg", postgres)
    postgres.admin("DROP TABLE IF EXISTS only_prepared")
    postgres.admin("CREATE TABLE only_prepared (n INT)")
    postgres.admin("GRANT SELECT ON only_prepared TO PUBLIC")

    async def work() -> None:
        async with face.engine(isolation_level="AUTOCOMMIT") as engine:
            session = await face.ask(engine)
            with pytest.raises(sa.exc.DBAPIError):
                async with engine.connect() as conn:
                    wrong = sa.text("SELECT n FROM only_prepared WHERE n = :n")
                    await conn.execute(wrong, {"n": "no number"})
            held = postgres.admin(
                f"SELECT mode FROM pg_locks WHERE pid = {session} AND locktype = 'relation'"
            )
            assert held == []
            assert await face.ask(engine) == session

    try:
        run(work())
    finally:
        postgres.admin("DROP TABLE only_prepared")
