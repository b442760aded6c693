"""A server that stops, crashes, freezes or steps down: waits are bounded, calls fail fast, recovery
needs nobody's help.
"""

from __future__ import annotations

import itertools
import logging
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pymongo
import pytest
from pymongo.errors import (
    AutoReconnect,
    ConnectionFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from unbroken.errors import OutageError
from unbroken.mongo import MongoClient, stats
from unbroken_drill.servers import MongoDB, MongoReplicaSet

#: Far above every bound that is set here, far below what the plain client takes.
SOON = 10.0


@pytest.fixture(scope="module")
def three() -> Iterator[MongoReplicaSet]:
    with MongoReplicaSet(3) as group:
        for server in group.servers:
            # What a frozen server reads when it thaws may begin a transaction whose client has
            # gone: it is in the way of others until the server ends it, by default after a minute.
            server.set(transactionLifetimeLimitSeconds=5)
        yield group


@pytest.fixture
def mended(three: MongoReplicaSet) -> Iterator[MongoReplicaSet]:
    """The set of three, which the test may break."""
    yield three
    for server in three.servers:
        mend(server)
    three.wait_primary(60)


@pytest.fixture
def server(alone: MongoDB) -> Iterator[MongoDB]:
    """The server alone, which the test may break."""
    yield alone
    mend(alone)


def mend(server: MongoDB) -> None:
    if server.is_running:
        server.thaw()
    else:
        server.start()


def timed(work: Callable[[], Any]) -> tuple[float, BaseException | None]:
    began = time.monotonic()
    try:
        work()
    except PyMongoError as error:
        return time.monotonic() - began, error
    return time.monotonic() - began, None


def half_closed() -> list[Any]:
    return [
        one for one in psutil.Process().net_connections() if one.status == psutil.CONN_CLOSE_WAIT
    ]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_calls_fail_fast_and_recover_by_themselves(
    server: MongoDB, name: str, how: str, closing: ExitStack, until: Any
) -> None:
    client = closing.enter_context(MongoClient(server.url(), outage_wait=0.2))
    items = client[name].get_collection("items", write_concern=pymongo.WriteConcern(j=True))
    items.insert_one({})
    getattr(server, how)()
    first = [timed(items.find_one) for _ in range(2)]  # these may wait
    assert all(took < SOON and isinstance(error, ConnectionFailure) for took, error in first)
    until(lambda: stats(client).away_for > 0.2 and "refused" in stats(client).away_because)
    later = [timed(items.find_one) for _ in range(50)]
    for _, error in later:
        assert isinstance(error, OutageError)
        assert isinstance(error, ServerSelectionTimeoutError)
        assert error.retry_after == 1.0
        assert error.timeout
    assert statistics.median(took for took, _ in later) < 0.1
    said = str(later[-1][1])
    assert said.startswith(f"no MongoDB server at {server.host}:{server.port} has answered for ")
    assert "refused" in said
    until(lambda: not half_closed(), timeout=1.0)
    server.start()
    back = until(lambda: items.find_one() is not None)
    assert back < 3 * client.options.heartbeat_frequency
    assert all(timed(items.find_one)[1] is None for _ in range(100))
    known = stats(client)
    assert (known.outages, known.away_for) == (1, 0.0)
    assert known.turned_away >= 50
    assert sum(known.closed.values()) >= 1
    assert not half_closed()


def test_a_frozen_server_is_found_out_and_waits_are_bounded(
    server: MongoDB, name: str, closing: ExitStack, until: Any
) -> None:
    client = closing.enter_context(MongoClient(server.url(), outage_wait=0))
    items = client[name].items
    items.insert_one({})
    server.freeze()
    waits = []
    until(lambda: waits.append(timed(items.find_one)) or isinstance(waits[-1][1], OutageError))  # type: ignore[func-returns-value]
    assert len(waits) <= 4
    assert max(took for took, _ in waits) < SOON
    assert timed(items.find_one)[0] < 0.1
    server.thaw()
    until(lambda: items.find_one() is not None)


def test_close_does_not_wait_for_a_server_that_does_not_answer(server: MongoDB, name: str) -> None:
    def used() -> MongoClient:
        client = MongoClient(server.url())
        client[name].items.insert_one({})
        return client

    well, frozen, stopped, unseen = used(), used(), used(), used()
    assert timed(well.close)[0] < SOON
    server.freeze()
    assert timed(frozen.close)[0] < SOON / 2
    server.thaw()
    server.stop()
    assert timed(stopped.close)[0] < SOON / 2
    timed(unseen[name].items.find_one)
    assert timed(unseen.close)[0] < SOON / 2


def test_an_outage_is_logged_once_with_its_length(
    server: MongoDB, name: str, closing: ExitStack, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = closing.enter_context(MongoClient(server.url(), outage_wait=0))
    client[name].items.insert_one({})
    with caplog.at_level(logging.WARNING, "unbroken"):
        server.stop()
        until(lambda: stats(client).away_for)
        server.start()
        until(lambda: client[name].items.find_one())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("unbroken")]
    assert len(said) == 2
    assert said[0].startswith(f"{server.host}:{server.port}: no server answers: ")
    assert "takes writes again after" in said[1]


def test_who_wants_to_wait_waits_for_as_long_as_he_said(
    server: MongoDB, name: str, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(server.url(), outage_wait=math.inf, timeoutMS=60000))
    client[name].items.insert_one({})
    server.stop()
    found: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: found.append(client[name].items.find_one()))
        for _ in range(5)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(1.5)  # longer than the default waits
    server.start()
    for thread in waiting:
        thread.join(20)
    assert len(found) == 5
    assert None not in found


