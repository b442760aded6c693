"""The kinds of statements: tables from the manuals, tricks with quotes and comments, and properties
over generated text.
"""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unbroken.ledger import statements
from unbroken.ledger.statements import Kind, kind, may_hide_a_write, verb

# MySQL 9.3 and MariaDB, "Statements That Cause an Implicit Commit", one or more spellings of each.
IMPLICIT_COMMIT = """
ALTER DATABASE d UPGRADE DATA DIRECTORY NAME
ALTER EVENT e ENABLE
ALTER FUNCTION f COMMENT 'x'
ALTER INSTANCE ROTATE INNODB MASTER KEY
ALTER PROCEDURE p COMMENT 'x'
ALTER SEQUENCE s RESTART 5
ALTER SERVER s OPTIONS (USER 'sally')
ALTER TABLE t ADD COLUMN c INT
ALTER TABLESPACE ts ADD DATAFILE 'x'
ALTER USER u IDENTIFIED BY 'x'
ALTER VIEW v AS SELECT 1
ANALYZE TABLE t
CACHE INDEX t IN hot
CHANGE MASTER TO MASTER_HOST='x'
CHANGE REPLICATION SOURCE TO SOURCE_HOST='x'
CHECK TABLE t
CREATE DATABASE d
CREATE EVENT e ON SCHEDULE EVERY 1 HOUR DO SELECT 1
CREATE FUNCTION f() RETURNS INT RETURN 1
CREATE INDEX i ON t (a)
CREATE OR REPLACE TABLE t (a INT)
CREATE OR REPLACE TEMPORARY TABLE t (a INT)
CREATE PROCEDURE p() SELECT 1
CREATE ROLE r
CREATE SEQUENCE s
CREATE SERVER s FOREIGN DATA WRAPPER mysql OPTIONS (USER 'x')
CREATE SPATIAL REFERENCE SYSTEM 4120 NAME 'x'
CREATE TABLE t (a INT)
CREATE TABLE t SELECT * FROM u
CREATE TABLESPACE ts ADD DATAFILE 'x'
CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET @a = 1
CREATE UNIQUE INDEX i ON t (a)
CREATE USER u
CREATE VIEW v AS SELECT 1
DROP DATABASE d
DROP EVENT e
DROP FUNCTION f
DROP INDEX i ON t
DROP PROCEDURE p
DROP ROLE r
DROP SEQUENCE s
DROP SERVER s
DROP TABLE t
DROP TABLESPACE ts
DROP TRIGGER g
DROP USER u
DROP VIEW v
FLUSH TABLES
GRANT SELECT ON t TO u
IMPORT TABLE FROM 'x'
INSTALL PLUGIN p SONAME 'x'
LOAD INDEX INTO CACHE t
LOCK INSTANCE FOR BACKUP
LOCK TABLES t WRITE
OPTIMIZE TABLE t
RENAME TABLE a TO b
RENAME USER a TO b
REPAIR TABLE t
RESET MASTER
REVOKE ALL ON t FROM u
SET PASSWORD = 'x'
SET PASSWORD FOR u = 'x'
SET DEFAULT ROLE ALL TO u
SHUTDOWN
START SLAVE
START REPLICA
STOP SLAVE
TRUNCATE TABLE t
TRUNCATE t
UNINSTALL PLUGIN p
UNLOCK TABLES
UNLOCK INSTANCE
"""

