"""Habits of single drivers that would harm the next borrower, and what is made up for them."""

from __future__ import annotations

import gc
import socket
import sys
from typing import Any

import pytest

from unbroken.abc import FaultKind
from unbroken.errors import ConfigurationError
from unbroken.ledger import scope


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_psycopg2_ends_a_transaction_that_was_begun_as_text_in_autocommit(
    faces: Any, postgres: Any, end: str
) -> None:
    face = faces("psycopg2", postgres)
    conn = face.connect()
    conn.autocommit = True
    face.execute(conn, "BEGIN")
    getattr(conn, end)()
    assert face.driver.is_in_transaction(conn) is True  # by itself it does nothing
    face.call(end, conn)
    assert face.driver.is_in_transaction(conn) is False


def test_after_a_commit_sent_as_text_psycopg2_is_put_right_before_the_next_borrower(
    faces: Any, postgres: Any
) -> None:
    face = faces("psycopg2", postgres)
    conn = face.connect()
    face.execute(conn, "SELECT 1")
    face.execute(conn, "COMMIT")
    # it believes so; the next statement would be in no transaction
    assert face.driver.is_in_transaction(conn) is None
    face.call("rollback", conn)
    assert face.driver.is_in_transaction(conn) is False
    face.execute(conn, "SELECT 1")
    assert face.driver.is_in_transaction(conn) is True


def test_what_psycopg2_hides_is_a_doubt(faces: Any, postgres: Any, recorder: Any) -> None:
    import psycopg2.extensions as extensions

    face = faces("psycopg2", postgres)
    theirs = face.by_library()
    face.driver.watch(theirs)
    assert len(recorder.doubts) == 1
    theirs.close()
    conn = face.connect()
    face.driver.watch(conn)
    # past the connection's own: it leaves a transaction open
    extensions.cursor(conn).execute("SELECT 1")
    face.execute(conn, "SELECT 2")
    assert len(recorder.doubts) == 2
    with pytest.raises(face.driver.errors) as caught:
        extensions.cursor(conn).execute("SELEKT")
    face.driver.classify(caught.value)
    assert len(recorder.doubts) == 3


def test_pg8000_with_an_answer_still_to_come_is_not_used_again(faces: Any, postgres: Any) -> None:
    face = faces("pg8000", postgres)
    conn = face.connect()
    conn.cursor().execute("CREATE TEMP TABLE texts (t TEXT)")
    with pytest.raises(UnicodeEncodeError):
        # it finds out after it has begun to send
        conn.cursor().execute("COPY texts FROM STDIN", stream=["\ud800"])
    assert not face.driver.is_quiet(conn)
    assert face.driver.is_in_transaction(conn) is None
    assert face.fault(lambda: face.call("rollback", conn)).kind is FaultKind.LOST
    conn = face.connect()
    for sql in ("SELEKT", "SELECT 1/0"):  # errors of the server's are answers
        with pytest.raises(face.driver.errors):
            conn.cursor().execute(sql)
        assert face.driver.is_quiet(conn)
        conn.rollback()
    with pytest.raises(face.driver.errors):
        conn.cursor().execute("SELECT 1/%s::int", (0,))
    assert face.driver.is_quiet(conn)
    face.call("rollback", conn)
    assert face.execute(conn, "SELECT 7") == [(7,)]


def test_pg8000_finds_a_value_that_cannot_be_sent_before_it_sends_anything(
    faces: Any, postgres: Any
) -> None:
    face = faces("pg8000", postgres)
    conn = face.connect()
    for autocommit in (False, True):
        conn.autocommit = autocommit
        for sql, values in (("SELECT %s::text", ("\ud800",)), ("SELECT %s, %d", (1, 2))):
            with pytest.raises((UnicodeEncodeError, face.driver.errors[0])):
                conn.cursor().execute(sql, values)
            assert face.driver.is_quiet(conn)
            face.call("rollback", conn)
            assert face.execute(conn, "SELECT 7") == [(7,)]
            face.call("rollback", conn)


@pytest.mark.parametrize("name", ["mysqlconnector", "mysqlconnector_async"])
def test_mysql_connector_takes_no_old_result_for_a_new_answer(
    faces: Any, mariadb: Any, name: str
) -> None:
    face = faces(name, mariadb)
    mariadb.admin("CREATE OR REPLACE PROCEDURE two_results() BEGIN SELECT 1; SELECT 2; END")
    conn = face.connect()

    async def asynchronous() -> None:
        cursor = await conn.cursor()
        await cursor.execute("CALL two_results()")
        await cursor.fetchall()

    if face.is_async:
        face.run(asynchronous())
    else:
        cursor = conn.cursor()
        cursor.execute("CALL two_results()")
        cursor.fetchall()
    assert not face.driver.is_quiet(conn)
    face.call("rollback", conn)
    assert face.execute(conn, "SELECT 3") == [(3,)]
    mariadb.admin("DROP PROCEDURE two_results")


