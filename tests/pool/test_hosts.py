"""A pool of several hosts, on two real servers: one that is stopped, frozen or unknown never hides
the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import pytest

import unbroken
from unbroken.pool import servers
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

POSTGRESQL = ["psycopg", "psycopg2", "pg8000", "asyncpg", "psycopg_async"]
MYSQL = ["pymysql", "mysqldb", "mariadbconnector", "mysqlconnector", "aiomysql", "asyncmy"]
ASYNC = {"asyncpg", "psycopg_async", "aiomysql", "asyncmy"}
#: Seconds within which the second host serves where the first one is frozen: 0.2 and a connect, on
#: a machine that may be very busy …
SOON = 6.0
#: … and so many it would be if the first one had to run into its time limit.
LATE = 30.0


class Pair:
    """Two servers that let the same user in."""

    def __init__(self, first: Server, second: Server) -> None:
        self.first, self.second = first, second
        is_postgresql = first.backend == "postgresql"
        user = first.user if is_postgresql else f"'{first.user}'@'%'"
        how = "PASSWORD" if is_postgresql else "IDENTIFIED BY"
        second.admin(f"ALTER USER {user} {how} '{first.password}'")

    def url(self, name: str, *extra: str, **query: object) -> str:
        a, b = self.first, self.second
        scheme = f"{a.scheme}+{name.removesuffix('_async')}"
        where = ",".join([*extra, f"{a.host}:{a.port}", f"{b.host}:{b.port}"])
        tail = "&".join(f"{key}={value}" for key, value in query.items())
        return f"{scheme}://{a.user}:{quote(a.password)}@{where}/{a.database}?{tail}"

    def well(self) -> None:
        """Both servers run, and nobody of this process is at them."""
        for each in (self.first, self.second):
            if each.is_running:
                each.thaw()
            else:
                each.start()


class Sync:
    """A pool for threads, and what it is asked."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.pool: Any = unbroken.Pool(url, **settings)

    def port(self, timeout: float = 10.0) -> int:
        """The port of the server that answers."""
        with self.pool.connection(timeout=timeout) as conn:
            cursor = conn.cursor()
            cursor.execute(question(self.pool))
            return int(next(iter(cursor.fetchone())))

    def write(self) -> None:
        """One row, by a unit of work."""
        self.pool.run(lambda conn: conn.cursor().execute("INSERT INTO t VALUES (1)"))

    def stats(self) -> Any:
        return self.pool.stats()

    def close(self) -> None:
        self.pool.close()