# What commits by other means, holds other statements, or is not known.
OTHER_ENDS = """
CALL p()
CALL p
DO SLEEP(1)
DO $$ BEGIN COMMIT; END $$
DO 'BEGIN COMMIT; END'
EXECUTE p
EXECUTE IMMEDIATE 'COMMIT'
PREPARE TRANSACTION 'x'
PREPARE p AS INSERT INTO t VALUES (1)
PREPARE p FROM 'COMMIT'
ROLLBACK PREPARED 'x'
COMMIT TO SAVEPOINT a
ROLLBACK AND CHAIN
ROLLBACK RELEASE
END; SELECT 1
XA START 'x'
XA BEGIN 'x'
XA PREPARE 'x'
XA ROLLBACK 'x'
BEGIN NOT ATOMIC COMMIT; END
BEGIN; COMMIT
BEGIN SELECT 1
VACUUM
VACUUM t
ANALYZE
ANALYZE t
ANALYZE SELECT 1
REINDEX TABLE t
CLUSTER t
CHECKPOINT
REFRESH MATERIALIZED VIEW v
COMMENT ON TABLE t IS 'x'
SECURITY LABEL ON TABLE t IS 'x'
REASSIGN OWNED BY a TO b
DISCARD ALL
RESET ALL
RESET search_path
LOCK TABLE t IN EXCLUSIVE MODE
LOCK t
HANDLER t OPEN
KILL 5
KILL QUERY 5
LOAD DATA INFILE 'x' INTO TABLE t
LOAD XML INFILE 'x' INTO TABLE t
IMPORT FOREIGN SCHEMA s FROM SERVER x INTO y
COPY t TO '/tmp/x'
COPY t FROM '/tmp/x'
COPY t TO PROGRAM 'x'
COPY t FROM PROGRAM 'cat' WITH (FORMAT csv)
SELECT 1 INTO OUTFILE '/tmp/x'
SELECT * FROM t INTO DUMPFILE '/tmp/x'
TABLE t INTO OUTFILE '/tmp/x'
SET GLOBAL x = 1
SET PERSIST x = 1
SET PERSIST_ONLY x = 1
SET @@GLOBAL.x = 1
SET @@persist.x = 1
SET a = 1, GLOBAL b = 2
SET STATEMENT max_statement_time=1 FOR INSERT INTO t VALUES (1)
SET RESOURCE GROUP rg
SET autocommit = 1, a = 2
SET a = 1, autocommit = 1
SET a = 1, @@autocommit = 1
SET `autocommit` = 1
SET @@`autocommit` = 1
SET "autocommit" = 1
SET autocommit = (SELECT 1)
SET autocommit
SET
PRAGMA journal_mode = WAL
ATTACH 'x' AS y
CLONE LOCAL DATA DIRECTORY = 'x'
BINLOG 'x'
SIGNAL SQLSTATE '45000'
EXPLAIN EXECUTE p
EXPLAIN ANALYZE EXECUTE p
EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1
EXPLAIN ANALYZE CALL p()
EXPLAIN FOR CONNECTION 5
DESCRIBE a b c
DESCRIBE `a` `b` `c`
DESCRIBE `d`.`t`; DROP TABLE t
DESCRIBE `ANALYZE` t
COMMITT
nonsense
(COMMIT)
(INSERT INTO t VALUES (1))
( )
\\c other
1
'SELECT 1'
"SELECT" 1
"""

