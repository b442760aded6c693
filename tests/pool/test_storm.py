"""Many threads, switched as often as Python can, with timeouts, kills, exceptions and restarts: at
rest all is whole.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter

import pytest

from unbroken import CommitUnknownError, ConnectionLostError, OutageError, PoolTimeoutError


@pytest.fixture
def hurried():
    """Switch threads as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_rest(pool, until):
    """Wait until nothing moves, then: all that is open is idle, and nobody waits."""
    until(lambda: (s := pool.stats()).used == s.waiting == s.opening == 0 and s.idle == s.size)
    kernel = pool._state.kernel
    until(lambda: pool._state.connectors == 0)
    assert len(kernel.entries) == len(kernel.idle) == len(set(map(id, kernel.idle)))
    assert kernel.in_use == kernel.resetting == kernel.reclaimed == {}
    assert kernel.opening == 0
    stats = pool.stats()
    assert stats.size <= stats.max_size
    return stats


@pytest.mark.parametrize("threads", [16, 32])
def test_a_storm_of_threads_leaves_the_pool_whole(face, in_threads, until, hurried, threads):
    pool = face.pool(max_size=4, acquire_timeout=5)
    most = []

    def work(i):
        rng = random.Random(i)
        mine = Counter()
        for _ in range(60):
            way = rng.random()
            try:
                if way < 0.25:
                    conn = pool.acquire(timeout=rng.choice([0.0, 0.0005, 0.005, 5.0]))
                    mine["acquired"] += 1
                    most.append(len(pool._state.kernel.in_use))
                    pool.release(conn)
                elif way < 0.9:
                    with pool.connection(timeout=rng.choice([0.0005, 0.01, 5.0])) as conn:
                        mine["acquired"] += 1
                        if way < 0.4:
                            face.ask(conn, "SELECT 1")
                        if way < 0.35:
                            raise ZeroDivisionError
                else:
                    pool.run(lambda conn: mine.update(acquired=1) or face.ask(conn, "SELECT 1"))
            except ZeroDivisionError:
                mine["raised"] += 1
            except PoolTimeoutError:
                mine["timeouts"] += 1
        # added up by one thread: Counter.update loses counts when two threads do it at once
        return mine

    outcomes = sum(in_threads(threads, work), Counter())
    stats = at_rest(pool, until)
    assert max(most) <= 4
    assert stats.acquired == outcomes["acquired"]
    # those that the line would have served too late are told at once
    assert stats.timeouts + stats.shed == outcomes["timeouts"] > 0
    assert stats.opened <= 4
    assert stats.idle == stats.size > 0


def test_a_storm_with_kills_leaves_the_pool_whole(own_face, in_threads, until, hurried):
    face = own_face
    pool, stop = face.pool(max_size=4, acquire_timeout=10), threading.Event()

    def work(i):
        rng = random.Random(i)
        if i == 0:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                face.server.kill_sessions()
                time.sleep(rng.random() * 0.05)
            stop.set()
            return
        while not stop.is_set():
            if rng.random() < 0.5:
                assert pool.run(lambda conn: face.ask(conn, "SELECT 41 + 1")) == 42
                continue
            try:
                with pool.connection(timeout=rng.choice([0.001, 10.0])) as conn:
                    face.ask(conn, "SELECT 1")
                    if rng.random() < 0.2:
                        raise ZeroDivisionError
            except (
                ZeroDivisionError,
                PoolTimeoutError,
                OutageError,
                CommitUnknownError,
                ConnectionLostError,
            ):
                pass
            except pool._driver.errors as error:
                if not pool._driver.classify(error).is_lost:
                    raise

    results = in_threads(17, work)
    assert [r for r in results if r is not None] == []
    stats = at_rest(pool, until)
    assert sum(stats.closed.values()) == stats.opened - stats.size
    assert len(face.server.sessions()) == stats.size


def test_a_hundred_threads_meet_a_restart_and_none_sees_an_error(own_face, in_threads, until):
    face = own_face
    pool, done = face.pool(max_size=10, acquire_timeout=30, outage_wait=30), threading.Event()

    def work(i):
        if i == 0:
            time.sleep(0.3)
            face.server.restart(down=0.5)
            done.set()
            return 0
        times = 0
        while not done.is_set() or times < 3:
            assert pool.run(lambda conn: face.ask(conn, "SELECT 41 + 1")) == 42
            times += 1
        return times

    results = in_threads(101, work)
    assert [r for r in results if not isinstance(r, int)] == []
    stats = at_rest(pool, until)
    assert stats.outages >= 1
    assert stats.timeouts == 0
    assert len(face.server.sessions()) == stats.size <= 10


def test_resizing_draining_and_checking_in_a_storm_leave_the_pool_whole(
    face, in_threads, until, hurried
):
    pool, stop = face.pool(max_size=4, acquire_timeout=20), threading.Event()

    def work(i):
        rng = random.Random(i)
        if i == 0:
            for _ in range(60):
                rng.choice(
                    [pool.drain, lambda: pool.resize(max_size=rng.randint(1, 6)), pool.check]
                )()
            pool.resize(max_size=4)
            stop.set()
            return
        while not stop.is_set():
            with pool.connection() as conn:
                face.ask(conn, "SELECT 1")

    assert in_threads(10, work) == [None] * 10
    stats = at_rest(pool, until)
    assert sum(stats.closed.values()) == stats.opened - stats.size
    assert set(stats.closed) <= {"drained", "surplus"}


def test_closing_in_a_storm_ends_everything(own_face, in_threads, until, hurried):
    face = own_face
    pool = face.pool(max_size=4, acquire_timeout=20)

    def work(i):
        if i == 0:
            time.sleep(0.3)
            pool.close(timeout=0)
            return "closed"
        try:
            while True:
                with pool.connection() as conn:
                    face.ask(conn, "SELECT 1")
        except Exception as error:
            return type(error).__name__

    assert in_threads(16, work) == ["closed"] + ["PoolClosedError"] * 15
    until(lambda: pool.stats().size == 0)
    until(lambda: face.server.sessions() == [])
