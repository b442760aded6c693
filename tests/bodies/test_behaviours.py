"""What every body does in the same way, because the same kernel and the same flows decide it.

To which bodies a test does not apply, and why, stands in ``every.py``.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from unbroken.errors import DeadlineExceeded, OutageError, PoolTimeoutError
from unbroken_drill.servers import MongoDB, PostgreSQL

from .bodies import LIMIT, Body
from .every import BODIES, EXCEPT, opened, those_with


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", those_with(metafunc.function.__name__))


def until(condition: Callable[[], Any], seconds: float = LIMIT) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def told(work: Callable[[], Any]) -> BaseException:
    """What *work* raises."""
    try:
        given = work()
    except Exception as error:
        return error
    raise AssertionError(f"it gave {given}")


def seconds(work: Callable[[], Any]) -> float:
    """How long *work* takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def serves(body: Body) -> bool:
    """Whether *body* gives a connection."""
    return body.crowd(1, 1) == [1]


def come_to_rest(body: Body) -> None:
    """Nobody uses *body*, and no place of it is lost."""
    until(lambda: body.stats().used == body.stats().waiting == body.stats().opening == 0)


@pytest.fixture(scope="module")
def small() -> Iterator[PostgreSQL]:
    """A server with room for three sessions."""
    with PostgreSQL({"max_connections": 6, "superuser_reserved_connections": 3}) as server:
        yield server


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Any]]:
    """``servers(name)``: a server for the body of that name, which the tests stop and start."""
    with ExitStack() as stack:
        made: dict[str, Any] = {}

        def of(name: str) -> Any:
            backend = BODIES[name].backend
            if backend not in made:
                made[backend] = stack.enter_context(
                    MongoDB() if backend == "mongodb" else PostgreSQL()
                )
            return made[backend]

        yield of


@pytest.fixture
def server(name: str, servers: Callable[[str], Any]) -> Any:
    return servers(name)


@contextmanager
def stopped(server: Any) -> Iterator[None]:
    """Inside, *server* is away."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def test_the_exceptions_are_of_bodies_and_tests_that_there_are() -> None:
    assert set(EXCEPT) <= set(BODIES)
    assert {test for tests in EXCEPT.values() for test in tests} <= set(globals())


def test_while_the_server_is_full_returned_connections_serve_those_who_wait(
    name: str, small: PostgreSQL
) -> None:
    with opened(name, small.url, 10) as body:
        assert body.crowd(20, 5, 0.01) == [5] * 20
        come_to_rest(body)  # an attempt may just succeed
        assert body.stats().idle <= 3


def test_a_returned_connection_wakes_one_that_waits(name: str, postgres: PostgreSQL) -> None:
    with opened(name, postgres.url, 1) as body, ThreadPoolExecutor(1) as thread:
        before = body.ask()
        give = body.take()
        waiter = thread.submit(body.ask)
        until(lambda: body.stats().waiting == 1)
        give()
        assert waiter.result(LIMIT) == before
        assert body.stats().timeouts == 0


def test_connections_that_end_while_idle_are_replaced_and_lose_no_place(
    name: str, server: Any
) -> None:
    with opened(name, server.url, 3) as body:
        for _ in range(4):
            assert body.crowd(6, 2, 0.01) == [2] * 6
            server.kill_sessions()
        assert body.crowd(6, 2, 0.01) == [2] * 6
        come_to_rest(body)
        assert body.stats().idle <= 3


def test_a_connection_that_ended_while_idle_never_reaches_the_application(
    name: str, server: Any
) -> None:
    with opened(name, server.url, 1) as body:
        for _ in range(10):
            before = body.ask()
            server.kill_sessions()
            assert body.ask() != before
        assert body.stats().used == 0
        assert sum(body.stats().closed.values()) >= 10


def test_after_a_restart_all_go_on(name: str, server: Any) -> None:
    with opened(name, server.url, 3, outage_wait=10.0) as body:
        assert body.crowd(6, 1) == [1] * 6
        server.restart()
        assert body.crowd(6, 2) == [2] * 6
        until(lambda: body.stats().used == 0)


def test_an_outage_is_bounded_and_ends_by_itself(name: str, server: Any) -> None:
    with opened(name, server.url, 3, patience=2.0, outage_wait=0.5) as body:
        assert body.crowd(6, 1) == [1] * 6
        with stopped(server):
            assert seconds(lambda: told(body.ask)) < 3.0
            until(
                lambda: seconds(lambda: told(body.ask)) < 0.1, 5.0
            )  # from some time on callers fail fast
            for result in body.crowd(6, 1):
                assert isinstance(result, OutageError), result
        assert seconds(lambda: until(lambda: serves(body))) < 3.0
        assert body.crowd(6, 3) == [3] * 6
        come_to_rest(body)
        assert body.stats().outages == 1


@contextmanager
def process(name: str, server: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of :mod:`bodies.frozen`."""
    url = server.url(BODIES[name].driver).replace(BODIES[name].driver, "DRIVER", 1)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    }
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-m", "bodies.frozen", name, url], env=env, **pipes
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def test_a_process_that_was_frozen_turns_nobody_away_once_the_server_is_back(
    name: str, server: Any
) -> None:
    """The outage that it remembers is as old as its sleep was long; its callers have only come."""
    with process(name, server) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def answer(order: str) -> str:
            child.stdin.write(order + "\n")
            child.stdin.flush()
            return child.stdout.readline().strip()

        assert answer("ask") == "1"
        server.stop()
        try:
            assert "Error" in answer("ask")  # the outage is known
            child.send_signal(signal.SIGSTOP)
        finally:
            server.start()
        time.sleep(3.0)  # longer than outage_wait
        child.send_signal(signal.SIGCONT)
        assert answer("crowd") == "all"