READS = """
SELECT 1
select 1;
SELECT 1 ; ;
  SELECT 1
SELECT/**/1
(SELECT 1)
((SELECT 1) UNION ALL (SELECT 2)) ORDER BY 1 LIMIT 5
SELECT * FROM t WHERE a = %s AND b IN (%s, %s)
SELECT * FROM t WHERE a = %(name)s
SELECT * FROM t WHERE a = ? AND b = :name AND c = $1
SELECT * FROM `order` WHERE `key` = 'x'
SELECT "a", t."b" FROM "s"."t" AS "x"
SELECT DISTINCT a, count(*) FROM t GROUP BY a HAVING count(*) > 1 ORDER BY (a) DESC
SELECT a FROM t FOR UPDATE
SELECT a FROM t WHERE b = 1 FOR NO KEY UPDATE OF t SKIP LOCKED
SELECT a FROM t FOR SHARE
SELECT a FROM t LOCK IN SHARE MODE
SELECT CAST(a AS DECIMAL(10, 2)), b::numeric(10,2), CONVERT(c, CHAR(10)) FROM t
SELECT sum(x) OVER (PARTITION BY y ORDER BY z), count(*) FILTER (WHERE a) FROM t
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x) FROM t
SELECT * FROM t WHERE a = ANY(%s) AND NOT EXISTS (SELECT 1 FROM u WHERE (u.a = t.a))
SELECT * FROM a LEFT JOIN (SELECT max(b) AS m FROM c) AS q USING (m)
SELECT CASE WHEN (a) THEN (b) ELSE (c) END FROM t
SELECT COALESCE(a, 0), REPLACE(b, 'x', 'y'), TRUNCATE(1.5, 1), IF(a, b, c) FROM t
SELECT now(), CURRENT_TIMESTAMP, CURRENT_DATE, DATE_ADD(a, INTERVAL 1 DAY), EXTRACT(EPOCH FROM a) FROM t
SELECT data->>'a', data#>>'{a,b}', data @> '{"x": 1}' FROM t
SELECT a[1], ARRAY['x', 'y'] FROM t
SELECT * FROM t USE INDEX (i) WHERE a = 1
SELECT * FROM generate_series(1, 5) AS g(n)
SELECT pg_catalog.count(*) FROM t
SELECT @@version, @@session.wait_timeout
SELECT 'it''s; COMMIT', "a""b; COMMIT"
SELECT 'it\\'s'
SELECT E'it\\'s'
SELECT 0x1F, 1.5e10, .5, 1., -1
SELECT 1 -- a comment
SELECT sleep(1)
SELECT pg_sleep(0.1)
SELECT version(), database(), connection_id()
SELECT a FROM t WHERE b = 'x' -- COMMIT; DROP TABLE t
VALUES (1, 'a'), (2, 'b')
TABLE t
WITH t AS (SELECT 1) SELECT * FROM t
WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t
WITH t AS MATERIALIZED (SELECT 1) SELECT * FROM t
SHOW TABLES
SHOW VARIABLES LIKE 'wait%'
SHOW CREATE TABLE t
SELECT pg_catalog.pg_type.typname FROM pg_catalog.pg_type WHERE pg_catalog.pg_type_is_visible(oid)
SHOW search_path
EXPLAIN SELECT 1
EXPLAIN FORMAT=JSON SELECT 1
EXPLAIN (VERBOSE, COSTS OFF) SELECT 1
EXPLAIN (SELECT 1)
DESCRIBE t
DESCRIBE `t`
DESCRIBE `d`.`t`
DESC d.t
DESC t 'a%'
EXPLAIN t
SET NAMES utf8mb4
SET NAMES 'utf8mb4' COLLATE 'utf8mb4_bin'
SET CHARACTER SET utf8
SET TIME ZONE 'UTC'
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED
SET TRANSACTION READ ONLY
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, DEFERRABLE
SET SESSION sql_mode = 'STRICT_ALL_TABLES', time_zone = '+00:00'
SET @@session.sql_mode := 'ANSI'
SET search_path TO app
SET LOCAL statement_timeout = 100
SET foreign_key_checks = 0
DEALLOCATE ALL
DEALLOCATE PREPARE p
ROLLBACK TO a
ROLLBACK TO SAVEPOINT `a`
ROLLBACK WORK TO SAVEPOINT "a"
ROLLBACK TRANSACTION TO a
-- ping
/* ping */
;
"""  # noqa: E501

