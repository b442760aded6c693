"""COMMITs that the server answers with an error, with every driver: what is reported never says
more than the answer proves.

A relay executes the COMMIT, or rolls back instead of it, and gives the client an error of our
choice as its answer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import unbroken
from unbroken.errors import CommitUnknownError
from unbroken.ledger.scope import current
from unbroken.ledger.verdicts import Fate
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from .answering import Relay, relay_to
from .every_driver import MYSQL, POSTGRESQL, url_of

ASYNC = {"aiomysql", "asyncmy", "mysqlconnector_async", "psycopg_async", "asyncpg"}
DRIVERS = [*MYSQL, *POSTGRESQL]
#: An answer that proves nothing, and one that proves that nothing is stored.
DOUBTFUL = {
    "mysql": [(1180, "Got error 5 during COMMIT"), (1317, "Query execution was interrupted")],
    "postgresql": [("XX000", "an internal failure"), ("40003", "result is ambiguous")],
}
#: What a service or a pooler says when it cannot serve: not whether the work is stored.
SERVICES = {
    "mysql": [(1105, "target: ks.-.primary: vttablet: rpc error: code = Unavailable desc = gone")],
    "postgresql": [("XX000", "(EDBHANDLEREXITED) DbHandler exited. Check logs for more"),
                   ("XX000", "couldn't connect to compute node"),
                   ("08P01", "server conn crashed?")],
}  # fmt: skip
GALERA = (1047, "WSREP has not yet prepared node for application use")
AGAIN = {"mysql": (1213, "Deadlock found"), "postgresql": ("40001", "could not serialize access")}
NO = {
    "mysql": (1290, "The server is running with the --read-only option"),
    "postgresql": ("23503", "insert or update violates foreign key constraint"),
}


class Bench:
    """A driver's pool behind the relay, and a table."""

    def __init__(self, name: str, server: Server, relay: Relay) -> None:
        self.name, self.server, self.relay = name, server, relay
        self.family = "postgresql" if isinstance(server, PostgreSQL) else "mysql"
        self.runs = 0
        self.plan: Callable[[], None] | None = None
        self.table = f"answers_{name}"
        more: dict[str, Any] = {"ssl_disabled": "true"} if name.startswith("mysqlconn") else {}
        self.url = relay.url(url_of(server, name, False, **more))
        server.admin(f"DROP TABLE IF EXISTS {self.table}")
        server.admin(f"CREATE TABLE {self.table} (n INT)")
        if self.family == "postgresql":
            server.admin(f'ALTER TABLE {self.table} OWNER TO "{server.user}"')

    @property
    def stored(self) -> int:
        self.server.kill_sessions()
        return len(self.server.admin(f"SELECT n FROM {self.table}"))

    def play(self, work: Callable[[Any, Any], Any], **settings: Any) -> BaseException | None:
        """What *work*, called with a pool and a way to execute, raises. It is sync or async."""
        return asyncio.run(self._play(work, settings))

    async def _play(
        self, work: Callable[[Any, Any], Any], settings: dict[str, Any]
    ) -> BaseException | None:
        kind = unbroken.AsyncPool if self.name in ASYNC else unbroken.Pool
        pool: Any = kind(self.url, max_size=2, acquire_timeout=10.0, **settings)
        try:
            await self.wait(work(pool, self))
        except Exception as error:
            return error
        finally:
            await self.wait(pool.close())
        return None

    @staticmethod
    async def wait(value: Any) -> Any:
        return (await value) if inspect.isawaitable(value) else value

    def arm(self) -> None:
        """Let the relay do what was planned, now that the pool itself sends no COMMIT."""
        if self.plan is not None:
            plan, self.plan = self.plan, None
            plan()

    def next_commit(self, answer: tuple[Any, str], *, stored: bool) -> None:
        """The next COMMIT of a unit is answered so."""
        self.plan = lambda: self.relay.answer(*answer, stored=stored)

    def unit(self, ending: str = "") -> Any:
        """A unit of work that inserts a row, and commits in its own way."""
        if self.name in ASYNC:

            async def awaited(conn: Any) -> None:
                self.runs += 1
                await self.send(conn, f"INSERT INTO {self.table} VALUES (1)")
                self.arm()
                if ending == "commit()":
                    await self.wait(conn.commit())
                elif ending:
                    await self.send(conn, ending)

            return awaited

        def called(conn: Any) -> None:
            self.runs += 1
            self.send_now(conn, f"INSERT INTO {self.table} VALUES (1)")
            self.arm()
            if ending == "commit()":
                conn.commit()
            elif ending:
                self.send_now(conn, ending)

        return called

    def send_now(self, conn: Any, sql: str) -> None:
        cursor = conn.cursor()
        cursor.execute(sql)
        cursor.close()

    async def send(self, conn: Any, sql: str) -> None:
        if self.name == "asyncpg":
            await conn.execute(sql)
            return
        cursor = await self.wait(conn.cursor())
        await cursor.execute(sql)
        await self.wait(cursor.close())


