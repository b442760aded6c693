"""What every body does in the same way, because the same kernel and the same flows decide it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unbroken_drill.servers import PostgreSQL

from .bodies import BODIES, LIMIT, opened

pytestmark = pytest.mark.parametrize("name", list(BODIES))


def until(condition: Callable[[], Any]) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def small() -> Iterator[PostgreSQL]:
    """A server with room for three sessions."""
    with PostgreSQL({"max_connections": 6, "superuser_reserved_connections": 3}) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A server that the tests stop and start."""
    with PostgreSQL() as server:
        yield server


def test_while_the_server_is_full_returned_connections_serve_those_who_wait(
    name: str, small: PostgreSQL
) -> None:
    with opened(name, small.url, 10) as body:
        assert body.crowd(20, 5, 0.01) == [5] * 20
        until(lambda: body.stats().used == body.stats().waiting == 0)  # an attempt may just succeed
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
    name: str, postgres: PostgreSQL
) -> None:
    with opened(name, postgres.url, 3) as body:
        for _ in range(4):
            assert body.crowd(6, 2, 0.01) == [2] * 6
            postgres.kill_sessions()
        assert body.crowd(6, 2, 0.01) == [2] * 6
        until(lambda: body.stats().used == body.stats().waiting == 0)
        assert body.stats().idle <= 3


def test_after_a_restart_all_go_on(name: str, server: PostgreSQL) -> None:
    with opened(name, server.url, 3) as body:
        assert body.crowd(6, 1) == [1] * 6
        server.restart()
        assert body.crowd(6, 2) == [2] * 6
        until(lambda: body.stats().used == 0)


@contextmanager
def process(
    name: str, server: PostgreSQL
) -> Iterator[Callable[[str], str] | subprocess.Popen[str]]:
    """A process of :mod:`bodies.frozen`."""
    url = server.url("psycopg").replace("psycopg", "DRIVER", 1)
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
    name: str, server: PostgreSQL
) -> None:
    """The outage that it remembers is as old as its sleep was long; its callers have only come."""
    with process(name, server) as child:
        assert isinstance(child, subprocess.Popen)
        assert child.stdin is not None
        assert child.stdout is not None

        def told(order: str) -> str:
            child.stdin.write(order + "\n")
            child.stdin.flush()
            return child.stdout.readline().strip()

        assert told("ask") == "1"
        server.stop()
        try:
            assert "Error" in told("ask")  # the outage is known
            child.send_signal(signal.SIGSTOP)
        finally:
            server.start()
        time.sleep(3.0)  # longer than outage_wait
        child.send_signal(signal.SIGCONT)
        assert told("crowd") == "all"