WRITES = """
INSERT INTO t VALUES (1)
INSERT INTO t (a) VALUES (';'), ('x'), ('it''s; COMMIT')
INSERT INTO `t` (`a`) VALUES ('it\\'s; COMMIT')
INSERT INTO t(a) SELECT f(a) FROM u ON DUPLICATE KEY UPDATE a = VALUES(a);
INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 2 RETURNING id
INSERT IGNORE INTO t VALUES (1)
insert/**/into t values (1)
UPDATE t SET a = 1 WHERE b = '\\\\'
DELETE FROM t
REPLACE INTO t VALUES (1)
MERGE INTO t USING u ON t.a = u.a WHEN MATCHED THEN DELETE
WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x
WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x
WITH x AS (SELECT 1) UPDATE t SET a = 1
SELECT f(1)
SELECT nextval('s')
SELECT NEXT VALUE FOR s
SELECT s.nextval
SELECT setval('s', 5)
SELECT set_config('a', 'b', true)
SELECT pg_terminate_backend(5)
SELECT dblink_exec('x', 'DELETE FROM t')
SELECT lo_unlink(5)
SELECT query_to_xml('DELETE FROM t', true, true, '')
SELECT pg_advisory_lock(1)
SELECT get_lock('x', 1)
SELECT app.lower('x')
SELECT "lower"('x')
SELECT `lower`('x')
SELECT count (*) FROM t
SELECT now ()
SELECT now/**/()
SELECT \u017fum(x) FROM t
SELECT DISTINCT ON (a) over(b) FROM t
SELECT 1 INTO u
SELECT * INTO TEMP u FROM t
SELECT a INTO @x FROM t
SELECT @total := @total + 1
SELECT * FROM f()
SELECT * FROM t PROCEDURE ANALYSE ()
SELECT update FROM t
SELECT (INSERT)
EXPLAIN ANALYZE SELECT 1
EXPLAIN (ANALYZE, FORMAT JSON) SELECT 1
EXPLAIN (ANALYZE FALSE) SELECT 1
EXPLAIN INSERT INTO t VALUES (1)
EXPLAIN ANALYZE DELETE FROM t
EXPLAIN SELECT f(1)
SHOW TABLES WHERE f(1)
SAVEPOINT a
RELEASE SAVEPOINT a
RELEASE a
CREATE TEMPORARY TABLE t (a INT)
CREATE TEMP TABLE t AS SELECT 1
DROP TEMPORARY TABLE t
COPY t FROM STDIN
COPY t (a, b) FROM STDIN WITH (FORMAT csv)
COPY (SELECT 1) TO STDOUT
DECLARE c CURSOR FOR SELECT 1
FETCH 5 FROM c
MOVE 5 IN c
CLOSE c
LISTEN a
UNLISTEN *
NOTIFY a, 'b'
USE d
SET x = 1
SET @x = 1
SET @x = f()
SET sql_mode = CONCAT(@@sql_mode, ',ANSI')
SET ROLE admin
SET SESSION AUTHORIZATION admin
SET CONSTRAINTS ALL DEFERRED
SET LOCAL app.user = 'x'
"""

TRANSACTIONS = {
    Kind.BEGIN: (
        """
        BEGIN|BEGIN;|begin work|BEGIN TRANSACTION|BEGIN ISOLATION LEVEL SERIALIZABLE|BEGIN READ ONLY, DEFERRABLE|BEGIN NOT DEFERRABLE
        |START TRANSACTION|START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY|START TRANSACTION ISOLATION LEVEL REPEATABLE READ
        |BEGIN IMMEDIATE|BEGIN EXCLUSIVE TRANSACTION|/* x */ BEGIN"""  # noqa: E501
    ),
    Kind.COMMIT: (
        """
        COMMIT|commit;|COMMIT WORK|COMMIT TRANSACTION|COMMIT AND NO CHAIN|COMMIT WORK AND NO CHAIN NO RELEASE|END|END TRANSACTION
        |-- done\n COMMIT -- now|SET autocommit=1|SET AUTOCOMMIT = 0|SET @@autocommit = ON|SET SESSION autocommit = TRUE
        |SET @@session.autocommit := 1|SET LOCAL autocommit = DEFAULT"""  # noqa: E501
    ),
    Kind.ROLLBACK: (
        """
        ROLLBACK|rollback ;|ROLLBACK WORK|ROLLBACK TRANSACTION|ABORT|ABORT WORK|ROLLBACK AND NO CHAIN|ROLLBACK NO RELEASE"""  # noqa: E501
    ),
    Kind.SETTLES: (
        """
        COMMIT PREPARED 'x'|COMMIT AND CHAIN|COMMIT WORK AND CHAIN NO RELEASE|COMMIT RELEASE|COMMIT TRANSACTION AND NO CHAIN RELEASE
        |XA COMMIT 'x'|XA COMMIT 'x','y',1|XA COMMIT 'x' ONE PHASE"""  # noqa: E501
    ),
}