class Async:
    """The same on an event loop."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.runner = asyncio.Runner()
        self.pool: Any = unbroken.AsyncPool(url, **settings)

    def port(self, timeout: float = 10.0) -> int:
        return self.runner.run(self._port(timeout))

    async def _port(self, timeout: float) -> int:
        async with self.pool.connection(timeout=timeout) as conn:
            if hasattr(conn, "fetchval"):
                return int(await conn.fetchval(question(self.pool)))
            cursor = conn.cursor()
            if hasattr(cursor, "__await__"):
                cursor = await cursor
            await cursor.execute(question(self.pool))
            return int((await cursor.fetchone())[0])

    def write(self) -> None:
        async def insert(conn: Any) -> None:
            if hasattr(conn, "fetchval"):
                await conn.execute("INSERT INTO t VALUES (1)")
                return
            cursor = conn.cursor()
            if hasattr(cursor, "__await__"):
                cursor = await cursor
            await cursor.execute("INSERT INTO t VALUES (1)")

        self.runner.run(self.pool.run(insert))

    def stats(self) -> Any:
        async def ask() -> Any:
            return self.pool.stats()

        return self.runner.run(ask())

    def close(self) -> None:
        self.runner.run(self.pool.close())
        self.runner.close()


def question(pool: Any) -> str:
    is_postgresql = pool._driver.target.backend == "postgresql"
    return "SELECT inet_server_port()" if is_postgresql else "SELECT @@port"


@pytest.fixture(scope="module")
def pairs() -> Iterator[Callable[[str], Pair]]:
    made: dict[type, Pair] = {}
    with ExitStack() as stack:

        def get(name: str) -> Pair:
            kind = PostgreSQL if name in POSTGRESQL else MariaDB
            if kind not in made:
                made[kind] = Pair(stack.enter_context(kind()), stack.enter_context(kind()))
            return made[kind]

        yield get


@pytest.fixture
def opened(pairs: Callable[[str], Pair]) -> Iterator[Callable[..., tuple[Pair, Any]]]:
    """Makes a pool of both servers, by the name of its driver."""
    with ExitStack() as stack:

        def make(name: str, *extra: str, **settings: Any) -> tuple[Pair, Any]:
            pair = pairs(name)
            servers._records.clear()  # what this process knows of the hosts, from earlier tests
            stack.callback(pair.well)
            pool = (Async if name in ASYNC else Sync)(
                pair.url(name, *extra), connect_timeout=LATE, acquire_timeout=LATE, **settings
            )
            stack.callback(pool.close)
            return pair, pool

        yield make


@contextmanager
def took_less_than(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*POSTGRESQL, *MYSQL])


def test_a_frozen_first_host_does_not_hide_the_second(opened: Any, name: str) -> None:
    pair, pool = opened(name)
    pair.first.freeze()
    with took_less_than(SOON):
        assert pool.port() == pair.second.port
    assert pool.stats().hosts == {f"127.0.0.1:{pair.second.port}": 1}


def test_a_stopped_host_is_left_and_its_connections_are_gone(opened: Any, name: str) -> None:
    pair, pool = opened(name)
    assert pool.port() == pair.first.port
    pair.first.kill()
    with took_less_than(SOON):
        assert pool.port() == pair.second.port
    assert pool.stats().hosts == {f"127.0.0.1:{pair.second.port}": 1}
    pair.first.start()
    assert pool.port() == pair.second.port  # it stays where it is
    pair.second.kill()
    with took_less_than(SOON):
        assert pool.port() == pair.first.port


def test_an_unknown_host_does_not_hide_the_others(opened: Any, name: str) -> None:
    pair, pool = opened(name, "no-such-host.invalid")
    with took_less_than(SOON):
        assert pool.port() == pair.first.port
    pair.first.kill()
    with took_less_than(SOON):
        assert pool.port() == pair.second.port


def test_where_all_hosts_fail_each_is_named_with_its_reason(opened: Any, name: str) -> None:
    pair, pool = opened(name)
    pair.first.kill()
    pair.second.kill()
    with pytest.raises(unbroken.OutageError) as caught:
        pool.port(0.6)
    told = str(caught.value)
    assert "\n" not in told
    assert pair.first.password not in told
    for each in (pair.first, pair.second):
        assert f"127.0.0.1:{each.port}: " in told.partition("has been down")[2]
    pair.second.start()
    with took_less_than(SOON):
        assert pool.port() == pair.second.port


def test_connections_to_a_place_that_froze_are_let_go(opened: Any, until: Any) -> None:
    pair, pool = opened("psycopg", max_age=60.0)
    first = [pool.pool.acquire() for _ in range(2)]
    assert pool.stats().hosts == {f"127.0.0.1:{pair.first.port}": 2}
    pair.first.freeze()
    assert pool.port() == pair.second.port
    until(lambda: pool.pool._state.server.hosts.place == ("127.0.0.1", pair.second.port))
    for conn in first:
        pool.pool.release(conn)
    until(lambda: pool.stats().hosts == {f"127.0.0.1:{pair.second.port}": 1})


def test_all_hosts_that_refuse_the_user_are_a_refusal(pairs: Any) -> None:
    pair = pairs("psycopg")
    url = pair.url("psycopg").replace(quote(pair.first.password), "wrong-secret")
    with unbroken.Pool(url) as pool:
        refused = pytest.raises(unbroken.ConnectRejectedError)
        with refused as caught, pool.connection():
            pass
    told = str(caught.value)
    assert f"127.0.0.1:{pair.first.port}: " in told
    assert f"127.0.0.1:{pair.second.port}: " in told
    assert "wrong-secret" not in told
