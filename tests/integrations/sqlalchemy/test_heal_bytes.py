"""A connection is cut at each byte of a request, after the server has done it or before: nothing is
stored twice, nothing that was acknowledged is lost, and what only reads is never an error.

``make test`` cuts at every 17th byte, ``make soak`` at each; UNBROKEN_EVERY_BYTE=5 changes both.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
import unbroken.sqlalchemy
from unbroken_drill import FaultProxy

EVERY = int(os.environ.get("UNBROKEN_EVERY_BYTE", "0"))
SYNC = ["pymysql", "mysqldb", "psycopg", "psycopg2"]
ASYNC = ["aiomysql", "asyncpg"]
PLAIN = {
    "pymysql": {"ssl_disabled": "true"},
    "mysqldb": {"ssl_mode": "DISABLED"},
    "aiomysql": {},
    "psycopg": {"sslmode": "disable"},
    "psycopg2": {"sslmode": "disable"},
    "asyncpg": {"ssl": "disable"},
}

#: What a request sends, by name; whether it stores something, which is the number in ``now``.
PLAYS = {
    "read": ("SELECT n FROM done", False),
    "lock": ("SELECT n FROM done FOR UPDATE", False),
    "insert": ("INSERT INTO done SELECT n FROM now", True),
    "function": ("SELECT take()", True),
    "view": ("SELECT n FROM taking", True),
    "trigger": ("INSERT INTO fired (n) VALUES (1)", True),
    "sequence": ("SELECT nextval('serial')", False),
    "with": (
        "WITH new AS (INSERT INTO done SELECT n FROM now RETURNING n) SELECT n FROM new",
        True,
    ),
}
POSTGRESQL_ONLY = {"sequence", "with"}

MYSQL = [
    "CREATE TABLE done (n INT) ENGINE=InnoDB",
    "CREATE TABLE now (n INT) ENGINE=InnoDB",
    "CREATE TABLE fired (n INT) ENGINE=InnoDB",
    "INSERT INTO now VALUES (0)",
    "CREATE FUNCTION take() RETURNS INT BEGIN INSERT INTO done SELECT n FROM now; RETURN 1; END",
    "CREATE VIEW taking AS SELECT take() AS n",
    "CREATE TRIGGER firing AFTER INSERT ON fired FOR EACH ROW INSERT INTO done SELECT n FROM now",
]
POSTGRESQL = [
    "CREATE TABLE done (n INT)",
    "CREATE TABLE now (n INT)",
    "CREATE TABLE fired (n INT)",
    "CREATE SEQUENCE serial",
    "INSERT INTO now VALUES (0)",
    "CREATE FUNCTION take() RETURNS int LANGUAGE sql"
    " AS 'INSERT INTO done SELECT n FROM now RETURNING 1'",
    "CREATE VIEW taking AS SELECT take() AS n",
    "CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN INSERT INTO done SELECT n FROM now; RETURN NEW; END'",
    "CREATE TRIGGER firing AFTER INSERT ON fired FOR EACH ROW EXECUTE FUNCTION fire()",
]
OLD = [
    "DROP VIEW IF EXISTS taking",
    "DROP TABLE IF EXISTS fired",
    "DROP FUNCTION IF EXISTS take",
    "DROP FUNCTION IF EXISTS fire",
    "DROP TABLE IF EXISTS done",
    "DROP TABLE IF EXISTS now",
]


@dataclass
class Told:
    """What each run's caller was told."""

    well: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Ground:
    """A server behind a proxy, an engine through it, and one beside it."""

    def __init__(self, driver: str, server: Any, name: str, stack: ExitStack) -> None:
        self.driver, self.server = driver, server
        self.is_mysql = server.backend in ("mysql", "mariadb")
        for sql in [*OLD, *([] if self.is_mysql else ["DROP SEQUENCE IF EXISTS serial"])]:
            server.admin(sql)
        self.bare = sa.create_engine(server.url("pymysql" if self.is_mysql else "psycopg"))
        self.beside = self.bare.execution_options(isolation_level="AUTOCOMMIT")
        stack.callback(self.bare.dispose)
        with self.beside.connect() as conn:
            for sql in MYSQL if self.is_mysql else POSTGRESQL:
                if "take()" in sql and name not in ("function", "view"):
                    continue  # while there is a view that may write, no read in autocommit heals
                (server.admin if self.is_mysql else conn.exec_driver_sql)(sql)
        stack.callback(lambda: [server.admin(sql) for sql in OLD])
        self.proxy = stack.enter_context(FaultProxy((server.host, server.port)))
        self.runner = stack.enter_context(asyncio.Runner()) if driver in ASYNC else None
        self.stack = stack

    def request(self, sql: str, level: str | None) -> Callable[[], Any]:
        """What sends *sql*, in a transaction or by itself."""
        url = self.proxy.url(self.server.url(self.driver, **PLAIN[self.driver]))
        options: dict[str, Any] = {"plugins": ["unbroken"], "pool_size": 1, "max_overflow": 0}
        if level is not None:
            options["isolation_level"] = level
        if self.runner is None:
            engine = sa.create_engine(url, **options)
            self.stack.callback(engine.dispose)
            self.engine: Any = engine

            def send() -> None:
                with engine.begin() as conn:
                    result = conn.exec_driver_sql(sql)
                    if result.returns_rows:
                        result.all()

            return send
        engine_ = create_async_engine(url, **options)
        self.engine, runner = engine_, self.runner
        self.stack.callback(lambda: runner.run(engine_.dispose()))

        async def asend() -> None:
            async with engine_.begin() as conn:
                result = await conn.exec_driver_sql(sql)
                if result.returns_rows:
                    result.all()

        return lambda: runner.run(asend())

    def number(self, n: int) -> None:
        """From now on, what is stored is *n*."""
        with self.beside.connect() as conn:
            conn.exec_driver_sql(f"UPDATE now SET n = {n}")

    def stored(self) -> Counter[int]:
        """How often each number is stored, once the sessions that were cut have ended."""
        self.server.kill_sessions()
        self.bare.dispose()
        with self.beside.connect() as conn:
            return Counter(n for (n,) in conn.exec_driver_sql("SELECT n FROM done"))

    def length(self, send: Callable[[], Any]) -> int:
        """How many bytes a request is, both ways together."""
        send()
        before = sum(c.to_server + c.to_client for c in self.proxy.connections)
        send()
        time.sleep(0.02)  # the last bytes may still be counted
        return sum(c.to_server + c.to_client for c in self.proxy.connections) - before


