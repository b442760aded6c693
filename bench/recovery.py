"""How long after a restarted server accepts until the first request succeeds.

Four threads go on asking all the while.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from measure import Effort, Result, Row, Table, Target

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, ServerError, available

THREADS = 4
DOWN = 1.5


def run(effort: Effort) -> Result:
    """A stop, 1.5 s of absence, a start; the median of some."""
    rows, targets = [], []
    for kind, driver in ((PostgreSQL, "psycopg"), (MariaDB, "pymysql")):
        if available(kind.backend) is not None:
            continue
        with (
            kind() as server,
            unbroken.Pool(server.url(driver), max_size=THREADS, connect_timeout=2.0) as pool,
        ):
            found = [_one_restart(server, pool) for _ in range(effort.repeats)]
        name = f"unbroken, {driver}, {kind.backend}"
        rows.append(Row(name, min(found), statistics.median(found)))
        targets.append(
            Target(
                f"recovery, {name}: first success at most 50 ms after the server accepts",
                statistics.median(found) * 1e3,
                50,
                "ms",
            )
        )
    note = (
        f"Median of {effort.repeats}; {THREADS} threads; {DOWN} s down. 0: earlier than a prober"
        " that asks each millisecond."
    )
    return Result(
        [Table("From the moment the server accepts to the first success", "ms", rows, note=note)],
        targets,
    )


def _one_restart(server: Server, pool: unbroken.Pool) -> float:
    """Seconds. A prober of our own, in a tight loop, says when the server accepts."""
    stop = threading.Event()
    successes: list[float] = []
    threads = [
        threading.Thread(target=_ask, args=(pool, successes, stop), daemon=True)
        for _ in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    _until(lambda: len(successes) > 100)
    server.stop()
    time.sleep(DOWN)
    successes.clear()
    accepted: list[float] = []
    prober = threading.Thread(target=_probe, args=(server, accepted), daemon=True)
    prober.start()
    server.start()
    prober.join(10.0)
    _until(lambda: bool(successes))
    stop.set()
    for thread in threads:
        thread.join(10.0)
    return max(0.0, successes[0] - accepted[0])


def _ask(pool: unbroken.Pool, successes: list[float], stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(Exception):
            # what was under way when the server stopped fails; that is not the question here
            with pool.connection() as conn, contextlib.closing(conn.cursor()) as cursor:
                cursor.execute("SELECT 1")
                cursor.fetchall()
            successes.append(time.monotonic())


def _probe(server: Server, accepted: list[float]) -> None:
    while True:
        with contextlib.suppress(ServerError, OSError):
            server.admin("SELECT 1", timeout=1.0)
            accepted.append(time.monotonic())
            return
        time.sleep(0.001)


def _until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"nothing came within {seconds} s")
        time.sleep(0.001)
