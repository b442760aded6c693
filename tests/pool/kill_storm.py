"""What replays add to the load of a server that ends every second connection that works.

    PYTHONPATH=tests python tests/pool/kill_storm.py [--seconds 60] [psycopg pymysql asyncpg ...]

Callers run units of work, one after the other, on a pool of 8. A unit counts itself at the server,
in a sequence that no ROLLBACK turns back, stores one row and works for 15 ms. Meanwhile one
session in two that a unit has begun on is killed, at a random moment of that time. Each unit is one
request; *attempts* are those that were begun, *at the server* those that it has counted.
*wrong* are requests whose row, at the end, is not what their caller was told.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pymysql

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL

SIZE, CALLERS = 8, 16
#: Seconds that a unit works.
WORK = 0.015
ASYNC = ("asyncpg", "aiomysql")
NOTE = "no replay: budget"


@dataclass
class Report:
    """One storm's figures."""

    requests: int = 0
    attempts: int = 0
    at_the_server: int = 0
    kills: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    #: seconds from the last kill to the last error, and to a success of each caller
    recovered: float = 0.0
    longest: float = 0.0  #: the longest request
    stats: Any = None

    @property
    def ratio(self) -> float:
        return self.attempts / self.requests

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.attempts} attempts ({self.at_the_server} at the"
            f" server): {self.ratio:.3f}; {self.kills} kills; {dict(self.ends)}; {self.wrong}"
            f" wrong; well after {self.recovered:.2f} s; the longest took {self.longest:.2f} s"
        )


