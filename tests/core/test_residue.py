"""What a statement may leave on its session is told from its text; what is not known may."""

from __future__ import annotations

import pytest

from unbroken.core.residue import LONGEST_READ, may_stay

LEAVES_NOTHING = """
    SELECT 1
    SELECT * FROM t WHERE id = $1
    SELECT count(*) FILTER (WHERE a) OVER (PARTITION BY b) FROM t
    SELECT pg_catalog.now(), nextval('s'), x::varchar(20), 'set_config(1)'
    SELECT * FROM t JOIN u USING (id) WHERE EXISTS (SELECT 1)
    SELECT pg_try_advisory_xact_lock(1)
    WITH RECURSIVE y(a) AS (SELECT 2) SELECT * FROM y
    INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id
    INSERT INTO shop.orders(a) SELECT x FROM y
    INSERT INTO "t"("a") VALUES (1)
    UPDATE t SET a = coalesce(b, 1), c = c + 1 WHERE d IN (1, 2)
    UPDATE t SET (a, b) = (1, 2)
    MERGE INTO t USING u ON (t.a = u.a) WHEN NOT MATCHED THEN INSERT (a) VALUES (1)
    DELETE FROM t
    BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
    COMMIT;
    SAVEPOINT a
    ROLLBACK TO a;
    SET LOCAL search_path TO x
    SET TRANSACTION READ ONLY
    EXPLAIN (ANALYZE) SELECT 1
    COPY "public"."t"("a", "b") FROM STDIN
    LOCK TABLE t
    NOTIFY a
""".strip().splitlines()
MAY_LEAVE = """
    SET search_path TO x
    set
    RESET ALL
    SELECT set_config('a', 'b', false)
    SELECT set_config ('a', 'b', false)
    SELECT /* c */ set_config/* d */('a', 'b', false)
    SELECT pg_catalog.set_config('a', 'b', false)
    SELECT "set_config"('a', 'b', false)
    SELECT pg_advisory_lock(1)
    SELECT my_function(1)
    SELECT my.now()
    SELECT conflict(1), set(1), "over"(2)
    INSERT INTO t (a) VALUES (my_function())
    EXPLAIN ANALYZE SELECT pg_advisory_lock(1)
    COPY (SELECT pg_advisory_lock(1)) TO STDOUT
    COPY t TO PROGRAM 'x'
    LISTEN a
    UNLISTEN a
    CREATE TEMP TABLE a (b int)
    DECLARE c CURSOR WITH HOLD FOR SELECT 1
    PREPARE x AS SELECT 1
    DO $$ BEGIN END $$
    CALL p()
    SELECT 1; SET x TO 1
    SELECT 'never closed
""".strip().splitlines()


@pytest.mark.parametrize("sql", LEAVES_NOTHING, ids=str.strip)
def test_this_leaves_nothing(sql: str) -> None:
    assert not may_stay(sql.strip())


@pytest.mark.parametrize("sql", MAY_LEAVE[:-1], ids=str.strip)
def test_this_may_leave_something(sql: str) -> None:
    assert may_stay(sql.strip())


def test_what_the_server_refuses_whole_and_what_is_empty_leaves_nothing() -> None:
    assert not may_stay(MAY_LEAVE[-1])
    assert not may_stay(" -- nothing")


def test_a_text_that_is_too_long_to_be_read_may_leave_something() -> None:
    assert may_stay("SELECT " + "1, " * LONGEST_READ + "1")
