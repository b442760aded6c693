"""What it costs to take a connection and give it back, in threads, with nothing done in between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import bars
from measure import Effort, Result, Row, Slice, Table, Target, best_of, interleaved, threaded

import unbroken
from unbroken_drill.servers import PostgreSQL

SIZE = 10
BASE = "SQLAlchemy QueuePool, no check, no reset"
OURS = "unbroken, liveness check, no reset"
WITH = "unbroken, with pool.connection()"
USUAL = "SQLAlchemy QueuePool, no check, defaults"
DBUTILS = "DBUtils PooledDB, no check, no reset"
PRE_PING = "SQLAlchemy QueuePool, pre_ping, no reset"


def run(effort: Effort) -> Result:
    """Uncontended, and with 2, 8 and 32 threads on pools of 10."""
    result = Result()
    with PostgreSQL({"max_connections": 200}) as server, contenders(server) as slices:
        for threads in (1, 2, 8, 32):
            rows = interleaved(
                {name: threaded(each, threads) for name, each in slices.items()}, effort, BASE
            )
            title = "one thread" if threads == 1 else f"{threads} threads"
            note = "" if threads == 1 else "All threads' time, divided by all threads' operations."
            result.tables.append(
                Table(
                    f"Take and give back a connection: {title}, pool of {SIZE}",
                    "µs",
                    rows,
                    BASE,
                    note,
                )
            )
            if threads == 1:
                result.plots["checkout"] = bars.draw(result.tables[-1])
            if threads in (1, 8):
                result.targets += _targets(rows, title)
    return result


def _targets(rows: list[Row], title: str) -> list[Target]:
    ours, base = best_of(rows, OURS), best_of(rows, BASE)
    return [
        Target(f"{title}: at most 1/4 of SQLAlchemy without any check", ours / base, 1 / 4),
        Target(f"{title}: less than DBUtils without any check", ours / best_of(rows, DBUTILS), 1.0),
        Target(
            f"{title}: at most 1/10 of SQLAlchemy's pre_ping on loopback",
            ours / best_of(rows, PRE_PING),
            1 / 10,
        ),
        # `with` leaves no transaction open behind it, and SQLAlchemy does likewise only as it comes
        Target(
            f"{title}: `with` at most 1.5/4.9 of SQLAlchemy as it comes",
            best_of(rows, WITH) / best_of(rows, USUAL),
            1.5 / 4.9,
        ),
    ]


@contextlib.contextmanager
def contenders(server: PostgreSQL) -> Iterator[dict[str, Slice]]:
    """Every pool, full of open connections, in a loop that does what its users write."""
    with contextlib.ExitStack() as stack:
        slices: dict[str, Slice] = {}
        for each in (_unbroken, _sqlalchemy, _psycopg_pool, _dbutils, _peewee):
            slices.update(each(server, stack))
        for fill in slices.values():
            threaded(fill, SIZE)(SIZE * 50)
        yield slices


def _given_back(take: Callable[[], Any], give: Callable[[Any], Any]) -> Slice:
    def run(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            give(take())
        return perf_counter() - began

    return run


def _closed(take: Callable[[], Any]) -> Slice:
    def run(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            take().close()
        return perf_counter() - began

    return run


def _entered(lend: Callable[[], Any]) -> Slice:
    def run(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            with lend():
                pass
        return perf_counter() - began

    return run


def _unbroken(server: PostgreSQL, stack: contextlib.ExitStack) -> dict[str, Slice]:
    bare = stack.enter_context(unbroken.Pool(server.url("psycopg"), max_size=SIZE, reset=None))
    usual = stack.enter_context(unbroken.Pool(server.url("psycopg"), max_size=SIZE))
    return {
        OURS: _given_back(bare.acquire, bare.release),
        "unbroken, defaults": _given_back(usual.acquire, usual.release),
        WITH: _entered(usual.connection),
    }


def _sqlalchemy(server: PostgreSQL, stack: contextlib.ExitStack) -> dict[str, Slice]:
    import sqlalchemy

    options: dict[str, dict[str, Any]] = {
        BASE: {"pool_reset_on_return": None},
        USUAL: {},
        PRE_PING: {"pool_reset_on_return": None, "pool_pre_ping": True},
    }
    slices = {}
    for name, more in options.items():
        engine = sqlalchemy.create_engine(
            server.url("psycopg"), pool_size=SIZE, max_overflow=0, **more
        )
        stack.callback(engine.dispose)
        engine.connect().close()  # the first one asks the server this and that
        slices[name] = _closed(engine.pool.connect)
    return slices


def _psycopg_pool(server: PostgreSQL, stack: contextlib.ExitStack) -> dict[str, Slice]:
    from psycopg_pool import ConnectionPool

    bare = stack.enter_context(
        ConnectionPool(server.url(), min_size=SIZE, max_size=SIZE, open=True)
    )
    checking = stack.enter_context(
        ConnectionPool(
            server.url(),
            min_size=SIZE,
            max_size=SIZE,
            open=True,
            check=ConnectionPool.check_connection,
        )
    )
    return {
        "psycopg_pool, no check": _given_back(bare.getconn, bare.putconn),
        "psycopg_pool, no check, with pool.connection()": _entered(bare.connection),
        "psycopg_pool, check": _given_back(checking.getconn, checking.putconn),
    }


def _dbutils(server: PostgreSQL, stack: contextlib.ExitStack) -> dict[str, Slice]:
    import psycopg
    from dbutils.pooled_db import PooledDB

    pool = PooledDB(
        psycopg,
        maxconnections=SIZE,
        maxcached=SIZE,
        blocking=True,
        ping=0,
        reset=False,
        conninfo=server.url(),
    )
    stack.callback(pool.close)
    return {DBUTILS: _closed(pool.connection)}


def _peewee(server: PostgreSQL, stack: contextlib.ExitStack) -> dict[str, Slice]:
    from playhouse.pool import PooledPostgresqlDatabase

    where = {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
    }
    db = PooledPostgresqlDatabase(
        server.database, max_connections=SIZE, timeout=30, prefer_psycopg3=True, **where
    )
    stack.callback(db.close_all)

    def run(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            db.connect()
            db.close()
        return perf_counter() - began

    return {"peewee's pool": run}
