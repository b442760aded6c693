"""Engines of several hosts, whose passwords change and whose servers stop to take writes."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
import unbroken.sqlalchemy
from unbroken.pool import servers
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from ...callers import at_work

POSTGRESQL = ["psycopg", "psycopg2", "pg8000", "asyncpg"]
MYSQL = ["pymysql", "mysqldb", "mysqlconnector", "mariadbconnector", "aiomysql", "asyncmy"]
ASYNC = {"asyncpg", "aiomysql", "asyncmy"}
#: Seconds within which the second host serves where the first one is frozen: 0.2 and a connect, on
#: a busy machine; connect_timeout is 5.
SOON = 2.0
WINDOW = 2.0
#: Callers at a time, and connections at most.
CALLERS, SIZE = 6, 4


class Engine:
    """An engine, blocking or on an event loop, by the same moves."""

    def __init__(self, url: Any, *, is_async: bool, **given: Any) -> None:
        self.is_async = is_async
        self.runner = asyncio.Runner() if is_async else None
        make = create_async_engine if is_async else sa.create_engine
        self.engine: Any = make(url, plugins=["unbroken"], **given)

    def ask(self, sql: str) -> Any:
        """The first value of *sql*."""
        if self.runner is None:
            with self.engine.begin() as conn:
                return conn.exec_driver_sql(sql).scalar()
        return self.runner.run(self._ask(sql))

    async def _ask(self, sql: str) -> Any:
        async with self.engine.begin() as conn:
            return (await conn.exec_driver_sql(sql)).scalar()

    def stats(self) -> Any:
        if self.runner is None:
            return unbroken.sqlalchemy.stats(self.engine)

        async def ask() -> Any:
            return unbroken.sqlalchemy.stats(self.engine)

        return self.runner.run(ask())

    def close(self) -> None:
        if self.runner is None:
            self.engine.dispose()
        else:
            self.runner.run(self.engine.dispose())
            self.runner.close()


class Pair:
    """Two servers that let the same user in."""

    def __init__(self, first: Server, second: Server) -> None:
        self.first, self.second = first, second
        is_postgresql = first.backend == "postgresql"
        self.port = "SELECT inet_server_port()" if is_postgresql else "SELECT @@port"
        user = first.user if is_postgresql else f"'{first.user}'@'%'"
        how = "PASSWORD" if is_postgresql else "IDENTIFIED BY"
        second.admin(f"ALTER USER {user} {how} '{first.password}'")

    def url(self, name: str, query: str, authority: str = "", password: str | None = None) -> str:
        a = self.first
        secret = quote(a.password if password is None else password)
        return f"{a.scheme}+{name}://{a.user}:{secret}@{authority}/{a.database}?{query}"

    @property
    def repeated(self) -> str:
        return "&".join(f"host={each.host}:{each.port}" for each in (self.first, self.second))

    @property
    def listed(self) -> str:
        both = (self.first, self.second)
        hosts, ports = ",".join(e.host for e in both), ",".join(str(e.port) for e in both)
        return f"host={hosts}&port={ports}"

    def well(self) -> None:
        for each in (self.first, self.second):
            if each.is_running:
                each.thaw()
            else:
                each.start()


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
def opened(pairs: Callable[[str], Pair]) -> Iterator[Callable[..., tuple[Pair, Engine]]]:
    """Makes an engine of both servers, by the name of its driver."""
    with ExitStack() as stack:

        def make(name: str, query: str | None = None, **given: Any) -> tuple[Pair, Engine]:
            pair = pairs(name)
            stack.callback(pair.well)
            servers._records.clear()
            url = pair.url(name, pair.repeated if query is None else query)
            engine = Engine(url, is_async=name in ASYNC, **given)
            stack.callback(engine.close)
            return pair, engine

        yield make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", [*POSTGRESQL, *MYSQL])


@contextmanager
def took_less_than(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# ---- hosts ---------------------------------------------------------------------------------------


def test_a_frozen_first_host_does_not_hide_the_second(opened: Any, name: str) -> None:
    pair, engine = opened(name, unbroken={"target": "primary"})
    pair.first.freeze()
    with took_less_than(SOON):
        assert int(engine.ask(pair.port)) == pair.second.port
    assert engine.stats().hosts == {f"127.0.0.1:{pair.second.port}": 1}


def test_a_stopped_host_is_left_and_all_spellings_are_read(
    opened: Any, pairs: Any, name: str
) -> None:
    pair, engine = opened(name, f"{pairs(name).listed}&target_session_attrs=read-write")
    assert int(engine.ask(pair.port)) == pair.first.port
    pair.first.kill()
    with took_less_than(SOON):
        assert int(engine.ask(pair.port)) == pair.second.port
    pair.first.start()
    assert int(engine.ask(pair.port)) == pair.second.port


def test_where_all_hosts_fail_each_is_named_with_its_reason(opened: Any, name: str) -> None:
    pair, engine = opened(name, unbroken={"outage_wait": 0.5})
    pair.first.kill()
    pair.second.kill()
    with pytest.raises(sa.exc.OperationalError) as caught:
        engine.ask(pair.port)
    told = str(caught.value.orig)
    for each in (pair.first, pair.second):
        assert f"127.0.0.1:{each.port}: " in told
    assert pair.first.password not in told


def test_a_list_of_mysql_hosts_before_the_path_is_no_name(pairs: Any) -> None:
    pair = pairs("pymysql")
    for url in (
        pair.url("pymysql", f"port={pair.first.port},{pair.second.port}", "127.0.0.1,localhost"),
        pair.url("pymysql", "", f"127.0.0.1,localhost:{pair.first.port}"),
    ):
        engine = Engine(url, is_async=False)
        try:
            assert int(engine.ask(pair.port)) == pair.first.port
            assert engine.engine.url == sa.make_url(url)
        finally:
            engine.close()


@pytest.mark.parametrize(
    "query",
    ["host=a:1&host=a:1", "host=a,b&port=1,2,3", "host=a:1&host=b:x", "host=a,,b"],
)
def test_a_list_that_cannot_be_read_is_one_line_at_once(query: str) -> None:
    with pytest.raises(unbroken.ConfigurationError) as caught:
        sa.create_engine(f"postgresql+psycopg://app:secret@/shop?{query}", plugins=["unbroken"])
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_with_a_creator_the_hosts_are_the_applications_affair(pairs: Any) -> None:
    import psycopg

    pair = pairs("psycopg")
    a, b = pair.first, pair.second
    given: dict[str, Any] = {
        "host": b.host, "port": b.port, "user": a.user, "password": a.password,
        "dbname": a.database,
    }  # fmt: skip
    url = pair.url("psycopg", pair.repeated)
    engine = Engine(url, is_async=False, creator=lambda: psycopg.connect(**given))
    try:
        assert int(engine.ask(pair.port)) == b.port
    finally:
        engine.close()


def test_a_do_connect_event_sees_the_host_of_the_attempt(opened: Any) -> None:
    pair, engine = opened("psycopg")
    seen: list[tuple[Any, Any]] = []

    @sa.event.listens_for(engine.engine, "do_connect")
    def note(_dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        seen.append((params["host"], params["port"]))

    pair.first.kill()
    assert int(engine.ask(pair.port)) == pair.second.port
    assert [port for _, port in seen] == [pair.first.port, pair.second.port]


# ---- passwords -----------------------------------------------------------------------------------


def change(server: Server, password: str) -> None:
    """The server takes *password* from now on, and no other."""
    if isinstance(server, PostgreSQL):
        server.admin(f"ALTER USER {server.user} PASSWORD '{password}'")
    else:
        for (host,) in server.admin(f"SELECT host FROM mysql.user WHERE user = '{server.user}'"):
            server.admin(f"ALTER USER '{server.user}'@'{host}' IDENTIFIED BY '{password}'")


@pytest.fixture
def own(pairs: Any, name: str) -> Iterator[Server]:
    server = pairs(name).first
    yield server
    change(server, server.password)


def plain_url(server: Server, name: str) -> str:
    return server.url(name).replace(f":{server.password}@", "@")


@pytest.mark.parametrize("order", ["server first", "application first"])
def test_a_password_that_changes_fails_nobody(own: Server, name: str, order: str) -> None:
    new, kept = secrets.token_urlsafe(12), [own.password]

    async def read_later() -> str:
        return kept[-1]

    read = read_later if name in ASYNC else lambda: kept[-1]
    engine = Engine(plain_url(own, name), is_async=name in ASYNC, connect_args={"password": read})
    halves = [lambda: change(own, new), lambda: kept.append(new)]
    if order == "application first":
        halves.reverse()
    timer = threading.Timer(1.0, halves[1])
    try:
        assert engine.ask("SELECT 1") == 1
        halves[0]()
        own.kill_sessions()
        timer.start()
        for _ in range(3):
            assert engine.ask("SELECT 1") == 1
            own.kill_sessions()
    finally:
        timer.join()
        engine.close()


def test_a_password_of_a_do_connect_event_or_a_creator_is_as_good(pairs: Any) -> None:
    import psycopg

    server, kept = pairs("psycopg").first, ["an-old-one"]
    url = plain_url(server, "psycopg")

    def fill(_dialect: Any, _record: Any, _args: Any, params: dict[str, Any]) -> None:
        params["password"] = kept[-1]

    def create() -> Any:
        return psycopg.connect(
            host=server.host, port=server.port, user=server.user, password=kept[-1],
            dbname=server.database,
        )  # fmt: skip

    for given in ({}, {"creator": create}):
        del kept[1:]
        engine = Engine(url, is_async=False, **given)
        if not given:
            sa.event.listen(engine.engine, "do_connect", fill)
        timer = threading.Timer(0.5, lambda: kept.append(server.password))
        timer.start()
        try:
            assert engine.ask("SELECT 1") == 1
        finally:
            timer.join()
            engine.close()


def test_a_password_that_stands_in_the_url_is_refused_at_once(pairs: Any) -> None:
    pair = pairs("psycopg")
    engine = Engine(pair.url("psycopg", pair.repeated, password="wrong-one"), is_async=False)
    try:
        with took_less_than(1.5), pytest.raises(sa.exc.OperationalError) as caught:
            engine.ask("SELECT 1")
        assert "wrong-one" not in str(caught.value)
    finally:
        engine.close()


def test_a_coroutine_function_is_for_async_engines_only() -> None:
    async def read() -> str:
        return "secret"

    with pytest.raises(unbroken.ConfigurationError):
        sa.create_engine(
            "postgresql+psycopg://app@localhost/shop",
            plugins=["unbroken"],
            connect_args={"password": read},
        )


# ---- a server that stops to take writes ----------------------------------------------------------


def options(server: Server) -> tuple[dict[str, Any], dict[str, Any]]:
    """What makes *server* take no writes, and the opposite."""
    if isinstance(server, PostgreSQL):
        return {"default_transaction_read_only": "on"}, {"default_transaction_read_only": "off"}
    return {"read_only": 1}, {"read_only": 0}


def write(engine: Engine, number: int, *, as_unit: bool) -> Any:
    """What stores *number* in a transaction of its own."""
    sql = f"INSERT INTO kept VALUES ({number})"

    def work() -> None:
        with engine.engine.begin() as conn:
            conn.exec_driver_sql(sql)

    async def work_on_loop() -> None:
        async with engine.engine.begin() as conn:
            await conn.exec_driver_sql(sql)

    chosen: Any = work_on_loop if engine.is_async else work
    return unbroken.replayable(chosen) if as_unit else chosen


class Load:
    """What callers see while something happens to a server."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.numbers = engine, iter(range(100_000))
        self.over = threading.Event()
        self.stored: list[int] = []
        self.errors: list[str] = []
        self.at = 0.0

    @contextmanager
    def noted(self) -> Iterator[Any]:
        """Gives what is to be called."""
        number = next(self.numbers)
        try:
            yield write(self.engine, number, as_unit=number % 2 == 0)
        except Exception as error:
            self.errors.append(f"{error!r} {getattr(error, '__notes__', [])} {number}")
        else:
            self.stored.append(number)
            self.at = time.monotonic()

    def one(self) -> None:
        while not self.over.is_set():
            with self.noted() as work:
                work()
            time.sleep(0.005)

    async def one_on_loop(self) -> None:
        while not self.over.is_set():
            with self.noted() as work:
                await work()
            await asyncio.sleep(0.005)

    async def all_on_loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self.one_on_loop())


