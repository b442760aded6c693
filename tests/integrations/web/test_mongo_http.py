"""The MongoDB examples under real web servers, as these come: workers that are forked from a
process that used its client, and outages.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from unbroken_drill.servers import MongoDB

#: Requests per second. They come whether or not those before were answered.
RATE = 10.0


@dataclass
class Answer:
    began: float
    method: str
    number: int
    reply: Any

    @property
    def ended(self) -> float:
        return self.began + float(self.reply.seconds)

    @property
    def ok(self) -> bool:
        return bool(self.reply.status == 200)


@dataclass
class OpenLoop:
    """Requests at a steady pace, GET and POST in turn; who waits does not keep the others from
    coming.
    """

    site: Any
    rate: float = RATE
    query: bool = False  #: the POST's number in the URL instead of a form
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._pacer = threading.Thread(target=self._pace, daemon=True)
        self._asking: list[threading.Thread] = []

    def _pace(self) -> None:
        number = 0
        started = time.monotonic()
        while not self._over.wait(max(0.0, started + number / self.rate - time.monotonic())):
            number += 1
            thread = threading.Thread(target=self._ask, args=(number,), daemon=True)
            self._asking.append(thread)
            thread.start()

    def _ask(self, number: int) -> None:
        began = time.monotonic()
        if number % 2:
            reply = self.site.ask("/items")
        else:
            path, form = (
                (f"/items?number={number}", {}) if self.query else ("/items", {"number": number})
            )
            reply = self.site.ask(path, form)
        self.answers.append(Answer(began, "GET" if number % 2 else "POST", number, reply))

    def __enter__(self) -> OpenLoop:
        self._pacer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._pacer.join()
        for thread in self._asking:
            thread.join(70.0)

    def since(self, began: float) -> list[Answer]:
        return [each for each in list(self.answers) if each.began >= began]


@dataclass(frozen=True)
class Outcome:
    """What came of a stop and a start under traffic."""

    before: tuple[int, int]  #: good answers, of how many, until the stop
    first_good: float | None  #: seconds from when the server was up to the first good answer
    last_bad: float  #: … and to the last request that was not answered well, by any of the workers
    after: int  #: good answers to requests after that
    failed: Counter[tuple[str, int]]  #: by method and status, from the stop on
    quick: float  #: the median of these failures, seconds
    worst: float  #: the longest that any request took, seconds
    told: float  #: seconds from the stop to the first answer that was not good; 0: there was none
    after_that: float  #: the longest that a request took which came later than that
    close_wait: int  #: sockets to MongoDB in CLOSE_WAIT, a second after it was up
    workers: int  #: how many answered, in the last phase
    lost: int  #: acknowledged and not stored

    def row(self) -> str:
        first = "never" if self.first_good is None else f"+{self.first_good:.2f} s"
        said = (
            ", ".join(
                f"{n} {method} {status}" for (method, status), n in sorted(self.failed.items())
            )
            or 0
        )
        return (
            f"before {self.before[0]}/{self.before[1]}  failed {said} (median"
            f" {self.quick * 1000:.0f} ms, the first after {self.told:.1f} s, then at most"
            f" {self.after_that * 1000:.0f} ms)  worst {self.worst:.1f} s  first ok {first}"
            f"  last bad +{self.last_bad:.2f} s  then {self.after} ok  CLOSE_WAIT {self.close_wait}"
            f"  workers {self.workers}  lost {self.lost}"
        )


def to_mongo(site: Any, server: MongoDB, state: str) -> int:
    """How many of *site*'s sockets to *server* are in *state*."""
    pids = set(site.pids)
    return sum(
        c.pid in pids and c.status == state and bool(c.raddr) and c.raddr.port == server.port
        for c in psutil.net_connections("tcp")
    )