def test_nobody_there_from_the_start(closing: ExitStack) -> None:
    client = closing.enter_context(
        MongoClient("mongodb://127.0.0.1:1/", outage_wait=0.1, timeoutMS=500)
    )
    took, error = timed(client.shop.items.find_one)
    assert isinstance(error, OutageError)
    assert "refused" in str(error)
    assert timed(client.shop.items.find_one)[0] < took / 2
    # PyMongo's own, with the whole topology in it
    assert isinstance(error.__cause__, ServerSelectionTimeoutError)


@pytest.mark.parametrize("how", ["step down", "crash"])
def test_an_election_is_ridden_through_by_who_waits(
    mended: MongoReplicaSet, name: str, how: str, closing: ExitStack, until: Any
) -> None:
    client = closing.enter_context(MongoClient(mended.url(), outage_wait=30, timeoutMS=30000))
    items = client[name].get_collection("items", write_concern=pymongo.WriteConcern("majority"))
    items.insert_one({"_id": "first"})
    failed: list[tuple[int, BaseException]] = []
    done: list[int] = []
    stop = threading.Event()

    def traffic(who: int) -> None:
        for number in itertools.count(who * 1000000):
            if stop.is_set():
                return
            try:
                items.insert_one({"_id": number})
                done.append(number)
            except PyMongoError as error:
                failed.append((number, error))

    threads = [threading.Thread(target=traffic, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    if how == "crash":
        primary = mended.wait_primary()
        primary.kill()
        mended.wait_primary(but=primary)
    else:
        mended.step_down()
    enough = len(done) + 30
    until(lambda: len(done) > enough)
    stop.set()
    for thread in threads:
        thread.join()
    stored = {document["_id"] for document in items.find({"_id": {"$ne": "first"}})}
    assert stored >= set(done)
    assert stored - set(done) <= {number for number, _ in failed}
    # PyMongo does not try a write again when the server that it has chosen is found to be none in
    # the very next moment.
    assert len(failed) <= 1, failed


def test_without_a_primary_writes_fail_fast_and_secondaries_are_read(
    mended: MongoReplicaSet, name: str, closing: ExitStack, until: Any
) -> None:
    client = closing.enter_context(MongoClient(mended.url(), outage_wait=0.2, timeoutMS=5000))
    items = client[name].get_collection("items", write_concern=pymongo.WriteConcern(3))
    nearby = client[name].get_collection(
        "items", read_preference=pymongo.ReadPreference.SECONDARY_PREFERRED
    )
    items.insert_one({"_id": 1})
    primary = mended.wait_primary()
    others = [server for server in mended.servers if server is not primary]
    primary.kill()
    others[0].kill()
    until(lambda: "has taken writes" in str(timed(lambda: items.insert_one({}))[1]))
    took, error = timed(items.find_one)
    assert isinstance(error, OutageError)
    assert str(error).startswith("no MongoDB server at ")
    assert "has taken writes for" in str(error)
    assert took < 0.1
    assert nearby.find_one({"_id": 1})
    primary.start()
    others[0].start()
    mended.wait_primary(60)
    until(lambda: items.insert_one({}), 60)


def test_a_transaction_fails_soon_in_an_outage_and_works_after_it(
    mended: MongoReplicaSet, name: str, closing: ExitStack, until: Any
) -> None:
    client = closing.enter_context(MongoClient(mended.url(), outage_wait=0.2, timeoutMS=5000))
    items = client[name].items
    items.insert_one({"_id": 0})

    def move(session: Any) -> None:
        items.insert_one({"_id": 1}, session=session)
        items.update_one({"_id": 0}, {"$inc": {"seen": 1}}, session=session)

    def all_of_it() -> None:
        with client.start_session() as session:
            session.with_transaction(move)

    for server in mended.servers:
        server.freeze()
    took, error = timed(all_of_it)
    assert isinstance(error, ConnectionFailure)
    assert took < 3 * SOON  # PyMongo's own would try for 120 s
    for server in mended.servers:
        server.thaw()
    mended.wait_primary(60)
    until(lambda: items.find_one({"_id": 1}) or all_of_it(), 60)  # type: ignore[func-returns-value]
    assert items.find_one({"_id": 0})["seen"] == 1


def test_an_error_after_a_write_that_may_have_arrived_is_never_the_gates(
    server: MongoDB, name: str, closing: ExitStack
) -> None:
    """The gate's error says that nothing was sent; PyMongo tells of the first attempt where there
    was one.
    """
    client = closing.enter_context(MongoClient(server.url(), outage_wait=0, timeoutMS=1000))
    items = client[name].items
    items.insert_one({})
    server.command(
        {
            "configureFailPoint": "failCommand",
            "mode": {"times": 1},
            "data": {"failCommands": ["insert"], "closeConnection": True},
        }
    )
    with pytest.raises(AutoReconnect) as caught:
        items.insert_one({})
    assert not isinstance(caught.value, OutageError)


def test_the_gate_lets_pass_what_it_knows_nothing_of(
    server: MongoDB, name: str, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(server.url(), directConnection=True))
    client[name].items.insert_one({})
    assert (
        client[name]
        .get_collection("items", read_preference=pymongo.ReadPreference.SECONDARY)
        .find_one()
    )
    with suppress(PyMongoError):
        client[name].get_collection(
            "items", read_preference=pymongo.ReadPreference.NEAREST
        ).find_one()
    assert stats(client).turned_away == 0
