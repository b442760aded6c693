"""A drop-in for PyMongo's client: the same names, arguments and behaviour; and what it does
otherwise, on purpose.
"""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import gridfs
import pymongo
import pytest
from bson.codec_options import CodecOptions
from pymongo import monitoring
from pymongo.driver_info import DriverInfo
from pymongo.errors import InvalidOperation, InvalidURI
from pymongo.server_api import ServerApi
from pymongo.server_description import ServerDescription

from unbroken.errors import ConfigurationError
from unbroken.integrations.mongo import client_options, pymongo_internals
from unbroken.mongo import AsyncMongoClient, MongoClient, stats
from unbroken_drill.servers import MongoDB


class Threading(monitoring.ServerListener, monitoring.TopologyListener):
    """A listener for whom PyMongo starts a thread in its constructor."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def opened(self, event: Any) -> None:
        self.heard.append(type(event).__name__)

    description_changed = closed = opened


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_making_one_makes_no_thread_and_no_socket(of_one: MongoDB) -> None:
    plain = pymongo.MongoClient(of_one.url(), event_listeners=[Threading()], connect=False)
    before = threading.active_count(), descriptors()
    client = MongoClient(of_one.url(), event_listeners=[Threading()])
    collection = client.shop["items"].with_options(codec_options=CodecOptions(tz_aware=True))
    assert (collection.full_name, client.options.retry_writes, client.nodes) == (
        "shop.items",
        True,
        frozenset(),
    )
    assert client.topology_description.topology_type_name == "ReplicaSetNoPrimary"
    assert stats(client).opened == 0
    assert repr(client).startswith(f"MongoClient(host=['{of_one.host}:{of_one.port}']")
    assert all(
        now <= then
        for now, then in zip((threading.active_count(), descriptors()), before, strict=True)
    )
    client.close()
    plain.close()


def test_a_server_that_is_lost_as_it_is_chosen_is_not_taken_for_one_that_takes_no_writes(
    of_one: MongoDB, monkeypatch: pytest.MonkeyPatch, closing: ExitStack
) -> None:
    """MongoEngine asks once, and would leave a document without its indexes for good."""
    client = closing.enter_context(MongoClient(of_one.url()))
    client.admin.command("ping")
    lost = SimpleNamespace(description=ServerDescription((of_one.host, of_one.port)))
    answers, select = [lost, lost], MongoClient._select_server
    monkeypatch.setattr(
        MongoClient, "_select_server", lambda *given: answers.pop() if answers else select(*given)
    )
    assert client.is_primary
    assert not answers


def test_it_is_a_client_of_pymongos(of_one: MongoDB, closing: ExitStack) -> None:
    client, other = (closing.enter_context(MongoClient(of_one.url())) for _ in range(2))
    plain = closing.enter_context(pymongo.MongoClient(of_one.url()))
    assert isinstance(client, pymongo.MongoClient)
    for _ in range(2):
        assert client == other == plain == client
        assert len({client, other, plain}) == 1
        assert client.shop.items == plain.shop.items
        client.shop.items.find_one()
    assert client != MongoClient("mongodb://127.0.0.1:1/")
    assert client != 1
    with pytest.raises(AttributeError, match="no attribute '_nothing'"):
        print(client._nothing)
    assert client["_nothing"].name == "_nothing"
    with pytest.raises(TypeError, match="not iterable"):
        iter(client)


def test_a_class_may_say_where_its_clients_lead(of_one: MongoDB) -> None:
    class Here(MongoClient):
        HOST, PORT = of_one.host, of_one.port

    with Here() as client:
        assert client.topology_description is client.topology_description
        client.shop.items.find_one()
        assert client.address == (of_one.host, of_one.port)


@pytest.mark.parametrize("kind", [MongoClient, AsyncMongoClient])
def test_it_is_never_copied_or_pickled(of_one: MongoDB, kind: Any) -> None:
    client = kind(of_one.url())
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="create a client in each process"):
            attempt(client)


def test_what_pymongo_offers_works_through_it(
    of_one: MongoDB, name: str, closing: ExitStack
) -> None:
    client = closing.enter_context(
        MongoClient(of_one.url(), server_api=ServerApi("1"), appname="shop")
    )
    items = client[name].items
    assert (
        items.bulk_write([pymongo.InsertOne({"_id": each}) for each in range(500)]).inserted_count
        == 500
    )
    with client[name].watch() as stream:
        items.update_one({"_id": 1}, {"$set": {"seen": True}})
        assert next(stream)["operationType"] == "update"
    assert len(list(items.find(batch_size=7))) == 500
    assert next(items.aggregate([{"$group": {"_id": None, "sum": {"$sum": "$_id"}}}]))[
        "sum"
    ] == sum(range(500))
    with client.start_session() as session, session.start_transaction():
        items.delete_many({"_id": {"$lt": 100}}, session=session)
    assert (
        client.start_session().with_transaction(
            lambda session: items.count_documents({}, session=session)
        )
        == 400
    )
    bucket = gridfs.GridFSBucket(client[name])
    assert (
        bucket.open_download_stream(bucket.upload_from_stream("file", b"x" * 1000000)).read()
        == b"x" * 1000000
    )
    assert gridfs.GridFS(client[name]).find_one({"filename": "file"}).length == 1000000
    assert (client.is_primary, client.primary, client.address) == (
        True,
        (of_one.host, of_one.port),
        (of_one.host, of_one.port),
    )
    assert client.nodes == {client.primary}
    assert (client.secondaries, client.arbiters, client.is_mongos) == (set(), set(), False)
    assert name in client.list_database_names()
    client.drop_database(name)
    assert client.server_info()["ok"] == 1.0
    assert client.get_default_database().name == "shop"


def test_listeners_are_told_once(of_one: MongoDB, name: str) -> None:
    class Commands(monitoring.CommandListener):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def started(self, event: Any) -> None:
            self.heard.append(event.command_name)

        def succeeded(self, event: Any) -> None: ...

        def failed(self, event: Any) -> None: ...

    commands, topology = Commands(), Threading()
    client = MongoClient(of_one.url(), event_listeners=[commands, topology])
    client[name].items.insert_one({})
    if pymongo.version_tuple >= (4, 14):
        client.append_metadata(DriverInfo("shop", "1.0"))
    client.close()
    assert commands.heard == ["insert", "endSessions"]
    assert topology.heard.count("TopologyOpenedEvent") == 1


def test_after_close_it_says_so(of_one: MongoDB) -> None:
    with MongoClient(of_one.url()) as used:
        used.shop.items.find_one()
    with MongoClient(of_one.url()) as unused:
        pass
    used.close()
    for client in (used, unused):
        with pytest.raises(InvalidOperation, match="after close"):
            client.shop.items.find_one()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"host": "mongodb://"}, InvalidURI),
        ({"host": "mongodb://host:99999/"}, ValueError),
        ({"host": []}, pymongo.errors.ConfigurationError),
        ({"port": "27017"}, TypeError),
        ({"nonsense": 1}, pymongo.errors.ConfigurationError),
        ({"heartbeatFrequencyMS": 10}, pymongo.errors.ConfigurationError),
        ({"outage_wait": -1}, ConfigurationError),
        ({"outage_wait": "1"}, ConfigurationError),
        ({"outage_wait": math.nan}, ConfigurationError),
        ({"outage_wait": True}, ConfigurationError),
        ({"election_wait": -1}, ConfigurationError),
    ],
)
def test_what_cannot_work_is_refused_at_once(given: dict[str, Any], error: type[Exception]) -> None:
    for kind in (MongoClient, AsyncMongoClient):
        with pytest.raises(error):
            kind(**given)


@pytest.mark.parametrize(
    ("host", "given", "expected"),
    [
        (None, {}, (None, 1, 1.0, 10.0)),
        ("mongodb://db/?timeoutMS=5000&HeartbeatFrequencyMS=500", {}, (5.0, 0.5, 1.0, 10.0)),
        (["mongodb://db/?connectTimeoutMS=3000"], {"timeoutMS": None}, (None, 1, 3.0, 10.0)),
        ("db", {"timeoutms": 0, "connectTimeoutMS": 7000}, (None, 1, 7.0, 10.0)),
        ("mongodb://db/?timeoutMS=5000", {"timeoutMS": 6000}, (6.0, 1, 1.0, 10.0)),
        ("mongodb://db/?waitQueueTimeoutMS=300", {"timeoutMS": 100}, (0.1, 1, 1.0, 0.3)),
    ],
)
def test_waits_are_bounded_unless_the_caller_says_otherwise(
    host: Any, given: dict[str, Any], expected: Any
) -> None:
    for kind in (MongoClient, AsyncMongoClient):
        options = kind(host, **given).options
        known = (
            options.timeout or None,
            options.heartbeat_frequency,
            options.pool_options.connect_timeout,
        )
        assert (*known, options.pool_options.wait_queue_timeout) == expected


def test_options_are_found_in_every_spelling_of_a_uri() -> None:
    hosts = ["mongodb://u:p%3Fa@a,b/?A=1&b=2;C=3", "plain:27017", "mongodb+srv://x?d=%2F"]
    assert client_options.given_options(hosts, {"Keyword": 1}) == {"a", "b", "c", "d", "keyword"}
    assert client_options.given_options(None, {}) == set()


_PATCHED_LATER = """
import sys
from unbroken.mongo import MongoClient
client = MongoClient(sys.argv[1])
items = client[sys.argv[2]].items
repr(client), hash(client), client.nodes, client.topology_description
import gevent.monkey
gevent.monkey.patch_all()
import gevent
with gevent.Timeout(20):
    jobs = [gevent.spawn(items.insert_one, {"_id": each}) for each in range(20)]
    gevent.joinall(jobs, raise_error=True)
    print(items.count_documents({}))
    client.close()
"""


def test_one_made_before_gevent_patches_works_after_it(of_one: MongoDB, name: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _PATCHED_LATER, of_one.url(), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("20\n", "")


def test_stats_are_of_our_clients_only() -> None:
    with pytest.raises(ConfigurationError, match="only these have stats"):
        stats(pymongo.MongoClient(connect=False))


def test_a_pymongo_that_is_built_otherwise_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no Other\._init_background"):
        pymongo_internals.check(type("Other", (), {}))
