"""A process that can start no more threads: callers connect on their own, and it is said once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import unbroken
from unbroken.net.ending import NoThreadError
from unbroken.net.watcher import ThreadWatcher

WHY = "can't start new thread"


class Threads:
    """Whether workers can be started."""

    def __init__(self, start: Any) -> None:
        self.are_left, self._start = False, start

    def start(self, *args: Any, **kwargs: Any) -> Any:
        if not self.are_left:
            raise NoThreadError(WHY, is_ending=False)
        return self._start(*args, **kwargs)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    assert ThreadWatcher.get().stopped() is None  # the one that keeps the time is there
    from unbroken.pool import threads as module

    made = Threads(module.start_thread)
    monkeypatch.setattr(module, "start_thread", made.start)
    return made


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_callers_connect_on_their_own_threads_and_it_is_said_once(
    unbroken_postgres: Any, threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    with unbroken.Pool(unbroken_postgres.url("psycopg"), max_size=4) as pool:
        served: list[int] = []

        def work() -> None:
            for _ in range(5):
                with pool.connection() as conn:
                    served.append(conn.execute("SELECT 1").fetchone()[0])

        callers = [threading.Thread(target=work) for _ in range(8)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(20.0)
        assert len(served) == 40
        assert pool.stats().waiting == 0
        assert [WHY in each for each in said(caplog)] == [True]
        threads.are_left = True
        pool.drain()
        assert pool.run(lambda conn: conn.execute("SELECT 1").fetchone()) == (1,)


def test_a_caller_that_connects_itself_keeps_its_time(threads: Threads) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts, and says nothing
        url = f"postgresql+psycopg://app@127.0.0.1:{silent.getsockname()[1]}/shop"
        with unbroken.Pool(url) as pool:
            began = time.monotonic()
            with pytest.raises((unbroken.PoolTimeoutError, unbroken.OutageError)):
                pool.acquire(timeout=0.7)
            assert 0.5 < time.monotonic() - began < 2.0


def test_a_server_that_refuses_is_an_outage_all_the_same(threads: Threads) -> None:
    url = "postgresql+psycopg://app@127.0.0.1:1/shop"
    with unbroken.Pool(url, outage_wait=0.3) as pool:
        began = time.monotonic()
        with pytest.raises(unbroken.OutageError, match="refused"):
            pool.acquire()
        assert time.monotonic() - began < 2.0
