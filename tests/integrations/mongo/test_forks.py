"""A client made, and used, before a fork: parent and children each have their own, whatever was
kept in variables.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import psutil
import pymongo
import pytest
from pymongo.errors import InvalidOperation

from unbroken.errors import NotYoursError
from unbroken.mongo import MongoClient, stats
from unbroken_drill.servers import MongoDB


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """One test asks for the warning; the others do not care."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def sockets() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def addresses(names: set[str]) -> set[str]:
    """Our ends of the connections that :func:`sockets` found."""
    found = set()
    for each in psutil.Process().net_connections():
        with suppress(OSError):  # closed since
            if os.readlink(f"/proc/self/fd/{each.fd}") in names:
                found.add(f"{each.laddr.ip}:{each.laddr.port}")
    return found


def inserts(collection: Any, who: str, start: float) -> list[str]:
    """Insert a hundred documents from the moment *start* on; those that were acknowledged."""
    done = []
    time.sleep(max(0.0, start - time.monotonic()))
    for each in range(100):
        try:
            collection.insert_one({"_id": f"{who}-{each}"})
        except pymongo.errors.OperationFailure:
            # the plain client's: "txnNumber … is prohibited", where two children are one session to
            # the server
            continue
        done.append(f"{who}-{each}")
    return done


def lost(make: Any, server: MongoDB, name: str, children: Any) -> tuple[int, int]:
    """Of 100 inserts by each of two raw-forked children: how many were acknowledged, and how many
    of these are not stored.
    """
    with make(server.url()) as client:
        collection = client[name].items
        collection.insert_one({"_id": "parent"})
        start = time.monotonic() + 0.5  # both at once
        told = children([lambda who=who: inserts(collection, who, start) for who in ("a", "b")])
        acknowledged = {each for one in told for each in eval(one)}
        stored = {document["_id"] for document in collection.find()}
    return len(acknowledged), len(acknowledged - stored)


