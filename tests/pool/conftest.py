"""The pools' tests: one face over each driver, so that one suite holds all of them to the same
words.

Tests of the asyncio pool run plain ``asyncio.run`` (:meth:`Body.run`) and not a plugin: the
beginning and the end of a loop are part of what is tested (a pool that is never closed, a second
loop, a loop in another thread), and so is the loop itself (uvloop).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, TypeVar

import psutil
import pytest

import unbroken
from unbroken import Pool
from unbroken.pool import servers
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from . import due

T = TypeVar("T")


class Body:
    """A driver, a server of its kind, and the few statements that the tests need, in that server's
    spelling.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        self.name, self.server, self.loop_factory = name, server, loop_factory
        self.is_mysql = name == "aiomysql"
        self.is_asyncpg = name == "asyncpg"
        self.me = "SELECT CONNECTION_ID()" if self.is_mysql else "SELECT pg_backend_pid()"
        self.tables: list[str] = []
        # what earlier tests left to the collector, of event loops that have ended
        self.others = {each.laddr for each in psutil.Process().net_connections("tcp")}

    def run(self, main: Coroutine[Any, Any, T], timeout: float = 60.0) -> T:
        """As ``asyncio.run``, on the loop under test; what hangs fails after *timeout* seconds."""

        async def bounded() -> T:
            async with asyncio.timeout(timeout):
                return await main

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            return runner.run(bounded())

    def pool(self, *, url: str | None = None, **settings: Any) -> unbroken.AsyncPool:
        return unbroken.AsyncPool(url or self.server.url(self.name), **settings)

    # ---- statements

    async def ask(self, conn: Any, sql: str) -> Any:
        """The first value of the first row."""
        if self.is_asyncpg:
            return await conn.fetchval(sql)
        if self.is_mysql:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
                row = await cursor.fetchone()
        else:
            row = await (await conn.execute(sql)).fetchone()
        return None if row is None else row[0]

    async def do(self, conn: Any, sql: str) -> None:
        """Run *sql*, which gives no rows."""
        if self.is_mysql:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
        else:
            await conn.execute(sql)

    async def who(self, conn: Any) -> int:
        """The server's number of this session."""
        return int(await self.ask(conn, self.me))

    async def slow(self, conn: Any, seconds: float) -> None:
        """A statement that takes that long."""
        await self.ask(
            conn,
            f"SELECT SLEEP({seconds})" if self.is_mysql else f"SELECT pg_sleep({seconds})::text",
        )

    def table(self, name: str = "numbers") -> str:
        """An empty table of one number, dropped after the test."""
        self.server.admin(f"DROP TABLE IF EXISTS {name}")
        self.server.admin(
            f"CREATE TABLE {name} (n BIGINT NOT NULL){' ENGINE=InnoDB' if self.is_mysql else ''}"
        )
        if not self.is_mysql:
            self.server.admin(f"GRANT ALL ON {name} TO {self.server.user}")
        self.tables.append(name)
        return name

    def rows(self, name: str = "numbers") -> list[int]:
        """What is stored for good."""
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {name}"))

    def ids(self) -> set[int]:
        """The application's sessions, by the server's numbers."""
        return {session.id for session in self.server.sessions()}

    # ---- conditions

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Wait until *condition* holds; fail after a deadline."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not true within {seconds} s"
            await asyncio.sleep(0.005)

    async def fill(self, pool: unbroken.AsyncPool, count: int) -> list[int]:
        """Open *count* connections and give them all back: their numbers."""
        conns = await asyncio.gather(*(pool.acquire() for _ in range(count)))
        ids = [await self.who(conn) for conn in conns]
        for conn in conns:
            await pool.release(conn)
        return ids

    async def outcome(self, awaitable: Awaitable[Any]) -> BaseException | None:
        """What *awaitable* raised, or None."""
        try:
            await awaitable
        except Exception as error:
            return error
        return None

    def close_waits(self) -> int:
        """This test's sockets to the server that the other side has closed and we have not."""
        found = psutil.Process().net_connections("tcp")
        return sum(
            c.status == psutil.CONN_CLOSE_WAIT
            and c.laddr not in self.others
            and bool(c.raddr)
            and c.raddr.port == self.server.port
            for c in found
        )

    def close(self) -> None:
        if self.server.is_running:
            for name in self.tables:
                self.server.admin(f"DROP TABLE IF EXISTS {name}")


@pytest.fixture(autouse=True)
def _nothing_is_known_of_any_server() -> None:
    """A process learns a server's idle limit from deaths, and on a busy machine tests that kill
    teach it one of half a second.
    """
    servers._records.clear()


