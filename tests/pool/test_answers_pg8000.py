"""With pg8000 a statement with values is one request, BEGIN goes with the first statement, and the
answer to the pool's COMMIT or ROLLBACK is read later: how many round trips that leaves, and that
nobody gets another's answer. What any driver must do stands in test_answers.py.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import pg8000
import pg8000.dbapi
import pg8000.native
import pytest
from pg8000.exceptions import DatabaseError, InterfaceError

import unbroken
from unbroken.drivers import _pg8000_trips as trips
from unbroken_drill import FaultProxy

from .answering import relay_to

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

WAY = 0.004  #: seconds each way, in tests that count
TABLE = "answers_of_pg8000"


def do(conn: Any, sql: str, *values: Any) -> Any:
    cursor = conn.cursor()
    cursor.execute(sql, values)
    return list(cursor.fetchall()) if cursor.description else []


def value(conn: Any, sql: str, *values: Any) -> Any:
    return do(conn, sql, *values)[0][0]


@contextmanager
def warm(line: Any, url: str = "", **settings: Any) -> Iterator[unbroken.Pool]:
    """A pool of one connection that knows its server, and whose first answer was as expected."""
    server, proxy = line
    url = url or proxy.url(server.url("pg8000"))
    with unbroken.Pool(url, max_size=1, **settings) as pool:
        deadline = time.monotonic() + 10
        while pool._state.hidden.answer is None and time.monotonic() < deadline:
            with pool.connection() as conn:
                do(conn, f"SELECT n FROM {TABLE}")
            time.sleep(0.05)
        assert pool._state.hidden.answer == ""
        for _ in range(3):
            with pool.connection() as conn:
                do(conn, f"SELECT n FROM {TABLE}")
            time.sleep(0.02)
        yield pool


def used(pool: unbroken.Pool, sql: str, *values: Any, **how: Any) -> Callable[[], None]:
    """A use of *pool* that sends one statement."""

    def use() -> None:
        with pool.connection(**how) as conn:
            do(conn, sql, *values)

    return use


def costs(proxy: FaultProxy, work: Callable[[], object], wanted: float) -> None:
    """Each call of *work*, which is done again at once, costs the *wanted* number of round trips.

    A busy machine stops this process for longer than an answer is on its way; the answer is then
    one more for the proxy, though nobody waited for it. So some counts are made.
    """
    proxy.latency(WAY)
    work()
    counts: list[float] = []
    while wanted not in counts and len(counts) < 8:
        before = proxy.round_trips
        for _ in range(4):
            work()
        counts.append((proxy.round_trips - before) / 4)
    assert wanted in counts, counts


def left_due(pool: unbroken.Pool) -> Any:
    """A connection that went back and is owed an answer."""
    conn = pool.acquire()
    do(conn, "SELECT 1")
    pool.release(conn)
    driver: Any = pool._state.driver
    assert driver.owes_answer(conn)
    return conn


# -- how many --------------------------------------------------------------------------------------


def test_a_request_that_reads_once_costs_one_round_trip_and_a_write_two(line: Any) -> None:
    proxy = line[1]

    def refused() -> None:
        with suppress(DatabaseError), pool.connection() as conn:
            do(conn, f"SELECT nothing FROM {TABLE}")

    def many() -> None:
        with pool.connection() as conn:
            conn.cursor().executemany(f"INSERT INTO {TABLE} VALUES (%s)", [(1,), (2,), (3,)])

    def committed() -> None:
        with pool.connection() as conn:
            do(conn, f"INSERT INTO {TABLE} VALUES (%s)", 1)
            conn.commit()

    def in_autocommit() -> None:
        with pool.connection(transaction=False) as conn:
            conn.autocommit = True
            do(conn, f"SELECT n FROM {TABLE} WHERE n = %s", 7)

    with warm(line) as pool:
        costs(proxy, used(pool, f"SELECT n FROM {TABLE}"), 1)
        costs(proxy, used(pool, f"SELECT n FROM {TABLE} WHERE n = %s", 7), 1)
        costs(proxy, lambda: pool.run(value, "SELECT %s::int", 7), 1)
        costs(proxy, refused, 1)
        costs(proxy, used(pool, f"INSERT INTO {TABLE} VALUES (1)", transaction=False), 1)
        assert not line[0].admin(f"SELECT n FROM {TABLE}")
        costs(proxy, used(pool, f"INSERT INTO {TABLE} VALUES (1)"), 2)
        costs(proxy, used(pool, f"INSERT INTO {TABLE} VALUES (%s)", 1), 2)
        costs(proxy, committed, 2)
        costs(proxy, many, 4)
        costs(proxy, in_autocommit, 1)
        # several statements: none of them may run outside the transaction
        costs(proxy, used(pool, "SELECT 1; SELECT 2"), 3)


def login(line: Any) -> dict[str, Any]:
    """How pg8000 connects by itself, through the proxy."""
    server, proxy = line
    place = proxy.url(server.url("pg8000")).rpartition("@")[2].partition("/")[0]
    host, _, port = place.partition(":")
    return {
        "user": server.user, "password": server.password, "host": host, "port": int(port),
        "database": server.database,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["legacy", "native"])
def test_other_connections_of_pg8000_cost_no_more(line: Any, name: str) -> None:
    proxy, given = line[1], login(line)
    make = pg8000.connect if name == "legacy" else pg8000.native.Connection

    def by_run() -> None:
        with pool.connection() as conn:
            assert conn.run("SELECT :n::int", n=7) == [[7]]

    with unbroken.Pool(connect=lambda: make(**given), driver="pg8000", max_size=1) as pool:
        for _ in range(4):
            with pool.connection() as conn:
                do(conn, "SELECT 1") if name == "legacy" else conn.run("SELECT 1")
            time.sleep(0.02)
        if name == "native":
            costs(proxy, by_run, 1)  # in autocommit
            return
        costs(proxy, used(pool, "SELECT %s::int", 7), 1)
        with pytest.raises(pg8000.IntegrityError), pool.connection() as conn:
            do(conn, "CREATE TEMP TABLE once (n INT UNIQUE)")
            conn.commit()
            do(conn, "INSERT INTO once VALUES (%s), (1)", 1)
        with pool.connection() as conn:
            assert value(conn, "SELECT count(*) FROM once") == 0


class OwnCursor(pg8000.dbapi.Cursor):
    def execute(self, operation: Any, args: Any = (), stream: Any = None) -> None:
        super().execute(operation.replace("six", "7"), args, stream)


class Wrapping:
    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class OwnConnection(pg8000.dbapi.Connection):
    made: Any

    def cursor(self) -> Any:
        return self.made(self)


@pytest.mark.parametrize("made", [OwnCursor, lambda conn: Wrapping(pg8000.dbapi.Cursor(conn))])
def test_cursors_of_the_applications_own_stay_as_they_are(line: Any, made: Any) -> None:
    given, opened = login(line), []

    def connect() -> Any:
        opened.append(OwnConnection(**given))
        opened[-1].made = made
        return opened[-1]

    with unbroken.Pool(connect=connect, driver="pg8000", max_size=1) as pool:
        for number in range(5):
            with pool.connection() as conn:
                assert value(conn, "SELECT six" if made is OwnCursor else "SELECT 7") == 7
                assert value(conn, "SELECT %s::int", number) == number
            left_due(pool)
    assert len(opened) == 1


# -- COMMITs that may fail although their transaction only read ------------------------------------


def test_the_commit_of_a_serializable_transaction_is_waited_for(line: Any) -> None:
    server, proxy = line
    read = f"SELECT n FROM {TABLE}"

    def chosen() -> None:
        with pool.connection() as conn:
            do(conn, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            do(conn, read)

    with warm(line) as pool:
        costs(proxy, chosen, 4)  # BEGIN goes alone before a SET
        costs(proxy, used(pool, read), 1)
        with pool.connection() as conn:
            do(conn, "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        costs(proxy, used(pool, read), 2)
    with warm(line) as pool:
        conn = pool.acquire()
        conn.__dict__["_unbroken_level"] = None  # it is asked again, together with what changes it
        do(conn, "SELECT set_config('default_transaction_isolation', 'serializable', false)")
        conn.commit()
        pool.release(conn)
        costs(proxy, used(pool, read), 2)
    proxy.latency(0)
    strict = server.url("pg8000", options="-c default_transaction_isolation=serializable")
    with warm(line, proxy.url(strict)) as pool:
        costs(proxy, used(pool, read), 2)


def test_a_server_that_does_not_tell_its_level_is_asked_once(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = trips._parse(b"SHOW no_such_setting") + trips._bind() + trips._EXECUTE
    attempts: list[Any] = []

    def work(conn: Any) -> None:
        attempts.append(conn)
        do(conn, f"INSERT INTO {TABLE} VALUES (%s)", 1)

    with warm(line) as pool:
        monkeypatch.setattr(trips, "_ASK_LEVEL", refused)
        conn = pool.acquire()
        conn.__dict__["_unbroken_level"] = None
        assert value(conn, "SELECT %s::int", 7) == 7
        assert conn._transaction_status == b"T"
        pool.release(conn)
        costs(line[1], used(pool, f"SELECT n FROM {TABLE}"), 2)
        conn._seen_asks = True
        pool.run(work)
        assert attempts == [conn]
        assert conn._seen_asks is False
    assert len(line[0].admin(f"SELECT n FROM {TABLE}")) == 1


# -- a statement never runs outside the transaction that its BEGIN opens ---------------------------


def test_a_statement_whose_begin_is_refused_does_not_run(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warm(line) as pool:
        for begin in ("BEGIN TRANSACTION ISOLATION LEVEL NOWHERE", "SELECT 1 / 0"):
            monkeypatch.setattr(
                trips, "_BEGIN", trips._parse(begin.encode()) + trips._bind() + trips._EXECUTE
            )
            with pool.connection() as conn:
                with pytest.raises(DatabaseError, match=r"(?i)nowhere|division"):
                    do(conn, f"INSERT INTO {TABLE} VALUES (%s)", 1)
                assert conn._transaction_status == b"I"
                assert pool._state.driver.is_quiet(conn)
            monkeypatch.undo()
            with pool.connection() as again:
                assert again is conn
                assert value(again, "SELECT %s::int", 7) == 7
    assert not line[0].admin(f"SELECT n FROM {TABLE}")


def test_a_server_that_opens_no_transaction_is_a_lost_connection(
    line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warm(line) as pool:
        monkeypatch.setattr(
            trips, "_BEGIN", trips._parse(b"SET a.b = 1") + trips._bind() + trips._EXECUTE
        )
        with pytest.raises(Exception, match="out of sync"), pool.connection() as conn:
            do(conn, "SELECT 1")
        monkeypatch.undo()
        with pool.connection() as other:
            assert other is not conn
            assert value(other, "SELECT 7") == 7


def test_a_refusal_of_begin_by_something_between_is_told_as_it_is(line: Any) -> None:
    server, _ = line
    with ExitStack() as stack:
        relay = stack.enter_context(relay_to(server))
        pool = stack.enter_context(warm(line, relay.url(server.url("pg8000", sslmode="disable"))))
        with pool.connection() as conn:
            relay.say("begin transaction", "57014", "canceling statement due to user request")
            with pytest.raises(DatabaseError, match="canceling"):
                do(conn, f"INSERT INTO {TABLE} VALUES (1)")
            assert pool._state.driver.is_in_transaction(conn) is False
        with pool.connection() as conn:
            assert value(conn, f"SELECT count(*) FROM {TABLE}") == 0
        attempts: list[Any] = []
        relay.say("begin transaction", "57P01", "terminating connection", ends=True)

        def work(conn: Any) -> None:
            attempts.append(conn)
            do(conn, f"INSERT INTO {TABLE} VALUES (1)")

        pool.run(work)  # nothing of the first attempt can be stored
        assert len(attempts) == 2
    assert len(server.admin(f"SELECT n FROM {TABLE}")) == 1


# -- the same as ever ------------------------------------------------------------------------------

KINDS = (
    "SELECT 1, 'x', NULL, 1.5, true, ARRAY[1, 2], DATE '2020-02-29', '\\xff'::bytea",
    "SELECT * FROM generate_series(1, 3)",
    "WITH x AS (SELECT 7 AS n) SELECT n FROM x",
    "VALUES (1, 'a'), (2, 'b')",
    "SHOW server_version",
    f"INSERT INTO {TABLE} VALUES (1), (2)",
    f"INSERT INTO {TABLE} VALUES (3) RETURNING n, n + 1 AS more",
    f"UPDATE {TABLE} SET n = n WHERE n < 3",
    f"DELETE FROM {TABLE} WHERE n = 3",
    "SELECT n FROM no_such_table",
    "SELEKT",
    "SELECT 1 / 0",
)


def test_rows_descriptions_and_errors_are_those_of_a_statement_alone(line: Any) -> None:
    def outcome(conn: Any, sql: str) -> Any:
        cursor = conn.cursor()
        try:
            cursor.execute(sql)
        except DatabaseError as error:
            return {key: text for key, text in error.args[0].items() if key in "SVCMP"}
        rows = list(cursor.fetchall()) if cursor.description else None
        return rows, cursor.description, cursor.rowcount

    with warm(line) as pool, pool.connection(transaction=False) as conn:
        for sql in KINDS:
            do(conn, f"TRUNCATE {TABLE}")
            conn.commit()
            together = outcome(conn, sql)
            assert conn._transaction_status in (b"T", b"E")
            conn.rollback()
            conn._seen_alone = False  # as behind a pooler
            apart = outcome(conn, sql)
            conn.rollback()
            conn._seen_alone = True
            assert together == apart, sql


def test_an_error_of_the_first_statement_leaves_the_transaction_failed(line: Any) -> None:
    with (
        warm(line) as pool,
        pytest.raises(InterfaceError, match="in failed transaction block"),
        pool.connection() as conn,
    ):
        with pytest.raises(DatabaseError, match='"nope" does not exist'):
            do(conn, "SELECT nope WHERE 1 = %s", 1)
        with pytest.raises(DatabaseError, match="current transaction is aborted"):
            do(conn, "SELECT 7")


# -- any first command -----------------------------------------------------------------------------


def _copy(conn: Any) -> None:
    out = io.StringIO()
    conn.cursor().execute("COPY (SELECT 7) TO STDOUT", stream=out)
    assert out.getvalue() == "7\n"
    conn.cursor().execute(f"COPY {TABLE} FROM STDIN", stream=io.StringIO("7\n8\n"))
    assert value(conn, f"SELECT count(*) FROM {TABLE}") == 2
    conn.rollback()


def _many(conn: Any) -> None:
    cursor = conn.cursor()
    cursor.executemany("SELECT %s::int", [(7,), (8,)])
    assert list(cursor.fetchall()) == [[8]]


def _in_autocommit(conn: Any) -> None:
    conn.autocommit = True
    assert value(conn, "SELECT %s::int", 7) == 7
    assert conn._transaction_status == b"I"


def _two_phases(conn: Any) -> None:
    conn.tpc_begin(conn.xid(0, "answers", ""))
    assert value(conn, "SELECT 7") == 7
    conn.tpc_rollback()


def _several(conn: Any) -> None:
    do(conn, "SELECT 7; SELECT 8")
    assert value(conn, "SELECT 9") == 9


def _listen(conn: Any) -> None:
    do(conn, "LISTEN answers")
    do(conn, "NOTIFY answers, 'heard'")
    conn.commit()
    do(conn, "SELECT 1")
    assert [each[2] for each in conn.notifications] == ["heard"]
    do(conn, "UNLISTEN answers")
    conn.commit()


def _types(conn: Any) -> None:
    cursor = conn.cursor()
    cursor.setinputsizes(pg8000.dbapi.INTEGER)
    cursor.execute("SELECT %s", (7,))
    assert cursor.fetchone() == [7]
    cursor.execute("SELECT %s", ("x",))  # they held for one statement
    assert cursor.fetchone() == ["x"]


def _names(conn: Any) -> None:
    style, pg8000.dbapi.paramstyle = pg8000.dbapi.paramstyle, "named"
    try:
        cursor = conn.cursor()
        cursor.execute("SELECT :a::int + :b::int", {"a": 3, "b": 4})
        assert cursor.fetchone() == [7]
    finally:
        pg8000.dbapi.paramstyle = style


def _called(conn: Any) -> None:
    with pytest.raises(DatabaseError, match="no_such_procedure"):
        conn.cursor().callproc("no_such_procedure", (1,))


def _bad_values(conn: Any) -> None:
    with pytest.raises(InterfaceError, match="Only %s and %% are supported"):
        do(conn, "SELECT %d", 1)
    with pytest.raises(DatabaseError, match="bind message supplies 2 parameters"):
        do(conn, "SELECT %s::int", 1, 2)
    conn.rollback()
    with pytest.raises(UnicodeEncodeError):
        do(conn, "SELECT %s::text", "\ud800")
    assert value(conn, "SELECT 7") == 7


def _refused(conn: Any) -> None:
    with pytest.raises(DatabaseError, match="division by zero"):
        do(conn, "SELECT 1 / %s::int", 0)
    conn.rollback()


def _simple(conn: Any) -> None:
    assert conn.execute_simple("SELECT 7").rows == [[7]]
    assert conn.execute_unnamed("SELECT $1::int", (7,)).rows == [[7]]
    name, columns, functions = conn.prepare_statement("SELECT $1::int", ())
    assert conn.execute_named(name, ("7",), columns, functions, "SELECT 7").rows == [[7]]
    conn.close_prepared_statement(name)


FIRST = [
    _copy, _many, _in_autocommit, _two_phases, _several, _listen, _types, _names, _called,
    _bad_values, _refused, _simple, lambda _conn: None, lambda conn: conn.commit(),
    lambda conn: conn.rollback(), lambda conn: conn.close(),
]  # fmt: skip


def test_any_first_command_gets_its_own_answer(line: Any) -> None:
    with warm(line) as pool:
        line[1].latency(0.005)
        for number, first in enumerate(FIRST):
            left = left_due(pool)
            is_closed = number == len(FIRST) - 1
            closed: Any = pytest.raises(unbroken.ClosedByHolderError)
            expected: Any = closed if is_closed else nullcontext()
            with expected, pool.connection() as conn:
                assert conn is left
                first(conn)
            for _ in range(2):
                with pool.connection() as conn:
                    assert value(conn, "SELECT %s::int", number) == number
                    assert conn.autocommit is False
    assert not line[0].admin(f"SELECT n FROM {TABLE}")


def test_what_the_server_says_unasked_is_no_answer(line: Any, until: Any) -> None:
    server, proxy = line

    def is_idle() -> Any:
        return server.admin(
            f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid} AND state = 'idle'"
            " AND query ~* '^(commit|rollback)'"
        )

    with warm(line) as pool:
        with pool.connection() as conn:
            do(conn, "LISTEN answers")
            pid = value(conn, "SELECT pg_backend_pid()")
        proxy.latency(0.01)
        for late in (False, False, False, True):
            with pool.connection() as again:
                assert again is conn
                do(conn, "SELECT 1")
                if not late:
                    server.admin("NOTIFY answers, 'early'")  # it comes before the answer
            if late:
                until(is_idle)
                server.admin("NOTIFY answers, 'late'")
                time.sleep(0.1)  # it lies before the taker, behind the answer
            with pool.connection() as again:
                assert again is conn
                do(conn, "DO $$ BEGIN RAISE NOTICE 'told'; END $$")
                assert b"told" in [each[b"M"] for each in conn.notices]
                if late:
                    assert [each[2] for each in conn.notifications] == ["late"]
            with pool.connection() as again:
                assert again is conn
                assert not conn.notices
                assert not conn.notifications
                assert value(conn, "SELECT 7") == 7
            left_due(pool)  # its answers are still left for later


def test_a_text_is_written_in_the_encoding_that_the_end_of_a_transaction_leaves(line: Any) -> None:
    text, proxy = "Gru\u00df", line[1]
    with warm(line) as pool:
        proxy.latency(0.01)
        for sql in ("SET client_encoding TO latin1", "SET LOCAL client_encoding TO latin1"):
            conn = pool.acquire()
            do(conn, sql)
            assert value(conn, "SELECT %s::text", text) == text
            pool.release(conn)
            driver: Any = pool._state.driver
            assert driver.owes_answer(conn)
            for question in ("SELECT octet_length(%s)", f"SELECT octet_length('{text}')"):
                conn = pool.acquire()
                assert value(conn, question, *([text] if "%" in question else [])) == 5
                assert value(conn, "SELECT %s::text", text) == text
                pool.release(conn)


# -- behind a pooler -------------------------------------------------------------------------------


def test_on_a_session_that_may_be_shared_nothing_is_sent_before_an_answer_came(line: Any) -> None:
    proxy = line[1]
    with warm(line) as pool:
        driver: Any = pool._state.driver

        def use() -> None:
            with pool.connection() as conn:
                driver.share(conn, True)
                do(conn, f"SELECT n FROM {TABLE} WHERE n = %s", 7)

        use()
        # BEGIN, the SELECT, the COMMIT; whose answer is waited for, as its level is not known
        pool._state.driver.share(left_due(pool), True)
        costs(proxy, use, 3)
