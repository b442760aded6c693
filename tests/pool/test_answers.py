"""The answer to the COMMIT or ROLLBACK that a pool sends when a connection goes back, and does not
wait for: with each driver of MySQL that can, on real servers.

Between the going back and the next use anything may happen to the connection; whatever it is,
nobody gets another's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

import unbroken
from unbroken.drivers import open_driver
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, MySQL, Server

from .answering import relay_to
from .conftest import wait_until
from .every_driver import url_of

ASYNC = ("aiomysql", "asyncmy")
#: Each driver that can leave an answer for later.
DRIVERS = ["pymysql", "mysqldb", "aiomysql", "asyncmy"]
if find_spec("MySQLdb") is None:  # which has no release for free-threaded Pythons
    DRIVERS.remove("mysqldb")
OPTIONS = {"local_infile": 1, "max_allowed_packet": 64 << 20}
#: one way, in seconds; long, so that a slow machine counts the same round trips
FAR = 0.015


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[type[Server]], Server]]:
    """A server of each kind, with a certificate, files and long statements."""
    made: dict[type[Server], Server] = {}
    with ExitStack() as stack:

        def server(kind: Any) -> Server:
            if kind not in made:
                made[kind] = stack.enter_context(kind(OPTIONS, tls=True))
                for sql in (
                    "CREATE TABLE stock (n INT) ENGINE=InnoDB",
                    "INSERT INTO stock VALUES (1), (2), (3)",
                    "CREATE TABLE sold (n INT) ENGINE=InnoDB",
                    "CREATE PROCEDURE two() BEGIN SELECT 1; SELECT 2; END",
                ):
                    made[kind].admin(sql)
            return made[kind]

        yield server


class Bench:
    """A driver's pools on one server, used from a test that is no coroutine."""

    def __init__(self, name: str, server: Server, stack: ExitStack) -> None:
        self.name, self.server, self.stack = name, server, stack
        self.is_async = name in ASYNC
        self.driver: Any = open_driver(self.url(), is_async=self.is_async)
        self._runner = stack.enter_context(asyncio.Runner()) if self.is_async else None

    def wait(self, value: Any) -> Any:
        """What *value*, which may have to be awaited, gives."""
        if not inspect.isawaitable(value):
            return value

        async def bounded() -> Any:
            async with asyncio.timeout(30.0):
                return await value

        assert self._runner is not None
        return self._runner.run(bounded())

    def rest(self, seconds: float) -> None:
        """Let time pass; an event loop reads what comes meanwhile."""
        self.wait(asyncio.sleep(seconds)) if self.is_async else time.sleep(seconds)

    def url(self, *, tls: bool = False, **query: object) -> str:
        return url_of(self.server, self.name, tls or isinstance(self.server, MySQL), **query)

    @property
    def has_tls(self) -> bool:
        """Whether :meth:`url` leads over TLS."""
        return self.name == "pymysql" or isinstance(self.server, MySQL)

    def pool(self, url: str | None = None, **settings: Any) -> Any:
        kind: Any = unbroken.AsyncPool if self.is_async else unbroken.Pool
        pool = kind(url or self.url(), **{"max_size": 1, "ping_timeout": 1.0, **settings})
        self.stack.callback(lambda: self.wait(pool.close(timeout=0.0)))
        return pool

    def proxy(self) -> FaultProxy:
        address = (self.server.host, self.server.port)
        return self.stack.enter_context(FaultProxy(address, protocol="mysql"))

    def take(self, pool: Any) -> Any:
        return self.wait(pool.acquire())

    def give(self, pool: Any, conn: Any) -> None:
        self.wait(pool.release(conn))

    @contextlib.contextmanager
    def lent(self, pool: Any, **how: Any) -> Iterator[Any]:
        lease = pool.connection(**how)
        if not self.is_async:
            with lease as conn:
                yield conn
            return
        conn = self.wait(lease.__aenter__())
        try:
            yield conn
        except BaseException as error:
            self.wait(lease.__aexit__(type(error), error, None))
            raise
        self.wait(lease.__aexit__(None, None, None))

    async def _do(self, conn: Any, sql: str) -> Any:
        async with conn.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    def do(self, conn: Any, sql: str) -> Any:
        """The rows."""
        if self.is_async:
            return self.wait(self._do(conn, sql))
        with contextlib.closing(conn.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def ask(self, conn: Any, sql: str) -> Any:
        return self.do(conn, sql)[0][0]

    def me(self, conn: Any) -> int:
        return int(self.ask(conn, "SELECT CONNECTION_ID()"))

    def state(self, pool: Any) -> Any:
        return pool._home[1] if self.is_async else pool._state

    def is_due(self, pool: Any) -> bool:
        state = self.state(pool)
        return any(state.is_due(entry, entry.conn) for entry in state.idle)

    def use(self, pool: Any) -> int:
        """One use that leaves an answer due: the session."""
        conn = self.take(pool)
        session = self.me(conn)
        self.do(conn, "SELECT n FROM stock FOR UPDATE")
        self.give(pool, conn)
        return session

    def due(self, pool: Any) -> int:
        """As :meth:`use`, on a connection of which an answer was seen before."""
        self.use(pool)
        session = self.use(pool)
        assert self.is_due(pool)
        return session

    def answers_its_own(self, pool: Any) -> int:
        """Three uses get their own answers: the session of the last."""
        for number in range(7001, 7004):
            with self.lent(pool) as conn:
                assert self.ask(conn, f"SELECT {number}") == number
                session = self.me(conn)
                self.do(conn, "SELECT n FROM stock")
        return session

    def sold(self) -> int:
        """So many rows are stored; none afterwards."""
        count = int(self.server.admin("SELECT COUNT(*) FROM sold")[0][0])
        self.server.admin("TRUNCATE sold")
        return count


PAIRS = [
    pytest.param((name, kind), id=f"{name}-{kind.__name__}")
    for name in DRIVERS
    for kind in (MariaDB, MySQL)
]


@pytest.fixture(params=PAIRS)
def bench(request: pytest.FixtureRequest, server_of: Any) -> Iterator[Bench]:
    """Each driver, on each kind of server."""
    with ExitStack() as stack:
        yield Bench(request.param[0], server_of(request.param[1]), stack)


# -- round trips and locks -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["acquire", "no transaction", "connection", "insert"])
def test_a_read_costs_one_round_trip_and_a_write_two(bench: Bench, how: str) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()))
    bench.due(pool)
    hidden = bench.state(pool).hidden
    hidden.answer, hidden.wanted = "", False  # no SELECT calls anything that writes

    def once() -> None:
        if how == "acquire":
            conn = bench.take(pool)
            bench.do(conn, "SELECT n FROM stock")
            bench.give(pool, conn)
            return
        with bench.lent(pool, transaction=how != "no transaction") as conn:
            bench.do(
                conn, "INSERT INTO sold VALUES (1)" if how == "insert" else "SELECT n FROM stock"
            )

    proxy.latency(FAR)
    once()
    right = 4 * (2 if how == "insert" or not bench.driver.pipelines else 1)
    counts: list[int] = []
    while right not in counts and len(counts) < 4:
        # a pause of this machine may cost one more now and then
        before = proxy.round_trips
        for _ in range(4):
            once()
        counts.append(proxy.round_trips - before)
    assert min(counts) == right, counts
    assert bench.sold() == (1 + 4 * len(counts) if how == "insert" else 0)


