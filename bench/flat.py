"""Whether an acquire costs the same however many connections are idle. Real sessions of a real server."""

from __future__ import annotations

from time import perf_counter

from measure import Effort, Result, Slice, Table, Target, best_of, interleaved

import unbroken
from unbroken.testing.servers import MariaDB, PostgreSQL, Server, available

SIZES = (10, 100, 1000)


def run(effort: Effort) -> Result:
    """With 10, 100 and 1,000 idle connections."""
    with _server() as server:
        pools = {size: _full(server, size) for size in SIZES}
        rows = interleaved({_name(size): _loop(pool) for size, pool in pools.items()}, effort, _name(SIZES[0]))
        for pool in pools.values():
            pool.close()
    ratio = best_of(rows, _name(SIZES[-1])) / best_of(rows, _name(SIZES[0]))
    title = f"Acquire and release beside many idle connections ({server.backend})"
    return Result([Table(title, "µs", rows, _name(SIZES[0]))], [Target("flat: 1000 idle connections within 10 % of 10", ratio, 1.1)])


def _server() -> Server:
    room = sum(SIZES) + 20
    if available("mariadb") is None:  # a thread for each session, where PostgreSQL has a process
        return MariaDB({"max_connections": room, "back_log": 200})
    return PostgreSQL({"max_connections": room})


def _name(size: int) -> str:
    return f"unbroken, {size} idle"


def _full(server: Server, size: int) -> unbroken.Pool:
    driver = "pymysql" if server.backend == "mariadb" else "psycopg"
    pool = unbroken.Pool(server.url(driver), max_size=size, reset=None)
    for conn in [pool.acquire() for _ in range(size)]:
        pool.release(conn)
    return pool


def _loop(pool: unbroken.Pool) -> Slice:
    def run(count: int) -> float:
        acquire, release = pool.acquire, pool.release
        began = perf_counter()
        for _ in range(count):
            release(acquire())
        return perf_counter() - began

    return run
