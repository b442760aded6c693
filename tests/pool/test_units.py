"""Units of work: run again where it is provable that nothing was committed, never anywhere else;
and deadlines.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time

import pytest

import unbroken
from unbroken import (
    CommitUnknownError,
    ConnectionLostError,
    DeadlineExceeded,
    OutageError,
    PoolClosedError,
)
from unbroken.ledger.verdicts import Fate


class Breaks:
    """Does something to the server the first *times* times that it is called."""

    def __init__(self, action, times=1):
        self.action, self.times, self.calls = action, times, 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.times:
            self.action()


@pytest.fixture
def shop(own_face):
    """A face, a pool, a table, and what kills all sessions once."""
    return (
        own_face,
        own_face.pool(max_size=3),
        own_face.table(),
        Breaks(own_face.server.kill_sessions),
    )


@pytest.mark.parametrize(
    "when", ["before the insert", "after the insert", "between two", "at the end"]
)
def test_a_unit_whose_connection_is_killed_is_run_again_and_stored_once(shop, when):
    face, pool, table, kill = shop

    def work(conn, n):
        face.ask(conn, "SELECT 1")
        if when == "before the insert":
            kill()
        face.do(conn, f"INSERT INTO {table} VALUES (%s)", n)
        if when == "between two":
            kill()
        face.do(conn, f"INSERT INTO {table} VALUES (%s)", n + 1)
        if when == "after the insert":
            kill()
            face.ask(conn, "SELECT 1")
        if when == "at the end":
            kill()
        return "done"

    assert pool.run(work, 7) == "done"
    assert face.stored(table) == [7, 8]
    assert pool.stats().replays == 1
    assert kill.calls == 2


def test_a_loss_seen_before_the_commit_is_sent_is_run_again(shop, until):
    """The pool itself sees the death at the end of the block, before any COMMIT: that is no reason
    for an error.
    """
    face, pool, table, kill = shop

    def work(conn):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        kill()
        if kill.calls == 1:
            entry = next(iter(pool._state.kernel.in_use.values()))
            until(lambda: entry.cause is not None)

    pool.run(work)
    assert face.stored(table) == [1]
    assert pool.stats().replays == 1


def test_outside_of_a_unit_the_same_loss_is_told_as_what_it_is(shop, until):
    face, pool, table, kill = shop
    with (
        pytest.raises(ConnectionLostError, match="the open transaction is not stored") as caught,
        pool.connection() as conn,
    ):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        kill()
        entry = next(iter(pool._state.kernel.in_use.values()))
        until(lambda: entry.cause is not None)
    assert isinstance(caught.value, pool._driver.errors[0])
    # every statement was answered, in a transaction: a proof, for a driver that shows it
    assert ("unless" in str(caught.value)) == (face.name == "mysqldb")
    assert face.stored(table) == []


@pytest.mark.parametrize("deadline", [None, 30.0], ids=["no ledger", "a ledger"])
def test_of_a_commit_that_the_block_sent_itself_it_is_not_said_that_nothing_is_stored(
    face, deadline
):
    """Its error was swallowed, and then the pool finds a lost connection to which it sent no
    COMMIT.
    """
    table, proxy = face.table(), face.proxy()
    pool = face.pool(proxy.url(face.url()), deadline=deadline)
    with pytest.raises(ConnectionLostError) as caught, pool.connection() as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        proxy.cut_at("COMMIT")
        with contextlib.suppress(*pool._driver.errors):
            conn.commit()
    assert face.stored(table) == [1]
    if deadline is None:
        assert "unless the code that held the connection sent a COMMIT itself" in str(caught.value)
    else:
        assert "it is not known whether the open transaction is stored" in str(caught.value)
        assert caught.value.fate is Fate.UNKNOWN


def test_arguments_and_results_pass_through(face):
    pool = face.pool()
    assert pool.run(lambda conn, a, *, b: (face.ask(conn, "SELECT 1"), a, b), 2, b=3) == (1, 2, 3)


def test_writes_in_autocommit_are_never_run_again(own_face):
    face = own_face
    table, kill = face.table(), Breaks(face.server.kill_sessions)
    pool = face.pool(face.url(autocommit="true"))

    def work(conn):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        kill()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert face.stored(table) == [1]
    assert kill.calls == 1
    assert any("autocommit" in note for note in caught.value.__notes__)


def test_reads_in_autocommit_are_run_again(own_face):
    face, kill = own_face, Breaks(own_face.server.kill_sessions)
    pool = face.pool(face.url(autocommit="true"))

    def work(conn):
        face.ask(conn, "SELECT 1")
        kill()
        return face.ask(conn, "SELECT 2")

    assert pool.run(work) == 2


def test_nothing_is_run_again_after_a_commit_of_its_own(shop):
    face, pool, table, kill = shop

    def work(conn):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        conn.commit()
        kill()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert face.stored(table) == [1]
    assert any("COMMIT" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    "own", [False, True], ids=["the pool's commit", "the function's own commit"]
)
@pytest.mark.parametrize("arrives", [False, True], ids=["lost on the way", "answer lost"])
def test_a_commit_whose_answer_is_lost_is_reported_as_unknown(own_face, arrives, own):
    face = own_face
    table, proxy = face.table(), face.proxy()
    pool = face.pool(proxy.url(face.url()))
    pool.check()
    runs, cuts = [], []

    def work(conn):
        runs.append(1)
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        cuts.append(proxy.cut_at("COMMIT", before=not arrives))
        if own:
            conn.commit()

    with pytest.raises(CommitUnknownError) as caught:
        pool.run(work)
    assert isinstance(caught.value, (ConnectionError, pool._driver.errors[0]))
    assert isinstance(caught.value, pool._driver.errors[0])
    assert "\n" not in str(caught.value)
    assert len(runs) == 1
    assert [cut.hits for cut in cuts] == [1]
    assert face.stored(table) == ([1] if arrives else [])
    assert pool.run(lambda conn: face.ask(conn, "SELECT 1")) == 1


class ShopError(Exception):
    """As applications have them: with more than a text."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


