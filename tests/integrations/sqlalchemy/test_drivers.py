"""The other DBAPIs, as far as unbroken has a driver file for them; and one that it has none for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.testing.engines import DBAPIProxyConnection, DBAPIProxyCursor

from unbroken import replayable
from unbroken.integrations.sqlalchemy import plan
from unbroken.sqlalchemy import stats

OTHERS = ["psycopg2", "pg8000", "mysqlconnector", "mariadbconnector"]


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest, faces: Any) -> Any:
    server = request.getfixturevalue(
        "postgres" if request.param in ("psycopg2", "pg8000") else "mariadb"
    )
    face = faces(request.param, server)
    if request.param == "mariadbconnector":
        face.url = lambda **query: server.url("mariadbconnector", **query).replace(
            "mysql+", "mariadb+"
        )
    return face


def test_killed_connections_are_replaced_and_units_run_again(other: Any) -> None:
    table = other.table("other_t")
    engine = other.engine(pool_size=3)
    assert not engine.pool._plan.is_blind
    for _ in range(3):
        before = other.warm(engine, 3)
        other.server.kill_sessions()
        assert not {other.ask(engine) for _ in range(6)} & set(before)
    runs: list[int] = []

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
            runs.append(1)
            if len(runs) == 1:
                other.server._kill_session(conn.scalar(other.session_id))
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (2)"))

    with contextlib.suppress(sa.exc.DBAPIError):
        # a driver that does not show its statements is not run again
        work()
    assert other.rows(table) in ([], [1, 2])
    assert stats(engine).used == 0


def test_asyncmy_is_looked_after_too(mariadb: Any) -> None:
    async def work() -> None:
        engine = create_async_engine(mariadb.url("asyncmy"), plugins=["unbroken"])
        ask = sa.text("SELECT connection_id()")
        async with engine.connect() as conn:
            first = await conn.scalar(ask)
        await asyncio.to_thread(mariadb.kill_sessions)
        async with engine.connect() as conn:
            assert await conn.scalar(ask) != first
        await engine.dispose()

    asyncio.run(work())


def test_a_dbapi_without_a_driver_file_is_pooled_as_sqlalchemy_does_it(
    face: Any, monkeypatch: Any, caplog: Any
) -> None:
    def no_driver(*_args: Any, **_kwargs: Any) -> Any:
        raise plan.ConfigurationError("no driver of this name")

    monkeypatch.setattr(plan, "open_driver", no_driver)
    engine = face.engine(pool_size=2)
    face.engine()
    assert caplog.text.count("unbroken does not know the driver") == 1
    assert len(set(face.warm(engine, 2))) == 2
    face.server.kill_sessions()
    seen = 0
    for _ in range(6):
        with contextlib.suppress(sa.exc.DBAPIError):
            face.ask(engine)
            seen += 1
    assert seen >= 4
    assert stats(engine).used == 0


def test_connections_that_a_tracer_wraps_are_looked_through_or_left_alone(
    face: Any, until: Any
) -> None:
    class Proxy:
        def __init__(self, inside: Any) -> None:
            self.__wrapped__ = inside

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__wrapped__, name)

    class Opaque(Proxy):
        def __init__(self, inside: Any) -> None:
            self._inside = inside

        def __getattr__(self, name: str) -> Any:
            if name == "__wrapped__":
                raise AttributeError(name)
            return getattr(self._inside, name)

    for kind, seen in ((Proxy, True), (Opaque, False)):
        engine = face.engine()
        original = engine.dialect.connect
        engine.dialect.connect = lambda *args, original=original, kind=kind, **kwargs: kind(
            original(*args, **kwargs)
        )  # type: ignore[method-assign]
        with contextlib.suppress(TypeError, AttributeError):
            # psycopg's own set-up wants the real thing
            face.ask(engine)
            assert face.ask(engine)
            face.server.kill_sessions()
            if seen:
                until(lambda engine=engine: stats(engine).size == 0)
                assert face.ask(engine)


def test_a_wrapped_connection_that_nobody_can_look_below_is_rolled_back_by_its_dialect(
    face: Any, caplog: Any
) -> None:
    engine = face.engine(_initialize=False)
    plain = engine.dialect.loaded_dbapi.connect

    def connect(*args: Any, **kwargs: Any) -> Any:
        return DBAPIProxyConnection(engine, plain(*args, **kwargs), DBAPIProxyCursor)

    with mock.patch.object(engine.dialect.loaded_dbapi, "connect", connect):
        for _ in range(3):
            with engine.connect() as conn:
                assert conn.exec_driver_sql("SELECT 1").scalar() == 1
    assert stats(engine).used == 0
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []
