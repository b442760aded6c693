"""A server that is away: callers wait in line, are told in time and truly, and are served as soon
as it is back.
"""

from __future__ import annotations

import re
import socket
import threading
import time

import pytest

from unbroken import ConnectRejectedError, OutageError, PoolTimeoutError
from unbroken.brain.outage import LONELY_PACE


@pytest.fixture
def down(own_face):
    """A face whose server does not run, and a pool that knew it."""
    pool = own_face.pool(max_size=4)
    pool.check()
    own_face.server.stop()
    return own_face, pool


def accepting(server):
    """When the server accepts connections again, seen by attempts of our own: a thread, then
    ``result[0]``.
    """
    result = []

    def probe():
        while not result:
            try:
                server.admin("SELECT 1")
                result.append(time.monotonic())
            except Exception:
                time.sleep(0.001)

    thread = threading.Thread(target=probe)
    thread.start()
    return thread, result


@pytest.mark.parametrize("how", ["stop", "kill -9"])
def test_callers_wait_in_line_and_are_served_as_soon_as_the_server_is_back(own_face, until, how):
    face = own_face
    pool = face.pool(max_size=4, outage_wait=20, acquire_timeout=20)
    pool.check()
    face.server.stop() if how == "stop" else face.server.kill()
    served, errors = [], []

    def caller():
        try:
            with pool.connection() as conn:
                face.ask(conn, "SELECT 1")
                served.append(time.monotonic())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=caller) for _ in range(12)]
    for thread in threads:
        thread.start()
    until(lambda: pool.stats().waiting == 12)
    until(lambda: pool.stats().away_for > 0.3)
    thread, back = accepting(face.server)
    face.server.start()
    for t in (*threads, thread):
        t.join(20)
    assert errors == []
    assert len(served) == 12
    away = pool.stats().outage_seconds
    assert pool.stats().outages == 1
    # Within a small part of the outage, and of what a pool that sleeps between attempts would take.
    assert min(served) - back[0] < max(0.25, away / 4)


def test_no_error_reaches_run_through_a_restart_or_a_crash(own_face, in_threads):
    face = own_face
    pool, stop = face.pool(max_size=4), threading.Event()

    def work(i):
        if i == 0:
            face.server.restart(down=0.2)
            face.server.crash(down=0.2)
            stop.set()
            return 0
        done = 0
        while not stop.is_set():
            pool.run(lambda conn: face.ask(conn, "SELECT 1"))
            done += 1
        return done

    results = in_threads(5, work)
    assert [r for r in results if isinstance(r, BaseException)] == []
    assert all(results[1:])


def test_a_caller_waits_no_longer_than_outage_wait_and_is_told_why(down):
    face, pool = down
    pool.resize(max_size=4)
    patient = face.pool(outage_wait=0.4, acquire_timeout=20)
    started = time.monotonic()
    with pytest.raises(OutageError) as caught:
        patient.acquire()
    waited = time.monotonic() - started
    assert 0.3 <= waited < 3.0
    text = str(caught.value)
    assert "\n" not in text
    assert "refused" in text.lower() or "115" in text or "111" in text
    assert "the server has been down for" in text
    assert face.server.password not in text
    assert isinstance(caught.value, (ConnectionError, patient._driver.errors[0]))
    assert caught.value.retry_after > 0


def test_an_outage_that_is_old_fails_new_callers_at_once_and_recovers_by_itself(down, until):
    face, _ = down
    pool = face.pool(outage_wait=1.0)

    def turned_away(times):
        started = time.monotonic()
        for _ in range(times):
            with pytest.raises(OutageError):
                pool.acquire()
        return time.monotonic() - started

    first = turned_away(1)
    assert turned_away(10) < first  # all ten in less time than the one who waited
    assert pool.stats().turned_away >= 10
    face.server.start()
    until(lambda: pool.stats().away_for == 0.0)
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_callers_who_are_turned_away_keep_the_prober_quick(down, until):
    """Nobody stands in line while all are told at once, but somebody wants the server: it must be
    tried often.
    """
    face, _ = down
    pool = face.pool(outage_wait=0.3)
    with pytest.raises(OutageError):
        pool.acquire()
    failures = pool.stats().connect_failures
    started = time.monotonic()
    while pool.stats().connect_failures - failures < 10:
        with pytest.raises(OutageError):
            pool.acquire()
        time.sleep(0.01)
        # at that pace it would take ten times as long
        assert time.monotonic() - started < 5 * LONELY_PACE


