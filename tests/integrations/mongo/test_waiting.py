"""How long callers wait in an outage: ``outage_wait`` alone says it, and ``election_wait`` where a
set elects.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

import unbroken
from unbroken.mongo import AsyncMongoClient, MongoClient, stats
from unbroken_drill.servers import MongoDB, MongoReplicaSet

from .kinds import CLIENTS, both, got, run

#: What every pool waits by default, and this client too.
WAIT = 5.0
ELECTION = 20.0
#: Beside it, on a busy machine.
SPARE = 1.0


@pytest.fixture
def server(alone: MongoDB) -> Iterator[MongoDB]:
    """The server alone, which the test may break."""
    yield alone
    if alone.is_running:
        alone.thaw()
    else:
        alone.start()


def later(seconds: float, work: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


@both
@pytest.mark.parametrize("given", [{"timeoutMS": 0}, {"socketTimeoutMS": 4000}, {}])
def test_callers_who_always_wait_wait_whatever_else_was_said(
    server: MongoDB, name: str, kind: str, given: dict[str, Any]
) -> None:
    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        await asyncio.to_thread(server.stop)
        timer = later(3.0, server.start)
        assert await got(client[name].items.find_one())
        timer.join()

    run(work, kind, server.url(), outage_wait=math.inf, **given)


@both
def test_a_short_restart_fails_nobody(server: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({}))
        await asyncio.to_thread(server.stop)
        # Until no answer of the old server can arrive: a write that is sent before is in doubt.
        while stats(client).away_for < 0.3:
            await asyncio.sleep(0.01)
        timer = later(0.5, server.start)  # which takes up to three seconds on a busy machine
        await got(items.insert_one({}))
        timer.join()
        await asyncio.to_thread(server.freeze)
        timer = later(3.0, server.thaw)
        assert await got(items.find_one())
        timer.join()

    run(work, kind, server.url())


@both
def test_one_caller_waits_once_and_those_after_it_not_at_all(
    server: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        items = client[name].items
        await got(items.insert_one({}))
        await asyncio.to_thread(server.stop)
        began = time.monotonic()
        took = []
        for _ in range(30):
            start = time.monotonic()
            with pytest.raises(unbroken.OutageError):
                await got(items.find_one())
            took.append(time.monotonic() - start)
        assert WAIT - SPARE < time.monotonic() - began < WAIT + SPARE
        assert sum(each > 0.1 for each in took) <= 1
        server.start()
        back = time.monotonic()
        while True:
            try:
                await got(items.find_one())
                break
            except unbroken.OutageError:
                await asyncio.sleep(0.01)
        assert time.monotonic() - back < 1.0

    run(work, kind, server.url())


@both
def test_a_choice_that_nobody_fits_is_waited_for_once_too(
    of_one: MongoDB, name: str, kind: str
) -> None:
    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        far = client[name].get_collection("items", read_preference=pymongo.ReadPreference.SECONDARY)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(unbroken.OutageError, match="no server matches Secondary"):
                await got(far.find_one())
        assert time.monotonic() - began < 1.0 + SPARE
        assert await got(client[name].items.find_one())

    run(work, kind, of_one.url(), outage_wait=1.0)


@both
def test_a_selection_timeout_of_the_callers_own_wins(server: MongoDB, name: str, kind: str) -> None:
    async def work(client: Any) -> None:
        await got(client[name].items.insert_one({}))
        await asyncio.to_thread(server.stop)
        began = time.monotonic()
        with pytest.raises(unbroken.OutageError):
            await got(client[name].items.find_one())
        with pymongo.timeout(0.3), pytest.raises(unbroken.OutageError):
            await got(client[name].items.find_one())
        assert time.monotonic() - began < WAIT - SPARE

    run(work, kind, server.url(), serverSelectionTimeoutMS=700)


# -- a process that stood still


SCRIPT = """
import asyncio, inspect, sys
import unbroken, unbroken.mongo

async def main():
    client = getattr(unbroken.mongo, sys.argv[1])(sys.argv[2], outage_wait=1.0)
    while True:
        if not await asyncio.to_thread(sys.stdin.readline):
            return
        try:
            found = client.shop.items.find_one()
            if inspect.isawaitable(found):
                await found
            print("ok", flush=True)
        except unbroken.OutageError as error:
            print(error, flush=True)

