"""The answer to the pool's COMMIT or ROLLBACK is read later, and BEGIN goes with the first
statement: how many round trips that leaves with PostgreSQL's drivers, and that nobody gets
another's answer.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from statistics import mode
from typing import Any

import psycopg
import pytest

import unbroken
from unbroken_drill import FaultProxy

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

WAY = 0.004  #: seconds each way, in tests that count
SLOW = 0.05  #: … and in tests that need an answer to be on its way
TABLE = "answers_due"


def read(conn: Any, sql: str = f"SELECT count(*) FROM {TABLE}") -> Any:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def ask(pool: unbroken.Pool, sql: str = f"SELECT n FROM {TABLE}") -> None:
    with pool.connection() as conn, conn.cursor() as cursor:
        cursor.execute(sql)
        cursor.fetchall()


def write(pool: unbroken.Pool) -> None:
    with pool.connection() as conn:
        conn.execute(f"INSERT INTO {TABLE} VALUES (1)")


@contextmanager
def warm(line: Any, *, options: str = "", **settings: Any) -> Iterator[unbroken.Pool]:
    """A pool of one connection that knows its server, and whose first answer was as expected."""
    server, proxy = line
    url = proxy.url(server.url("psycopg"))
    if options:
        url += ("&" if "?" in url else "?") + f"options={options}"
    with unbroken.Pool(url, max_size=1, **settings) as pool:
        ask(pool)
        deadline = time.monotonic() + 10
        while pool._state.hidden.answer is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pool._state.hidden.answer == ""
        for _ in range(3):
            ask(pool)
            time.sleep(0.02)
        yield pool


def owes_answer(pool: unbroken.Pool, conn: Any) -> bool:
    driver: Any = pool._state.driver
    return bool(driver.owes_answer(conn))


def trips(proxy: FaultProxy, work: Callable[[], object], times: int = 5) -> float:
    """Round trips of one call of *work*, which is done again at once: the most frequent of some
    counts. A busy machine stops this process for longer than an answer is on its way; the answer is
    then one more for the proxy, though nobody waited for it. If that spoils all counts, the answers
    are made to take longer.
    """

    def counted() -> float:
        before = proxy.round_trips
        for _ in range(times):
            work()
        return float(proxy.round_trips - before) / times

    counts: list[float] = []
    for way in (WAY, 4 * WAY, 16 * WAY):
        proxy.latency(way)
        work()
        counts += [counted() for _ in range(7)]
        if any(each.is_integer() for each in counts):
            break
    return mode([each for each in counts if each.is_integer()] or counts)


# -- how many --------------------------------------------------------------------------------------


def test_a_request_that_reads_once_costs_one_round_trip_and_a_write_two(line: Any) -> None:
    with warm(line) as pool:
        assert trips(line[1], lambda: ask(pool)) == 1
        assert trips(line[1], lambda: ask(pool, f"SELECT n FROM {TABLE} WHERE n = 7")) == 1
        assert trips(line[1], lambda: pool.run(lambda conn: read(conn))) == 1
        assert trips(line[1], lambda: write(pool)) == 2


def test_what_is_prepared_costs_no_more(line: Any) -> None:
    def prepared() -> None:
        with pool.connection() as conn:
            assert conn.execute("SELECT %s::int", (7,), prepare=True).fetchone() == (7,)

    with warm(line) as pool:
        assert trips(line[1], prepared) == 1


def test_a_rollback_costs_no_round_trip_of_its_own(line: Any) -> None:
    def refused() -> None:
        with suppress(psycopg.errors.UndefinedColumn), pool.connection() as conn:
            conn.execute(f"SELECT nothing FROM {TABLE}")

    def released() -> None:
        conn = pool.acquire()
        conn.execute(f"INSERT INTO {TABLE} VALUES (1)")
        pool.release(conn)

    with warm(line) as pool:
        assert trips(line[1], refused) == 1
        assert trips(line[1], released) == 1
    assert line[0].admin(f"SELECT count(*) FROM {TABLE}")[0][0] in (0, "0")


def test_it_is_as_few_with_asyncio(line: Any) -> None:
    server, proxy = line

    async def main() -> tuple[float, float]:
        async with unbroken.AsyncPool(proxy.url(server.url("psycopg")), max_size=1) as pool:

            async def ask_once() -> None:
                async with pool.connection() as conn:
                    await (await conn.execute(f"SELECT n FROM {TABLE}")).fetchall()

            async def write_once() -> None:
                async with pool.connection() as conn:
                    await conn.execute(f"INSERT INTO {TABLE} VALUES (1)")

            async def count(work: Any) -> float:
                counts: list[float] = []
                for way in (WAY, 4 * WAY, 16 * WAY):
                    proxy.latency(way)
                    for _ in range(5):
                        before = proxy.round_trips
                        for _ in range(5):
                            await work()
                        counts.append(float(proxy.round_trips - before) / 5)
                    if any(each.is_integer() for each in counts):
                        break
                return mode([each for each in counts if each.is_integer()] or counts)

            deadline = time.monotonic() + 10
            while pool._current().hidden.answer is None and time.monotonic() < deadline:
                await ask_once()
                await asyncio.sleep(0.05)
            for _ in range(3):
                await ask_once()
                await asyncio.sleep(0.02)
            return await count(ask_once), await count(write_once)

    assert asyncio.run(main()) == (1, 2)


def test_psycopg2_waits_for_begin_for_the_statement_and_for_commit(line: Any) -> None:
    pytest.importorskip("psycopg2")  # which has no release for free-threaded Pythons
    server, proxy = line
    with unbroken.Pool(proxy.url(server.url("psycopg2")), max_size=1) as pool:
        ask(pool)
        assert trips(proxy, lambda: ask(pool)) == 3


# -- COMMITs that may fail although their transaction only read ------------------------------------


def test_the_commit_of_a_serializable_transaction_is_waited_for(line: Any) -> None:
    def strict() -> None:
        with pool.connection() as conn:
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            read(conn)

    with warm(line) as pool:
        assert trips(line[1], strict) == 2
    with warm(line, options="-cdefault_transaction_isolation%3Dserializable") as pool:
        assert trips(line[1], lambda: ask(pool)) == 2


def test_a_session_that_was_made_serializable_is_believed_no_more(line: Any) -> None:
    with warm(line) as pool:
        with pool.connection() as conn:
            conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert trips(line[1], lambda: ask(pool)) == 2


def test_a_statement_that_goes_with_the_question_for_the_level_may_change_it(line: Any) -> None:
    with warm(line) as pool:
        conn = pool.acquire()
        conn.__dict__["_unbroken_level"] = None
        conn.execute("SELECT set_config('default_transaction_isolation', 'serializable', false)")
        conn.commit()
        pool.release(conn)
        assert trips(line[1], lambda: ask(pool)) == 2


def test_the_commit_after_a_statement_below_the_driver_is_waited_for(line: Any) -> None:
    def hidden() -> None:
        with pool.connection() as conn:
            read(conn)
            conn.pgconn.exec_(f"INSERT INTO {TABLE} VALUES (1)".encode())

    with warm(line) as pool:
        assert trips(line[1], hidden) == 3


def test_the_commit_after_an_application_kept_libpqs_connection_is_waited_for(line: Any) -> None:
    with warm(line) as pool:
        with pool.connection() as conn:
            kept = conn.pgconn
        with pool.connection() as conn:
            read(conn)
        assert kept.exec_(b"SELECT 7").status == psycopg.pq.ExecStatus.TUPLES_OK
        assert trips(line[1], lambda: ask(pool)) == 2


def test_a_server_that_does_not_know_its_level_is_asked_once(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warm(line) as pool:
        monkeypatch.setattr("unbroken.drivers._psycopg_trips._ASK_LEVEL", b"SHOW no_such_setting")
        pool.drain()
        for number in range(5):
            with pool.connection() as conn:
                assert conn.execute("SELECT %s::int", (number,)).fetchone() == (number,)
                conn.execute(f"INSERT INTO {TABLE} VALUES (%s)", (number,))
        with pool.connection() as conn:  # the first text is none that may follow at once
            assert conn.execute("SELECT 7;").fetchone() == (7,)
            assert conn.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (5,)


# -- the server is free ----------------------------------------------------------------------------


def test_neither_lock_nor_snapshot_outlives_the_release(line: Any, until: Any) -> None:
    server, _ = line
    with warm(line) as pool:
        conn = pool.acquire()
        conn.execute(f"LOCK TABLE {TABLE} IN EXCLUSIVE MODE")
        pid = conn.info.backend_pid
        pool.release(conn)
        assert owes_answer(pool, conn)
        until(
            lambda: (
                not server.admin(f"SELECT 1 FROM pg_locks WHERE pid = {pid}")
                and not server.admin(
                    f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND (state <> 'idle' OR"
                    " backend_xmin IS NOT NULL)"
                )
            )
        )


# -- any first command -----------------------------------------------------------------------------


def _copy(conn: Any) -> None:
    with conn.cursor().copy("COPY (SELECT 7) TO STDOUT") as copy:
        assert b"".join(bytes(each) for each in copy) == b"7\n"


def _server_side(conn: Any) -> None:
    with conn.cursor("named") as cursor:
        assert cursor.execute("SELECT 7").fetchall() == [(7,)]


def _many(conn: Any) -> None:
    with conn.cursor() as cursor:
        cursor.executemany("SELECT %s::int", [(7,), (8,)], returning=True)
        assert cursor.fetchall() == [(7,)]


def _pipeline(conn: Any) -> None:
    with conn.pipeline():
        first, second = conn.execute("SELECT 7"), conn.execute("SELECT 8")
    assert (first.fetchone(), second.fetchone()) == ((7,), (8,))


def _autocommit(conn: Any) -> None:
    conn.autocommit = True
    assert conn.execute("SELECT 7").fetchone() == (7,)


def _level(conn: Any) -> None:
    conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    assert conn.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)


def _two_phases(conn: Any) -> None:
    conn.tpc_begin("answers")
    assert conn.execute("SELECT 7").fetchone() == (7,)
    conn.tpc_rollback()


def _block(conn: Any) -> None:
    with conn.transaction():
        assert conn.execute("SELECT 7").fetchone() == (7,)


def _several(conn: Any) -> None:
    assert [r.fetchone() for r in conn.execute("SELECT 7; SELECT 8").results()] == [(7,), (8,)]


def _listen(conn: Any) -> None:
    conn.execute("LISTEN answers")
    conn.execute("NOTIFY answers, 'heard'")
    conn.commit()
    assert [each.payload for each in conn.notifies(timeout=5, stop_after=1)] == ["heard"]


def _stream(conn: Any) -> None:
    assert list(conn.cursor().stream("SELECT 7")) == [(7,)]


def _bad_arguments(conn: Any) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="placeholders"):
        conn.execute("SELECT %s", (1, 2))
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    assert conn.execute("SELECT 7").fetchone() == (7,)


def _refused(conn: Any) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn, match=r'"nope" does not(.|\n)*LINE 1: SEL'):
        conn.execute("SELECT nope")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        conn.execute("SELECT 7")


def _wrong_parameter(conn: Any) -> None:
    with pytest.raises(psycopg.errors.UndefinedParameter, match=r"there is no parameter \$1"):
        conn.execute("SELECT $1")


def _only_looks(conn: Any) -> None:
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert not conn.closed


def _closes(conn: Any) -> None:
    conn.close()


FIRST = [
    _copy, _server_side, _many, _pipeline, _autocommit, _level, _two_phases, _block, _several,
    _listen, _stream, _bad_arguments, _refused, _wrong_parameter, _only_looks,
    lambda _conn: None, lambda conn: conn.commit(), lambda conn: conn.rollback(),
    lambda conn: conn.cancel_safe(), _closes,
]  # fmt: skip


@pytest.mark.parametrize("how", ["SET LOCAL", "SET"])
def test_an_encoding_that_a_rollback_takes_back_is_known_before_the_next_text(
    line: Any, how: str
) -> None:
    with warm(line) as pool:
        line[1].latency(0.005)
        conn = pool.acquire()
        conn.execute(f"{how} client_encoding TO 'LATIN1'")
        pool.release(conn)
        for text in ("\u00e9", "\u00c3\u00a9"):  # the second is the first, read as UTF-8
            with pool.connection() as conn:
                assert conn.execute("SELECT %s", (text,)).fetchone() == (text,)


async def _in_autocommit(conn: Any) -> None:
    await conn.set_autocommit(True)
    await conn.set_autocommit(False)


async def _in_block(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute("SELECT 7")


async def _streaming(conn: Any) -> None:
    assert [row async for row in conn.cursor().stream("SELECT 7")] == [(7,)]


async def _in_pipeline(conn: Any) -> None:
    async with conn.pipeline():
        await conn.execute("SELECT 7")


async def _in_two_phases(conn: Any) -> None:
    await conn.tpc_begin("answers")
    await conn.tpc_rollback()


async def _notified(conn: Any) -> None:
    assert [each async for each in conn.notifies(timeout=0.0)] == []


async def _shown(conn: Any) -> None:
    cursor, info = conn.cursor(), conn.info
    idle, begun = psycopg.pq.TransactionStatus.IDLE, psycopg.pq.TransactionStatus.INTRANS
    assert (info.transaction_status, info.pipeline_status) == (idle, psycopg.pq.PipelineStatus.OFF)
    assert "[IDLE]" in repr(conn)
    assert "[IDLE]" in repr(cursor)
    text = psycopg.sql.SQL("SELECT {} AS {}").format("a'b", psycopg.sql.Identifier("a b"))
    assert text.as_string(conn) == """SELECT 'a''b' AS "a b\""""
    await cursor.execute("SELECT 7")
    assert info.transaction_status == begun
    assert "[INTRANS]" in repr(conn)