def test_callers_of_one_pool_wake_the_prober_of_another_on_the_same_server(down, until):
    face, _ = down
    one, other = (
        face.pool(outage_wait=0.2, acquire_timeout=20),
        face.pool(outage_wait=20, acquire_timeout=20),
    )
    with pytest.raises(OutageError):
        one.acquire()
    until(lambda: one._state.server.outage.prober is one._state)
    failures = sum(pool.stats().connect_failures for pool in (one, other))
    waiter = threading.Thread(target=lambda: other.release(other.acquire()))
    waiter.start()
    until(lambda: other.stats().waiting == 1)
    # At the lonely pace it would take twice as long.
    until(
        lambda: sum(pool.stats().connect_failures for pool in (one, other)) >= failures + 10,
        5 * LONELY_PACE,
    )
    face.server.start()
    waiter.join(10)
    assert not waiter.is_alive()


def test_attempts_during_an_outage_are_few_and_made_by_one(own_face, until):
    """Counted at the server's own port, for all pools of the process together."""
    face = own_face
    pools = [face.pool(max_size=5, outage_wait=20, acquire_timeout=1.0) for _ in range(4)]
    for pool in pools:
        pool.check(timeout=10)
    before = sum(p.stats().connect_failures for p in pools)
    face.server.stop()
    started = time.monotonic()
    outcomes = []

    def caller(pool):
        try:
            pool.release(pool.acquire())
        except (OutageError, PoolTimeoutError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=caller, args=(pool,)) for pool in pools for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    elapsed = time.monotonic() - started
    attempts = sum(p.stats().connect_failures for p in pools) - before
    assert len(outcomes) == 20
    # one prober's pace, and what was under way when it began
    assert attempts <= elapsed / 0.010 + 4 * 4 + 4
    assert attempts >= 5


def test_a_dead_connection_that_somebody_holds_does_not_keep_the_others_waiting(own_face, until):
    """What is held cannot come back to serve a caller when the server has taken it away."""
    face = own_face
    pool = face.pool(max_size=4, outage_wait=0.3, acquire_timeout=10)
    held = pool.acquire()
    entry = next(iter(pool._state.kernel.in_use.values()))
    face.server.kill()
    until(lambda: entry.cause is not None)
    started = time.monotonic()
    with pytest.raises(OutageError):
        pool.acquire()
    assert time.monotonic() - started < 5
    pool.release(held)


def test_a_pool_made_after_an_outage_is_not_turned_away_on_old_news(down, until):
    face, pool = down
    short = face.pool(outage_wait=0.2)
    with pytest.raises(OutageError):
        short.acquire()
    for closing in (pool, short):
        closing.close(timeout=0)
    until(lambda: short._state.connectors == pool._state.connectors == 0)
    face.server.start()
    with face.pool(outage_wait=0.2).connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_a_frozen_server_ends_nobodys_session_and_all_are_well_after_the_thaw(own_face):
    face = own_face
    pool = face.pool(max_size=2, acquire_timeout=0.5)
    held = pool.acquire(timeout=10)
    mine = face.session(held)
    face.server.freeze()
    try:
        with pytest.raises((PoolTimeoutError, OutageError)) as caught:
            pool.acquire()
        assert re.search(r"within \d+\.\d s", str(caught.value)) or "server has been down" in str(
            caught.value
        )
    finally:
        face.server.thaw()
    assert face.session(held) == mine
    pool.release(held)
    with pool.connection(timeout=10) as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_a_server_that_is_full_is_waited_for_and_not_hammered(own_face, until):
    face = own_face
    face.server.set(max_connections=10) if face.is_mysql else None
    if not face.is_mysql:
        face.server.options.update(max_connections=8, superuser_reserved_connections=3)
        face.server.restart()
    other = face.pool(max_size=30, acquire_timeout=0.5)
    hogs = []

    def is_full():
        try:
            hogs.append(other.acquire())
        except (
            PoolTimeoutError,
            OutageError,
        ) as error:  # a slow machine may not be done with a connect in time, which is no news
            return any(
                words in str(error).lower() for words in ("too many", "server is full", "slots")
            )
        return False

    until(is_full, 30)
    assert len(hogs) >= 4
    other._state.kernel.max_size = len(hogs)  # it wants no more
    pool = face.pool(acquire_timeout=20, outage_wait=20)
    served = []
    waiter = threading.Thread(
        target=lambda: served.append(pool.run(lambda conn: face.ask(conn, "SELECT 1")))
    )
    waiter.start()
    until(lambda: pool.stats().waiting == 1)
    start, began = pool.stats().connect_failures + other.stats().connect_failures, time.monotonic()
    time.sleep(0.6)
    until(lambda: pool.stats().connect_failures + other.stats().connect_failures > start)
    attempts = pool.stats().connect_failures + other.stats().connect_failures - start
    assert not served
    assert attempts <= (time.monotonic() - began) / 0.050 + 3
    for conn in hogs:
        other.release(conn)
    other.close(timeout=0)
    waiter.join(10)
    assert served == [1]