@pytest.fixture(params=["psycopg", "asyncpg", "aiomysql"])
def body(request: pytest.FixtureRequest) -> Iterator[Body]:
    """Each async driver in turn, on the shared server of its kind, without any session that a test
    before has left to the garbage collector.
    """
    made = Body(
        request.param,
        request.getfixturevalue("mariadb" if request.param == "aiomysql" else "postgres"),
    )
    made.server.kill_sessions()
    with contextlib.closing(made):
        yield made


@pytest.fixture(params=["psycopg", "asyncpg", "aiomysql"])
def own_body(request: pytest.FixtureRequest) -> Iterator[Body]:
    """Each async driver in turn, on a server of its own that may be stopped, killed and frozen."""
    made = Body(
        request.param,
        request.getfixturevalue("new_mariadb" if request.param == "aiomysql" else "new_postgres")(),
    )
    with contextlib.closing(made):
        yield made


# -- the blocking pool -----------------------------------------------------------------------------

DRIVERS = ["pymysql", "mysqldb", "psycopg"]
if sysconfig.get_config_var("Py_GIL_DISABLED"):  # mysqlclient brings the lock back
    DRIVERS = ["pymysql", "psycopg", "pg8000"]
_numbers = count(1)
_CYCLE = (
    "pg8000's connections refer to themselves: a forgotten one is found when the collector runs"
)
#: Words of pool tests that pg8000 breaks by its own ways, with or without the interpreter's lock.
NOT_PG8000 = {
    "test_a_forgotten_connection_is_found_without_any_traffic": _CYCLE,
    "test_what_a_forgotten_connection_had_written_is_rolled_back": _CYCLE,
    "test_a_request_that_fails_and_drops_its_connection_costs_nobody_a_place": _CYCLE,
    "test_the_descriptors_number_of_a_forgotten_connection_may_be_in_use_again": _CYCLE,
    "test_reclaim_ends_a_held_connection_and_the_pool_gets_its_place_back": (
        "pg8000 raises when a connection that has ended is closed"
    ),
    "test_a_storm_with_kills_leaves_the_pool_whole": (
        "pg8000 lets a reset through as it came from the system"
    ),
    "test_acquires_while_sessions_are_being_killed_never_get_a_dead_one_twice": (
        "pg8000 lets a reset through as it came from the system"
    ),
}


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait until *condition* is true and give what it gave; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.002)
    return found


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(condition)``: wait until it is true, fail after a deadline."""
    return wait_until


@pytest.fixture
def steadily() -> Callable[[float, Callable[[], Any]], None]:
    """``steadily(0.2, work)``: what *work* shows holds on a machine that has time for this process
    at least every 0.2 s.

    Where it had not, a failure says nothing, and *work* is done again, five times at most.
    """

    def run(most: float, work: Callable[[], Any]) -> None:
        for left in reversed(range(5)):
            over, stalls = threading.Event(), [0.0]
            clock = threading.Thread(target=_measure, args=(over, stalls))
            clock.start()
            try:
                work()
                return
            except AssertionError:
                if max(stalls) <= most or not left:
                    raise
            finally:
                over.set()
                clock.join()

    return run


def _measure(over: threading.Event, stalls: list[float]) -> None:
    while not over.is_set():
        before = time.monotonic()
        time.sleep(0.02)
        stalls.append(time.monotonic() - before)


class Face:
    """One driver on one server, statements in one spelling, pools that are closed in the end."""

    def __init__(self, name: str, server: Server, stack: ExitStack) -> None:
        self.name, self.server, self._stack = name, server, stack
        self.is_mysql = name not in ("psycopg", "pg8000")

    def url(self, **query: object) -> str:
        return self.server.url(self.name, **query)

    def pool(self, url: str | None = None, **settings: Any) -> Pool:
        pool = Pool(url or self.url(), **settings)
        self._stack.callback(pool.close, timeout=0.0)
        return pool

    def proxy(self) -> FaultProxy:
        """A proxy before the server."""
        protocol = "mysql" if self.is_mysql else "postgresql"
        return self._stack.enter_context(
            FaultProxy((self.server.host, self.server.port), protocol=protocol)
        )

    def do(self, conn: Any, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(sql, args or (() if self.name == "pg8000" else None))
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def ask(self, conn: Any, sql: str) -> Any:
        return self.do(conn, sql)[0][0]

    def session(self, conn: Any) -> int:
        return int(
            self.ask(conn, "SELECT CONNECTION_ID()" if self.is_mysql else "SELECT pg_backend_pid()")
        )

    def sleep(self, conn: Any, seconds: float) -> Any:
        return self.do(
            conn, f"SELECT SLEEP({seconds})" if self.is_mysql else f"SELECT pg_sleep({seconds})"
        )

    def table(self) -> str:
        """A new, empty table (n INT) without a key: what is stored twice is there twice."""
        name = f"numbers_{os.getpid()}_{next(_numbers)}"
        self.server.admin(f"CREATE TABLE {name} (n BIGINT)")
        if not self.is_mysql:
            self.server.admin(f'ALTER TABLE {name} OWNER TO "{self.server.user}"')
        self._stack.callback(self._drop, name)
        return name

    def _drop(self, name: str) -> None:
        if self.server.is_running:
            with suppress(Exception):
                self.server.kill_sessions()  # an open transaction would hold the table
            self.server.admin(f"DROP TABLE IF EXISTS {name}")

    def stored(self, table: str) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {table}"))

    def rollbacks(self) -> int:
        """How many ROLLBACKs the server has seen so far (PostgreSQL: transactions that ended
        so).
        """
        if self.is_mysql:
            return int(self.server.admin("SHOW GLOBAL STATUS LIKE 'Com_rollback'")[0][1])
        return int(
            self.server.admin(
                "SELECT pg_stat_clear_snapshot(); SELECT xact_rollback FROM pg_stat_database WHERE"
                " datname = 'shop'"
            )[0][0]
        )


@pytest.fixture
def faces() -> Iterator[Callable[[str, Server], Face]]:
    with ExitStack() as stack:
        yield lambda name, server: Face(name, server, stack)


def _shared(name: str, request: pytest.FixtureRequest) -> Server:
    server: MariaDB | PostgreSQL = request.getfixturevalue(
        "postgres" if name in ("psycopg", "pg8000") else "mariadb"
    )
    return server


def _fitting(request: pytest.FixtureRequest) -> str:
    """The driver in turn, if the test is one for it."""
    name: str = request.param
    if name == "pg8000" and request.node.originalname in NOT_PG8000:
        pytest.skip(NOT_PG8000[request.node.originalname])
    if (
        sysconfig.get_config_var("Py_GIL_DISABLED")
        and "inside_the_locks" in request.node.name
        and "raw" in request.node.name
    ):
        pytest.skip(
            "a fork(2) beside other threads may find Python's own locks taken: docs/pythons.md"
        )
    return name


@pytest.fixture(params=DRIVERS)
def face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on the shared server of its kind."""
    return faces(_fitting(request), _shared(request.param, request))


