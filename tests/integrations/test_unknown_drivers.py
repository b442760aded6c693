"""A driver whose insides are not as unbroken knows them, as on the day of a new version: every
application goes on as before, and nobody gets a connection after its holder.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from itertools import count
from typing import Any

import peewee
import pytest
import sqlalchemy as sa
from django.db import IntegrityError, transaction
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
import unbroken.peewee
from unbroken.drivers import _seams

from .test_django import BOTH, make  # noqa: F401 - a fixture

SYNC = ["pymysql", "mysqldb", "mysqlconnector", "psycopg", "psycopg2", "pg8000"]
ASYNC = ["aiomysql", "asyncmy", "psycopg", "asyncpg"]
PEEWEE = ["pymysql", "mysqlconnector", "psycopg", "psycopg2"]
_numbers = count(1)


@pytest.fixture(autouse=True)
def _every_driver_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_seams, "flaw", lambda _seams: "something in it has changed")


def server_of(driver: str, request: pytest.FixtureRequest) -> Any:
    kind = "postgres" if driver in ("psycopg", "psycopg2", "pg8000", "asyncpg") else "mariadb"
    return request.getfixturevalue(kind)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"unknown{next(_numbers)}"
    yield name
    for kind in ("postgres", "mariadb"):
        if kind in request.fixturenames or kind in request.node.funcargs:
            request.getfixturevalue(kind).admin(f"DROP TABLE IF EXISTS {name}")


def ask(conn: Any, sql: str) -> Any:
    cursor = conn.cursor()
    cursor.execute(sql)
    rows = cursor.fetchall()
    cursor.close()
    return rows[0][0]


@pytest.mark.parametrize("driver", SYNC)
def test_a_pool_serves_everybody_on_a_connection_of_their_own(
    request: pytest.FixtureRequest, driver: str
) -> None:
    with unbroken.Pool(server_of(driver, request).url(driver), max_size=1) as pool:
        for number in range(3):
            with pool.connection() as conn:
                conn.rollback()
                assert ask(conn, f"SELECT {number}") == number
        assert pool.stats().opened == 3


class Limit(Exception):  # noqa: N818 - a time limit
    """Raised by a signal, wherever the code is."""


@pytest.mark.parametrize("driver", SYNC)
def test_nobody_gets_the_answer_to_a_statement_that_a_time_limit_broke_off(
    request: pytest.FixtureRequest, driver: str
) -> None:
    def strike(*_: object) -> None:
        raise Limit

    server = server_of(driver, request)
    sleep = "pg_sleep(0.4)" if server.backend == "postgresql" else "SLEEP(0.4)"
    before = signal.signal(signal.SIGALRM, strike)
    try:
        with unbroken.Pool(server.url(driver), max_size=1) as pool:
            try:
                with pool.connection() as conn:
                    signal.setitimer(signal.ITIMER_REAL, 0.1)
                    try:
                        ask(conn, f"SELECT 41 FROM (SELECT {sleep}) AS slept")
                    except Limit:
                        pass  # and so the block ends well
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
            except unbroken.UnbrokenError:
                pass  # "the connection was lost before COMMIT": true, too
            for number in range(3):
                with pool.connection() as conn:
                    assert ask(conn, f"SELECT {number}") == number
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("driver", SYNC)
def test_an_engine_goes_on_after_rollbacks_savepoints_and_errors(
    request: pytest.FixtureRequest, driver: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = sa.create_engine(server_of(driver, request).url(driver), plugins=["unbroken"])
    insert, total = (
        sa.text(f"INSERT INTO {table} VALUES (:n)"),
        sa.text(f"SELECT count(*) FROM {table}"),
    )
    with engine.connect() as conn:  # the first one: SQLAlchemy asks it this and that
        assert conn.scalar(sa.text("SELECT 1")) == 1
    with engine.begin() as conn:
        conn.execute(sa.text(f"CREATE TABLE {table} (n INT PRIMARY KEY)"))
        conn.execute(insert, {"n": 1})
    with engine.connect() as conn:
        with pytest.raises(sa.exc.IntegrityError):
            conn.execute(insert, {"n": 1})
        conn.rollback()
        assert conn.scalar(total) == 1
        conn.execute(insert, {"n": 2})
        with pytest.raises(sa.exc.IntegrityError), conn.begin_nested():
            conn.execute(insert, {"n": 1})
        conn.commit()
        assert conn.scalar(total) == 2
        conn.rollback()
        assert conn.scalar(total) == 2
    engine.dispose()
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


@pytest.mark.parametrize("driver", ASYNC)
def test_an_asyncio_engine_goes_on_after_rollbacks_savepoints_and_errors(
    request: pytest.FixtureRequest, driver: str, table: str
) -> None:
    url = server_of(driver, request).url(driver)
    insert, total = (
        sa.text(f"INSERT INTO {table} VALUES (:n)"),
        sa.text(f"SELECT count(*) FROM {table}"),
    )

    async def work() -> None:
        engine = create_async_engine(url, plugins=["unbroken"])
        async with engine.begin() as conn:
            await conn.execute(sa.text(f"CREATE TABLE {table} (n INT PRIMARY KEY)"))
            await conn.execute(insert, {"n": 1})
        async with engine.connect() as conn:
            with pytest.raises(sa.exc.IntegrityError):
                await conn.execute(insert, {"n": 1})
            await conn.rollback()
            await conn.execute(insert, {"n": 2})
            with pytest.raises(sa.exc.IntegrityError):
                async with conn.begin_nested():
                    await conn.execute(insert, {"n": 1})
            await conn.commit()
            assert await conn.scalar(total) == 2
            await conn.rollback()
            assert await conn.scalar(total) == 2
        await engine.dispose()

    asyncio.run(work())


@pytest.mark.parametrize("driver", PEEWEE)
def test_peewee_goes_on_after_rollbacks_savepoints_and_errors(
    request: pytest.FixtureRequest, driver: str, table: str
) -> None:
    db = unbroken.peewee.connect(server_of(driver, request).url(driver))
    model: Any = type(
        "Row",
        (peewee.Model,),
        {
            "n": peewee.IntegerField(primary_key=True),
            "Meta": type("Meta", (), {"database": db, "table_name": table}),
        },
    )
    with db.connection_context():
        db.create_tables([model])
        model.insert(n=1).execute()
        with pytest.raises(peewee.IntegrityError):
            model.insert(n=1).execute()
        with db.atomic():
            model.insert(n=2).execute()
            with pytest.raises(peewee.IntegrityError), db.atomic():
                model.insert(n=1).execute()
        with pytest.raises(ZeroDivisionError), db.atomic():
            model.insert(n=3).execute()
            raise ZeroDivisionError
        assert model.select().count() == 2
    with db.connection_context():
        assert model.select().count() == 2
    db.close_all()


@pytest.mark.parametrize("kind", BOTH)
def test_django_goes_on_after_rollbacks_savepoints_and_errors(make: Any, kind: str) -> None:  # noqa: F811
    site = make(kind)

    def insert(n: int) -> None:
        site.run(f"INSERT INTO unknown VALUES ({n})")

    site.run("DROP TABLE IF EXISTS unknown")
    site.run("CREATE TABLE unknown (n INT PRIMARY KEY)")
    insert(1)
    with pytest.raises(IntegrityError), transaction.atomic(using=site.alias):
        insert(1)
    with transaction.atomic(using=site.alias):
        insert(2)
        with pytest.raises(IntegrityError), transaction.atomic(using=site.alias):
            insert(1)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=site.alias):
        insert(3)
        raise ZeroDivisionError
    site.connection.close()
    assert site.ask("SELECT count(*) FROM unknown") == 2
