"""What it costs to take a connection and give it back, in asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

from measure import Effort, Result, Row, Slice, Table, Target, best_of, interleaved, shared

import unbroken
from unbroken_drill.servers import PostgreSQL

SIZE = 10
BASE = "psycopg_pool.AsyncConnectionPool, no check"
ASYNCPG = "asyncpg.Pool, no check, no reset"
OURS = "unbroken, psycopg, liveness check, no reset"
OURS_ASYNCPG = "unbroken, asyncpg, liveness check, no reset"

#: Does an operation so often; *pause* is awaited while the connection is held, unless it is None.
Loop: TypeAlias = Callable[[int, Any], Awaitable[None]]


def run(effort: Effort) -> Result:
    """One task that never waits; 2, 8 and 32 tasks that hold their connection for one turn of the
    loop.
    """
    with PostgreSQL({"max_connections": 200}) as server, asyncio.Runner() as runner:
        return _measure(server, runner, effort)


def _measure(server: PostgreSQL, runner: asyncio.Runner, effort: Effort) -> Result:
    result = Result()
    stack, loops = runner.run(_contenders(server))
    for tasks in (1, 2, 8, 32):
        slices = {name: _slice(runner, loop, tasks) for name, loop in loops.items()}
        if tasks > 1:
            slices["(holding nothing)"] = _slice(runner, _nothing, tasks)
        rows = interleaved(slices, effort, BASE)
        title = (
            "one task, nothing in between"
            if tasks == 1
            else f"{tasks} tasks, held over one turn of the loop"
        )
        result.tables.append(
            Table(
                f"Take and give back a connection in asyncio: {title}, pool of {SIZE}",
                "µs",
                rows,
                BASE,
            )
        )
        if tasks <= SIZE:
            # beyond that it is the waiting that is measured, and every pool makes its callers wait
            result.targets += [
                _target(title, rows, *pair) for pair in ((OURS, BASE), (OURS_ASYNCPG, ASYNCPG))
            ]
    runner.run(stack.aclose())
    return result


def _target(title: str, rows: list[Row], ours: str, peer: str) -> Target:
    return Target(
        f"asyncio, {title}: {ours} less than {peer}", best_of(rows, ours) / best_of(rows, peer), 1.0
    )


def _slice(runner: asyncio.Runner, loop: Loop, tasks: int) -> Slice:
    async def together(count: int) -> float:
        each = shared(count, tasks)
        began = perf_counter()
        if tasks == 1:
            await loop(count, None)
        else:
            await asyncio.gather(*(loop(each, asyncio.sleep) for _ in range(tasks)))
        return (perf_counter() - began) * count / (each * tasks)

    return lambda count: runner.run(together(count))


async def _nothing(count: int, pause: Any) -> None:
    for _ in range(count):
        await pause(0)


async def _contenders(server: PostgreSQL) -> tuple[contextlib.AsyncExitStack, dict[str, Loop]]:
    stack = contextlib.AsyncExitStack()
    loops: dict[str, Loop] = {}
    for each in (_unbroken, _psycopg_pool, _asyncpg):
        loops.update(await each(server, stack))
    for loop in loops.values():  # open all connections
        await asyncio.gather(*(loop(3, asyncio.sleep) for _ in range(SIZE)))
    return stack, loops


def _given_back(take: Callable[[], Awaitable[Any]], give: Callable[[Any], Awaitable[Any]]) -> Loop:
    async def loop(count: int, pause: Any) -> None:
        for _ in range(count):
            conn = await take()
            if pause is not None:
                await pause(0)
            await give(conn)

    return loop


def _entered(lend: Callable[[], Any]) -> Loop:
    async def loop(count: int, pause: Any) -> None:
        for _ in range(count):
            async with lend():
                if pause is not None:
                    await pause(0)

    return loop


async def _unbroken(server: PostgreSQL, stack: contextlib.AsyncExitStack) -> dict[str, Loop]:
    loops: dict[str, Loop] = {}
    for driver, bare_name in (("psycopg", OURS), ("asyncpg", OURS_ASYNCPG)):
        bare = unbroken.AsyncPool(server.url(driver), max_size=SIZE, reset=None)
        usual = unbroken.AsyncPool(server.url(driver), max_size=SIZE)
        stack.push_async_callback(bare.close)
        stack.push_async_callback(usual.close)
        loops[bare_name] = _given_back(bare.acquire, bare.release)
        loops[f"unbroken, {driver}, defaults"] = _given_back(usual.acquire, usual.release)
        if driver == "psycopg":
            loops["unbroken, psycopg, async with"] = _entered(usual.connection)
        else:  # with a transaction it would be two round trips: asyncpg begins none by itself
            loops["unbroken, asyncpg, async with, transaction=False"] = _entered(
                lambda pool=usual: pool.connection(transaction=False)
            )
    return loops


async def _psycopg_pool(server: PostgreSQL, stack: contextlib.AsyncExitStack) -> dict[str, Loop]:
    from psycopg_pool import AsyncConnectionPool

    pool = await stack.enter_async_context(
        AsyncConnectionPool(server.url(), min_size=SIZE, max_size=SIZE, open=False)
    )
    check = AsyncConnectionPool.check_connection
    checking = await stack.enter_async_context(
        AsyncConnectionPool(server.url(), min_size=SIZE, max_size=SIZE, open=False, check=check)
    )
    await pool.wait()
    await checking.wait()
    return {
        BASE: _given_back(pool.getconn, pool.putconn),
        "psycopg_pool.AsyncConnectionPool, no check, async with": _entered(pool.connection),
        "psycopg_pool.AsyncConnectionPool, check": _given_back(checking.getconn, checking.putconn),
    }


async def _asyncpg(server: PostgreSQL, stack: contextlib.AsyncExitStack) -> dict[str, Loop]:
    import asyncpg

    async def no_reset(_conn: Any) -> None:
        return None

    usual = await stack.enter_async_context(
        asyncpg.create_pool(server.url(), min_size=SIZE, max_size=SIZE)
    )
    bare = await stack.enter_async_context(
        asyncpg.create_pool(server.url(), min_size=SIZE, max_size=SIZE, reset=no_reset)
    )
    return {
        ASYNCPG: _given_back(bare.acquire, bare.release),
        "asyncpg.Pool, no check, defaults (a round trip to reset)": _given_back(
            usual.acquire, usual.release
        ),
        "asyncpg.Pool, no check, defaults, async with": _entered(usual.acquire),
    }
