"""The server in memory behaves as a server does, so that tests which stand on it say something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from unbroken.abc import Cause, Driver, FaultKind
from unbroken.net.liveness import Liveness, look
from unbroken_drill.fake import (
    FakeClock,
    FakeConnection,
    FakeDriver,
    FakeOperationalError,
    FakeServer,
    Mode,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> FakeServer:
    return FakeServer(clock, max_connections=3)


@pytest.fixture
def driver(server: FakeServer) -> FakeDriver:
    return FakeDriver(server)


def kind_of(driver: FakeDriver, call: Callable[[], object]) -> FaultKind:
    with pytest.raises(FakeOperationalError) as caught:
        call()
    return driver.classify(caught.value).kind


def test_it_is_a_driver(driver: FakeDriver) -> None:
    assert isinstance(driver, Driver)


def test_rows_are_stored_when_their_commit_arrives(server: FakeServer, driver: FakeDriver) -> None:
    conn = driver.connect(5.0)
    conn.execute("INSERT", 1)
    assert driver.is_in_transaction(conn)
    assert server.rows == []
    driver.commit(conn)
    assert server.rows == [1]
    assert driver.is_in_transaction(conn) is False


def test_a_rollback_and_a_lost_session_store_nothing(
    server: FakeServer, driver: FakeDriver
) -> None:
    first, second = driver.connect(5.0), driver.connect(5.0)
    first.execute("INSERT", 1)
    driver.rollback(first)
    second.execute("INSERT", 2)
    server.kill_sessions()
    assert kind_of(driver, lambda: driver.commit(second)) is FaultKind.LOST
    assert server.rows == []


def test_a_commit_can_be_stored_without_an_answer(server: FakeServer, driver: FakeDriver) -> None:
    conn = driver.connect(5.0)
    conn.execute("INSERT", 1)
    server.commits_to_lose = 1
    assert kind_of(driver, lambda: driver.commit(conn)) is FaultKind.LOST
    assert server.rows == [1]


def test_a_commit_that_was_sent_to_a_frozen_server_is_stored_once_when_it_thaws(
    server: FakeServer, driver: FakeDriver
) -> None:
    conn = driver.connect(5.0)
    conn.execute("INSERT", 1)
    server.freeze()
    assert kind_of(driver, lambda: driver.commit(conn)) is FaultKind.LOST
    driver.close(conn)
    assert server.rows == []
    server.up()
    assert server.rows == [1]


@pytest.mark.parametrize(
    ("mode", "kind", "takes"),
    [
        (Mode.REFUSING, FaultKind.REFUSED, 0.0),
        (Mode.STARTING, FaultKind.NOT_READY, 0.0),
        (Mode.REJECTING, FaultKind.REJECTED, 0.0),
        (Mode.UNREACHABLE, FaultKind.UNREACHABLE, 5.0),
        (Mode.FROZEN, FaultKind.UNREACHABLE, 5.0),
    ],
)
def test_who_connects_meets_the_servers_mode(
    server: FakeServer,
    driver: FakeDriver,
    clock: FakeClock,
    mode: Mode,
    kind: FaultKind,
    takes: float,
) -> None:
    server.mode = mode
    before = clock()
    assert kind_of(driver, lambda: driver.connect(5.0)) is kind
    assert clock() - before == takes


def test_a_full_server_says_so_until_somebody_leaves(
    server: FakeServer, driver: FakeDriver
) -> None:
    conns = [driver.connect(5.0) for _ in range(3)]
    assert kind_of(driver, lambda: driver.connect(5.0)) is FaultKind.TOO_MANY
    driver.close(conns.pop())
    assert driver.connect(5.0)
    assert [how for _, how in server.attempts].count("accepted") == 4


def test_what_is_forgotten_frees_its_session(server: FakeServer, driver: FakeDriver) -> None:
    conn: FakeConnection | None = driver.connect(5.0)
    assert len(server.sessions) == 1
    del conn
    assert not server.sessions


def test_idle_sessions_end_and_say_why(clock: FakeClock) -> None:
    server = FakeServer(clock, idle_limit=10.0)
    driver = FakeDriver(server)
    conn = driver.connect(5.0)
    clock.advance(9.0)
    driver.ping(conn, 1.0)
    clock.advance(9.0)
    driver.ping(conn, 1.0)
    clock.advance(11.0)
    with pytest.raises(FakeOperationalError) as caught:
        driver.ping(conn, 1.0)
    assert driver.classify(caught.value).cause is Cause.IDLE_LIMIT


def test_a_silent_drop_costs_the_ping_its_time(
    server: FakeServer, driver: FakeDriver, clock: FakeClock
) -> None:
    conn = driver.connect(5.0)
    server.drop_silently()
    before = clock()
    assert kind_of(driver, lambda: driver.ping(conn, 2.0)) is FaultKind.LOST
    assert clock() - before == 2.0


def test_a_read_only_server_takes_no_rows(server: FakeServer, driver: FakeDriver) -> None:
    conn = driver.connect(5.0)
    server.read_only = True
    assert kind_of(driver, lambda: conn.execute("INSERT", 1)) is FaultKind.WRONG_SERVER


def test_round_trips_are_counted(server: FakeServer, driver: FakeDriver) -> None:
    conn = driver.connect(5.0)
    before = server.round_trips
    conn.execute("SELECT")
    driver.ping(conn, 1.0)
    driver.commit(conn)
    assert server.round_trips - before == 3


def test_timers_are_called_in_order_at_their_time(clock: FakeClock) -> None:
    seen: list[tuple[str, float]] = []
    clock.at(1002.0, lambda: seen.append(("late", clock())))
    clock.at(1001.0, lambda: seen.append(("early", clock())))
    clock.at(1001.5, lambda: seen.append(("never", clock()))).cancel()
    clock.advance(5.0)
    assert seen == [("early", 1001.0), ("late", 1002.0)]
    assert clock() == 1005.0


def test_with_real_sockets_the_kernel_sees_the_end(server: FakeServer) -> None:
    driver = FakeDriver(server, sockets=True)
    conn = driver.connect(5.0)
    fd = driver.fileno(conn)
    assert fd is not None
    assert look(fd) is Liveness.ALIVE
    server.kill_sessions()
    assert look(fd) is Liveness.DEAD
    driver.close(conn)
    assert driver.fileno(conn) is None


def test_with_the_real_clock_a_frozen_server_blocks_until_it_thaws() -> None:
    server = FakeServer()
    driver = FakeDriver(server)
    conn = driver.connect(5.0)
    server.freeze()
    done: list[float] = []
    thread = threading.Thread(
        target=lambda: (driver.ping(conn, 30.0), done.append(time.monotonic()))
    )
    thread.start()
    thread.join(0.05)
    assert not done
    server.up()
    thread.join(10.0)
    assert done


def test_an_idle_session_ends_at_any_time_of_day() -> None:
    """Whatever the last digit of a sum of floats is."""
    for number in range(200):
        clock = FakeClock(1000.0 + number / 7)
        server = FakeServer(clock, idle_limit=1.1)
        conn = FakeDriver(server).connect(5.0)
        clock.advance(1.2)
        assert not server.sessions, number
        conn.close()
