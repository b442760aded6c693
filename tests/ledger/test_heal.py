"""May a lost statement be run again? The rules, one by one; real servers are asked in the tests of
each body.
"""

from __future__ import annotations

from typing import Any

import pytest

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.ledger.heal import (
    MOST_TEXTS,
    Lost,
    Past,
    Ruling,
    may_forget_commit,
    may_run_again,
    runs_once,
)  # fmt: skip
from unbroken.ledger.questions import Question

HIDDEN, KEPT = Question.HIDDEN_WRITES, Question.KEPT_WRITES
LOST = Fault(FaultKind.LOST, Cause.KILLED)
SELECT = "SELECT n FROM stock WHERE id = 1"
INSERT = "INSERT INTO stock (n) VALUES (1)"


def lost(
    sql: Any,
    *,
    autocommit: bool | None = False,
    backend: str = "postgresql",
    fault: Fault = LOST,
    **more: Any,
) -> Lost:
    return Lost(sql=sql, fault=fault, backend=backend, autocommit=autocommit, **more)


def past(*statements: tuple[Any, bool | None]) -> Past:
    """What was sent, each with whether a transaction was open."""
    found = Past()
    for sql, is_open in statements:
        found.sent(sql, is_open)
    return found


def first(sql: Any, **more: Any) -> Ruling:
    return may_run_again(past((sql, False)), lost(sql, **more))


@pytest.mark.parametrize(
    ("sql", "asks"),
    [
        ("SELECT 1", ()),
        (SELECT, (HIDDEN, KEPT)),
        (SELECT + " FOR UPDATE", (HIDDEN, KEPT)),
        (INSERT, (KEPT,)),
        ("UPDATE stock SET n = n + 1", (KEPT,)),
        ("SELECT take(1)", (KEPT,)),
        ("SELECT nextval('serial')", (KEPT,)),
        ("WITH gone AS (DELETE FROM stock RETURNING n) SELECT n FROM gone", (KEPT,)),
        ("BEGIN", ()),
        ("SET search_path = shop", ()),
        ("CREATE TEMPORARY TABLE own (n INT)", (KEPT,)),
        (INSERT.encode(), (KEPT,)),
    ],
)
def test_the_first_statement_of_a_transaction_is_run_again(
    sql: Any, asks: tuple[Question, ...]
) -> None:
    ruling = first(sql)
    assert ruling.heals
    assert ruling.asks == asks


UNSENT = "it has not reached the server"


@pytest.mark.parametrize(
    "sql",
    ["CALL take(1)", "SAVEPOINT here", "SELECT dblink('')", "LOCK TABLES t READ", None, INSERT],
)
@pytest.mark.parametrize("autocommit", [True, False, None])
def test_what_was_never_sent_goes_to_another_connection_whatever_it_is(
    sql: Any, autocommit: bool | None
) -> None:
    assert first(sql, autocommit=autocommit, unsent=True) == Ruling(True, UNSENT)
    assert sql == INSERT or not first(sql, autocommit=autocommit).heals
    assert runs_once(sql) is (sql != INSERT)


@pytest.mark.parametrize(
    "before",
    [
        [(SELECT, True), (SELECT, True)],  # a transaction was open
        [("SET @x = 1", False), ("CALL take(1)", False)],
        [("CALL give(1)", False), ("CALL take(1)", False)],
        [(None, False), ("CALL take(1)", False)],
        [(SELECT, False), ("SELECT LAST_INSERT_ID()", False)],
    ],
)
def test_what_was_never_sent_may_still_need_the_session_that_was_lost(before: Any) -> None:
    it = lost(before[-1][0], backend="mysql", unsent=True)
    assert not may_run_again(past(*before), it).heals


def test_what_was_never_sent_is_lost_where_its_end_was_wanted_or_time_is_up() -> None:
    for more in ({"in_time": False}, {"cause": Cause.DEADLINE}, {"losses": 2}):
        assert not first("CALL take(1)", unsent=True, **more).heals


