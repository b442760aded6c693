"""Idle limits on real servers: restarts and crashes teach none, and what ends idle connections on
the way is learned.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from unbroken import Pool
from unbroken_drill import FaultProxy
from unbroken_drill.servers import HAProxy, MariaDB, PostgreSQL, Server

DRIVERS = ["pymysql", "psycopg"]
IDLE = 1.2


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(
    driver: str, new_mariadb: Callable[..., MariaDB], new_postgres: Callable[..., PostgreSQL]
) -> Server:
    return new_mariadb() if driver == "pymysql" else new_postgres()


def ask(pool: Pool) -> None:
    def work(conn: Any) -> None:
        cursor = conn.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()

    pool.run(work)


def gone(pool: Pool) -> None:
    """Wait until the death of the idle connection was seen."""
    end = time.monotonic() + 10.0
    while pool.stats().size:
        assert time.monotonic() < end
        time.sleep(0.01)


def backend_of(server: PostgreSQL) -> int:
    """The process behind the pool's session, one of this machine's."""
    (session,) = server.sessions()
    return int(session.id)


def break_it(how: str, server: Server) -> None:
    if how == "crash":
        server.crash(down=0.05)
    elif how == "stop":
        server.restart(down=0.05)
    else:
        assert isinstance(server, PostgreSQL)
        os.kill(backend_of(server), signal.SIGKILL)


@pytest.mark.parametrize("how", ["crash", "stop", "kill -9 of the backend"])
def test_restarts_and_crashes_teach_an_app_of_one_connection_nothing(
    driver: str, server: Server, how: str
) -> None:
    if how.startswith("kill") and driver == "pymysql":
        pytest.skip("its sessions are threads")
    time.sleep(2.0)  # so that the server's youth is not what saves us
    with Pool(server.url(driver), max_size=1, outage_wait=20.0, acquire_timeout=20.0) as pool:
        for _ in range(4):
            ask(pool)
            time.sleep(IDLE)
            break_it(how, server)
            gone(pool)
            time.sleep(0.5)  # it may be up again before anybody connects
        ask(pool)
        stats = pool.stats()
        assert stats.idle_limit_learned_from == ""
        assert stats.idle_limit in (None, 28800.0)
        sessions = stats.opened
        time.sleep(IDLE * 1.5)
        ask(pool)
        assert pool.stats().opened == sessions, "it is not replaced by age"


@pytest.mark.parametrize("reset", [True, False])
def test_what_ends_idle_connections_on_the_way_is_learned(
    driver: str, server: Server, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unbroken")
    time.sleep(2.0)  # a server that is up for less than a second more than a connection proves less
    with FaultProxy(server.url(driver)) as proxy:
        url = proxy.url(server.url(driver))
        with Pool(url, max_size=1, outage_wait=20.0) as pool:
            for _ in range(3):
                ask(pool)
                time.sleep(IDLE)
                proxy.rst() if reset else proxy.fin()
                gone(pool)
            assert pool.stats().idle_limit_learned_from == "", "nobody asked the server yet"
            ask(pool)
            stats = pool.stats()
            assert stats.idle_limit == pytest.approx(IDLE, abs=0.2)
            assert stats.idle_limit_learned_from.startswith(
                "3 connections lost without a message after 1."
            )
            time.sleep(IDLE)  # closed by the pool itself from now on
            gone(pool)
            assert pool.stats().closed["max idle"] == 1
    (line,) = [each.message for each in caplog.records if "learned that" in each.message]
    assert "after about 1.2 s: 3 connections lost without a message" in line


def test_a_proxy_that_restarts_teaches_nothing_to_an_app_that_idles_longer_in_between(
    driver: str, server: Server
) -> None:
    time.sleep(2.0)
    with FaultProxy(server.url(driver)) as proxy:
        url = proxy.url(server.url(driver))
        with Pool(url, max_size=1, outage_wait=20.0) as pool:
            for _ in range(3):
                ask(pool)
                time.sleep(3.0)  # it is alive after that: no limit of a second exists
                ask(pool)
                time.sleep(IDLE)
                proxy.fin()
                gone(pool)
            ask(pool)
            assert pool.stats().idle_limit_learned_from == ""


def test_a_limit_is_learned_by_a_pool_whose_connections_all_idle_alike(
    driver: str, server: Server
) -> None:
    time.sleep(2.0)
    with FaultProxy(server.url(driver)) as proxy:
        proxy.idle_limit(1.0, reset=True)
        with Pool(proxy.url(server.url(driver)), max_size=3, outage_wait=20.0) as pool:
            for _ in range(4):
                held = [pool.acquire() for _ in range(3)]
                for conn in held:
                    pool.release(conn)
                gone(pool)
            ask(pool)
            assert pool.stats().idle_limit == pytest.approx(1.0, abs=0.25)


def test_haproxys_limit_is_learned_and_its_restarts_are_not(driver: str, server: Server) -> None:
    with HAProxy([server], {"timeout client": "2s"}, follow=False) as proxy:
        url = proxy.url(driver, **({"sslmode": "disable"} if driver == "psycopg" else {}))
        time.sleep(2.0)
        with Pool(url, max_size=1, outage_wait=20.0) as pool:
            for _ in range(3):
                ask(pool)
                gone(pool)  # after two seconds
            ask(pool)
            assert pool.stats().idle_limit == pytest.approx(2.0, abs=0.2)
            assert "lost without a message after 2." in pool.stats().idle_limit_learned_from


def test_a_balancer_that_is_restarted_again_and_again_teaches_nothing(
    driver: str, server: Server
) -> None:
    with HAProxy([server], follow=False) as proxy:
        url = proxy.url(driver, **({"sslmode": "disable"} if driver == "psycopg" else {}))
        time.sleep(2.0)
        with Pool(url, max_size=1, outage_wait=20.0) as pool:
            for idle in (0.8, 2.0, 1.2, 3.0, 0.6):
                ask(pool)
                time.sleep(idle)
                proxy.crash(down=0.05)
                gone(pool)
                time.sleep(0.3)  # it is up again: no connect fails
            ask(pool)
            assert pool.stats().idle_limit_learned_from == ""
