"""A watched connection tells the ledger of everything that goes out; what cannot be followed is a
doubt, never silence.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import unbroken.drivers
from unbroken.abc import Fault, FaultKind
from unbroken.ledger import scope, unit, verdicts


@pytest.fixture
def table(face: Any) -> Any:
    name = f"watch_{face.name}"
    face.server.admin(f"CREATE TABLE {name} (n INT)")
    if not face.is_mysql:
        face.server.admin(f"GRANT ALL ON {name} TO PUBLIC")
    yield name
    face.close()
    face.server.admin(f"DROP TABLE {name}")


@pytest.fixture
def conn(face: Any) -> Any:
    connection = face.connect()
    face.driver.watch(connection)
    return connection


def begin(face: Any, conn: Any) -> None:
    if not face.driver.capabilities.implicit_begin:
        face.call("begin", conn)


def test_a_statement_in_a_transaction_then_its_commit(
    face: Any, conn: Any, table: str, recorder: Any
) -> None:
    begin(face, conn)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    face.call("commit", conn)
    assert (f"INSERT INTO {table} VALUES (1)", False) in recorder.log
    assert recorder.log[-2:] == ["committing", "committed"]
    assert not recorder.doubts


def test_a_rollback_is_told_once_it_is_acknowledged(
    face: Any, conn: Any, table: str, recorder: Any
) -> None:
    begin(face, conn)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    face.call("rollback", conn)
    assert recorder.log[-1] == "rolled back"
    assert "committed" not in recorder.log


def test_autocommit_is_told_before_the_statement(face: Any, table: str, recorder: Any) -> None:
    conn = face.connect()
    face.autocommit(conn, True)
    if face.name == "mysqldb":
        face.call("commit", conn)
    face.driver.watch(conn)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    assert recorder.log == [(f"INSERT INTO {table} VALUES (1)", True)]


@pytest.fixture
def ledger() -> Any:
    """A real one, which says what became of the writes."""
    entered = unit.Unit()
    token = scope.enter(entered)
    yield entered
    scope.leave(token)


_SLOW_MYSQL = "SELECT SLEEP(30)"
_RUNNING = {
    "mariadb": "SELECT id FROM information_schema.processlist WHERE info LIKE 'INSERT%SLEEP%'",
    "postgresql": (
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'INSERT%sleep%' AND state = 'active'"
    ),
}


def kill_what_runs(server: Any, backend: str) -> None:
    """End the session whose statement sleeps, once it does."""
    deadline = time.monotonic() + 10
    while not (rows := server.admin(_RUNNING[backend])):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.admin(
        f"KILL {rows[0][0]}"
        if backend == "mariadb"
        else f"SELECT pg_terminate_backend({rows[0][0]})"
    )


def in_autocommit(face: Any, ledger: unit.Unit) -> Any:
    conn = face.connect()
    face.autocommit(conn, True)
    if face.name == "mysqldb":
        face.call("commit", conn)
    ledger.join(id(conn))
    face.driver.watch(conn)
    return conn


@pytest.mark.parametrize("returning", [False, True])
def test_a_write_in_autocommit_is_stored_once_it_is_answered(
    face: Any, table: str, ledger: unit.Unit, returning: bool
) -> None:
    conn = in_autocommit(face, ledger)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)" + " RETURNING n" * returning)
    assert ledger.fate() is verdicts.Fate.STORED
    face.execute(conn, "SELECT 1")
    assert ledger.fate() is verdicts.Fate.STORED


def test_a_write_in_autocommit_that_is_refused_is_not_stored_or_not_known(
    face: Any, table: str, ledger: unit.Unit
) -> None:
    conn = in_autocommit(face, ledger)
    with pytest.raises(face.driver.errors):
        face.execute(conn, f"INSERT INTO {table} VALUES (1), (1, 2)")
    # MySQL's server does not say whether something of the statement stays, as it does in a table
    # without transactions
    assert ledger.fate() is (verdicts.Fate.UNKNOWN if face.is_mysql else verdicts.Fate.NOTHING)


def test_a_write_in_autocommit_that_is_not_answered_is_not_known(
    face: Any, table: str, ledger: unit.Unit
) -> None:
    conn = in_autocommit(face, ledger)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    kill = threading.Thread(target=kill_what_runs, args=(face.server, face.server.backend))
    kill.start()
    with pytest.raises(Exception):  # noqa: B017 - each library has its own for what is lost
        face.execute(
            conn,
            f"INSERT INTO {table} "
            + (_SLOW_MYSQL if face.is_mysql else "SELECT 1 FROM pg_sleep(30)"),
        )
    kill.join()
    assert ledger.fate() is verdicts.Fate.UNKNOWN


def test_rows_that_are_still_to_come_leave_a_write_unknown(
    mysql_face: Any, ledger: unit.Unit
) -> None:
    face = mysql_face
    face.server.admin("CREATE TABLE watch_streams (n INT)")
    try:
        conn = in_autocommit(face, ledger)
        cursor = face.run(face.streaming_cursor(conn))
        face.run(cursor.execute("INSERT INTO watch_streams VALUES (1), (2) RETURNING n"))
        assert ledger.fate() is verdicts.Fate.UNKNOWN
    finally:
        face.close()
        face.server.admin("DROP TABLE watch_streams")


HERE = str(Path(unbroken.drivers.__file__).parent)


class Strike(Exception):  # noqa: N818 - what happened
    """As a signal handler raises it."""


def struck(at: int, work: Any) -> bool:
    """Do *work*, and raise at the line number *at* of what runs of the drivers' files.

    Whether it came so far.
    """
    seen = 0

    def trace(frame: Any, event: str, _arg: Any) -> Any:
        nonlocal seen
        if event == "line" and frame.f_code.co_filename.startswith(HERE):
            seen += 1
            if seen == at:
                raise Strike
        return trace

    before = sys.gettrace()
    gc.disable()  # what an earlier test left must not be finalized, and struck, in here
    sys.settrace(trace)
    try:
        work()
    except Exception:  # the strike, or what the library made of it
        pass
    finally:
        sys.settrace(before)
        gc.enable()
    return seen >= at


def test_after_a_strike_at_any_line_every_statement_is_still_told(
    face: Any, table: str, recorder: Any
) -> None:
    conn, at = None, 0
    while True:
        at += 1
        conn = face.connect() if conn is None else conn
        face.driver.watch(conn)
        if not struck(at, lambda conn=conn: face.execute(conn, "SELECT 1")):
            break
        recorder.log.clear()
        try:
            face.call("rollback", conn)
            face.execute(conn, f"INSERT INTO {table} VALUES ({at})")
        except Exception:
            face.driver.close(conn)  # it refuses: the pool would have closed it
            conn = None
        else:
            assert f"INSERT INTO {table} VALUES ({at})" in recorder.sent, at
            face.call("rollback", conn)
    assert at > 10


def test_an_explicit_transaction_in_autocommit_is_one(face: Any, table: str, recorder: Any) -> None:
    conn = face.connect()
    face.autocommit(conn, True)
    face.driver.watch(conn)
    face.execute(conn, "BEGIN")
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    told = recorder.log[-1]
    assert told[0] == f"INSERT INTO {table} VALUES (1)"
    # mysqlclient hides the server's status
    assert told[1] is False or (face.name == "mysqldb" and told[1] is None)
    face.execute(conn, "ROLLBACK")
    assert recorder.log[-1] == "rolled back"


def test_a_commit_written_as_text_is_seen_with_its_answer(
    face: Any, conn: Any, table: str, recorder: Any
) -> None:
    if face.name == "asyncpg":
        face.execute(conn, "BEGIN")
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    face.execute(conn, " commit ;")
    assert recorder.log[-2:] == ["committing", "committed"]


def test_many_rows_at_once_are_told(face: Any, conn: Any, table: str, recorder: Any) -> None:
    begin(face, conn)
    if face.name == "asyncpg":
        face.run(conn.executemany(f"INSERT INTO {table} VALUES ($1)", [(1,), (2,)]))
    elif face.is_async:

        async def many() -> None:
            cursor = (await conn.cursor()) if face.is_mysql else conn.cursor()
            await cursor.executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,)])

        face.run(many())
    else:
        conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,)])
    told = [
        entry
        for entry in recorder.log
        if isinstance(entry, tuple) and str(entry[0]).startswith("INSERT")
    ]
    assert told
    assert all(autocommit is False for _, autocommit in told)


def test_an_unwatched_connection_tells_nothing_and_is_what_it_was(
    face: Any, table: str, recorder: Any
) -> None:
    conn = face.connect()
    before = type(conn)
    face.driver.watch(conn)
    face.driver.watch(conn)  # twice is once
    face.driver.unwatch(conn)
    face.driver.unwatch(conn)
    assert type(conn) is before
    face.execute(conn, "SELECT 1")
    face.call("commit", conn)
    assert recorder.log == []


def test_outside_of_a_unit_a_watched_connection_works_as_ever(
    face: Any, conn: Any, table: str
) -> None:
    begin(face, conn)
    face.execute(conn, f"INSERT INTO {table} VALUES (7)")
    face.call("commit", conn)
    face.call("ping", conn, 2.0)
    assert face.server.admin(f"SELECT n FROM {table}") == [("7",)]


def test_a_commit_whose_connection_was_killed_stays_unanswered(
    face: Any, conn: Any, table: str, recorder: Any
) -> None:
    begin(face, conn)
    face.execute(conn, f"INSERT INTO {table} VALUES (1)")
    face.server.kill_sessions()
    with suppress(*face.driver.errors, OSError):
        face.call("commit", conn)
    assert recorder.log[-1] == "committing"


def test_a_commit_that_the_server_refuses_is_told_as_refused(pg_face: Any, recorder: Any) -> None:
    face = pg_face
    table = f"deferred_{face.name}"
    face.server.admin(
        f"CREATE TABLE {table} (n INT UNIQUE DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON {table}"
        " TO PUBLIC"
    )
    try:
        conn = face.connect()
        face.driver.watch(conn)
        begin(face, conn)
        face.execute(conn, f"INSERT INTO {table} VALUES (1), (1)")
        with pytest.raises(face.driver.errors):
            face.call("commit", conn)
        assert recorder.log[-2:] == ["committing", "commit failed"]
    finally:
        face.close()
        face.server.admin(f"DROP TABLE {table}")


def test_the_commit_of_a_failed_transaction_is_no_commit(pg_face: Any, recorder: Any) -> None:
    conn = pg_face.connect()
    pg_face.driver.watch(conn)
    begin(pg_face, conn)
    with suppress(*pg_face.driver.errors):
        pg_face.execute(conn, "SELECT * FROM no_such_table")
    with pytest.raises(
        pg_face.driver.errors
    ) as error:  # else an application would take its work for stored
        pg_face.call("commit", conn)
    assert not pg_face.driver.classify(error.value).is_lost
    assert recorder.log[-2:] == ["commit failed", "rolled back"]
    assert "committed" not in recorder.log


def test_two_connections_are_told_apart(face: Any, table: str) -> None:
    ledger = unit.Unit()
    token = scope.enter(ledger)
    try:
        first, second = face.connect(), face.connect()
        for conn in (first, second):
            face.driver.watch(conn)
            begin(face, conn)
            face.execute(conn, f"INSERT INTO {table} VALUES (1)")
        lost = ledger.verdict(Fault(FaultKind.LOST), conn_id=id(first))
        assert lost.action is verdicts.Action.RAISE  # the second one still holds writes
        face.call("rollback", second)
        assert (
            ledger.verdict(Fault(FaultKind.LOST), conn_id=id(first)).action
            is verdicts.Action.REPLAY
        )
    finally:
        scope.leave(token)


# -- one driver's own ways out ---------------------------------------------------------------------


def _pg(faces: Any, postgres: Any, name: str, recorder: Any) -> tuple[Any, Any]:
    face = faces(name, postgres)
    conn = face.connect()
    face.driver.watch(conn)
    return face, conn


def test_psycopg_tells_of_every_way_to_send(faces: Any, postgres: Any, recorder: Any) -> None:
    _face, conn = _pg(faces, postgres, "psycopg", recorder)
    with conn.transaction():
        conn.execute("SELECT 1")
        with conn.transaction():
            conn.execute(b"SELECT 2")
    assert recorder.sent[0] == "BEGIN"
    assert any(str(sql).startswith("SAVEPOINT") for sql in recorder.sent)
    assert any(str(sql).startswith("RELEASE") for sql in recorder.sent)
    assert recorder.log[-2:] == ["committing", "committed"]
    for _ in conn.cursor().stream("SELECT 3"):
        pass
    with conn.cursor("named") as cursor:
        cursor.execute("SELECT 4")
        cursor.fetchall()
    assert "SELECT 3" in recorder.sent
    assert any("DECLARE" in str(sql) and "SELECT 4" in str(sql) for sql in recorder.sent)
    assert any(str(sql).startswith("FETCH") for sql in recorder.sent)
    assert not recorder.doubts


def test_psycopg_composed_queries_are_told_as_text(
    faces: Any, postgres: Any, recorder: Any
) -> None:
    from psycopg import sql

    _, conn = _pg(faces, postgres, "psycopg", recorder)
    conn.execute(sql.SQL("SELECT {}").format(sql.Literal(5)))
    assert "SELECT 5" in recorder.sent


def test_psycopg_copy_is_told_without_text(faces: Any, postgres: Any, recorder: Any) -> None:
    _, conn = _pg(faces, postgres, "psycopg", recorder)
    with conn.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        list(copy)
    assert recorder.log[-1] == (None, False)


def test_psycopg_pipelines_and_libpq_are_doubts(faces: Any, postgres: Any, recorder: Any) -> None:
    _, conn = _pg(faces, postgres, "psycopg", recorder)
    assert conn.pgconn.transaction_status == 0  # a look does no harm
    assert not recorder.doubts
    with conn.pipeline():
        conn.execute("SELECT 1")
    assert len(recorder.doubts) == 1
    conn.rollback()
    conn.pgconn.exec_(b"SELECT 1")
    assert len(recorder.doubts) == 2


def test_a_psycopg_cursor_from_before_is_told_without_text(
    faces: Any, postgres: Any, recorder: Any
) -> None:
    import psycopg

    face = faces("psycopg", postgres)
    conn = face.connect()
    early = conn.cursor()
    face.driver.watch(conn)
    early.execute("SELECT 1")
    psycopg.ClientCursor(conn).execute("SELECT 2")
    assert [entry for entry in recorder.log if entry[0] is None] == [(None, False), (None, False)]


def test_a_psycopg_cursor_from_a_watch_lives_on_after_it(
    faces: Any, postgres: Any, recorder: Any
) -> None:
    face, conn = _pg(faces, postgres, "psycopg", recorder)
    cursor = conn.cursor()
    face.driver.unwatch(conn)
    cursor.execute("SELECT 1")
    assert recorder.log == []


def test_asyncpg_tells_of_every_way_to_send(faces: Any, postgres: Any, recorder: Any) -> None:
    face, conn = _pg(faces, postgres, "asyncpg", recorder)
    postgres.admin("CREATE TABLE watch_copy (n INT); GRANT ALL ON watch_copy TO PUBLIC")

    async def scene() -> None:
        early = await conn.prepare("SELECT 10 + $1::int")
        recorder.log.clear()
        async with conn.transaction():
            async with conn.transaction():
                await conn.fetchval("SELECT 1")
            await early.fetch(1)
            async for _ in conn.cursor("SELECT 2"):
                pass
            await conn.copy_records_to_table("watch_copy", records=[(1,)])
            await conn.copy_from_query("SELECT 3", output=_Sink())

    try:
        face.run(scene())
    finally:
        face.close()
        postgres.admin("DROP TABLE watch_copy")
    sent = " | ".join(str(sql) for sql in recorder.sent)
    for text in (
        "BEGIN",
        "SAVEPOINT",
        "SELECT 1",
        "RELEASE",
        "SELECT 10",
        "SELECT 2",
        "COPY",
        "SELECT 3",
    ):
        assert text in sent
    assert recorder.log[-2:] == ["committing", "committed"]
    assert all(
        entry[1] is False
        for entry in recorder.log
        if isinstance(entry, tuple) and not str(entry[0]).startswith("BEGIN")
    )


class _Sink:
    def write(self, data: bytes) -> None:
        pass


def test_in_an_asyncpg_transaction_of_ours_theirs_is_a_savepoint(
    faces: Any, postgres: Any, recorder: Any
) -> None:
    face, conn = _pg(faces, postgres, "asyncpg", recorder)
    face.call("begin", conn)

    async def theirs() -> None:
        async with conn.transaction():
            await conn.execute("SELECT 1")

    face.run(theirs())
    assert face.driver.is_in_transaction(conn) is True
    assert "committed" not in recorder.log
    face.call("commit", conn)
    assert face.driver.is_in_transaction(conn) is False
    face.call("begin", conn)  # and again
    face.execute(conn, "COMMIT")  # behind asyncpg's back
    face.call("commit", conn)
    face.call("begin", conn)
    face.call("rollback", conn)


@pytest.mark.parametrize("name", ["pymysql", "mysqldb"])
def test_procedures_and_several_statements_are_told_as_they_are(
    faces: Any, mariadb: Any, recorder: Any, name: str
) -> None:
    face = faces(name, mariadb)
    mariadb.admin("CREATE OR REPLACE PROCEDURE watch_p() BEGIN COMMIT; END")
    conn = face.connect()
    face.driver.watch(conn)
    conn.cursor().callproc("watch_p", ())
    assert any("CALL" in str(sql) for sql in recorder.sent)
    mariadb.admin("DROP PROCEDURE watch_p")


def test_mysqlclients_side_doors_are_doubts(faces: Any, mariadb: Any, recorder: Any) -> None:
    face = faces("mysqldb", mariadb)
    conn = face.connect()
    face.driver.watch(conn)
    conn.autocommit(True)
    assert recorder.sent == ["SET autocommit=1"]
    conn.change_user(mariadb.user, mariadb.password, mariadb.database)
    assert recorder.doubts


@pytest.mark.parametrize("name", ["pymysql", "mysqldb"])
def test_a_statement_of_a_thread_that_the_unit_started_is_told_to_it(
    faces: Any, mariadb: Any, recorder: Any, name: str
) -> None:
    face = faces(name, mariadb)
    conn = face.connect()
    face.driver.watch(conn)
    # Also in an empty context: the work is the unit's all the same.
    thread = threading.Thread(
        target=contextvars.Context().run, args=(face.execute, conn, "SELECT 1")
    )
    thread.start()
    thread.join(10)
    assert recorder.sent == ["SELECT 1"]
