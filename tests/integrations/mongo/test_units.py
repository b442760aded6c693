"""Units of work on MongoDB: what only read is run again when its cursor is lost between two batches; what wrote never is."""

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
        return numbers(items.find(batch_size=2), lambda: server.restart(0.1) if len(calls) == 1 else None)

    assert read() == list(range(10))
    assert calls == [10, 10]
    with pytest.raises(pymongo.errors.CursorNotFound):
        numbers(items.find(batch_size=2), lambda: server.restart(0.1))  # else this would show nothing


@pytest.mark.parametrize(
    "write",
    [
        lambda items: items.insert_one({"number": 10}),
        lambda items: list(items.aggregate([{"$out": "copy"}])),
        lambda items: items.database.command({"insert": "item", "documents": [{"number": 10}]}),
    ],
    ids=["insert", "out", "command"],
)
def test_what_wrote_is_never_run_again(write: Callable[[Any], Any], server: MongoDB, items: Any) -> None:
    calls: list[int] = []

    @unbroken.replayable
    def work() -> None:
        calls.append(1)
        write(items)
        numbers(items.find(batch_size=2), lambda: server.restart(0.1))

    with pytest.raises(pymongo.errors.CursorNotFound) as failed:
        work()
    assert calls == [1]
    assert "which may have stored something" in "".join(failed.value.__notes__)


def test_tasks_are_run_again_as_functions_are(server: MongoDB, items: Any) -> None:
    calls: list[int] = []

    async def main() -> list[int]:
        async with unbroken.mongo.AsyncMongoClient(server.url(), timeoutMS=10_000, outage_wait=10.0) as client:

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
def test_a_request_that_only_read_is_run_again(method: str, status: int, attempts: int, server: MongoDB, items: Any) -> None:
    app = flask.Flask("shop")
    unbroken.flask.Unbroken(app)
    calls: list[str] = []

    def view() -> dict[str, list[int]]:
        calls.append(method)
        if method == "POST":
            items.insert_one({"number": 10})
        return {"items": numbers(items.find(batch_size=2), lambda: server.restart(0.1) if len(calls) == 1 else None)}

    app.add_url_rule("/items", view_func=view, methods=["GET", "POST"])
    answer = app.test_client().open("/items", method=method)
    assert (answer.status_code, len(calls)) == (status, attempts)
    assert status == 500 or answer.json == {"items": list(range(10))}
