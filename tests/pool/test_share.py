"""Pools that share what a server grants: never more than that, none starves, the dead hold
nothing.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unbroken import ConfigurationError, OutageError, Pool, PoolTimeoutError
from unbroken.net import slots
from unbroken_drill.servers import MariaDB, PgBouncer, PostgreSQL, Server

from .conftest import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="such locks are Linux's")
#: Seconds in which a place that others had is free, on a machine that may be very busy: 0.3 else.
SOON = 3.0


@pytest.fixture(scope="module")
def small() -> Iterator[PostgreSQL]:
    """It grants the application 27 connections: three are the superusers'."""
    with PostgreSQL({"max_connections": 30}) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"unbroken-{os.geteuid()}"


@pytest.fixture
def pools(postgres: PostgreSQL) -> Iterator[Callable[..., Pool[Any]]]:
    """Makes pools: as many members as there are."""
    with contextlib.ExitStack() as stack:

        def make(server: Server = postgres, driver: str = "psycopg", **settings: Any) -> Pool[Any]:
            return stack.enter_context(Pool(server.url(driver), **settings))

        yield make


def share(pool: Pool[Any]) -> Any:
    found = pool.stats().share
    assert found is not None
    return found


def work(pool: Pool[Any], until: float, seconds: float = 0.01) -> int:
    """How many statements of *seconds* a caller gets done until then."""
    done = 0
    while time.monotonic() < until:
        with pool.connection() as conn:
            conn.execute(f"SELECT pg_sleep({seconds})")
        done += 1
    return done


def ask(pool: Pool[Any]) -> int:
    with pool.connection(timeout=30.0) as conn:
        return int(conn.execute("SELECT pg_backend_pid()").fetchone()[0])


class Crowd:
    """Callers that use a pool all the time, for as long as the block lasts."""

    def __init__(self, pool: Pool[Any], callers: int, seconds: float = 0.005) -> None:
        self.pool, self.over, self.done, self.errors = pool, threading.Event(), 0, []
        self.seconds = seconds
        self.threads = [threading.Thread(target=self._run) for _ in range(callers)]

    def _run(self) -> None:
        try:
            while not self.over.is_set():
                self.done += work(self.pool, 0.0) + bool(ask(self.pool))
                time.sleep(0)
        except Exception as error:
            self.errors.append(error)

    def __enter__(self) -> Crowd:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30.0)
        assert self.errors == []


# -- the limit -------------------------------------------------------------------------------------


def test_all_together_never_open_more_than_the_server_grants(
    small: PostgreSQL, pools: Callable[..., Pool[Any]], in_threads: Callable[..., list[Any]]
) -> None:
    members = [pools(small, share="auto") for _ in range(6)]
    until = time.monotonic() + 1.5
    done = in_threads(48, lambda number: work(members[number % 6], until))
    assert min(done) > 0
    stats = [each.stats() for each in members]
    assert [each.connect_failures for each in stats] == [0] * 6
    assert {each.share.limit for each in stats if each.share} == {24}
    assert sum(each.share.held for each in stats if each.share) <= 24
    assert len(small.sessions()) <= 24


def test_a_number_counts_and_the_server_is_not_asked(
    pools: Callable[..., Pool[Any]], in_threads: Callable[..., list[Any]], postgres: PostgreSQL
) -> None:
    one, other = pools(share=3), pools(share=3)
    until = time.monotonic() + 0.5
    in_threads(10, lambda number: work((one, other)[number % 2], until))
    assert one.stats().opened + other.stats().opened >= 3
    assert len(postgres.sessions()) <= 3
    assert share(one).limit == 3