@pytest.fixture(params=DRIVERS)
def bench(
    request: pytest.FixtureRequest, mariadb: MariaDB, mysql: Any, postgres: PostgreSQL
) -> Iterator[Bench]:
    name = request.param
    server: Server = postgres if name in POSTGRESQL else mariadb
    if name.startswith("mysqlconnector"):
        # it sends query attributes, which MariaDB does not know
        server = mysql
        with unbroken.Pool(server.url("mysqlconnector")) as pool:
            pool.release(pool.acquire())  # over TLS, so that it may come without
    with relay_to(server) as relay:
        made = Bench(name, server, relay)
        yield made
        server.kill_sessions()
        server.admin(f"DROP TABLE {made.table}")


def _run(work: Any) -> Callable[[Any, Any], Awaitable[None] | None]:
    return lambda pool, _: pool.run(work)


def _in_a_lease(pool: Any, bench: Bench) -> Any:
    work = bench.unit()
    if bench.name in ASYNC:

        async def awaited() -> None:
            async with pool.connection() as conn:
                await work(conn)

        return awaited()
    with pool.connection() as conn:
        work(conn)
    return None


@pytest.mark.parametrize("stored", [True, False])
def test_a_doubtful_answer_to_a_units_commit_is_told_as_unknown_and_never_replayed(
    bench: Bench, stored: bool
) -> None:
    answers = [*DOUBTFUL[bench.family], *SERVICES[bench.family]]
    answers += [GALERA] if bench.family == "mysql" else []
    for count, (code, text) in enumerate(answers, 1):
        bench.next_commit((code, text), stored=stored)
        error = bench.play(_run(bench.unit()))
        assert isinstance(error, CommitUnknownError), error
        assert text in str(error)
        assert error.fate == Fate.UNKNOWN
        assert (bench.runs, bench.stored) == (count, count if stored else 0)


@pytest.mark.parametrize("stored", [True, False])
def test_a_doubtful_answer_to_a_leases_commit_is_told_as_unknown(
    bench: Bench, stored: bool
) -> None:
    bench.next_commit(DOUBTFUL[bench.family][0], stored=stored)
    error = bench.play(_in_a_lease)
    assert isinstance(error, CommitUnknownError), error
    assert bench.stored == int(stored)


@pytest.mark.parametrize("ending", ["COMMIT", "commit()"])
def test_a_doubtful_answer_to_a_commit_inside_a_unit_is_told_as_unknown(
    bench: Bench, ending: str
) -> None:
    if bench.name == "asyncpg":
        pytest.skip("its connections have no commit(), and a COMMIT needs its own BEGIN")
    bench.next_commit(DOUBTFUL[bench.family][0], stored=True)
    error = bench.play(_run(bench.unit(ending)))
    assert isinstance(error, CommitUnknownError), error
    assert (bench.runs, bench.stored) == (1, 1)


def test_an_answer_that_proves_that_nothing_is_stored_lets_the_unit_run_again(
    bench: Bench,
) -> None:
    bench.next_commit(AGAIN[bench.family], stored=False)
    assert bench.play(_run(bench.unit())) is None
    assert (bench.runs, bench.stored) == (2, 1)


def test_a_plain_no_to_a_commit_stays_the_drivers_own_error(bench: Bench) -> None:
    code, text = NO[bench.family]
    bench.next_commit((code, text), stored=False)
    error = bench.play(_in_a_lease)
    assert error is not None
    assert not isinstance(error, CommitUnknownError)
    assert text in str(error)
    assert bench.stored == 0