#: What looks at libpq before it waits for anything.
LOOKING: dict[str, Callable[[Any], Any]] = {
    "autocommit": _in_autocommit,
    "block": _in_block,
    "stream": _streaming,
    "pipeline": _in_pipeline,
    "two phases": _in_two_phases,
    "level": lambda conn: conn.set_isolation_level(None),
    "many": lambda conn: conn.cursor().executemany("SELECT %s::int", [(1,), (2,)]),
    "server's cursor": lambda conn: conn.cursor("named").execute("SELECT 7"),
    "notifies": _notified,
    "shown": _shown,
}


def test_no_event_loop_stops_for_an_answer_that_is_due(line: Any) -> None:
    server, proxy = line
    stops: dict[str, float] = {}

    async def watch() -> None:
        while True:
            before = time.process_time(), time.monotonic()
            await asyncio.sleep(0.001)
            busy, passed = time.process_time() - before[0], time.monotonic() - before[1]
            stops[name] = max(stops.get(name, 0.0), passed - busy)

    async def main() -> None:
        nonlocal name
        async with unbroken.AsyncPool(proxy.url(server.url("psycopg")), max_size=1) as pool:
            watching = asyncio.create_task(watch())
            for name, work in LOOKING.items():
                for pause in (0.05, 0.25, 0.0):
                    async with pool.connection(transaction=False) as conn:
                        await conn.execute("SELECT 7")
                    await asyncio.sleep(pause)
                proxy.latency(SLOW * 2)
                conn = await pool.acquire()
                assert conn.__dict__["_unbroken_due"] is not None, name
                await work(conn)
                proxy.latency(0.0)
                await pool.release(conn)
            watching.cancel()

    name = ""
    asyncio.run(main())
    assert max(stops.values()) < SLOW * 2, stops


