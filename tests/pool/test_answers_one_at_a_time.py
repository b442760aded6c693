"""Behind a proxy that takes one statement at a time, and closes a connection that sends two: no
statement is sent before the last answer was read, and no caller sees an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from unbroken_drill.servers import MariaDB

from .conftest import wait_until
from .due import DRIVERS, Bench
from .one_at_a_time import OneAtATime


@pytest.fixture(params=DRIVERS)
def bench(request: pytest.FixtureRequest, server_of: Any) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(request.param, server_of(MariaDB), stack)


@pytest.fixture
def proxy(bench: Bench) -> Iterator[OneAtATime]:
    with OneAtATime(bench.server) as proxy:
        yield proxy


def through(bench: Bench, proxy: OneAtATime) -> str:
    plain = {"ssl_disabled": "true"} if bench.has_tls or bench.is_connector else {}
    return bench.url(**plain).replace(f":{bench.server.port}/", f":{proxy.port}/")


def read(bench: Bench, pool: Any) -> None:
    with bench.lent(pool) as conn:
        bench.do(conn, "SELECT n FROM stock")


def test_nobody_sees_that_the_proxy_takes_one_at_a_time(
    bench: Bench, proxy: OneAtATime, caplog: pytest.LogCaptureFixture
) -> None:
    pool = bench.pool(through(bench, proxy))
    with caplog.at_level(logging.INFO, "unbroken"):
        for _ in range(10):
            read(bench, pool)
    closed, opened = proxy.closed, proxy.opened
    assert closed == (2 if bench.state(pool).pipelines else 0)
    for _ in range(20):
        read(bench, pool)
        conn = bench.take(pool)
        bench.do(conn, "SELECT n FROM stock")
        bench.give(pool, conn)
    assert (proxy.closed, proxy.opened) == (closed, opened)
    told = [
        each.message
        for each in caplog.records
        if "the pool reads each answer before" in each.message
    ]
    assert len(told) == (closed > 0)


def test_a_proxy_that_comes_later_costs_a_connection_and_no_more(
    bench: Bench, proxy: OneAtATime
) -> None:
    pool = bench.pool(through(bench, proxy))
    read(bench, pool)
    state = bench.state(pool)
    state.server.pooler.pipelines, closed = True, proxy.closed  # as before the proxy came
    failed: list[Exception] = []

    def is_known() -> bool:
        try:
            with bench.lent(pool) as conn:
                bench.driver.let_fly(conn, bool(state.server.pooler.pipelines))
                bench.do(conn, "SELECT n FROM stock")
        except Exception as error:
            failed.append(error)
        return not state.server.pooler.pipelines

    wait_until(is_known)
    for _ in range(10):
        read(bench, pool)
    assert len(failed) <= 1, failed
    assert proxy.closed - closed == len(failed)


def test_a_server_that_takes_them_is_asked_once(bench: Bench) -> None:
    pool = bench.pool(max_size=2)
    read(bench, pool)
    pooler = bench.state(pool).server.pooler
    assert pooler.pipelines is (True if bench.state(pool).pipelines else None)