def test_commit_and_chain_counts_as_a_commit(bench: Bench) -> None:
    if bench.name == "asyncpg":
        pytest.skip("its pool begins the transaction")
    bench.next_commit(DOUBTFUL[bench.family][0], stored=True)
    error = bench.play(_run(bench.unit("COMMIT AND CHAIN")))
    assert isinstance(error, CommitUnknownError), error
    assert (bench.runs, bench.stored) == (1, 1)


def test_a_doubtful_answer_to_a_savepoints_release_is_no_doubt_about_a_commit(
    bench: Bench,
) -> None:
    if bench.name == "asyncpg":
        pytest.skip("its pool begins the transaction")
    code, text = (1317, "interrupted") if bench.family == "mysql" else ("XX000", "internal")
    bench.plan = lambda: bench.relay.say("RELEASE", code, text)
    error = bench.play(_run(bench.unit("RELEASE SAVEPOINT s")))
    assert error is not None
    assert not isinstance(error, CommitUnknownError)
    assert (bench.runs, bench.stored) == (1, 0)


@pytest.mark.parametrize("stored", [True, False])
def test_a_doubtful_answer_to_a_write_in_autocommit_is_raised_and_never_run_again(
    bench: Bench, stored: bool
) -> None:
    """The error is the driver's own; the unit's fate is unknown."""
    if bench.name not in ("pymysql", "mysqldb", "aiomysql", "asyncmy", "psycopg", "psycopg_async"):
        pytest.skip("another way to spell autocommit; the ledger is the same")
    bench.url += ("&" if "?" in bench.url else "?") + "autocommit=true"
    fates = []
    for code, text in DOUBTFUL[bench.family]:
        bench.runs = 0
        unit = _autocommitting(bench, (code, text), stored, fates)
        error = bench.play(_run(unit))
        assert error is not None
        assert not isinstance(error, CommitUnknownError)
        assert text in str(error)
        assert bench.runs == 1
    assert set(fates) == {Fate.UNKNOWN}
    assert bench.stored == (len(fates) if stored else 0)


def _autocommitting(bench: Bench, answer: tuple[Any, str], stored: bool, fates: list[Fate]) -> Any:
    insert = f"INSERT INTO {bench.table} VALUES (1)"

    def begin() -> None:
        bench.runs += 1
        bench.relay.answer(*answer, stored=stored, words="INSERT")

    def note() -> None:
        unit = current()
        assert unit is not None
        fates.append(unit.fate())

    async def awaited(conn: Any) -> None:
        begin()
        try:
            await bench.send(conn, insert)
        finally:
            note()

    def called(conn: Any) -> None:
        begin()
        try:
            bench.send_now(conn, insert)
        finally:
            note()

    return awaited if bench.name in ASYNC else called


@pytest.mark.parametrize("stored", [True, False])
def test_xa_commit_and_commit_prepared_count_as_commits(bench: Bench, stored: bool) -> None:
    if bench.name not in ("pymysql", "mysqldb", "psycopg", "psycopg2"):
        pytest.skip("the ledger is the same")
    if bench.family == "mysql":
        begin = ["ROLLBACK", "XA START 'x'", f"INSERT INTO {bench.table} VALUES (1)"]
        steps = [*begin, "XA END 'x'", "XA PREPARE 'x'"]
        last = "XA COMMIT 'x'"
    else:
        steps, last = [], "COMMIT PREPARED 'x'"

    def work(conn: Any) -> None:
        bench.runs += 1
        for sql in steps:
            bench.send_now(conn, sql)
        code, text = DOUBTFUL[bench.family][0]
        if steps and stored:
            bench.relay.answer(code, text, stored=True)
        else:
            bench.relay.say(last[:10], code, text)
        bench.send_now(conn, last)

    error = bench.play(_run(work))
    assert isinstance(error, CommitUnknownError), error
    assert bench.runs == 1
    if steps:
        assert bench.stored == int(stored)
        if not stored:
            bench.server.admin("XA ROLLBACK 'x'")
