"""More callers than connections, with a real server: told early where the line is too long, never
where it is not. The rule itself is every pool's (tests/brain/test_line.py).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from wsgiref.util import setup_testing_defaults

import pymongo
import pymongo.asynchronous.pool
import pymongo.synchronous.pool
import pytest
from pymongo import monitoring
from pymongo.errors import ServerSelectionTimeoutError, WaitQueueTimeoutError

import unbroken
import unbroken.wsgi
from unbroken.brain.ranks import Rank
from unbroken.integrations.mongo import pymongo_internals
from unbroken.mongo import MongoClient, stats
from unbroken.pool import callers
from unbroken_drill.servers import MongoDB

from .kinds import CLIENTS, got, run

#: The asyncio client of PyMongo before 4.13, a beta, does one operation after the other.
both = pytest.mark.parametrize(
    "kind", [each for each in CLIENTS if each == "threads" or pymongo.version_tuple >= (4, 13)]
)
#: Seconds of a unit of work, and of one that holds its connection while others come.
UNIT, LONG = 0.05, 0.5
PLACES = 2


class Request:
    """What a web body knows of a request."""

    begun = False


@contextmanager
def slow(server: MongoDB, seconds: float, name: str) -> Iterator[dict[str, Any]]:
    """Each ``find`` of a client with these options takes so many *seconds*."""
    data = {"failCommands": ["find"], "blockConnection": True, "appName": name}
    fail = {"configureFailPoint": "failCommand"}
    more = {**data, "blockTimeMS": int(seconds * 1000)}
    server.command({**fail, "mode": "alwaysOn", "data": more})
    try:
        yield {"appname": name, "maxPoolSize": PLACES}
    finally:
        server.command({**fail, "mode": "off"})


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def calls(threads: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
    """*call*, in this context: on a thread, or as a task where it is to be awaited."""
    if inspect.iscoroutinefunction(call):
        return asyncio.ensure_future(call())
    return asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)


def finding(client: Any, name: str, kind: str) -> Callable[[], Any]:
    """One unit of work of that *kind* of client."""

    async def awaited() -> Any:
        return await client[name].items.find_one()

    def plain() -> Any:
        return client[name].items.find_one()

    return awaited if kind == "asyncio" else plain


async def users(
    call: Callable[[], Any], threads: ThreadPoolExecutor, rate: float, seconds: float
) -> list[tuple[float, float, str]]:
    """Users of web requests who come at *rate* a second: when each came, how long it took, and
    what became of it.
    """
    found: list[tuple[float, float, str]] = []
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(came: float) -> None:
        callers.enter((Rank.NORMAL, Request()))
        try:
            await calls(threads, call)
            how = "served"
        except unbroken.PoolTimeoutError:
            how = "told"
        found.append((came - start, loop.time() - came, how))

    async with asyncio.TaskGroup() as tasks:
        number = 0
        while (now := loop.time()) < start + seconds:
            while number < (now - start) * rate:
                tasks.create_task(one(now))
                number += 1
            await asyncio.sleep(0.002)
    return found


@both
def test_at_three_times_the_load_as_many_as_ever_are_served_in_time(
    alone: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        call, checks = finding(client, name, kind), []
        with ThreadPoolExecutor(120) as threads:
            await asyncio.gather(*(calls(threads, call) for _ in range(PLACES)))
            began = time.monotonic()
            await asyncio.gather(*(calls(threads, call) for _ in range(20)))
            capacity = 20 / (time.monotonic() - began)

            async def check() -> None:
                while True:
                    with unbroken.priority("health"):
                        await calls(threads, call)
                    checks.append(1)

            checking = asyncio.create_task(check())
            found = await users(call, threads, 3 * capacity, 3.0)
            assert not checking.done(), checking.exception()
            checking.cancel()
            shed = stats(client).shed
            after = await users(call, threads, 0.3 * capacity, 1.5)
        in_time = [
            came
            for came, took, how in found
            if how == "served" and took < 1.0 and came + took < 3.0
        ]
        told = [took for _, took, how in found if how == "told"]
        share = (len(in_time) + len(checks)) / 3.0 / capacity
        print(f"{kind}: {share:.2f} of {capacity:.0f}/s, {len(told)} told")
        assert share >= 0.8
        assert shed == len(told) > 0.3 * len(found)
        assert statistics.median(told) < 0.05
        assert [each for each in after if each[0] > 0.75 and each[2] != "served"] == []

    with slow(alone, UNIT, name) as given:
        alone_has_one(alone, name)
        run(work, kind, alone.url(), **given)


def alone_has_one(server: MongoDB, name: str) -> None:
    with pymongo.MongoClient(server.url()) as plain:
        plain[name].items.insert_one({"_id": 1})


def test_nobody_of_a_batch_job_is_told_to_go_and_who_has_no_time_is_told_at_once(
    alone: MongoDB, name: str
) -> None:
    heard: list[Any] = []
    events = [each for each in vars(monitoring.ConnectionPoolListener) if each[:2] != "__"]
    ignoring = {each: lambda self, event: None for each in events}
    hearing = {"connection_check_out_failed": lambda self, event: heard.append(event)}
    listener = type("Listener", (monitoring.ConnectionPoolListener,), {**ignoring, **hearing})()
    with (
        slow(alone, UNIT / 2, name) as given,
        MongoClient(alone.url(), event_listeners=[listener], **given) as client,
    ):
        call = finding(client, name, "threads")
        failed: list[BaseException] = []
        ends = time.monotonic() + 2.0

        def again() -> None:
            try:
                while time.monotonic() < ends:
                    call()
                    time.sleep(0.002)  # else PyMongo gives it the connection that it gave back
            except BaseException as error:
                failed.append(error)

        job = [threading.Thread(target=again) for _ in range(50)]
        for thread in job:
            thread.start()
        time.sleep(1.0)
        closed = stats(client).closed
        began = time.monotonic()
        with pytest.raises(unbroken.PoolTimeoutError) as told, pymongo.timeout(0.1):
            call()
        took = time.monotonic() - began

        @unbroken.replayable(deadline=0.1)
        def in_a_unit() -> None:
            call()

        with pytest.raises(WaitQueueTimeoutError, match="its time would be up"):
            in_a_unit()
        for thread in job:
            thread.join()
        assert failed == []
        assert took < 0.1
        assert isinstance(told.value, WaitQueueTimeoutError)
        assert isinstance(told.value, ServerSelectionTimeoutError)
        assert told.value.code == "UB212"
        assert re.search(r"\d callers? ahead", str(told.value))
        assert 1.0 <= told.value.retry_after <= 5.0
        assert stats(client).shed == len(heard) == 2  # PyMongo tries none of them again
        assert stats(client).closed == closed == {}


async def full(
    client: Any, call: Callable[[], Any], threads: ThreadPoolExecutor, waiting: int
) -> list[Any]:
    """Have all connections in use and so many callers in line."""
    line = [calls(threads, call) for _ in range(PLACES)]
    await until(lambda: stats(client).used == PLACES)
    line += [calls(threads, call) for _ in range(waiting)]
    await until(lambda: stats(client).waiting == waiting)
    return line


@both
def test_a_line_of_the_length_that_was_set_takes_nobody_in_but_health_checks(
    alone: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        call = finding(client, name, kind)
        with ThreadPoolExecutor(9) as threads:
            line = await full(client, call, threads, 1)
            with unbroken.priority("background"), pytest.raises(unbroken.PoolTimeoutError):
                await calls(threads, call)
            with pytest.raises(unbroken.PoolTimeoutError, match="max_waiting=1"):
                await got(client[name].items.insert_one({"_id": "told"}))
            with unbroken.priority("health"):
                line.append(calls(threads, call))
            assert len(await asyncio.gather(*line)) == PLACES + 2
        assert stats(client).shed == 2
        assert await got(client[name].items.count_documents({"_id": "told"})) == 0

    with slow(alone, LONG, name) as given:
        run(work, kind, alone.url(), max_waiting=1, **given)


@both
def test_a_transaction_that_has_begun_is_not_stopped_and_one_that_has_not_is_not_tried_again(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items, call = client[name].items, finding(client, name, kind)
        await got(items.insert_one({"_id": 1}))
        attempts: list[int] = []

        async def awaited(session: Any) -> None:
            attempts.append(1)
            await items.insert_one({"_id": 3}, session=session)

        def plain(session: Any) -> None:
            attempts.append(1)
            items.insert_one({"_id": 3}, session=session)

        with ThreadPoolExecutor(9) as threads:
            begun, other = client.start_session(), client.start_session()
            await got(begun.start_transaction())
            await got(items.insert_one({"_id": 2}, session=begun))
            line = await full(client, call, threads, 0)
            with pytest.raises(unbroken.PoolTimeoutError) as told:
                await got(other.with_transaction(awaited if kind == "asyncio" else plain))
            assert not told.value.has_error_label("TransientTransactionError")  # type: ignore[attr-defined]
            await got(begun.commit_transaction())
            await asyncio.gather(*line)
            for session in (begun, other):
                await got(session.end_session())
        assert attempts == [1]
        assert await got(items.count_documents({})) == 2

    with slow(of_one, LONG, name) as given:
        run(work, kind, of_one.url(), max_waiting=0, **given)


@pytest.mark.parametrize("what", ["insert", "aggregate", "create_index"])
def test_a_web_request_is_answered_503_and_nothing_of_it_is_stored(
    alone: MongoDB, name: str, what: str
) -> None:
    with (
        slow(alone, LONG, name) as given,
        MongoClient(alone.url(), max_waiting=0, **given) as client,
    ):
        items = client[name].items
        does = {
            "insert": lambda: items.insert_one({"_id": 1}),
            "aggregate": lambda: list(items.aggregate([{"$match": {}}])),
            "create_index": lambda: items.create_index("number"),
        }

        def app(environ: Any, start_response: Any) -> list[bytes]:
            does[what]()
            start_response("200 OK", [])
            return [b"ok"]

        answers: list[Any] = []
        environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "HTTP_ACCEPT": "application/json"}
        setup_testing_defaults(environ)

        async def ask() -> bytes:
            with ThreadPoolExecutor(9) as threads:
                line = await full(client, finding(client, name, "threads"), threads, 0)
                body = unbroken.wsgi.Unbroken(app)(environ, lambda *sent: answers.append(sent))
                await asyncio.gather(*line)
                return b"".join(body)

        shown = json.loads(asyncio.run(ask()))
        status, headers = answers[0][:2]
        assert status.startswith("503"), shown
        assert int(dict(headers)["Retry-After"]) >= 1
        assert shown["code"] == "UB212"
        assert "nothing" in shown["fate"]
        assert client.list_database_names().count(name) == 0


def test_who_was_served_once_is_not_sent_away_with_half_of_its_work_done(
    alone: MongoDB, name: str
) -> None:
    with (
        slow(alone, UNIT, name) as given,
        MongoClient(alone.url(), **given) as client,
    ):
        call, ends = finding(client, name, "threads"), time.monotonic() + 2.5
        whole, first, later = [], [], []

        def request() -> None:
            while time.monotonic() < ends:
                told = first
                callers.enter((Rank.NORMAL, Request()))
                try:
                    for _ in range(3):
                        call()
                        told = later
                        time.sleep(0.005)  # else PyMongo gives it the same connection again
                    whole.append(1)
                except unbroken.PoolTimeoutError:
                    told.append(1)
                    time.sleep(0.05)

        threads = [threading.Thread(target=request) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{len(whole)} whole, {len(first)} told, {len(later)} later")
        assert first
        assert len(later) <= len(whole) / 4  # those that had not had to wait
        assert len(whole) >= 10


def test_the_pools_of_this_pymongo_are_known() -> None:
    kinds = (pymongo.synchronous.pool.Pool, pymongo.asynchronous.pool.Pool)
    assert [pymongo_internals.has_known_queue(kind) for kind in kinds] == [True, True]
    assert not pymongo_internals.has_known_queue(dict)
    assert not pymongo_internals.has_known_queue(lambda: None)


def test_nobody_is_told_where_pymongos_pool_is_not_as_it_is_known(
    alone: MongoDB, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(client: Any) -> None:
        with ThreadPoolExecutor(9) as threads:
            line = await full(client, finding(client, name, "threads"), threads, 3)
            await asyncio.gather(*line)
        assert stats(client).shed == 0

    monkeypatch.setattr(pymongo_internals, "QUEUE_NUMBERS", ("requests", "renamed"))
    with slow(alone, UNIT, name) as given:
        run(work, "threads", alone.url(), max_waiting=0, **given)


@pytest.mark.parametrize(
    "given", [{"max_waiting": -1}, {"max_waiting": 1.5}, {"shed_target": 0}, {"shed_target": "1"}]
)
def test_bad_limits_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(unbroken.ConfigurationError, match=next(iter(given))):
        MongoClient("mongodb://h/", **given)
