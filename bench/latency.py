"""A request of one SELECT behind a network that takes its time: a proxy between the pool and the
server adds 0 to 2 ms each way.

The whole request counts: take a connection, SELECT, end the transaction, give the connection back.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from fleet_plot import COLOURS
from measure import Effort, Result, Row, Table, Target

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

DELAYS = (0.0, 0.0005, 0.001, 0.002)  #: seconds each way
#: (threads, connections of the pool)
CROWDS = ((1, 1), (8, 4), (32, 8))
SELECT = "SELECT n FROM stock"

#: Does one request; several threads may call it at once.
Request = Callable[[], Any]
#: Makes such a function for a URL and a size of the pool, until the block ends.
Contender = Callable[[str, int], contextlib.AbstractContextManager[Request]]


def run(effort: Effort) -> Result:
    """All contenders of one server, in turns, at each delay and with each crowd."""
    result = Result()
    seconds = 0.3 if effort.repeats == 1 else 2.0
    with MariaDB() as server:
        _measure(result, server, "pymysql", MARIADB, seconds, "SQLAlchemy, pymysql", 0.55)
    with PostgreSQL() as server:
        _measure(result, server, "psycopg", POSTGRESQL, seconds, "psycopg_pool, check", 0.4)
    return result


def _measure(
    result: Result,
    server: Server,
    driver: str,
    contenders: dict[str, Contender],
    seconds: float,
    peer: str,
    limit: float,
) -> None:
    with unbroken.Pool(server.url(driver)) as pool, pool.connection() as conn:
        conn.cursor().execute("CREATE TABLE stock (n INT)")
    name = type(server).__name__
    curves: dict[str, list[float]] = {one: [] for one in contenders}
    with FaultProxy((server.host, server.port)) as proxy:
        for delay in DELAYS:
            for threads, size in CROWDS:
                rows = [
                    _row(one, make, proxy, server, delay, threads, size, seconds)
                    for one, make in contenders.items()
                ]
                if threads == 1:
                    for row in rows:
                        curves[row.name].append(row.best)
                if delay == 0.001:
                    title = f"{name}, 1 ms each way, {threads} at once, pool of {size}"
                    table = Table(title, "ms", rows, labels=("median", "99 %"))
                    result.tables.append(table)
                    if threads <= 8:
                        result.targets.append(_target(table, peer, limit))
    result.plots[f"latency-{name.lower()}"] = draw(curves, f"{name}: one SELECT, one thread")


def _target(table: Table, peer: str, limit: float) -> Target:
    ours = min(row.best for row in table.rows if row.is_ours)
    theirs = next(row.best for row in table.rows if row.name == peer)
    promise = f"{table.title}: the best of unbroken's beside {peer}"
    return Target(promise, ours / theirs, limit)


def _row(
    name: str,
    make: Contender,
    proxy: FaultProxy,
    server: Server,
    delay: float,
    threads: int,
    size: int,
    seconds: float,
) -> Row:
    proxy.heal()
    with make(proxy.url(server.url(None)), size) as request:
        for _ in range(10):
            request()  # connects, asks for limits, prepares
        if delay:
            proxy.latency(delay)
        found = sorted(_timed(request, threads, seconds))
    return Row(name, statistics.median(found), found[int(len(found) * 0.99)])


def _timed(request: Request, threads: int, seconds: float) -> list[float]:
    """How long each request took that *threads* threads made, one after the other each."""
    found: list[float] = []
    end = perf_counter() + seconds

    def work() -> None:
        while (began := perf_counter()) < end:
            request()
            found.append(perf_counter() - began)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return found


# -- contenders ------------------------------------------------------------------------------------


def _pool(driver: str) -> Contender:
    @contextlib.contextmanager
    def make(url: str, size: int) -> Iterator[Request]:
        with unbroken.Pool(_with(url, driver), max_size=size) as pool:

            def request() -> None:
                with pool.connection() as conn, contextlib.closing(conn.cursor()) as cursor:
                    cursor.execute(SELECT)
                    cursor.fetchall()

            yield request

    return make


def _async_pool(driver: str) -> Contender:
    async def open_pool(url: str, size: int) -> Any:
        return unbroken.AsyncPool(_with(url, driver), max_size=size)

    async def request(pool: Any) -> None:
        async with pool.connection() as conn:
            if driver == "asyncpg":
                await conn.fetch(SELECT)
            else:
                async with conn.cursor() as cursor:
                    await cursor.execute(SELECT)
                    await cursor.fetchall()

    return _on_a_loop(open_pool, request)


async def _open_asyncpg(url: str, size: int) -> Any:
    import asyncpg

    return await asyncpg.create_pool(url, min_size=size, max_size=size)


async def _use_asyncpg(pool: Any) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.fetch(SELECT)


def _on_a_loop(open_pool: Any, use: Any) -> Contender:
    """An asyncio pool, on a loop of a thread of its own: the tasks are begun from there."""

    @contextlib.contextmanager
    def make(url: str, size: int) -> Iterator[Request]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        def wait(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        pool = wait(open_pool(url, size))
        try:
            yield lambda: wait(use(pool))
        finally:
            wait(pool.close())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    return make


def _sqlalchemy(driver: str, **options: Any) -> Contender:
    @contextlib.contextmanager
    def make(url: str, size: int) -> Iterator[Request]:
        import sqlalchemy

        engine = sqlalchemy.create_engine(_with(url, driver), pool_size=size, **options)
        try:

            def request() -> None:
                with engine.connect() as conn:
                    conn.execute(sqlalchemy.text(SELECT)).fetchall()

            yield request
        finally:
            engine.dispose()

    return make


@contextlib.contextmanager
def _psycopg_pool(url: str, size: int) -> Iterator[Request]:
    from psycopg_pool import ConnectionPool

    check = ConnectionPool.check_connection
    with ConnectionPool(url, min_size=size, max_size=size, open=True, check=check) as pool:
        pool.wait()

        def request() -> None:
            with pool.connection() as conn:
                conn.execute(SELECT).fetchall()

        yield request


def _with(url: str, driver: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme.partition('+')[0]}+{driver}://{rest}"


MARIADB: dict[str, Contender] = {
    "unbroken, pymysql": _pool("pymysql"),
    "unbroken, mysqldb": _pool("mysqldb"),
    "unbroken, aiomysql": _async_pool("aiomysql"),
    "unbroken's plugin, pymysql": _sqlalchemy("pymysql", plugins=["unbroken"]),
    "SQLAlchemy, pymysql": _sqlalchemy("pymysql"),
    "SQLAlchemy, pymysql, pre_ping": _sqlalchemy("pymysql", pool_pre_ping=True),
}
POSTGRESQL: dict[str, Contender] = {
    "unbroken, psycopg": _pool("psycopg"),
    "unbroken, asyncpg": _async_pool("asyncpg"),
    "unbroken's plugin, psycopg": _sqlalchemy("psycopg", plugins=["unbroken"]),
    "SQLAlchemy, psycopg": _sqlalchemy("psycopg"),
    "SQLAlchemy, psycopg, pre_ping": _sqlalchemy("psycopg", pool_pre_ping=True),
    "psycopg_pool, check": _psycopg_pool,
    "asyncpg.Pool": _on_a_loop(_open_asyncpg, _use_asyncpg),
}


# -- the picture -----------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 760, 360, 60, 310


def draw(curves: dict[str, list[float]], title: str) -> str:
    """Milliseconds of a request (the median) by the network's delay."""
    top = max(max(curve) for curve in curves.values()) * 1e3 or 1.0
    last = DELAYS[-1] * 1e3

    def place(delay: float, value: float) -> str:
        x = _LEFT + (480 - _LEFT) * delay * 1e3 / last
        return f"{x:.1f},{_BOTTOM - (_BOTTOM - 40) * value * 1e3 / top:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15">{title}</text>',
        f'<path d="M{_LEFT},40 V{_BOTTOM} H480" fill="none" stroke="#999"/>',
        f'<text x="8" y="36">{top:.0f} ms</text><text x="30" y="{_BOTTOM}">0</text>',
        *(
            f'<text x="{_LEFT + (480 - _LEFT) * delay * 1e3 / last:.0f}" y="{_BOTTOM + 18}"'
            f' text-anchor="middle">{delay * 1e3:g}</text>'
            for delay in DELAYS
        ),
        f'<text x="{_LEFT}" y="{_BOTTOM + 38}">ms of delay each way</text>',
    ]
    shades = [*COLOURS, "#8e44ad", "#2980b9", "#7f8c8d"]
    for number, ((name, curve), shade) in enumerate(zip(curves.items(), shades, strict=False)):
        points = " ".join(place(d, v) for d, v in zip(DELAYS, curve, strict=True))
        dashes = "" if name.startswith("unbroken") else ' stroke-dasharray="5 4"'
        y = 60 + number * 22
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{shade}" stroke-width="2"{dashes}/>',
            f'<rect x="500" y="{y - 5}" width="16" height="4" fill="{shade}"/>'
            f'<text x="522" y="{y}">{name}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