@contextmanager
def load(engine: Engine) -> Iterator[Load]:
    """Several callers write, half of them in units of work."""
    seen = Load(engine)
    runner = engine.runner
    callers = [seen.one] * CALLERS if runner is None else [lambda: runner.run(seen.all_on_loop())]
    with at_work(callers, seen.over):
        yield seen


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_server_that_takes_no_writes_for_a_while_fails_nobody(pairs: Any, name: str) -> None:
    server = pairs(name).first
    server.admin("DROP TABLE IF EXISTS kept")
    server.admin("CREATE TABLE kept (n INT PRIMARY KEY)")
    if isinstance(server, PostgreSQL):
        server.admin(f"ALTER TABLE kept OWNER TO {server.user}")
    off, on = options(server)
    servers._records.clear()
    engine = Engine(server.url(name), is_async=name in ASYNC, pool_size=SIZE, max_overflow=0)
    try:
        with load(engine) as seen:
            wait_for(lambda: len(seen.stored) > 40)
            server.set(**off)
            time.sleep(WINDOW)
            server.set(**on)
            at = time.monotonic()
            wait_for(lambda: seen.at > at)
            first = seen.at - at
            wait_for(lambda: seen.at > at + 0.5)
        # MariaDB refuses the COMMIT of what was written before: only a whole unit can be run again
        assert [each for each in seen.errors if "INSERT was sent before it" not in each] == []
        assert first < 1.0
        assert sorted(int(n) for (n,) in server.admin("SELECT n FROM kept")) == sorted(seen.stored)
        assert engine.stats().opened <= 5 * SIZE
    finally:
        server.set(**on)
        engine.close()
        server.admin("DROP TABLE IF EXISTS kept")