asyncio.run(main())
"""


@both
@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_a_process_that_stood_still_turns_nobody_away_on_old_news(
    server: MongoDB, kind: str, how: str
) -> None:
    with pymongo.MongoClient(server.url()) as plain:
        plain.shop.items.insert_one({})
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, CLIENTS[kind].__name__, server.url()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def ask(times: int) -> None:
        child.stdin.write("call\n" * times)  # type: ignore[union-attr]
        child.stdin.flush()  # type: ignore[union-attr]

    def told(times: int) -> list[str]:
        return [child.stdout.readline().strip() for _ in range(times)]  # type: ignore[union-attr]

    try:
        ask(1)
        assert told(1) == ["ok"]
        for _ in range(3):
            getattr(server, how)()
            ask(2)
            assert "for" in told(2)[1]
            os.kill(child.pid, signal.SIGSTOP)
            ask(5)  # read as soon as it goes on
            server.start() if how == "stop" else server.thaw()
            with pymongo.MongoClient(server.url()) as plain:
                plain.admin.command("ping")  # it serves, however long its start took
            time.sleep(6.0)  # two heartbeats, and more
            os.kill(child.pid, signal.SIGCONT)
            assert told(5) == ["ok"] * 5
    finally:
        child.kill()
        child.communicate()


# -- elections that take longer than an outage is waited for


@pytest.fixture(scope="module")
def deliberate() -> Iterator[MongoReplicaSet]:
    """A set of three that takes its time to replace a primary that is gone."""
    with MongoReplicaSet(3) as group:
        group.wait_primary()
        for server in group.servers:
            server.set(transactionLifetimeLimitSeconds=5)
        with pymongo.MongoClient(group.url()) as client:
            config = client.admin.command("replSetGetConfig")["config"]
            config["version"] += 1
            config["settings"].update(electionTimeoutMillis=7000)
            client.admin.command("replSetReconfig", config)
        yield group


class Callers:
    """Threads that write and read, and an event loop that does, until told to stop."""

    def __init__(self, url: str, name: str, **given: Any) -> None:
        self.took: list[float] = []
        self.failed: list[BaseException] = []
        self.stored: list[int] = []
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._client = MongoClient(url, **given)
        items = self._client[name].items
        items.insert_one({"_id": -1})
        self._threads = [threading.Thread(target=self._calls, args=(items,)) for _ in range(3)]
        self._threads.append(
            threading.Thread(target=lambda: asyncio.run(self._loop(url, name, given)))
        )
        for thread in self._threads:
            thread.start()

    def _calls(self, items: Any) -> None:
        while not self._stop.wait(0.01):
            number = next(self._numbers)
            began = time.monotonic()
            try:
                items.insert_one({"_id": number})
                self.stored.append(number)
                items.find_one({"_id": number})
            except PyMongoError as error:
                self.failed.append(error)
            self.took.append(time.monotonic() - began)

    async def _loop(self, url: str, name: str, given: dict[str, Any]) -> None:
        async with AsyncMongoClient(url, **given) as client:
            while not self._stop.is_set():
                number = next(self._numbers)
                began = time.monotonic()
                try:
                    await client[name].items.insert_one({"_id": number})
                    self.stored.append(number)
                except PyMongoError as error:
                    self.failed.append(error)
                self.took.append(time.monotonic() - began)
                await asyncio.sleep(0.01)

    def end(self) -> set[int]:
        """What is stored."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        return set(self.stored)

    def close(self) -> None:
        self._client.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["kill", "freeze", "step down"])
def test_an_election_is_ridden_through_by_default(
    deliberate: MongoReplicaSet, name: str, how: str, closing: Any, until: Any
) -> None:
    primary = deliberate.wait_primary()
    callers = Callers(deliberate.url(), name)
    closing.callback(callers.close)
    try:
        until(lambda: len(callers.stored) > 30)
        if how == "kill":
            primary.kill()
        elif how == "freeze":
            primary.freeze()
        else:
            deliberate.step_down()
        if how != "step down":
            deliberate.wait_primary(60, but=primary)
        enough = len(callers.stored) + 30
        until(lambda: len(callers.stored) > enough, 60)
    finally:
        stored = callers.end()
        primary.thaw() if primary.is_running else primary.start()
    assert not callers.failed, callers.failed[:3]
    assert max(callers.took) < WAIT + ELECTION + SPARE
    deliberate.wait_primary(60)
    with pymongo.MongoClient(deliberate.url()) as plain:
        assert {each["_id"] for each in plain[name].items.find()} >= stored


@pytest.mark.timeout(120)
def test_those_who_do_not_wait_for_elections_are_told_at_once(
    deliberate: MongoReplicaSet, name: str, closing: Any, until: Any
) -> None:
    primary = deliberate.wait_primary()
    client = closing.enter_context(MongoClient(deliberate.url(), outage_wait=0, election_wait=0))
    client[name].items.insert_one({})
    primary.kill()
    try:
        with pytest.raises(unbroken.OutageError, match="has taken writes"):
            until(lambda: client[name].items.insert_one({}) and False, 5.0)
    except AssertionError:
        pass
    finally:
        primary.start()
        deliberate.wait_primary(60)