def test_a_commit_in_doubt_is_told_as_the_applications_own_error_with_all_that_it_has(own_face):
    face = own_face
    table, proxy = face.table(), face.proxy()
    pool = face.pool(proxy.url(face.url()))

    @unbroken.replayable
    def order():
        try:
            with pool.connection() as conn:
                face.do(conn, f"INSERT INTO {table} VALUES (1)")
                proxy.cut_at("COMMIT")
        except CommitUnknownError as error:
            raise ShopError("not ordered", status=503) from error

    with pytest.raises(CommitUnknownError) as caught:
        order()
    assert isinstance(caught.value, ShopError)
    assert (caught.value.message, caught.value.status) == ("not ordered", 503)
    assert isinstance(caught.value.__cause__, ShopError)


def test_a_block_reports_a_lost_commit_as_unknown_too(own_face):
    face = own_face
    table, proxy = face.table(), face.proxy()
    pool = face.pool(proxy.url(face.url()))
    with pytest.raises(CommitUnknownError), pool.connection() as conn:
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        proxy.cut_at("COMMIT")
    assert face.stored(table) == [1]


@pytest.mark.parametrize("arrives", [False, True], ids=["lost on the way", "answer lost"])
def test_a_unit_that_only_reads_is_run_again_even_then(own_face, arrives):
    face = own_face
    table, proxy = face.table(), face.proxy()
    face.server.admin(f"INSERT INTO {table} VALUES (5)")
    pool = face.pool(proxy.url(face.url()))
    pool.check()
    pool._state.defers = False  # its COMMIT is waited for
    runs, cuts = [], []

    def work(conn):
        runs.append(1)
        found = face.ask(conn, f"SELECT n FROM {table}")
        if len(runs) == 1:
            cuts.append(proxy.cut_at("COMMIT", before=not arrives))
        return found

    assert pool.run(work) == 5
    assert len(runs) == 2
    assert [cut.hits for cut in cuts] == [1]


@pytest.mark.parametrize("arrives", [False, True], ids=["lost on the way", "answer lost"])
def test_a_lost_commit_that_nobody_waited_for_is_no_error_of_the_next_user(own_face, arrives):
    face = own_face
    table, proxy = face.table(), face.proxy()
    face.server.admin(f"INSERT INTO {table} VALUES (5)")
    pool = face.pool(proxy.url(face.url()))
    pool.run(lambda conn: face.ask(conn, f"SELECT n FROM {table}"))
    cuts = []

    def work(conn):
        found = face.ask(conn, f"SELECT n FROM {table}")
        if not cuts:
            cuts.append(proxy.cut_at("COMMIT", before=not arrives))
        return found

    assert pool.run(work) == 5
    for _ in range(3):
        assert pool.run(lambda conn: face.ask(conn, f"SELECT n FROM {table}")) == 5


def test_two_that_deadlock_both_succeed(face, in_threads):
    table = face.table()
    face.server.admin(f"CREATE UNIQUE INDEX {table}_n ON {table} (n)")
    face.server.admin(f"INSERT INTO {table} VALUES (10), (20)")
    pool, meet, runs = face.pool(), threading.Barrier(2), []

    def work(conn, first, second, i):
        runs.append(i)
        face.do(conn, f"UPDATE {table} SET n = n WHERE n = %s", first)
        if runs.count(i) == 1:
            meet.wait(10)
        face.do(conn, f"UPDATE {table} SET n = n WHERE n = %s", second)

    results = in_threads(2, lambda i: pool.run(work, *((10, 20) if i else (20, 10)), i))
    assert results == [None, None]
    assert len(runs) == 3
    assert pool.stats().replays == 1


