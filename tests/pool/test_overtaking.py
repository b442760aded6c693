"""A running thread may take a connection before one that sleeps in the line, for a bounded time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import unbroken
from unbroken.pool.threads import ThreadRuntime
from unbroken_drill.servers import PostgreSQL

THREADS, SIZE = 6, 2


@pytest.fixture
def pool(postgres: PostgreSQL) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(postgres.url("psycopg"), max_size=1) as pool:
        yield pool


def patience(pool: unbroken.Pool, seconds: float) -> None:
    pool._state.kernel.patience = seconds


class Waiter:
    """A thread that waits for the connection which this one holds."""

    def __init__(self, pool: unbroken.Pool, until: Callable[..., Any]) -> None:
        self.has_it, self.may_end = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._wait, args=(pool,))
        self.thread.start()
        until(lambda: pool.stats().waiting)

    def _wait(self, pool: unbroken.Pool) -> None:
        with pool.connection():
            self.has_it.set()
            assert self.may_end.wait(30)

    def end(self) -> None:
        self.may_end.set()
        self.thread.join(30)
        assert self.has_it.is_set()
        assert not self.thread.is_alive()


def test_a_thread_that_runs_takes_the_connection_that_it_has_just_returned_again(
    pool: unbroken.Pool, until: Callable[..., Any]
) -> None:
    patience(pool, math.inf)
    conn = pool.acquire()
    waiter = Waiter(pool, until)
    state = pool._state
    with state.lock:  # the waiter is awake, and cannot look yet
        pool.release(conn)
        again = pool.acquire()
    assert again is conn
    until(lambda: not any(each.called for each in list(state.kernel.waiting)))
    assert not waiter.has_it.is_set()
    pool.release(again)
    assert waiter.has_it.wait(30)  # nobody else came
    waiter.end()


def test_a_caller_that_has_waited_for_long_gets_the_next_connection(
    pool: unbroken.Pool, until: Callable[..., Any]
) -> None:
    conn = pool.acquire()
    waiter = Waiter(pool, until)
    (ticket,) = pool._state.kernel.waiting
    until(lambda: time.monotonic() - ticket.since > ThreadRuntime.patience)
    with pool._state.lock:
        pool.release(conn)
        assert ticket.entry is not None  # handed over, before the other thread is awake
    assert waiter.has_it.wait(30)
    waiter.end()


def test_a_caller_that_is_called_and_told_to_leave_passes_the_connection_on(
    pool: unbroken.Pool, until: Callable[..., Any]
) -> None:
    patience(pool, math.inf)
    conn = pool.acquire()
    told: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(unbroken.PoolTimeoutError, match="told") as caught:
            pool.acquire()
        told.append(caught.value)

    first = threading.Thread(target=wait)
    first.start()
    until(lambda: pool.stats().waiting)
    second = Waiter(pool, lambda _: until(lambda: pool.stats().waiting == 2))
    state = pool._state
    with state.lock:
        pool.release(conn)
        (ticket, other) = state.kernel.waiting
        assert (ticket.called, other.called) == (True, False)
        dismissed = state.kernel.dismiss([ticket], unbroken.PoolTimeoutError("told"))
    state.wake(dismissed)
    assert second.has_it.wait(30)
    second.end()
    first.join(30)
    assert told


def test_no_thread_is_left_behind_by_others_that_run(postgres: PostgreSQL) -> None:
    """With a pool that leaves each wait to chance, some threads do nothing for seconds."""
    turns = [0] * THREADS
    over = threading.Event()
    with unbroken.Pool(postgres.url("psycopg"), max_size=SIZE) as pool:

        def work(number: int) -> None:
            while not over.is_set():
                with pool.connection() as conn:
                    conn.execute("SELECT 1")
                turns[number] += 1

        threads = [threading.Thread(target=work, args=(each,)) for each in range(THREADS)]
        for each in threads:
            each.start()
        deadline = time.monotonic() + 60
        while sum(turns) < 300 * THREADS and time.monotonic() < deadline:
            time.sleep(0.01)
        over.set()
        for each in threads:
            each.join(30)
        assert min(turns) > 0.3 * sum(turns) / THREADS, turns
        stats = pool.stats()
    assert (stats.used, stats.waiting, stats.idle) == (0, 0, stats.size)
