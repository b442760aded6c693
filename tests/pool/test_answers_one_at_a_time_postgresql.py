"""Behind a proxy of PostgreSQL's protocol that does not answer two statements in turn, each answer
is read before the next statement is sent, and no caller sees an error or another's answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from unbroken.brain import outage
from unbroken_drill.servers import PostgreSQL, Server

from .conftest import wait_until
from .due import POSTGRESQL, Bench, servers
from .one_at_a_time_postgresql import Proxy

#: What such a proxy does, and how many connections it takes until that is known. While one is
#: silent, the pool also looks whether something else listens there.
HARMFUL = {"closes": 2, "drops": 2, "turns": 1, "repeats": 1, "mixes": 1}
HARMLESS = ("waits", "talks", "passes")


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[type[Server]], Server]]:
    yield from servers()


@pytest.fixture(params=POSTGRESQL)
def bench(request: pytest.FixtureRequest, server_of: Any) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(request.param, server_of(PostgreSQL), stack)


@pytest.fixture
def proxy_of(bench: Bench) -> Iterator[Callable[[str], Proxy]]:
    with ExitStack() as stack:
        yield lambda kind: stack.enter_context(Proxy(bench.server, kind))


def through(bench: Bench, proxy: Proxy) -> str:
    return bench.url().replace(f":{bench.server.port}/", f":{proxy.port}/")


def read(bench: Bench, pool: Any, number: int) -> None:
    with bench.lent(pool) as conn:
        assert bench.ask(conn, f"SELECT {number}") == number


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        each.message
        for each in caplog.records
        if "the pool reads each answer before" in each.message
    ]


@pytest.mark.parametrize("kind", HARMFUL)
def test_nobody_sees_what_the_proxy_does(
    bench: Bench,
    proxy_of: Any,
    kind: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind != "drops":  # on a slow machine, no other connection is opened beside a slow one
        monkeypatch.setattr(outage, "SILENT", 5.0)
    proxy = proxy_of(kind)
    pool = bench.pool(through(bench, proxy))
    with caplog.at_level(logging.INFO, "unbroken"):
        for number in range(10):
            read(bench, pool, number)
    assert bench.state(pool).server.pooler.pipelines is False
    met, opened = proxy.met, proxy.opened
    assert opened == HARMFUL[kind] + 1
    for number in range(20):
        read(bench, pool, number)
        conn = bench.take(pool)
        assert bench.ask(conn, f"SELECT {number} FROM stock LIMIT 1") == number
        bench.give(pool, conn)
    assert (proxy.met, proxy.opened) == (met, opened)
    assert len(told(caplog)) == 1


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_proxy_that_waits_or_talks_does_no_harm(
    bench: Bench, proxy_of: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = proxy_of(kind)
    pool = bench.pool(through(bench, proxy))
    with caplog.at_level(logging.INFO, "unbroken"):
        for number in range(20):
            read(bench, pool, number)
    assert bench.state(pool).server.pooler.pipelines is True
    assert proxy.opened == 1
    assert not told(caplog)


def test_it_is_tried_once_for_a_server(
    bench: Bench, proxy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "SILENT", 5.0)  # as above
    proxy = proxy_of("passes")
    pool = bench.pool(through(bench, proxy), max_size=3)
    read(bench, pool, 1)
    met = proxy.met
    # the second and the third of one flight
    assert (met, proxy.opened) == (2, 1)
    held = [bench.take(pool) for _ in range(3)]
    others = bench.pool(through(bench, proxy))
    read(bench, others, 2)
    assert proxy.opened >= 4
    assert proxy.met == met
    for conn in held:
        bench.give(pool, conn)


def test_what_was_known_to_harm_is_tried_again_after_a_while(bench: Bench, proxy_of: Any) -> None:
    proxy = proxy_of("turns")
    pool = bench.pool(through(bench, proxy))
    read(bench, pool, 1)
    pooler = bench.state(pool).server.pooler
    assert pooler.pipelines is False
    proxy.kind, pooler._again_at = "passes", 0.0
    bench.wait(pool.drain())
    for number in range(3):
        read(bench, pool, number)
    assert pooler.pipelines is True


def test_a_proxy_that_comes_later_costs_a_connection_and_no_more(
    bench: Bench, proxy_of: Any
) -> None:
    proxy = proxy_of("passes")
    pool = bench.pool(through(bench, proxy))
    for number in range(3):
        read(bench, pool, number)
    proxy.kind, proxy.away = "closes", 0.05
    state, failed = bench.state(pool), []

    def is_known() -> bool:
        try:
            for number in range(3):  # one right behind the other
                read(bench, pool, number)
        except Exception as error:
            failed.append(error)
        return not state.server.pooler.pipelines

    wait_until(is_known)
    met = proxy.met
    for number in range(10):
        read(bench, pool, number)
    assert len(failed) <= 1, failed
    assert state.server.pooler.pipelines is False
    assert proxy.met - met <= 2  # of a trial