def lines(text: str) -> list[str]:
    return [line for line in text.strip("\n").split("\n") if line]


TABLE = (
    [(s, Kind.ENDS) for s in lines(IMPLICIT_COMMIT) + lines(OTHER_ENDS)]
    + [(s, Kind.READ) for s in lines(READS)]
    + [(s, Kind.WRITE) for s in lines(WRITES)]
    + [(s.strip(" "), k) for k, text in TRANSACTIONS.items() for s in text.strip().split("|")]
)


@pytest.mark.parametrize(("sql", "expected"), TABLE)
def test_statements_of_the_manuals_have_their_kind(sql: str, expected: Kind) -> None:
    assert kind(sql) is expected
    assert kind(sql.encode()) is expected
    assert kind(sql.lower()) is expected


# Each of them runs a COMMIT, a DELETE or something unknown on at least one server, however harmless
# it looks to another.
TRICKS = [
    ("SELECT 1; COMMIT", Kind.ENDS),
    ("; COMMIT", Kind.ENDS),
    ("SELECT 1;/**/;COMMIT", Kind.ENDS),
    ("INSERT INTO t VALUES (1); COMMIT", Kind.ENDS),
    ("SELECT 'a\\'; COMMIT; -- '", Kind.ENDS),  # PostgreSQL: the string ends at the backslash
    ("SELECT 'a\\\\'; COMMIT; -- '", Kind.ENDS),
    ("SELECT 'a''; COMMIT; -- '", Kind.READ),  # a doubled quote is the same everywhere
    ("INSERT INTO t VALUES ('\\'); DELETE FROM t; -- ')", Kind.ENDS),
    ('SELECT "a\\"; COMMIT; -- "', Kind.ENDS),  # a name under ANSI_QUOTES and in PostgreSQL
    ("SELECT 1 # ; COMMIT", Kind.ENDS),  # a comment in MySQL, an operator in PostgreSQL
    ("SELECT 1 # \n ; COMMIT", Kind.ENDS),
    ("SELECT 1 --1; COMMIT", Kind.ENDS),  # MySQL: minus minus one
    ("SELECT 1 --1\n; COMMIT", Kind.ENDS),
    ("SELECT 1 -- 1\r; COMMIT", Kind.ENDS),  # a carriage return ends it in PostgreSQL
    ("SELECT 1 /* /* */ ; COMMIT -- */ */", Kind.ENDS),  # nested comments in PostgreSQL alone
    ("SELECT 1 /*! ; COMMIT */", Kind.ENDS),
    ("SELECT 1 /*!99999 + f(1) */", Kind.ENDS),
    ("SELECT 1 /*M!100100 + f(1) */", Kind.ENDS),
    ("/*! COMMIT */", Kind.ENDS),
    ("/*!50000 INSERT INTO t VALUES (1) */", Kind.ENDS),
    ("SELECT /*+ MAX_EXECUTION_TIME(5) */ 1", Kind.READ),
    ("SELECT 1 /* never closed", Kind.ENDS),
    ("SELECT 'never closed", Kind.ENDS),
    ("SELECT $$ ; COMMIT; $$", Kind.ENDS),  # a string in PostgreSQL, names in MySQL
    ("SELECT $a$ ' $a$; COMMIT -- '", Kind.ENDS),
    ("SELECT $$ x $$", Kind.ENDS),
    ("SELECT `a'b`; COMMIT -- '`", Kind.ENDS),  # not a quote in PostgreSQL
    ("SELECT [a'b], 'c'; COMMIT -- '", Kind.ENDS),  # brackets quote in SQLite
    ("SELECT 1INTO t", Kind.ENDS),  # 1 INTO t before PostgreSQL 15
    ("SELECT 1E'\\''", Kind.ENDS),
    ("SELECT 1OR(f(1))", Kind.ENDS),
    ("SELECT x'1F', b'01', N'x', _utf8'x', U&'\\0041'", Kind.READ),
    ("SELECT 1\x00; COMMIT", Kind.ENDS),
    ("SELECT\u00a01", Kind.ENDS),  # a letter to every server, not a blank
    ("COMMIT\u00a0", Kind.ENDS),
    ("\ufeffSELECT 1", Kind.ENDS),
    ("\u017fELECT 1", Kind.ENDS),  # a long s, whose upper case is S
    ("SELECT 1)", Kind.ENDS),
    ("SELECT (1", Kind.ENDS),
    ("SELECT 1 \\; COMMIT", Kind.ENDS),
    ("SELECT 1 FROM t WHERE a = 'x' FOR UPDATE; DELETE FROM t", Kind.ENDS),
    ("SELECT (SELECT 1 FROM t FOR UPDATE), f(1)", Kind.WRITE),
    ("SELECT a#>>'{x}', f(b) FROM t", Kind.WRITE),
    ("SELECT 'x\\' || f(1) || ''", Kind.WRITE),
    ("UPDATE t SET a = 'it\\'s; COMMIT; x'", Kind.ENDS),  # nobody can say, so it costs a replay
    ("CREATE /**/ TEMPORARY -- x\n TABLE t (a INT)", Kind.WRITE),
    ("CREATE TEMPORARY SEQUENCE s", Kind.ENDS),
    ("DROP TEMPORARY SEQUENCE s", Kind.ENDS),
    ("EXPLAIN (ANALYZE) WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", Kind.WRITE),
    ("EXPLAIN SELECT 1; COMMIT", Kind.ENDS),
    ("VALUES (f(1))", Kind.WRITE),
    ("WITH x AS (SELECT 1), y(a) AS (SELECT 2) SELECT * FROM y", Kind.WRITE),  # y( might be a call
    ("SET NAMES utf8; COMMIT", Kind.ENDS),
    ("SET search_path = f(1)", Kind.WRITE),
    ("SET autocommit = 1; INSERT INTO t VALUES (1)", Kind.ENDS),
    ("SET @@global.autocommit = 1", Kind.ENDS),
    ("ROLLBACK TO a; COMMIT", Kind.ENDS),
    ("SAVEPOINT a b", Kind.ENDS),
]


