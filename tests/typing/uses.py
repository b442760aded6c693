"""How applications use the library, as mypy and pyright read it. Never run: both checkers read it
in ``make check``.

A line that must be an error says so to both; a checker that finds none there fails.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from typing import Any, assert_type

import psycopg

import unbroken
from unbroken import AsyncPool, Pool


def open_sqlite() -> sqlite3.Connection:
    return sqlite3.connect("shop.db")


async def open_psycopg() -> psycopg.AsyncConnection[tuple[Any, ...]]:
    return await psycopg.AsyncConnection.connect("dbname=shop")


def rename(conn: sqlite3.Connection, number: int, name: str = "lamp") -> str:
    conn.execute("UPDATE item SET name = ? WHERE id = ?", (name, number))
    return name


async def count(conn: psycopg.AsyncConnection[tuple[Any, ...]], table: str) -> int:
    row = await (
        await conn.execute("SELECT count(*) FROM item WHERE name = %s", (table,))
    ).fetchone()
    return 0 if row is None else int(row[0])


def wants_text(conn: str, number: int) -> str:
    return conn * number


# -- without a word, a connection is Any -----------------------------------------------------------


def a_url_alone() -> None:
    pool = Pool("postgresql+psycopg://app:secret@db/shop", max_size=5, deadline=2.0)
    assert_type(pool, Pool[Any])
    with pool.connection(timeout=1.0) as conn:
        assert_type(conn, Any)
        conn.anything_at_all()
    assert_type(pool.acquire(), Any)
    assert_type(pool.run(lambda conn: 7), int)
    pool.run(rename, 7, name="chair")


def as_a_parameter(pool: Pool, other: AsyncPool) -> tuple[Pool, AsyncPool]:
    """An annotation needs no brackets, in strict mode too."""
    return pool, other


async def a_url_alone_on_a_loop() -> None:
    pool = AsyncPool("postgresql+asyncpg://app:secret@db/shop")
    assert_type(pool, AsyncPool[Any])
    async with pool, pool.connection(deadline=1.0, transaction=False) as conn:
        assert_type(conn, Any)
    assert_type(await pool.run(count, "item"), int)


# -- a type that was said --------------------------------------------------------------------------


def a_pool_that_was_told(url: str) -> None:
    pool = Pool[psycopg.Connection[tuple[Any, ...]]](url)
    other: Pool[psycopg.Connection[tuple[Any, ...]]] = Pool(url)
    with pool.connection() as conn, other.connection() as second:
        assert_type(conn, psycopg.Connection[tuple[Any, ...]])
        assert_type(second, psycopg.Connection[tuple[Any, ...]])
        conn.no_such_method()  # type: ignore[attr-defined] # pyright: ignore
    pool.release(pool.acquire())
    pool.release("text")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


# -- a type that connect= has ----------------------------------------------------------------------


def a_pool_with_connect() -> None:
    pool = Pool(connect=open_sqlite, driver="sqlite", max_size=2)
    assert_type(pool, Pool[sqlite3.Connection])
    with pool as same, same.connection() as conn:
        assert_type(conn, sqlite3.Connection)
    assert_type(pool.acquire(1.0), sqlite3.Connection)


async def a_pool_with_connect_on_a_loop() -> None:
    pool = AsyncPool(connect=open_psycopg, driver="psycopg")
    assert_type(pool, AsyncPool[psycopg.AsyncConnection[tuple[Any, ...]]])
    async with pool as same, same.connection() as conn:
        assert_type(conn, psycopg.AsyncConnection[tuple[Any, ...]])
    await pool.release(await pool.acquire())


# -- run -------------------------------------------------------------------------------------------


def units(pool: Pool[sqlite3.Connection]) -> None:
    assert_type(pool.run(rename, 7), str)
    assert_type(pool.run(rename, 7, "chair", deadline=2.0), str)
    assert_type(pool.run(rename, number=7, name="chair"), str)
    assert_type(pool.run(lambda conn: conn.total_changes), int)
    pool.run(lambda conn: conn.total_changes, deadline=None)  # pyright: ignore # with a deadline the function is not looked into
    pool.run(rename)  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]
    pool.run(rename, "seven")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
    pool.run(wants_text, 7)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]


async def units_on_a_loop(pool: AsyncPool[psycopg.AsyncConnection[tuple[Any, ...]]]) -> None:
    assert_type(await pool.run(count, "item"), int)
    assert_type(await pool.run(count, "item", deadline=2.0), int)
    await pool.run(count, 7)  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]


@unbroken.replayable
def bare(number: int) -> str:
    return str(number)


@unbroken.replayable(deadline=5.0, max_replays=3)
async def awaited(number: int) -> str:
    return str(number)


async def replayables() -> None:
    assert_type(bare(7), str)
    assert_type(await awaited(7), str)
    bare("seven")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    waiting: Awaitable[str] = awaited(7)
    await waiting


# -- what is said of it ----------------------------------------------------------------------------


def numbers_and_errors(pool: Pool[sqlite3.Connection]) -> None:
    assert_type(pool.stats(), unbroken.Stats)
    assert_type(pool.check(timeout=1.0), unbroken.Stats)
    assert_type(pool.settings, unbroken.Settings)
    assert_type(pool.name, str)
    try:
        pool.resize(max_size=5)
    except (unbroken.OutageError, unbroken.PoolTimeoutError) as error:
        assert_type(str(error), str)
    except unbroken.UnbrokenError:
        pool.close(timeout=0.0)
