"""peewee for asyncio: playhouse.pwasyncio's databases on an AsyncPool."""

from __future__ import annotations

import asyncio
import random
from itertools import count
from typing import Any

import peewee
import pytest

import unbroken
import unbroken.peewee
from unbroken.errors import ConnectionLostError, PoolTimeoutError


@pytest.fixture
def shop(async_shop: Any) -> Any:
    return async_shop


@pytest.fixture
def own_shop(own_async_shop: Any) -> Any:
    return own_async_shop


def test_rows_are_created_read_changed_and_deleted(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        lamp = await task.acreate(name="lamp")
        assert (await task.aget(task.name == "lamp")).id == lamp.id
        lamp.name = "100% 'lamp'"
        assert await lamp.asave() == 1
        assert await db.count(task.select()) == 4
        assert [
            t.name for t in await db.list(task.select().where(task.id <= 3).order_by(task.id))
        ] == ["task 0", "task 1", "task 2"]
        assert [
            t.name async for t in db.iterate(task.select().where(task.id > 3), buffer_size=1)
        ] == ["100% 'lamp'"]
        assert await lamp.adelete_instance() == 1
        with pytest.raises(peewee.IntegrityError):
            await task.acreate(name="task 0")
        assert await task.aget_or_none(task.name == "lamp") is None
        assert db.stats().opened == 1

    shop.run(scenario)


def test_a_transaction_commits_whole_or_not_at_all(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        async with db.atomic():
            await task.acreate(name="kept")
            with pytest.raises(ValueError, match="inner"):
                async with db.atomic():
                    await task.acreate(name="inner")
                    raise ValueError("inner")
        with pytest.raises(ValueError, match="outer"):
            async with db.atomic():
                await task.acreate(name="outer")
                raise ValueError("outer")
        assert db.is_closed()
        assert shop.names(task) == ["kept", "task 0", "task 1", "task 2"]

    shop.run(scenario)


def test_a_transaction_left_open_by_a_task_is_rolled_back(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        async def leave() -> None:
            await db.atomic().__aenter__()
            await task.acreate(name="left")

        await asyncio.create_task(leave())
        await shop.until(lambda: db.stats().used == 0)
        assert await db.count(task.select()) == 3
        assert db.stats().opened == 1
        assert shop.names(task) == ["task 0", "task 1", "task 2"]

    shop.run(scenario, max_size=1)


def test_sessions_killed_while_idle_are_not_noticed(own_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        for _ in range(3):  # held by this task, and then also idle in the pool
            assert await db.count(task.select()) == 3
            await asyncio.gather(*(task.aget(task.name == f"task {i}") for i in range(3)))
            own_shop.server.kill_sessions()
            async with db.atomic():
                assert await db.count(task.select()) == 3
            own_shop.server.kill_sessions()
            assert await db.scalar(task.select(peewee.fn.COUNT(task.id))) == 3
        async with asyncio.TaskGroup() as group:
            for i in range(3):
                group.create_task(task.aget(task.name == f"task {i}"))

    own_shop.run(scenario)


def test_a_restart_is_not_noticed_by_whoever_takes_a_connection(own_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        assert await db.count(task.select()) == 3
        await asyncio.to_thread(own_shop.server.restart)
        assert (
            len(await asyncio.gather(*(task.aget(task.name == f"task {i}") for i in range(3)))) == 3
        )
        restart = asyncio.create_task(asyncio.to_thread(own_shop.server.restart, 0.3))
        await own_shop.until(lambda: not own_shop.server.is_running)
        assert await db.count(task.select()) == 3
        await restart

    own_shop.run(scenario, outage_wait=20.0, acquire_timeout=20.0)


def test_a_transaction_whose_connection_ends_fails_and_goes_on_nowhere_else(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        with pytest.raises(
            peewee.OperationalError, match="the open transaction is not stored"
        ) as caught:
            async with db.atomic():
                await task.acreate(name="first")
                shop.server.kill_sessions()
                await shop.until(lambda: db._state.conn.stale())
                await task.acreate(name="second")
        assert isinstance(caught.value, ConnectionLostError)
        assert shop.names(task) == ["task 0", "task 1", "task 2"]
        with pytest.raises(ConnectionLostError, match="before the pool sent COMMIT"):
            async with db.atomic():
                await task.acreate(name="third")
                shop.server.kill_sessions()
                await shop.until(lambda: db._state.conn.stale())
        assert db.transaction_depth() == 0
        assert await db.count(task.select()) == 3

    shop.run(scenario)


def test_a_transaction_begun_by_hand_is_not_gone_on_with_elsewhere(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        await db.aexecute_sql("BEGIN")
        await task.acreate(name="first")
        shop.server.kill_sessions()
        for _ in range(2):  # until it is rolled back
            with pytest.raises(peewee.OperationalError):
                await task.acreate(name="second")
        await db.run(db.rollback)
        assert await db.count(task.select()) == 3
        assert [t.name async for t in db.iterate(task.select().where(task.id == 1))] == ["task 0"]

    shop.run(scenario)


def test_a_unit_of_work_is_run_again_also_on_a_connection_that_is_older(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        attempts = count()

        @unbroken.replayable
        async def add() -> None:
            number = next(attempts)
            async with db.atomic():
                await task.acreate(name="once")
                if number == 0:
                    shop.server.kill_sessions()
                await task.acreate(name="twice")

        @unbroken.replayable
        async def careless() -> None:
            await task.acreate(name=f"careless {next(attempts)}")
            shop.server.kill_sessions()
            async with db.atomic():
                await shop.until(lambda: db._state.conn is None or not db._state.conn.stale())
                shop.server.kill_sessions()
                await task.acreate(name="never")

        assert await db.count(task.select()) == 3
        await add()
        assert next(attempts) == 2
        with pytest.raises(peewee.PeeweeException):
            await careless()  # something was committed: not again
        assert shop.names(task) == ["careless 3", "once", "task 0", "task 1", "task 2", "twice"]

    shop.run(scenario)


def test_a_hundred_tasks_share_five_sessions(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        most = 0

        async def look(i: int) -> int:
            nonlocal most
            async with db:
                name = (await task.aget(task.name == f"task {i % 3}")).name
                most = max(most, db.stats().used)
                await task.acreate(name=f"new {i}")
            return int(name[-1])

        before = len(shop.server.sessions()) - db.stats().idle
        tasks = [asyncio.create_task(look(i)) for i in range(100)]
        seen = 0
        while not all(t.done() for t in tasks):
            seen = max(seen, len(shop.server.sessions()) - before)
            await asyncio.sleep(0.01)
        assert [t.result() for t in tasks] == [i % 3 for i in range(100)]
        assert most == 5
        assert 1 <= seen <= 5
        assert db.stats().opened <= 5 + 1
        assert await db.count(task.select()) == 103

    shop.run(scenario, max_connections=5)


def test_cancelled_tasks_leave_nothing_lent(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        sleep = "SELECT SLEEP(0.02)" if shop.is_mysql else "SELECT pg_sleep(0.02)"
        chance = random.Random(7)

        async def work(i: int) -> None:
            await db.aexecute_sql(sleep)
            async with db.atomic():
                await task.acreate(name=f"whole {i}")
                await db.aexecute_sql(sleep)
                await task.acreate(name=f"also whole {i}")

        tasks = [asyncio.create_task(work(i)) for i in range(40)]
        for each in tasks:
            asyncio.get_running_loop().call_later(chance.random() * 0.3, each.cancel)
        await asyncio.wait(tasks)
        assert any(t.cancelled() for t in tasks)
        assert not [t.exception() for t in tasks if not t.cancelled() and t.exception()]
        await shop.until(lambda: db.stats().used == 0)
        names = shop.names(task)
        for i in range(40):
            assert (f"whole {i}" in names) == (f"also whole {i}" in names)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await db.aexecute_sql(sleep)
        # the same task goes on, on another connection
        assert await db.count(task.select()) == len(names)

    shop.run(scenario, pool_size=4)


def test_a_full_pool_and_a_closing_one_end_in_time(shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        released = asyncio.Event()

        async def hold() -> None:
            async with db:
                await released.wait()

        holder = asyncio.create_task(hold())
        await shop.until(lambda: db.stats().used == 1)
        with pytest.raises(peewee.OperationalError) as caught:
            await db.count(task.select())
        assert isinstance(caught.value, PoolTimeoutError)
        async with asyncio.timeout(10):
            await db.close_pool()  # does not wait for ever for the holder
        assert await db.count(task.select()) == 3  # a new pool
        released.set()
        await holder

    shop.run(scenario, pool_size=1, acquire_timeout=0.2)


def test_settings_are_taken_from_init_too(shop: Any) -> None:
    db = shop.kind(None, pool_size=3)
    s = shop.server
    db.init(
        s.database,
        host=s.host,
        port=s.port,
        user=s.user,
        password=s.password,
        acquire_timeout=None,
        max_age=60,
    )
    assert (db.pool.settings.max_size, db.pool.settings.max_age) == (3, 60)
    for _ in range(2):  # each loop has connections of its own

        async def ask() -> Any:
            async with db:
                return (await db.aexecute_sql("SELECT 1")).fetchone()[0]

        assert asyncio.run(ask()) == 1
    with pytest.raises(unbroken.ConfigurationError, match="max_size"):
        shop.database(max_size=0)
