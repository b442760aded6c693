"""is_in_transaction is never wrong: whatever is sent, True and False are what the server says of
itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MYSQL_STEPS = [
    "SELECT 1", "SELECT * FROM {t}", "SELECT * FROM {t} FOR UPDATE", "INSERT INTO {t} VALUES (NULL)", "INSERT INTO {t} VALUES (1)",  # noqa: E501
    "INSERT INTO {t} VALUES (NULL) RETURNING n", "UPDATE {t} SET n = n WHERE n = 1", "DELETE FROM {t} WHERE n > 1", "SHOW TABLES",  # noqa: E501
    "COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "BEGIN", "START TRANSACTION READ ONLY", "START TRANSACTION WITH CONSISTENT SNAPSHOT",  # noqa: E501
    "SAVEPOINT a", "ROLLBACK TO a", "RELEASE SAVEPOINT a", "SET autocommit = 0", "SET autocommit = 1", "SET @x = 1, autocommit = 0",  # noqa: E501
    "SET completion_type = 1", "SET completion_type = 0", "CREATE TABLE IF NOT EXISTS {t} (n INT)", "CREATE TEMPORARY TABLE {t}_tmp (n INT)",  # noqa: E501
    "TRUNCATE {t}", "ANALYZE TABLE {t}", "LOCK TABLES {t} WRITE", "UNLOCK TABLES", "CALL {t}_begins()", "CALL {t}_commits()",  # noqa: E501
    "CALL {t}_reads()", "EXECUTE IMMEDIATE 'BEGIN'", "SELEKT", "SELECT * FROM no_such_table", "SET STATEMENT max_statement_time = 1 FOR SELECT 1",  # noqa: E501
    "SET TRANSACTION READ ONLY", "DO 1", "XA START 'x'", "XA END 'x'", "XA ROLLBACK 'x'", "SELECT n INTO @a FROM {t} LIMIT 1",  # noqa: E501
    "WITH c AS (SELECT 1) SELECT * FROM c", "-- nothing\nBEGIN", "SELECT 1; BEGIN", "SELECT ';'",
]  # fmt: skip
MYSQL_CALLS = [
    "commit",
    "rollback",
    "begin",
    "autocommit on",
    "autocommit off",
    "ping",
    "idle_limit",
    "driver commit",
    "driver rollback",
]

PG_STEPS = [
    "SELECT 1", "INSERT INTO {t} DEFAULT VALUES", "INSERT INTO {t} VALUES (1)", "COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "BEGIN", "SAVEPOINT a",  # noqa: E501
    "ROLLBACK TO a", "SELEKT", "CREATE TEMP TABLE IF NOT EXISTS tmp (n INT)", "DO 'BEGIN NULL; END'", "SHOW TIME ZONE", "LISTEN x", "",  # noqa: E501
]  # fmt: skip
PG_CALLS = [
    "ping",
    "idle_limit",
    "driver commit",
    "driver rollback",
    "driver begin",
    "autocommit on",
    "autocommit off",
]


def steps(sql: list[str], calls: list[str]) -> Any:
    return st.lists(
        st.one_of(st.sampled_from(sql), st.sampled_from(calls).map(lambda c: f"@{c}")), max_size=12
    )


def take(face: Any, conn: Any, step: str, table: str) -> None:
    """One step; the server may refuse it."""
    with suppress(*face.driver.errors, ValueError):
        if not step.startswith("@"):
            face.execute(conn, step.format(t=table))
        elif step == "@ping":
            face.call("ping", conn, 5.0)
        elif step == "@idle_limit":
            face.call("idle_limit", conn)
        elif step.startswith("@driver "):
            face.call(step.split()[1], conn)
        elif step.startswith("@autocommit"):
            face.autocommit(conn, step.endswith("on"))
        elif step == "@begin":
            face.call("begin", conn)
        else:
            face.run(getattr(conn, step[1:])())


@pytest.fixture(scope="module")
def mysql_table(mariadb: Any) -> Any:
    t = "status_steps"
    mariadb.admin(
        f"CREATE TABLE {t} (n INT PRIMARY KEY AUTO_INCREMENT) ENGINE = InnoDB; INSERT INTO {t}"
        " VALUES (1)"
    )
    mariadb.admin(f"CREATE PROCEDURE {t}_begins() BEGIN START TRANSACTION; SELECT 1; END")
    mariadb.admin(f"CREATE PROCEDURE {t}_commits() BEGIN SELECT 1; COMMIT; END")
    mariadb.admin(f"CREATE PROCEDURE {t}_reads() BEGIN SELECT * FROM {t}; SELECT 2; END")
    yield t
    for name in ("begins", "commits", "reads"):
        mariadb.admin(f"DROP PROCEDURE {t}_{name}")
    mariadb.admin(f"DROP TABLE {t}")


@given(sequence=steps(MYSQL_STEPS, MYSQL_CALLS), autocommit=st.booleans())
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_a_mysql_driver_says_is_what_mariadb_says(
    mysql_face: Any, mysql_table: str, sequence: list[str], autocommit: bool
) -> None:
    face = mysql_face
    driver = face.make(face.url(autocommit=str(autocommit).lower()))
    conn = face.connect(driver=driver)
    try:
        for step in sequence:
            take(face, conn, step, mysql_table)
        said = driver.is_in_transaction(conn)
        if said is not None:  # asking may be refused only where nothing is claimed
            assert said == bool(face.execute(conn, "SELECT @@in_transaction")[0][0])
    finally:
        driver.close(conn)
        face.opened.clear()


def test_a_false_of_a_mysql_driver_holds_nothing_in_the_engine(
    mysql_face: Any, mysql_table: str, until: Any
) -> None:
    face = mysql_face
    conn = face.connect()
    session = face.driver.session_id(conn)
    ask = (
        f"SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {session}"
    )
    face.execute(conn, f"SELECT * FROM {mysql_table}")
    # the table is a copy until nobody has read it for 100 ms
    until(lambda: face.server.admin(ask) == [("1",)], every=0.15)
    # where PyMySQL's own server_status says 0
    assert face.driver.is_in_transaction(conn) is not False
    face.call("rollback", conn)
    assert face.driver.is_in_transaction(conn) is False
    until(lambda: face.server.admin(ask) == [("0",)], every=0.15)


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_after_the_end_of_a_transaction_it_is_known_that_nothing_is_open(
    face: Any, end: str
) -> None:
    conn = face.connect()
    for sql in ("SELECT 1", "SELECT * FROM no_such_table"):
        if not face.driver.capabilities.implicit_begin:
            face.call("begin", conn)
        with suppress(*face.driver.errors):
            face.execute(conn, sql)
        with suppress(*face.driver.errors if end == "commit" else ()):
            # PostgreSQL's say that a failed one was not committed
            face.call(end, conn)
        assert face.driver.is_in_transaction(conn) is False


def test_in_autocommit_a_mysql_driver_knows_that_nothing_is_open(mysql_face: Any) -> None:
    driver = mysql_face.make(mysql_face.url(autocommit="true"))
    conn = mysql_face.connect(driver=driver)
    for sql in ("SELECT 1", "SELECT 1", "SET @a = 1", "SHOW TABLES"):
        mysql_face.execute(conn, sql)
        assert driver.is_in_transaction(conn) is False


def test_watching_changes_nothing_in_what_is_known(mysql_face: Any, mysql_table: str) -> None:
    face = mysql_face
    conn = face.connect()
    for _ in range(2):
        face.driver.watch(conn)
        face.execute(conn, f"SELECT * FROM {mysql_table}")
        assert face.driver.is_in_transaction(conn) is not False
        face.driver.unwatch(conn)
        assert face.driver.is_in_transaction(conn) is not False
        face.call("commit", conn)
        assert face.driver.is_in_transaction(conn) is False


@pytest.fixture(scope="module")
def pg_table(postgres: Any) -> Any:
    postgres.admin(
        "CREATE TABLE status_steps (n SERIAL PRIMARY KEY); INSERT INTO status_steps DEFAULT VALUES"
    )
    postgres.admin(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT ALL ON ALL SEQUENCES IN SCHEMA"
        " public TO PUBLIC"
    )
    yield "status_steps"
    postgres.admin("DROP TABLE status_steps")


@given(sequence=steps(PG_STEPS, PG_CALLS))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_a_postgresql_driver_says_is_what_postgresql_says(
    pg_face: Any, pg_table: str, sequence: list[str]
) -> None:
    face = pg_face
    conn = face.connect()
    try:
        for step in sequence:
            if step or face.name != "asyncpg":
                take(face, conn, step, pg_table)
        said = face.driver.is_in_transaction(conn)
        if said is None:
            # it is mistaken after a COMMIT sent as text, and says so
            assert face.name == "psycopg2"
            return
        session = face.driver.session_id(conn)
        state = face.server.admin(f"SELECT state FROM pg_stat_activity WHERE pid = {session}")
        assert said == (state[0][0] != "idle"), state
    finally:
        face.driver.close(conn)
        face.opened.clear()