@pytest.mark.parametrize(("sql", "expected"), TRICKS)
def test_the_most_careful_reading_of_any_server_counts(sql: str, expected: Kind) -> None:
    assert kind(sql) is expected


# Reads that run nothing of the application's on any server.
PLAIN_READS = """
SELECT 1
select 1;
SELECT 'a', 2.5 AS "two", NULL
SELECT 'it''s' AS x
SELECT @@version, @@session.wait_timeout
SELECT version(), now(), CURRENT_DATE
SHOW TABLES
SET NAMES utf8mb4
DESCRIBE t
DEALLOCATE ALL
ROLLBACK TO SAVEPOINT a
/* ping */
;
"""

# Reads that may run a view's function, an operator's, a cast's, a type's, or one with the name of a
# harmless one.
LOOKING_READS = """
SELECT connection_id()
SELECT total()
SELECT uuid(), now()
SELECT * FROM t
TABLE t
VALUES (1)
WITH t AS (SELECT 1) SELECT * FROM t
(SELECT 1)
SELECT 1 + 1
SELECT 1 ### 2
SELECT -1
SELECT @ 5
SELECT 'a' LIKE 'b'
SELECT 1 IN (1, 2)
SELECT 5::natural_number
SELECT CAST(5 AS natural_number)
SELECT natural_number '5'
SELECT lower('x')
SELECT sleep(5)
SELECT a FROM generate_series(1, 5) AS g(a)
SELECT 1 UNION SELECT n FROM t
EXPLAIN SELECT * FROM t
SELECT 'a\\' AS x
"""


