"""Connections that end while nobody uses them, and while somebody holds them: never an error, never
a socket left behind.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

#: The pool promises one second; the rest is for machines that are busy with something else.
SOON = 3.0


def fill(face, pool, number):
    """Open *number* connections and give them all back: their sessions."""
    held = [pool.acquire() for _ in range(number)]
    sessions = [face.session(conn) for conn in held]
    for conn in held:
        pool.release(conn)
    assert pool.stats().idle == number
    return sessions


def test_all_sessions_killed_is_no_error(own_face):
    pool = own_face.pool(max_size=8)
    for _ in range(3):
        old = fill(own_face, pool, 8)
        assert own_face.server.kill_sessions() == 8
        with pool.connection() as conn:
            assert own_face.session(conn) not in old


def test_the_watcher_evicts_all_that_were_killed_without_any_traffic(own_face, until):
    pool = own_face.pool(max_size=8)
    fill(own_face, pool, 8)
    own_face.server.kill_sessions()
    until(lambda: pool.stats().size == 0, SOON)
    until(lambda: sum(pool.stats().closed.values()) == 8)
    if not own_face.is_mysql:
        assert pool.stats().closed == {"killed": 8}


def test_what_was_killed_just_before_an_acquire_is_never_handed_out(own_face, until):
    """Without the watcher's help: what the kernel knows at the moment of the acquire is enough."""
    pool = own_face.pool(max_size=4)
    pool._state.ended = lambda entry: None
    for _ in range(5):
        old = fill(own_face, pool, 4)
        own_face.server.kill_sessions()
        until(lambda: len(pool._state.sockets.dead()) == 4)
        conn = pool.acquire()
        assert own_face.session(conn) not in old
        pool.release(conn)


def test_acquires_while_sessions_are_being_killed_never_get_a_dead_one_twice(own_face, in_threads):
    """A kill may strike after the acquire: then the next acquire must be well."""
    pool, stop = own_face.pool(max_size=4), threading.Event()
    failures = []

    def work(i):
        if i == 0:
            for _ in range(10):
                own_face.server.kill_sessions()
                time.sleep(0.02)
            stop.set()
            return
        while not stop.is_set():
            conn = pool.acquire()
            sent = time.monotonic()
            try:
                own_face.ask(conn, "SELECT 1")
            except pool._driver.errors:
                failures.append(time.monotonic() - sent)
            pool.release(conn)

    assert in_threads(5, work) == [None] * 5
    stats = pool.stats()
    assert stats.used == stats.waiting == 0
    with pool.connection() as conn:
        assert own_face.ask(conn, "SELECT 1") == 1
    assert len(failures) <= 10 * 4  # at most what was lent at each of the 10 kills


@pytest.mark.parametrize("knows", [True, False], ids=["limit known", "limit not known"])
def test_the_servers_idle_limit_is_asked_for_and_is_never_an_error(own_face, until, knows):
    face = own_face
    face.server.set(**{"wait_timeout": 1} if face.is_mysql else {"idle_session_timeout": "1s"})
    pool = face.pool(max_size=4, idle_limit=None if knows else math.inf)
    fill(face, pool, 4)
    assert pool.stats().idle_limit == 1.0
    until(lambda: face.server.sessions() == [])
    until(lambda: pool.stats().size == 0)
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    until(lambda: sum(pool.stats().closed.values()) >= 4)
    assert pool.stats().closed == ({"max idle": 4} if knows else {"idle limit": 4})


def test_what_is_kept_warm_is_exercised_before_the_servers_limit_strikes(own_face, until, steadily):
    face = own_face
    face.server.set(**{"wait_timeout": 2} if face.is_mysql else {"idle_session_timeout": "2s"})

    def keep_warm():
        with face.pool(min_size=2) as pool:
            pool.check()
            until(lambda: pool.stats().idle == 2)
            sessions = {s.id for s in face.server.sessions()}
            end = time.monotonic() + 3.0
            while time.monotonic() < end:
                time.sleep(0.1)
                assert pool.stats().size == 2
            assert {s.id for s in face.server.sessions()} >= sessions
            assert pool.stats().pings > 0
            assert sum(pool.stats().closed.values()) == 0

    steadily(0.2, keep_warm)


def test_where_the_limit_may_not_be_asked_it_is_learned_from_the_deaths(own_face, until):
    face = own_face
    # something between us and the server that ends what is idle, and says nothing
    proxy = face.proxy()
    # looks at the clock every 0.05 s
    pool = face.pool(proxy.url(face.url()), max_size=2, leak_after=0.2)
    for seconds in (0.92, 0.94, 0.9, 0.95):
        fill(face, pool, 1)
        time.sleep(seconds)
        proxy.fin()
        until(lambda: pool.stats().size == 0)
    fill(face, pool, 1)  # asks how long the server is up
    assert pool.stats().idle_limit == pytest.approx(0.95, abs=0.25)
    assert "lost without a message" in pool.stats().idle_limit_learned_from


def test_no_socket_stays_in_close_wait_not_even_one_that_is_held(own_face, until, in_close_wait):
    pool = own_face.pool(max_size=6)
    fill(own_face, pool, 6)
    held = [pool.acquire() for _ in range(3)]
    own_face.server.kill_sessions()
    until(lambda: in_close_wait() == 0 and pool.stats().size == 3, SOON)
    for conn in held:
        pool.release(conn)
    assert pool.stats().size == 0


