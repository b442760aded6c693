"""A write whose answer was lost is known by its type; one that was refused, or never sent, is not
one of these.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pymongo
import pytest
from pymongo.errors import AutoReconnect, DuplicateKeyError, PyMongoError

import unbroken
from unbroken_drill.servers import MongoDB

from .kinds import both, got, run


@contextmanager
def failing(server: MongoDB, command: str, times: int, **how: Any) -> Iterator[None]:
    """So many *times* the server ends *command* that way."""
    data = {"failCommands": [command], **(how or {"closeConnection": True})}
    fail = {"configureFailPoint": "failCommand"}
    server.command({**fail, "mode": {"times": times}, "data": data})
    try:
        yield
    finally:
        server.command({**fail, "mode": "off"})


WRITES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "insert_one": ("insert", lambda items: items.insert_one({})),
    "insert_many": ("insert", lambda items: items.insert_many([{}, {}])),
    "update_one": ("update", lambda items: items.update_one({}, {"$set": {"seen": 1}})),
    "update_many": ("update", lambda items: items.update_many({}, {"$set": {"seen": 1}})),
    "delete_one": ("delete", lambda items: items.delete_one({})),
    "bulk_write": ("insert", lambda items: items.bulk_write([pymongo.InsertOne({})])),
    "find_one_and_update": (
        "findAndModify",
        lambda items: items.find_one_and_update({}, {"$set": {"seen": 2}}),
    ),
    "command": (
        "insert",
        lambda items: items.database.command({"insert": items.name, "documents": [{}]}),
    ),
    "out": ("aggregate", lambda items: items.aggregate([{"$out": "copies"}])),
    "create_index": ("createIndexes", lambda items: items.create_index("number")),
}


@both
@pytest.mark.parametrize("write", list(WRITES))
@pytest.mark.parametrize("where", ["alone", "of_one"])
def test_a_write_whose_answer_was_lost_is_in_doubt(
    request: pytest.FixtureRequest, where: str, name: str, kind: str, write: str
) -> None:
    server: MongoDB = request.getfixturevalue(where)
    command, do = WRITES[write]

    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        with failing(server, command, 4), pytest.raises(unbroken.WriteUnknownError) as caught:
            await got(do(client[name].items))
        error = caught.value
        assert isinstance(error, AutoReconnect)  # what PyMongo's callers catch
        assert isinstance(error, unbroken.CommitUnknownError)
        assert isinstance(error, ConnectionError)
        assert error.fate == "unknown"
        assert "may be stored" in str(error)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)

    run(work, kind, server.url())


@both
def test_what_was_refused_or_only_read_is_in_no_doubt(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))
        with pytest.raises(DuplicateKeyError) as refused:
            await got(items.insert_one({"_id": 1}))
        with failing(of_one, "find", 4), pytest.raises(AutoReconnect) as read:
            await got(items.find_one())
        with failing(of_one, "insert", 4, errorCode=10107), pytest.raises(AutoReconnect) as moved:
            await got(items.insert_one({"_id": 2}))
        for caught in (refused, read, moved):
            assert not isinstance(caught.value, unbroken.WriteUnknownError)
        with (
            failing(of_one, "insert", 4, errorCode=11602),  # interrupted, wherever it was
            pytest.raises(unbroken.WriteUnknownError),
        ):
            await got(items.insert_one({"_id": 3}))

    run(work, kind, of_one.url())


@both
def test_a_commit_whose_answer_was_lost_is_in_doubt_and_may_be_asked_again(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))
        session = client.start_session()
        await got(session.start_transaction())
        await got(items.insert_one({"_id": 2}, session=session))
        with failing(of_one, "commitTransaction", 2), pytest.raises(PyMongoError) as caught:
            await got(session.commit_transaction())
        assert isinstance(caught.value, unbroken.WriteUnknownError)
        assert caught.value.has_error_label("UnknownTransactionCommitResult")
        await got(session.commit_transaction())
        assert await got(items.find_one({"_id": 2}))
        await got(session.end_session())

    run(work, kind, of_one.url())


@both
def test_a_write_whose_concern_was_not_met_is_in_doubt(
    of_one: MongoDB, name: str, kind: str
) -> None:
    """It is stored where it was sent, and another primary may roll it back."""

    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({}))
        concern = {"writeConcernError": {"code": 11602, "errmsg": "interrupted"}}
        for write in ("insert_one", "bulk_write", "insert_many"):
            with failing(of_one, "insert", 4, **concern), pytest.raises(PyMongoError) as caught:
                await got(WRITES[write][1](items))
            assert isinstance(caught.value, unbroken.WriteUnknownError), write

    run(work, kind, of_one.url())


@both
def test_a_transaction_whose_time_is_up_while_it_commits_is_in_doubt(
    of_one: MongoDB, name: str, kind: str
) -> None:
    """PyMongo puts an error of another kind in the place of the one that it met."""

    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))

        async def awaited(session: Any) -> None:
            await items.insert_one({"_id": 2}, session=session)

        def plain(session: Any) -> None:
            items.insert_one({"_id": 2}, session=session)

        session = client.start_session()
        with (
            failing(of_one, "commitTransaction", 100_000),
            pymongo.timeout(0.5),
            pytest.raises(PyMongoError) as caught,
        ):
            await got(session.with_transaction(awaited if kind == "asyncio" else plain))
        assert isinstance(caught.value, unbroken.WriteUnknownError)
        assert caught.value.timeout
        await got(session.end_session())

    run(work, kind, of_one.url())


@both
def test_a_commit_that_finds_no_server_was_sent_before_and_is_in_doubt(
    closing: Any, name: str, kind: str
) -> None:
    server = closing.enter_context(MongoDB(replica_set="one"))

    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))
        session = client.start_session()
        await got(session.start_transaction())
        await got(items.insert_one({"_id": 2}, session=session))
        await got(session.commit_transaction())
        await asyncio.to_thread(server.stop)
        with pytest.raises(unbroken.WriteUnknownError):
            await got(session.commit_transaction())
        await got(session.end_session())

    run(work, kind, server.url(), outage_wait=0.5)


@both
def test_a_write_in_a_transaction_is_in_no_doubt(of_one: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))
        session = client.start_session()
        await got(session.start_transaction())
        with failing(of_one, "insert", 1), pytest.raises(AutoReconnect) as caught:
            await got(items.insert_one({"_id": 2}, session=session))
        assert not isinstance(caught.value, unbroken.WriteUnknownError)
        assert caught.value.has_error_label("TransientTransactionError")
        await got(session.abort_transaction())
        await got(session.end_session())
        assert await got(items.find_one({"_id": 2})) is None

    run(work, kind, of_one.url())


@both
def test_a_transaction_is_run_again_where_pymongo_does(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({"_id": 1}))
        attempts: list[int] = []

        async def awaited(session: Any) -> None:
            attempts.append(1)
            await items.insert_one({"_id": 2}, session=session)

        def plain(session: Any) -> None:
            attempts.append(1)
            items.insert_one({"_id": 2}, session=session)

        session = client.start_session()
        with failing(of_one, "insert", 1):
            await got(session.with_transaction(awaited if kind == "asyncio" else plain))
        assert len(attempts) == 2
        attempts.clear()
        await got(items.delete_one({"_id": 2}))
        with failing(of_one, "commitTransaction", 3):  # one more than one commit sends
            await got(session.with_transaction(awaited if kind == "asyncio" else plain))
        assert len(attempts) == 1
        await got(session.end_session())
        assert await got(items.count_documents({"_id": 2})) == 1

    run(work, kind, of_one.url())


@both
def test_a_write_that_was_never_sent_is_in_no_doubt(closing: Any, name: str, kind: str) -> None:
    server = closing.enter_context(MongoDB())

    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        await asyncio.to_thread(server.stop)
        with pytest.raises(unbroken.OutageError) as caught:
            await got(client[name].items.insert_one({}))
        assert not isinstance(caught.value, unbroken.WriteUnknownError)

    run(work, kind, server.url(), outage_wait=0.5)
