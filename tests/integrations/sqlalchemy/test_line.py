"""An engine's callers stand in the same line as a ``Pool``'s: returned connections, full servers,
goodbyes, places.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import random
import time
import tracemalloc
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from unbroken import replayable
from unbroken.sqlalchemy import stats
from unbroken_drill.servers import PostgreSQL

#: What MariaDB sends to a session that is killed.
GOODBYE = b"\x16\x00\x00\x00\xff\x86\x07#70100Query killed"


class Strike(BaseException):
    """What a signal handler or a worker's time limit raises."""


@pytest.fixture
def small_postgres(new_postgres: Any) -> PostgreSQL:
    """A server with room for three sessions."""
    server: PostgreSQL = new_postgres({"max_connections": 6, "superuser_reserved_connections": 3})
    return server


def test_a_returned_connection_serves_a_caller_while_the_server_is_full(
    small_postgres: Any, faces: Any, in_threads: Any
) -> None:
    engine = faces("psycopg", small_postgres).engine(pool_size=10)

    def requests(_number: int) -> int:
        for _ in range(5):
            with engine.connect() as conn:
                conn.execute(sa.text("SELECT pg_sleep(0.01)"))
        return 5

    assert in_threads(20, requests) == [5] * 20
    assert stats(engine).used == 0


def test_the_same_on_an_event_loop(small_postgres: Any) -> None:
    async def work() -> None:
        engine = create_async_engine(
            small_postgres.url("asyncpg"), plugins=["unbroken"], pool_size=10
        )

        async def requests() -> None:
            for _ in range(5):
                async with engine.connect() as conn:
                    await conn.execute(sa.text("SELECT pg_sleep(0.01)"))

        await asyncio.gather(*(requests() for _ in range(20)))
        assert stats(engine).used == 0
        await engine.dispose()

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("lifo", [False, True])
@pytest.mark.parametrize("name", ["asyncpg", "psycopg", "aiomysql"])
def test_no_place_is_lost_when_idle_connections_end_on_an_async_engine(
    name: str, lifo: bool, request: Any
) -> None:
    server = request.getfixturevalue("mariadb" if name == "aiomysql" else "postgres")

    async def work() -> None:
        engine = create_async_engine(
            server.url(name), plugins=["unbroken"], pool_size=3, max_overflow=0, pool_use_lifo=lifo
        )

        async def ask() -> None:
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text("SELECT 1")) == 1

        for _ in range(4):
            await asyncio.gather(*(ask() for _ in range(6)))
            await asyncio.to_thread(server.kill_sessions)
        await asyncio.gather(*(ask() for _ in range(6)))
        assert stats(engine).size <= 3
        await engine.dispose()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_goodbye_that_came_before_the_hang_up_keeps_a_connection_from_callers(
    mariadb: Any,
) -> None:
    ask = sa.text("SELECT connection_id()")

    async def work() -> None:
        engine = create_async_engine(mariadb.url("aiomysql"), plugins=["unbroken"])
        async with engine.connect() as conn:
            first = await conn.scalar(ask)
            raw: Any = (await conn.get_raw_connection()).driver_connection
        raw._reader.feed_data(GOODBYE)
        async with engine.connect() as conn:
            assert await conn.scalar(ask) != first
        await engine.dispose()

    asyncio.run(asyncio.wait_for(work(), 60))


