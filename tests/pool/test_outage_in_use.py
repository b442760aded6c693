"""A server that answers and cannot serve is an outage, whichever connection is told so first."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import unbroken

from ..callers import at_work

#: Callers at a time, and connections at most.
CALLERS, SIZE = 8, 5
#: Seconds for which the server takes no writes.
WINDOW = 2.0


def options(is_mysql: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What makes the server take no writes, and the opposite."""
    if is_mysql:
        return {"read_only": 1}, {"read_only": 0}
    return {"default_transaction_read_only": "on"}, {"default_transaction_read_only": "off"}


class Load:
    """What callers of a pool see while something happens to its server."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.stored: list[int] = []
        self.errors: list[BaseException] = []
        self.at: list[float] = []
        self.slowest = 0.0

    def note(self, number: int, began: float) -> None:
        self.stored.append(number)
        self.at.append(time.monotonic())
        self.slowest = max(self.slowest, self.at[-1] - began)


@contextmanager
def load(pool: Any, insert: Callable[[Any, int], Any], callers: int = CALLERS) -> Iterator[Load]:
    """*callers* threads write as fast as they can."""
    seen = Load()

    def one(caller: int) -> None:
        number = caller
        while not seen.over.is_set():
            began = time.monotonic()
            number += callers
            try:
                pool.run(lambda conn, n=number: insert(conn, n))
            except Exception as exc:
                seen.errors.append(exc)
            else:
                seen.note(number, began)
            time.sleep(0.002)

    with at_work([partial(one, n) for n in range(callers)], seen.over):
        yield seen


def test_a_server_that_takes_no_writes_for_a_while_is_waited_for(own_face: Any, until: Any) -> None:
    face = own_face
    table, pool = face.table(), face.pool(max_size=SIZE)
    off, on = options(face.is_mysql)

    def insert(conn: Any, n: int) -> None:
        face.do(conn, f"INSERT INTO {table} VALUES ({n})")

    with load(pool, insert) as seen:
        until(lambda: len(seen.stored) > 50)
        opened = pool.stats().opened
        face.server.set(**off)
        time.sleep(WINDOW)
        opened = pool.stats().opened - opened
        face.server.set(**on)
        at = time.monotonic()
        until(lambda: seen.at[-1] > at + 0.5)
    assert [str(each) for each in seen.errors] == []
    assert sorted(face.stored(table)) == sorted(seen.stored)
    assert opened <= 3 * SIZE
    assert min(t for t in seen.at if t > at) - at < WINDOW
    stats = pool.stats()
    assert stats.outages == 1
    assert stats.idle == stats.size


def test_a_read_only_server_is_waited_for_on_an_event_loop(own_body: Any) -> None:
    body = own_body
    body.table()
    pool = body.pool(max_size=SIZE)
    is_mysql = "mysql" in pool._driver.target.backend or pool._driver.target.backend == "mariadb"
    off, on = options(is_mysql)
    seen, numbers = Load(), iter(range(10_000))

    async def one() -> None:
        while not seen.over.is_set():
            number, began = next(numbers), time.monotonic()

            async def insert(conn: Any, n: int = number) -> None:
                await body.do(conn, f"INSERT INTO numbers VALUES ({n})")

            try:
                await pool.run(insert)
            except Exception as exc:
                seen.errors.append(exc)
            else:
                seen.note(number, began)
            await asyncio.sleep(0.002)

    async def main() -> float:
        async with pool, asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(one())
            await body.until(lambda: len(seen.stored) > 50)
            await asyncio.to_thread(lambda: body.server.set(**off))
            await asyncio.sleep(WINDOW)
            await asyncio.to_thread(lambda: body.server.set(**on))
            at = time.monotonic()
            await body.until(lambda: seen.at[-1] > at + 0.5)
            seen.over.set()
        return at

    at = body.run(main())
    assert [str(each) for each in seen.errors] == []
    assert sorted(body.rows()) == sorted(seen.stored)
    assert min(t for t in seen.at if t > at) - at < WINDOW


def test_all_warm_connections_leave_a_demoted_server_at_once(own_face: Any, until: Any) -> None:
    face = own_face
    table, pool = face.table(), face.pool(max_size=20, outage_wait=0.5)
    off, on = options(face.is_mysql)
    held = [pool.acquire() for _ in range(20)]
    for conn in held:
        pool.release(conn)
    assert pool.stats().idle == 20
    face.server.set(**off)
    try:
        with pytest.raises(pool._driver.errors):
            pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (1)"))
        closed = pool.stats().closed
        assert closed["drained"] + closed["failover"] >= 20
    finally:
        face.server.set(**on)
    until(lambda: pool.run(lambda conn: face.ask(conn, "SELECT 1")) == 1)


def test_the_applications_own_read_only_transaction_drains_nothing(face: Any) -> None:
    table, pool = face.table(), face.pool(max_size=3)
    held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    begin = "START TRANSACTION READ ONLY" if face.is_mysql else "SET TRANSACTION READ ONLY"

    def work(conn: Any) -> None:
        face.do(conn, begin)
        face.do(conn, f"INSERT INTO {table} VALUES (1)")

    runs = pool.stats().opened
    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert not isinstance(caught.value, unbroken.UnbrokenError)
    stats = pool.stats()
    assert (stats.opened, stats.idle, stats.outages) == (runs, 3, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("57P03", "mine"),
        ("53300", "mine"),
        ("08P01", "query_wait_timeout"),
        ("XX000", "max client connections reached"),
    ],
)
def test_an_application_that_raises_what_servers_say_drains_nothing(
    face: Any, code: str, words: str
) -> None:
    if face.is_mysql:
        pytest.skip("the application's own errors have no mark there")
    pool = face.pool(max_size=3)
    held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    opened, calls = pool.stats().opened, []

    def work(conn: Any) -> None:
        calls.append(1)
        face.do(conn, f"DO $$BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{code}'; END$$")

    with pytest.raises(pool._driver.errors):
        pool.run(work)
    stats = pool.stats()
    assert (len(calls), stats.opened, stats.idle, stats.outages) == (1, opened, 3, 0)


def test_a_write_to_a_server_that_never_took_any_is_the_callers_error(own_face: Any) -> None:
    face = own_face
    table = face.table()
    off, _on = options(face.is_mysql)
    face.server.set(**off)
    pool = face.pool(max_size=3)
    held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    with pytest.raises(pool._driver.errors) as caught:
        pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (1)"))
    assert not isinstance(caught.value, unbroken.UnbrokenError)
    stats = pool.stats()
    assert stats.outages == 0
    assert stats.idle >= 2  # one may have been given up, to look for a server that takes writes


def test_a_pool_for_the_primary_waits_for_one_from_the_beginning(own_face: Any) -> None:
    face = own_face
    table = face.table()
    off, on = options(face.is_mysql)
    face.server.set(**off)
    pool = face.pool(max_size=3, target="primary")
    timer = threading.Timer(0.5, lambda: face.server.set(**on))
    timer.start()
    try:
        pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (1)"))
    finally:
        timer.join()
    assert face.stored(table) == [1]
    pool.close()


def test_after_outage_wait_a_server_that_can_only_be_read_is_better_than_none(
    own_face: Any, until: Any
) -> None:
    face = own_face
    table, pool = face.table(), face.pool(max_size=3, outage_wait=1.0)
    off, on = options(face.is_mysql)
    pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (1)"))
    face.server.set(**off)
    try:
        with pytest.raises(pool._driver.errors):
            pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (2)"))
        for _ in range(5):
            assert pool.run(lambda conn: face.ask(conn, f"SELECT count(*) FROM {table}")) == 1
    finally:
        face.server.set(**on)
    until(lambda: _writes(pool, face, table))


def _writes(pool: Any, face: Any, table: str) -> bool:
    try:
        pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (3)"))
    except pool._driver.errors:
        return False
    return True


def _raised(sqlstate: str, words: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = '{sqlstate}'; END $$"


def _signalled(number: int, words: str) -> str:
    return f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = '{words}'"


#: Statements of an application's own whose errors have the numbers and words of an outage.
OWN_WORDS = {
    "mysql": [
        # the server quotes what it was given
        "SELECT extractvalue('<a/>', concat('~', 'primary is not serving'))",
        _signalled(1047, "WSREP has not yet prepared node for application use"),
        _signalled(1203, "mine"),
        _signalled(9001, "PD server timeout"),
    ],
    "postgresql": [
        _raised("57P03", "the database system is starting up"),
        _raised("53300", "too many connections"),
        _raised("08P01", "server login has been failing, try again later"),
    ],
}


def test_an_error_of_the_callers_own_that_reads_like_an_outage_costs_nobody_else(
    face: Any,
) -> None:
    pool = face.pool(max_size=3, max_replays=3)
    held = [pool.acquire() for _ in range(3)]
    for conn in held:
        pool.release(conn)
    for statement in OWN_WORDS["mysql" if face.is_mysql else "postgresql"]:
        with pytest.raises(pool._driver.errors) as caught:
            pool.run(lambda conn, own=statement: face.do(conn, own))
        assert not isinstance(caught.value, unbroken.UnbrokenError), statement
        stats = pool.stats()
        assert (stats.opened, stats.idle, stats.outages) == (3, 3, 0), statement


def test_a_child_knows_that_the_server_was_the_primary(own_face: Any) -> None:
    face = own_face
    table, pool = face.table(), face.pool(max_size=2)
    off, on = options(face.is_mysql)
    pool.check()
    face.server.set(**off)
    reader, writer = os.pipe()

    def insert(conn: Any) -> None:
        try:
            face.do(conn, f"INSERT INTO {table} VALUES (7)")
        except Exception:
            os.write(writer, b"refused ")
            raise

    pid = os.fork()
    if not pid:
        try:
            pool.run(insert)
            os.write(writer, b"stored")
        except BaseException as exc:
            os.write(writer, repr(exc).encode()[:400])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        assert told.read(8) == b"refused "
        face.server.set(**on)
        rest = told.read()
    os.waitpid(pid, 0)
    assert rest.replace(b"refused ", b"") == b"stored"
    assert face.stored(table) == [7]