@pytest.mark.parametrize(
    "sql",
    [
        "COMMIT",
        "ROLLBACK",
        "XA COMMIT 'x'",
        "PREPARE TRANSACTION 'x'",
        "CALL take(1)",
        "DROP TABLE stock",
        "LOCK TABLES stock WRITE",
        "SELECT n INTO OUTFILE '/tmp/n' FROM stock",
        "SELECT 1; SELECT 2",
        "SAVEPOINT a",
        "RELEASE SAVEPOINT a",
        "ROLLBACK TO a",
        "/* x */ SAVEPOINT a",
        "SET autocommit = 0",
        "DO take(1)",
        None,
    ],
)
@pytest.mark.parametrize("autocommit", [True, False, None])
def test_what_a_rollback_does_not_undo_is_never_run_again(
    sql: Any, autocommit: bool | None
) -> None:
    assert not first(sql, autocommit=autocommit).heals


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT dblink_exec('dbname=other', 'DELETE FROM stock')",
        "SELECT data FROM pg_logical_slot_get_changes('s', NULL, NULL)",
        "SELECT lo_export(1, '/tmp/x')",
        b"SELECT pg_terminate_backend (17)",
        "INSERT INTO stock SELECT pg_switch_wal()::text::int",
        "SELECT setval('serial', 7)",
        "SELECT pg_catalog.\"setval\" ('serial', 7)",
        "SELECT lo_export/**/(1, '/tmp/x')",
    ],
)
def test_a_function_with_effects_outside_of_its_transaction_is_never_called_again(sql: Any) -> None:
    assert not first(sql).heals


@pytest.mark.parametrize("autocommit", [True, None])
@pytest.mark.parametrize(
    "sql",
    [
        INSERT,
        "SELECT take(1)",
        "SELECT nextval('serial')",
        "WITH gone AS (DELETE FROM stock RETURNING n) SELECT n FROM gone",
    ],
)
def test_a_write_in_autocommit_is_never_run_again(sql: str, autocommit: bool | None) -> None:
    assert not first(sql, autocommit=autocommit).heals


def test_a_read_in_autocommit_is_run_again_once_the_server_says_that_it_hides_no_write() -> None:
    assert first("SELECT 1", autocommit=True) == Ruling(True, "it only reads")
    assert first(SELECT, autocommit=True).asks == (HIDDEN,)
    assert first(SELECT, autocommit=None).asks == (HIDDEN,)


def test_a_write_in_autocommit_that_the_server_refused_is_run_again() -> None:
    ruling = first(INSERT, autocommit=True, fault=Fault(FaultKind.READ_ONLY, Cause.FAILOVER))
    assert ruling.heals
    assert ruling.asks == (KEPT,)


@pytest.mark.parametrize("kind", sorted(CANNOT_SERVE))
def test_a_write_in_autocommit_may_be_stored_though_its_server_cannot_serve(
    kind: FaultKind,
) -> None:
    assert not first(INSERT, autocommit=True, fault=Fault(kind)).heals
    assert first(INSERT, fault=Fault(kind), losses=5).heals


def test_many_rows_in_autocommit_are_not_sent_again_whatever_the_server_refused() -> None:
    refused = Fault(FaultKind.READ_ONLY, Cause.FAILOVER)
    for autocommit in (True, None):
        assert not first(INSERT, autocommit=autocommit, fault=refused, in_parts=True).heals
    assert first(INSERT, fault=refused, in_parts=True).heals
    assert first(SELECT, autocommit=True, in_parts=True).heals


@pytest.mark.parametrize(
    ("sql", "may"),
    [
        ("BEGIN", True),
        ("BEGIN; INSERT INTO stock (n) VALUES (1)", True),
        ("COMMIT AND CHAIN", True),
        ("ROLLBACK AND CHAIN", True),
        ("CALL begins()", True),
        ("/*! START TRANSACTION */", True),
        (None, True),
        (INSERT, False),
        (SELECT, False),
        ("COMMIT", False),
        ("SET search_path = shop", False),
    ],
)
def test_what_may_have_begun_a_transaction_by_itself(sql: Any, may: bool) -> None:
    assert past((sql, False)).may_have_begun() is may
    assert past((SELECT, False), (sql, True)).may_have_begun() is may
    assert not past((sql, False), (SELECT, False)).may_have_begun()


def test_the_second_statement_of_a_transaction_is_not_run_again() -> None:
    assert not may_run_again(past((SELECT, False), (SELECT, True)), lost(SELECT)).heals
    assert not may_run_again(past((INSERT, False), (INSERT, True)), lost(INSERT)).heals
    assert not may_run_again(past(("BEGIN", False), (INSERT, True)), lost(INSERT)).heals


def test_what_was_answered_in_a_transaction_that_has_ended_is_no_past() -> None:
    assert may_run_again(past((SELECT, False), (INSERT, True), (INSERT, False)), lost(INSERT)).heals
    assert may_run_again(
        past((INSERT, False), (SELECT, False)), lost(SELECT, autocommit=True)
    ).heals