def test_any_first_command_gets_its_own_answer(line: Any) -> None:
    with warm(line) as pool:
        line[1].latency(0.005)
        for number, first in enumerate(FIRST):
            with pool.connection() as conn:
                conn.execute("SELECT 1")
            left = pool._state.kernel.idle[-1].conn
            assert owes_answer(pool, left), number
            # the COMMIT of what failed is refused, and none can be sent on a closed connection
            fails = first in (_refused, _wrong_parameter, _closes)
            expected: Any = pytest.raises(psycopg.Error) if fails else nullcontext()
            with expected, pool.connection() as conn:
                assert conn is left
                first(conn)
            with pool.connection() as conn:
                assert conn.execute("SELECT %s::int", (number,)).fetchone() == (number,)
                assert conn.autocommit is False


def test_bytes_that_are_no_answer_to_anything_are_looked_at_before_a_connection_is_lent(
    line: Any, until: Any
) -> None:
    server, _ = line
    with warm(line) as pool:
        with pool.connection() as conn:
            conn.execute("LISTEN unasked")
        with pool.connection() as conn:
            read(conn)  # whose answer came with that to the COMMIT before
        entry = pool._state.kernel.idle[-1]
        pool._state.driver.take_answer(entry.conn, 5.0)  # type: ignore[attr-defined]
        assert entry.due is not None
        server.admin("NOTIFY unasked, 'here'")
        until(lambda: entry.poll(0))
        entry.due = entry.last_used = time.monotonic()
        pings = pool.stats().pings
        with pool.connection() as conn:
            assert pool.stats().pings == pings + 1
            assert [each.payload for each in conn.notifies(timeout=0)] == ["here"]


