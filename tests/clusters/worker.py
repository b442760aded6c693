"""Four clients of one pool in a process of their own, each request written down.

Run by run.py: python -m clusters.worker PLAN. Lines on stdin: ``begin``, ``stats``, ``stop``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from itertools import count
from typing import Any

import unbroken

CLIENTS = 4
POOL = 5
#: Of four clients this one only reads.
READER = 0
THINK = 0.01


class Clients:
    """What both kinds of pool share: statements, and what became of each request."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.driver, self.url = plan["driver"], plan["url"]
        self.settings = {"max_size": POOL, **plan["settings"]}
        self.table = plan["table"]
        self.mysql = self.url.startswith("mysql")
        self.records: list[tuple[Any, ...]] = []
        self.said: dict[str, int] = {}
        self.numbers = count(1)
        self.stopped = threading.Event()

    @property
    def where(self) -> str:
        """Which server answers."""
        if self.mysql:
            return "SELECT CONCAT(@@bind_address, ':', @@port)"
        return "SELECT host(inet_server_addr()) || ':' || inet_server_port()"

    def note(self, number: int) -> str:
        """A write that can be found again."""
        return f"INSERT INTO {self.table} (n) VALUES ({number})"

    def done(
        self, began: float, number: int, writes: bool, server: str, error: Exception | None
    ) -> None:
        """Write a request down."""
        outcome = "ok"
        if error is not None:
            unknown = isinstance(error, unbroken.CommitUnknownError)
            outcome = "unknown" if unknown else "failed"
            line = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.said[line] = self.said.get(line, 0) + 1
        self.records.append((began, time.monotonic(), outcome, writes, number, server))

    def counted(self, stats: Any) -> dict[str, Any]:
        """What the pool has done so far."""
        return {
            "at": time.monotonic(), "opened": stats.opened, "refused": stats.connect_failures,
            "answers": [end for _, end, outcome, *_ in self.records if outcome == "ok"][-1:],
        }  # fmt: skip

    def report(self, stats: Any) -> dict[str, Any]:
        """Everything."""
        return {**self.counted(stats), "records": self.records, "said": self.said}


class Blocking(Clients):
    """Threads and a Pool."""

    def run(self) -> None:
        """Obey."""
        pool: Any = unbroken.Pool(self.url, **self.settings)
        threads = [threading.Thread(target=self._client, args=(pool, n)) for n in range(CLIENTS)]
        for line in sys.stdin:
            match line.strip():
                case "begin":
                    for thread in threads:
                        thread.start()
                    say("going")
                case "stats":
                    say(self.counted(pool.stats()))
                case _:
                    self.stopped.set()
                    end = time.monotonic() + 20.0
                    for thread in threads:
                        thread.join(max(0.0, end - time.monotonic()))
                    hung = sum(thread.is_alive() for thread in threads)
                    say({**self.report(pool.stats()), "hung": hung})

    def _client(self, pool: Any, index: int) -> None:
        while not self.stopped.is_set():
            began, number, server, failed = time.monotonic(), next(self.numbers), "", None
            writes = index != READER
            try:
                server = pool.run(lambda conn, n=number, w=writes: self._unit(conn, n, w))
            except Exception as error:
                failed = error
            self.done(began, number, writes, server, failed)
            time.sleep(THINK)

    def _unit(self, conn: Any, number: int, writes: bool) -> str:
        cursor = conn.cursor()
        cursor.execute(self.where)
        server = str(cursor.fetchone()[0])
        if writes:
            cursor.execute(self.note(number))
        cursor.close()
        return server


class Awaiting(Clients):
    """Tasks and an AsyncPool."""

    async def run(self) -> None:
        """Obey."""
        pool: Any = unbroken.AsyncPool(self.url, **self.settings)
        loop, tasks = asyncio.get_running_loop(), []
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            match line.strip():
                case "begin":
                    tasks = [asyncio.create_task(self._client(pool, n)) for n in range(CLIENTS)]
                    say("going")
                case "stats":
                    say(self.counted(pool.stats()))
                case _:
                    self.stopped.set()
                    _, late = await asyncio.wait(tasks, timeout=20.0)
                    say({**self.report(pool.stats()), "hung": len(late)})

    async def _client(self, pool: Any, index: int) -> None:
        while not self.stopped.is_set():
            began, number, server, failed = time.monotonic(), next(self.numbers), "", None
            writes = index != READER
            try:
                server = await pool.run(lambda conn, n=number, w=writes: self._unit(conn, n, w))
            except Exception as error:
                failed = error
            self.done(began, number, writes, server, failed)
            await asyncio.sleep(THINK)

    async def _unit(self, conn: Any, number: int, writes: bool) -> str:
        if self.driver == "asyncpg":
            server = str(await conn.fetchval(self.where))
            if writes:
                await conn.execute(self.note(number))
            return server
        cursor = await conn.cursor()
        await cursor.execute(self.where)
        server = str((await cursor.fetchone())[0])
        if writes:
            await cursor.execute(self.note(number))
        await cursor.close()
        return server


def say(what: Any) -> None:
    """A line for run.py."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given["driver"] in ("asyncpg", "aiomysql"):
        asyncio.run(Awaiting(given).run())
    else:
        Blocking(given).run()
    os._exit(0)
