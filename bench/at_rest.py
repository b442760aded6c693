"""What a pool costs while nobody uses it: processor time, and memory for each idle connection
beside the driver's own.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator

from crowd import crowd, fill, pool_on
from measure import Effort, Result, Row, Table, Target

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL, available

SIZES = (10, 100, 1000)
CROWD = 10_000
WATCHED = 5.0


def run(_effort: Effort) -> Result:
    """10, 100 and 1,000 idle sessions of a real server; 10,000 sockets without one."""
    busy, memory = [Row("(no pool)", _busy(WATCHED))], []
    for name, size, pool in _pools():
        with pool:
            memory.append(Row(name, _fill(pool, size) / size))
            time.sleep(0.5)  # what was begun by filling it has ended
            busy.append(Row(name, _busy(WATCHED)))
    return Result(
        [
            Table("Processor time of a process with an idle pool", "ms per s", busy),
            Table(
                "Memory of an idle connection, without the driver's",
                "bytes",
                memory,
                note="Python objects, by tracemalloc.",
            ),
        ],
        [
            Target(
                "at rest: the processor time of 10,000 idle connections",
                busy[-1].best,
                10.0,
                "ms per s",
            ),
            Target(
                "at rest: the memory of each of 10,000 idle connections",
                memory[-1].best,
                2500.0,
                "bytes",
            ),
        ],
    )


def _pools() -> Iterator[tuple[str, int, unbroken.Pool]]:
    if available("mariadb") is None:
        with MariaDB({"max_connections": max(SIZES) + 20, "back_log": 200}) as server:
            for size in SIZES:
                yield (
                    f"unbroken, {size:,} idle, pymysql",
                    size,
                    unbroken.Pool(server.url("pymysql"), max_size=size),
                )
    with PostgreSQL({"max_connections": max(SIZES) + 20}) as server:
        for size in SIZES:
            yield (
                f"unbroken, {size:,} idle, psycopg",
                size,
                unbroken.Pool(server.url("psycopg"), max_size=size),
            )
    with crowd() as driver:
        yield f"unbroken, {CROWD:,} idle TCP sockets", CROWD, pool_on(driver, CROWD)


def _fill(pool: unbroken.Pool, size: int) -> int:
    """Open *size* connections; what the pool itself allocated and kept, in bytes."""
    tracemalloc.start()
    fill(pool, size)
    found = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(True, "*/unbroken/*"), tracemalloc.Filter(False, "*/drivers/*")]
    )
    found = found.filter_traces([tracemalloc.Filter(False, "*/unbroken_drill/*")])
    tracemalloc.stop()
    return sum(trace.size for trace in found.traces)


def _busy(seconds: float) -> float:
    before, began = time.process_time(), time.monotonic()
    time.sleep(seconds)
    return (time.process_time() - before) * 1e3 / (time.monotonic() - began)
