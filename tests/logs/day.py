"""A day of log in small, on a real server: a kill, a restart, an outage with many callers, a leak,
a fork, replays. Prints what is logged at INFO and above.

From a shell: PYTHONPATH=tests python -m logs.day --outage 60 --rate 100
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Barrier

import unbroken
from unbroken import logs
from unbroken_drill.servers import PostgreSQL


class Lines(logging.Handler):
    """Keeps each line, also of forked children, in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path, self.began = path, time.monotonic()
        path.touch()

    def emit(self, record: logging.LogRecord) -> None:
        at = time.monotonic() - self.began
        line = f"{at:7.2f} {record.levelname:7} {record.name}: {record.getMessage()}"
        with self.path.open("a") as file:
            file.write(line + "\n")

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()


@contextmanager
def listening(path: Path) -> Iterator[Lines]:
    logger, handler = logging.getLogger("unbroken"), Lines(path)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def wait_until(is_so: Callable[[], bool], limit: float = 30.0) -> None:
    until = time.monotonic() + limit
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def killed(pool: unbroken.Pool, server: PostgreSQL, callers: int) -> None:
    """*callers* units are under way when all sessions are killed; then as many plain
    transactions.
    """
    ready = Barrier(callers + 1)

    def unit(conn, seen):
        conn.execute("INSERT INTO t VALUES (1)")
        if not seen:
            seen.append(1)
            ready.wait()
            ready.wait()
        conn.execute("INSERT INTO t VALUES (2)")

    def plain():
        with pool.connection() as conn:
            unit(conn, [])

    for work in (lambda: pool.run(unit, []), plain):
        with ThreadPoolExecutor(callers) as threads:
            going = [threads.submit(work) for _ in range(callers)]
            ready.wait()
            server.kill_sessions()
            ready.wait()
            for each in going:
                with suppress(pool._driver.errors):
                    each.result(30)


def forked(pool: unbroken.Pool) -> None:
    """A child uses its parent's pool."""
    with pool.connection() as conn:
        conn.execute("SELECT 1")
    child = os.fork()
    if child == 0:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def leaked(pool: unbroken.Pool, lines: Lines) -> None:
    """A connection is held for longer than leak_after."""
    with pool.connection():
        wait_until(lambda: any("has been held for" in line for line in lines.lines()))


async def away(url: str, server: PostgreSQL, seconds: float, rate: float) -> Counter[str]:
    """The server is away for so many *seconds*, and so many callers a second come. Gives what they
    were told, by its class.
    """
    told: Counter[str] = Counter()

    async def caller() -> None:
        try:
            async with pool.connection() as conn:
                await conn.execute("SELECT 1")
            told["well"] += 1
        except unbroken.UnbrokenError as error:
            told[type(error).__name__] += 1

    async with unbroken.AsyncPool(url, max_size=5, outage_wait=min(2.0, seconds / 3)) as pool:
        await caller()
        await asyncio.to_thread(server.stop)
        async with asyncio.TaskGroup() as callers:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                callers.create_task(caller())
                await asyncio.sleep(1.0 / rate)
            await asyncio.to_thread(server.start)
        await caller()
    return told


def day(
    path: Path, *, outage: float, rate: float, callers: int, leak_after: float = 2.0
) -> tuple[list[str], Counter[str]]:
    """The lines, and what the callers of the outage were told."""
    logs.forget()
    with (
        listening(path) as lines,
        PostgreSQL() as server,
        unbroken.Pool(server.url("psycopg"), max_size=callers, leak_after=leak_after) as pool,
    ):
        with pool.connection() as conn:
            conn.execute("CREATE TABLE t (i int)")
        killed(pool, server, callers)
        forked(pool)
        leaked(pool, lines)
        server.restart()
        pool.run(lambda conn: conn.execute("SELECT 1"))
        told = asyncio.run(away(server.url("psycopg"), server, outage, rate))
        pool.run(lambda conn: conn.execute("SELECT 1"))
        wait_until(lambda: logs._allowance.due == float("inf"), 60.0)
    return lines.lines(), told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m logs.day", description=__doc__)
    parser.add_argument("--outage", type=float, default=60.0, help="seconds")
    parser.add_argument("--rate", type=float, default=100.0, help="callers a second")
    parser.add_argument("--callers", type=int, default=10, help="at the kill")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        lines, told = day(path, outage=given.outage, rate=given.rate, callers=given.callers)
    print("\n".join(lines))
    print(f"{len(lines)} lines; callers in the outage: {dict(told)}")


if __name__ == "__main__":
    main()
