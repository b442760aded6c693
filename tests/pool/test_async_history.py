"""AsyncPool: no acknowledged write is lost, none is applied twice, whatever happens to the server meanwhile.

About 15 s for each driver; ``UNBROKEN_SECONDS=60`` for the whole, ``UNBROKEN_SEED`` for another history.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import Any

import unbroken

SECONDS = float(os.environ.get("UNBROKEN_SECONDS", "15"))
SEED = int(os.environ.get("UNBROKEN_SEED", "20"))
TASKS = 8


class History:
    """What the writers were told of each number."""

    def __init__(self, body: Any, pool: unbroken.AsyncPool) -> None:
        self.body, self.pool = body, pool
        self.random = random.Random(SEED)
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.failed: dict[int, BaseException] = {}
        self.faults: Counter[str] = Counter()
        self.stop = False

    async def insert(self, conn: Any, number: int) -> None:
        await self.body.do(conn, f"INSERT INTO numbers VALUES ({number})")
        if number % 3 == 0:  # some take longer, so that they are struck more often
            await self.body.slow(conn, 0.01)
        if number % 7 == 0:
            await self.body.ask(conn, "SELECT COUNT(*) FROM numbers")

    async def write(self, first: int) -> None:
        number = first
        while not self.stop:
            number += TASKS
            try:
                await self.pool.run(self.insert, number)
            except unbroken.CommitUnknownError:
                self.unknown.add(number)
            except Exception as error:
                self.failed[number] = error
            else:
                self.acknowledged.add(number)

    async def harm(self) -> None:
        end = time.monotonic() + SECONDS
        server = self.body.server
        while time.monotonic() < end:
            await asyncio.sleep(self.random.uniform(0.05, 0.6))
            how = self.random.choices(["kill", "kill all", "restart", "crash"], [10, 4, 1, 1])[0]
            self.faults[how] += 1
            if how == "kill":
                for session in self.random.sample(sessions := sorted(self.body.ids()), k=min(2, len(sessions))):
                    await asyncio.to_thread(server._kill_session, session)
            elif how == "kill all":
                await asyncio.to_thread(server.kill_sessions)
            else:
                await asyncio.to_thread(getattr(server, how), self.random.uniform(0.0, 0.8))


def test_every_write_that_was_acknowledged_is_there_once(own_body: Any) -> None:
    body = own_body
    body.table()

    async def main() -> History:
        async with body.pool(max_size=5, acquire_timeout=20.0, outage_wait=20.0) as pool:
            history = History(body, pool)
            writers = [asyncio.create_task(history.write(n)) for n in range(TASKS)]
            await history.harm()
            history.stop = True
            await asyncio.wait_for(asyncio.gather(*writers), 30)
            stats = pool.stats()
            assert (stats.used, stats.waiting) == (0, 0)
            await body.until(lambda: pool.stats().idle == pool.stats().size <= 5)
            await body.until(lambda: not body.close_waits(), 1.0)
            outages = f"{stats.outages} outages of {stats.outage_seconds:.1f} s"
            print(f"\n{body.name}: {stats.replays} replays, {outages}, closed {dict(stats.closed)}")
            return history

    history = body.run(main(), timeout=SECONDS + 60)
    stored = Counter(body.rows())
    print(
        f"{body.name}, seed {SEED}, {SECONDS:.0f} s, {dict(history.faults)}: {len(history.acknowledged)} acknowledged, "
        f"{len(history.unknown)} unknown of which {sum(n in stored for n in history.unknown)} are stored, {len(history.failed)} failed"
    )
    assert [n for n in history.acknowledged if stored[n] != 1] == []
    assert [n for n, times in stored.items() if times > 1] == []
    assert [n for n in stored if n not in history.acknowledged | history.unknown] == []
    assert history.failed == {}  # a user would have seen nothing but the unknown
    assert len(history.acknowledged) > 100
