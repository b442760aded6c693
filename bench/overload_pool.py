"""Open-loop traffic on one AsyncPool and a real PostgreSQL: nine tenths of what it can serve, all
of it, three times as much for six seconds, half of it. Users want their answer within a second.

``python bench/overload_pool.py HOW DRIVER [shed_target]``: HOW is ``web`` (each is a request's
user), ``cancel`` (each is cancelled after a second) or ``silent`` (nobody hears that they left).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from random import Random
from typing import Any

import unbroken
from unbroken.brain.ranks import Rank
from unbroken.pool import callers
from unbroken_drill.servers import PostgreSQL

SIZE, UNIT, PATIENCE = 5, 0.02, 1.0
PHASES = ((0.9, 6.0), (1.0, 4.0), (3.0, 6.0), (0.5, 3.0))

#: When one came, how long it took, and what became of it.
Told = tuple[float, float, str]


class Request:
    """What a web body knows of a request."""

    begun = False


async def work(pool: Any) -> None:
    async with pool.connection(transaction=False) as conn:
        await conn.execute(f"SELECT pg_sleep({UNIT})::text")


async def user(pool: Any, how: str, start: float, found: list[Told]) -> None:
    came = time.perf_counter()
    if how == "web":
        callers.enter((Rank.NORMAL, Request()))
    fate = "served"
    try:
        async with asyncio.timeout(PATIENCE if how == "cancel" else None):
            await work(pool)
    except unbroken.PoolTimeoutError:
        fate = "told"
    except TimeoutError:
        fate = "left"
    found.append((came - start, time.perf_counter() - came, fate))


async def capacity(pool: Any) -> float:
    """Units of work a second, one after the other on each connection."""
    ends, done = time.perf_counter() + 1.5, []

    async def again() -> None:
        while time.perf_counter() < ends:
            await work(pool)
            done.append(1)

    await asyncio.gather(*(again() for _ in range(SIZE)))
    return len(done) / 1.5


def show(factor: float, seconds: float, most: float, found: list[Told]) -> None:
    def p99(took: list[float]) -> float:
        return 1000 * sorted(took)[int(0.99 * len(took))] if took else 0.0

    served = [each for each in found if each[2] == "served"]
    late = [each for each in found if each[0] > 1 and not (each[2] == "served" and each[1] <= 1)]
    in_time = sum(took <= PATIENCE for _, took, _ in served)
    print(
        f"  {factor} ×: in time {in_time / seconds / most:.2f}"
        f", p99 {p99([t for _, t, _ in served]):.0f} ms"
        f" (of those from 1.5 s on {p99([t for came, t, _ in served if came > 1.5]):.0f} ms)"
        f", told after p99 {p99([t for _, t, what in found if what == 'told']):.1f} ms"
        f", {dict(Counter(what for *_, what in found))}; not in time after 1 s: {len(late)}"
    )


async def main(how: str, driver: str, target: str = "") -> None:
    logging.disable(logging.CRITICAL)
    with PostgreSQL() as server:
        url = server.url(driver)
        limit = float(target) if target else None
        async with unbroken.AsyncPool(url, max_size=SIZE, shed_target=limit) as pool:
            most = await capacity(pool)
            print(f"{how}, {driver}, shed_target={limit}: {most:.0f} units a second")
            still: list[asyncio.Task[None]] = []
            results = []
            for factor, seconds in PHASES:
                found: list[Told] = []
                random, start, when = Random(1), time.perf_counter(), 0.0
                tasks = []
                while (when := when + random.expovariate(factor * most)) < seconds:
                    await asyncio.sleep(start + when - time.perf_counter())
                    tasks.append(asyncio.create_task(user(pool, how, start, found)))
                if factor > 1:
                    still = tasks  # the load falls while they wait
                else:
                    await asyncio.gather(*tasks)
                results.append((factor, seconds, most, found))
            await asyncio.gather(*still)
            for each in results:
                show(*each)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
