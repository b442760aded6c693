"""Connections that are held too long, or forgotten: reported with the place that took them, and
their places come back.
"""

from __future__ import annotations

import gc
import logging
import math
import threading
import weakref

import pytest

from unbroken import PoolTimeoutError, logs
from unbroken.pool.holder import thread_frames
from unbroken.pool.leaks import reclaim


def warnings(caplog):
    return [
        r.getMessage()
        for r in caplog.records
        if r.name.startswith("unbroken") and r.levelno == logging.WARNING
    ]


def take_and_keep(pool):
    return pool.acquire()


def line_of(function, offset=1):
    return function.__code__.co_firstlineno + offset


def test_a_connection_that_is_held_too_long_is_reported_once_with_place_holder_and_stack(
    face, until, caplog
):
    pool = face.pool(leak_after=0.2)
    out, taken = threading.Event(), []

    def hold():
        taken.append(take_and_keep(pool))
        out.wait(20)
        pool.release(taken.pop())

    thread = threading.Thread(target=hold, name="the-holder")
    thread.start()
    try:
        until(lambda: warnings(caplog))
        assert pool.stats().leaked == 1
        # several looks later it is still the only one
        ticks = []
        pool._state.runtime.watcher.at(pool._state.clock() + 0.5, lambda: ticks.append(1))
        until(lambda: ticks)
        assert len(warnings(caplog)) == 1
    finally:
        out.set()
        thread.join(10)
    text = warnings(caplog)[0]
    assert f"{__file__}:{line_of(take_and_keep)} in take_and_keep" in text
    assert "thread the-holder" in text
    assert (".<locals>.hold <" in text) is (thread_frames() is not None)
    assert "\n" not in text
    assert "leak_after 0.2 s" in text
    assert pool.stats().closed == {}


def test_the_next_use_of_the_same_connection_is_reported_anew(face, until, caplog):
    pool = face.pool(leak_after=0.1)
    for number in (1, 2):
        with pool.connection():
            until(lambda number=number: len(warnings(caplog)) == number)
        logs.forget()
    assert pool.stats().leaked == 2
    assert pool.stats().opened == 1


def test_a_block_is_named_by_its_own_line_and_run_by_the_line_that_called_it(face, until, caplog):
    pool = face.pool(leak_after=0.1)
    with pool.connection():
        until(lambda: len(warnings(caplog)) == 1)
    pool.run(lambda conn: until(lambda: len(warnings(caplog)) == 2))
    here = test_a_block_is_named_by_its_own_line_and_run_by_the_line_that_called_it
    for text, offset in zip(warnings(caplog), (2, 4), strict=True):
        assert f"{__file__}:{line_of(here, offset)} in {here.__name__}" in text


def test_what_is_given_back_in_time_is_not_reported(face, caplog):
    pool = face.pool(leak_after=0.3)
    ticks = []
    for _ in range(30):
        with pool.connection() as conn:
            face.sleep(conn, 0.02)
    pool._state.runtime.watcher.at(pool._state.clock() + 0.5, lambda: ticks.append(1))
    assert warnings(caplog) == []


def test_no_leak_is_looked_for_where_none_is_wanted(face, caplog):
    pool = face.pool(leak_after=math.inf, max_idle=0.2)
    with pool.connection() as conn:
        face.sleep(conn, 0.4)
    assert warnings(caplog) == []


def forget(pool):
    conn = pool.acquire()
    return conn.__class__


def test_a_forgotten_connection_comes_back_by_itself_and_is_reported_with_its_place(
    face, until, caplog
):
    pool = face.pool(max_size=1)
    forget(pool)
    with pool.connection() as conn:  # there is only one place
        assert face.ask(conn, "SELECT 1") == 1
    until(lambda: pool.stats().closed)
    assert f"{__file__}:{line_of(forget)} in forget" in warnings(caplog)[0]
    assert "forgotten" in warnings(caplog)[0]
    assert pool.stats().closed == {"forgotten": 1}
    assert pool.stats().leaked == 1


def test_a_forgotten_connection_is_found_without_any_traffic(face, until):
    pool = face.pool(max_size=3)
    forget(pool)
    until(lambda: pool.stats().closed == {"forgotten": 1})
    assert pool.stats().size == 0


def test_connections_forgotten_in_reference_cycles_come_back_too(face, until):
    pool = face.pool(max_size=3, acquire_timeout=10)

    class Cycle:
        def __init__(self):
            self.conn, self.me = pool.acquire(), self

    gc.disable()  # what a busy application looks like for a while: nobody collects
    try:
        for _ in range(3):
            Cycle()
        with pool.connection() as conn:
            assert face.ask(conn, "SELECT 1") == 1
    finally:
        gc.enable()
    # a new one may have the address, and so the place, of one not noted yet
    until(lambda: pool.stats().closed == {"forgotten": 3})
    assert pool.stats().used == 0