def test_the_server_is_free_of_locks_while_the_answer_is_due(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    sql = f"SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {session}"
    wait_until(lambda: not bench.server.admin(sql), 2.0)
    if isinstance(bench.server, MySQL):
        sql = (
            "SELECT 1 FROM performance_schema.metadata_locks JOIN performance_schema.threads"
            f" ON owner_thread_id = thread_id WHERE processlist_id = {session}"
        )
        wait_until(lambda: not bench.server.admin(sql), 2.0)
    bench.server.admin("SELECT n FROM stock FOR UPDATE NOWAIT")
    assert bench.is_due(pool)


# -- the first thing that the next holder does -----------------------------------------------------


async def _stream(bench: Bench, conn: Any) -> None:
    library = {"mysqldb": "MySQLdb"}.get(bench.name, bench.name)
    cursor = conn.cursor(import_module(f"{library}.cursors").SSCursor)
    cursor = (await cursor) if inspect.isawaitable(cursor) else cursor
    for call in (
        lambda: cursor.execute("SELECT n FROM stock ORDER BY n"), cursor.fetchone, cursor.close
    ):  # fmt: skip
        value = call()
        if inspect.isawaitable(value):
            await value


def _in_cursor(bench: Bench, conn: Any, work: Callable[[Any], Any]) -> None:
    async def awaited() -> None:
        async with conn.cursor() as cursor:
            await work(cursor)
            while await cursor.nextset():
                pass

    if bench.is_async:
        bench.wait(awaited())
        return
    with contextlib.closing(conn.cursor()) as cursor:
        work(cursor)
        while cursor.nextset():
            pass


def _load(bench: Bench, conn: Any) -> None:
    if bench.name == "asyncmy":
        return  # it is mistaken in a type there
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("77\n78\n")
        file.flush()
        bench.do(conn, f"LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE sold (n)")
    assert bench.ask(conn, "SELECT COUNT(*) FROM sold") == 2


def _streamed(bench: Bench, conn: Any) -> None:
    if bench.is_async:
        bench.wait(_stream(bench, conn))
    else:
        with suppress(StopIteration):
            _stream(bench, conn).send(None)


def _charset(bench: Bench, conn: Any) -> None:
    for name in ("set_character_set", "set_charset"):
        if hasattr(conn, name):
            with suppress(AttributeError):  # asyncmy's is mistaken in a name
                bench.wait(getattr(conn, name)("utf8mb4"))
            return


def _killed(bench: Bench, conn: Any) -> None:
    other = bench.pool()
    victim = bench.take(other)
    with suppress(*bench.driver.errors):  # a newer MySQL does not know it any more
        bench.wait(conn.kill(bench.me(victim)))
    bench.give(other, victim)


def _prepared(bench: Bench, conn: Any) -> None:
    if hasattr(conn, "prepare"):
        statement = bench.wait(conn.prepare("SELECT ?"))
        bench.wait(statement.execute((1,)))
        bench.wait(statement.close())


def _switched(bench: Bench, conn: Any) -> None:
    bench.wait(conn.autocommit(True))
    bench.do(conn, "DELETE FROM stock WHERE n > 100")
    bench.wait(conn.autocommit(False))


def _converter(bench: Bench, conn: Any) -> None:
    name = {"mysqldb": "converter", "asyncmy": "_decoders"}.get(bench.name, "decoders")
    getattr(conn, name)[253] = str


def _long(bench: Bench, conn: Any) -> None:
    assert bench.ask(conn, f"SELECT LENGTH('{'x' * (17 << 20)}')") == 17 << 20


#: What somebody does first on a connection whose answer is due, by name.
FIRST: dict[str, Callable[[Bench, Any], Any]] = {
    "nothing": lambda _bench, _conn: None,
    "ping": lambda bench, conn: bench.wait(bench.driver.ping(conn, 5.0)),
    "rollback": lambda bench, conn: bench.wait(conn.rollback()),
    "commit": lambda bench, conn: bench.wait(conn.commit()),
    "begin": lambda bench, conn: bench.wait(conn.begin()),
    "driver's rollback": lambda bench, conn: bench.wait(bench.driver.rollback(conn)),
    "select_db": lambda bench, conn: bench.wait(conn.select_db(bench.server.database)),
    "show_warnings": lambda bench, conn: bench.wait(conn.show_warnings()),
    "charset": _charset,
    "converter": _converter,
    "autocommit": _switched,
    "kill": _killed,
    "load": _load,
    "stream": _streamed,
    "prepared": _prepared,
    "callproc": lambda bench, conn: _in_cursor(bench, conn, lambda it: it.callproc("two")),
    "many": lambda bench, conn: _in_cursor(
        bench, conn, lambda it: it.executemany("INSERT INTO sold VALUES (%s)", [(1,), (2,)])
    ),
    "several": lambda bench, conn: _in_cursor(
        bench, conn, lambda it: it.execute("SELECT 1; SELECT 2; SELECT n FROM stock")
    ),
    "long": _long,
}
#: What some drivers cannot put back.
UNFIT = {"converter"}


@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_whatever_the_next_holder_does_first_has_its_own_answer(bench: Bench, tls: bool) -> None:
    pool = bench.pool(bench.url(tls=tls, client_flag=65536, local_infile="true"))
    for name, does in FIRST.items():
        session = bench.due(pool)
        conn = bench.take(pool)
        does(bench, conn)
        assert bench.ask(conn, "SELECT 42") == 42, name
        assert bench.me(conn) == session, name
        bench.give(pool, conn)
        last = bench.answers_its_own(pool)
        assert last == session or name in UNFIT, name
        assert bench.sold() == 0, name


def test_an_error_as_the_first_answer_is_its_senders(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    conn = bench.take(pool)
    with pytest.raises(bench.driver.errors, match="no_such_table"):
        bench.do(conn, "SELECT 1 FROM no_such_table")
    bench.give(pool, conn)
    assert bench.answers_its_own(pool) == session


# -- what may happen to the connection meanwhile ---------------------------------------------------


def test_a_session_that_is_killed_while_due_is_lent_to_nobody(bench: Bench) -> None:
    pool = bench.pool()
    for _ in range(5):
        session = bench.due(pool)
        assert bench.server.kill_sessions() >= 1
        bench.rest(0.02)
        assert bench.answers_its_own(pool) != session


def test_a_unit_of_work_whose_first_statement_meets_a_kill_runs_again(bench: Bench) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()))
    session = bench.due(pool)
    proxy.latency(FAR)
    bench.use(pool)
    bench.server.kill_sessions()  # what tells of it is on its way

    async def awaited(conn: Any) -> Any:
        return (await bench._do(conn, "SELECT CONNECTION_ID()"))[0][0]

    found = bench.wait(pool.run(awaited if bench.is_async else bench.me))
    assert int(found) != session


