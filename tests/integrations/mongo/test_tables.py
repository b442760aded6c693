"""The tables of docs/mongodb.md: what callers see of an outage, of PyMongo's client and of ours, at
the same time on the same servers.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from unbroken.errors import OutageError
from unbroken.mongo import MongoClient
from unbroken_drill.servers import MongoDB, MongoReplicaSet

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

#: What callers wait in an outage, an election and for a server that is frozen; and what a busy
#: machine adds. Seconds.
WAIT, ELECTION, NOTICED, SPARE = 5.0, 20.0, 2.5, 1.5
#: The other policy: to fail fast.
FAST = {"outage_wait": 1.0, "election_wait": 0.0}


@dataclass
class Call:
    """One call: when it was due, how long after that it had its answer, and what went wrong."""

    due: float
    took: float
    error: BaseException | None


@dataclass
class Caller:
    """Makes calls at a rate, come what may (an open loop): each on a thread of its own, or all
    through *workers* threads.
    """

    name: str
    collection: Any
    workers: int | None = None
    rate: float = 20.0
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._pace)]
        self._threads += [threading.Thread(target=self._work) for _ in range(self.workers or 0)]
        for thread in list(self._threads):  # the pacer adds to them
            thread.start()

    def _pace(self) -> None:
        began, number = time.monotonic(), 0
        while not self._stop.wait(max(0.0, began + number / self.rate - time.monotonic())):
            due = began + number / self.rate
            number += 1
            if self.workers:
                self._due.put(due)
            else:
                thread = threading.Thread(target=self._call, args=(due, number))
                thread.start()
                self._threads.append(thread)
        for _ in range(self.workers or 0):
            self._due.put(None)

    def _work(self) -> None:
        number = 0
        while (due := self._due.get()) is not None:
            number += 1
            self._call(due, number)

    def _call(self, due: float, number: int) -> None:
        error: BaseException | None = None
        try:
            if number % 2:
                self.collection.insert_one({})
            else:
                self.collection.find_one()
        except PyMongoError as exc:
            error = exc
        self.calls.append(Call(due, time.monotonic() - due, error))

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def told(self) -> str:
        """failed / slower than a second / the worst, in seconds; and how long an OutageError
        took.
        """
        failed = [call for call in self.calls if call.error is not None]
        fast = [call.took for call in failed if isinstance(call.error, OutageError)]
        quick = f", median failure {statistics.median(fast) * 1000:.1f} ms" if fast else ""
        return (
            f"{len(failed)} / {sum(call.took > 1 for call in self.calls)} /"
            f" {max(call.took for call in self.calls):.1f}{quick}"
        )

    def clean_after(self, moment: float) -> float:
        """How long after *moment* the last call was due that failed or took more than a second; 0
        if none.
        """
        return max(
            [
                0.0,
                *(
                    call.due - moment
                    for call in self.calls
                    if call.error is not None or call.took > 1
                ),
            ]
        )


def seen(url: str, event: Callable[[], float], workers: int | None = None) -> dict[str, Caller]:
    """What the callers of each client see while *event* happens; it gives the moment when all is
    well again.
    """
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "pymongo": (pymongo.MongoClient, {}),
        "unbroken": (MongoClient, {}),
        "unbroken, failing fast": (MongoClient, FAST),
    }
    with ExitStack() as stack:
        callers = {}
        for name, (kind, given) in kinds.items():
            client = kind(url, **given)
            stack.callback(client.close)
            client.shop.items.insert_one({})
            callers[name] = Caller(name, client.shop.items, workers)
        time.sleep(1)
        well = event()
        # With one worker each call waits for those before it: until the backlog is gone.
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and any(
            caller.clean_after(time.monotonic() - 3) for caller in callers.values()
        ):
            time.sleep(0.2)
        time.sleep(2)
        for caller in callers.values():
            caller.end()
    for name, caller in callers.items():
        print(
            f"    {name:22} {caller.told()}; clean {caller.clean_after(well):+.1f} s after it is"
            " well",
            flush=True,
        )
    return callers


def for_seconds(
    seconds: float, begin: Callable[[], Any], end: Callable[[], Any]
) -> Callable[[], float]:
    def event() -> float:
        begin()
        time.sleep(seconds)
        end()
        return time.monotonic()

    return event


@pytest.fixture
def server() -> Any:
    with MongoDB() as server:
        yield server


@pytest.fixture
def three() -> Any:
    """As a set comes: ten seconds until a primary that is gone is replaced."""
    with MongoReplicaSet(3) as group:
        group.wait_primary()
        with pymongo.MongoClient(group.url()) as client:
            config = client.admin.command("replSetGetConfig")["config"]
            config["version"] += 1
            config["settings"].update(electionTimeoutMillis=10000, heartbeatIntervalMillis=2000)
            client.admin.command("replSetReconfig", config)
        yield group


@pytest.mark.parametrize(
    ("how", "seconds"),
    [("SIGTERM", 10), ("kill -9", 10), ("SIGTERM", 40), ("SIGSTOP", 20), ("SIGSTOP", 45)],
)
def test_a_server_alone(server: MongoDB, how: str, seconds: float) -> None:
    print(f"\n{how}, {seconds} s, a thread per call (failed / over 1 s / worst)")
    begin, end = {
        "SIGTERM": (server.stop, server.start),
        "kill -9": (server.kill, server.start),
        "SIGSTOP": (server.freeze, server.thaw),
    }[how]
    callers = seen(server.url(), for_seconds(seconds, begin, end))
    assert max(call.took for call in callers["unbroken"].calls) < WAIT + SPARE
    assert max(call.took for call in callers["unbroken, failing fast"].calls) < NOTICED + SPARE


@pytest.mark.parametrize(("how", "workers"), [("SIGTERM", 1), ("SIGTERM", 4), ("SIGSTOP", 1)])
def test_an_outage_of_45_seconds_with_few_threads(server: MongoDB, how: str, workers: int) -> None:
    print(f"\n{how}, 45 s, {workers} thread(s) (failed / over 1 s / worst)")
    begin, end = (server.stop, server.start) if how == "SIGTERM" else (server.freeze, server.thaw)
    callers = seen(server.url(), for_seconds(45, begin, end), workers)
    theirs = sum(call.took > 1 for call in callers["pymongo"].calls)
    assert sum(call.took > 1 for call in callers["unbroken"].calls) < 0.5 * theirs


@pytest.mark.parametrize(
    "how", ["step down", "kill -9 of the primary", "SIGSTOP of the primary, 30 s"]
)
def test_a_set_of_three(three: MongoReplicaSet, how: str) -> None:
    print(f"\n{how}, three servers, a thread per call (failed / over 1 s / worst)")
    primary = three.wait_primary()

    def event() -> float:
        if how == "step down":
            three.step_down()
        elif how.startswith("kill"):
            primary.kill()
            three.wait_primary(but=primary)
        else:
            primary.freeze()
            time.sleep(30)
            primary.thaw()
        return time.monotonic()

    callers = seen(three.url(), event)
    assert not [call for call in callers["unbroken"].calls if call.error]
    if not how.startswith("SIGSTOP"):  # which keeps writes by majority waiting: see the page
        assert max(call.took for call in callers["unbroken"].calls) < WAIT + ELECTION + SPARE
