"""What a statement may leave on its session is told from its text; what is not known may."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.ledger.residue import LONGEST_READ, Left, left_by, may_stay

BOTH = ("postgresql", "mysql")

ORDINARY = """
    SELECT 1
    SELECT * FROM t WHERE id = $1
    SELECT * FROM t WHERE id = %s AND n IN (%s, %s)
    SELECT count(*) FILTER (WHERE a) OVER (PARTITION BY b) FROM t
    SELECT * FROM t JOIN u USING (id) WHERE EXISTS (SELECT 1)
    SELECT temp, lock, prepare FROM set_of WHERE temporary = 'SET x = 1'
    SELECT replace(temp, 'a', 'b') FROM readings
    SELECT 1; SELECT 2;
    WITH RECURSIVE y(a) AS (SELECT 2) SELECT * FROM y
    WITH y(a) AS (SELECT 2) SELECT * FROM y
    INSERT INTO temp (a) VALUES (1)
    INSERT INTO shop.orders(a) SELECT x FROM y
    INSERT INTO "t"("a") VALUES (1)
    UPDATE t SET a = coalesce(b, 1), c = c + 1 WHERE d IN (1, 2)
    DELETE FROM t
    COMMIT;
    SAVEPOINT a
    RELEASE SAVEPOINT a
    ROLLBACK TO a;
    EXPLAIN SELECT 1
    CREATE TABLE IF NOT EXISTS t (id bigint NOT NULL PRIMARY KEY, CHECK (id > 0))
    CREATE INDEX i ON t (a)
    ALTER TABLE t ADD COLUMN c int
    DROP TABLE t
    TRUNCATE t
    -- only a comment
""".strip().splitlines()
ORDINARY_POSTGRESQL = """
    SELECT pg_catalog.now(), nextval('s'), x::varchar(20), 'set_config(1)'
    SELECT pg_try_advisory_xact_lock(1)
    SELECT ST_Distance(a, b), similarity(c, 'd') FROM t
    SELECT a FROM t AT /*!40101 SET x = 1 */ LIMIT 1
    INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id
    UPDATE t SET (a, b) = (1, 2)
    MERGE INTO t USING u ON (t.a = u.a) WHEN NOT MATCHED THEN INSERT (a) VALUES (1)
    BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
    SET LOCAL search_path TO x
    SET TRANSACTION READ ONLY
    SET CONSTRAINTS ALL IMMEDIATE
    EXPLAIN (ANALYZE) SELECT 1
    COPY "public"."t"("a", "b") FROM STDIN
    DECLARE c CURSOR FOR SELECT 1
    LOCK TABLE t
    NOTIFY a
    PREPARE TRANSACTION 'a'
    SELECT f[1:2] FROM t
""".strip().splitlines()
ORDINARY_MYSQL = """
    SELECT @@session.time_zone, @a, `set_config`
    INSERT INTO t SELECT @a
    INSERT IGNORE INTO t (a) VALUES (1) ON DUPLICATE KEY UPDATE a = VALUES(a)
    INSERT INTO t VALUES (1) # SET x = 1
    REPLACE INTO t (a) VALUES (1)
    SELECT * FROM t USE INDEX (i) WHERE a = 1 FOR UPDATE
    SELECT /*+ MAX_EXECUTION_TIME(1000) */ 1
    START TRANSACTION READ ONLY
    SET GLOBAL max_connections = 10
    SET @@GLOBAL.max_connections = 10
    SET PERSIST max_connections = 10
    SHOW VARIABLES
    UNLOCK TABLES
    DO RELEASE_LOCK('a')
    SELECT last_insert_id()
    FLUSH STATUS
    DROP TEMPORARY TABLE t