def test_a_server_that_is_frozen_while_due_costs_one_ping_timeout(bench: Bench) -> None:
    proxy = bench.proxy()
    pool = bench.pool(proxy.url(bench.url()), ping_timeout=0.3)
    session = bench.due(pool)
    proxy.latency(FAR)
    bench.use(pool)
    proxy.blackhole("hold")
    bench.rest(0.3)
    begun = time.monotonic()
    with pytest.raises(unbroken.UnbrokenError):
        bench.wait(pool.acquire(timeout=0.6))
    assert time.monotonic() - begun < 2.0
    proxy.heal()
    assert bench.answers_its_own(pool) != session


def test_an_error_in_place_of_the_answer_ends_the_connection(bench: Bench) -> None:
    if isinstance(bench.server, MySQL):
        pytest.skip("the relay speaks no TLS, and MySQL lets nobody in without")
    relay = bench.stack.enter_context(relay_to(bench.server))
    more = {"ssl_disabled": "true"} if bench.name == "pymysql" else {}
    pool = bench.pool(relay.url(bench.url(**more)))
    for pause in (0.3, 0.05, 0.0):
        bench.use(pool)
        bench.answers_its_own(pool)
        relay.answer(1180, "a strange ROLLBACK", stored=True, words="ROLLBACK")
        session = bench.use(pool)
        bench.rest(pause)
        with suppress(*bench.driver.errors), bench.lent(pool) as conn:
            assert bench.ask(conn, "SELECT 1234") == 1234
        assert bench.answers_its_own(pool) != session