def test_a_notice_and_a_notification_before_the_answer_reach_their_handlers(line: Any) -> None:
    server, _ = line
    with warm(line) as pool:
        with pool.connection() as conn:
            conn.execute("LISTEN answers")
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            server.admin("NOTIFY answers, 'early'")
        time.sleep(0.1)  # it lies before the taker
        with pool.connection() as conn:
            assert [n.payload for n in conn.notifies(timeout=5, stop_after=1)] == ["early"]
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            server.admin("NOTIFY answers, 'early'")
        with pool.connection() as conn:
            notices: list[str] = []
            conn.add_notice_handler(lambda told: notices.append(told.message_primary))
            conn.execute("SELECT 1")
            conn.execute("DO $$ BEGIN RAISE NOTICE 'told'; END $$")
            assert notices == ["told"]
            assert [n.payload for n in conn.notifies(timeout=1, stop_after=1)] == ["early"]


# -- what may happen while an answer is due --------------------------------------------------------


def left_due(pool: unbroken.Pool) -> Any:
    """A connection that went back and is owed an answer."""
    conn = pool.acquire()
    conn.execute("SELECT 1")
    pool.release(conn)
    assert owes_answer(pool, conn)
    return conn


def test_a_session_that_is_killed_while_its_answer_is_due_costs_no_error(line: Any) -> None:
    server, _ = line
    with warm(line) as pool:
        for number in range(10):
            due, end = left_due(pool).__dict__["pgconn"], select.poll()
            end.register(due.socket, select.POLLRDHUP)
            server.admin(f"SELECT pg_terminate_backend({due.backend_pid}, 5000)")
            assert end.poll(10_000), "its end has not come through the proxy"
            with pool.connection() as conn:
                assert conn.execute("SELECT %s::int", (number,)).fetchone() == (number,)
        assert sum(pool.stats().closed.values()) == 10


