"""What may happen to an asyncpg connection while an answer to the pool's own BEGIN, COMMIT or
ROLLBACK is due: nobody gets another's answer, and nothing runs outside of its transaction.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import PostgreSQL

TABLE = "answers_lost_asyncpg"

Lossy = (asyncpg.PostgresError, asyncpg.InterfaceError, unbroken.UnbrokenError)


@pytest.fixture
def server(postgres: PostgreSQL) -> Iterator[PostgreSQL]:
    """With a table."""
    postgres.admin(f"DROP TABLE IF EXISTS {TABLE}")
    postgres.admin(f"CREATE TABLE {TABLE} (n INT)")
    postgres.admin(f'ALTER TABLE {TABLE} OWNER TO "{postgres.user}"')
    yield postgres
    postgres.admin(f"DROP TABLE {TABLE}")


def rows(server: PostgreSQL) -> list[int]:
    return sorted(int(each[0]) for each in server.admin(f"SELECT n FROM {TABLE}"))


class Editor:
    """A relay that puts other words in the place of what a client sends, once for each edit."""

    def __init__(self, server: PostgreSQL) -> None:
        self.address, self.edits = (server.host, server.port), list[tuple[bytes, bytes]]()

    @asynccontextmanager
    async def on(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self._serve, "127.0.0.1") as listener:
            yield listener.sockets[0].getsockname()[1]

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server, commands = await asyncio.open_connection(*self.address)
            with suppress(asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(client, commands, edits=True), self._pump(server, answers)
                )

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, edits: bool = False
    ) -> None:
        try:
            while data := await source.read(65536):
                for edit in [each for each in self.edits if edits and each[0] in data]:
                    self.edits.remove(edit)
                    data = data.replace(*edit, 1)
                to.write(data)
        except OSError:
            pass  # the other side reset it: without the close its session would keep its locks
        finally:
            to.close()


async def ask(pool: Any, number: int) -> Any:
    async with pool.connection() as conn:
        found = await conn.fetchval("SELECT $1::int", number)
        assert found == number
        return conn


@asynccontextmanager
async def warm(url: str, **settings: Any) -> AsyncIterator[Any]:
    """A pool of one connection that knows its server, and whose first answer was as expected."""
    async with (
        asyncio.timeout(60),
        unbroken.AsyncPool(url, **{"max_size": 1, **settings}) as pool,
    ):
        await ask(pool, 1)
        while pool._current().hidden.answer is None:
            await asyncio.sleep(0.02)
        for _ in range(3):
            await ask(pool, 1)
            await asyncio.sleep(0.02)
        yield pool


def edited(server: PostgreSQL, work: Callable[[Any, Editor], Any], **settings: Any) -> None:
    """Do *work* with a pool whose commands an :class:`Editor` may change."""

    async def main() -> None:
        editor = Editor(server)
        url = server.url("asyncpg").replace(str(server.port), "{port}")
        async with editor.on() as port, warm(url.format(port=port), **settings) as pool:
            await work(pool, editor)

    asyncio.run(main())


# -- a BEGIN that is refused -----------------------------------------------------------------------

REFUSED = (b"BEGIN;\0", b"BEGIM;\0")


@pytest.mark.parametrize("how", ["simple", "argued", "prepared", "many"])
def test_nothing_runs_where_begin_was_refused(server: PostgreSQL, how: str) -> None:
    sql = f"INSERT INTO {TABLE} VALUES "

    async def insert(conn: Any) -> None:
        if how == "simple":
            await conn.execute(f"{sql} (1)")
        elif how == "argued":
            await conn.execute(f"{sql} ($1)", 2)
        elif how == "prepared":
            await conn.fetch(f"{sql} (3)")
        else:
            await conn.executemany(f"{sql} ($1)", [(4,)])

    async def work(pool: Any, editor: Editor) -> None:
        async with pool.connection() as conn:
            await conn.execute(f"{sql} ($1)", 2)  # known from now on
            await conn.execute("ROLLBACK")
        editor.edits.append(REFUSED)
        with pytest.raises(asyncpg.PostgresSyntaxError, match="BEGIM"):
            async with pool.connection() as conn:
                await insert(conn)
        pool._driver._refusals.clear()
        editor.edits.append(REFUSED)
        with pytest.raises(
            asyncpg.InFailedSQLTransactionError, match="this transaction is not stored"
        ):
            async with pool.connection() as same:
                assert same is conn
                with pytest.raises(asyncpg.PostgresSyntaxError):
                    await insert(conn)
                assert conn.is_in_transaction()
                for _ in range(2):
                    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="BEGIN was"):
                        await insert(conn)
        assert not conn.is_in_transaction()
        assert await ask(pool, 7) is conn
        if how != "many":
            # this server does not know BEGIN in that form: it is sent as ever from now on
            editor.edits.append((b"Q\0\0\0\x0bBEGIN;\0", b"Q\0\0\0\x0bBEGIN \0"))
            async with pool.connection():
                await insert(conn)
                await conn.execute("ROLLBACK")
            assert not editor.edits

    edited(server, work)
    assert rows(server) == []


def test_a_begin_that_is_refused_to_a_statement_that_timed_out_begins_nothing(
    server: PostgreSQL,
) -> None:
    async def work(pool: Any, editor: Editor) -> None:
        editor.edits.append((b"BEGIN;\0", b"BEGIM;\0"))
        with suppress(*Lossy):
            async with pool.connection() as conn:
                with suppress(asyncpg.PostgresSyntaxError, TimeoutError):
                    await conn.execute(f"INSERT INTO {TABLE} VALUES (1)", timeout=1e-6)
                with suppress(asyncpg.InFailedSQLTransactionError):
                    await conn.execute(f"INSERT INTO {TABLE} VALUES (2)")
        await ask(pool, 7)

    edited(server, work)
    assert rows(server) == []


# -- an end that is answered with something else ---------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT"])
def test_a_strange_answer_ends_the_connection(server: PostgreSQL, end: str, pause: float) -> None:
    async def work(pool: Any, editor: Editor) -> None:
        conn = await pool.acquire()
        for transaction in (True, False):
            if not transaction:
                conn = await pool.acquire()
            state = pool._current()
            state.defers = state.pipelines = True
            state.driver.let_fly(conn, True)
            await conn.transaction().start()
            if end == "ROLLBACK":
                await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")
                instead = b"SELECT 1"
            else:
                await conn.execute("SELECT 1")
                instead = b"SELECT"
            if end == "ROLLBACK":
                editor.edits.append((b"ROLLBACK\0", instead + b"\0"))
                await pool.release(conn)
            else:
                await pool.release(conn)
                editor.edits.append((b"COMMIT\0", instead + b"\0"))
                async with pool.connection() as conn:
                    await conn.fetchval("SELECT 1")
            await asyncio.sleep(pause)
            with suppress(*Lossy):
                async with pool.connection(transaction=transaction) as other:
                    await other.execute(f"INSERT INTO {TABLE} VALUES (2)")
                assert other is not conn
            assert await ask(pool, 7) is not conn
            if editor.edits:
                assert end == "COMMIT"  # it was waited for, as one that is not known to only read
                editor.edits.clear()

    edited(server, work)
    assert set(rows(server)) <= {2}


# -- a server that goes away, or is silent ---------------------------------------------------------


async def left_due(pool: Any) -> Any:
    """A connection that went back and is owed an answer."""
    conn = await pool.acquire()
    await conn.transaction().start()
    await conn.execute("SELECT 1")
    await pool.release(conn)
    assert pool._driver.owes_answer(conn)
    return conn


def test_a_session_that_is_killed_while_its_answer_is_due_costs_no_error(
    server: PostgreSQL,
) -> None:
    async def main() -> None:
        async with warm(server.url("asyncpg")) as pool:
            for number in range(6):
                pid = (await left_due(pool)).get_server_pid()
                server.admin(f"SELECT pg_terminate_backend({pid}, 5000)")
                await ask(pool, number)
            assert sum(pool.stats().closed.values()) == 6

    asyncio.run(main())


def test_a_server_that_is_silent_while_an_answer_is_due_costs_one_connection(
    server: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = unbroken_proxy((server.host, server.port))

    async def main() -> None:
        async with warm(proxy.url(server.url("asyncpg")), ping_timeout=0.5) as pool:
            proxy.latency(0.05)
            left = await left_due(pool)
            proxy.blackhole(on="existing")
            await asyncio.sleep(0.3)  # longer than an answer may take to be read with the next one
            began = time.monotonic()
            assert await ask(pool, 7) is not left
            assert time.monotonic() - began < 3

    asyncio.run(main())


def test_neither_lock_nor_snapshot_outlives_the_release(server: PostgreSQL, until: Any) -> None:
    async def main() -> None:
        async with warm(server.url("asyncpg")) as pool:
            conn = await pool.acquire()
            await conn.transaction().start()
            await conn.execute(f"LOCK TABLE {TABLE} IN EXCLUSIVE MODE")
            pid = conn.get_server_pid()
            await pool.release(conn)
            assert pool._driver.owes_answer(conn)
            # the loop stands still: the answer is not read
            until(
                lambda: (
                    not server.admin(f"SELECT 1 FROM pg_locks WHERE pid = {pid}")
                    and not server.admin(
                        f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND (state <> 'idle'"
                        " OR backend_xmin IS NOT NULL)"
                    )
                )
            )
            assert pool._driver.owes_answer(conn)
            assert await ask(pool, 7) is conn

    asyncio.run(main())


def test_a_notice_and_a_notification_before_the_answer_reach_their_listeners(
    server: PostgreSQL,
) -> None:
    async def main() -> None:
        heard: list[Any] = []
        told: list[str] = []
        async with warm(server.url("asyncpg"), reset=None) as pool:
            async with pool.connection(transaction=False) as conn:
                await conn.add_listener("answers", lambda *args: heard.append(args[3]))
                conn.add_log_listener(lambda _, message: told.append(message.message))
            for number in range(5):
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
                    server.admin(f"NOTIFY answers, '{number}'")
                async with pool.connection() as conn:
                    await conn.execute(f"DO $$ BEGIN RAISE NOTICE 'told {number}'; END $$")
                await asyncio.sleep(0.05)
            assert heard == [str(each) for each in range(5)]
            assert told == [f"told {each}" for each in range(5)]

    asyncio.run(main())


def test_upkeep_reads_an_answer_that_nobody_came_for(server: PostgreSQL) -> None:
    async def main() -> None:
        async with warm(server.url("asyncpg")) as pool:
            left = await left_due(pool)
            state = pool._current()
            entry = state.kernel.idle[-1]
            while entry.due is not None:
                await asyncio.sleep(0.05)
            assert await ask(pool, 7) is left

    asyncio.run(main())


# -- storms ----------------------------------------------------------------------------------------


def loops() -> list[Any]:
    try:
        import uvloop
    except ImportError:
        return [pytest.param(None, id="asyncio")]
    return [pytest.param(None, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]


@pytest.mark.parametrize("loop_factory", loops())
def test_cancellation_at_any_moment_gives_nobody_anothers_answer(
    server: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy], loop_factory: Any
) -> None:
    proxy = unbroken_proxy((server.host, server.port))

    async def use(pool: Any, number: int) -> None:
        async with pool.connection() as conn:
            if number % 3 == 0:
                assert await conn.execute(f"INSERT INTO {TABLE} VALUES ({number})") == "INSERT 0 1"
            assert await conn.fetchval(f"SELECT {number % 7}") == number % 7
            if number % 5 == 0:
                raise ZeroDivisionError
            assert await conn.fetchval("SELECT $1::int", number) == number

    async def main() -> int:
        broken_off = 0
        async with warm(proxy.url(server.url("asyncpg")), max_size=2) as pool:
            proxy.latency(0.001)
            dice = random.Random(18)

            async def one(number: int) -> None:
                nonlocal broken_off
                try:
                    async with asyncio.timeout(dice.uniform(0.0003, 0.012)):
                        for _ in range(4):
                            with suppress(ZeroDivisionError):
                                await use(pool, number)
                except TimeoutError:
                    broken_off += 1
                except Lossy:
                    pass
                with suppress(ZeroDivisionError):
                    await use(pool, number + 1)

            for number in range(0, 150, 3):
                await asyncio.gather(*(one(number + each) for each in range(3)))
        return broken_off

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) > 20
    assert all(each % 3 == 0 and each % 5 for each in rows(server))


def test_a_timeout_of_asyncpgs_own_at_any_moment_gives_nobody_anothers_answer(
    server: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = unbroken_proxy((server.host, server.port))

    async def main() -> int:
        late = 0
        async with warm(proxy.url(server.url("asyncpg"))) as pool:
            proxy.latency(0.001)
            for number in range(120):
                try:
                    async with pool.connection() as conn:
                        timeout = 0.0001 + number * 0.00005
                        insert = f"INSERT INTO {TABLE} VALUES ({number})"
                        try:
                            await conn.execute(insert, timeout=timeout)
                        except TimeoutError:
                            late += 1
                        await conn.execute(f"INSERT INTO {TABLE} VALUES ({1000 + number})")
                except Lossy:
                    pass
                await ask(pool, number)
        return late

    assert asyncio.run(main()) > 10
    found = set(rows(server))
    # both rows of a use, or none: nothing ran outside of its transaction
    assert {each for each in found if each < 1000} == {each - 1000 for each in found if each > 999}


def test_tasks_on_an_engine_get_their_own_answers(
    server: PostgreSQL, unbroken_proxy: Callable[..., FaultProxy]
) -> None:
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    proxy = unbroken_proxy((server.host, server.port))
    url = proxy.url(server.url("asyncpg"))

    async def main() -> None:
        engine = create_async_engine(url, plugins=["unbroken"], pool_size=2, max_overflow=0)

        async def work(number: int) -> None:
            for each in range(number, number + 25):
                async with engine.connect() as conn:
                    if each % 4 == 0:
                        await conn.execute(sa.text(f"INSERT INTO {TABLE} VALUES ({each})"))
                    found = await conn.execute(sa.text("SELECT CAST(:n AS int)"), {"n": each})
                    assert found.scalar() == each
                    if each % 8 == 0:
                        await conn.commit()
                    if each % 7 == 0:
                        with pytest.raises(sa.exc.ProgrammingError):
                            await conn.execute(sa.text("SELECT nothing"))

        proxy.latency(0.001)
        await asyncio.gather(*(work(100 * n) for n in range(4)))
        await engine.dispose()

    asyncio.run(main())
    assert rows(server) == [
        100 * n + each for n in range(4) for each in range(25) if (100 * n + each) % 8 == 0
    ]
