"""What only the server can say before a unit is run again: may a SELECT have written, is it a
failover, was a statement too large?
"""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import Iterator
from typing import Any

import pytest

import unbroken
from unbroken.drivers._base import Base
from unbroken.ledger.scope import enter, leave
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Fate
from unbroken.pool import servers

BLOCKING = [
    "pymysql",
    "mysqldb",
    "mysqlconnector",
    "mariadbconnector",
    "psycopg",
    "psycopg2",
    "pg8000",
]
if sysconfig.get_config_var("Py_GIL_DISABLED"):  # as far as they are released for it
    BLOCKING = ["pymysql", "psycopg", "pg8000"]
POSTGRESQL = ("psycopg", "psycopg2", "pg8000")


@pytest.fixture(params=BLOCKING)
def any_face(request: pytest.FixtureRequest, faces: Any) -> Any:
    """Every blocking driver in turn, on a server of its own."""
    name = request.param
    face = faces(
        name, request.getfixturevalue("new_postgres" if name in POSTGRESQL else "new_mariadb")()
    )
    face.is_mysql = name not in POSTGRESQL
    return face


@pytest.fixture
def hidden(any_face: Any) -> Iterator[tuple[Any, str]]:
    """A face, and a table into which each SELECT from the view ``writing`` puts a row."""
    face = any_face
    table, admin = face.table(), face.server.admin
    if face.is_mysql:
        admin(
            f"CREATE FUNCTION put() RETURNS INT BEGIN INSERT INTO {table} VALUES (1); RETURN 1; END"
        )
        admin("CREATE VIEW writing AS SELECT put() AS n")
    else:
        admin(
            "CREATE FUNCTION put() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO"
            f" {table} VALUES (1) RETURNING 1'"
        )
        admin("CREATE VIEW writing AS SELECT put() AS n")
        admin(f'GRANT ALL ON writing TO "{face.server.user}"')
    yield face, table
    if face.server.is_running:
        face.server.kill_sessions()
        admin("DROP VIEW writing")
        admin("DROP FUNCTION put")


def autocommit(face: Any) -> Any:
    """A pool whose connections are in autocommit."""
    pool = face.pool(max_size=3)
    if face.name == "pg8000":
        begin = pool._driver.connect

        def connect(timeout: float, login: Any = None) -> Any:
            conn = begin(timeout, login)
            conn.autocommit = True
            return conn

        pool._driver.connect = connect
        return pool
    return face.pool(face.url(autocommit="true"), max_size=3)