def test_a_server_that_is_silent_while_an_answer_is_due_costs_one_connection(line: Any) -> None:
    with warm(line, ping_timeout=0.5) as pool:
        proxy = line[1]
        left = left_due(pool)
        proxy.blackhole(on="existing")
        time.sleep(0.3)  # longer than an answer may take to be read with the next one
        began = time.monotonic()
        with pool.connection() as conn:
            assert conn is not left
            assert conn.execute("SELECT 7").fetchone() == (7,)
        assert time.monotonic() - began < 3


def test_a_fork_while_an_answer_is_due_disturbs_nobody(line: Any) -> None:
    with warm(line) as pool:
        line[1].latency(0.01)
        left = left_due(pool)
        child = os.fork()
        if child == 0:
            try:
                with pool.connection() as conn:
                    good = conn is not left and conn.execute("SELECT 5").fetchone() == (5,)
                os._exit(0 if good else 1)
            except BaseException:
                os._exit(2)
        with pool.connection() as conn:
            assert conn is left
            assert conn.execute("SELECT 7").fetchone() == (7,)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_signal_at_any_moment_gives_nobody_anothers_answer(line: Any) -> None:
    class Rang(Exception):  # noqa: N818
        pass

    def ring(*_: Any) -> None:
        raise Rang

    def ask_for(pool: unbroken.Pool, number: int) -> None:
        with pool.connection() as conn:
            assert conn.execute("SELECT %s::int", (number,)).fetchone() == (number,)

    def rung(pool: unbroken.Pool, number: int) -> bool:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 0.00008)
            for _ in range(20):
                ask_for(pool, number)
        except Rang:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return False

    kept = signal.signal(signal.SIGALRM, ring)
    rang = 0
    try:
        with warm(line) as pool:
            line[1].latency(0.001)
            for number in range(120):
                rang += rung(pool, number)
                ask_for(pool, -number)
    finally:
        signal.signal(signal.SIGALRM, kept)
    assert rang > 30


