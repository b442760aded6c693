"""What a pool lends, what becomes of it when it comes back, and what it costs the server."""

from __future__ import annotations

import gc
import re
import threading
import time
from collections import deque

import pytest

import unbroken
from unbroken import ClosedByHolderError, NotYoursError, Pool, PoolClosedError, PoolTimeoutError

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")


def test_the_drivers_own_connection_is_handed_out(face):
    classes = {
        "pymysql": "pymysql.connections",
        "mysqldb": "MySQLdb.connections",
        "psycopg": "psycopg",
        "pg8000": "pg8000",
    }
    with face.pool().connection() as conn:
        assert type(conn).__name__ == "Connection"
        assert any(base.__module__.startswith(classes[face.name]) for base in type(conn).__mro__)
        assert face.ask(conn, "SELECT 41 + 1") == 42


def test_making_a_pool_connects_to_nothing(face):
    proxy = face.proxy()
    pool = face.pool(proxy.url(face.url()))
    assert pool.stats().size == 0
    assert proxy.connections == ()


def test_a_block_that_succeeds_is_committed(face):
    pool, table = face.pool(), face.table()
    with pool.connection() as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
    assert face.stored(table) == [1]


def test_a_block_that_raises_is_rolled_back_and_the_connection_serves_on(face):
    pool, table = face.pool(), face.table()
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        mine = face.session(conn)
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        raise ZeroDivisionError
    assert face.stored(table) == []
    with pool.connection() as conn:
        assert face.session(conn) == mine
    assert pool.stats().opened == 1


def test_an_error_of_the_server_does_not_cost_the_connection(face):
    pool = face.pool()
    with pytest.raises(Exception, match="no_such_table"), pool.connection() as conn:
        face.do(conn, "SELECT * FROM no_such_table")
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    assert pool.stats().opened == 1


def test_a_release_rolls_back_what_is_open(face):
    pool, table = face.pool(), face.table()
    conn = pool.acquire()
    face.do(conn, f"INSERT INTO {table} VALUES (1)")
    pool.release(conn)
    assert face.stored(table) == []
    assert pool.stats().rollbacks == 1


def test_a_release_after_a_read_leaves_no_snapshot_open(face):
    pool, table = face.pool(), face.table()
    conn = pool.acquire()
    face.do(conn, f"SELECT * FROM {table}")
    pool.release(conn)
    face.server.admin(f"INSERT INTO {table} VALUES (7)")
    conn = pool.acquire()
    assert face.do(conn, f"SELECT n FROM {table}") == [(7,)]
    pool.release(conn)


def test_without_a_transaction_of_its_own_a_block_neither_commits_nor_leaves_anything_open(face):
    pool, table = face.pool(), face.table()
    with pool.connection(transaction=False) as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        conn.commit()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")
    assert face.stored(table) == [1]
    conn = pool.acquire()
    assert face.do(conn, f"SELECT n FROM {table}") == [(1,)]
    pool.release(conn)
    assert pool.stats().opened == 1


def messages_of(face, work, **settings):
    """How many messages *work* costs on a warm pool, through a proxy that counts them."""
    proxy = face.proxy()
    pool = face.pool(proxy.url(face.url()), **settings)
    with pool.connection() as conn:
        face.ask(conn, "SELECT 1")
        conn.rollback()  # no answer to a COMMIT is due
    before = proxy.round_trips
    work(pool)
    return proxy.round_trips - before


def test_an_acquire_and_a_release_cost_no_round_trip(face):
    def work(pool):
        for _ in range(20):
            pool.release(pool.acquire())
            with pool.connection():
                pass

    assert messages_of(face, work) == 0


def test_no_rollback_goes_out_after_a_commit_just_acknowledged(face):
    table = face.table()

    def work(pool):
        conn = pool.acquire()
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        conn.commit()
        pool.release(conn)

    assert messages_of(face, work) == 2  # PostgreSQL's drivers send BEGIN with the INSERT
    pool = face.pool()
    # the first connection asks the server for its idle limit; mysqlclient's rolls that back
    pool.release(pool.acquire())
    before = face.rollbacks()
    work(pool)
    assert face.rollbacks() == before