@pytest.mark.parametrize("how", ["committed", "autocommit"])
def test_a_select_that_wrote_and_was_committed_is_not_run_again(hidden: Any, how: str) -> None:
    face, table = hidden
    pool = autocommit(face) if how == "autocommit" else face.pool(max_size=3)
    runs = []

    @unbroken.replayable
    def unit() -> None:
        runs.append(1)
        with pool.connection() as conn:
            face.ask(conn, "SELECT n FROM writing")
        with pool.connection() as conn:
            if len(runs) == 1:
                face.server.kill_sessions()
            face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors) as caught:
        unit()
    assert len(runs) == 1
    assert face.stored(table) == [1]
    assert any("writing" in note and "may write" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("arrives", [False, True], ids=["lost on the way", "answer lost"])
def test_a_lost_commit_of_a_select_that_may_have_written_is_unknown(
    hidden: Any, arrives: bool
) -> None:
    face, table = hidden
    proxy, runs = face.proxy(), []
    plain = {
        "mysqldb": {"ssl_mode": "DISABLED"},
        "mysqlconnector": {"ssl_disabled": "true"},
        "mariadbconnector": {"ssl": "false"},
    }
    pool = face.pool(proxy.url(face.url(**plain.get(face.name, {}))))
    pool.check()

    def work(conn: Any) -> None:
        runs.append(1)
        face.ask(conn, "SELECT n FROM writing")
        if len(runs) == 1:
            proxy.cut_at("COMMIT", before=not arrives)

    with pytest.raises(unbroken.CommitUnknownError) as caught:
        pool.run(work)
    assert caught.value.fate is Fate.UNKNOWN
    assert len(runs) == 1
    assert face.stored(table) == ([1] if arrives else [])


def test_a_select_that_wrote_in_a_transaction_that_was_lost_is_run_again(hidden: Any) -> None:
    face, table = hidden
    pool, runs = face.pool(max_size=3), []

    def work(conn: Any) -> None:
        runs.append(1)
        face.ask(conn, "SELECT n FROM writing")
        if len(runs) == 1:
            face.server.kill_sessions()
        face.ask(conn, "SELECT 1")

    pool.run(work)
    assert len(runs) == 2
    assert face.stored(table) == [1]


@pytest.mark.parametrize("how", ["committed", "autocommit"])
@pytest.mark.parametrize("views", [False, True], ids=["no view", "a view that only reads"])
def test_a_request_that_read_committed_and_reads_again_is_run_again(
    any_face: Any, how: str, views: bool
) -> None:
    face = any_face
    table, runs = face.table(), []
    face.server.admin(f"INSERT INTO {table} VALUES (7)")
    if views:
        face.server.admin(
            f"CREATE VIEW reading AS SELECT n, upper('a') AS a FROM {table} WHERE n IN (SELECT"
            f" max(n) FROM {table})"
        )
        face.server.admin("CREATE VIEW again AS SELECT n + 1 AS n FROM reading")
        if not face.is_mysql:
            face.server.admin(f'GRANT ALL ON reading, again TO "{face.server.user}"')
    pool = autocommit(face) if how == "autocommit" else face.pool(max_size=3)

    @unbroken.replayable
    def unit() -> Any:
        runs.append(1)
        with pool.connection() as conn:
            face.ask(conn, f"SELECT n FROM {table} WHERE n > 0")
            if views:
                face.ask(conn, "SELECT n FROM again")
        with pool.connection() as conn:
            if len(runs) == 1:
                face.server.kill_sessions()
            return face.ask(conn, f"SELECT n FROM {table}")

    try:
        assert unit() == 7
        assert len(runs) == 2
    finally:
        if views:
            face.server.kill_sessions()
            face.server.admin("DROP VIEW again")
            face.server.admin("DROP VIEW reading")


def test_a_server_that_cannot_be_asked_forbids_the_replay(
    own_face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = own_face
    table, pool, runs = face.table(), face.pool(max_size=3), []
    face.server.admin(f"INSERT INTO {table} VALUES (7)")

    def refuse(_conn: Any, _sql: str) -> Any:
        raise pool._driver.errors[0]("no")

    monkeypatch.setattr(pool._driver, "ask", refuse, raising=False)

    @unbroken.replayable
    def unit() -> None:
        runs.append(1)
        with pool.connection() as conn:
            face.ask(conn, f"SELECT n FROM {table}")
        with pool.connection() as conn:
            face.server.kill_sessions()
            face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors) as caught:
        unit()
    assert len(runs) == 1
    assert any("could not be asked" in note for note in caught.value.__notes__)
    assert pool.stats().used == 0


def test_no_question_is_asked_where_nothing_is_run_again_or_nothing_was_looked_at(
    own_face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = own_face
    table, pool, asked, runs = face.table(), face.pool(max_size=3), [], []
    pool.check()  # a server is asked once when it is first connected to
    monkeypatch.setattr(pool._driver, "ask", lambda *_: asked.append(1), raising=False)

    def work(conn: Any) -> None:
        runs.append(1)
        face.ask(conn, "SELECT 1")
        conn.commit()
        face.do(conn, f"SELECT n FROM {table}")
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        if len(runs) == 1:
            face.server.kill_sessions()
        face.ask(conn, "SELECT 1")

    pool.run(work)
    pool.run(lambda conn: face.do(conn, f"SELECT n FROM {table}"))
    assert len(runs) == 2
    assert asked == []
    assert face.stored(table) == [1]


# -- read only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["session", "transaction"])
def test_a_write_that_the_application_forbade_itself_is_its_own_error(
    any_face: Any, how: str
) -> None:
    """Eleven attempts, and a pool thrown away."""
    face = any_face
    table, pool, runs = face.table(), face.pool(max_size=3), []
    session = (
        "SET SESSION TRANSACTION READ ONLY"
        if face.is_mysql
        else "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    )
    transaction = "START TRANSACTION READ ONLY" if face.is_mysql else "SET TRANSACTION READ ONLY"

    def work(conn: Any) -> None:
        runs.append(1)
        face.do(conn, session if how == "session" else transaction)
        if how == "session":
            conn.commit()
        face.do(conn, f"INSERT INTO {table} VALUES (1)")

    idle = [pool.acquire(), pool.acquire()]
    sessions = {face.session(conn) for conn in idle}
    for conn in idle:
        pool.release(conn)
    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert not isinstance(caught.value, unbroken.UnbrokenError)
    assert runs == [1]
    assert face.stored(table) == []
    assert pool.stats().closed.get("failover", 0) == 0
    assert pool.run(face.session) in sessions
    if how == "transaction":
        pool.run(lambda conn: face.do(conn, f"INSERT INTO {table} VALUES (2)"))
        assert face.stored(table) == [2]


def test_a_server_that_takes_no_writes_is_left_and_the_unit_run_again(own_face: Any) -> None:
    face = own_face
    table, pool, runs = face.table(), face.pool(max_size=3), []
    option = (
        ("read_only", 1, 0) if face.is_mysql else ("default_transaction_read_only", "on", "off")
    )
    pool.check()
    face.server.set(**{option[0]: option[1]})

    def work(conn: Any) -> None:
        runs.append(face.session(conn))
        if len(runs) == 2:
            face.server.set(**{option[0]: option[2]})
            conn.rollback()
        face.do(conn, f"INSERT INTO {table} VALUES (1)")

    pool.run(work)
    assert len(set(runs)) == 2
    assert face.stored(table) == [1]
    assert pool.stats().closed["failover"] == 1


def test_a_standby_is_told_from_a_read_only_transaction(
    own_face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_face.is_mysql:
        pytest.skip("PostgreSQL's standbys say the same words as its read-only transactions")
    face = own_face
    table, pool = face.table(), face.pool(max_size=1)
    pool.check()  # it took writes before
    asked = []

    def ask(_conn: Any, sql: str) -> Any:
        asked.append(sql)
        return [(True, "off", "default")]

    monkeypatch.setattr(pool._driver, "ask", ask, raising=False)
    with pytest.raises(pool._driver.errors), pool.connection() as conn:
        face.do(conn, "SET TRANSACTION READ ONLY")
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
    assert sum("pg_is_in_recovery" in sql for sql in asked) >= 1
    assert pool.stats().closed["failover"] == 1
    assert pool._current().server.outage.active


# -- too large -------------------------------------------------------------------------------------


def test_a_statement_that_is_too_large_is_sent_once_and_told_by_its_name(own_face: Any) -> None:
    if not own_face.is_mysql:
        pytest.skip("PostgreSQL takes a gigabyte")
    face = own_face
    face.server.admin("SET GLOBAL max_allowed_packet = 1048576")
    face.server.admin("CREATE TABLE texts (t LONGTEXT)")
    pool, runs = face.pool(max_size=3), []

    def work(conn: Any) -> None:
        runs.append(1)
        face.do(conn, "INSERT INTO texts VALUES (%s)", "x" * 3_000_000)

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert len(runs) == 1
    assert any(
        "max_allowed_packet" in str(said) for said in (caught.value, *caught.value.__notes__)
    )
    assert face.server.admin("SELECT count(*) FROM texts")[0][0] in (0, "0")


# -- what ends its session -------------------------------------------------------------------------


def test_a_statement_that_always_ends_its_session_is_sent_twice(own_face: Any) -> None:
    """Eleven attempts were eleven crash recoveries of the whole server."""
    face = own_face
    proxy, runs = face.proxy(), []
    proxy.cut_at("SELECT 4711", times=100)
    pool = face.pool(proxy.url(face.url()), max_size=3)

    def work(conn: Any) -> None:
        runs.append(1)
        face.ask(conn, "SELECT 1")
        face.ask(conn, "SELECT 4711")

    with pytest.raises(pool._driver.errors) as caught:
        pool.run(work)
    assert len(runs) == 2
    assert any("ends its session" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("older", [1, 2])
def test_sessions_that_may_have_been_ended_together_do_not_make_a_statement_suspect(
    own_face: Any, older: int
) -> None:
    """A server that stops ends one session after the other: two attempts may meet that. A
    connection that was opened since the first loss is lost by something else.
    """
    face = own_face
    proxy, runs = face.proxy(), []
    proxy.cut_at("SELECT 4711", times=2)
    pool = face.pool(proxy.url(face.url()), max_size=2)
    leases = [pool.connection() for _ in range(older)]
    for conn in [lease.__enter__() for lease in leases]:
        face.ask(conn, "SELECT 1")
    for lease in leases:
        lease.__exit__(None, None, None)

    @unbroken.replayable
    def work() -> None:
        runs.append(1)
        with pool.connection() as conn:
            face.ask(conn, "SELECT 4711")

    if older == 2:
        work()
        assert len(runs) == 3
        return
    with pytest.raises(pool._driver.errors) as caught:
        work()
    assert len(runs) == 2
    assert any("ends its session" in note for note in caught.value.__notes__)


def test_a_session_that_is_killed_twice_at_different_statements_is_run_again(own_face: Any) -> None:
    face = own_face
    pool, runs = face.pool(max_size=3), []

    def work(conn: Any) -> None:
        runs.append(1)
        face.ask(conn, "SELECT 1")
        if len(runs) == 1:
            face.server.kill_sessions()
        face.ask(conn, "SELECT 'a'")
        if len(runs) == 2:
            face.server.kill_sessions()
        face.ask(conn, "SELECT 'a', 'b'")

    pool.run(work)
    assert len(runs) == 3


def test_a_connection_that_its_holder_closed_is_no_reason_to_run_a_unit_again(
    own_face: Any,
) -> None:
    face = own_face
    table, pool, runs = face.table(), face.pool(max_size=3), []
    if type(pool._driver).was_closed is Base.was_closed:
        pytest.skip("this driver does not tell a connection that was closed from a lost one")

    def work(conn: Any) -> None:
        runs.append(1)
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        conn.close()

    with pytest.raises(pool._driver.errors):
        pool.run(work)
    assert len(runs) == 1
    assert face.stored(table) == []
    assert pool.stats().closed == {"closed by its holder": 1}


def test_an_unanswered_xa_commit_is_unknown(own_face: Any) -> None:
    face = own_face
    table, proxy, runs = face.table(), face.proxy(), []
    if not face.is_mysql:
        pytest.skip("max_prepared_transactions is 0")
    pool = face.pool(proxy.url(face.url()), max_size=3)

    @unbroken.replayable
    def unit() -> None:
        runs.append(1)
        with pool.connection(transaction=False) as conn:
            for sql in (
                "XA START 'x'",
                f"INSERT INTO {table} VALUES (1)",
                "XA END 'x'",
                "XA PREPARE 'x'",
            ):
                face.do(conn, sql)
            proxy.cut_at("XA COMMIT")
            face.do(conn, "XA COMMIT 'x'")

    with pytest.raises(unbroken.CommitUnknownError) as caught:
        unit()
    assert caught.value.fate is Fate.UNKNOWN
    assert len(runs) == 1
    assert face.stored(table) == [1]


# -- asyncio ---------------------------------------------------------------------------------------


async def _lose(body: Any, conn: Any) -> None:
    me = await body.who(conn)
    await asyncio.to_thread(body.server._kill_session, me)
    await body.until(lambda: me not in body.ids())


def test_a_select_that_wrote_and_was_committed_is_not_run_again_on_asyncio(own_body: Any) -> None:
    body = own_body
    table, admin = body.table(), body.server.admin
    if body.is_mysql:
        admin(
            f"CREATE FUNCTION put() RETURNS INT BEGIN INSERT INTO {table} VALUES (1); RETURN 1; END"
        )
    else:
        admin(
            "CREATE FUNCTION put() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO"
            f" {table} VALUES (1) RETURNING 1'"
        )
    admin("CREATE VIEW writing AS SELECT put() AS n")
    if not body.is_mysql:
        admin("GRANT ALL ON writing TO PUBLIC")
    runs = []

    async def main() -> None:
        async with body.pool(max_size=3) as pool:

            @unbroken.replayable
            async def unit() -> None:
                runs.append(1)
                async with pool.connection() as conn:
                    await body.ask(conn, "SELECT n FROM writing")
                async with pool.connection() as conn:
                    await _lose(body, conn)
                    await body.ask(conn, "SELECT 1")

            error = await body.outcome(unit())
            assert error is not None
            assert any("may write" in note for note in error.__notes__)

    body.run(main())
    assert runs == [1]
    assert body.rows() == [1]


def test_a_task_that_read_committed_and_reads_again_is_run_again(own_body: Any) -> None:
    body = own_body
    table, runs = body.table(), []

    async def main() -> None:
        async with body.pool(max_size=3) as pool:

            @unbroken.replayable
            async def unit() -> None:
                runs.append(1)
                async with pool.connection() as conn:
                    await body.ask(conn, f"SELECT n FROM {table}")
                async with pool.connection() as conn:
                    if len(runs) == 1:
                        await _lose(body, conn)
                    await body.ask(conn, f"SELECT n FROM {table}")

            await unit()

    body.run(main())
    assert runs == [1, 1]


def test_a_write_that_a_task_forbade_itself_is_its_own_error(own_body: Any) -> None:
    body = own_body
    table, runs = body.table(), []

    async def main() -> None:
        async with body.pool(max_size=2) as pool:

            async def work(conn: Any) -> None:
                runs.append(1)
                await body.do(
                    conn,
                    "START TRANSACTION READ ONLY" if body.is_mysql else "SET TRANSACTION READ ONLY",
                )
                await body.do(conn, f"INSERT INTO {table} VALUES (1)")

            error = await body.outcome(pool.run(work))
            assert isinstance(error, pool._driver.errors)
            assert pool.stats().closed.get("failover", 0) == 0
            await pool.run(lambda conn: body.do(conn, f"INSERT INTO {table} VALUES (2)"))
            assert pool.stats().opened == 1

    body.run(main())
    assert runs == [1]
    assert body.rows() == [2]


# -- what is known when the server is away ---------------------------------------------------------


def test_a_read_that_was_committed_stored_nothing_as_far_as_the_server_said(
    own_face: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A web body may tell its client to try again only where nothing is stored, and cannot ask when
    the server is away.
    """
    face = own_face
    monkeypatch.setattr(servers, "REMEMBERED", 0.05)
    table, pool = face.table(), face.pool(max_size=2)

    def fate_of(sql: str) -> Fate:
        unit = Unit(observing=True)
        token = enter(unit)
        try:
            with pool.connection() as conn:
                face.do(conn, sql)
        finally:
            leave(token)
        return unit.fate()

    assert fate_of(f"SELECT n FROM {table}") is Fate.NOTHING
    if face.is_mysql:
        face.server.admin(
            f"CREATE FUNCTION put() RETURNS INT BEGIN INSERT INTO {table} VALUES (1); RETURN 1; END"
        )
    else:
        face.server.admin(
            f"CREATE FUNCTION put() RETURNS int LANGUAGE sql AS 'INSERT INTO {table} VALUES (1)"
            " RETURNING 1'"
        )
    face.server.admin("CREATE VIEW writing AS SELECT put() AS n")
    fate_of("SELECT 1 + 1")  # it is asked again soon after somebody looked at something
    until(lambda: pool._state.may_hide_writes)
    assert fate_of(f"SELECT n FROM {table}") is Fate.UNKNOWN
    assert fate_of("SELECT 1") is Fate.NOTHING
    face.server.admin("DROP VIEW writing")
    until(lambda: not pool._state.may_hide_writes)
    assert fate_of(f"SELECT n FROM {table}") is Fate.NOTHING


def test_a_pause_that_is_longer_than_the_server_allows_is_made_twice_and_no_more(
    any_face: Any, until: Any
) -> None:
    """MySQL counts it as idleness, PostgreSQL as idleness in a transaction."""
    face = any_face
    face.server.set(
        **({"wait_timeout": 1} if face.is_mysql else {"idle_in_transaction_session_timeout": "1s"})
    )
    pool, table, calls = face.pool(), face.table(), []

    def work(conn: Any) -> None:
        calls.append(face.session(conn))
        face.do(conn, f"INSERT INTO {table} VALUES (1)")
        until(lambda: calls[-1] not in {session.id for session in face.server.sessions()})
        # the pause is longer than the news take to come
        until(lambda: all(entry.cause for entry in pool._state.in_use.values()))
        face.ask(conn, "SELECT 1")

    with pytest.raises(pool._driver.errors):
        pool.run(work)
    assert len(calls) == 2
    assert pool.stats().closed == {"idle limit" if face.is_mysql else "transaction limit": 2}
    assert face.stored(table) == []
