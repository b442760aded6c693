"""One driver's pool in a process of its own, told by lines on stdin what to do, answering each with
a line of JSON.

Run by every_driver.py: python every_driver_worker.py DRIVER URL
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from raw_fork import raw_fork

import unbroken

NAME, URL = sys.argv[1:3]
ASYNC = NAME in ("aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg")
IS_MYSQL = URL.startswith(("mysql", "mariadb"))
ME = "SELECT CONNECTION_ID()" if IS_MYSQL else "SELECT pg_backend_pid()"
SLEEP = "SELECT SLEEP(20)" if IS_MYSQL else "SELECT pg_sleep(20)"
CIPHER = (
    "SHOW STATUS LIKE 'Ssl_cipher'"
    if IS_MYSQL
    else "SELECT '', cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
)
SETTINGS: dict[str, Any] = {"max_size": 3, "acquire_timeout": 20.0, "outage_wait": 20.0}


class Blocking:
    """A ``Pool``."""

    def __init__(self) -> None:
        self.pool: Any = unbroken.Pool(URL, **SETTINGS)

    def ask(self, sql: str = ME, **kwargs: Any) -> Any:
        return self.pool.run(self._one, sql, **kwargs)

    def plainly(self, sql: str = ME) -> Any:
        """Without the replay of a unit of work."""
        with self.pool.connection() as conn:
            return self._one(conn, sql)

    def _one(self, conn: Any, sql: str) -> Any:
        cursor = conn.cursor()
        cursor.execute(sql)
        row = cursor.fetchone()
        cursor.close()
        return row

    def hold(self) -> list[Any]:
        return [self.pool.acquire() for _ in range(3)]

    def sessions(self) -> list[int]:
        held = self.hold()
        found = sorted(self._one(conn, ME)[0] for conn in held)
        for conn in held:
            self.pool.release(conn)
        return found

    def stats(self) -> Any:
        return self.pool.stats()

    def in_child(self, work: Callable[[], Any]) -> Any:
        return work()


class Asyncio(Blocking):
    """An ``AsyncPool``, on one loop for all the parent's scenes."""

    def __init__(self) -> None:
        self.pool = unbroken.AsyncPool(URL, **SETTINGS)
        self.runner = asyncio.Runner()

    def _await(self, work: Any) -> Any:
        return self.runner.run(work)

    def ask(self, sql: str = ME, **kwargs: Any) -> Any:
        return self._await(self.pool.run(self._one_async, sql, **kwargs))

    def plainly(self, sql: str = ME) -> Any:
        async def work() -> Any:
            async with self.pool.connection() as conn:
                return await self._one_async(conn, sql)

        return self._await(work())

    async def _one_async(self, conn: Any, sql: str) -> Any:
        if NAME == "asyncpg":
            return tuple(await conn.fetchrow(sql))
        cursor = (
            (await conn.cursor()) if NAME in ("aiomysql", "mysqlconnector_async") else conn.cursor()
        )
        await cursor.execute(sql)
        row = await cursor.fetchone()
        await cursor.close()
        return row

    def hold(self) -> list[Any]:
        async def work() -> list[Any]:
            return [await self.pool.acquire() for _ in range(3)]

        return self._await(work())

    def sessions(self) -> list[int]:
        async def work() -> list[int]:
            held = [await self.pool.acquire() for _ in range(3)]
            found = sorted([(await self._one_async(conn, ME))[0] for conn in held])
            for conn in held:
                await self.pool.release(conn)
            return found

        return self._await(work())

    def stats(self) -> Any:
        async def work() -> Any:
            return self.pool.stats()

        return self._await(work())

    def in_child(self, work: Callable[[], Any]) -> Any:
        self.runner = asyncio.Runner()  # the parent's loop is the parent's
        return work()


body: Any = Asyncio() if ASYNC else Blocking()


def errors_of(count: int, ask: Callable[[], Any]) -> list[str]:
    found = []
    for _ in range(count):
        try:
            ask()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def warm() -> Any:
    if not body.pool._driver.capabilities.fileno:
        body.pool.check()  # what died less than a second ago it cannot know otherwise
    return body.sessions()