def test_nested_units_are_replayed_by_the_outermost(shop):
    face, pool, table, kill = shop
    outer, inner = [], []

    def within(conn):
        inner.append(1)
        kill()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")

    def work(conn):
        outer.append(1)
        face.ask(conn, "SELECT 1")
        pool.run(within)
        return "done"

    assert pool.run(work) == "done"
    assert len(inner) == 2
    assert len(outer) == 2
    assert face.stored(table) == [2]


def test_an_inner_unit_that_was_committed_bars_the_outer_from_being_run_again(shop):
    face, pool, table, kill = shop

    def work(conn):
        face.ask(conn, "SELECT 1")
        pool.run(lambda inner: face.do(inner, f"INSERT INTO {table} VALUES (1)"))
        kill()
        face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors):
        pool.run(work)
    assert face.stored(table) == [1]


def test_a_function_may_be_made_replayable_around_any_pool(shop):
    face, pool, table, kill = shop

    @unbroken.replayable
    def order(n):
        with pool.connection() as conn:
            face.do(conn, f"INSERT INTO {table} VALUES (%s)", n)
            kill()
            face.ask(conn, "SELECT 1")
        return n

    assert order.__name__ == "order"
    assert order(4) == 4
    assert face.stored(table) == [4]


def test_a_replayable_function_may_use_acquire_and_release(shop):
    face, pool, table, kill = shop

    @unbroken.replayable
    def order():
        conn = pool.acquire()
        try:
            face.do(conn, f"INSERT INTO {table} VALUES (1)")
            kill()
            face.ask(conn, "SELECT 1")
            conn.commit()
        finally:
            pool.release(conn)

    order()
    assert face.stored(table) == [1]
    assert pool.stats().used == 0


def test_replays_are_bounded(own_face):
    face = own_face
    pool = face.pool(max_replays=3)
    kill = Breaks(face.server.kill_sessions, times=100)

    def work(conn):
        kill()
        face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert kill.calls == 4
    assert any("gave up after 3 replays" in note for note in caught.value.__notes__)


def test_errors_of_the_application_are_not_replayed(face):
    pool, table, runs = face.pool(), face.table(), []

    def work(conn, error):
        runs.append(1)
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        raise error

    others = [
        ValueError("mine"),
        TimeoutError("another service's"),
        ConnectionResetError(104, "another service's"),
        BrokenPipeError("a pipe"),
    ]
    for error in others:
        runs.clear()
        with pytest.raises(type(error)) as caught:
            pool.run(work, error)
        assert caught.value is error
        assert len(runs) == 1
    assert face.stored(table) == []
    assert pool.stats().opened == 1  # none of these errors says anything about our connection


@pytest.mark.parametrize("kind", [PoolClosedError, OutageError], ids=["closed", "away"])
def test_another_pools_trouble_is_not_taken_for_this_connections_loss(face, kind):
    pool, other, runs = face.pool(), face.pool(), []
    other.close()
    text = "server away: server closed the connection unexpectedly"

    def work(conn):
        runs.append(face.ask(conn, "SELECT 1"))
        if kind is PoolClosedError:
            other.acquire()
        raise other._state.error(OutageError, text)

    with pytest.raises(kind):
        pool.run(work)
    assert runs == [1]
    assert pool.stats().opened == 1


def test_a_unit_reaches_over_a_restart_of_the_server(own_face):
    face = own_face
    pool, table = face.pool(outage_wait=20, acquire_timeout=20), face.table()
    bounce = Breaks(face.server.restart)

    def work(conn):
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        bounce()
        face.do(conn, f"INSERT INTO {table} VALUES (2)")

    pool.run(work)
    assert face.stored(table) == [1, 2]


def test_a_connection_from_before_the_unit_that_is_used_in_it_forbids_a_replay(shop):
    face, pool, table, _ = shop
    older, runs = pool.acquire(), []

    def work(conn):
        runs.append(1)
        face.do(older, f"INSERT INTO {table} VALUES (1)")
        older.commit()
        me = face.session(conn)
        face.server._kill_session(me)
        face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert len(runs) == 1
    assert face.stored(table) == [1]
    assert any("before the unit of work began" in note for note in caught.value.__notes__)
    pool.release(older)


def test_a_connection_from_before_the_unit_that_rests_meanwhile_forbids_nothing(shop):
    face, pool, table, _ = shop
    older, runs = pool.acquire(), []
    face.ask(older, "SELECT 1")

    def work(conn):
        runs.append(1)
        if len(runs) == 1:
            face.server._kill_session(face.session(conn))
        face.do(conn, f"INSERT INTO {table} VALUES (1)")

    pool.run(work)
    assert len(runs) == 2
    assert face.ask(older, "SELECT 1") == 1
    pool.release(older)