def test_a_killed_connection_that_is_held_does_not_slow_down_the_others(own_face, until):
    """A death that is known must not be seen again and again by each look at all sockets."""
    pool = own_face.pool(max_size=3)
    held = pool.acquire()
    own_face.server.kill_sessions()
    entry = next(iter(pool._state.kernel.in_use.values()))
    until(lambda: entry.cause is not None and not pool._state.hung_up())
    pool.release(held)


def test_two_hundred_idle_connections_are_all_seen_to_die(own_face, until):
    if own_face.name != "pymysql":
        pytest.skip("once is enough: nothing here depends on the driver")
    own_face.server.admin("SET GLOBAL max_connections = 300")
    pool = own_face.pool(max_size=200)
    fill(own_face, pool, 200)
    assert own_face.server.kill_sessions() == 200
    with pool.connection() as conn:
        assert own_face.ask(conn, "SELECT 1") == 1
    until(lambda: sum(pool.stats().closed.values()) == 200, SOON)


def test_a_silent_drop_is_found_by_a_ping_before_the_connection_is_lent(face):
    proxy = face.proxy()
    pool = face.pool(proxy.url(face.url()), ping_after=0.05, ping_timeout=0.3)
    old = fill(face, pool, 1)
    proxy.blackhole("hold")
    time.sleep(0.1)
    timer = threading.Timer(0.5, proxy.heal)
    timer.start()
    with pool.connection() as conn:
        assert face.session(conn) not in old
    timer.join()
    assert pool.stats().closed == {"silent drop": 1}


def test_many_silent_drops_cost_one_ping_and_not_one_each(face):
    """A NAT forgets all of its idle connections at once: a caller must not wait for the ping of
    each.
    """
    proxy = face.proxy()
    pool = face.pool(proxy.url(face.url()), ping_after=0.05, ping_timeout=0.5, max_size=8)
    old = fill(face, pool, 8)
    time.sleep(0.1)
    proxy.blackhole("hold", on="existing")
    started = time.monotonic()
    with pool.connection() as conn:
        assert face.session(conn) not in old
    assert time.monotonic() - started < 8 * 0.5 / 2


def test_what_waits_to_be_read_is_not_taken_for_a_death(postgres, faces, until):
    face = faces("psycopg", postgres)
    pool = face.pool(face.url(autocommit="true"))
    with pool.connection() as conn:
        mine = face.session(conn)
        face.do(conn, "LISTEN news")
    with face.pool().connection() as other:
        face.do(other, "NOTIFY news, 'hello'")
    until(lambda: next(iter(pool._state.idle)).poll(0))
    with pool.connection() as conn:
        assert face.session(conn) == mine
    assert pool.stats().opened == 1


@contextmanager
def no_lower_descriptor_free(number):
    """Within the block *number* is what the kernel gives next, once it is closed."""
    with ExitStack() as stack:
        while (taken := os.open(os.devnull, os.O_RDONLY)) < number:
            stack.callback(os.close, taken)
        os.close(taken)
        yield


def is_open(number):
    return os.path.lexists(f"/proc/self/fd/{number}")


def test_the_descriptors_number_of_a_forgotten_connection_may_be_in_use_again(own_face, until):
    """What was forgotten is closed by its driver; by the time the pool hears of it, its number may
    be another's.
    """
    face = own_face
    pool = face.pool(max_size=2)
    conn = pool.acquire()
    number = pool._driver.fileno(conn)
    with no_lower_descriptor_free(number):
        del conn  # forgotten; nobody has looked yet
        # the thread that opened it may be a moment longer at its end than we
        until(lambda: not is_open(number))
        fresh = pool.acquire()
    assert pool._driver.fileno(fresh) == number
    mine = face.session(fresh)
    until(lambda: pool.stats().closed == {"forgotten": 1})
    pool.release(fresh)
    face.server.kill_sessions()
    until(lambda: pool.stats().size == 0, SOON)  # nobody forgot to look at the new one
    with pool.connection() as conn:
        assert face.session(conn) != mine


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"keepalive": 4.0}, 4),
        ({}, 6),
        ({"keepalive": 30.0}, 6),
        ({"keepalive": 17.0, "send_timeout": math.inf}, 17),
    ],
)
def test_keepalive_is_set_on_the_socket(face, settings, idle):
    import socket

    pool = face.pool(**settings)
    with pool.connection() as conn:
        sock = socket.socket(fileno=pool._driver.fileno(conn))
        try:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
        finally:
            sock.detach()


def test_a_death_that_strikes_between_two_owners_is_not_lost_sight_of(own_face, until):
    """A worker that pings a connection, or a caller who is just taking it, owns it for a moment;
    then it is found all the same.
    """
    pool = own_face.pool()
    fill(own_face, pool, 1)
    state = pool._state
    entry = state.idle[0]
    with state.lock:
        assert state.kernel.claim(entry)
    own_face.server.kill_sessions()
    # the watcher has told what it saw
    until(lambda: entry.fd not in state.runtime.watcher._callbacks)
    state.kernel.idle.append(entry)
    until(lambda: pool.stats().size == 0, SOON)