def stop_and_start(
    server: MongoDB, site: Any, seconds: float, quiet: float, patience: float, query: bool = False
) -> Outcome:
    """Traffic for *quiet* seconds; MongoDB away for *seconds*; traffic for *quiet* more after the
    first good answer, within *patience*.
    """
    with OpenLoop(site, query=query) as traffic:
        time.sleep(quiet)
        stopped = time.monotonic()
        server.stop()
        time.sleep(seconds)
        server.start()
        up = time.monotonic()
        time.sleep(1.0)
        close_wait = to_mongo(site, server, psutil.CONN_CLOSE_WAIT)
        while time.monotonic() < up + patience and not (
            good := good_since(traffic, stopped, up, quiet)
        ):
            time.sleep(0.05)
        close_wait = max(close_wait, to_mongo(site, server, psutil.CONN_CLOSE_WAIT))
        if not good:
            site.close()  # else those who wait would wait on
    return judged(server, traffic, stopped, up, close_wait)


def good_since(traffic: OpenLoop, stopped: float, up: float, quiet: float) -> bool:
    """Whether both workers have answered well after MongoDB was *up*, and nobody otherwise for
    *quiet* seconds since.
    """
    answers = traffic.since(stopped)
    good = [each for each in answers if each.ok and each.ended > up]
    if len({each.reply.json["worker"] for each in good}) < 2:
        return False
    return time.monotonic() > quiet + max(
        [min(each.ended for each in good), *(each.ended for each in answers if not each.ok)]
    )


def judged(
    server: MongoDB, traffic: OpenLoop, stopped: float, up: float, close_wait: int
) -> Outcome:
    before = [each for each in traffic.answers if each.ended < stopped]
    since = [each for each in traffic.answers if each.ended >= stopped]
    failed = [each for each in since if not each.ok]
    first = min((each.ended for each in since if each.ok and each.ended > up), default=None)
    last = max((each.began for each in failed), default=stopped)
    after = [each for each in since if each.ok and each.began > max(last, up)]
    stored = {int(document["number"]) for document in documents(server)}
    told = min((each.ended for each in failed), default=stopped)
    later = [each.reply.seconds for each in failed if each.began > told]
    return Outcome(
        before=(sum(each.ok for each in before), len(before)),
        first_good=None if first is None else first - up,
        last_bad=max(0.0, last - up),
        after=len(after),
        failed=Counter((each.method, each.reply.status) for each in failed),
        quick=statistics.median([each.reply.seconds for each in failed]) if failed else 0.0,
        worst=max(each.reply.seconds for each in traffic.answers),
        told=told - stopped,
        after_that=max(later, default=0.0),
        close_wait=close_wait,
        workers=len({each.reply.json["worker"] for each in after}),
        lost=sum(
            each.ok and each.method == "POST" and each.number not in stored
            for each in traffic.answers
        ),
    )


def documents(server: MongoDB) -> list[dict[str, Any]]:
    found = server.command(
        {"find": "item", "batchSize": 100_000, "singleBatch": True}, server.database
    )
    return list(found["cursor"]["firstBatch"])


@pytest.fixture
def server() -> Iterator[MongoDB]:
    with MongoDB() as mongod:
        yield mongod


def hold(outcome: Outcome, site: Any) -> None:
    """What the users of an app may see of an outage: refusals while it lasts."""
    try:
        assert outcome.before[0] == outcome.before[1] > 5
        assert outcome.first_good is not None
        assert outcome.after > 5
        assert outcome.close_wait == 0
        assert outcome.workers == 2
        assert outcome.lost == 0
    except AssertionError as error:
        raise AssertionError(f"{error}\n{outcome.row()}\n{site.tail()}") from None


#: How long callers wait in an outage, in seconds; and what a busy machine adds.
WAIT, SPARE = 5.0, 1.0


