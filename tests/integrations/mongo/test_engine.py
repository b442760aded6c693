"""MongoEngine on our client: documents are right after a fork, and no question after a server that
is away takes 30 s.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import mongoengine
import mongomock
import pymongo
import pytest

import unbroken
import unbroken.mongo
from unbroken_drill.servers import MongoDB
from unbroken_drill.servers.ports import free_port

KNOWN = {"uuidRepresentation": "standard"}


class Article(mongoengine.Document):  # type: ignore[misc]
    number = mongoengine.IntField(unique=True)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    yield
    unbroken.mongo.disconnect_all()
    mongoengine.connection._connection_settings.clear()


@pytest.fixture
def nobody() -> str:
    """The address of a server that does not exist."""
    return f"mongodb://127.0.0.1:{free_port('127.0.0.1')}/shop"


def session_of(document: Any) -> int:
    """The server's number of the connection that this process uses."""
    return int(client_of(document).admin.command("hello")["connectionId"])


def client_of(document: Any) -> Any:
    return document._collection.database.client


def test_connect_makes_no_thread_and_gives_our_client(nobody: str) -> None:
    before = set(threading.enumerate())  # some of an earlier test may end meanwhile
    client = unbroken.mongo.connect(host=nobody, **KNOWN)
    assert isinstance(client, unbroken.mongo.MongoClient)
    assert client is mongoengine.get_connection()
    assert mongoengine.get_db().name == "shop"
    assert set(threading.enumerate()) <= before


def test_documents_that_were_touched_before_a_fork_are_right_in_the_child_and_in_the_parent(
    alone: MongoDB, name: str, child: Callable[..., str], fork: Any
) -> None:
    unbroken.mongo.connect(host=alone.url().replace("/" + alone.database, "/" + name), **KNOWN)
    Article(number=1).save()
    kept, queryset = Article._collection, Article.objects(number=1)
    mine = session_of(Article)

    def work() -> Any:
        assert Article._collection is kept
        Article(number=2).save()
        return queryset.count(), Article.objects.count(), session_of(Article) != mine

    assert child(work, fork) == "(1, 2, True)"
    assert session_of(Article) == mine
    assert sorted(item.number for item in Article.objects) == [1, 2]


def test_a_child_that_disconnects_leaves_its_parent_connected(
    alone: MongoDB, name: str, child: Callable[..., str], fork: Any
) -> None:
    unbroken.mongo.connect(host=alone.url().replace("/" + alone.database, "/" + name), **KNOWN)
    Article(number=1).save()
    mine = session_of(Article)

    def work() -> Any:
        Article(number=2).save()
        unbroken.mongo.disconnect()
        return Article._collection

    assert child(work, fork) == "None"
    assert Article.objects.count() == 2
    assert session_of(Article) == mine


@pytest.mark.parametrize("connected", [False, True])
def test_a_document_first_touched_in_an_outage_fails_in_the_bound_and_has_its_indexes_afterwards(
    name: str, connected: bool, until: Callable[..., float]
) -> None:
    with MongoDB() as server:
        unbroken.mongo.connect(
            host=server.url().replace("/" + server.database, "/" + name),
            timeoutMS=500,
            outage_wait=0,
            **KNOWN,
        )
        if connected:
            # then it is a question of moments what the client knows
            mongoengine.get_connection().admin.command("ping")
        server.stop()
        started = time.monotonic()
        for touch in (lambda: Article.objects.count(), lambda: Article(number=1).save()):
            with pytest.raises(pymongo.errors.ConnectionFailure):
                touch()
        assert time.monotonic() - started < 15.0  # PyMongo's wait for a server is 30 s
        server.start()
        until(lambda: Article(number=1).save())
        assert "number_1" in Article._get_collection().index_information()
        with pytest.raises(mongoengine.NotUniqueError):
            Article(number=1).save()


def test_a_client_s_own_questions_after_a_server_that_is_away_are_bounded_too(nobody: str) -> None:
    started = time.monotonic()
    with unbroken.mongo.MongoClient(nobody, timeoutMS=300) as client:
        for question in ("is_primary", "is_mongos", "address"):
            with pytest.raises(unbroken.OutageError):
                getattr(client, question)

    async def ask() -> None:
        async with unbroken.mongo.AsyncMongoClient(nobody, timeoutMS=300) as client:
            with pytest.raises(unbroken.OutageError):
                await client.is_primary

    asyncio.run(ask())
    assert time.monotonic() - started < 15.0  # PyMongo's wait for a server is 30 s each time


def test_disconnect_does_not_wait_for_a_frozen_server_nor_for_one_that_pymongo_s_own_client_has(
    name: str,
) -> None:
    with MongoDB() as server:
        host = server.url().replace("/" + server.database, "/" + name)
        unbroken.mongo.connect(host=host, **KNOWN)
        mongoengine.connect(alias="plain", host=host, appname="plain", **KNOWN)
        Article(number=1).save()
        mongoengine.get_db("plain").item.find_one()
        server.freeze()
        started = time.monotonic()
        unbroken.mongo.disconnect_all()
        assert time.monotonic() - started < 15.0  # PyMongo's own close takes 30 s
        assert Article._collection is None
        server.thaw()


def test_one_client_serves_the_aliases_that_are_registered_alike(alone: MongoDB) -> None:
    unbroken.mongo.register_connection("default", "one", host=f"127.0.0.1:{alone.port}", **KNOWN)
    unbroken.mongo.register_connection("other", "two", host=f"127.0.0.1:{alone.port}", **KNOWN)
    assert mongoengine.get_connection() is mongoengine.get_connection("other")
    unbroken.mongo.disconnect("other")
    assert Article.objects.count() >= 0
    assert mongoengine.get_db().name == "one"


def test_mongomock_s_client_stays_when_it_is_asked_for() -> None:
    unbroken.mongo.connect("shop", mongo_client_class=mongomock.MongoClient, **KNOWN)
    Article(number=3).save()
    assert Article.objects.count() == 1


def test_adopting_replaces_pymongo_s_client_and_detaches_documents(
    alone: MongoDB, name: str
) -> None:
    from unbroken.integrations.mongo import engine

    plain = mongoengine.connect(
        host=alone.url().replace("/" + alone.database, "/" + name), tz_aware=True, **KNOWN
    )
    Article(number=4).save()
    assert engine.plain_aliases() == ["default"]
    ours = engine.adopt("default")
    assert engine.plain_aliases() == []
    assert Article.objects.count() == 1
    assert client_of(Article) is ours
    assert ours.codec_options.tz_aware
    with pytest.raises(pymongo.errors.InvalidOperation):
        plain.admin.command("ping")