def test_no_acknowledged_write_of_two_children_is_lost(
    of_one: MongoDB, name: str, children: Any
) -> None:
    assert lost(MongoClient, of_one, name, children) == (200, 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_twenty_times_nothing_is_lost_where_the_plain_client_loses_half(
    of_one: MongoDB, name: str, children: Any
) -> None:
    plain, ours = (
        [lost(make, of_one, f"{name}{who}{turn}", children) for turn in range(20)]
        for who, make in (("p", pymongo.MongoClient), ("u", MongoClient))
    )
    print(
        f"acknowledged, and lost of these, of 200 inserts, 20 times: PyMongo's client {plain},"
        f" unbroken's {ours}"
    )
    assert ours == [(200, 0)] * 20
    assert sum(gone for _, gone in plain) > 0


def test_what_was_kept_in_variables_is_right_after_the_fork(
    of_one: MongoDB, name: str, child: Any, fork: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    database, collection = client[name], client[name].items
    typed = collection.with_options(write_concern=pymongo.WriteConcern(w=1))
    collection.insert_one({"_id": 1})

    def work() -> list[Any]:
        typed.insert_one({"_id": 2})
        return [
            collection.count_documents({}),
            database.command("ping")["ok"],
            database.items.find_one({"_id": 2})["_id"],
        ]

    assert child(work, fork) == "[2, 1.0, 2]"
    assert collection.count_documents({}) == 2


def test_the_parent_keeps_its_connections_and_its_child_has_none_of_them(
    of_one: MongoDB, name: str, child: Any, fork: Any, closing: ExitStack, until: Any
) -> None:
    before = sockets()
    client = closing.enter_context(MongoClient(of_one.url()))
    client[name].items.find_one()
    until(lambda: len(sockets() - before) == 3)  # two monitors', and one that was used
    mine = sockets() - before

    def sessions() -> set[int]:
        return {session.id for session in of_one.sessions() if session.peer in addresses(mine)}

    until(lambda: len(sessions()) == 3)
    known = sessions()

    def work() -> int:
        client[name].items.find_one()
        left = len(sockets() & mine)
        client.close()
        gc.collect()
        return left

    assert child(work, fork) == "0"
    client[name].items.find_one()
    assert sockets() - before == mine
    assert sessions() == known


def test_locks_that_a_thread_of_the_parent_holds_are_not_taken_in_the_child(
    of_one: MongoDB, name: str, child: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    client[name].items.find_one()
    held, done = threading.Event(), threading.Event()
    locks = [client._topology._lock, client._lock, client._now.gate.lock, client._door()]
    locks += [server.pool.lock for server in client._topology._servers.values()]

    def hold() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    try:
        assert child(lambda: client[name].items.count_documents({})) == "0"
    finally:
        done.set()
        holder.join()


def test_a_cursor_of_the_parent_fails_clearly_in_the_child_and_lives_on_in_the_parent(
    of_one: MongoDB, name: str, child: Any, fork: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    collection = client[name].items
    collection.insert_many([{"_id": each} for each in range(200)])
    cursors: dict[str, Any] = {
        key: collection.find(batch_size=10) for key in ("walked", "dropped", "closed")
    }
    untouched = collection.find()
    for cursor in cursors.values():
        next(cursor)

    def work() -> str:
        with pytest.raises(InvalidOperation, match="started in process") as caught:
            list(cursors["walked"])
        assert isinstance(caught.value, NotYoursError)
        cursors["closed"].close()
        cursors.clear()
        gc.collect()
        collection.find_one()
        client._now.body._process_periodic_tasks()  # what ends the cursors that were dropped
        return str(len(list(untouched)))

    assert child(work, fork) == "200"
    assert [len(list(cursor)) for cursor in cursors.values()] == [199, 199, 199]


def test_a_session_of_the_parent_is_refused_in_the_child(
    of_one: MongoDB, name: str, child: Any, fork: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    collection = client[name].items
    collection.insert_one({"_id": 0})
    used, unused, busy = client.start_session(), client.start_session(), client.start_session()
    collection.find_one(session=used)
    busy.start_transaction()
    collection.insert_one({"_id": 1}, session=busy)
    watched = client[name].watch()

    def work() -> str:
        for attempt in (
            lambda: collection.find_one(session=used),
            lambda: collection.insert_one({"_id": 2}, session=busy),
            busy.commit_transaction,
            watched.next,
        ):
            with pytest.raises(InvalidOperation, match="started in process"):
                attempt()
        used.end_session()
        # the server has not heard of it yet: it is whoever's uses it first
        collection.insert_one({"_id": 3}, session=unused)
        return unused.session_id["id"].hex()

    theirs = child(work, fork)
    collection.find_one(session=unused)
    assert unused.session_id["id"].hex() != theirs
    busy.commit_transaction()
    assert sorted(document["_id"] for document in collection.find(session=used)) == [0, 1, 3]
    watched.close()


def test_a_child_without_fork_hooks_outlives_the_restart_of_its_server(
    name: str, start_children: Any, until: Any, closing: ExitStack
) -> None:
    server = closing.enter_context(MongoDB())
    client = closing.enter_context(MongoClient(server.url()))
    collection = client[name].items
    collection.insert_one({"_id": "parent"})

    def work() -> int:
        collection.insert_one({"_id": "child"})
        until(lambda: fails(collection))
        until(lambda: collection.find_one())
        collection.insert_one({"_id": "child again"})
        return collection.count_documents({})

    told = start_children([work])
    until(lambda: collection.find_one({"_id": "child"}))
    server.stop()
    until(lambda: fails(collection))
    server.start()
    assert told() == ["3"]
    until(lambda: collection.find_one())


def fails(collection: Any) -> bool:
    try:
        collection.find_one()
    except pymongo.errors.ConnectionFailure:
        return True
    return False


def test_grandchildren_have_their_own_too(
    of_one: MongoDB, name: str, child: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    collection = client[name].items
    collection.insert_one({})

    def grandchild() -> int:
        collection.insert_one({})
        return stats(client).pid

    def work() -> list[int]:
        collection.insert_one({})
        return [os.getpid(), stats(client).pid, int(child(grandchild))]

    own, pid, below = eval(child(work))
    assert own == pid != below
    assert stats(client).pid == os.getpid()
    assert collection.count_documents({}) == 3


def test_one_warning_says_what_to_do(
    of_one: MongoDB, name: str, child: Any, fork: Any, closing: ExitStack
) -> None:
    made, used = (closing.enter_context(MongoClient(of_one.url())) for _ in range(2))
    used[name].items.find_one()

    def warned(client: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                client[name].items.find_one()
        return [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]

    assert child(lambda: warned(made), fork) == "[]"
    (said,) = eval(child(lambda: warned(used), fork))
    assert f"process {os.getpid()} used it before process" in said
    assert "lazy-apps" in said


_ENDING = """
import atexit, ctypes, os, sys, time, warnings
import pymongo, unbroken.mongo
warnings.simplefilter("ignore")
where, kind, use = sys.argv[1:]
client = {"plain": pymongo.MongoClient, "ours": unbroken.mongo.MongoClient}[kind](where)
client.shop.items.find_one()
time.sleep(0.1)
if ctypes.PyDLL(None).fork() == 0:
    if use == "used":
        client.shop.items.find_one()
        client.close()
    began = time.monotonic()
    atexit._run_exitfuncs()
    print(time.monotonic() - began, flush=True)
    os._exit(0)
os.wait()
os._exit(0)
"""


def test_a_forked_child_does_not_wait_at_its_end_for_threads_that_it_never_had(
    of_one: MongoDB,
) -> None:
    def ending(kind: str, use: str) -> float:
        command = [sys.executable, "-c", _ENDING, of_one.url(), kind, use]
        return float(
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        )

    plain = ending("plain", "unused")  # a second for each of its threads
    assert ending("ours", "unused") < plain / 4
    assert ending("ours", "used") < plain


_MASTER = """
import ctypes, os, sys, threading, time, types, warnings
uwsgi = sys.modules["uwsgi"] = types.SimpleNamespace(worker_id=lambda: 0, mule_id=lambda: 0)  # as it is at import
import psutil
from unbroken.mongo import MongoClient
where, name = sys.argv[1:]
client = MongoClient(where, connect=True)
items = client[name].items
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    items.insert_many([{} for _ in range(10)])
    assert len(list(items.find(batch_size=3))) == 10
(said,) = [str(each.message) for each in caught]
assert "uWSGI's master" in said and "lazy-apps" in said, said
assert threading.active_count() == 1, threading.enumerate()
assert not [one for one in psutil.Process().net_connections() if one.raddr]
fork = ctypes.PyDLL(None).fork
warnings.simplefilter("error")
for _ in range(10):
    if (pid := fork()) == 0:
        uwsgi.worker_id = lambda: 1
        items.insert_one({})
        assert threading.active_count() > 1
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
items.insert_one({})
uwsgi.worker_id = lambda: 1  # without --master the process that has loaded the app serves itself
items.insert_one({})
assert threading.active_count() > 1
print(items.count_documents({}))
client.close()
"""  # noqa: E501


def test_in_uwsgis_master_it_keeps_no_thread_and_no_connection(of_one: MongoDB, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MASTER, of_one.url(), name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("22\n", "")


def test_children_that_python_forks_from_a_busy_parent_all_work(
    of_one: MongoDB, name: str, child: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    collection = client[name].items
    collection.insert_one({"_id": 1})
    stop = threading.Event()

    def traffic() -> None:
        while not stop.is_set():
            collection.find_one()

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        # Not by a raw fork: it may leave the interpreter's own lock taken, by one of these threads,
        # and nobody can undo that.
        assert [child(lambda: collection.find_one()["_id"], os.fork) for _ in range(10)] == [
            "1"
        ] * 10
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_many_threads_of_a_child_make_one_client(
    of_one: MongoDB, name: str, child: Any, closing: ExitStack
) -> None:
    client = closing.enter_context(MongoClient(of_one.url()))
    client[name].items.insert_one({})

    def work() -> int:
        bodies: set[int] = set()
        start = threading.Barrier(16)

        def use() -> None:
            start.wait()
            client[name].items.find_one()
            bodies.add(id(client._now.body))

        threads = [threading.Thread(target=use) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(bodies)

    assert child(work) == "1"


def test_a_client_closed_before_the_fork_is_closed_after_it(
    of_one: MongoDB, name: str, child: Any
) -> None:
    client = MongoClient(of_one.url())
    client[name].items.find_one()
    client.close()

    def work() -> None:
        with pytest.raises(InvalidOperation, match="after close"):
            client[name].items.find_one()

    child(work)
    work()