def test_a_forked_child_has_sessions_of_its_own_and_leaves_the_parents_alone(
    name: str, server: Any
) -> None:
    fork = multiprocessing.get_context("fork")
    with opened(name, server.url, 2) as body:
        mine, answers = body.ask(), fork.SimpleQueue()

        def child() -> None:
            body.begin_in_child()
            answers.put([body.ask(), body.ask()])
            os._exit(0)

        worker = fork.Process(target=child)
        worker.start()
        theirs = answers.get()
        worker.join(LIMIT)
        assert worker.exitcode == 0
        assert mine not in theirs
        assert body.ask() == mine
        assert body.stats().opened == 1 or name == "mongodb"  # its monitor's connections count, too


def words(error: BaseException) -> str:
    """What *error* says, its numbers and names aside."""
    text = re.sub(r"held by \S+:\d+ in [\w.]+", "held by PLACE", str(error))
    text = re.sub(r"(has been down for [\d.]+ s: ).*(; the pool)", r"\1REASON\2", text)
    return re.sub(r"[\d.]+ s\b", "T s", re.sub(r"127\.0\.0\.1:\d+/\w+", "SERVER", text))


def test_a_full_pool_says_the_same_in_every_body(name: str, postgres: PostgreSQL) -> None:
    with opened(name, postgres.url, 1, patience=0.3) as body, ThreadPoolExecutor(1) as thread:
        give = body.take()
        error = thread.submit(told, body.ask).result(LIMIT)
        give()
        assert isinstance(error, PoolTimeoutError)
        assert words(error) == (
            "no connection to SERVER within T s (in use 1, idle 0, opening 0, waiting 1, "
            "max_size 1); held by PLACE; all connections are in use: release them earlier, or"
            " raise max_size or acquire_timeout [UB201]"
        )
        assert body.ask()


def test_an_outage_is_told_in_the_same_words_by_every_body(name: str, server: Any) -> None:
    with opened(name, server.url, 1, patience=5.0, outage_wait=0.2) as body:
        body.ask()
        with stopped(server):
            first = told(body.ask)
            until(lambda: seconds(lambda: told(body.ask)) < 0.1, 5.0)
            later = told(body.ask)
        until(lambda: serves(body))  # what is known of a server is known to the next pool, too
        load = "(in use 0, idle 0, opening 0, waiting 1, max_size 1)"
        why = (
            "the server has been down for T s: REASON; the pool keeps trying and recovers by itself"
            " [UB301]"
        )
        for error, waited in ((first, " within T s"), (later, "")):
            assert isinstance(error, OutageError)
            said = words(error).replace("opening 1", "opening 0")
            assert said == f"no connection to SERVER{waited} {load}; {why}"


def test_a_deadline_bounds_work_and_says_so(name: str, postgres: PostgreSQL) -> None:
    with opened(name, postgres.url, 1, deadline=0.5) as body:
        begun = time.monotonic()
        error = told(lambda: body.ask(10.0))
        assert time.monotonic() - begun < 5.0
        assert isinstance(error, DeadlineExceeded)
        assert words(error) == (
            "work on a connection to SERVER took longer than its deadline of T s; its connection "
            "was ended, and nothing is stored [UB404]"
        )
        assert body.ask()
        come_to_rest(body)