def test_a_block_of_one_statement_costs_that_statement_and_its_commit(face):
    table = face.table()

    def work(pool):
        with pool.connection() as conn:
            face.do(conn, f"INSERT INTO {table} VALUES (1)")

    assert messages_of(face, work) == 2


def test_in_autocommit_nothing_is_sent_but_the_statement(face):
    table = face.table()

    def work(pool):
        with pool.connection() as conn:
            face.do(conn, f"INSERT INTO {table} VALUES (1)")
        conn = pool.acquire()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")
        pool.release(conn)

    proxy = face.proxy()
    pool = face.pool(proxy.url(face.url(autocommit="true")))
    with pool.connection() as conn:
        face.ask(conn, "SELECT 1")
    before = proxy.round_trips
    work(pool)
    assert proxy.round_trips - before == 2
    assert face.stored(table) == [1, 2]


def test_reset_none_sends_nothing_at_release_and_leaves_the_transaction_open(face):
    pool, table = face.pool(reset=None), face.table()
    pool.release(pool.acquire())  # which asks for the idle limit
    before = face.rollbacks()
    conn = pool.acquire()
    face.do(conn, f"INSERT INTO {table} VALUES (1)")
    pool.release(conn)
    assert face.do(pool.acquire(), f"SELECT n FROM {table}") == [(1,)]
    assert face.stored(table) == []
    assert face.rollbacks() == before


def test_a_reset_function_is_given_each_connection_that_comes_back(face):
    seen = []
    pool = face.pool(reset=lambda conn: seen.append(face.ask(conn, "SELECT 5")))
    with pool.connection():
        pass
    pool.release(pool.acquire())
    with pytest.raises(ZeroDivisionError), pool.connection():
        raise ZeroDivisionError
    assert seen == [5, 5, 5]
    assert pool.stats().opened == 1


def test_a_connection_whose_reset_function_fails_is_thrown_away_and_the_log_says_so(face, caplog):
    def fails(conn):
        raise RuntimeError("cannot clean this")

    pool = face.pool(reset=fails)
    for _ in range(2):
        with pool.connection() as conn:
            face.ask(conn, "SELECT 1")
    stats = pool.stats()
    assert stats.closed == {"reset failed": 2}
    told = [each.getMessage() for each in caplog.records if "UB210" in each.getMessage()]
    assert len(told) == 1, told
    assert "reset= raised RuntimeError: cannot clean this" in told[0]
    assert (stats.size, stats.used, stats.idle) == (0, 0, 0)


def test_a_connection_that_is_killed_while_it_is_held_is_thrown_away_at_release(own_face, until):
    face = own_face
    pool, table = face.pool(), face.table()
    conn = pool.acquire()
    mine = face.session(conn)
    face.do(conn, f"INSERT INTO {table} VALUES (1)")
    face.server.kill_sessions()
    pool.release(conn)
    with pool.connection() as again:
        assert face.session(again) != mine
    until(lambda: pool.stats().size == 1)
    assert sum(pool.stats().closed.values()) == 1
    assert "reset failed" not in pool.stats().closed


def test_what_the_holder_closed_itself_is_not_lent_again(face):
    pool = face.pool()
    with (
        pytest.raises(ClosedByHolderError, match="before the pool could commit"),
        pool.connection() as conn,
    ):
        conn.close()
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    held = pool.acquire()
    held.close()
    pool.release(held)
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1
    assert pool.stats().size == 1


def test_a_connection_left_in_the_middle_of_an_answer_is_not_lent_again(face):
    if face.name != "pymysql":
        pytest.skip("only PyMySQL's unbuffered cursor leaves an answer half read")
    from pymysql.cursors import SSCursor

    pool = face.pool(max_size=1)
    conn = pool.acquire()
    cursor = conn.cursor(SSCursor)
    cursor.execute("SELECT seq FROM seq_1_to_5000")
    cursor.fetchone()
    del cursor
    pool.release(conn)
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 7") == 7


