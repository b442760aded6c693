"""What the hot paths call, by name and number, without a clock: nothing may creep in unseen.

One call of a Python function costs about 50 ns, a tenth of all that an acquire takes besides its
look at the sockets. Whoever changes a list here has measured it with ``make bench ARGS=checkout``.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakSet

import pymongo
import pytest

import unbroken
import unbroken.mongo
import unbroken.wsgi
from unbroken.integrations.mongo.client_options import DEFAULTS
from unbroken.pool.registry import registry
from unbroken_drill.servers import MongoDB, PostgreSQL

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="other interpreters report calls differently"
)


@pytest.fixture
def pool(postgres: PostgreSQL) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(postgres.url("psycopg")) as pool:
        pool.release(pool.acquire())
        yield pool


@pytest.fixture
def bare_pool(postgres: PostgreSQL) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(postgres.url("psycopg"), reset=None) as pool:
        pool.release(pool.acquire())
        yield pool


def calls(work: Callable[[], Any]) -> tuple[list[str], list[str]]:
    """The Python and the C functions that *work* calls, in order."""
    python: list[str] = []
    c: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is not work.__code__:  # type: ignore[attr-defined] # a function
            python.append(frame.f_code.co_qualname)
        elif event == "c_call" and argument is not sys.setprofile:
            c.append(argument.__name__)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return python, c


#: Take an idle entry, read the clock, note who took it where and as what, look for a unit of work.
#: At the end the driver looks whether its own lock is free, too ("locked"): a half-read stream
#: holds psycopg's, and a ROLLBACK would wait for it for ever.
TAKE = ["pop", "monotonic", "_getframe", "get_ident", "get"]


def test_acquire_calls_no_python_function_and_release_only_asks_whether_an_answer_is_outstanding(
    bare_pool: unbroken.Pool,
) -> None:
    """Also with ``reset=None``: an answer that was not read would be taken for the next
    caller's.
    """
    python, c = calls(lambda: bare_pool.release(bare_pool.acquire()))
    assert python == ["Pool.acquire", "Pool.release", "Base.is_clean"]
    assert c == [*TAKE, "id", "pop", "locked", "append"]


def test_release_asks_the_driver_once_whether_the_connection_is_clean(pool: unbroken.Pool) -> None:
    python, c = calls(lambda: pool.release(pool.acquire()))
    assert python == ["Pool.acquire", "Pool.release", "Base.is_clean"]
    assert c == [*TAKE, "id", "pop", "locked", "append"]


def test_with_connection_is_three_calls_and_one_question_to_the_driver(pool: unbroken.Pool) -> None:
    def work() -> None:
        with pool.connection():
            pass

    python, c = calls(work)
    assert python == ["Pool.connection", "Lease.__enter__", "Lease.__exit__", "Base.is_clean"]
    assert c == [*TAKE, "locked", "pop", "append"]


def test_the_number_of_idle_connections_changes_nothing(pool: unbroken.Pool) -> None:
    def work() -> None:
        with pool.connection():
            pass

    few = calls(work)
    for conn in [pool.acquire() for _ in range(pool.settings.max_size)]:
        pool.release(conn)
    assert calls(work) == few
    assert pool.stats().idle == pool.settings.max_size


@pytest.mark.skipif(sys.platform != "linux", reason="there is no epoll elsewhere")
def test_the_look_at_the_sockets_does_not_let_go_of_the_interpreters_lock(
    pool: unbroken.Pool,
) -> None:
    look: Any = pool._state.hung_up
    assert look.func.__name__ == "epoll_wait", (
        "epoll.poll lets go of it, so that threads that compute cut in: see net/hangups.py"
    )
    assert look.func._flags_ & ctypes._FUNCFLAG_PYTHONAPI  # type: ignore[attr-defined] # what makes a PyDLL of a CDLL
    assert not look()


def test_a_request_that_uses_no_database_is_watched_by_few_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """8 µs for one that is never run again, 4 of them for the ledger that watches it; some 20 µs
    for one that is a unit of work.

    Twelve calls of a unit's look for connections that its thread had before, which are followed
    too.
    """

    def app(_environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    # a unit looks at each pool that there is, those of other tests too
    monkeypatch.setattr(registry, "_states", WeakSet())
    watched = unbroken.wsgi.Unbroken(app)
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/"}

    def work() -> None:
        watched(environ, lambda _status, _headers: None)

    work()
    assert len(calls(work)[0]) <= 34
    environ["REQUEST_METHOD"] = "GET"
    assert len(calls(work)[0]) <= 86


def names_called_by_find_one(client: Any) -> tuple[Counter[str], Counter[str]]:
    """The quickest of some: a heartbeat in between, or a pause of a second, has PyMongo or us look
    once more.
    """

    def work() -> None:
        items.find_one({"_id": 1})

    items = client.call_counts.items
    work()
    python, c = min(
        (calls(work) for _ in range(9)), key=lambda found: len(found[0]) + len(found[1])
    )
    return Counter(name.rpartition(".")[2] for name in python), Counter(c)


def test_find_one_with_mongodbs_client_is_no_more_calls_than_with_pymongos(
    mongodb: MongoDB,
) -> None:
    """Of about 450: what becomes of an error, which topology is this process's, is there a unit of
    work, and is a connection free? Our step before a server is chosen spares as many that PyMongo
    makes there.
    """
    with (
        unbroken.mongo.MongoClient(mongodb.url()) as client,
        pymongo.MongoClient(mongodb.url(), **DEFAULTS) as plain,
    ):
        (python, c), (plain_python, plain_c) = (
            names_called_by_find_one(client),
            names_called_by_find_one(plain),
        )
    assert not plain_c - c
    less = plain_python - python
    assert less == {
        "_get_topology": 1,
        "_pinned_address": 1,
        "active": 1,
        "get_server_selection_timeout": 1,
        "server_selection_timeout": 1,
        "remaining": 1,
        "get_timeout": 1,
    }
    more = python - plain_python
    assert more["_topology"] <= 5  # as often as PyMongo asks: 5 times in 4.20
    assert more == {"_topology": more["_topology"], "_retry_internal": 1, "_get_conn": 1}
    assert more.total() <= less.total()
    assert c - plain_c == {"getattr": 1}
