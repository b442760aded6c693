"""Whether an acquire costs the same however many connections are idle."""

from __future__ import annotations

from time import perf_counter

from crowd import crowd, fill, pool_on
from measure import Effort, Result, Slice, Table, Target, best_of, interleaved

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

SIZES = (10, 100, 1000)
CROWDS = (10, 1000, 10_000)


def run(effort: Effort) -> Result:
    """Up to 1,000 sessions of a real server, up to 10,000 sockets without one."""
    result = Result()
    with _server() as server:
        _measure(
            f"sessions of {server.backend}",
            {size: _full(server, size) for size in SIZES},
            effort,
            result,
        )
    with crowd() as driver:
        pools = {size: fill(pool_on(driver, size, reset=None), size) for size in CROWDS}
        _measure("TCP sockets, no database behind them", pools, effort, result)
    return result


def _measure(what: str, pools: dict[int, unbroken.Pool], effort: Effort, result: Result) -> None:
    rows = interleaved(
        {_name(size): _loop(pool) for size, pool in pools.items()}, effort, _name(min(pools))
    )
    for pool in pools.values():
        pool.close()
    ratio = best_of(rows, _name(max(pools))) / best_of(rows, _name(min(pools)))
    result.tables.append(
        Table(
            f"Acquire and release beside many idle connections ({what})",
            "µs",
            rows,
            _name(min(pools)),
        )
    )
    result.targets.append(
        Target(f"flat: {max(pools):,} idle connections within 10 % of {min(pools)}", ratio, 1.1)
    )


def _server() -> Server:
    room = sum(SIZES) + 20
    if available("mariadb") is None:  # a thread for each session, where PostgreSQL has a process
        return MariaDB({"max_connections": room, "back_log": 200})
    return PostgreSQL({"max_connections": room})


def _name(size: int) -> str:
    return f"unbroken, {size:,} idle"


def _full(server: Server, size: int) -> unbroken.Pool:
    driver = "pymysql" if server.backend == "mariadb" else "psycopg"
    return fill(unbroken.Pool(server.url(driver), max_size=size, reset=None), size)


def _loop(pool: unbroken.Pool) -> Slice:
    def run(count: int) -> float:
        acquire, release = pool.acquire, pool.release
        began = perf_counter()
        for _ in range(count):
            release(acquire())
        return perf_counter() - began

    return run