def test_what_a_forgotten_connection_had_written_is_rolled_back(own_face, until):
    face = own_face
    pool, table = face.pool(), face.table()

    def write():
        conn = pool.acquire()
        face.do(conn, f"INSERT INTO {table} VALUES (1)")

    write()
    until(lambda: face.server.sessions() == [])
    assert face.stored(table) == []


def test_a_request_that_fails_and_drops_its_connection_costs_nobody_a_place(face):
    pool = face.pool(max_size=5, acquire_timeout=5)
    for _ in range(8):
        try:
            conn = pool.acquire()
            face.do(conn, "SELECT * FROM no_such_table")
        except pool._driver.errors + (Exception,):  # noqa: RUF005
            pass
        del conn
    for _ in range(12):
        assert pool.run(lambda conn: face.ask(conn, "SELECT 1")) == 1
    assert pool.stats().used == 0


def test_without_reclaim_a_held_connection_stays_its_holders(face, until, caplog):
    pool = face.pool(max_size=1, leak_after=0.1)
    held = pool.acquire()
    until(lambda: warnings(caplog))
    with pytest.raises(PoolTimeoutError):
        pool.acquire(timeout=0.2)
    assert face.ask(held, "SELECT 1") == 1
    pool.release(held)


@pytest.mark.parametrize("then", ["release", "close", "forget", "go on"])
def test_reclaim_ends_a_held_connection_and_the_pool_gets_its_place_back(face, until, caplog, then):
    pool, table = face.pool(max_size=1, leak_after=0.2, reclaim=True), face.table()
    held = pool.acquire()
    face.do(held, f"INSERT INTO {table} VALUES (1)")
    with pool.connection(timeout=10) as conn:
        assert face.ask(conn, "SELECT 1") == 1
    until(lambda: pool.stats().closed == {"reclaimed": 1})
    assert len(warnings(caplog)) == 1
    if then == "release":
        pool.release(held)
    elif then == "close":
        held.close()
    elif then == "go on":
        with pytest.raises(pool._driver.errors):
            face.do(held, f"INSERT INTO {table} VALUES (2)")
            held.commit()
        pool.release(held)
    gone = weakref.ref(held)
    del held
    gc.collect()
    # nobody keeps it; the thread that took it away may be a moment longer at its end
    until(lambda: gone() is None)
    assert pool._state.kernel.reclaimed == {}
    assert face.stored(table) == []
    # upkeep may have the idle connection for a moment
    until(lambda: (pool.stats().used, pool.stats().idle, pool.stats().size) == (0, 1, 1))
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_a_block_whose_connection_is_reclaimed_gets_an_error_and_stores_nothing(face, until):
    pool, table = face.pool(max_size=1, leak_after=0.2, reclaim=True), face.table()
    with pytest.raises(pool._driver.errors) as caught, pool.connection() as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        until(lambda: pool.stats().closed == {"reclaimed": 1})
    assert "reclaimed" in str(caught.value)
    assert face.stored(table) == []
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_a_call_that_blocks_is_ended_when_its_connection_is_reclaimed(face, until):
    pool = face.pool(max_size=1, leak_after=0.2, reclaim=True)
    with pytest.raises(pool._driver.errors) as caught, pool.connection() as conn:
        face.sleep(conn, 20)
    until(lambda: pool.stats().closed == {"reclaimed": 1})
    assert "leak_after=0.2" in caught.value.__notes__[0]


def test_a_connection_that_was_taken_back_with_its_request_is_not_said_to_be_held_too_long(face):
    pool = face.pool(max_size=1, leak_after=60)
    with pytest.raises(pool._driver.errors) as caught, pool.connection() as conn:
        entry = next(iter(pool._state.kernel.in_use.values()))
        assert reclaim(pool._state, entry, entry.uses)
        face.ask(conn, "SELECT 1")
    assert "the request that took it had ended" in caught.value.__notes__[0]
    assert "leak_after" not in caught.value.__notes__[0]


def test_reclaiming_again_and_again_never_opens_more_than_max_size(own_face, in_threads, until):
    face = own_face
    pool = face.pool(max_size=2, leak_after=0.1, reclaim=True, acquire_timeout=20)
    keep = []

    def hold(_):
        keep.extend(pool.acquire() for _ in range(3))

    assert in_threads(4, hold) == [None] * 4
    assert len(face.server.sessions()) <= 2
    for conn in keep:
        pool.release(conn)
    until(lambda: pool.stats().used == 0)
    assert pool.stats().closed["reclaimed"] >= 10
