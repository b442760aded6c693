"""sqlite3 is a driver like the others, without a server."""

from __future__ import annotations

import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from unbroken import Pool
from unbroken.abc import Driver, FaultKind
from unbroken.drivers import open_driver
from unbroken.ledger import scope, unit, verdicts


@pytest.fixture
def driver(tmp_path: Path) -> Any:
    return open_driver(f"sqlite:///{tmp_path}/a%20b.db")


@pytest.fixture
def conn(driver: Any) -> Any:
    connection = driver.connect(5.0)
    yield connection
    driver.close(connection)


def test_it_is_a_driver_without_server_and_socket(driver: Any, conn: Any) -> None:
    assert isinstance(driver, Driver)
    assert isinstance(conn, sqlite3.Connection)
    assert not driver.capabilities.server
    assert driver.fileno(conn) is None
    assert driver.idle_limit(conn) is None
    driver.ping(conn, 1.0)


def test_it_knows_its_transactions(driver: Any, conn: Any) -> None:
    conn.execute("CREATE TABLE t (n INT)")
    assert driver.is_in_transaction(conn) is False
    conn.execute("INSERT INTO t VALUES (1)")
    assert driver.is_in_transaction(conn) is True
    driver.rollback(conn)
    assert driver.is_in_transaction(conn) is False
    assert conn.execute("SELECT COUNT(*) FROM t").fetchone() == (0,)


def test_another_thread_may_use_the_connection(driver: Any, conn: Any) -> None:
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(conn.execute("SELECT 1").fetchone()))
    thread.start()
    thread.join(5)
    assert seen == [(1,)]


def test_in_memory_is_one_database_per_pool() -> None:
    first, second = open_driver("sqlite://"), open_driver("sqlite://")
    one, two, other = first.connect(1), first.connect(1), second.connect(1)
    one.execute("CREATE TABLE t (n INT)")
    one.execute("INSERT INTO t VALUES (1)")
    one.commit()
    assert two.execute("SELECT n FROM t").fetchall() == [(1,)]
    with pytest.raises(sqlite3.OperationalError):
        other.execute("SELECT n FROM t")
    for conn in (one, two, other):
        first.close(conn)


def test_options_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ro.db"
    sqlite3.connect(path).close()
    driver = open_driver(f"sqlite:///{path}?mode=ro&timeout=0.1&isolation_level=none")
    conn = driver.connect(1)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        conn.execute("CREATE TABLE t (n INT)")
    assert conn.isolation_level is None
    driver.close(conn)


def test_what_went_wrong_is_told(driver: Any, conn: Any, tmp_path: Path) -> None:
    nowhere = open_driver(f"sqlite:///{tmp_path}/no/such/folder/x.db")
    with pytest.raises(sqlite3.OperationalError) as caught:
        nowhere.connect(1)
    assert nowhere.classify(caught.value).kind is FaultKind.REJECTED
    driver.close(conn)
    driver.close(conn)
    with pytest.raises(sqlite3.ProgrammingError) as used:
        conn.execute("SELECT 1")
    assert driver.classify(used.value).kind is FaultKind.LOST
    assert driver.is_in_transaction(conn) is None


def test_a_watched_connection_tells_everything(driver: Any, conn: Any, recorder: Any) -> None:
    conn.execute("CREATE TABLE t (n INT)")
    driver.watch(conn)
    conn.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
    conn.commit()
    conn.execute("SELECT 1")
    driver.unwatch(conn)
    conn.execute("SELECT 2")
    assert [str(sql).strip() for sql in recorder.sent] == [
        "BEGIN",
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t VALUES (2)",
        "COMMIT",
        "SELECT 1",
    ]
    assert recorder.log[1][1] is False
    assert recorder.log[-1][1] is True


@pytest.mark.parametrize("ours", [True, False])
def test_what_the_pool_commits_is_stored_for_the_ledger(tmp_path: Path, ours: bool) -> None:
    file = tmp_path / "stored.db"
    made = (
        Pool(f"sqlite:///{file}")
        if ours
        else Pool(connect=lambda: sqlite3.connect(file, check_same_thread=False), driver="sqlite")
    )
    with made as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE t (n INT)")
        ledger = unit.Unit(observing=True)
        token = scope.enter(ledger)
        try:
            with pool.connection() as conn:
                conn.execute("INSERT INTO t VALUES (1)")
            assert ledger.fate() is verdicts.Fate.STORED
        finally:
            scope.leave(token)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3's autocommit came with Python 3.12")
def test_a_connection_that_is_always_in_a_transaction_is_kept_once_that_is_empty(
    tmp_path: Path,
) -> None:
    def connect() -> Any:
        return sqlite3.connect(tmp_path / "always.db", check_same_thread=False, autocommit=False)  # type: ignore[call-arg] # from 3.12 on

    driver = open_driver(connect=connect, driver="sqlite")
    conn = driver.connect(1.0)
    traits = driver.traits(conn)
    assert not driver.is_clean(conn, traits)
    conn.execute("CREATE TABLE t (n INT)")
    driver.commit(conn)
    for sql in ("INSERT INTO t VALUES (1)", "SELECT n FROM t"):
        driver.rollback(conn)
        assert driver.is_clean(conn, traits)
        assert driver.is_clean(conn, traits)
        conn.execute(sql)
        assert not driver.is_clean(conn, traits)
    driver.rollback(conn)
    conn.set_trace_callback(None)
    assert not driver.is_clean(conn, traits)
    with Pool(connect=connect, driver="sqlite", max_size=1) as pool:
        for n in range(3):
            with pool.connection() as conn:
                conn.execute(f"INSERT INTO t VALUES ({n})")
        with pool.connection() as conn:
            assert conn.execute("SELECT n FROM t").fetchall() == [(0,), (1,), (2,)]
        assert pool.stats().opened == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3's autocommit came with Python 3.12")
def test_a_holder_that_switched_autocommit_off_leaves_no_transaction_open(
    driver: Any, conn: Any
) -> None:
    traits = driver.traits(conn)
    conn.autocommit = False
    driver.rollback(conn)
    driver.restore(conn, traits)
    assert not conn.in_transaction
    assert driver.is_clean(conn, traits)