""".strip().splitlines()

LEAVES = [
    ("postgresql", sql, kind)
    for kind, text in {
        Left.SETTING: (
            """
            SET search_path TO x
            set
            /* first */ SeT -- then
            RESET ALL
            DISCARD ALL
            SET SESSION AUTHORIZATION joe
            SET ROLE joe
            SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY
            SELECT set_config('a', 'b', false)
            SELECT set_config ('a', 'b', false)
            SELECT /* c */ set_config/* d */('a', 'b', false)
            SELECT pg_catalog.set_config('a', 'b', false)
            WITH a AS (SELECT set_config('a', 'b', false)) SELECT * FROM a
            UPDATE pg_settings SET setting = 'x' WHERE name = 'search_path'
            UPDATE pg_catalog . "pg_settings" SET setting = 'x'
            WITH a AS (UPDATE pg_settings SET setting = 'x' RETURNING 1) SELECT 1
            SELECT 1; SET x TO 1
            SET LOCAL x TO 1; SET x TO 1
        """
        ),
        Left.LOCK: (
            """
            SELECT pg_advisory_lock(1)
            SELECT pg_try_advisory_lock_shared ( 1 )
            EXPLAIN ANALYZE SELECT pg_advisory_lock(1)
            COPY (SELECT pg_advisory_lock(1)) TO STDOUT
            SELECT count(*) FROM (SELECT pg_advisory_lock(id) FROM t) AS x
        """
        ),
        Left.TEMPORARY: (
            """
            CREATE TEMP TABLE a (b int)
            CREATE LOCAL TEMPORARY TABLE a (b int)
            CREATE OR REPLACE TEMP VIEW a AS SELECT 1
            CREATE OR REPLACE TEMP RECURSIVE VIEW a (n) AS SELECT 1
            CREATE TABLE pg_temp.x (a int)
            CREATE TABLE "pg_temp"."x" (a int)
            CREATE TABLE U&"\\0070g_temp".x (a int)
            CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
            ALTER TABLE a SET SCHEMA pg_temp
            SELECT 1 AS a INTO TEMP x
            SELECT 1 AS a INTO LOCAL TEMPORARY TABLE x
            WITH y AS (SELECT 1) SELECT * INTO TEMP TABLE x FROM y
            EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1
            CREATE TEMP SEQUENCE s
        """
        ),
        Left.LISTENER: "LISTEN a",
        Left.PREPARED: "PREPARE x AS SELECT 1",
        Left.CURSOR: (
            """
            DECLARE c CURSOR WITH HOLD FOR SELECT 1
            DECLARE "c" SCROLL CURSOR WITH HOLD FOR SELECT 1
        """
        ),
        Left.UNKNOWN: (
            """
            DO $$ BEGIN SET x = 1; END $$
            CALL p()
            EXECUTE p
            EXPLAIN ANALYZE EXECUTE p
            CREATE TABLE a AS EXECUTE p
            COPY t TO PROGRAM 'x'
            UNLISTEN a
        """
        ),
        Left.FUNCTION: (
            """
            SELECT my_function(1)
            SELECT my.now()
            SELECT "set_config"('a', 'b', false)
            SELECT conflict(1), set(1), "over"(2)
            SELECT * FROM a JOIN b ON my_function(a.x)
            INSERT INTO t (a) VALUES (my_function())
        """
        ),
        Left.ENDLESS: (
            """
            SELECT setseed(0.5)
            LOAD 'auto_explain'
            SELECT "dblink_connect"('a', '')
            DO $$ BEGIN PERFORM setseed(0.5); END $$
        """
        ),
    }.items()
    for sql in text.strip().splitlines()
] + [
    ("mysql", sql, kind)
    for kind, text in {
        Left.SETTING: (
            """
            SET time_zone = '+00:00'
            SET SESSION sql_mode = ''
            SET LOCAL sort_buffer_size = 1
            SET @@session.sort_buffer_size = 1
            SET NAMES latin1
            SET ROLE joe
            SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
            SET GLOBAL max_connections = 10, SESSION sql_mode = ''
            SET @a = 1, sql_mode = ''
            SET foreign_key_checks=0
            SELECT 1; SET sql_mode = ''
        """
        ),
        Left.VARIABLE: (
            """
            SET @a = 1
            SET @`a b` := 1
            SELECT @a := 1
            SELECT 1 INTO @a
            SELECT 1, 2 FROM t INTO @a, @b
            select 1 /* to */ into/**/@a
            UPDATE t SET n = (@a := n)
            SELECT last_insert_id(5)
        """
        ),
        Left.TEMPORARY: (
            """
            CREATE TEMPORARY TABLE a (b int)
            create or replace temporary table a (b int)
            CREATE /* not */ TEMPORARY TABLE a (b int)
        """
        ),
        Left.LOCK: (
            """
            SELECT GET_LOCK('a', 1)
            SELECT GET_LOCK ('a', 1)
            DO get_lock('a', 1)
            INSERT INTO t VALUES (get_lock('a', 1))
        """
        ),
        Left.TABLES: (
            """
            LOCK TABLES t WRITE
            LOCK TABLE t READ
        """
        ),
        Left.DATABASE: (
            """
            USE other
            DROP DATABASE shop
        """
        ),
        Left.PREPARED: "PREPARE s FROM 'SET @a = 1'",
        Left.CURSOR: "HANDLER t OPEN",
        Left.UNKNOWN: (
            """
            /*!40101 SET NAMES latin1 */
            /*M!100101 SET NAMES latin1 */
            SELECT 1 /*!40101 INTO @a */
            EXECUTE IMMEDIATE 'SET @a = 1'
            BEGIN NOT ATOMIC SET @a = 1; END
            CALL p(@a)
            EXECUTE s
            IF 1 THEN SET @a = 1; END IF
            LOAD DATA LOCAL INFILE 'x' INTO TABLE t (@a, b)
            GET DIAGNOSTICS @a = NUMBER
            XA START 'a'
            SET STATEMENT max_statement_time = 1 FOR SELECT 1
        """
        ),
        Left.FUNCTION: (
            """
            SELECT shop.f(1)
            SELECT f (1)
            SELECT `get_lock`('a', 1)
        """
        ),
        Left.ENDLESS: (
            """
            FLUSH TABLES WITH READ LOCK
            LOCK INSTANCE FOR BACKUP
            BACKUP STAGE START
            /*!40101 FLUSH TABLES WITH READ LOCK */
        """
        ),
    }.items()
    for sql in text.strip().splitlines()
]


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("sql", ORDINARY, ids=str.strip)
def test_the_ordinary_leaves_nothing(sql: str, backend: str) -> None:
    assert not left_by(sql.strip(), backend)


@pytest.mark.parametrize("sql", ORDINARY_POSTGRESQL, ids=str.strip)
def test_the_ordinary_of_postgresql_leaves_nothing(sql: str) -> None:
    assert not left_by(sql.strip(), "postgresql")
    assert not may_stay(sql.strip())


@pytest.mark.parametrize("sql", ORDINARY_MYSQL, ids=str.strip)
def test_the_ordinary_of_mysql_leaves_nothing(sql: str) -> None:
    assert not left_by(sql.strip(), "mysql")
    assert not left_by(sql.strip(), "mariadb")


@pytest.mark.parametrize(
    ("backend", "sql", "kind"), LEAVES, ids=[f"{b}: {s.strip()}" for b, s, _ in LEAVES]
)
def test_this_may_leave_something(backend: str, sql: str, kind: Left) -> None:
    assert kind in left_by(sql.strip(), backend)
    assert kind in left_by(sql.strip().encode(), backend)


def test_what_the_server_refuses_whole_and_what_is_empty_leaves_nothing() -> None:
    assert not left_by("SET x = 'never closed", "postgresql")
    assert not left_by(" -- nothing", "postgresql")
    assert not left_by("", "mysql")


def test_what_cannot_be_read_may_leave_anything() -> None:
    for sql in (b"SET NAMES '\xff'", None, 7):
        assert left_by(sql, "mysql") == {Left.UNKNOWN, Left.ENDLESS}  # type: ignore[arg-type]
    assert left_by("SELECT 1", "sqlite") == {Left.UNKNOWN, Left.ENDLESS}


def test_a_text_that_is_too_long_to_be_read_may_leave_something() -> None:
    long = "1, " * LONGEST_READ
    assert left_by(f"SELECT {long}1", "postgresql") == {Left.FUNCTION}
    assert left_by(f"SELECT {long}1; SET x = 1", "postgresql") == {Left.UNKNOWN}
    assert left_by(f"CALL p({long}1)", "mysql") == {Left.UNKNOWN}
    assert Left.ENDLESS in left_by(f"SELECT {long}setseed(1)", "postgresql")


_GAPS = st.sampled_from([" ", "\n", "\t ", " /* a */ ", "/**/ ", " -- b\n", " /* ; ' */ "])
_LITERAL = re.compile(r"""('[^']*'|"[^"]*"|`[^`]*`|\$\$.*?\$\$|/\*.*?\*/|--.*)""")