@pytest.mark.parametrize(
    ("sql", "hides"),
    [*((s, False) for s in lines(PLAIN_READS)), *((s, True) for s in lines(LOOKING_READS))],
)
def test_a_read_may_hide_a_write_unless_its_text_rules_that_out(sql: str, hides: bool) -> None:
    assert kind(sql) is Kind.READ
    assert may_hide_a_write(sql) is hides
    assert may_hide_a_write(sql.encode()) is hides


@pytest.mark.parametrize("sql", [None, 5, "SELECT '" + "x" * 5000 + "'", b"\xbf\\; SELECT 1"])
def test_a_text_that_is_not_read_may_hide_anything(sql: object) -> None:
    assert may_hide_a_write(sql)  # type: ignore[arg-type]


@pytest.mark.parametrize("unknown", [None, 5, object(), memoryview(b"SELECT 1"), ["SELECT 1"]])
def test_what_is_no_text_is_not_known(unknown: object) -> None:
    assert kind(unknown) is Kind.ENDS  # type: ignore[arg-type]
    assert verb(unknown) == "statement"  # type: ignore[arg-type]


def test_bytes_that_no_charset_settles_are_not_judged() -> None:
    assert kind("SELECT 'é\\'; x'".encode()) is kind("SELECT 'é\\'; x'")
    assert kind(b"SELECT '\xbf\\'; COMMIT -- '") is Kind.ENDS  # one character and a quote in GBK
    assert kind(b"INSERT INTO t VALUES (_binary'\xff\\0\x80')") is Kind.WRITE
    assert kind(bytearray(b"SELECT 1")) is Kind.READ


def test_a_long_insert_is_judged_without_reading_it() -> None:
    rows = ", ".join("('it\\'s', 1)" for _ in range(100_000))
    assert kind(f"INSERT INTO t VALUES {rows};") is Kind.WRITE


def test_a_long_text_that_would_have_to_be_read_is_not_judged() -> None:
    assert kind("SELECT " + "1, " * 50_000 + "1") is Kind.ENDS
    assert kind("INSERT INTO t VALUES ('" + "x" * 100_000 + ";')") is Kind.ENDS


def test_long_texts_are_not_kept() -> None:
    statements._cached.cache_clear()
    kind("SELECT '" + "x" * statements.LONGEST_CACHED + "'")
    assert statements._cached.cache_info().currsize == 0
    kind("SELECT 1")
    assert statements._cached.cache_info().currsize == 1


def test_unclosed_quotes_and_comments_take_no_time_to_speak_of() -> None:
    for text in (
        "'" * 60_001,
        "/*" * 30_000,
        "'\\" * 30_000,
        "$a" * 30_000,
        "(" * 60_000,
        "`" * 59_999,
        '"\\' * 30_000,
    ):
        assert kind(text) is Kind.ENDS


@pytest.mark.parametrize(
    ("sql", "word"),
    [
        ("insert into t", "INSERT"),
        ("/* x */ -- y\n UPDATE t", "UPDATE"),
        ("((select 1))", "SELECT"),
        (b"DELETE FROM t", "DELETE"),
        ("hunter2", "statement"),
        ("", "statement"),
    ],
)
def test_the_word_for_people_never_holds_data(sql: str | bytes, word: str) -> None:
    assert verb(sql) == word


# -- properties ------------------------------------------------------------------------------------

SQL_BITS = st.sampled_from(
    "SELECT INSERT UPDATE DELETE COMMIT BEGIN SET x WITH AS FROM INTO FOR VALUES t f( ( ) , ; ' ''"
    " \" ` \\ \\' # -- /* */ /*! $$ $a$ E' 1 1.5 0x1 = := @ . [ ] % ? :x $1 \n \r \t EXPLAIN"
    " ANALYZE CREATE TABLE COPY STDIN".split(" ")
)
SOUP = st.lists(SQL_BITS, max_size=25).flatmap(
    lambda bits: st.sampled_from([" ".join(bits), "".join(bits)])
)
CHANGES = {"INSERT", "DELETE", "MERGE", "INTO"}


@given(st.one_of(st.text(), st.binary(), SOUP, st.text(alphabet=string.punctuation + " ae\n")))
@example("")
def test_nothing_raises(sql: str | bytes) -> None:
    assert kind(sql) in Kind
    assert verb(sql).isalpha()