# --------------------------------------------------------------------------------------------------
# deadlines The connection is there before: a short deadline is for the statement, and a busy
# machine may take as long to connect.


def test_a_slow_statement_is_ended_at_the_deadline(face):
    pool = face.pool()
    pool.check()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught, pool.connection(deadline=0.3) as conn:
        face.sleep(conn, 20)
    assert 0.25 < time.monotonic() - started < 10.0
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, pool._driver.errors[0])
    assert "0.3 s" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert pool.stats().closed == {"deadline": 1}
    with pool.connection() as conn:
        assert face.ask(conn, "SELECT 1") == 1


def test_a_units_deadline_holds_over_all_of_its_attempts(face):
    pool, runs = face.pool(), []
    pool.check()

    def work(conn):
        runs.append(1)
        face.sleep(conn, 20)

    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        pool.run(work, deadline=1.0)
    assert time.monotonic() - started < 10.0
    assert "None" not in str(caught.value)
    assert len(runs) == 1


def test_a_deadline_of_one_lease_is_no_reason_to_run_a_unit_again(face):
    pool, runs = face.pool(), []
    pool.check()

    @unbroken.replayable
    def work():
        runs.append(1)
        with pool.connection(deadline=0.2) as conn:
            face.sleep(conn, 20)

    with pytest.raises(DeadlineExceeded):
        work()
    assert len(runs) == 1


def test_an_inner_units_deadline_holds_too(face):
    pool = face.pool()
    with pool.connection(), pool.connection():
        pass  # both are there

    def work(_conn):
        pool.run(lambda inner: face.sleep(inner, 20), deadline=0.3)

    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        pool.run(work)
    assert time.monotonic() - started < 10.0


def test_a_deadline_may_be_a_setting(face):
    pool = face.pool(deadline=0.3)
    for way in (lambda: pool.run(lambda conn: face.sleep(conn, 20)), lambda: block(pool, face)):
        pool.check()
        with pytest.raises(DeadlineExceeded):
            way()


def block(pool, face):
    with pool.connection() as conn:
        face.sleep(conn, 20)


def test_work_that_ends_in_time_is_not_disturbed(face):
    pool, table = face.pool(), face.table()
    for i in range(20):
        with pool.connection(deadline=5.0) as conn:
            face.do(conn, f"INSERT INTO {table} VALUES (%s)", i)
    assert face.stored(table) == list(range(20))
    assert pool.stats().opened == 1
    assert sum(pool.stats().closed.values()) == 0


def test_an_application_error_after_the_deadline_of_somebody_else_stays_its_own(face):
    """A deadline that strikes just as its lease ends must not be blamed on the connection's next
    holder.
    """
    pool = face.pool(max_size=1)
    pool.check()
    entry = next(iter(pool._state.kernel.entries.values()))
    stale = entry.uses
    with pytest.raises(ZeroDivisionError), pool.connection() as conn:
        face.ask(conn, "SELECT 1")
        assert not pool._state.abort(entry, stale, unbroken.abc.Cause.DEADLINE)
        raise ZeroDivisionError
    assert pool.stats().opened == 1


def test_no_request_outlives_its_deadline_on_a_frozen_server_and_all_is_well_afterwards(
    own_face, in_threads
):
    face = own_face
    pool = face.pool(max_size=4)
    held = [pool.acquire() for _ in range(2)]
    for conn in held:
        pool.release(conn)
    face.server.freeze()
    started = time.monotonic()
    try:
        results = in_threads(
            6, lambda _: pool.run(lambda conn: face.ask(conn, "SELECT 1"), deadline=0.5)
        )
    finally:
        face.server.thaw()
    assert time.monotonic() - started < 5.0
    assert all(isinstance(r, TimeoutError | OutageError) for r in results), results
    assert sum(isinstance(r, DeadlineExceeded) for r in results) >= 2
    for _ in range(5):
        assert pool.run(lambda conn: face.ask(conn, "SELECT 1"), deadline=10) == 1
    stats = pool.stats()
    assert (stats.used, stats.waiting) == (0, 0)


def test_a_deadline_that_passes_while_waiting_in_line_says_so(face):
    pool = face.pool(max_size=1)
    held = pool.acquire()
    started = time.monotonic()
    with pytest.raises(TimeoutError) as caught, pool.connection(deadline=0.2):
        pass
    assert time.monotonic() - started < pool.settings.acquire_timeout / 2
    assert re.search(r"within \d\.\d s", str(caught.value))
    pool.release(held)