@pytest.mark.parametrize(
    ("web", "app"),
    [
        ("uwsgi", "flask_pymongo_app"),  # one thread in each of its workers
        ("uwsgi --threads 2", "flask_pymongo_app"),
        ("gevent --preload", "flask_mongoengine_app"),
        ("uvicorn", "fastapi_beanie_app"),
    ],
)
def test_nobody_sees_a_restart_of_three_seconds(
    web: str, app: str, server: MongoDB, sites: Any
) -> None:
    site = sites(web, app, server.url(), WARM="1").wait_ready()
    # and as long as the server takes to stop and to start: on a busy machine that may be too long
    outcome = stop_and_start(server, site, 1.5, 2.0, 20.0, query="fastapi" in app)
    print(f"\n{web} {app} {outcome.row()}")
    hold(outcome, site)
    assert not outcome.failed or outcome.told > WAIT - 0.2, outcome.row()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("web", ["uwsgi", "uwsgi --threads 2"])
def test_ten_seconds_without_mongodb_are_told_of_once_and_then_at_once(
    web: str, server: MongoDB, sites: Any
) -> None:
    site = sites(web, "flask_pymongo_app", server.url(), WARM="1").wait_ready()
    outcome = stop_and_start(server, site, 10.0, 2.0, 20.0)
    print(f"\n{web} {outcome.row()}")
    hold(outcome, site)
    assert {status for _, status in outcome.failed} == {503}, outcome.row()
    assert WAIT - 0.2 < outcome.told < WAIT + SPARE, outcome.row()
    assert outcome.quick < 0.1, outcome.row()
    assert outcome.after_that < SPARE, outcome.row()
    assert outcome.first_good is not None
    assert outcome.first_good <= 1.0, outcome.row()
    assert outcome.last_bad <= 1.0, outcome.row()


@pytest.mark.parametrize("app", ["fastapi_mongo_app", "fastapi_beanie_app"])
def test_the_fastapi_examples_store_what_they_say_and_are_ready(
    app: str, server: MongoDB, sites: Any
) -> None:
    site = sites("uvicorn", app, server.url()).wait_ready()
    assert site.ask("/items?number=7", {}).json["stored"] == 7
    assert [document["number"] for document in documents(server)] == [7]
    assert site.ask("/readyz").json == {"status": "ok", server.database: "ok"}


def test_gevent_patches_a_uwsgi_worker_whose_master_has_used_its_client(
    server: MongoDB, sites: Any
) -> None:
    """uWSGI has gevent patch each worker after the fork, and gevent looks at every object there
    is.
    """
    site = sites(
        "uwsgi --gevent 50 --gevent-monkey-patch", "flask_pymongo_app", server.url(), WARM="1"
    ).wait_ready()
    assert site.ask("/items", {"number": 1}).status == 200
    assert site.ends(), site.tail()


def insert_over_http(site: Any, several: int) -> tuple[set[int], set[int]]:
    """POST so many numbers, two at a time; those that were acknowledged, and the workers that
    did.
    """
    answers: list[tuple[int, Any]] = []

    def work(first: int) -> None:
        for number in range(first, several, 2):
            together.wait()
            answers.append((number, site.ask("/items", {"number": number})))

    together = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [(number, reply.json["worker"]) for number, reply in answers if reply.status == 200]
    return {number for number, _ in good}, {worker for _, worker in good}


def test_no_acknowledged_insert_is_lost_between_uwsgi_workers_on_a_replica_set(sites: Any) -> None:
    """Plain clients that were used before the fork share a server session, and MongoDB takes one's
    insert for a retry of the other's.
    """
    with MongoDB(replica_set="one") as server:
        site = sites("uwsgi", "flask_pymongo_app", server.url(), WARM="1").wait_ready()
        acknowledged, workers = insert_over_http(site, 200)
        stored = [int(document["number"]) for document in documents(server)]
        assert len(workers) == 2
        assert sorted(stored) == sorted(acknowledged) == list(range(200))
        # a signal must not end in a monitor's thread: uWSGI then waits for a minute
        assert site.ends(), site.tail()


# -- the matrix ------------------------------------------------------------------------------------