def test_releasing_twice_is_refused_and_harms_nobody(face):
    pool = face.pool()
    conn = pool.acquire()
    pool.release(conn)
    with pytest.raises(NotYoursError, match="already released"):
        pool.release(conn)
    assert pool.stats().idle == 1


def test_releasing_what_another_pool_lent_is_refused(face):
    one, other = face.pool(), face.pool()
    conn = one.acquire()
    with pytest.raises(NotYoursError, match="not in use in pool"):
        other.release(conn)
    one.release(conn)
    with pytest.raises(NotYoursError):
        one.release(object())
    assert (one.stats().idle, other.stats().idle) == (1, 0)


def test_never_more_than_max_size_are_open(face, in_threads):
    pool = face.pool(max_size=3)
    most = []

    def work(_):
        for _ in range(5):
            with pool.connection() as conn:
                face.ask(conn, "SELECT 1")
                most.append(len(pool._state.kernel.entries) + pool._state.kernel.opening)

    assert in_threads(12, work) == [None] * 12
    assert max(most) <= 3
    assert pool.stats().opened <= 3


def test_waiters_are_served_in_the_order_in_which_they_came(face, until):
    pool = face.pool(max_size=1)
    held = pool.acquire()
    served, threads = [], []

    def wait(i):
        with pool.connection():
            served.append(i)

    for i in range(8):
        threads.append(threading.Thread(target=wait, args=(i,)))
        threads[-1].start()
        until(lambda i=i: pool.stats().waiting == i + 1)
    pool.release(held)
    for thread in threads:
        thread.join(10)
    assert served == list(range(8))


def test_min_size_is_opened_and_kept_without_being_asked(own_face, until):
    pool = own_face.pool(min_size=3, max_size=5)
    until(lambda: pool.stats().idle == 3)
    own_face.server.kill_sessions()
    until(lambda: pool.stats().opened == 6 and pool.stats().idle == 3)


def test_a_pool_shrinks_to_min_size_when_it_is_not_used(face, until):
    pool = face.pool(min_size=1, max_idle=0.2)
    held = [pool.acquire() for _ in range(4)]
    for conn in held:
        pool.release(conn)
    until(lambda: pool.stats().closed == {"max idle": 3})
    ticks = pool._state.policy.tick
    time.sleep(4 * ticks)
    assert pool.stats().size == 1


def test_connections_retire_at_max_age_but_not_all_at_once(face, until):
    pool = face.pool(max_age=1.0, max_size=8)
    held = [pool.acquire() for _ in range(8)]
    for conn in held:
        pool.release(conn)
    limits = sorted(e.retire_at - e.born for e in pool._state.kernel.entries.values())
    assert 0.75 <= limits[0] < limits[-1] <= 1.0
    until(lambda: pool.stats().closed == {"max age": 8})


def test_a_held_connection_that_grows_too_old_is_closed_when_it_comes_back(face, until):
    pool = face.pool(max_age=0.2)
    with pool.connection() as conn:
        entry = next(iter(pool._state.kernel.in_use.values()))
        until(lambda: entry.cause is not None)
        assert face.ask(conn, "SELECT 1") == 1  # its holder is not disturbed
    assert pool.stats().closed == {"max age": 1}


def test_resizing_under_load_is_followed_in_both_directions(face, until):
    pool = face.pool(max_size=2)
    stop, errors = threading.Event(), []

    def user():
        while not stop.is_set():
            try:
                with pool.connection() as conn:
                    face.ask(conn, "SELECT 1")
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=user) for _ in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: pool.stats().size == 2)
    pool.resize(max_size=6)
    until(lambda: pool.stats().size > 3)
    pool.resize(max_size=1)
    until(lambda: pool.stats().size == 1)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert pool.stats().idle == pool.stats().size == 1
    with pytest.raises(unbroken.ConfigurationError, match="max_size=0"):
        pool.resize(max_size=0)


