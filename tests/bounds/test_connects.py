"""A server that falls silent, or nearly so, in the middle of a login: each attempt has one total
limit, and others begin beside it.

``make test`` tries some places of a login, ``make soak`` all of them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import unbroken
from unbroken.drivers import open_driver
from unbroken_drill import FaultProxy
from unbroken_drill.servers import Server

from .bodies import KINDS
from .conftest import Crowd, Outcome, timed

LIMIT = 1.0
#: What is promised beyond the limit, and what a busy machine may add to everything.
BEYOND, SLACK = 0.5, 1.0
#: A first success after the server is well: what is promised; the slack is for machines that are
#: busy with something else.
SOON = 0.3
TOGETHER = 6

POOLS = [name for name in KINDS if "-" not in name or name.startswith("async-")]


def login_length(server: Server, name: str, tls: bool) -> int:
    """How many bytes a server says in a login of that body's driver."""
    kind = KINDS[name]
    is_async = "Async" in kind.body.__name__
    plain = KINDS[f"async-{kind.driver}" if is_async else kind.driver]
    with FaultProxy((server.host, server.port)) as proxy:
        driver: Any = open_driver(proxy.url(plain.url(server, tls=tls)), is_async=is_async)
        conn = driver.connect(30.0)
        if not is_async:
            driver.close(conn)
        else:

            async def connect() -> None:
                driver.close(await conn)

            asyncio.run(connect())
        return proxy.connections[0].to_client


def hush(proxy: FaultProxy, size: int, rate: float) -> None:
    """From now on each new connection hears so many bytes, and then nearly nothing."""
    proxy.quiet_after(size, rate=rate, on="new")


def let_new_ones_through(proxy: FaultProxy) -> None:
    """The server is well; what was lost of the connections that there are stays lost."""
    proxy._do(proxy._house.standing.clear)


def open_for(proxy: FaultProxy) -> Iterator[float]:
    """For how long the client kept each connection that it has ended by now."""
    ends: dict[int, float] = {}
    for event in proxy.events:
        by_client = event.name == "fin passed on" and "client" in event.text
        if event.n is not None and (by_client or event.name in ("closed", "rst")):
            ends.setdefault(event.n, event.at)
    return (ends[info.n] - info.opened for info in proxy.connections if info.n in ends)


def strike(made: Crowd, sizes: dict[str, int], rate: float, seconds: float) -> dict[str, Outcome]:
    """Each body works through such a server that is well again after so many seconds: how long
    after that it succeeded.
    """
    well: dict[str, float] = {}

    def heal(name: str) -> None:
        let_new_ones_through(made.proxies[name])
        well[name] = time.monotonic()

    def work(name: str, body: Any) -> Any:
        hush(made.proxies[name], sizes[name], rate)
        timer = threading.Timer(seconds + random.random() * 0.2, heal, [name])
        timer.start()
        return body.work("SELECT 2")

    outcomes = made.all(work)
    for name, outcome in outcomes.items():
        outcome.seconds = outcome.ended_at - well.get(name, outcome.ended_at)
    return outcomes


def check(made: Crowd, outcomes: dict[str, Outcome], slack: float) -> None:
    assert {name: str(o) for name, o in outcomes.items() if o.value != 2} == {}
    assert {
        name: f"{o.seconds:.2f} s after it was well"
        for name, o in outcomes.items()
        if o.seconds > SOON + slack
    } == {}
    time.sleep(LIMIT + BEYOND)
    longest = {name: max(open_for(proxy), default=0.0) for name, proxy in made.proxies.items()}
    assert {
        name: f"open for {found:.2f} s"
        for name, found in longest.items()
        if found > LIMIT + BEYOND + slack
    } == {}
    most = {name: body.stats() for name, body in made.bodies.items()}
    assert {name: found for name, found in most.items() if found.size > 4 or found.used} == {}


GROUPS = [tuple(KINDS)[start : start + TOGETHER] for start in range(0, len(KINDS), TOGETHER)]
SETTINGS: dict[str, Any] = {
    "connect_timeout": LIMIT,
    "acquire_timeout": 30.0,
    "outage_wait": 30.0,
    "max_size": 4,
}


