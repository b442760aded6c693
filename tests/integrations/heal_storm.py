"""What an application without units of work sees while its server's sessions are killed.

    python tests/integrations/heal_storm.py [--seconds 10] [body ...]

Eight threads (or tasks) send requests one after the other, on a real server whose sessions are
killed all the time. A request is one statement (a read; a write in a transaction) or three in a
transaction. Each failure is told apart by the statement at which it came: *first* must not happen,
*later* is an error that has a note, *commit* is a COMMIT without an answer. *silent* counts errors
without a note. *wrong* counts requests whose rows, at the end, are not what they were told.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL

WORKERS = 8
_numbers = itertools.count(1)


class Django:
    """An alias of a Django site, without middleware."""

    def __init__(self, server: Any) -> None:
        import django
        from django.conf import settings
        from django.db import connections, transaction

        if not settings.configured:
            settings.configure(DATABASES={}, USE_TZ=True)
            django.setup()
        kind = "postgresql" if server.backend == "postgresql" else "mysql"
        given = {
            "ENGINE": f"unbroken.django.{kind}", "NAME": server.database, "USER": server.user,
            "PASSWORD": server.password, "HOST": server.host, "PORT": server.port,
        }  # fmt: skip
        self.alias = f"storm{next(_numbers)}"
        connections.settings[self.alias] = connections.configure_settings(
            {"default": {}, self.alias: given}
        )[self.alias]
        self.connections, self.atomic = connections, transaction.atomic

    def request(self, work: Callable[[Callable[[str], Any]], None], atomic: bool) -> None:
        connection = self.connections[self.alias]

        def send(sql: str) -> None:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                if cursor.description:
                    cursor.fetchall()

        try:
            if not atomic:
                return work(send)
            with self.atomic(using=self.alias):
                return work(send)
        finally:
            connection.close()

    def stats(self) -> Any:
        return self.connections[self.alias].unbroken_pool.stats()


class Peewee:
    """A database of unbroken.peewee's, without units."""

    drivers = ("pymysql", "psycopg")

    def __init__(self, server: Any) -> None:
        import unbroken.peewee

        driver = self.drivers[server.backend == "postgresql"]
        self.db = unbroken.peewee.connect(server.url(driver))

    def request(self, work: Callable[[Callable[[str], Any]], None], atomic: bool) -> None:
        def send(sql: str) -> None:
            cursor = self.db.execute_sql(sql)
            if cursor.description:
                cursor.fetchall()

        with self.db.connection_context():
            if not atomic:
                return work(send)
            with self.db.atomic():
                return work(send)

    def stats(self) -> Any:
        return self.db.stats()


class AsyncPeewee(Peewee):
    """The same for asyncio: each thread's requests are tasks on one loop."""

    drivers = ("aiomysql", "asyncpg")

    def __init__(self, server: Any) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        super().__init__(server)

    def request(self, work: Callable[[Callable[[str], Any]], None], atomic: bool) -> None:
        async def task() -> None:
            try:
                await self.db.run(super(AsyncPeewee, self).request, work, atomic)
            finally:
                await self.db.aclose()

        asyncio.run_coroutine_threadsafe(task(), self.loop).result(60)

    def stats(self) -> Any:
        async def ask() -> Any:
            return self.db.stats()

        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result(60)


BODIES = {"django": Django, "peewee": Peewee, "async-peewee": AsyncPeewee}


def requests(number: int) -> dict[str, tuple[bool, list[str]]]:
    """The kinds of requests: whether in a transaction, and the statements."""
    insert = f"INSERT INTO storm (n) VALUES ({number})"
    return {
        "a read": (False, ["SELECT count(*) FROM storm WHERE n = 1"]),
        "a write in a transaction": (True, [insert]),
        "three in a transaction": (
            True,
            [insert, "SELECT count(*) FROM storm WHERE n = 1", insert],
        ),
    }


def storm(name: str, server: Any, seconds: float, kind: str) -> tuple[Counter[str], int]:
    """Requests of one kind: how they ended, and how many have other rows than they were told."""
    server.admin("DROP TABLE IF EXISTS storm")
    server.admin("CREATE TABLE storm (n int)")
    server.admin(f"GRANT ALL ON storm TO {server.user}") if server.backend == "postgresql" else None
    body: Any = BODIES[name](server)
    ends: Counter[str] = Counter()
    told: dict[int, str] = {}
    until = time.monotonic() + seconds

    def one(number: int) -> str:
        atomic, statements = requests(number)[kind]
        at = 0

        def work(send: Callable[[str], Any]) -> None:
            nonlocal at
            for sql in statements:
                at += 1
                send(sql)
            at += 1

        try:
            body.request(work, atomic)
        except Exception as error:
            if at > len(statements):
                unknown = isinstance(error, unbroken.CommitUnknownError)
                return "commit, unknown" if unknown else "commit, not sent"
            where, notes = "first" if at == 1 else "later", getattr(error, "__notes__", [])
            why = re.search("did not run this statement again: (.*?)[;:]", " ".join(notes))
            if why is None:
                return f"{where}, silent: {type(error).__name__} {str(error)[:60]}"
            return f"{where}: {why.group(1)}" if at == 1 else where
        return "done"

    def worker() -> None:
        while time.monotonic() < until:
            number = next(_numbers)
            how = told[number] = one(number)
            ends[how] += 1

    threads = [threading.Thread(target=worker) for _ in range(WORKERS)]
    [thread.start() for thread in threads]
    kills = 0
    while time.monotonic() < until:
        time.sleep(random.uniform(0.1, 0.4))
        kills += server.kill_sessions()
    [thread.join() for thread in threads]
    ends["healed"], ends["kills"] = body.stats().healed, kills
    rows = Counter(int(n) for (n, *_rest) in server.admin("SELECT n FROM storm"))
    each = sum("INSERT" in sql for sql in requests(0)[kind][1])
    wrong = [
        n for n, how in told.items()
        if rows[n] not in {"done": (each,), "commit, unknown": (0, each)}.get(how, (0,))
    ]  # fmt: skip
    return ends, len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("bodies", nargs="*", default=list(BODIES))
    given = parser.parse_args()
    for server in (MariaDB(), PostgreSQL()):
        with server:
            for name in given.bodies:
                for kind in requests(0):
                    ends, wrong = storm(name, server, given.seconds, kind)
                    print(f"{server.backend:10} {name:12} {kind:25} {dict(ends)}; {wrong} wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