def test_a_drain_replaces_idle_connections_now_and_lent_ones_when_they_come_back(face, until):
    pool = face.pool()
    idle, lent = pool.acquire(), pool.acquire()
    old = {face.session(idle), face.session(lent)}
    pool.release(idle)
    pool.drain()
    assert pool.stats().idle == 0
    assert face.ask(lent, "SELECT 1") == 1
    pool.release(lent)
    assert pool.stats().size == 0
    with pool.connection() as conn:
        assert face.session(conn) not in old
    assert pool.stats().closed == {"drained": 2}


def test_closing_tells_those_who_wait_and_closes_what_comes_back(face, until):
    pool = face.pool(max_size=1)
    held = pool.acquire()
    told = []

    def wait():
        try:
            pool.acquire()
        except PoolClosedError as error:
            told.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: pool.stats().waiting == 1)
    pool.close(timeout=0)
    waiter.join(10)
    assert len(told) == 1
    assert "is closed" in told[0]
    assert face.ask(held, "SELECT 1") == 1
    pool.release(held)
    assert pool.stats().size == 0
    with pytest.raises(PoolClosedError):
        pool.acquire()
    pool.close()


def test_closing_waits_for_what_is_lent_as_long_as_it_was_told_to(face):
    pool = face.pool()
    conn = pool.acquire()
    threading.Timer(0.2, pool.release, (conn,)).start()
    pool.close(timeout=10)
    assert pool.stats().size == 0


def test_a_pool_is_a_context_manager(own_face, until):
    with own_face.pool() as pool, pool.connection() as conn:
        own_face.ask(conn, "SELECT 1")
    until(lambda: own_face.server.sessions() == [])
    with pytest.raises(PoolClosedError):
        pool.acquire()


def test_a_pool_that_nobody_holds_any_more_leaves_no_session_behind(own_face, until):
    Pool(own_face.url(), min_size=2).check()
    # its workers may still hold it for a moment
    until(lambda: gc.collect() >= 0 and own_face.server.sessions() == [])


def test_no_password_shows_in_a_repr_or_in_the_numbers(face):
    pool = face.pool()
    pool.release(pool.acquire())
    for text in (
        repr(pool),
        str(pool.stats()),
        repr(pool._driver.target),
        pool.name,
        repr(list(pool._state.kernel.entries.values())),
    ):
        assert face.server.password not in text
    assert str(face.server.port) in repr(pool)


def test_one_deadline_holds_for_waiting_in_line(face):
    pool = face.pool(max_size=1)
    held = pool.acquire()
    started = time.monotonic()
    with pytest.raises(PoolTimeoutError):
        pool.acquire(timeout=0.3)
    waited = time.monotonic() - started
    assert 0.3 <= waited < 2.0
    assert pool.stats().timeouts == 1
    pool.release(held)


def test_a_timeout_says_who_holds_the_connections(face):
    pool = face.pool(max_size=2)
    held = [pool.acquire() for _ in range(2)]
    with pytest.raises(PoolTimeoutError) as caught, pool.connection(timeout=0.1):
        pass
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(r"within \d+\.\d s", text)
    for word in (
        "in use 2",
        "waiting",
        "max_size 2",
        "test_lending.py:",
        "test_a_timeout_says_who_holds_the_connections",
        "raise max_size",
    ):
        assert word in text
    assert isinstance(caught.value, (TimeoutError, *pool._driver.errors[:1]))
    assert isinstance(caught.value, pool._driver.errors[0])
    for conn in held:
        pool.release(conn)


def test_looking_for_forgotten_connections_takes_nobody_more_time_than_they_have(face, monkeypatch):
    """Collecting garbage takes half a second in a large process: a caller with less patience leaves
    it to others.
    """
    import gc

    collections = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collections.append(time.sleep(0.5)) or 0)
    pool = face.pool(max_size=1)
    held = pool.acquire()
    for patience, most in ((0.12, 0), (1.0, 1), (0.7, 1)):
        with pytest.raises(PoolTimeoutError):
            pool.acquire(timeout=patience)
        assert len(collections) == most
    pool.release(held)


