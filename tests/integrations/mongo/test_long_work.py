"""Work that takes long is not an outage: no default ends what PyMongo's own client sees through. A
server that does not answer ends each round trip all the same.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import bson
import gridfs
import pymongo
import pytest
from gridfs.asynchronous import AsyncGridFSBucket
from pymongo.errors import ExecutionTimeout, NetworkTimeout, PyMongoError

from unbroken.errors import OutageError, WriteUnknownError
from unbroken_drill.servers import MongoDB

from .kinds import both, got, run

#: Longer than a frozen server is waited for.
LONG = 3.0
#: A round trip to a frozen server takes so long at most.
NOTICED = 2.5


@contextmanager
def slow(server: MongoDB, *commands: str, seconds: float) -> Iterator[None]:
    """Each of these *commands* takes so many *seconds*, on a server that is well."""
    data = {"failCommands": list(commands), "blockConnection": True}
    fail = {"configureFailPoint": "failCommand", "mode": "alwaysOn"}
    server.command({**fail, "data": {**data, "blockTimeMS": int(seconds * 1000)}})
    try:
        yield
    finally:
        server.command({**fail, "mode": "off"})


def later(seconds: float, work: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


def insert(server: MongoDB, name: str) -> None:
    with pymongo.MongoClient(server.url()) as plain:
        plain[name].items.insert_one({"news": True})


@both
@pytest.mark.parametrize("await_ms", [None, 5000])
def test_a_change_stream_waits_for_news_as_long_as_it_takes(
    of_one: MongoDB, name: str, kind: str, await_ms: int | None
) -> None:
    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        stream = await got(client[name].items.watch(max_await_time_ms=await_ms))
        began = time.monotonic()
        timer = later(LONG, lambda: insert(of_one, name))
        found = await got(stream.next())
        assert found["fullDocument"]["news"]
        assert time.monotonic() - began >= LONG
        timer.join()
        await got(stream.close())

    run(work, kind, of_one.url())


@both
def test_a_change_stream_is_asked_without_waiting_for_ever(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        stream = await got(client[name].items.watch(max_await_time_ms=int(LONG * 1000)))
        began = time.monotonic()
        assert await got(stream.try_next()) is None
        assert time.monotonic() - began >= LONG - 0.1
        assert stream.alive

    run(work, kind, of_one.url())


@both
def test_a_change_stream_goes_on_over_a_restart(closing: Any, name: str, kind: str) -> None:
    server = closing.enter_context(MongoDB(replica_set="one"))

    def restart() -> None:
        server.restart(1.0)
        server.wait_primary()
        insert(server, name)

    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        stream = await got(client[name].items.watch())
        timer = later(0.5, restart)
        assert (await got(stream.next()))["fullDocument"]["news"]
        timer.join()
        await got(stream.close())

    run(work, kind, server.url())


@both
def test_a_tailable_cursor_waits_for_what_is_appended(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        await got(client[name].create_collection("items", capped=True, size=4096))
        await got(client[name].items.insert_one({}))
        cursor = client[name].items.find(cursor_type=pymongo.CursorType.TAILABLE_AWAIT)
        cursor.max_await_time_ms(2 * int(LONG * 1000))
        assert await got(cursor.next())
        timer = later(LONG, lambda: insert(of_one, name))
        assert (await got(cursor.next()))["news"]
        timer.join()
        await got(cursor.close())

    run(work, kind, of_one.url())


@both
def test_lists_of_many_batches_may_take_long_in_all(of_one: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_many([{} for _ in range(8)]))
        with slow(of_one, "getMore", seconds=1.0):
            assert len(await got(items.find(batch_size=2).to_list())) == 8
            found = await got(items.aggregate([{"$match": {}}], batchSize=2))
            assert len(await got(found.to_list())) == 8

    run(work, kind, of_one.url())


@both
def test_a_slow_query_of_a_server_that_is_well_is_waited_for(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({}))
        query = {"$where": f"sleep({int(LONG * 1000)}) || true"}
        with pymongo.timeout(None):
            assert await got(items.find_one(query))
        found = items.find(query).max_time_ms(8000)
        assert len(await got(found.to_list())) == 1
        await got(items.create_index("number"))

    with slow(of_one, "createIndexes", seconds=LONG):
        run(work, kind, of_one.url())


class Trickle(io.RawIOBase):
    """A file whose parts come slowly."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [b"part"] * 4

    def readable(self) -> bool:
        return True

    def read(self, _size: int = -1) -> bytes:
        time.sleep(LONG / 4)
        return self.parts.pop() if self.parts else b""