@pytest.fixture(params=DRIVERS)
def own_face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on a server of its own that may be stopped, killed, frozen and set
    up.
    """
    name = _fitting(request)
    make = request.getfixturevalue(
        "new_postgres" if name in ("psycopg", "pg8000") else "new_mariadb"
    )
    return faces(name, make())


@pytest.fixture
def in_threads() -> Callable[..., list[Any]]:
    """``in_threads(n, fn)``: what ``fn(i)`` gives in *n* threads at once, or the exception that it
    raised.
    """

    def run(n: int, fn: Callable[[int], Any], seconds: float = 60.0) -> list[Any]:
        results: list[Any] = [None] * n

        def one(i: int) -> None:
            try:
                results[i] = fn(i)
            except BaseException as error:
                results[i] = error

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(n)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in threads)
        assert not stuck, f"{stuck} of {n} threads still run after {seconds} s"
        return results

    return run


@pytest.fixture
def script() -> Callable[..., str]:
    """``script(text, *args)``: run it in an interpreter of its own; what it printed.

    Its failure fails the test.
    """

    def run(text: str, *args: object, timeout: float = 60.0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(text), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    return run


# -- answers that are read later -------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[type[Server]], Server]]:
    """Servers by their class, made when they are asked for first."""
    yield from due.servers()


@pytest.fixture(params=due.PAIRS, ids=due.IDS)
def bench(request: pytest.FixtureRequest, server_of: Any) -> Iterator[due.Bench]:
    """Each driver that leaves an answer for later, on each kind of server."""
    with ExitStack() as stack:
        yield due.Bench(request.param[0], server_of(request.param[1]), stack)


@pytest.fixture
def line(
    request: pytest.FixtureRequest, postgres: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy]
) -> Iterator[tuple[PostgreSQL, FaultProxy]]:
    """PostgreSQL with the table that the module calls TABLE, and a proxy before it."""
    table = request.module.TABLE
    postgres.admin(f"DROP TABLE IF EXISTS {table}")
    postgres.admin(f"CREATE TABLE {table} (n INT)")
    postgres.admin(f'ALTER TABLE {table} OWNER TO "{postgres.user}"')
    yield postgres, unbroken_proxy((postgres.host, postgres.port))
    postgres.admin(f"DROP TABLE {table}")