def _strike_once(body: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(body, name)

    def struck(*args: Any) -> Any:
        monkeypatch.setattr(body, name, original)
        raise Strike

    monkeypatch.setattr(body, name, struck)


@pytest.mark.parametrize("where", ["hung_up", "is_quiet"])
def test_a_connection_that_an_exception_struck_out_of_the_books_is_replaced_within_a_second(
    face: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = face.engine(pool_size=1, max_overflow=0, pool_timeout=5)
    face.ask(engine)
    for _ in range(3):
        _strike_once(engine.pool._body, where, monkeypatch)
        with contextlib.suppress(Strike):
            face.ask(engine)
        began = time.monotonic()
        face.ask(engine)
        assert time.monotonic() - began < 2.5  # a second, and a loaded machine
    assert (stats(engine).size, stats(engine).used) == (1, 0)


def test_units_of_work_on_psycopg2_are_run_again(postgres: Any, faces: Any) -> None:
    face = faces("psycopg2", postgres)
    table = face.table("line_t")
    engine = face.engine()
    runs: list[int] = []

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
            runs.append(1)
            if len(runs) == 1:
                postgres._kill_session(conn.scalar(face.session_id))
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (2)"))

    work()
    assert len(runs) == 2
    assert face.rows(table) == [1, 2]


def test_the_statements_of_an_applications_own_psycopg2_connections_are_seen_too(
    postgres: Any, faces: Any
) -> None:
    import psycopg2.extensions

    class Own(psycopg2.extensions.connection):
        pass

    engine = faces("psycopg2", postgres).engine(connect_args={"connection_factory": Own})
    raw = engine.raw_connection()
    assert isinstance(raw.driver_connection, Own)
    assert hasattr(type(raw.driver_connection), "_reports")
    raw.close()


def test_pool_timeout_is_for_connections_that_others_have_and_not_for_opening_one(
    face: Any,
) -> None:
    engine = face.engine(pool_size=1, max_overflow=1, pool_timeout=0)
    for _ in range(3):
        with engine.connect() as one, engine.connect() as two:
            assert one.scalar(sa.text("SELECT 1")) == two.scalar(sa.text("SELECT 1")) == 1
            with pytest.raises(sa.exc.TimeoutError, match="limit of size 1 overflow 1 reached"):
                engine.connect()
        engine.dispose()


def test_the_same_holds_on_an_event_loop(postgres: Any) -> None:
    async def work() -> None:
        engine = create_async_engine(
            postgres.url("asyncpg"),
            plugins=["unbroken"],
            pool_size=1,
            max_overflow=0,
            pool_timeout=0,
        )
        for _ in range(3):
            async with engine.connect() as conn:
                assert (await conn.execute(sa.text("SELECT 1"))).scalar() == 1
                with pytest.raises(sa.exc.TimeoutError):
                    await engine.connect()
        await engine.dispose()

    asyncio.run(work())


@pytest.mark.parametrize(("size", "overflow"), [(0, 0), (2, -1), (1, 3)])
def test_bounds_mean_what_sqlalchemy_says(face: Any, size: int, overflow: int) -> None:
    ours, bare = (
        make(pool_size=size, max_overflow=overflow, pool_timeout=0.2)
        for make in (face.engine, face.bare)
    )

    def walk(engine: sa.Engine) -> list[Any]:
        seen: list[Any] = []
        held: list[Any] = []
        for _ in range(5):
            try:
                held.append(engine.connect())
            except sa.exc.TimeoutError:
                seen.append("timeout")
            seen.append(engine.pool.status())
        for conn in held:
            conn.close()
            seen.append(engine.pool.status())
        return seen

    assert walk(ours) == walk(bare)


@pytest.mark.parametrize("kind", ["NullPool", "StaticPool", "SingletonThreadPool", "AssertionPool"])
def test_other_pools_of_sqlalchemys_stay_what_they_are(face: Any, kind: str, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "unbroken"):
        engine = face.engine(poolclass=getattr(sa.pool, kind))
        assert face.engine(poolclass=getattr(sa.pool, kind)) is not engine
    assert type(engine.pool).__name__ == kind
    assert face.ask(engine)
    (said,) = [r for r in caplog.records if f"poolclass={kind} stays as you gave it" in r.msg]
    assert said.levelname == "INFO"
    assert ("Alembic" in said.msg) == (kind == "NullPool")


def test_recycled_and_invalidated_connections_are_replaced_in_their_place(face: Any) -> None:
    engine = face.engine(pool_size=1, max_overflow=0, pool_timeout=2)
    seen = {face.ask(engine)}
    for _ in range(5):
        with engine.connect() as conn:
            seen.add(conn.scalar(face.session_id))
            random.choice([conn.invalidate, conn.connection.invalidate])()
    engine.pool._invalidate_time = time.time() + 0.01
    time.sleep(0.02)
    seen.add(face.ask(engine))
    assert len(seen) >= 3
    assert engine.pool.checkedout() == 0


def test_a_connection_that_does_not_answer_sqlalchemys_own_ping_is_replaced_in_its_place(
    face: Any, monkeypatch: Any
) -> None:
    engine = face.engine(pool_size=2, max_overflow=0, pool_pre_ping=True, pool_timeout=2)
    face.warm(engine, 2)
    original = engine.dialect.do_ping
    failed: list[int] = []

    def ping(connection: Any) -> bool:
        if not failed:
            failed.append(1)
            raise engine.dialect.loaded_dbapi.OperationalError(
                2006, "server closed the connection unexpectedly"
            )
        return bool(original(connection))

    monkeypatch.setattr(engine.dialect, "do_ping", ping)
    assert face.ask(engine)
    assert failed
    assert stats(engine).size <= 2
    assert engine.pool.checkedout() == 0


def test_engines_that_come_and_go_leave_no_classes_behind(mariadb: Any, faces: Any) -> None:
    """A class and its TLS context for each engine are 800 kB that nothing frees."""
    import pymysql.connections

    def classes(base: type) -> int:
        return 1 + sum(classes(each) for each in base.__subclasses__())

    face = faces("pymysql", mariadb)
    counts = []
    for _ in range(5):
        engine = face.engine()
        face.ask(engine)
        engine.dispose()
        counts.append(classes(pymysql.connections.Connection))
    assert counts[1] == counts[-1]


TENANT: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")


def test_what_connects_sees_the_context_of_a_caller(postgres: Any, faces: Any) -> None:
    """As where it runs in the caller's thread: a ``creator`` or ``do_connect`` may ask its web
    framework for the request.
    """
    seen: list[str] = []

    def listen(engine: sa.Engine) -> sa.Engine:
        sa.event.listen(engine, "do_connect", lambda *_: seen.append(TENANT.get("nobody")))
        return engine

    async def work() -> None:
        engine = create_async_engine(postgres.url("asyncpg"), plugins=["unbroken"])
        listen(engine.sync_engine)
        TENANT.set("a task's")
        async with engine.connect() as conn:
            await conn.execute(sa.text("SELECT 1"))
        await engine.dispose()

    engine = listen(faces("psycopg", postgres).engine())
    contextvars.copy_context().run(lambda: (TENANT.set("a thread's"), engine.connect().close()))
    asyncio.run(work())
    assert seen[0] == "a thread's"
    assert seen[-1] == "a task's"
    assert engine.pool._body.caller is None  # type: ignore[attr-defined] # nothing of the request is kept


def test_sixty_engines_made_and_disposed_cost_less_than_60_kilobytes_each(mariadb: Any) -> None:
    def come_and_go(count: int) -> None:
        for _ in range(count):
            engine = sa.create_engine(mariadb.url("pymysql"), plugins=["unbroken"])
            with engine.connect() as conn:
                conn.execute(sa.text("SELECT 1"))
            engine.dispose()
            del engine, conn
        gc.collect()

    come_and_go(5)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        come_and_go(60)
        assert tracemalloc.get_traced_memory()[0] - before < 60 * 60_000
    finally:
        tracemalloc.stop()