def cipher() -> Any:
    return body.ask(CIPHER)[1]


def burst() -> list[str]:
    """As an application without units of work; a driver that hides its descriptor needs them to see
    no error.
    """
    hidden = not body.pool._driver.capabilities.fileno
    return errors_of(6, body.ask if hidden else body.plainly)


def traffic() -> dict[str, Any]:
    """Units of work, one after the other, until the next line comes."""
    errors: list[str] = []
    asked = 0
    print(json.dumps("going"), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0] or asked < 10:
        errors += errors_of(1, body.ask)
        asked += 1
        time.sleep(0.01)
    errors += errors_of(6, body.ask)  # and when it is back
    sys.stdin.readline()
    return {"errors": errors, "asked": asked}


def frozen() -> dict[str, Any]:
    started = time.monotonic()
    try:
        body.ask(deadline=1.0)
        said = "an answer"
    except Exception as error:
        said = (
            "a TimeoutError: " if isinstance(error, TimeoutError) else ""
        ) + f"{type(error).__name__}: {error}"
    return {"said": said, "took": time.monotonic() - started}


def fork() -> list[str]:
    """What went wrong in forks of both kinds, left in both ways."""
    before = body.sessions()
    wrong = []
    for how, leave in (
        (os.fork, os._exit),
        (os.fork, sys.exit),
        (raw_fork, os._exit),
        (raw_fork, sys.exit),
    ):
        answer = _child(how, leave)
        after = body.sessions()
        if after != before:
            wrong.append(f"the parent's sessions were {before} and are {after}")
        if not answer.isdigit() or int(answer) in before:
            wrong.append(f"the child said {answer}, the parent has {before}")
    return wrong


def _child(how: Callable[[], int], leave: Callable[[int], Any]) -> str:
    reader, writer = os.pipe()
    pid = how()
    if pid == 0:
        faulthandler.dump_traceback_later(20, exit=True)  # says where it hangs, if it does
        _ask_and_tell(writer)
        leave(0)  # what it does at its exit may hang too
    os.close(writer)
    with open(reader) as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return answer


def one_child(way: str) -> dict[str, Any]:
    """A child of the kind that *way* says: its exit status, and the session that it asked."""
    if way == "multiprocessing":
        reader, writer = os.pipe()
        process = multiprocessing.get_context("fork").Process(target=_ask_and_tell, args=(writer,))
        process.start()
        os.close(writer)
        with open(reader) as file:
            said = file.read()
        process.join(20)
        return {"status": process.exitcode, "session": int(said or 0)}
    how, leave = (raw_fork if "raw" in way else os.fork), (os._exit if "_exit" in way else sys.exit)
    inherited = [] if ASYNC else [entry.conn for entry in body.pool._state.kernel.entries.values()]
    reader, writer = os.pipe()
    pid = how()
    if pid == 0:
        faulthandler.dump_traceback_later(20, exit=True)
        if "closes its parent's" in way:
            for conn in inherited:
                body.pool._driver.close(conn)
        del inherited[:]
        if way == "never touches the pool":
            gc.collect()
        elif "and that is all" not in way:
            _ask_and_tell(writer)
        leave(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "session": int(said or 0)}


def _ask_and_tell(writer: int) -> None:
    try:
        answer = str(body.in_child(body.ask)[0])
    except BaseException as error:
        answer = repr(error)
    os.write(writer, answer.encode())
    os.close(writer)


def forget() -> list[str]:
    before = body.stats().leaked
    held = body.hold()
    held.clear()
    gc.collect()
    wrong = errors_of(5, body.ask)
    deadline = time.monotonic() + 10
    while (leaked := body.stats().leaked - before) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
        body.ask()
    return wrong + ([] if leaked == 3 else [f"{leaked} forgotten connections were reported"])


COMMANDS = {
    each.__name__: each for each in (warm, cipher, burst, traffic, frozen, fork, one_child, forget)
}

for line in sys.stdin:
    command, _, argument = line.strip().partition(" ")
    try:
        answer = COMMANDS[command](*[argument] * bool(argument))
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