WEBS = [
    "uwsgi",
    "uwsgi --enable-threads",
    "uwsgi --threads 4",
    "uwsgi --gevent 50 --gevent-monkey-patch",
    "sync --preload",
    "gthread --preload",
    "gevent --preload",
]
ALL = [
    *((web, "flask_pymongo_app") for web in WEBS),
    *(
        (web, "flask_mongoengine_app")
        for web in (
            "uwsgi",
            "uwsgi --threads 4",
            "uwsgi --gevent 50 --gevent-monkey-patch",
            "gevent --preload",
        )
    ),
    ("uvicorn", "fastapi_mongo_app"),
]


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("web", "app"), ALL)
def test_ten_seconds_without_mongodb_beside_the_plain_client(
    web: str, app: str, sites: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The client is used at import, before the fork. Rows for docs/mongodb.md."""
    for plain in (True, False):
        with MongoDB() as server:
            site = sites(web, app, server.url(), plain=plain, WARM="1")
            booted = boots(site)
            outcome = (
                stop_and_start(server, site, 10.0, 5.0, 20.0, query="fastapi" in app)
                if booted
                else None
            )
            with capsys.disabled():
                print(
                    f"\n{web:40s} {app:22s} {'plain' if plain else 'unbroken':8s}"
                    f" {outcome.row() if outcome else 'does not boot'}",
                    end="",
                )
            if not plain:
                assert outcome is not None, site.tail()
                hold(outcome, site)
                assert outcome.first_good is not None
                assert outcome.first_good <= 1.0
                assert outcome.last_bad <= 1.0
                assert outcome.worst < WAIT + 2 * SPARE
            site.close()


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("app", ["flask_pymongo_app", "flask_mongoengine_app"])
def test_inserts_of_uwsgi_workers_beside_the_plain_client(
    app: str, sites: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five fresh boots each, 400 inserts a boot.

    What is lost by the plain client differs from boot to boot.
    """
    for plain in (True, False):
        found = [inserted_and_lost(sites, app, plain) for _ in range(5)]
        with capsys.disabled():
            said = ", ".join(
                "does not boot" if each is None else f"{each[0]} acknowledged {each[1]} lost"
                for each in found
            )
            print(f"\n{app:22s} {'plain' if plain else 'unbroken':8s} {said}", end="")
        assert plain or found == [(400, 0)] * 5


def inserted_and_lost(sites: Any, app: str, plain: bool) -> tuple[int, int] | None:
    with MongoDB(replica_set="one") as server:
        site = sites("uwsgi", app, server.url(), plain=plain, WARM="1")
        if not boots(site):
            return None
        acknowledged, _ = insert_over_http(site, 400)
        lost = acknowledged - {int(document["number"]) for document in documents(server)}
        site.close()
        return len(acknowledged), len(lost)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("web", ["uwsgi", "uwsgi --threads 4"])
def test_no_worker_is_dead_after_twenty_boots(
    web: str, server: MongoDB, sites: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for plain in (True, False):
        dead = Counter(
            workers_that_answer(
                sites(web, "flask_pymongo_app", server.url(), plain=plain, WARM="1")
            )
            for _ in range(20)
        )
        with capsys.disabled():
            print(
                f"\n{web:20s} {'plain' if plain else 'unbroken':8s} boots by workers that answer:"
                f" {dict(sorted(dead.items()))}",
                end="",
            )
        assert plain or dead == {2: 20}


def workers_that_answer(site: Any) -> int:
    """How many of the two workers do, within a few seconds of the first answer of either."""
    found: set[int] = set()
    if boots(site):
        with OpenLoop(site, rate=30.0) as traffic:
            deadline = time.monotonic() + 5.0
            while len(found) < 2 and time.monotonic() < deadline:
                found = {each.reply.json["worker"] for each in list(traffic.answers) if each.ok}
                time.sleep(0.02)
            threading.Thread(
                target=site.close
            ).start()  # what hangs is let go, so that the traffic ends
    site.close()
    return len(found)


def boots(site: Any) -> bool:
    try:
        site.wait_ready()
    except AssertionError:
        return False
    return True
