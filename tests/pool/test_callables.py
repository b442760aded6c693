"""What cannot be a unit of work is refused before anything runs. What only shows it by its result
is rolled back and refused then.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest

import unbroken
from unbroken import ConfigurationError
from unbroken.pool.callables import named, require_blocking, require_eager

HERE = __file__


async def coroutine(conn: Any, *_: Any) -> None:
    raise AssertionError("it ran")


def generator(conn: Any, *_: Any) -> Any:
    raise AssertionError("it ran")
    yield


async def async_generator(conn: Any, *_: Any) -> Any:
    raise AssertionError("it ran")
    yield


class Calls:
    def coroutine(self) -> Any:
        return self

    async def __call__(self, conn: Any) -> None:
        raise AssertionError("it ran")

    async def method(self, conn: Any) -> None:
        raise AssertionError("it ran")

    def rows(self, conn: Any) -> Iterator[None]:
        raise AssertionError("it ran")
        yield


class Rows:
    def __call__(self, conn: Any) -> Iterator[None]:
        raise AssertionError("it ran")
        yield


ASYNC = {
    "async def": coroutine,
    "partial": functools.partial(coroutine, b=1),
    "method": Calls().method,
    "object": Calls(),
}
LAZY = {
    "generator": generator,
    "partial": functools.partial(functools.partial(generator), 1),
    "method": Calls().rows,
    "object": Rows(),
    "async generator": async_generator,
}
NO_FUNCTIONS = {"None": None, "text": "SELECT 1", "number": 7}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A coroutine that nobody awaits would be warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def nowhere() -> Any:
    """A pool without a server: what is refused has not asked for a connection."""
    return unbroken.Pool("postgresql+psycopg://app@127.0.0.1:1/shop", acquire_timeout=60.0)


@pytest.fixture
def async_nowhere() -> Any:
    return unbroken.AsyncPool("postgresql+asyncpg://app@127.0.0.1:1/shop", acquire_timeout=60.0)


@pytest.mark.parametrize("function", ASYNC.values(), ids=ASYNC)
def test_a_blocking_pool_refuses_what_it_cannot_await(nowhere: Any, function: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Pool\.run\(\).*async def.*AsyncPool") as told:
        nowhere.run(function)
    assert HERE in str(told.value)
    assert "coroutine" in str(told.value) or "Calls" in str(told.value)


@pytest.mark.parametrize("function", LAZY.values(), ids=LAZY)
def test_a_generator_is_no_unit_of_work_anywhere(
    nowhere: Any, async_nowhere: Any, function: Any
) -> None:
    for refuses in (nowhere.run, async_nowhere.run, unbroken.replayable):
        with pytest.raises(ConfigurationError, match=r"generator.*list") as told:
            refuses(function)
        assert HERE in str(told.value)


@pytest.mark.parametrize("function", NO_FUNCTIONS.values(), ids=NO_FUNCTIONS)
def test_what_is_no_function_is_refused(nowhere: Any, async_nowhere: Any, function: Any) -> None:
    for refuses in (nowhere.run, async_nowhere.run):
        with pytest.raises(ConfigurationError, match="needs a function"):
            refuses(function)
    if function is not None:
        with pytest.raises(ConfigurationError, match="needs a function"):
            unbroken.replayable(function)


def test_the_result_of_a_call_is_no_function(nowhere: Any, async_nowhere: Any) -> None:
    for refuses in (nowhere.run, async_nowhere.run, unbroken.replayable):
        for given in (coroutine(None), generator(None), async_generator(None)):
            with pytest.raises(ConfigurationError, match="the function itself"):
                refuses(given)


def test_static_methods_and_class_methods_stay_what_they_are() -> None:
    class Shop:
        @unbroken.replayable
        @staticmethod
        def one(n: int) -> int:
            return n

        @unbroken.replayable(max_replays=1)
        @classmethod
        def other(cls, n: int) -> tuple[type, int]:
            return cls, n

    assert Shop().one(1) == 1
    assert Shop().other(2) == (Shop, 2)


def test_an_object_with_an_async_call_is_awaited_as_a_unit_of_work() -> None:
    class Gives:
        async def __call__(self) -> int:
            return 5

    replayed = unbroken.replayable(Gives())
    assert inspect.iscoroutinefunction(replayed)
    assert asyncio.run(replayed()) == 5


@pytest.fixture
def table(unbroken_postgres: Any) -> Iterator[str]:
    pool = unbroken.Pool(unbroken_postgres.url("psycopg"))
    with pool.connection() as conn:
        conn.execute("DROP TABLE IF EXISTS callables")
        conn.execute("CREATE TABLE callables (n int)")
    yield "callables"
    with pool.connection() as conn:
        conn.execute("DROP TABLE callables")
    pool.close()


def count(server: Any) -> int:
    with unbroken.Pool(server.url("psycopg")) as pool, pool.connection() as conn:
        return int(conn.execute("SELECT count(*) FROM callables").fetchone()[0])


INSERT = "INSERT INTO callables VALUES (1)"


@pytest.mark.parametrize("later", [coroutine, generator, async_generator])
def test_a_function_that_returns_work_to_be_done_is_rolled_back(
    unbroken_postgres: Any, table: str, later: Any
) -> None:
    def work(conn: Any) -> Any:
        conn.execute(INSERT)
        return later(conn)

    with unbroken.Pool(unbroken_postgres.url("psycopg")) as pool:
        with pytest.raises(ConfigurationError, match=r"returned .*(coroutine|generator)") as told:
            pool.run(work)
        assert f"{HERE}:{work.__code__.co_firstlineno}" in str(told.value)
        with pytest.raises(ConfigurationError, match="returned"):
            unbroken.replayable(lambda: later(None))()
        assert pool.run(lambda conn: conn.execute("SELECT 1").fetchone()) == (1,)
    assert count(unbroken_postgres) == 0


def test_an_async_function_that_gives_nothing_to_await_is_rolled_back(
    unbroken_postgres: Any, table: str
) -> None:
    def plain(conn: Any) -> int:
        return 7

    async def forgets_an_await(conn: Any) -> Any:
        await conn.execute(INSERT)
        return coroutine(conn)

    async def main() -> None:
        async with unbroken.AsyncPool(unbroken_postgres.url("asyncpg")) as pool:
            with pytest.raises(ConfigurationError, match=r"async def.*plain.*int") as told:
                await pool.run(plain)
            assert HERE in str(told.value)
            with pytest.raises(ConfigurationError, match=r"coroutine coroutine.*awaited"):
                await pool.run(forgets_an_await)
            assert await pool.run(lambda conn: conn.fetchval("SELECT 1")) == 1

    asyncio.run(main())
    assert count(unbroken_postgres) == 0


def test_what_types_coroutine_made_is_awaited() -> None:
    @types.coroutine
    def made() -> Any:
        yield

    require_eager(made, "AsyncPool.run()")
    with pytest.raises(ConfigurationError, match="async def"):
        require_blocking(made, "Pool.run()")


def test_a_mock_is_told_by_its_name() -> None:
    assert named(MagicMock()) == "MagicMock"