def _sell(bench: Bench, pool: Any, times: int) -> tuple[int, int]:
    """So many rows were told to be stored, and so many uses failed."""
    stored = failed = 0
    for number in range(times):
        try:
            with bench.lent(pool) as conn:
                assert bench.ask(conn, f"SELECT {number} FROM stock LIMIT 1") == number
            with bench.lent(pool) as conn:
                bench.do(conn, f"INSERT INTO sold VALUES ({number})")
            stored += 1
            with bench.lent(pool, transaction=False) as conn:
                assert bench.ask(conn, f"SELECT -{number} FROM stock LIMIT 1") == -number
        except bench.driver.errors:
            failed += 1
    return stored, failed


@pytest.mark.parametrize("kind", ["CHAIN", "RELEASE"])
def test_a_server_on_which_each_end_chains_or_releases_answers_each_its_own(
    bench: Bench, kind: str
) -> None:
    if bench.name == "mysqldb":
        pytest.skip("mysqlclient cannot be followed there, for the rest of the process")
    with bench.server.temporarily(completion_type=kind):
        pool = bench.pool()
        stored, failed = _sell(bench, pool, 10)
        if kind == "CHAIN" or not bench.has_tls:  # a goodbye by TLS takes its time
            assert failed == 0
        assert bench.sold() == stored


@pytest.mark.parametrize("kind", ["CHAIN", "RELEASE"])
def test_a_session_on_which_each_end_chains_or_releases_is_left_to_nobody(
    bench: Bench, kind: str
) -> None:
    pool = bench.pool()
    for words in ("SET SESSION completion_type", "set @@completion_type"):
        bench.due(pool)
        conn = bench.take(pool)
        bench.do(conn, f"{words} = '{kind}'")
        bench.do(conn, "SELECT n FROM stock FOR UPDATE")
        bench.give(pool, conn)
        stored, failed = _sell(bench, pool, 2)
        assert failed == 0
        assert bench.sold() == stored


def test_with_autocommit_on_nothing_is_due(bench: Bench) -> None:
    pool = bench.pool(bench.url(autocommit="true"))
    session = bench.use(pool)
    assert not bench.is_due(pool)
    assert bench.answers_its_own(pool) == session


def test_upkeep_reads_an_answer_that_nobody_came_for(bench: Bench) -> None:
    pool = bench.pool()
    session = bench.due(pool)
    if bench.is_async:
        for _ in range(40):
            bench.rest(0.1)
            if not bench.is_due(pool):
                break
    else:
        wait_until(lambda: not bench.is_due(pool), 4.0)
    assert not bench.is_due(pool)
    assert bench.answers_its_own(pool) == session
