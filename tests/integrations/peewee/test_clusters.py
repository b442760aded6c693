"""Databases of several hosts, whose passwords change and whose servers stop to take writes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import peewee
import pytest

import unbroken
import unbroken.peewee
from unbroken.pool import servers
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

SOON = 2.0
POSTGRESQL = ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"]
MYSQL = ["mysql+pymysql", "mysql+mysqlconnector", "mariadb+mariadbconnector", "mysql+aiomysql"]


class Place:
    """Two servers that let the same user in, and databases that lead there."""

    def __init__(self, scheme: str, first: Server, second: Server, stack: ExitStack) -> None:
        self.scheme, self.first, self.second, self.stack = scheme, first, second, stack
        is_postgresql = first.backend == "postgresql"
        user = first.user if is_postgresql else f"'{first.user}'@'%'"
        how = "PASSWORD" if is_postgresql else "IDENTIFIED BY"
        second.admin(f"ALTER USER {user} {how} '{first.password}'")
        self.port = "SELECT inet_server_port()" if is_postgresql else "SELECT @@port"
        self.runner = stack.enter_context(asyncio.Runner())

    def database(self, where: str, *, secret: bool = True, **given: Any) -> Any:
        """A database at *where*, in a URL."""
        password = f":{quote(self.first.password)}" if secret else ""
        url = f"{self.scheme}://{self.first.user}{password}@{where}"
        db = unbroken.peewee.connect(url, **given)
        self.stack.callback(self._close, db)
        return db

    def _close(self, db: Any) -> None:
        if db.is_async:
            self.runner.run(db.close_pool())
        else:
            db.close_all()

    def ask(self, db: Any, sql: str) -> Any:
        """The first value of *sql*, in a transaction."""
        if db.is_async:
            return self.runner.run(self._ask(db, sql))
        with db.atomic():
            row = db.execute_sql(sql).fetchone()
        return row and row[0]

    async def _ask(self, db: Any, sql: str) -> Any:
        async with db.atomic():
            row = (await db.aexecute_sql(sql)).fetchone()
        return row and row[0]

    def hosts(self, db: Any) -> Any:
        async def ask() -> Any:
            return db.stats().hosts

        return self.runner.run(ask())

    @property
    def spellings(self) -> list[str]:
        a, b, name = self.first, self.second, self.first.database
        return [
            f"{a.host}:{a.port},{b.host}:{b.port}/{name}?target=primary",
            f"/{name}?host={a.host}:{a.port}&host={b.host}:{b.port}&target=primary",
            f"/{name}?host={a.host},{b.host}&port={a.port},{b.port}&target_session_attrs=primary",
        ]

    def change(self, password: str) -> None:
        """The first server takes *password* from now on, and no other."""
        server = self.first
        if isinstance(server, PostgreSQL):
            server.admin(f"ALTER USER {server.user} PASSWORD '{password}'")
            return
        for (host,) in server.admin(f"SELECT host FROM mysql.user WHERE user = '{server.user}'"):
            server.admin(f"ALTER USER '{server.user}'@'{host}' IDENTIFIED BY '{password}'")


@pytest.fixture(scope="module")
def pairs() -> Iterator[Callable[[str], tuple[Server, Server]]]:
    made: dict[type, tuple[Server, Server]] = {}
    with ExitStack() as stack:

        def get(scheme: str) -> tuple[Server, Server]:
            kind = PostgreSQL if scheme in POSTGRESQL else MariaDB
            if kind not in made:
                made[kind] = stack.enter_context(kind()), stack.enter_context(kind())
            return made[kind]

        yield get


@pytest.fixture(params=[*POSTGRESQL, *MYSQL])
def place(request: pytest.FixtureRequest, pairs: Any) -> Iterator[Place]:
    servers._records.clear()
    with ExitStack() as stack:
        found = Place(request.param, *pairs(request.param), stack)
        stack.callback(found.first.thaw)
        yield found


def test_a_frozen_first_host_hides_nothing_in_each_spelling(place: Place) -> None:
    place.first.freeze()
    for where in place.spellings:
        servers._records.clear()
        db = place.database(where)
        began = time.monotonic()
        assert int(place.ask(db, place.port)) == place.second.port
        assert time.monotonic() - began < SOON
        assert set(place.hosts(db)) == {f"127.0.0.1:{place.second.port}"}


def test_the_hosts_may_be_arguments(place: Place) -> None:
    a, b = place.first, place.second
    ports: tuple[Any, ...] = (f"{a.port},{b.port}", [a.port, b.port])
    for given in [{"host": f"{a.host},{b.host}", "port": port} for port in ports]:
        db = place.database(f"ignored/{a.database}", **given)
        assert int(place.ask(db, place.port)) == a.port
    db = place.database(f"ignored/{a.database}", host=f"{a.host}:{a.port}")
    assert int(place.ask(db, place.port)) == a.port


def test_a_password_that_changes_fails_nobody(place: Place) -> None:
    server, given = place.first, [place.first.password]
    where = f"{server.host}:{server.port}/{server.database}"
    db = place.database(where, secret=False, password=lambda: given[-1])
    timer = threading.Timer(1.0, lambda: given.append("another-secret"))
    try:
        assert place.ask(db, "SELECT 1") == 1
        place.change("another-secret")
        server.kill_sessions()
        timer.start()
        assert place.ask(db, "SELECT 1") == 1
        timer.join()
        server.kill_sessions()
        assert place.ask(db, "SELECT 1") == 1
    finally:
        place.change(server.password)


def test_a_password_that_stands_in_the_url_is_refused_at_once(place: Place) -> None:
    server = place.first
    where = f"{server.host}:{server.port}/{server.database}"
    db = place.database(where, secret=False, password="wrong-one")
    began = time.monotonic()
    with pytest.raises(peewee.OperationalError) as caught:
        place.ask(db, "SELECT 1")
    assert time.monotonic() - began < 1.5
    assert "wrong-one" not in str(caught.value)


def test_a_list_that_cannot_be_read_is_one_line_at_once(place: Place) -> None:
    for where in ("a,a/shop", "a:1,b:x/shop", "a,/shop"):
        with pytest.raises(unbroken.ConfigurationError) as caught:
            place.ask(place.database(where), "SELECT 1")
        assert "\n" not in str(caught.value)
        assert place.first.password not in str(caught.value)


def test_a_first_write_waits_for_a_server_that_takes_none(place: Place) -> None:
    server = place.first
    off: dict[str, Any] = {"default_transaction_read_only": "on"}
    on: dict[str, Any] = {"default_transaction_read_only": "off"}
    if server.backend != "postgresql":
        off, on = {"read_only": 1}, {"read_only": 0}
    db = place.database(f"{server.host}:{server.port}/{server.database}")
    server.admin("DROP TABLE IF EXISTS kept")
    place.ask(db, "SELECT 1")
    server.admin("CREATE TABLE kept (n INT PRIMARY KEY)")
    if isinstance(server, PostgreSQL):
        server.admin(f"ALTER TABLE kept OWNER TO {server.user}")
    server.set(**off)
    timer = threading.Timer(1.5, lambda: server.set(**on))
    timer.start()
    try:
        store(place, db, "INSERT INTO kept VALUES (1)")
        store(place, db, "INSERT INTO kept VALUES (2)")
    finally:
        timer.join()
    assert sorted(int(n) for (n,) in server.admin("SELECT n FROM kept")) == [1, 2]
    server.admin("DROP TABLE kept")


def store(place: Place, db: Any, sql: str) -> None:
    async def on_loop() -> None:
        async with db.atomic():
            await db.aexecute_sql(sql)

    if db.is_async:
        place.runner.run(on_loop())
    else:
        with db.atomic():
            db.execute_sql(sql)
