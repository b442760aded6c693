"""What a pool costs while nobody uses it: processor time, and memory for each idle connection beside the driver's own."""

from __future__ import annotations

import time
import tracemalloc

from measure import Effort, Result, Row, Table

import unbroken
from unbroken.testing.servers import PostgreSQL

SIZES = (10, 100)
WATCHED = 3.0


def run(_effort: Effort) -> Result:
    """With 10 and 100 idle connections."""
    busy, memory = [], []
    with PostgreSQL({"max_connections": max(SIZES) + 20}) as server:
        for size in SIZES:
            with unbroken.Pool(server.url("psycopg"), max_size=size) as pool:
                memory.append(Row(f"unbroken, {size} idle", _fill(pool, size) / size))
                busy.append(Row(f"unbroken, {size} idle", _busy(WATCHED)))
    return Result(
        [
            Table("Processor time of an idle pool", "ms per s", busy),
            Table("Memory of an idle connection, without the driver's", "bytes", memory, note="Python objects, by tracemalloc."),
        ]
    )


def _fill(pool: unbroken.Pool, size: int) -> int:
    """Open *size* connections; what the pool itself allocated and kept, in bytes."""
    tracemalloc.start()
    taken = [pool.acquire() for _ in range(size)]
    for conn in taken:
        pool.release(conn)
    del taken
    found = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/unbroken/*"), tracemalloc.Filter(False, "*/drivers/*")])
    tracemalloc.stop()
    return sum(trace.size for trace in found.traces)


def _busy(seconds: float) -> float:
    before, began = time.process_time(), time.monotonic()
    time.sleep(seconds)
    return (time.process_time() - before) * 1e3 / (time.monotonic() - began)