@given(SOUP, SOUP)
def test_a_commit_after_any_text_is_never_harmless(before: str, between: str) -> None:
    """Wherever some server would see the semicolon, COMMIT is seen."""
    sql = before + ";" + between + " COMMIT"
    if not set("'\"`\\#-/*$[") & set(sql):
        assert kind(sql) in (Kind.ENDS, Kind.COMMIT)
        assert kind(sql) is Kind.ENDS or not before.strip(" ;\n\r\t")


@given(SOUP)
def test_a_read_holds_no_word_of_change(sql: str) -> None:
    if kind(sql) is Kind.READ and not set("'\"`\\#-/*$[") & set(sql):
        words = sql.upper().replace("(", " ").replace(")", " ").replace(",", " ").split()
        for at, word in enumerate(words):
            assert word not in CHANGES
            assert word != "UPDATE" or words[at - 1] == "FOR"


GAPS = st.sampled_from(
    [
        " ",
        "\n",
        "\t",
        "  ",
        "/* x */",
        "/**/",
        " -- x\n",
        "/* ' */",
        "/* ; */",
        ' /* " ` */ ',
        "\r\n",
        "\f",
    ]
)
PLAIN = [s for s, _ in TABLE if s.isascii() and not set("'\"`\\#-/*$[") & set(s)]


def is_as_careful(after: Kind, before: Kind) -> bool:
    return after is before or after is Kind.ENDS or (before is Kind.READ and after is Kind.WRITE)


@given(st.sampled_from(PLAIN), st.data())
def test_blanks_comments_and_case_never_make_it_less_careful(sql: str, data: st.DataObject) -> None:
    changed = "".join(
        (
            data.draw(GAPS)
            if c == " " and data.draw(st.booleans())
            else data.draw(st.sampled_from([c, c.swapcase()]))
        )
        for c in sql
    )
    changed = data.draw(GAPS) + changed + data.draw(GAPS)
    assert is_as_careful(kind(changed), kind(sql))


@given(
    st.sampled_from([s for s, _ in TABLE]), st.sampled_from([";", "; ", ";;", " ;\n", "\n;-- x\n"])
)
def test_a_semicolon_at_the_end_changes_nothing(sql: str, end: str) -> None:
    assert is_as_careful(kind(sql + end), kind(sql))


@given(
    st.text(),
    st.sampled_from(["mysql", "postgresql"]),
    st.sampled_from(["INSERT INTO t VALUES ({})", "SELECT {}", "SELECT lower({}), 1"]),
)
def test_a_well_quoted_literal_hides_what_is_in_it(value: str, server: str, sql: str) -> None:
    """Whatever the value, the outcome is the statement's own kind or a more careful one, never
    another.
    """
    escapes = {"\\": "\\\\", "'": "\\'", "\x00": "\\0"} if server == "mysql" else {"'": "''"}
    quoted = value.translate(str.maketrans(escapes))
    assert is_as_careful(kind(sql.format(f"'{quoted}'")), kind(sql.format("''")))


@given(
    st.text(st.characters(exclude_characters="\\'\x00")),
    st.sampled_from(["INSERT INTO t VALUES ('{}')", "SELECT '{}' FROM t WHERE (a)"]),
)
def test_a_literal_without_backslash_or_quote_costs_no_replay(value: str, sql: str) -> None:
    plain = not set("#$`[-/") & set(value)
    assert kind(sql.format(value)) is kind(sql.format("x")) or not plain or ";" in value
    if plain:
        assert kind(sql.format(value)) is kind(sql.format("x"))


@given(SOUP)
def test_any_text_as_a_mysql_string_in_an_insert_stays_a_write(value: str) -> None:
    """Not a matter of proof but of use: escaped values of every kind must not cost the replay, as a
    rule.
    """
    if ";" not in value:
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        assert kind(f"INSERT INTO t VALUES ('{quoted}')") is Kind.WRITE