@pytest.mark.parametrize(
    ("grant", "limit"),
    [
        ("ALTER ROLE {user} CONNECTION LIMIT {number}", 9),
        ("ALTER DATABASE {database} CONNECTION LIMIT {number}", 9),
    ],
)
def test_the_limit_of_a_role_or_a_database_counts_if_it_is_lower(
    small: PostgreSQL, pools: Callable[..., Pool[Any]], grant: str, limit: int
) -> None:
    names = {"user": small.user, "database": small.database}
    small.admin(grant.format(number=10, **names))
    try:
        pool = pools(small, share="auto")
        ask(pool)
        assert share(pool).limit == limit
    finally:
        small.admin(grant.format(number=-1, **names))


def test_mariadb_and_its_limit_of_an_account(new_mariadb: Callable[..., MariaDB]) -> None:
    server = new_mariadb({"max_connections": 30})
    with Pool(server.url("pymysql"), share="auto") as pool:
        pool.check()
        assert share(pool).limit == 27
    server.admin(f"ALTER USER '{server.user}'@'%' WITH MAX_USER_CONNECTIONS 10")
    with Pool(server.url("pymysql"), share="auto") as pool:
        pool.check()
        assert share(pool).limit == 9


def test_a_server_that_comes_back_with_another_limit_is_asked_again(
    new_postgres: Callable[..., PostgreSQL],
) -> None:
    server = new_postgres({"max_connections": 30})
    with Pool(server.url("psycopg"), share="auto", outage_wait=0.1, acquire_timeout=30.0) as pool:
        ask(pool)
        assert share(pool).limit == 24
        server.stop()
        with pytest.raises(OutageError):
            ask(pool)
        server.options["max_connections"] = 20
        server.start()
        wait_until(lambda: unbroken_serves(pool), 30.0)
        assert share(pool).limit == 15


def unbroken_serves(pool: Pool[Any]) -> bool:
    try:
        return bool(ask(pool))
    except OutageError:
        return False


# -- lending ---------------------------------------------------------------------------------------


def test_what_is_idle_goes_to_those_who_are_busy(
    pools: Callable[..., Pool[Any]], in_threads: Callable[..., list[Any]]
) -> None:
    idle, busy = pools(share=6), pools(share=6)
    in_threads(6, lambda _: work(idle, time.monotonic() + 0.2))
    wait_until(lambda: share(idle).held == 6)
    with Crowd(busy, 12):
        wait_until(lambda: share(busy).held == 6)
        assert share(idle).held == 0
        assert share(idle).lent >= 6
    wait_until(lambda: ask(idle), 5.0)


def test_one_that_starves_gets_its_share_from_those_who_are_busy(
    pools: Callable[..., Pool[Any]],
) -> None:
    first, second = pools(share=6), pools(share=6)
    with Crowd(first, 12):
        wait_until(lambda: share(first).held == 6)
        began = time.monotonic()
        ask(second)
        assert time.monotonic() - began < SOON
        with Crowd(second, 12):
            wait_until(lambda: share(first).held == share(second).held == 3)


def test_where_members_outnumber_connections_each_has_its_turn(
    pools: Callable[..., Pool[Any]], in_threads: Callable[..., list[Any]]
) -> None:
    members = [pools(share=2) for _ in range(4)]
    until = time.monotonic() + 2.5
    done = in_threads(8, lambda number: work(members[number % 4], until))
    assert min(done) > 0


def test_a_caller_that_finds_no_place_in_time_is_told_who_has_them(
    pools: Callable[..., Pool[Any]],
) -> None:
    first, second = pools(share="shop:2"), pools(share="shop:2", acquire_timeout=0.3)
    held = [first.acquire(), first.acquire()]
    with pytest.raises(PoolTimeoutError) as told:
        second.acquire()
    assert "0 of the 2 connections that this host shares" in str(told.value)
    assert "the other pools on this host use the remaining connections" in str(told.value)
    other = pools(share="blog:2")
    assert ask(other)
    for conn in held:
        first.release(conn)
    assert ask(second)


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, tempfile, time
import gevent
import unbroken

tempfile.tempdir, url = sys.argv[1:]
pools = [unbroken.Pool(url, share=3) for _ in range(2)]
until = time.monotonic() + 1.0