class Storm:
    """One server, one pool, and its callers."""

    def __init__(self, server: Any, driver: str, seconds: float, **settings: Any) -> None:
        self.server, self.driver, self.seconds = server, driver, seconds
        self.is_pg = server.backend == "postgresql"
        self.settings = {"max_size": SIZE, **settings}
        self.numbers, self.runs = itertools.count(1), itertools.count()
        self.told: dict[int, str] = {}
        self.report = Report()
        self.over = threading.Event()
        self.killed_at = 0.0
        self.failed_at = 0.0
        self.well: set[int] = set()
        self.doomed: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self.is_over = False

    def play(self) -> Report:
        """The whole of it."""
        admin = self.server.admin
        admin("DROP TABLE IF EXISTS storm_rows")
        admin("DROP SEQUENCE IF EXISTS storm_attempts")
        admin("CREATE SEQUENCE storm_attempts")
        admin("CREATE TABLE storm_rows (n BIGINT)")
        if self.is_pg:
            admin(f"GRANT ALL ON storm_rows TO {self.server.user}")
            admin(f"GRANT ALL ON SEQUENCE storm_attempts TO {self.server.user}")
        callers = threading.Thread(target=self._call)
        callers.start()
        try:
            self._kill()
        finally:
            self.over.set()
            callers.join()
        report = self.report
        report.requests, report.attempts = len(self.told), next(self.runs)
        last = "SELECT last_value FROM storm_attempts"
        ((counted,),) = admin(last if self.is_pg else "SELECT NEXTVAL(storm_attempts) - 1")
        report.at_the_server = int(counted)
        report.ends = Counter(self.told.values())
        report.recovered = max(0.0, self.failed_at - self.killed_at)
        rows = Counter(int(n) for (n,) in admin("SELECT n FROM storm_rows"))
        may_be = {"done": (1,), "unknown": (0, 1)}
        report.wrong = sum(rows[n] not in may_be.get(how, (0,)) for n, how in self.told.items())
        report.wrong += len(set(rows) - set(self.told))
        admin("DROP TABLE storm_rows")
        admin("DROP SEQUENCE storm_attempts")
        return report

    # -- the server

    def _kill(self) -> None:
        """End the sessions that lost the toss, each at its moment."""
        end, left = time.monotonic() + self.seconds, list[tuple[float, int]]()
        with closing(self._admin()) as admin:
            while time.monotonic() < end:
                with suppress(queue.Empty):
                    left.append(self.doomed.get(timeout=0.002))
                now = time.monotonic()
                for when, number in [each for each in left if each[0] <= now]:
                    left.remove((when, number))
                    self._end(admin, number)
        self.is_over, self.killed_at = True, time.monotonic()
        # until everybody was served again, and for a second at the least
        while time.monotonic() < self.killed_at + 20.0 and (
            len(self.well) < CALLERS or time.monotonic() < self.killed_at + 1.0
        ):
            time.sleep(0.01)

    def _admin(self) -> Any:
        server = self.server
        given = {
            "host": server.host, "port": server.port, "user": server.user,
            "password": server.password,
        }  # fmt: skip
        if self.is_pg:
            return psycopg.connect(**given, dbname=server.database, autocommit=True)
        return pymysql.connect(**given, database=server.database, autocommit=True)

    def _end(self, admin: Any, number: int) -> None:
        kill = f"SELECT pg_terminate_backend({number})" if self.is_pg else f"KILL {number}"
        with suppress(pymysql.Error), admin.cursor() as cursor:  # it has ended already
            cursor.execute(kill)
            self.report.kills += 1

    def _toss(self, number: int) -> None:
        """A unit begins on the session *number*."""
        next(self.runs)
        if not self.is_over and random.random() < 0.5:
            self.doomed.put((time.monotonic() + random.uniform(0.0, WORK), number))

    # -- the callers

    @property
    def statements(self) -> tuple[str, str]:
        if self.is_pg:
            return "SELECT nextval('storm_attempts')", f"SELECT pg_sleep({WORK})"
        return "SELECT NEXTVAL(storm_attempts)", f"SELECT SLEEP({WORK})"

    def _ended(self, who: int, number: int, began: float, error: BaseException | None) -> None:
        now = time.monotonic()
        self.report.longest = max(self.report.longest, now - began)
        if error is None:
            self.told[number] = "done"
            if self.is_over and self.killed_at < began:
                self.well.add(who)
            return
        self.failed_at = now
        self.well.discard(who)
        if isinstance(error, unbroken.CommitUnknownError):
            self.told[number] = "unknown"
        elif any(NOTE in note for note in getattr(error, "__notes__", [])):
            self.told[number] = NOTE
        else:
            notes = " ".join(getattr(error, "__notes__", []))
            why = "twice" if "that statement ends its session" in notes else "other"
            self.told[number] = why if why == "twice" else f"{type(error).__name__} {notes[:80]}"

    def _call(self) -> None:
        if self.driver in ASYNC:
            asyncio.run(self._call_async())
            return
        url = self.server.url(self.driver)
        with unbroken.Pool(url, **self.settings) as pool:
            threads = [
                threading.Thread(target=self._caller, args=(pool, i)) for i in range(CALLERS)
            ]
            [each.start() for each in threads]
            [each.join() for each in threads]
            self.report.stats = pool.stats()

    def _caller(self, pool: Any, who: int) -> None:
        count, work = self.statements

        def unit(conn: Any, number: int) -> None:
            self._toss(conn.thread_id() if not self.is_pg else conn.info.backend_pid)
            cursor = conn.cursor()
            for sql in (count, f"INSERT INTO storm_rows VALUES ({number})", work):
                cursor.execute(sql)

        while not self.over.is_set():
            number, began, error = next(self.numbers), time.monotonic(), None
            try:
                pool.run(unit, number)
            except Exception as exc:
                error = exc
            self._ended(who, number, began, error)

    async def _call_async(self) -> None:
        count, work = self.statements

        async def send(conn: Any, sql: str) -> None:
            if self.driver == "asyncpg":
                await conn.fetch(sql)
                return
            async with conn.cursor() as cursor:
                await cursor.execute(sql)

        async def unit(conn: Any, number: int) -> None:
            self._toss(conn.get_server_pid() if self.is_pg else conn.thread_id())
            for sql in (count, f"INSERT INTO storm_rows VALUES ({number})", work):
                await send(conn, sql)

        async def caller(who: int) -> None:
            while not self.over.is_set():
                number, began, error = next(self.numbers), time.monotonic(), None
                try:
                    await pool.run(unit, number)
                except Exception as exc:
                    error = exc
                self._ended(who, number, began, error)

        async with unbroken.AsyncPool(self.server.url(self.driver), **self.settings) as pool:
            await asyncio.gather(*(caller(i) for i in range(CALLERS)))
            self.report.stats = pool.stats()


def storm(server: Any, driver: str, seconds: float, **settings: Any) -> Report:
    """The figures of one storm."""
    return Storm(server, driver, seconds, **settings).play()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("drivers", nargs="*", default=["psycopg", "pymysql"])
    given = parser.parse_args()
    make: Callable[[], Any]
    for driver in given.drivers:
        make = MariaDB if driver in ("pymysql", "mysqldb", "aiomysql") else PostgreSQL
        with make() as server:
            for budget in (0.2, "off"):
                report = storm(server, driver, given.seconds, retry_budget=budget)
                print(f"{driver}, retry_budget={budget}: {report}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
