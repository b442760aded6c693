"""peewee for asyncio: who keeps a connection, units of work, strict mode, and what is lost on the
way.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from itertools import count
from typing import Any

import peewee
import pytest

import unbroken.peewee
from unbroken.errors import CommitUnknownError, DeadlineExceeded

THREE = ["task 0", "task 1", "task 2"]


def nap(shop: Any, seconds: float) -> str:
    return f"SELECT SLEEP({seconds})" if shop.is_mysql else f"SELECT pg_sleep({seconds})"


def test_what_a_statement_took_goes_back_when_it_is_read(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        assert [t.name for t in await db.list(task.select().order_by(task.id))] == THREE
        assert db.is_closed()
        async for each in db.iterate(task.select().order_by(task.id)):
            assert not db.is_closed()
            if each.name == "task 1":
                break
        # waits for the generator that was left: the loop closes it
        assert await db.count(task.select()) == 3
        await async_shop.until(lambda: db.stats().used == 0)
        async with db.atomic():
            await task.acreate(name="more")
            assert db.stats().used == 1
        assert db.is_closed()
        await db.aexecute_sql("BEGIN")
        await task.acreate(name="undone")
        assert db.stats().used == 1
        await db.aexecute_sql("ROLLBACK")
        assert db.is_closed()
        async with db:
            await db.count(task.select())
            assert not db.is_closed()
        assert db.stats().used == 0
        assert db.stats().opened == 1
        assert async_shop.names(task) == ["more", *THREE]

    async_shop.run(scenario, pool_size=1)


def test_tasks_that_run_for_ever_leave_the_pool_to_others(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        go = asyncio.Event()

        async def listener() -> str:
            first = (await task.aget(task.name == "task 0")).name
            await go.wait()
            return str(first)

        async with asyncio.TaskGroup() as group:
            listeners = [group.create_task(listener()) for _ in range(20)]
            await async_shop.until(lambda: db.stats().used == 0 and db.stats().waiting == 0)
            assert await db.count(task.select()) == 3
            go.set()
        assert {each.result() for each in listeners} == {"task 0"}

    async_shop.run(scenario, pool_size=2, acquire_timeout=5.0)


def test_a_unit_is_run_again_reads_what_is_lazy_and_gives_its_connection_back(
    async_shop: Any,
) -> None:
    async def scenario(db: Any, task: Any) -> None:
        attempts = count()

        @db.unit(atomic=True)
        async def add(name: str) -> Any:
            await task.acreate(name=name)
            if next(attempts) == 0:
                async_shop.server.kill_sessions()
            await task.acreate(name=name + "!")
            return {"found": [task.select().where(task.name.startswith(name)).order_by(task.id)]}

        @db.unit
        async def rows() -> Any:
            return db.iterate(task.select().order_by(task.id))

        found = await add("once")
        # read: no bridge is needed any more
        assert [each.name for each in found["found"][0]] == ["once", "once!"]
        assert next(attempts) == 2
        assert db.stats().replays == 1
        assert db.is_closed()
        assert [each.name async for each in await rows()] == [*THREE, "once", "once!"]
        assert db.stats().used == 0
        async with db:
            await add("held")
            assert not db.is_closed()  # a unit inside a scope leaves that as it was

        refusing = db.unit(rows.__wrapped__, lazy="refuse")
        with pytest.raises(unbroken.peewee.LazyQueryError, match="async generator"):
            await refusing()

    async_shop.run(scenario, pool_size=1)


def test_a_unit_lets_every_error_through_and_leaves_nothing_open(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        @db.unit
        async def work() -> None:
            await db.atomic().__aenter__()
            await task.acreate(name="never")
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            await work()
        assert db.is_closed()
        assert db.transaction_depth() == 0
        assert db.stats().used == 0
        assert async_shop.names(task) == THREE

    async_shop.run(scenario)


@pytest.mark.parametrize("held", [False, True])
def test_a_units_deadline_ends_it(async_shop: Any, held: bool) -> None:
    async def scenario(db: Any, task: Any) -> None:
        @db.unit(deadline=0.3, atomic=True)
        async def work() -> None:
            await task.acreate(name="never")
            await db.aexecute_sql(nap(async_shop, 20))

        # the deadline is not for a busy machine's connect
        assert await db.count(task.select()) == 3
        if held:
            await db.aconnect()
        with pytest.raises(peewee.OperationalError) as told:
            await work()
        assert isinstance(told.value, DeadlineExceeded)
        async_shop.server.kill_sessions()  # it still sleeps there, with its locks
        assert await db.count(task.select()) == 3
        if held:
            await db.aclose()

    async_shop.run(scenario)


def test_a_unit_is_for_functions_of_its_databases_kind(async_shop: Any, shops: Any) -> None:
    blocking = shops("psycopg").database()

    async def asynchronous() -> None: ...

    def plain() -> None: ...

    db = async_shop.database()
    with pytest.raises(
        unbroken.ConfigurationError, match=r"plain \(.*\) is not an async def, but Async\w+ is"
    ):
        db.unit(plain)
    with pytest.raises(
        unbroken.ConfigurationError,
        match=r"asynchronous \(.*\) is async, but PooledPostgresqlDatabase is blocking",
    ):
        blocking.unit(asynchronous)
    proxy = unbroken.peewee.DatabaseProxy()
    decorated = proxy.unit(asynchronous)
    with pytest.raises(peewee.InterfaceError, match="before its database proxy was initialized"):
        asyncio.run(decorated())
    proxy.initialize(db)
    asyncio.run(decorated())


def test_strict_refuses_what_runs_outside_of_a_scope_and_names_both_places(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        db.strict = True
        async with db:
            query = task.select()
            assert await db.count(query) == 3
        with pytest.raises(
            peewee.InterfaceError,
            match=r"strict mode refused SELECT .* at .*test_async_faults.py:\d+ .*left at",
        ) as told:
            await db.list(query)
        assert isinstance(told.value, unbroken.peewee.LazyQueryError)
        assert told.value.args[0].count("test_async_faults.py") == 3
        with pytest.raises(peewee.InterfaceError, match="strict"):
            async for _ in db.iterate(query):
                pass
        async with db.atomic():
            await task.acreate(name="in a transaction")
        assert await db.unit(lambda_of(db, task))() == 4
        db.strict = False

    def lambda_of(db: Any, task: Any) -> Any:
        async def work() -> Any:
            return await db.count(task.select())

        return work

    async_shop.run(scenario)


def test_a_lost_select_is_run_again_and_a_write_in_autocommit_is_not(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        assert await db.count(task.select()) == 3
        proxy.cut_at("SELECT")
        assert [each.name for each in await db.list(task.select().order_by(task.id))] == THREE
        assert (db.stats().healed, db.stats().replays) == (1, 0)
        proxy.cut_at("INSERT", before=True)
        with pytest.raises(peewee.PeeweeException):
            await task.acreate(name="once")
        proxy.cut_at("SELECT")
        with pytest.raises(peewee.PeeweeException):
            async with db.atomic():
                assert len(await db.list(task.select())) == 3
                proxy.cut_at("SELECT")
                await db.list(task.select())
        assert (db.stats().healed, db.stats().replays) == (2, 0)
        assert async_shop.names(task) == THREE

    with async_shop.proxy() as proxy:
        async_shop.run(scenario)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_without_an_answer_is_unknown(async_shop: Any, arrives: bool) -> None:
    async def scenario(db: Any, task: Any) -> None:
        proxy.cut_at("COMMIT", before=not arrives)
        with pytest.raises(peewee.OperationalError) as told:
            async with db.atomic():
                await task.acreate(name="maybe")
        assert isinstance(told.value, CommitUnknownError)
        assert db.is_closed()
        assert db.transaction_depth() == 0
        await async_shop.until(lambda: ("maybe" in async_shop.names(task)) is arrives)
        assert await db.count(task.select()) == 3 + arrives

    with async_shop.proxy() as proxy:
        async_shop.run(scenario)


@pytest.mark.parametrize("held", [False, True])
def test_a_silent_drop_is_found_out_before_a_statement_is_sent(async_shop: Any, held: bool) -> None:
    async def scenario(db: Any, task: Any) -> None:
        if held:
            await db.aconnect()
        assert await db.count(task.select()) == 3
        proxy.blackhole("drop", on="existing")
        await asyncio.sleep(0.25)  # longer than ping_after
        await task.acreate(name="sent once")
        assert db.stats().closed["silent drop"] == 1
        if held:
            await db.aclose()
        assert async_shop.names(task) == ["sent once", *THREE]

    with async_shop.proxy() as proxy:
        async_shop.run(scenario, ping_after=0.2, ping_timeout=0.3)


def test_a_forked_child_has_connections_of_its_own(async_shop: Any) -> None:
    me = "SELECT CONNECTION_ID()" if async_shop.is_mysql else "SELECT pg_backend_pid()"

    async def who(db: Any) -> int:
        return int((await db.aexecute_sql(me)).fetchone()[0])

    async def in_child(db: Any, task: Any, mine: int) -> bool:
        theirs = await who(db)
        async with db.atomic():
            await task.acreate(name="child")
        fine = theirs != mine and await db.count(task.select()) == 4 and db.stats().used == 0
        await db.close_pool()
        return fine

    async def scenario(db: Any, task: Any) -> None:
        async with db:  # held across the fork
            mine = await who(db)
            with warnings.catch_warnings():
                # Python 3.12: a fork beside threads
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = 0 if asyncio.run(in_child(db, task, mine)) else 2
                finally:
                    os._exit(status)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            assert await who(db) == mine
        assert "child" in async_shop.names(task)

    async_shop.run(scenario)


def test_urls_make_asyncio_databases(async_shop: Any) -> None:
    s = async_shop.server
    scheme = "mysql+aiomysql" if async_shop.is_mysql else "postgresql+asyncpg"
    url = f"{scheme}://{s.user}:{s.password}@{s.host}:{s.port}/{s.database}?max_connections=3&strict=true&max_age=60.5"
    db = unbroken.peewee.connect(url)
    assert type(db) is async_shop.kind
    assert (db.pool.settings.max_size, db.pool.settings.max_age, db.strict) == (3, 60.5, True)

    async def ask() -> Any:
        async with db:
            return (await db.aexecute_sql("SELECT 1")).fetchone()[0]

    assert asyncio.run(ask()) == 1
    with pytest.raises(unbroken.ConfigurationError) as told:
        unbroken.peewee.connect(f"{scheme}://app:secret@127.0.0.1")
    assert "name" in str(told.value)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("before", [True, False])
def test_the_applications_own_error_comes_out_where_its_rollback_is_lost(
    before: bool, async_shop: Any
) -> None:
    async def scenario(db: Any, task: Any) -> None:
        proxy.cut_at("ROLLBACK", before=before)
        with pytest.raises(LookupError, match="mine"):
            async with db.atomic():
                await task.acreate(name="undone")
                raise LookupError("mine")
        assert db.is_closed()
        assert await db.count(task.select()) == 3
        assert db.stats().used == 0

    with async_shop.proxy() as proxy:
        async_shop.run(scenario, pool_size=1)


def test_the_applications_own_error_comes_out_where_its_connection_is_lost(async_shop: Any) -> None:
    async def scenario(db: Any, task: Any) -> None:
        with pytest.raises(LookupError, match="mine"):
            async with db.atomic():
                await task.acreate(name="undone")
                proxy.rst()
                raise LookupError("mine")
        assert await db.count(task.select()) == 3
        assert db.stats().used == 0

    with async_shop.proxy() as proxy:
        async_shop.run(scenario, pool_size=1)