@pytest.mark.parametrize("is_open", [True, None])
def test_a_transaction_that_somebody_else_may_have_opened_forbids_it(is_open: bool | None) -> None:
    assert not may_run_again(past((INSERT, is_open)), lost(INSERT)).heals
    assert not may_run_again(past((INSERT, is_open), (INSERT, True)), lost(INSERT)).heals
    assert may_run_again(
        past((INSERT, is_open), (INSERT, False)), lost(INSERT)
    ).heals  # it has ended


def test_a_transaction_that_the_body_has_opened_is_no_past() -> None:
    mine = Past()
    mine.begins()
    mine.sent(INSERT, True)
    assert may_run_again(mine, lost(INSERT)).heals
    mine.sent(INSERT, True)
    assert not may_run_again(mine, lost(INSERT)).heals
    mine.ended()
    mine.sent(INSERT, True)
    assert not may_run_again(mine, lost(INSERT)).heals


@pytest.mark.parametrize(
    ("backend", "earlier"),
    [
        ("postgresql", "SET search_path = shop"),
        ("postgresql", "LISTEN news"),
        ("postgresql", "CREATE TEMP TABLE own (n INT)"),
        ("postgresql", "SELECT pg_advisory_lock(1)"),
        ("postgresql", "DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
        ("postgresql", "SELECT set_config('a.b', 'c', false)"),
        ("postgresql", "SELECT take(1)"),
        ("postgresql", "PREPARE p AS SELECT 1"),
        ("mysql", "SET @a = 1"),
        ("mysql", "SELECT GET_LOCK('a', 1)"),
        ("mysql", "CREATE TEMPORARY TABLE own (n INT)"),
        ("mysql", "USE other"),
        ("mysql", "SET NAMES latin1"),
        ("mariadb", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
        ("mysql", "LOCK TABLES stock READ"),
        ("mysql", "SAVEPOINT a"),
        ("postgresql", "ROLLBACK TO SAVEPOINT a"),
        ("postgresql", None),
        ("postgresql", "SELECT " + "1 + " * 9_000 + "1"),
    ],
)
def test_what_an_earlier_statement_may_have_left_on_the_session_forbids_it(
    backend: str, earlier: Any
) -> None:
    assert not may_run_again(
        past((earlier, False), (INSERT, False)), lost(INSERT, backend=backend)
    ).heals


@pytest.mark.parametrize(
    "earlier",
    [
        INSERT,
        SELECT,
        "UPDATE stock SET n = 2 WHERE id = 1",
        "COMMIT",
        "ROLLBACK",
        "SHOW search_path",
    ],
)
def test_an_earlier_statement_that_leaves_nothing_does_not(earlier: str) -> None:
    assert may_run_again(past((earlier, False), (INSERT, False)), lost(INSERT)).heals


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT LAST_INSERT_ID()",
        "SELECT ROW_COUNT()",
        "SELECT FOUND_ROWS()",
        "SHOW WARNINGS",
        "SHOW /* all */ WARNINGS",
        "SHOW COUNT(*) ERRORS",
        "SHOW SESSION STATUS LIKE 'Last_query_cost'",
        "SHOW PROFILES",
        "SELECT PREVIOUS VALUE FOR serial",
        "SELECT PREVIOUS\n/* x */ VALUE FOR serial",
        "SELECT * FROM performance_schema.session_status",
        "SELECT @@identity",
        "SELECT currval('s')",
        "SELECT lastval()",
        "SELECT CONNECTION_ID()",
        "SELECT pg_backend_pid()",
        "INSERT INTO item (stock) VALUES (LAST_INSERT_ID())",
        b"SELECT LAST_INSERT_ID()",
    ],
)
def test_what_asks_the_memory_of_a_session_that_has_one_is_not_run_again(sql: Any) -> None:
    for autocommit in (True, False):
        assert not may_run_again(
            past((INSERT, False), (sql, False)), lost(sql, autocommit=autocommit, backend="mysql")
        ).heals


def test_what_is_not_seen_forbids_it_for_the_rest_of_the_use() -> None:
    mine = past((SELECT, False))
    mine.unseen("the raw connection was handed out")
    assert may_run_again(mine, lost(SELECT)) == Ruling(False, "the raw connection was handed out")
    mine.sent(SELECT, False)
    assert not may_run_again(mine, lost(SELECT)).heals
    mine.renew()
    mine.sent(SELECT, False)
    assert may_run_again(mine, lost(SELECT)).heals