@pytest.fixture(params=SYNC + ASYNC)
def new_ground(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Ground]]:
    is_postgresql = request.param in ("psycopg", "psycopg2", "asyncpg")
    server = request.getfixturevalue("postgres" if is_postgresql else "mariadb")
    with ExitStack() as stack:
        yield lambda name: Ground(request.param, server, name, stack)


def sweep(ground: Ground, name: str, level: str | None, every: int) -> Told:
    """Cut one request after another, each *every* bytes later."""
    sql, _ = PLAYS[name]
    send, told = ground.request(sql, level), Told()
    for n in range(1, ground.length(send) + 1, every):
        ground.number(n)
        ground.proxy.cut_after(bytes=n, on="existing", how="rst" if n % 2 else "fin")
        try:
            send()
        except unbroken.CommitUnknownError:
            told.unknown.append(n)
        except sa.exc.DBAPIError as error:
            told.refused.append(n)
            told.errors.append(f"{n}: {error.orig} {getattr(error, '__notes__', '')}")
        else:
            told.well.append(n)
        ground.proxy.heal()
    return told


def hold(ground: Ground, name: str, level: str | None, every: int) -> None:
    """See the head of this file."""
    _, stores = PLAYS[name]
    told = sweep(ground, name, level, every)
    stored = ground.stored()
    del stored[0]
    assert {n: times for n, times in stored.items() if times > 1} == {}
    if stores:
        assert set(told.well) <= set(stored)
        assert level is not None or not set(told.refused) & set(stored)
    elif name != "sequence" and (name, level) != ("lock", None):
        # a number may be gone, and so may a lock before its COMMIT
        assert (told.unknown, told.errors) == ([], [])
    if level is None:
        assert not [error for error in told.errors if "COMMIT" not in error]
    assert unbroken.sqlalchemy.stats(ground.engine).healed > 0 or (stores and level is not None)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
@pytest.mark.parametrize("name", PLAYS)
def test_a_request_that_is_cut_somewhere_is_done_once_or_told(
    new_ground: Callable[[str], Ground], name: str, level: str | None
) -> None:
    ground = new_ground(name)
    if ground.is_mysql and name in POSTGRESQL_ONLY:
        pytest.skip("PostgreSQL's")
    if name == "sequence" and level is not None:
        pytest.skip("a sequence's number may be gone")
    hold(ground, name, level, EVERY or 17)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
@pytest.mark.parametrize("name", PLAYS)
def test_the_same_at_each_byte(
    new_ground: Callable[[str], Ground], name: str, level: str | None
) -> None:
    ground = new_ground(name)
    if (ground.is_mysql and name in POSTGRESQL_ONLY) or (name, level) == ("sequence", "AUTOCOMMIT"):
        pytest.skip("see above")
    hold(ground, name, level, EVERY or 1)