def work(pool):
    done = 0
    while time.monotonic() < until:
        with pool.connection() as conn:
            conn.execute("SELECT pg_sleep(0.01)")
        done += 1
    return done

jobs = [gevent.spawn(work, pools[number % 2]) for number in range(12)]
gevent.joinall(jobs, timeout=30)
print(min(job.value for job in jobs) > 0, max(p.stats().share.held for p in pools) <= 3)
for pool in pools:
    pool.close()
"""


def test_greenlets_wait_for_other_processes_without_blocking_each_other(
    script: Callable[..., str], postgres: PostgreSQL, tmp_path: Path
) -> None:
    assert script(GREENLETS, tmp_path, postgres.url("psycopg")) == "True True"


# -- members that end ------------------------------------------------------------------------------


@contextlib.contextmanager
def child(main: Callable[[Any], None]) -> Iterator[tuple[Any, Any]]:
    """A forked process that runs *main* with its end of a pipe."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=main, args=(there,), daemon=True)
    process.start()
    try:
        yield here, process
    finally:
        process.kill()
        process.join()


def test_a_worker_that_is_killed_holds_nothing_soon_after(
    pools: Callable[..., Pool[Any]], postgres: PostgreSQL
) -> None:
    def main(pipe: Any) -> None:
        pool: Pool[Any] = Pool(postgres.url("psycopg"), share=2)
        held = [pool.acquire(), pool.acquire()]
        pipe.send(len(held))
        signal.pause()

    with child(main) as (pipe, process):
        assert pipe.recv() == 2
        pool = pools(share=2, acquire_timeout=0.2)
        with pytest.raises(PoolTimeoutError):
            pool.acquire()
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        held = [pool.acquire(timeout=30.0), pool.acquire(timeout=30.0)]
        assert time.monotonic() - began < SOON
        for conn in held:
            pool.release(conn)


def test_the_slots_of_the_dead_are_made_free_before_somebody_needs_them(
    pools: Callable[..., Pool[Any]], postgres: PostgreSQL, folder: Path
) -> None:
    """Else each worker that is recycled would have the next one wait for its first connection."""

    def main(pipe: Any) -> None:
        pool: Pool[Any] = Pool(postgres.url("psycopg"), share=8)
        pipe.send(len([pool.acquire(timeout=30.0) for _ in range(3)]))
        signal.pause()

    pool = pools(share=8)
    ask(pool)
    with child(main) as (pipe, process):
        assert pipe.recv() == 3
        os.kill(process.pid, signal.SIGKILL)
    (file,) = folder.iterdir()
    wait_until(lambda: file.read_bytes()[4096:].count(1) == 1)


def test_a_closed_descriptor_costs_no_place(pools: Callable[..., Pool[Any]]) -> None:
    """A program may close all that it does not know."""
    pool, other = pools(share=2), pools(share=2, acquire_timeout=0.3)
    held = [pool.acquire(timeout=30.0), pool.acquire(timeout=30.0)]
    os.close(next(each for each in slots._owners if slots._owners[each].held))
    wait_until(lambda: share(pool).held == 2 and share(pool).free == 0)
    with pytest.raises(PoolTimeoutError):
        other.acquire()
    for conn in held:
        pool.release(conn)
    assert ask(other)


def test_min_size_is_kept_as_far_as_others_do_not_need_the_places(
    pools: Callable[..., Pool[Any]],
) -> None:
    ready, busy = pools(share=3, min_size=2), pools(share=3)
    wait_until(lambda: ready.stats().idle == 2)
    with Crowd(busy, 6):
        wait_until(lambda: share(busy).held == 3)
    wait_until(lambda: busy.stats().size == 0 or ready.stats().idle == 0)
    busy.drain()
    wait_until(lambda: ready.stats().idle == 2)


