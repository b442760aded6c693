"""What real servers answer to the questions of ledger/questions.py, asked by the application's own
user.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest

from unbroken.ledger.questions import Question, answer, text_of
from unbroken_drill.servers import MariaDB, PostgreSQL

Ask = Callable[[Question], Any]


@pytest.fixture(scope="module")
def pg() -> Iterator[tuple[PostgreSQL, Ask]]:
    with PostgreSQL() as server:
        conn = psycopg.connect(server.url("psycopg").replace("+psycopg", ""), autocommit=True)
        for sql in (
            "CREATE TABLE t (n INT)",
            (
                "CREATE FUNCTION w() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1)"
                " RETURNING 1'"
            ),
            (
                "CREATE FUNCTION w1(int) RETURNS boolean LANGUAGE sql AS 'INSERT INTO t VALUES (1)"
                " RETURNING true'"
            ),
            (
                "CREATE FUNCTION w2(int, int) RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1)"
                " RETURNING 1'"
            ),
            (
                "CREATE FUNCTION w3(text) RETURNS point LANGUAGE sql AS 'INSERT INTO t VALUES (1)"
                " RETURNING point(1, 2)'"
            ),
            "CREATE FUNCTION stable() RETURNS int STABLE LANGUAGE sql AS 'SELECT w()'",
            (
                "CREATE FUNCTION compare(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT"
                " w2($1, $2)'"
            ),
            (
                "CREATE FUNCTION fired() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO t"
                " VALUES (1); RETURN NEW; END'"
            ),
            "CREATE AGGREGATE summed(int) (sfunc = w2, stype = int)",
            (
                "CREATE VIEW reading AS SELECT n + 1 AS m, upper('a'), random(), now(),"
                " gen_random_uuid(), count(*) OVER () FROM t"
            ),
            "CREATE VIEW again AS SELECT m FROM reading WHERE m IN (SELECT max(n) FROM t)",
        ):
            server.admin(sql)

        def ask(question: Question) -> Any:
            with conn.cursor() as cursor:
                cursor.execute(text_of(question, "postgresql"))  # type: ignore[arg-type] # it has a text
                return answer(question, "postgresql", cursor.fetchall())

        yield server, ask
        conn.close()


def test_views_of_postgresql_that_only_read_and_functions_that_nothing_calls_hide_nothing(
    pg: tuple[PostgreSQL, Ask],
) -> None:
    assert pg[1](Question.HIDDEN_WRITES) == ""


@pytest.mark.parametrize(
    ("make", "drop"),
    [
        ("CREATE VIEW v AS SELECT w() AS n", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT n FROM t WHERE n > w()", "DROP VIEW v"),
        (
            "CREATE VIEW v AS SELECT n FROM t WHERE EXISTS (SELECT 1 FROM t AS u WHERE u.n > w())",
            "DROP VIEW v",
        ),
        ("CREATE VIEW v AS WITH x AS (SELECT w() AS n) SELECT n FROM x", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT * FROM w() AS f(n)", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT stable() AS n", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT summed(n) FROM t", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT lo_create(0)", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT query_to_xml('DELETE FROM t', true, true, '')", "DROP VIEW v"),
        ("CREATE VIEW v AS SELECT nextval('s')", "DROP VIEW v"),
        (
            "CREATE OPERATOR ### (leftarg = int, rightarg = int, function = w2)",
            "DROP OPERATOR ### (int, int)",
        ),
        ("CREATE CAST (text AS point) WITH FUNCTION w3(text)", "DROP CAST (text AS point)"),
        ("CREATE DOMAIN d AS int CHECK (w1(VALUE))", "DROP DOMAIN d"),
        ("CREATE POLICY p ON t USING (n > w())", "DROP POLICY p ON t"),
        (
            (
                "CREATE FUNCTION lower(int) RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1)"
                " RETURNING 1'"
            ),
            "DROP FUNCTION lower(int)",
        ),
        (
            (
                "CREATE OPERATOR CLASS oc FOR TYPE int USING btree AS OPERATOR 1 <, OPERATOR 2 <=,"
                " OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 compare(int, int)"
            ),
            "DROP OPERATOR FAMILY oc USING btree",
        ),
    ],
)
def test_what_a_select_of_postgresql_may_write_through_is_found(
    pg: tuple[PostgreSQL, Ask], make: str, drop: str
) -> None:
    server, ask = pg
    server.admin("CREATE SEQUENCE IF NOT EXISTS s")
    server.admin(make)
    try:
        assert "may write" in ask(Question.HIDDEN_WRITES)
    finally:
        server.admin(drop)
    assert ask(Question.HIDDEN_WRITES) == ""


def test_postgresql_says_who_wanted_a_transaction_read_only(pg: tuple[PostgreSQL, Ask]) -> None:
    server, ask = pg
    assert ask(Question.READ_ONLY) is False
    with server.temporarily(default_transaction_read_only="on"):
        assert ask(Question.READ_ONLY) is True


@pytest.mark.parametrize(
    ("make", "drop"),
    [
        (
            (
                "CREATE FOREIGN DATA WRAPPER far",
                "CREATE SERVER other FOREIGN DATA WRAPPER far",
                "CREATE FOREIGN TABLE away (n INT) SERVER other",
            ),
            "DROP FOREIGN DATA WRAPPER far CASCADE",
        ),
        (
            (
                "CREATE FUNCTION own() RETURNS language_handler LANGUAGE c"
                " AS '$libdir/plpgsql', 'plpgsql_call_handler'",
            ),
            "DROP FUNCTION own()",
        ),
    ],
)
def test_postgresql_says_what_may_stay_of_what_was_rolled_back(
    pg: tuple[PostgreSQL, Ask], make: tuple[str, ...], drop: str
) -> None:
    server, ask = pg
    assert ask(Question.KEPT_WRITES) == ""
    for sql in make:
        server.admin(sql)
    try:
        assert "may keep" in ask(Question.KEPT_WRITES)
    finally:
        server.admin(drop)
    assert ask(Question.KEPT_WRITES) == ""


@pytest.fixture(scope="module")
def my() -> Iterator[tuple[MariaDB, Ask]]:
    with MariaDB() as server:
        at = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
            "database": server.database,
        }
        conn = pymysql.connect(autocommit=True, **at)  # type: ignore[arg-type]
        for sql in (
            "CREATE TABLE t (n INT)",
            "CREATE TABLE u (n INT, d DATE, x TEXT)",
            "CREATE FUNCTION w() RETURNS INT BEGIN INSERT INTO t VALUES (1); RETURN 1; END",
            "CREATE VIEW v1 AS SELECT n FROM t",
            (
                "CREATE VIEW v2 AS SELECT t.n, u.x FROM t JOIN u ON t.n = u.n LEFT JOIN (SELECT"
                " max(n) AS m FROM u) AS q ON q.m = t.n WHERE t.n IN (SELECT n FROM v1) AND u.x"
                " LIKE 'from `a`.`b`'"
            ),
            (
                "CREATE VIEW v3 AS SELECT count(*) AS c, date_format(d, '%Y') AS y, cast(n AS CHAR)"
                " AS k, if(n > 1, 2, 3) AS i FROM u GROUP BY y ORDER BY c"
            ),
            "CREATE VIEW v4 AS SELECT EXTRACT(YEAR FROM d) AS y, n FROM u UNION SELECT 1, n FROM t",
        ):
            server.admin(sql)

        def ask(question: Question) -> Any:
            while True:
                with conn.cursor() as cursor:
                    cursor.execute(text_of(question, "mariadb"))  # type: ignore[arg-type] # it has a text
                    said = answer(question, "mariadb", cursor.fetchall())
                if not isinstance(said, Question):
                    return said
                question = said

        yield server, ask
        conn.close()


def test_views_of_mysql_that_only_read_and_functions_that_nothing_calls_hide_nothing(
    my: tuple[MariaDB, Ask],
) -> None:
    assert my[1](Question.HIDDEN_WRITES) == ""


@pytest.mark.parametrize(
    "view",
    [
        "SELECT w() AS n",
        "SELECT n FROM t WHERE n > w()",
        "SELECT n FROM t WHERE n IN (SELECT w() FROM u)",
        "SELECT n FROM (SELECT w() AS n) AS q",
        "SELECT TRIM(BOTH 'a' FROM x) AS z FROM u",  # not understood, so not trusted
    ],
)
def test_what_a_select_of_mysql_may_write_through_is_found(
    my: tuple[MariaDB, Ask], view: str
) -> None:
    server, ask = my
    server.admin(f"CREATE VIEW v AS {view}")
    try:
        assert "shop.v" in ask(Question.HIDDEN_WRITES)
    finally:
        server.admin("DROP VIEW v")
    assert ask(Question.HIDDEN_WRITES) == ""


def test_a_view_of_mysql_that_reads_a_view_which_the_user_cannot_see_is_not_trusted(
    my: tuple[MariaDB, Ask],
) -> None:
    server, ask = my
    with contextlib.suppress(Exception):
        server.admin("DROP DATABASE secret")
    server.admin("CREATE DATABASE secret")
    try:
        server.admin(
            "CREATE FUNCTION secret.w() RETURNS INT BEGIN INSERT INTO shop.t VALUES (1); RETURN"
            " 1; END"
        )
        server.admin("CREATE VIEW secret.v AS SELECT secret.w() AS n")
        server.admin("CREATE VIEW v AS SELECT n FROM secret.v")
        visible = ask(Question.HIDDEN_WRITES)
        assert visible
    finally:
        server.admin("DROP VIEW v")
        server.admin("DROP DATABASE secret")


def test_mysql_says_whether_it_takes_writes_and_how_large_a_statement_may_be(
    my: tuple[MariaDB, Ask],
) -> None:
    server, ask = my
    assert ask(Question.READ_ONLY) is False
    assert ask(Question.PACKET) == int(server.admin("SELECT @@GLOBAL.max_allowed_packet")[0][0])
    with server.temporarily(read_only=1):
        assert ask(Question.READ_ONLY) is True


@pytest.mark.parametrize("engine", ["MyISAM", "Aria", "MEMORY"])
def test_mysql_says_what_may_stay_of_what_was_rolled_back(
    my: tuple[MariaDB, Ask], engine: str
) -> None:
    server, ask = my
    server.admin("CREATE SEQUENCE IF NOT EXISTS numbers")
    assert ask(Question.KEPT_WRITES) == ""
    server.admin(f"CREATE TABLE kept (n INT) ENGINE={engine}")
    try:
        assert "shop.kept" in ask(Question.KEPT_WRITES)
    finally:
        server.admin("DROP TABLE kept")
    assert ask(Question.KEPT_WRITES) == ""
