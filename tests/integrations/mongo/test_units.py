"""Units of work on MongoDB: what only read is run again when its cursor is lost between two
batches; what wrote never is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pymongo
import pytest

import unbroken
import unbroken.flask
import unbroken.mongo
from unbroken.ledger.scope import enter, leave
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Fate
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MongoDB


@pytest.fixture(scope="module")
def server() -> Iterator[MongoDB]:
    with MongoDB() as mongod:
        yield mongod


@pytest.fixture
def items(server: MongoDB) -> Iterator[Any]:
    with unbroken.mongo.MongoClient(server.url(), timeoutMS=10_000, outage_wait=10.0) as client:
        client.shop.item.drop()
        client.shop.item.insert_many([{"number": number} for number in range(10)])
        yield client.shop.item


def numbers(cursor: Any, between: Callable[[], Any]) -> list[int]:
    """What *cursor* finds, and something that happens between its first batch and the next."""
    found = [next(cursor)["number"], next(cursor)["number"]]
    between()
    return found + [each["number"] for each in cursor]


def test_what_only_read_is_run_again_when_its_cursor_is_lost(server: MongoDB, items: Any) -> None:
    calls: list[int] = []

    @unbroken.replayable
    def read() -> list[int]:
        calls.append(items.count_documents({}))
        assert items.distinct("number") == list(range(10))
        items.database.command("ping")
        return numbers(
            items.find(batch_size=2), lambda: server.restart(0.1) if len(calls) == 1 else None
        )

    assert read() == list(range(10))
    assert calls == [10, 10]
    with pytest.raises(pymongo.errors.CursorNotFound):
        # else this would show nothing
        numbers(items.find(batch_size=2), lambda: server.restart(0.1))


@pytest.mark.parametrize(
    "write",
    [
        lambda items: items.insert_one({"number": 10}),
        lambda items: list(items.aggregate([{"$out": "copy"}])),
        lambda items: items.database.command({"insert": "item", "documents": [{"number": 10}]}),
    ],
    ids=["insert", "out", "command"],
)
def test_what_wrote_is_never_run_again(
    write: Callable[[Any], Any], server: MongoDB, items: Any
) -> None:
    calls: list[int] = []

    @unbroken.replayable
    def work() -> None:
        calls.append(1)
        write(items)
        numbers(items.find(batch_size=2), lambda: server.restart(0.1))

    with pytest.raises(pymongo.errors.CursorNotFound) as failed:
        work()
    assert calls == [1]
    assert "and may have stored something" in "".join(failed.value.__notes__)


def test_tasks_are_run_again_as_functions_are(server: MongoDB, items: Any) -> None:
    calls: list[int] = []

    async def main() -> list[int]:
        async with unbroken.mongo.AsyncMongoClient(
            server.url(), timeoutMS=10_000, outage_wait=10.0
        ) as client:

            @unbroken.replayable
            async def read() -> list[int]:
                calls.append(1)
                cursor = client.shop.item.find(batch_size=2)
                found = [(await anext(cursor))["number"], (await anext(cursor))["number"]]
                if len(calls) == 1:
                    await asyncio.to_thread(server.restart, 0.1)
                return found + [each["number"] async for each in cursor]

            return await read()

    assert asyncio.run(main()) == list(range(10))
    assert len(calls) == 2


@pytest.mark.parametrize(("method", "status", "attempts"), [("GET", 200, 2), ("POST", 500, 1)])
def test_a_request_that_only_read_is_run_again(
    method: str, status: int, attempts: int, server: MongoDB, items: Any
) -> None:
    app = flask.Flask("shop")
    unbroken.flask.Unbroken(app)
    calls: list[str] = []

    def view() -> dict[str, list[int]]:
        calls.append(method)
        if method == "POST":
            items.insert_one({"number": 10})
        return {
            "items": numbers(
                items.find(batch_size=2), lambda: server.restart(0.1) if len(calls) == 1 else None
            )
        }

    app.add_url_rule("/items", view_func=view, methods=["GET", "POST"])
    answer = app.test_client().open("/items", method=method)
    assert (answer.status_code, len(calls)) == (status, attempts)
    assert status == 500 or answer.json == {"items": list(range(10))}


def _fate(work: Callable[[], Any]) -> tuple[Fate, BaseException | None]:
    """What a unit that watches *work* says of its writes, and what it raised."""
    unit, raised = Unit(observing=True), None
    token = enter(unit)
    try:
        work()
    except pymongo.errors.PyMongoError as error:
        raised = error
    finally:
        leave(token)
    return unit.fate(), raised


def test_a_write_that_the_server_acknowledged_is_stored(server: MongoDB, items: Any) -> None:
    for write in (
        lambda: items.insert_one({"number": 11}),
        lambda: items.insert_many([{"number": 12}, {"number": 13}]),
        lambda: items.update_many({"number": 12}, {"$set": {"name": "x"}}),
        lambda: items.delete_one({"number": 13}),
        lambda: items.find_one_and_update({"number": 11}, {"$set": {"name": "y"}}),
        lambda: items.bulk_write([pymongo.UpdateMany({"number": 11}, {"$set": {"name": "z"}})]),
    ):
        assert _fate(write) == (Fate.STORED, None)
    assert _fate(lambda: items.find_one()) == (Fate.NOTHING, None)


def test_what_the_server_does_not_acknowledge_is_unknown(server: MongoDB, items: Any) -> None:
    careless = items.with_options(write_concern=pymongo.WriteConcern(w=0))
    for write in (
        lambda: careless.insert_one({"number": 11}),
        lambda: careless.insert_many([{"number": 12}]),
        lambda: careless.update_many({"number": 12}, {"$set": {"name": "x"}}),
        lambda: careless.delete_many({"number": 13}),
        lambda: items.database.command({"insert": "item", "documents": [{"number": 14}]}),
    ):
        assert _fate(write) == (Fate.UNKNOWN, None)


def test_what_the_server_refuses_is_not_stored(server: MongoDB, items: Any) -> None:
    items.insert_one({"_id": 1})
    fate, raised = _fate(lambda: items.insert_one({"_id": 1}))
    assert isinstance(raised, pymongo.errors.DuplicateKeyError)
    assert fate is Fate.NOTHING
    fate, raised = _fate(lambda: items.insert_many([{"_id": 2}, {"_id": 1}]))
    assert isinstance(raised, pymongo.errors.BulkWriteError)
    assert fate is Fate.STORED


def test_a_write_for_which_no_connection_was_made_is_not_stored_and_one_without_an_answer_is_unknown(  # noqa: E501
    server: MongoDB,
) -> None:
    with FaultProxy((server.host, server.port)) as proxy:
        where = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&retryWrites=false"
        with unbroken.mongo.MongoClient(where, timeoutMS=1000, outage_wait=0.5) as client:
            client.shop.item.insert_one({"number": 20})
            proxy.refuse()
            proxy.rst()
            fate, raised = _fate(lambda: client.shop.item.insert_one({"number": 21}))
            assert raised is not None
            assert fate is not Fate.STORED
            # by now it is known to be away
            fate, raised = _fate(lambda: client.shop.item.insert_one({"number": 22}))
            assert raised is not None
            assert fate is Fate.NOTHING


def test_tasks_hear_what_the_server_said_of_their_writes(server: MongoDB, items: Any) -> None:
    async def main() -> Fate:
        async with unbroken.mongo.AsyncMongoClient(server.url(), timeoutMS=10_000) as client:
            unit = Unit(observing=True)
            token = enter(unit)
            try:
                await client.shop.item.insert_one({"number": 30})
            finally:
                leave(token)
            return unit.fate()

    assert asyncio.run(main()) is Fate.STORED