def test_cancellation_at_any_moment_gives_nobody_anothers_answer(line: Any) -> None:
    server, proxy = line

    async def main() -> int:
        cancelled = 0
        async with unbroken.AsyncPool(proxy.url(server.url("psycopg")), max_size=1) as pool:

            async def ask_for(number: int) -> None:
                async with pool.connection() as conn:
                    found = await (await conn.execute("SELECT %s::int", (number,))).fetchone()
                    assert found == (number,)

            for _ in range(3):
                await ask_for(1)
                await asyncio.sleep(0.02)
            proxy.latency(0.001)
            for number in range(100):
                try:
                    async with asyncio.timeout(0.0005 + number * 0.0001):
                        for _ in range(3):
                            await ask_for(number)
                except TimeoutError:
                    cancelled += 1
                await ask_for(number)
        return cancelled

    assert asyncio.run(main()) > 10


def test_many_threads_each_get_their_own_answers(line: Any) -> None:
    server, proxy = line
    wrong: list[object] = []

    def work(first: int) -> None:
        for number in range(first, first + 150):
            try:
                with pool.connection() as conn:
                    found = conn.execute(f"SELECT {number}").fetchone()
                    if found != (number,):
                        wrong.append((number, found))
                    if number % 7 == 0:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            except Exception as error:
                wrong.append(error)

    with unbroken.Pool(proxy.url(server.url("psycopg")), max_size=2) as pool:
        threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
    assert not wrong


def test_closing_and_draining_while_an_answer_is_due_says_goodbye(line: Any, until: Any) -> None:
    server, _ = line
    before = len(server.log.read_text())
    with warm(line) as pool:
        left = left_due(pool).__dict__["pgconn"].backend_pid
        pool.drain()
        until(lambda: not server.admin(f"SELECT 1 FROM pg_stat_activity WHERE pid = {left}"))
        ask(pool)
        left = left_due(pool).__dict__["pgconn"].backend_pid
    until(lambda: not server.admin(f"SELECT 1 FROM pg_stat_activity WHERE pid = {left}"))
    assert "unexpected EOF" not in server.log.read_text()[before:]