@pytest.mark.parametrize("names", GROUPS, ids=lambda names: names[0])
@pytest.mark.parametrize(
    ("tls", "rate", "share"),
    [(False, 0.0, 0.6), (True, 1.0, 0.8)],
    ids=["silent", "dribbling by TLS"],
)
def test_a_connect_ends_within_its_limit_and_the_first_success_follows_the_servers_return(
    crowd: Callable[..., Crowd],
    servers: Callable[[bool], Server],
    names: tuple[str, ...],
    tls: bool,
    rate: float,
    share: float,
) -> None:
    """Whatever the last attempt has met: none waits for the end of one that hangs."""
    sizes = {
        name: int(share * login_length(servers(KINDS[name].is_mysql), name, tls)) for name in names
    }
    made = crowd(list(names), tls=tls, warm=False, **SETTINGS)
    check(made, strike(made, sizes, rate, 1.7), SLACK)


@pytest.mark.soak
@pytest.mark.timeout(24 * 3600)
@pytest.mark.parametrize("rate", [0.0, 1.0], ids=["silent", "dribbling"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", list(KINDS))
def test_the_same_at_every_byte(
    crowd: Callable[..., Crowd],
    servers: Callable[[bool], Server],
    name: str,
    tls: bool,
    rate: float,
) -> None:
    # A signature's length, and so a login's by TLS, varies: behind the shortest, the answer to the
    # statement would fall silent
    length = min(
        2000, *(login_length(servers(KINDS[name].is_mysql), name, tls) - 4 for _ in range(6))
    )
    step = 1 if name in POOLS else 7
    for first in range(0, length, step * TOGETHER):
        made = Crowd()
        sizes = {}
        for size in range(first, min(length, first + step * TOGETHER), step):
            one = crowd([name], tls=tls, warm=False, **SETTINGS)
            made.bodies[str(size)], made.proxies[str(size)], sizes[str(size)] = (
                one.bodies[name],
                one.proxies[name],
                size,
            )
        check(made, strike(made, sizes, rate, 1.2), SLACK)
        for body in made.bodies.values():
            body.close()
        for proxy in made.proxies.values():
            proxy.close()


def test_a_pool_of_one_is_served_soon_too_where_the_server_is_known_to_be_quick(
    crowd: Callable[..., Crowd],
) -> None:
    made = crowd(
        ["pymysql", "psycopg2", "async-asyncpg", "sqlalchemy-psycopg"],
        **{**SETTINGS, "max_size": 1},
    )
    for proxy in made.proxies.values():
        proxy.rst()
    outcomes = strike(made, dict.fromkeys(made.bodies, 30), 0.0, 1.7)
    assert {name: str(o) for name, o in outcomes.items() if o.value != 2} == {}
    assert {
        name: f"{o.seconds:.2f} s" for name, o in outcomes.items() if o.seconds > 2 * SOON + SLACK
    } == {}


@pytest.mark.parametrize(
    "name", ["pymysql", "async-asyncmy", "sqlalchemy-pg8000", "peewee-psycopg2"]
)
def test_callers_are_told_in_time_while_attempts_hang(
    crowd: Callable[..., Crowd], name: str
) -> None:
    made = crowd(
        [name], warm=False, connect_timeout=LIMIT, acquire_timeout=2.0, outage_wait=0.5, max_size=4
    )
    hush(made.proxies[name], 20, 0.0)
    outcome = timed(lambda: made.bodies[name].work("SELECT 1"))
    assert isinstance(outcome.error, unbroken.OutageError), str(outcome)
    assert outcome.seconds < 2.0 + SLACK
    again = timed(lambda: made.bodies[name].work("SELECT 1"))
    assert isinstance(again.error, unbroken.OutageError), str(again)
    assert again.seconds < 1.0 + SLACK


def test_a_server_that_is_only_slow_is_connected_to(crowd: Callable[..., Crowd]) -> None:
    """Its logins take longer than the time after which another attempt begins; a pool of one has no
    room for another.
    """
    names = [
        "pymysql",
        "psycopg",
        "async-aiomysql",
        "sqlalchemy-psycopg2",
        "sqlalchemy-async-asyncpg",
    ]
    for size in (1, 4):
        made = crowd(names, warm=False, **{**SETTINGS, "connect_timeout": 5.0, "max_size": size})
        for proxy in made.proxies.values():
            proxy.latency(0.2, way="down")
        outcomes = made.all(lambda _name, body: body.work("SELECT 2"))
        assert {
            name: str(o) for name, o in outcomes.items() if o.value != 2 or o.seconds > 10.0
        } == {}


def test_a_name_lookup_that_hangs_keeps_nobody_longer_than_their_time(
    crowd: Callable[..., Crowd], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be interrupted: the attempt is given up, and ends by itself."""
    names = ["pymysql", "pg8000", "sqlalchemy-pymysql", "sqlalchemy-pg8000"]
    over, lookup = threading.Event(), socket.getaddrinfo
    made = crowd(
        names, warm=False, connect_timeout=LIMIT, acquire_timeout=4.0, outage_wait=0.5, max_size=2
    )
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *args, **kwargs: (over.wait(20.0), lookup(*args, **kwargs))[1]
    )
    try:
        outcomes = made.all(lambda _name, body: body.work("SELECT 1"))
        assert {
            name: str(o)
            for name, o in outcomes.items()
            if not isinstance(o.error, unbroken.OutageError)
        } == {}
        assert {
            name: str(o) for name, o in outcomes.items() if o.seconds > LIMIT + BEYOND + SLACK
        } == {}
    finally:
        over.set()
    end = time.monotonic() + 3.0
    while {o.value for o in made.all(lambda _name, body: body.work("SELECT 2")).values()} != {2}:
        assert time.monotonic() < end, "not served though the lookups are over"
    assert {
        name: body.stats().size for name, body in made.bodies.items() if body.stats().size > 2
    } == {}


@pytest.mark.parametrize("is_async", [False, True], ids=["Pool", "AsyncPool"])
def test_a_callers_own_connect_that_hangs_gives_its_place_back(
    postgres: Server, is_async: bool
) -> None:
    """It waits for no socket, so nothing can end it: also a pool of one goes on without it."""
    over, hang, made, late = threading.Event(), [True], [], list[Any]()
    settings: dict[str, Any] = {
        "connect_timeout": LIMIT, "acquire_timeout": 8.0, "outage_wait": 8.0, "max_size": 1,
    }  # fmt: skip

    def connect() -> Any:
        url = postgres.url("psycopg").replace("+psycopg", "")
        if not hang:
            made.append(psycopg.connect(url))
            return made[-1]
        hang.clear()
        over.wait(60.0)
        try:
            late.append(psycopg.connect(url))
        except psycopg.OperationalError as error:  # it waits for a socket now, and is ended there
            late.append(error)
            raise
        return late[-1]

    async def connect_async() -> Any:
        if hang:
            hang.clear()
            await asyncio.sleep(60.0)
        return await psycopg.AsyncConnection.connect(
            postgres.url("psycopg").replace("+psycopg", "")
        )

    async def acquire_async() -> None:
        async with unbroken.AsyncPool(connect=connect_async, driver="psycopg", **settings) as pool:
            await pool.release(await pool.acquire())

    started = time.monotonic()
    if is_async:
        asyncio.run(acquire_async())
        assert time.monotonic() - started < LIMIT + BEYOND + SLACK
        return
    with unbroken.Pool(connect=connect, driver="psycopg", **settings) as pool:
        try:
            pool.release(pool.acquire())
            assert time.monotonic() - started < LIMIT + BEYOND + SLACK
        finally:
            over.set()
        deadline = time.monotonic() + 30.0
        while not late or not (isinstance(late[0], Exception) or late[0].closed):
            assert time.monotonic() < deadline, "what came too late stays open"
            time.sleep(0.02)
        assert not made[0].closed
        assert pool.stats().size == 1