def test_a_refused_password_is_told_at_once_in_one_line_without_it(face):
    secret = "Sup3r-geheim!"
    pool = face.pool(face.url().replace(f":{face.server.password}@", f":{secret}@"))
    started = time.monotonic()
    with pytest.raises(ConnectRejectedError) as caught:
        pool.acquire()
    assert time.monotonic() - started < 3.0
    assert secret not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert face.server.user in str(caught.value)
    assert pool.stats().connect_failures == 1
    assert pool.stats().away_for == 0.0


def test_an_unknown_database_is_told_at_once(face):
    pool = face.pool(face.url().replace("/shop", "/no_such_shop"))
    with pytest.raises(ConnectRejectedError, match="no_such_shop"):
        pool.acquire()


def test_a_host_that_was_never_known_is_refused_after_outage_wait_and_then_at_once(face):
    url = face.url().replace(f"@{face.server.host}:", "@no-such-host.invalid:")
    pool = face.pool(url, outage_wait=0.6)
    for least, most in ((0.5, 3.0), (0.0, 0.6)):
        started = time.monotonic()
        with pytest.raises((ConnectRejectedError, OutageError)) as caught:
            pool.acquire()
        assert least <= time.monotonic() - started < most
        assert "\n" not in str(caught.value)
        assert "no-such-host.invalid" in str(caught.value)
        # a machine without a name service says "try again": then it is an outage
        is_known_wrong = isinstance(caught.value, ConnectRejectedError)
        assert is_known_wrong == ("check its spelling" in str(caught.value))


def test_a_host_that_never_answers_is_given_up_in_time(face):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # accepts in its backlog, says nothing
        url = face.url().replace(f":{face.server.port}/", f":{deaf.getsockname()[1]}/")
        pool = face.pool(url, acquire_timeout=0.5, connect_timeout=1.0)
        started = time.monotonic()
        with pytest.raises((PoolTimeoutError, OutageError)):
            pool.acquire()
        assert 0.4 < time.monotonic() - started < 10.0  # by itself it would never end


def test_a_pool_fills_at_a_bounded_pace_after_an_outage(own_face, until, in_threads):
    """A thousand processes that all find the server back at once must not knock it over: first one,
    then a few at a time.
    """
    face = own_face
    pool = face.pool(max_size=12, outage_wait=20, acquire_timeout=20)
    pool.check()
    face.server.stop()
    most = []
    threads = []

    def caller():
        with pool.connection() as conn:
            most.append(pool.stats().opening)
            face.sleep(conn, 0.02)

    for _ in range(24):
        threads.append(threading.Thread(target=caller))
        threads[-1].start()
    until(lambda: pool.stats().waiting == 24)
    face.server.start()
    for thread in threads:
        thread.join(20)
    assert len(most) == 24
    assert max(most) <= 4


def test_a_connection_that_is_lost_while_the_server_is_asked_for_its_limit_is_not_lent(face):
    """The first thing that a new connection does is to ask; what dies in the middle of that must
    not go to a caller.
    """
    proxy = face.proxy()
    cut = proxy.cut_at(
        re.compile("(?i)wait_timeout" if face.is_mysql else "(?i)idle_session_timeout"), before=True
    )
    pool = face.pool(proxy.url(face.url()))
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    assert cut.hits == 1
    assert pool.stats().connect_failures == 1
    assert pool.stats().idle_limit == (28800.0 if face.is_mysql else None)