@given(st.sampled_from(LEAVES), st.data())
def test_neither_case_nor_gaps_hide_what_is_left(
    case: tuple[str, str, Left], data: st.DataObject
) -> None:
    backend, sql, kind = case
    pieces = []
    for piece in _LITERAL.split(sql.strip()):
        if not _LITERAL.fullmatch(piece):
            piece = "".join(
                data.draw(st.sampled_from([c.upper(), c.lower()])) if c.isascii() else c
                for c in piece
            )
            piece = re.sub(r" ", lambda _: data.draw(_GAPS), piece)
        pieces.append(piece)
    left = left_by(data.draw(_GAPS) + "".join(pieces), backend)
    assert kind in left or Left.UNKNOWN in left


@given(
    st.sampled_from(LEAVES),
    st.sampled_from(
        ["SELECT 1", "UPDATE t SET a = ';'", "SELECT $$;$$", "COMMIT", "-- x\nSELECT 1"]
    ),
    st.booleans(),
)
def test_what_one_of_several_statements_leaves_is_found(
    case: tuple[str, str, Left], other: str, before: bool
) -> None:
    backend, sql, kind = case
    sql = sql.strip().removesuffix("-- then")
    if backend == "mysql" and "$$" in other:
        other = "SELECT 1"
    left = left_by(f"{other};{sql}" if before else f"{sql} ; {other}", backend)
    assert kind in left or Left.UNKNOWN in left


@given(st.text(), st.sampled_from(["postgresql", "mysql", "mariadb"]))
def test_any_text_gets_a_verdict(sql: str, backend: str) -> None:
    assert left_by(sql, backend) <= set(Left)


@given(
    st.lists(
        st.sampled_from(
            "SELECT SET ( ) ; ' \" ` \\ @ a := INTO TEMP $$ /* */ -- /*! # , . 1 CREATE pg_temp.x".split()  # noqa: E501
        )
    )
)
def test_any_tokens_get_a_verdict(tokens: list[str]) -> None:
    for backend in BOTH:
        assert left_by(" ".join(tokens), backend) <= set(Left)
