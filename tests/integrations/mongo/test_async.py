"""AsyncMongoClient: one client for all event loops and processes; cancellations, outages, and
nothing left open.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
import pymongo.monitoring
import pytest
from pymongo.errors import (
    ConnectionFailure,
    InvalidOperation,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from unbroken.errors import NotYoursError, OutageError
from unbroken.mongo import AsyncMongoClient, stats
from unbroken_drill.servers import MongoDB


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Loops that end without a close() leave their transports to be collected, and asyncio says
    so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
        gc.collect()


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], Any], timeout: float = 20.0) -> float:
    began = time.monotonic()
    while time.monotonic() < began + timeout:
        try:
            if await condition():
                return time.monotonic() - began
        except PyMongoError:
            pass
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {timeout} s")


@asynccontextmanager
async def opened(server: MongoDB, **given: Any) -> AsyncIterator[AsyncMongoClient]:
    client = AsyncMongoClient(server.url(), **given)
    try:
        yield client
    finally:
        await client.close()


def test_sessions_are_ended_at_the_close_of_a_client_that_has_not_heard_from_its_server_yet(
    of_one: MongoDB,
) -> None:
    heard: list[str] = []

    class Commands(pymongo.monitoring.CommandListener):
        def started(self, event: Any) -> None:
            heard.append(event.command_name)

        succeeded = failed = lambda *_: None

    async def main() -> None:
        async with opened(of_one, event_listeners=[Commands()]) as client:
            async with client.start_session() as session:
                assert session.session_id
            await client.aconnect()  # the first heartbeat is still to come

    asyncio.run(main())
    assert heard == ["endSessions"]


def test_it_is_a_client_of_pymongos(of_one: MongoDB, name: str) -> None:
    client = AsyncMongoClient(of_one.url())  # where no loop runs
    assert isinstance(client, pymongo.AsyncMongoClient)
    items = client[name].items

    async def main() -> None:
        await items.insert_many([{"_id": each} for each in range(300)])
        assert len([document async for document in items.find(batch_size=7)]) == 300
        async with client.start_session() as session:
            async with await session.start_transaction():
                await items.delete_one({"_id": 0}, session=session)
            assert (
                await session.with_transaction(
                    lambda session: items.count_documents({}, session=session)
                )
                == 299
            )
        async with await client[name].watch() as stream:
            await items.update_one({"_id": 1}, {"$set": {"seen": True}})
            assert (await stream.next())["operationType"] == "update"
        assert await client.is_primary
        assert await client.primary == (of_one.host, of_one.port)
        await client.drop_database(name)
        await client.close()
        with pytest.raises(InvalidOperation, match="after close"):
            await items.find_one()

    asyncio.run(main())


def test_one_loop_after_the_other(of_one: MongoDB, name: str) -> None:
    client = AsyncMongoClient(of_one.url())
    items = client[name].items
    before = descriptors()

    async def use() -> int:
        await asyncio.gather(*(items.insert_one({}) for _ in range(20)))
        return await items.count_documents({})

    assert [asyncio.run(use()) for _ in range(5)] == [20, 40, 60, 80, 100]
    asyncio.run(client.close())
    assert descriptors() <= before


def test_loops_in_several_threads_at_once(of_one: MongoDB, name: str) -> None:
    client = AsyncMongoClient(of_one.url())
    items = client[name].items
    errors: list[BaseException] = []

    async def use(who: int) -> None:
        for number in range(100):
            await items.insert_one({"_id": who * 1000 + number})
            assert await items.find_one({"_id": who * 1000 + number})

    def run(who: int) -> None:
        try:
            asyncio.run(use(who))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []

    async def end() -> int:
        try:
            return await items.count_documents({})
        finally:
            await client.close()

    assert asyncio.run(end()) == 400


def test_a_session_of_another_loop_is_refused(of_one: MongoDB, name: str) -> None:
    client = AsyncMongoClient(of_one.url())
    items = client[name].items
    kept: list[Any] = []

    async def begin() -> None:
        kept.append(client.start_session())
        await items.find_one(session=kept[0])

    async def use() -> None:
        with pytest.raises(NotYoursError, match="another event loop"):
            await items.find_one(session=kept[0])
        await items.find_one()
        await client.close()

    asyncio.run(begin())
    asyncio.run(use())


def test_a_child_has_its_own(of_one: MongoDB, name: str, child: Any, fork: Any) -> None:
    client = AsyncMongoClient(of_one.url())
    items = client[name].items
    asyncio.run(items.insert_one({}))  # type: ignore[arg-type]

    async def use() -> int:
        await items.insert_one({})
        return await items.count_documents({})

    assert child(lambda: asyncio.run(use()), fork) == "2"
    assert asyncio.run(use()) == 3
    asyncio.run(client.close())


def test_a_storm_of_cancellations_leaves_nothing_taken(of_one: MongoDB, name: str) -> None:
    async def main() -> None:
        async with opened(of_one, maxPoolSize=5) as client:
            items = client[name].items
            await items.insert_one({"_id": 1})

            async def cancelled(turn: int) -> None:
                task = asyncio.create_task(items.find_one())
                await asyncio.sleep(turn % 17 / 2000)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    pass

            for _ in range(5):
                await asyncio.gather(*(cancelled(turn) for turn in range(100)))
            assert all(await asyncio.gather(*(items.find_one() for _ in range(50))))
            known = stats(client)
            assert (known.used, known.waiting, known.opening) == (0, 0, 0)
            assert known.size <= 5

    asyncio.run(main())


def test_an_outage_is_bounded_and_ends_by_itself(name: str) -> None:
    async def main(server: MongoDB) -> None:
        async with opened(server, outage_wait=0.2) as client:
            items = client[name].items
            await items.insert_one({})
            await asyncio.to_thread(server.stop)

            async def turned_away() -> bool:
                try:
                    await items.find_one()
                except OutageError as error:
                    return (
                        isinstance(error, ServerSelectionTimeoutError)
                        and stats(client).turned_away > 0
                    )
                except ConnectionFailure:
                    pass
                return False

            await until(turned_away)
            began = time.monotonic()
            failed = await asyncio.gather(
                *(items.find_one() for _ in range(200)), return_exceptions=True
            )
            assert {type(error).__name__ for error in failed} == {"OutageError"}
            assert time.monotonic() - began < 2.0
            await asyncio.to_thread(server.start)
            await until(items.find_one)
            assert all(await asyncio.gather(*(items.find_one() for _ in range(50))))
            server.freeze()
            slow = await asyncio.gather(
                *(items.find_one() for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(error, PyMongoError) for error in slow)
            server.thaw()
            await until(items.find_one)
            server.freeze()
            began = time.monotonic()
            await client.close()
            assert time.monotonic() - began < 5
            server.thaw()

    before = descriptors()
    with MongoDB() as server:
        asyncio.run(main(server))
    assert descriptors() <= before