def test_a_forked_child_is_a_member_of_its_own(
    pools: Callable[..., Pool[Any]], postgres: PostgreSQL
) -> None:
    pool = pools(share=3, acquire_timeout=0.3)
    held = [pool.acquire(timeout=30.0), pool.acquire(timeout=30.0)]

    def main(pipe: Any) -> None:
        mine = [pool.acquire(timeout=30.0)]
        try:
            pool.acquire()
        except PoolTimeoutError as error:
            pipe.send((str(error), pool.stats().share))
        signal.pause()
        del mine

    with child(main) as (pipe, _process):
        text, theirs = pipe.recv()
        assert "1 of the 3 connections" in text
        assert (theirs.held, theirs.pools) == (1, 2)
        assert share(pool).held == 2
        assert len(postgres.sessions()) == 3
    for conn in held:
        pool.release(conn)


def test_a_pool_that_was_closed_holds_what_is_in_use_until_it_comes_back(
    pools: Callable[..., Pool[Any]], folder: Path
) -> None:
    first, second = pools(share=1), pools(share=1, acquire_timeout=0.2)
    held = first.acquire()
    first.close(0)
    with pytest.raises(PoolTimeoutError):
        second.acquire()
    first.release(held)
    second.release(second.acquire(timeout=30.0))
    second.close()
    assert list(folder.iterdir()) == []


def test_a_pool_without_connections_leaves_no_file(
    pools: Callable[..., Pool[Any]], folder: Path
) -> None:
    pool = pools(share=2, max_idle=0.1)
    ask(pool)
    assert len(list(folder.iterdir())) == 1
    wait_until(lambda: pool.stats().size == 0)
    wait_until(lambda: not list(folder.iterdir()))
    assert ask(pool)


# -- what cannot be shared -------------------------------------------------------------------------


def test_without_a_place_for_the_file_the_pool_goes_on_and_says_so(
    pools: Callable[..., Pool[Any]], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    with caplog.at_level(logging.WARNING, "unbroken.pool"):
        pool = pools(share=1)
        held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    (record,) = caplog.records
    assert "belongs to another user, or is open to others" in record.message
    assert "[UB211]" in record.message
    assert "open to others" in share(pool).off_because


def test_a_file_that_is_removed_is_made_anew_and_the_places_are_taken_again(
    pools: Callable[..., Pool[Any]], folder: Path
) -> None:
    first, second = pools(share=2), pools(share=2, acquire_timeout=0.3)
    held = [first.acquire(), first.acquire()]
    next(folder.iterdir()).unlink()
    wait_until(lambda: list(folder.iterdir()) and share(first).held == 2)
    with pytest.raises(PoolTimeoutError):
        second.acquire()
    for conn in held:
        first.release(conn)
    assert ask(second)


def test_behind_a_pooler_the_servers_answer_does_not_count(
    unbroken_postgres: PostgreSQL, unbroken_pgbouncer: Callable[..., PgBouncer]
) -> None:
    bouncer = unbroken_pgbouncer(unbroken_postgres, "transaction")
    with Pool(bouncer.url("psycopg"), share="auto") as pool:
        ask(pool)
        assert "give a number" in share(pool).off_because
    with Pool(bouncer.url("psycopg"), share=5) as pool:
        ask(pool)
        assert share(pool).limit == 5


def test_where_connect_leads_is_not_known_so_it_needs_a_name(postgres: PostgreSQL) -> None:
    import psycopg

    def connect() -> Any:
        return psycopg.connect(postgres.url().replace("?", " "))

    with pytest.raises(ConfigurationError, match="share='shop:auto'"):
        Pool(connect=connect, driver="psycopg", share="auto")
    with Pool(connect=connect, driver="psycopg", share="shop:auto") as pool:
        ask(pool)
        assert share(pool).limit == 87


def test_sqlite_has_no_server_whose_connections_could_be_shared() -> None:
    with Pool("sqlite:///:memory:", share="auto") as pool:
        pool.release(pool.acquire())
        assert pool.stats().share is None
