"""Which transactions only read, by the texts of their statements."""

from __future__ import annotations

import pytest

from unbroken.ledger.reading import MOST, may_lock, only_reads, wrote_nothing

SELECT = "SELECT n FROM stock WHERE id = %s"


@pytest.mark.parametrize(
    "texts",
    [
        [SELECT],
        [SELECT.encode()],
        [SELECT, "SHOW server_version"],
        ["WITH a AS (SELECT 1) SELECT * FROM a"],
        ["VALUES (1)"],
        [SELECT + " FOR UPDATE"],
        [SELECT] * MOST,
    ],
)
def test_a_transaction_of_nothing_but_reads_is_known(texts: list[str | bytes | None]) -> None:
    assert only_reads(texts, may_hide=False)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "INSERT INTO stock VALUES (1)",
        "SELECT n INTO other FROM stock",
        "WITH a AS (DELETE FROM stock RETURNING n) SELECT * FROM a",
        "SELECT nextval('numbers')",
        "SELECT pg_notify('a', 'b')",
        "SELECT set_config('a.b', 'c', true)",
        "SELECT lo_create(0)",
        "SELECT f(n) FROM stock",
        "SELECT 1; DELETE FROM stock",
        "SELECT 1 /*! INTO OUTFILE 'x' */",
        "NOTIFY a",
        "DECLARE a CURSOR WITH HOLD FOR SELECT 1",
        "CREATE TEMPORARY TABLE a (n int)",
        "SET CONSTRAINTS ALL DEFERRED",
        "SET autocommit = 0",
        "SAVEPOINT a",
        "ROLLBACK TO SAVEPOINT a",
        "RELEASE SAVEPOINT a",
        "PREPARE TRANSACTION 'a'",
        "LOCK TABLE stock",
        "COPY stock FROM STDIN",
        "CALL f()",
        "EXPLAIN ANALYZE DELETE FROM stock",
        "DO $$ BEGIN END $$",
        "XA END 'a'",
        "HANDLER stock OPEN",
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_one_statement_of_another_kind_is_enough_to_wait_for_its_commit(
    text: str | None, before: bool
) -> None:
    texts = [text, SELECT] if before else [SELECT, text]
    assert not only_reads(texts, may_hide=False)


def test_no_statement_more_than_are_kept_and_a_view_that_may_write_are_waited_for() -> None:
    assert not only_reads([], may_hide=False)
    assert not only_reads([SELECT] * (MOST + 1), may_hide=False)
    assert not only_reads([SELECT], may_hide=True)
    assert only_reads(["SELECT 1"], may_hide=True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        SELECT + " FOR UPDATE",
        SELECT + " for\n share",
        SELECT + " FOR NO KEY UPDATE SKIP LOCKED",
        SELECT + " FOR KEY SHARE",
        (SELECT + " LOCK IN SHARE MODE").encode(),
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT GET_LOCK('a', 1)",
    ],
)
def test_locks_that_are_asked_for_by_name_are_seen(text: str | bytes | None) -> None:
    assert may_lock([SELECT, text])


def test_a_plain_select_asks_for_no_lock() -> None:
    assert not may_lock([SELECT, b"SELECT * FROM updates WHERE shared = 1"])


@pytest.mark.parametrize(
    "texts",
    [(), ("SELECT 1",), (b"BEGIN", "SELECT n FROM t FOR UPDATE"), ("SET @a = 1", b"SET @b = 2")],
)
def test_a_rollback_has_nothing_to_undo(texts: tuple[str | bytes | None, ...]) -> None:
    assert wrote_nothing(texts)


@pytest.mark.parametrize(
    "texts",
    [
        (None,), ("INSERT INTO t VALUES (1)",), ("SELECT 1", "UPDATE t SET n = 1"), ("CALL p()",),
        ("SELECT 1; DELETE FROM t",), ("SELECT 1",) * (MOST + 1),
        ("LOAD DATA INFILE 'x' INTO TABLE t",), ("SELECT own(1)",), ("SET @a = own(1)",),
        (b"SET @a = (SELECT own(1))",),
    ],
)  # fmt: skip
def test_a_rollback_may_have_something_to_undo(texts: tuple[str | bytes | None, ...]) -> None:
    assert not wrote_nothing(texts)