def test_what_a_lost_session_remembered_is_not_asked_of_another_one() -> None:
    mine = past((INSERT, False), (SELECT, False))
    assert not mine.misses("SELECT LAST_INSERT_ID()")
    mine.moved()
    assert mine.misses("SELECT LAST_INSERT_ID()")
    assert not mine.misses(SELECT)
    mine.moved()
    assert mine.misses(None)
    mine.renew()
    mine.sent(SELECT, False)
    mine.moved()  # that session had nothing to remember
    assert not mine.misses("SELECT LAST_INSERT_ID()")


def test_only_so_many_texts_are_remembered() -> None:
    mine = Past()
    for number in range(MOST_TEXTS + 2):
        mine.sent(f"SELECT {number}", False)
    assert not may_run_again(mine, lost("SELECT 1")).heals
    assert len(mine.earlier) <= MOST_TEXTS


@pytest.mark.parametrize("kind", list(FaultKind))
def test_only_a_connection_that_cannot_serve_is_replaced(kind: FaultKind) -> None:
    cured = {
        FaultKind.LOST,
        FaultKind.WRONG_SERVER,
        FaultKind.READ_ONLY,
        FaultKind.NOT_READY,
        FaultKind.TOO_MANY,
    }
    assert first(SELECT, fault=Fault(kind)).heals is (kind in cured)


@pytest.mark.parametrize("cause", list(Cause))
def test_what_was_ended_on_purpose_is_not_replaced(cause: Cause) -> None:
    on_purpose = {
        Cause.RECLAIMED,
        Cause.DEADLINE,
        Cause.CANCELLED,
        Cause.CLOSED_BY_HOLDER,
        Cause.POOL_CLOSED,
        Cause.DISCARDED,
        Cause.FORGOTTEN,
    }
    assert first(SELECT, cause=cause).heals is (cause not in on_purpose)
    assert first(SELECT, fault=Fault(FaultKind.LOST, cause)).heals is (cause not in on_purpose)


def test_time_the_result_and_a_second_fresh_loss_forbid_it() -> None:
    assert not first(SELECT, in_time=False).heals
    assert not first(SELECT, handed_over=True).heals
    assert first(SELECT, losses=0).heals
    assert not first(SELECT, losses=2).heals


def forget(*statements: tuple[Any, bool | None], serializable: bool = False, **more: Any) -> Ruling:
    return may_forget_commit(past(*statements), lost("COMMIT", **more), serializable=serializable)


def test_a_lost_commit_of_nothing_but_reads_is_no_loss() -> None:
    assert forget(("SELECT 1", False)) == Ruling(True, "its transaction only read")
    assert forget((SELECT, False), ("SELECT 1", True)).asks == (HIDDEN,)
    assert forget((INSERT, False), (SELECT, False)).heals  # the INSERT's transaction has ended


@pytest.mark.parametrize(
    "sql", [INSERT, "SELECT take(1)", "SET search_path = a", "BEGIN", None, "SAVEPOINT a"]
)
def test_a_lost_commit_of_anything_else_is_one(sql: Any) -> None:
    assert not forget((sql, False)).heals
    assert not forget((SELECT, False), (sql, True)).heals


@pytest.mark.parametrize(
    "lock",
    [
        "FOR UPDATE",
        "for\nupdate",
        "FOR/**/UPDATE SKIP LOCKED",
        "FOR NO KEY UPDATE",
        "FOR SHARE",
        "FOR KEY SHARE",
        "LOCK IN SHARE MODE",
    ],
)
def test_a_lost_commit_of_what_locked_rows_is_one(lock: str) -> None:
    assert not forget((f"{SELECT} {lock}", False)).heals
    assert not forget((f"{SELECT} {lock}", False), (SELECT, True)).heals
    assert forget((f"{SELECT} {lock}", False), (SELECT, False)).heals  # that was another one


@pytest.mark.parametrize(
    "earlier",
    [
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET default_transaction_isolation = 'serializable'",
        "SELECT set_config('default_transaction_isolation', 'serializable', false)",
        None,
    ],
)
def test_a_lost_commit_is_one_where_an_earlier_transaction_may_have_set_the_level(
    earlier: Any,
) -> None:
    assert not forget((earlier, False), (SELECT, False)).heals


def test_a_lost_commit_of_which_too_little_is_known_is_one() -> None:
    assert not forget().heals
    assert not forget((SELECT, True)).heals
    assert not forget((SELECT, False), serializable=True).heals
    assert not forget((SELECT, False), cause=Cause.DEADLINE).heals
    assert not forget((SELECT, False), fault=Fault(FaultKind.RETRY)).heals
