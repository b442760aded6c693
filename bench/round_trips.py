"""Round trips of a request that does one SELECT, counted on the wire by a proxy between the pool
and the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from measure import Effort, Result, Row, Table, Target
from round_trips_frameworks import rows as frameworks

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

REQUESTS = 20
SELECT = "SELECT n FROM stock"
FRAMED = "Round trips of a request with one SELECT in a framework's transaction"


def run(_effort: Effort) -> Result:
    """The whole request: take a connection, SELECT, end the transaction, give the connection
    back.
    """
    with PostgreSQL() as server:
        _make_table(server, "psycopg")
        rows = [
            *_unbroken(server, "psycopg"),
            *_unbroken(server, "asyncpg"),
            *_sqlalchemy(server, "psycopg"),
            _counted("psycopg_pool", server, _psycopg_pool),
            _counted(
                "psycopg_pool, check",
                server,
                lambda url, stack: _psycopg_pool(url, stack, check=True),
            ),
        ]
        framed = [
            Table(
                f"{FRAMED}: PostgreSQL",
                "round trips",
                frameworks(server, mysql=False),
            )
        ]
    tables = [Table("Round trips of a request with one SELECT: PostgreSQL", "round trips", rows)]
    if available("mariadb") is None:
        with MariaDB() as server:
            _make_table(server, "pymysql")
            found = [
                row
                for driver in ("pymysql", "mysqldb", "aiomysql")
                for row in _unbroken(server, driver)
            ]
            tables.append(
                Table(
                    "Round trips of a request with one SELECT: MariaDB",
                    "round trips",
                    [*found, *_sqlalchemy(server, "pymysql")],
                )
            )
            framed.append(
                Table(
                    f"{FRAMED}: MariaDB",
                    "round trips",
                    frameworks(server, mysql=True),
                )
            )
    targets = []
    for table in tables:
        ours = max(row.best for row in table.rows if row.is_ours)
        theirs = next(row.best for row in table.rows if row.name.startswith("SQLAlchemy"))
        targets.append(
            Target(
                f"{table.title}: no more than SQLAlchemy without a check",
                ours,
                theirs,
                "round trips",
            )
        )
    for table in framed:
        ours = max(row.best for row in table.rows if row.is_ours)
        targets.append(Target(f"{table.title}: one", ours, 1.2, "round trips"))
    return Result([*tables, *framed], targets)


def _make_table(server: Server, driver: str) -> None:
    with unbroken.Pool(server.url(driver)) as pool, pool.connection() as conn:
        conn.cursor().execute("CREATE TABLE stock (n INT)")


def _counted(
    name: str, server: Server, make: Callable[[str, contextlib.ExitStack], Callable[[], Any]]
) -> Row:
    """*make* gives what does one request through a URL."""
    scheme = name.split(", ")[1] if name.startswith("unbroken") else None
    with FaultProxy((server.host, server.port)) as proxy, contextlib.ExitStack() as stack:
        request = make(proxy.url(server.url(scheme)), stack)
        for _ in range(REQUESTS):
            # connects, asks for limits and versions; psycopg prepares what it has seen five times
            request()
        before = proxy.round_trips
        for _ in range(REQUESTS):
            request()
        return Row(name, (proxy.round_trips - before) / REQUESTS)


def _unbroken(server: Server, driver: str) -> list[Row]:
    if driver in ("asyncpg", "aiomysql"):
        return [
            _counted(
                f"unbroken, {driver}, async with",
                server,
                lambda url, stack: _async(url, stack, transaction=True),
            ),
            _counted(
                f"unbroken, {driver}, async with, transaction=False",
                server,
                lambda url, stack: _async(url, stack, transaction=False),
            ),
        ]
    return [_counted(f"unbroken, {driver}, with", server, _sync)]


def _sync(url: str, stack: contextlib.ExitStack) -> Callable[[], Any]:
    pool = stack.enter_context(unbroken.Pool(url, max_size=1))

    def request() -> None:
        with pool.connection() as conn, contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(SELECT)
            cursor.fetchall()

    return request


def _async(url: str, stack: contextlib.ExitStack, *, transaction: bool) -> Callable[[], Any]:
    runner = stack.enter_context(asyncio.Runner())
    pool = unbroken.AsyncPool(url, max_size=1)
    stack.callback(lambda: runner.run(pool.close()))
    fetch = _fetch_asyncpg if "asyncpg" in url else _fetch_aiomysql

    async def request() -> None:
        async with pool.connection(transaction=transaction) as conn:
            await fetch(conn)

    return lambda: runner.run(request())


async def _fetch_asyncpg(conn: Any) -> None:
    await conn.fetch(SELECT)


async def _fetch_aiomysql(conn: Any) -> None:
    async with conn.cursor() as cursor:
        await cursor.execute(SELECT)
        await cursor.fetchall()


def _sqlalchemy(server: Server, driver: str) -> list[Row]:
    import sqlalchemy

    def make(stack: contextlib.ExitStack, url: str, **options: Any) -> Callable[[], Any]:
        engine = sqlalchemy.create_engine(
            url.replace("://", f"+{driver}://", 1), pool_size=1, **options
        )
        stack.callback(engine.dispose)

        def request() -> None:
            with engine.connect() as conn:
                conn.execute(sqlalchemy.text(SELECT)).fetchall()

        return request

    return [
        _counted(f"SQLAlchemy, {driver}", server, lambda url, stack: make(stack, url)),
        _counted(
            f"SQLAlchemy, {driver}, pre_ping",
            server,
            lambda url, stack: make(stack, url, pool_pre_ping=True),
        ),
    ]


def _psycopg_pool(
    url: str, stack: contextlib.ExitStack, *, check: bool = False
) -> Callable[[], Any]:
    from psycopg_pool import ConnectionPool

    checker = ConnectionPool.check_connection if check else None
    pool = stack.enter_context(
        ConnectionPool(url, min_size=1, max_size=1, open=True, check=checker)
    )
    pool.wait()

    def request() -> None:
        with pool.connection() as conn:
            conn.execute(SELECT).fetchall()

    return request