def test_a_run_that_holds_a_connection_is_named_by_the_line_that_called_it(face):
    pool = face.pool(max_size=1)

    def outer(conn):
        with pytest.raises(PoolTimeoutError) as caught:
            pool.acquire(timeout=0.05)
        return str(caught.value)

    text = pool.run(outer)
    assert "test_lending.py:" in text
    assert "sync.py" not in text
    assert "lease.py" not in text


def test_checking_pings_what_is_idle_and_replaces_what_is_dead(own_face):
    pool = own_face.pool()
    held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    assert pool.check().pings == 3
    own_face.server.kill_sessions()
    assert pool.check().idle == 1


def test_a_pool_takes_a_function_that_connects(face):
    def connect():
        server = face.server
        if face.is_mysql:
            import pymysql

            return pymysql.connect(
                host=server.host,
                port=server.port,
                user=server.user,
                password=server.password,
                database=server.database,
            )
        import psycopg

        return psycopg.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password,
            dbname=server.database,
        )

    pool = unbroken.Pool(
        connect=connect, driver="pymysql" if face.is_mysql else "psycopg", max_size=2
    )
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 3") == 3
    pool.close()


class Spy(deque):
    """An idle list that notes what is put into it although it is known to be dead."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def append(self, entry):
        if entry.cause is not None:
            self.found.append(entry.cause)
        super().append(entry)


@pytest.mark.parametrize("by", ["release", "block"])
def test_what_is_known_to_be_dead_is_not_put_back_even_for_a_moment(own_face, until, by):
    face = own_face
    pool = face.pool()
    with pool.connection() as conn:
        face.ask(conn, "SELECT 1")
    found = []
    spy = Spy(found)
    spy.extend(pool._state.idle)
    pool._state.idle = pool._state.kernel.idle = spy
    lease = pool.connection()
    conn = lease.__enter__() if by == "block" else pool.acquire()
    entry = next(iter(pool._state.kernel.in_use.values()))
    face.server.kill_sessions()
    until(lambda: entry.cause is not None)
    if by == "block":
        lease.__exit__(None, None, None)
    else:
        pool.release(conn)
    assert found == []
    assert pool.stats().size == 0


def test_sqlite_is_lent_like_everything_else(tmp_path, in_threads):
    pool = Pool(f"sqlite:///{tmp_path / 'shop.db'}", max_size=3)
    with pool.connection() as conn:
        conn.execute("CREATE TABLE numbers (n INTEGER)")
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        conn.execute("INSERT INTO numbers VALUES (0)")
        raise ZeroDivisionError

    def work(i):
        with pool.connection() as conn:
            conn.execute("INSERT INTO numbers VALUES (?)", (i,))

    assert in_threads(6, work) == [None] * 6
    with pool.connection() as conn:
        assert sorted(conn.execute("SELECT n FROM numbers")) == [(i,) for i in range(6)]
    conn = pool.acquire()
    conn.execute("INSERT INTO numbers VALUES (99)")
    pool.release(conn)
    with pool.connection() as conn:
        assert conn.execute("SELECT COUNT(*) FROM numbers WHERE n = 99").fetchone() == (0,)
    pool.close()


def test_a_finalizer_may_end_a_lease_on_a_thread_that_is_inside_the_pool(face, in_threads):
    """A forgotten generator ends its lease wherever the collector happens to run, be it while the
    pool's lock is held.
    """
    pool = face.pool()

    def rows():
        with pool.connection() as conn:
            yield face.ask(conn, "SELECT 1")

    def collect(_):
        generator = rows()
        next(generator)
        with pool._state.lock:
            del generator

    assert in_threads(1, collect, seconds=5.0) == [None]
    assert (pool.stats().used, pool.stats().idle) == (0, 1)
