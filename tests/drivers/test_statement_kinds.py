"""What `core.statements` says of a statement, held to what real servers do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest

from unbroken.ledger.statements import Kind, kind
from unbroken_drill.servers import MariaDB, PostgreSQL

BOTH = {
    Kind.READ: [
        "SELECT 1",
        "(SELECT 1) UNION (SELECT 2)",
        (
            "SELECT count(*), sum(a) OVER (PARTITION BY a) FROM t WHERE a IN (1, 2) GROUP BY a"
            " ORDER BY (a)"
        ),
        "SELECT a FROM t WHERE a = 1 FOR UPDATE",
        (
            "SELECT CAST(a AS DECIMAL(10, 2)), COALESCE(a, 0), replace('it''s; COMMIT', ';', ',')"
            " FROM t"
        ),
        (
            "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT *"
            " FROM r"
        ),
        "VALUES (1), (2)",
        "EXPLAIN SELECT * FROM t",
        "/* ping */ SELECT 1 -- ; COMMIT",
    ],
    Kind.WRITE: [
        "INSERT INTO t VALUES (5)",
        "UPDATE t SET a = 6 WHERE a = 5",
        "DELETE FROM t WHERE a = 6",
        "SELECT f(1)",
        "SAVEPOINT x",
        "CREATE TEMPORARY TABLE temporary_one (a INT)",
    ],
    Kind.BEGIN: ["BEGIN", "START TRANSACTION"],
    Kind.COMMIT: ["COMMIT", "COMMIT WORK AND NO CHAIN"],
    Kind.ROLLBACK: ["ROLLBACK", "ROLLBACK WORK"],
}
MYSQL = {
    Kind.READ: [
        "SELECT `a` FROM `t` USE INDEX (i) WHERE a = 'it\\'s' # x",
        "SELECT @@version, last_insert_id(), now(), if(1, 2, 3)",
        "SHOW TABLES",
        "SHOW CREATE TABLE t",
        "DESCRIBE t",
        "DESC t 'a%'",
        "SET NAMES utf8mb4",
        "SET SESSION sql_mode = 'ANSI', time_zone = '+00:00'",
        "SET foreign_key_checks = 0",
    ],
    Kind.WRITE: [
        "REPLACE INTO t VALUES (7)",
        "INSERT INTO t (a) VALUES (8) ON DUPLICATE KEY UPDATE a = VALUES(a)",
        "INSERT INTO words VALUES ('it\\'s; COMMIT'), (\"a\\\"b; COMMIT\")",
        "SELECT NEXT VALUE FOR s",
        "SELECT a INTO @x FROM t LIMIT 1",
        "SELECT @x := 5",
        "SET @x = f(1)",
    ],
}
POSTGRES = {
    Kind.READ: [
        "SELECT data#>>'{a,b}', data->'a' FROM words",
        "SELECT 'C:\\dir\\', E'it\\'s', a::varchar(5) FROM t WHERE a = ANY(ARRAY[1, 2])",
        "SELECT * FROM t LEFT JOIN (SELECT max(a) AS m FROM t) AS q ON (t.a = q.m)",
        "SELECT * FROM generate_series(1, 3) AS g(n)",
        "TABLE t",
        "SHOW search_path",
        "EXPLAIN (VERBOSE, COSTS OFF) SELECT 1",
        "SET search_path TO public",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "DEALLOCATE ALL",
    ],
    Kind.WRITE: [
        "WITH gone AS (DELETE FROM t RETURNING a) SELECT * FROM gone",
        "INSERT INTO t VALUES (9) RETURNING a",
        "INSERT INTO words VALUES ('{\"a\": \"it''s; COMMIT\"}')",
        "SELECT nextval('s')",
        "SELECT 1 AS a INTO TEMP other",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (10)",
        "DECLARE c CURSOR FOR SELECT 1",
        "NOTIFY a, 'b'",
        "SELECT set_config('app.user', 'x', true)",
    ],
    Kind.COMMIT: ["END", "END TRANSACTION"],
    Kind.ROLLBACK: ["ABORT"],
}
#: The manuals' lists of implicit commits, as far as these servers do them: nothing here may be
#: called less than ENDS.
MYSQL_ENDS = [
    "CREATE TABLE n (a INT)",
    "ALTER TABLE altered ADD c INT",
    "TRUNCATE u",
    "LOCK TABLES t READ",
    "ANALYZE TABLE t",
    "RENAME TABLE renamed TO renamed_2",
]


def cases(*tables: dict[Kind, list[str]]) -> list[tuple[str, Kind]]:
    return [
        (sql, expected)
        for table in tables
        for expected, statements in table.items()
        for sql in statements
    ]


class Server:
    """Sessions and a table of marks on one server."""

    def __init__(self, connect: Callable[[], Any], setup: list[str]) -> None:
        self.connect = connect
        self.observer = connect()
        for sql in [
            "CREATE TABLE mark (n INT)",
            "CREATE TABLE t (a INT)",
            "CREATE TABLE u (a INT)",
            "CREATE SEQUENCE s",
            *setup,
        ]:
            self.run(self.observer, sql)

    def run(self, conn: Any, sql: str) -> list[tuple[Any, ...]]:
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def stored_by(self, sql: str) -> bool:
        """Whether a row written before *sql*, in the same transaction, is stored once *sql* was
        executed.
        """
        self.run(self.observer, "DELETE FROM mark")
        conn = self.connect()
        try:
            self.run(conn, "BEGIN")
            self.run(conn, "INSERT INTO mark VALUES (1)")
            self.run(conn, sql)
            return self.run(self.observer, "SELECT n FROM mark") != []
        finally:
            conn.close()

    def contents(self, tables: tuple[str, ...]) -> list[object]:
        return [self.run(self.observer, f"SELECT * FROM {name}") for name in tables]


@pytest.fixture(scope="module")
def my() -> Iterator[Server]:
    with MariaDB() as server:
        at = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
            "database": server.database,
        }
        setup = [
            "CREATE FUNCTION f(x INT) RETURNS INT DETERMINISTIC RETURN x",
            "CREATE TABLE words (w TEXT)",
            "CREATE INDEX i ON t (a)",
        ]
        # the others may come after these
        setup += ["CREATE TABLE altered (a INT)", "CREATE TABLE renamed (a INT)"]
        yield Server(lambda: pymysql.connect(autocommit=True, **at), setup)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pg() -> Iterator[Server]:
    with PostgreSQL() as server:
        url = server.url("psycopg").replace("+psycopg", "")
        setup = [
            "CREATE FUNCTION f(x INT) RETURNS INT LANGUAGE SQL AS 'SELECT x'",
            "CREATE TABLE words (data JSONB)",
        ]
        yield Server(lambda: psycopg.connect(url, autocommit=True), setup)


def hold(
    server: Server, sql: str, expected: Kind, tables: tuple[str, ...], commits: tuple[Kind, ...]
) -> None:
    assert kind(sql) is expected
    assert server.stored_by(sql) is (expected in commits)
    if expected is Kind.READ:
        before = server.contents(tables)
        conn = server.connect()
        server.run(conn, sql)
        conn.close()
        assert server.contents(tables) == before


@pytest.mark.parametrize(("sql", "expected"), cases(BOTH, MYSQL))
def test_mariadb_commits_what_we_say_it_commits(my: Server, sql: str, expected: Kind) -> None:
    hold(my, sql, expected, ("t", "words", "s"), (Kind.COMMIT, Kind.BEGIN))


@pytest.mark.parametrize(("sql", "expected"), cases(BOTH, POSTGRES))
def test_postgresql_commits_what_we_say_it_commits(pg: Server, sql: str, expected: Kind) -> None:
    hold(pg, sql, expected, ("t", "words", "s"), (Kind.COMMIT,))


@pytest.mark.parametrize("sql", MYSQL_ENDS)
def test_mariadb_commits_before_these_and_we_know_it(my: Server, sql: str) -> None:
    assert my.stored_by(sql)
    assert kind(sql) is Kind.ENDS


def test_mariadb_commits_what_is_open_when_autocommit_is_switched_on(my: Server) -> None:
    my.run(my.observer, "DELETE FROM mark")
    conn = my.connect()
    my.run(conn, "SET autocommit = 0")
    my.run(conn, "INSERT INTO mark VALUES (1)")
    assert my.run(my.observer, "SELECT n FROM mark") == []
    my.run(conn, "SET autocommit = 1")
    assert my.run(my.observer, "SELECT n FROM mark") == [(1,)]
    conn.close()
    assert kind("SET autocommit = 1") is Kind.COMMIT