@both
def test_files_may_take_long(of_one: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        kinds: Any = {"threads": gridfs.GridFSBucket, "asyncio": AsyncGridFSBucket}
        bucket = kinds[kind](client[name], chunk_size_bytes=4)
        number = await got(bucket.upload_from_stream("slow", Trickle()))
        with slow(of_one, "find", "getMore", "delete", seconds=LONG / 2):
            into = io.BytesIO()
            await got(bucket.download_to_stream(number, into))
            assert into.getvalue() == b"part" * 4
            await got(bucket.delete(number))

    run(work, kind, of_one.url())


@both
def test_many_writes_may_take_long_in_all(of_one: MongoDB, name: str, kind: str) -> None:
    def documents() -> Iterator[dict[str, Any]]:
        for number in range(4):
            time.sleep(LONG / 4)
            yield {"_id": number}

    async def work(client: Any) -> None:
        items = client[name].items
        assert len((await got(items.insert_many(documents()))).inserted_ids) == 4
        large = b"x" * 15_000_000
        requests = [pymongo.InsertOne({"large": large}) for _ in range(8)]
        with slow(of_one, "insert", seconds=1.2):  # two commands of 48 MB, and one
            result = await got(items.bulk_write(requests))
        assert result.inserted_count == 8

    run(work, kind, of_one.url())


@both
def test_a_time_of_the_callers_own_wins(of_one: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({}))
        query = {"$where": f"sleep({int(LONG * 1000)}) || true"}
        began = time.monotonic()
        with pymongo.timeout(0.5), pytest.raises(PyMongoError) as caught:
            await got(items.find_one(query))
        assert caught.value.timeout
        with pytest.raises(ExecutionTimeout):
            await got(items.find(query).max_time_ms(300).to_list())
        assert time.monotonic() - began < LONG

    run(work, kind, of_one.url())


@both
def test_a_socket_timeout_of_the_callers_own_wins(of_one: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        began = time.monotonic()
        query = {"$where": f"sleep({int(LONG * 1000)}) || true"}
        with pytest.raises(NetworkTimeout):
            await got(client[name].items.find_one(query))
        assert time.monotonic() - began < LONG

    insert(of_one, name)
    run(work, kind, of_one.url(), socketTimeoutMS=500, retryReads=False)


# -- and a server that does not answer


@pytest.fixture
def frozen(of_one: MongoDB) -> Iterator[Callable[[], None]]:
    """Freezes the server, until the end of the test."""
    yield of_one.freeze
    of_one.thaw()
    of_one.wait_primary()


def lost(kind: str, url: str, begin: Callable[[Any], Any], freeze: Callable[[], None]) -> Any:
    """How a round trip ends that *begin* begins, when the server freezes half a second later; and
    how long after that.
    """
    ended: list[float] = []

    async def work(client: Any) -> BaseException:
        round_trip = await begin(client)
        timer = later(0.5, lambda: (freeze(), ended.append(time.monotonic())))
        with pytest.raises(PyMongoError) as caught:
            await got(round_trip())
        ended.append(time.monotonic())
        timer.join()
        return caught.value

    error = run(work, kind, url, outage_wait=0, election_wait=0)
    return error, ended[1] - ended[0]


@both
def test_a_read_on_a_frozen_server_ends_soon(
    of_one: MongoDB, name: str, kind: str, frozen: Callable[[], None]
) -> None:
    async def begin(client: Any) -> Any:
        await got(client[name].items.insert_one({}))
        return lambda: client[name].items.find_one({"$where": "sleep(1000) || true"})

    error, took = lost(kind, of_one.url(), begin, frozen)
    assert isinstance(error, (NetworkTimeout, OutageError))
    assert took < NOTICED + 0.5  # and the end of the wait for another server


@both
def test_a_write_on_a_frozen_server_ends_soon_and_is_in_doubt(
    of_one: MongoDB, name: str, kind: str, frozen: Callable[[], None]
) -> None:
    async def begin(client: Any) -> Any:
        await got(client[name].items.insert_one({}))
        return lambda: client[name].items.update_one(
            {"$expr": {"$function": {"body": "function() { sleep(1000); return true }",
                                     "args": [], "lang": "js"}}},
            {"$set": {"seen": 1}},
        )  # fmt: skip

    error, took = lost(kind, of_one.url(), begin, frozen)
    assert isinstance(error, WriteUnknownError)
    assert isinstance(error, NetworkTimeout)
    assert "no longer answers heartbeats" in str(error)
    assert took < NOTICED + 0.5


@both
def test_a_stream_on_a_frozen_server_ends_soon_and_goes_on_when_it_is_back(
    of_one: MongoDB, name: str, kind: str, frozen: Callable[[], None]
) -> None:
    streams: list[Any] = []

    async def begin(client: Any) -> Any:
        await got(client[name].items.insert_one({}))
        streams.append(await got(client[name].items.watch(max_await_time_ms=20_000)))
        return streams[0].next

    error, took = lost(kind, of_one.url(), begin, frozen)
    assert isinstance(error, PyMongoError)
    assert took < NOTICED + 0.5
    assert streams[0].alive  # asked again, it goes on where it was


@both
def test_what_a_server_that_hangs_up_leaves_has_no_private_name(
    of_one: MongoDB, name: str, kind: str, frozen: Callable[[], None]
) -> None:
    """PyMongo ends a round trip that it interrupts with an error that is not public."""

    async def begin(client: Any) -> Any:
        await got(client[name].items.insert_one({}))
        return lambda: client.admin.command("ping", comment=bson.ObjectId())

    with slow(of_one, "ping", seconds=2.0):
        error, _ = lost(kind, of_one.url(), begin, frozen)
        of_one.thaw()
    assert not type(error).__name__.startswith("_")