@pytest.mark.parametrize("name", ["mysqlconnector", "mysqlconnector_async"])
def test_an_error_in_the_place_of_a_second_result_ends_the_answer(
    faces: Any, mariadb: Any, name: str
) -> None:
    face = faces(name, mariadb)
    conn = face.connect()
    mariadb.admin(
        "CREATE OR REPLACE PROCEDURE half() BEGIN SELECT 1; SELECT * FROM no_such_table; END"
    )
    with pytest.raises(face.driver.errors):
        face.execute(conn, "CALL half()")
    # it would wait for a third one for ever
    assert [int(row[0]) for row in face.execute(conn, "SELECT 2")] == [2]
    assert face.call("ping", conn, 5.0) is None


def test_a_pooled_connection_of_mysql_connector_is_refused(faces: Any, mariadb: Any) -> None:
    face = faces("mysqlconnector", mariadb)
    driver = face.make(None, connect=lambda: object(), driver="mysqlconnector")
    with pytest.raises(face.driver.errors, match="plain connection"):
        driver.connect(1.0)


def test_a_prepared_cursor_of_mariadb_is_told_by_what_it_runs(
    faces: Any, mariadb: Any, recorder: Any
) -> None:
    face = faces("mariadbconnector", mariadb)
    conn = face.connect()
    face.driver.watch(conn)
    cursor = conn.cursor(prepared=True)
    cursor.execute("SELECT ?", (1,))
    cursor.execute("SELECT 'something else'", (2,))  # it runs the first one again
    assert recorder.sent == ["SELECT ?", "SELECT ?"]


def test_a_cursor_of_mariadb_made_past_its_connection_is_told_too(
    faces: Any, mariadb: Any, recorder: Any
) -> None:
    import mariadb as library

    face = faces("mariadbconnector", mariadb)
    conn = face.connect()
    face.driver.watch(conn)
    library.cursors.Cursor(conn).execute("SELECT 5")
    assert recorder.sent == ["SELECT 5"]
    assert face.driver.is_in_transaction(conn) is None
    assert scope.current(id(conn)) is recorder


@pytest.mark.parametrize(
    "how", ["plain", "a class of the application's", "a function of the application's"]
)
def test_a_cursor_of_mariadb_that_is_garbage_takes_nothing_from_its_connection(
    faces: Any, mariadb: Any, how: str
) -> None:
    """By itself, the library tells the collector of a reference that it does not own: later uses of
    the connection crash.
    """
    import mariadb as library

    class Own(library.cursors.Cursor):  # type: ignore[misc]
        pass

    given = {
        "plain": (),
        "a class of the application's": (Own,),
        "a function of the application's": (lambda *args, **kw: Own(*args, **kw),),
    }
    face = faces("mariadbconnector", mariadb)
    conn = face.connect()
    before = sys.getrefcount(conn)
    for _ in range(20):
        cursor = conn.cursor(*given[how])
        assert not gc.is_tracked(cursor), "the next lines would crash"
        cursor.execute("SELECT 5")
        cycle = [cursor]
        cycle.append(cycle)
        del cursor, cycle
    gc.collect()
    assert sys.getrefcount(conn) == before
    assert face.execute(conn, "SELECT 6") == [(6,)]


def test_a_connection_of_mariadb_may_be_closed_before_a_cursor_with_rows_to_come(
    faces: Any, mariadb: Any
) -> None:
    face = faces("mariadbconnector", mariadb)
    for _ in range(20):
        conn = face.connect()
        cursor = conn.cursor(buffered=False)
        cursor.execute("SELECT seq FROM seq_1_to_10000")
        assert cursor.fetchone() == (1,)
        face.driver.close(conn)
        assert face.driver.fileno(conn) is None or not face.driver.is_quiet(conn)
        cursor.close()
        del cursor, conn


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca", "verify-full"])
def test_pg8000_keeps_libpqs_modes_of_tls(faces: Any, new_postgres: Any, mode: str) -> None:
    server = new_postgres(tls=True)
    face = faces("pg8000", server)
    conn = face.connect(
        driver=face.make(
            face.url(
                sslmode=mode, **({"sslrootcert": str(server.ca_file)} if "verify" in mode else {})
            )
        )
    )
    assert face.execute(conn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [
        (mode != "disable",)
    ]
    with pytest.raises(ConfigurationError, match="one of disable"):
        face.make(face.url(sslmode="perhaps"))


def test_what_pg8000_could_not_send_is_not_complained_of_later(
    faces: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.13 on a file that is collected says so; by the order of a free-threaded one's
    collector it would each time.
    """
    face, said = faces("pg8000", postgres), []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    conn = face.connect()
    conn._usock.shutdown(socket.SHUT_RDWR)
    try:
        face.execute(conn, "SELECT 1")
    except Exception as error:
        cycle: list[Any] = [error]  # with all that its frames hold
        cycle.append(cycle)
        del cycle
    face.driver.close(conn)
    face.opened.clear()
    del conn
    gc.collect()
    assert said == []
