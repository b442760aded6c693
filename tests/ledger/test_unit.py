"""The ledger of a unit of work: what it lets be replayed, case by case, and against a model of a
database that can lose its connections.
"""

from __future__ import annotations

import contextvars
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.brain.entry import Entry
from unbroken.ledger import reports as reports_module
from unbroken.ledger import scope, verdicts
from unbroken.ledger.questions import Question
from unbroken.ledger.scope import current, enter, is_left_over, leave
from unbroken.ledger.statements import Kind, kind
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Fate
from unbroken.pool.running import run_unit

LOST, RETRY = Fault(FaultKind.LOST), Fault(FaultKind.RETRY)
INSERT = "INSERT INTO t VALUES (1)"
LEDGER = tuple(f"unbroken.ledger.{name}" for name in ("unit", "reports", "deeds", "scope"))


def begun() -> Unit:
    unit = Unit()
    unit.begin_attempt()
    return unit


def action(unit: Unit, fault: Fault = LOST, **where: Any) -> Action:
    return unit.verdict(fault, **where).action


# -- what may be replayed --------------------------------------------------------------------------


def test_an_attempt_that_sent_nothing_is_replayed() -> None:
    assert action(begun()) is Action.REPLAY


def test_reads_in_autocommit_are_replayed() -> None:
    unit = begun()
    unit.statement("SELECT 1", True)
    unit.statement("SELECT 1", None)
    assert action(unit) is Action.REPLAY
    assert not unit.wrote


def test_writes_in_a_transaction_that_was_not_committed_are_replayed() -> None:
    unit = begun()
    unit.statement("BEGIN", False)
    unit.statement(INSERT, False)
    unit.statement("SAVEPOINT a", False)
    assert unit.wrote
    assert action(unit) is Action.REPLAY
    assert action(unit, RETRY) is Action.REPLAY
    assert action(unit, Fault(FaultKind.WRONG_SERVER)) is Action.REPLAY


def test_a_lost_commit_of_reads_is_replayed() -> None:
    unit = begun()
    unit.statement("SELECT 1", False)
    unit.committing()
    assert action(unit) is Action.REPLAY
    unit.committed()
    unit.statement("COMMIT", False)
    assert action(unit) is Action.REPLAY


def test_after_an_acknowledged_rollback_the_commit_of_reads_is_harmless_again() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.rolled_back()
    unit.statement("SELECT 1", False)
    unit.committing()
    assert action(unit) is Action.REPLAY


def test_a_serialization_failure_at_the_commit_is_replayed() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.committing()
    unit.commit_failed()
    assert action(unit, RETRY) is Action.REPLAY


@pytest.mark.parametrize("sql", ["COMMIT", "COMMIT AND CHAIN", "XA COMMIT 'x'", None])
@pytest.mark.parametrize("fault", [LOST, RETRY, Fault(FaultKind.OTHER, None, 1180)])
def test_a_commit_that_was_answered_with_an_error_that_proves_nothing_is_unknown(
    sql: str | None, fault: Fault
) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.committing() if sql is None else unit.statement(sql, False)
    unit.commit_doubted()
    assert action(unit, fault) is Action.COMMIT_UNKNOWN
    unit.rolled_back()
    assert action(unit, fault) is Action.COMMIT_UNKNOWN
    assert unit.fate() is Fate.UNKNOWN
    unit.begin_attempt()
    assert action(unit, RETRY) is Action.REPLAY


def test_a_doubtful_answer_to_anything_but_a_commit_is_no_doubt_about_one() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("RELEASE SAVEPOINT s", False)
    unit.commit_doubted()
    assert action(unit, RETRY) is Action.REPLAY


def test_a_write_in_autocommit_that_was_answered_so_is_never_replayed_and_its_fate_unknown() -> (
    None
):
    unit = begun()
    unit.statement(INSERT, True)
    unit.commit_doubted()
    assert action(unit, LOST) is Action.RAISE
    assert unit.fate() is Fate.UNKNOWN


def test_a_commit_as_text_that_was_answered_with_an_error_is_replayed() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("COMMIT", False)
    unit.commit_failed()
    assert action(unit, RETRY) is Action.REPLAY


def test_a_new_attempt_forgets_the_last_one() -> None:
    unit = begun()
    unit.doubt("x")
    unit.note(KeyError(), LOST)
    unit.begin_attempt()
    assert unit.attempts == 2
    assert not unit.wrote
    assert action(unit) is Action.REPLAY


# -- what may not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_method", [True, False])
def test_a_commit_of_writes_without_an_answer_is_unknown(by_method: bool) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    if by_method:
        unit.committing()
    else:
        unit.statement("COMMIT", False)
    assert unit.verdict(LOST).action is Action.COMMIT_UNKNOWN
    assert "COMMIT" in unit.verdict(LOST).reason
    assert unit.verdict(RETRY).action is Action.RAISE  # that may be the answer to something else


@pytest.mark.parametrize("sql", ["COMMIT PREPARED 'a'", "XA COMMIT 'a'", "COMMIT AND CHAIN"])
@pytest.mark.parametrize("autocommit", [True, False, None])
def test_a_commit_of_another_kind_without_an_answer_is_unknown(
    sql: str, autocommit: bool | None
) -> None:
    unit = begun()
    unit.statement(sql, autocommit)
    assert action(unit) is Action.COMMIT_UNKNOWN
    assert action(unit, RETRY) is Action.RAISE
    assert unit.fate() is Fate.UNKNOWN
    unit.statement("SELECT 1", True)
    assert unit.verdict(LOST).reason == "an earlier COMMIT was acknowledged"
    assert unit.fate() is Fate.UNKNOWN


@pytest.mark.parametrize(("stored", "fate"), [(True, Fate.STORED), (False, Fate.NOTHING)])
def test_a_commit_of_another_kind_has_the_fate_that_the_server_told(
    stored: bool, fate: Fate
) -> None:
    unit = begun()
    unit.statement("COMMIT PREPARED 'a'", True)
    unit.acknowledged(stored=stored)
    assert unit.fate() is fate
    assert action(unit) is (Action.RAISE if stored else Action.REPLAY)


@pytest.mark.parametrize("autocommit", [True, False, None])
def test_a_rollback_to_a_savepoint_stores_nothing_whatever_is_known_of_the_connection(
    autocommit: bool | None,
) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("ROLLBACK TO SAVEPOINT a", autocommit)
    assert action(unit) is Action.REPLAY


def test_an_earlier_commit_does_not_hide_that_the_last_one_is_unknown() -> None:
    unit = begun()
    unit.statement(INSERT, True)
    unit.statement(INSERT, False)
    unit.committing()
    assert action(unit) is Action.COMMIT_UNKNOWN


@pytest.mark.parametrize("fault", [LOST, RETRY])
def test_nothing_is_replayed_after_an_acknowledged_commit_of_writes(fault: Fault) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.committing()
    unit.committed()
    unit.statement("SELECT 1", False)
    unit.rolled_back()
    assert unit.verdict(fault).action is Action.RAISE
    assert unit.verdict(fault).reason == "an earlier COMMIT was acknowledged"


@pytest.mark.parametrize("follow", ["SELECT 1", "ROLLBACK", "COMMIT", "BEGIN", None])
def test_a_commit_as_text_is_acknowledged_by_what_follows_it(follow: str | None) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("COMMIT", False)
    unit.statement(follow, True)
    assert action(unit) is Action.RAISE


@pytest.mark.parametrize("report", [Unit.committing, Unit.rolled_back])
def test_a_commit_without_a_word_is_taken_for_done_when_the_connection_goes_on(
    report: Callable[[Unit], None],
) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.committing()
    report(unit)
    assert action(unit) is Action.RAISE


@pytest.mark.parametrize(
    ("sql", "autocommit", "reason"),
    [
        (INSERT, True, "an INSERT was sent in autocommit"),
        (
            "UPDATE t SET a = 1",
            None,
            "an UPDATE was sent, and it is not known whether autocommit was on",
        ),
        ("SELECT f(1)", True, "a SELECT was sent in autocommit"),
        ("CREATE TABLE t (a INT)", False, "a CREATE was sent, which may commit implicitly"),
        ("XA START 'x'", False, "an XA was sent, which may commit implicitly"),
        (f"{INSERT}; COMMIT", False, "an INSERT was sent, which may commit implicitly"),
        ("hunter2 secret", False, "a statement was sent, which may commit implicitly"),
        (None, False, "a statement with an unknown text was sent"),
    ],
)
@pytest.mark.parametrize("fault", [LOST, RETRY])
def test_what_may_have_been_committed_is_not_replayed_and_says_why(
    sql: str | None, autocommit: bool, reason: str, fault: Fault
) -> None:
    unit = begun()
    unit.statement(sql, autocommit)
    unit.rolled_back()
    assert unit.verdict(fault).action is Action.RAISE
    assert unit.verdict(fault).reason == reason
    assert unit.wrote


def test_a_doubt_is_final_and_the_first_one_is_told() -> None:
    unit = begun()
    unit.doubt("COPY was used")
    unit.doubt("something else")
    unit.rolled_back()
    assert unit.verdict(LOST) == verdicts.Verdict(Action.RAISE, "COPY was used")


def test_a_begin_in_an_open_transaction_with_writes_commits_it_in_mysql() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("START TRANSACTION", False)
    assert action(unit) is Action.RAISE


def test_switching_autocommit_is_a_commit() -> None:
    unit = begun()
    unit.statement("SET autocommit = 0", True)
    unit.statement(INSERT, False)
    assert action(unit) is Action.REPLAY
    unit.statement("SET autocommit = 1", False)
    assert action(unit) is Action.COMMIT_UNKNOWN
    unit.statement("SELECT 1", True)
    assert action(unit) is Action.RAISE


def test_a_rollback_as_text_counts_only_once_it_is_acknowledged() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.statement("ROLLBACK", False)
    unit.committing()
    assert action(unit) is Action.COMMIT_UNKNOWN


def test_after_a_failed_commit_a_later_one_still_counts() -> None:
    unit = begun()
    unit.statement(INSERT, False)
    unit.committing()
    unit.commit_failed()
    unit.committing()
    assert action(unit) is Action.COMMIT_UNKNOWN


@pytest.mark.parametrize(
    "fault",
    [k for k in FaultKind if k not in {FaultKind.LOST, FaultKind.RETRY, *CANNOT_SERVE}],
)
def test_other_faults_are_the_callers(fault: FaultKind) -> None:
    assert action(begun(), Fault(fault)) is Action.RAISE


@pytest.mark.parametrize("kind", sorted(CANNOT_SERVE))
def test_a_commit_that_was_answered_by_a_server_that_cannot_serve_is_unknown(
    kind: FaultKind,
) -> None:
    unit = begun()
    unit.statement(INSERT, False)
    assert action(unit, Fault(kind)) is Action.REPLAY
    unit.committing()
    assert action(unit, Fault(kind)) is Action.COMMIT_UNKNOWN


# -- several connections ---------------------------------------------------------------------------


def test_open_writes_on_a_connection_that_did_not_fail_forbid_a_replay() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.statement(INSERT, False, conn_id=2)
    assert action(unit, conn_id=1) is Action.RAISE  # 2 could still be committed
    assert action(unit) is Action.RAISE
    unit.ended(conn_id=2)
    assert action(unit, conn_id=1) is Action.REPLAY
    assert action(unit, conn_id=3) is Action.RAISE  # that one never wrote
    assert action(unit) is Action.RAISE  # nobody said that it was 1
    unit.rolled_back(conn_id=1)
    assert action(unit) is Action.REPLAY


def test_a_commit_on_one_connection_is_not_acknowledged_by_another() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.statement("COMMIT", False, conn_id=1)
    unit.statement("SELECT 1", False, conn_id=2)
    assert action(unit, conn_id=1) is Action.COMMIT_UNKNOWN


def test_a_commit_on_one_connection_forbids_the_replay_of_the_other() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    unit.statement(INSERT, False, conn_id=2)
    assert action(unit, conn_id=2) is Action.RAISE


def test_a_connection_that_ends_with_a_commit_on_its_way_leaves_it_unknown() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.committing(conn_id=1)
    unit.ended(conn_id=1)
    assert action(unit) is Action.COMMIT_UNKNOWN


# -- what the server is asked ----------------------------------------------------------------------

LOOK = "SELECT * FROM v"


class Server:
    """Where a connection came from."""

    def __init__(self, backend: str = "mysql") -> None:
        self.backend = backend
        self.has_hung_up = False
        self.may_hide_writes = True

    def looked(self) -> None:
        pass

    def has_ended(self, _entry: object) -> bool:
        return self.has_hung_up


def looked(home: Server, autocommit: bool = False) -> Unit:
    """A unit that has read from what may be a view."""
    unit = begun()
    unit.join(1, home)
    unit.statement(LOOK, autocommit, conn_id=1)
    return unit


def test_a_select_that_was_lost_with_its_transaction_asks_nothing() -> None:
    unit = looked(Server())
    unit.ended(conn_id=1, lost=True)
    assert unit.verdict(LOST).asks == ()
    assert action(unit) is Action.REPLAY


@pytest.mark.parametrize("how", ["answered", "silent", "autocommit", "begin", "set"])
def test_a_select_that_was_committed_asks_whether_it_may_have_written(how: str) -> None:
    home = Server()
    unit = looked(home, how == "autocommit")
    if how in ("answered", "silent"):
        unit.committing(conn_id=1)
    if how == "answered":
        unit.committed(conn_id=1)
    if how == "begin":
        unit.statement("START TRANSACTION", False, conn_id=1)
    if how == "set":
        unit.statement("SET autocommit = 1", False, conn_id=1)
    unit.ended(conn_id=1, lost=True)
    verdict = unit.verdict(LOST)
    assert verdict.action is Action.REPLAY
    assert verdict.asks == ((home, Question.HIDDEN_WRITES),)
    unit.hear(home, Question.HIDDEN_WRITES, "")
    assert unit.verdict(LOST).asks == ()
    assert action(unit) is Action.REPLAY
    assert unit.fate() is Fate.NOTHING


@pytest.mark.parametrize("answer", ["view v calls f", None])
def test_a_select_that_may_have_written_and_was_committed_is_not_run_again(
    answer: str | None,
) -> None:
    home = Server()
    unit = looked(home)
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    unit.ended(conn_id=1)
    unit.hear(home, Question.HIDDEN_WRITES, answer)
    assert action(unit) is Action.RAISE
    assert (answer or "could not be asked") in unit.verdict(LOST).reason
    assert unit.fate() is Fate.UNKNOWN


def test_a_lost_commit_of_a_select_that_may_have_written_is_unknown() -> None:
    home = Server()
    unit = looked(home)
    unit.committing(conn_id=1)
    unit.ended(conn_id=1, lost=True)
    unit.hear(home, Question.HIDDEN_WRITES, "view v calls f")
    assert action(unit) is Action.COMMIT_UNKNOWN


@pytest.mark.parametrize("observing", [False, True])
def test_what_a_select_may_have_stored_is_unknown_unless_the_server_ruled_it_out(
    observing: bool,
) -> None:
    home = Server()
    outer = enter(Unit(observing=True)) if observing else None
    unit = begun()
    inner = enter(unit)
    unit.join(1, home)
    unit.statement(LOOK, False, conn_id=1)
    assert unit.fate() is Fate.NOTHING  # nobody has committed it
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    unit.ended(conn_id=1)
    leave(inner)
    asked = unit if outer is None else outer.unit
    assert asked.fate() is Fate.UNKNOWN
    home.may_hide_writes = False
    assert asked.fate() is Fate.NOTHING
    if outer is not None:
        leave(outer)


def test_a_select_that_was_rolled_back_asks_nothing() -> None:
    unit = looked(Server())
    unit.rolled_back(conn_id=1)
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    assert unit.verdict(LOST).asks == ()


def test_a_select_that_was_committed_where_nobody_can_be_asked_is_not_run_again() -> None:
    unit = begun()
    unit.statement(LOOK, True)
    assert "no server can be asked" in unit.verdict(LOST).reason


def test_each_server_is_asked_once_for_each_attempt() -> None:
    one, other = Server(), Server("postgresql")
    unit = begun()
    for conn_id, home in ((1, one), (2, one), (3, other)):
        unit.join(conn_id, home)
        unit.statement(LOOK, True, conn_id=conn_id)
        unit.ended(conn_id=conn_id)
    assert set(unit.verdict(LOST).asks) == {
        (one, Question.HIDDEN_WRITES),
        (other, Question.HIDDEN_WRITES),
    }
    unit.begin_attempt()
    assert unit.verdict(LOST).asks == ()


# -- replays without sense -------------------------------------------------------------------------


def dies(unit: Unit, sql: str, *, fresh: bool = True, before: str | None = None) -> None:
    """An attempt in which *sql* ends its connection; what was sent *before* it was answered."""
    unit.begin_attempt()
    unit.join(1, Server(), fresh=fresh)
    if before is not None:
        unit.statement(before, False, conn_id=1)
    unit.statement(sql, False, conn_id=1)
    unit.ended(conn_id=1, lost=True)


def test_a_statement_that_ended_two_fresh_connections_is_not_sent_again() -> None:
    unit = Unit()
    dies(unit, "SELECT f(1)")
    assert action(unit) is Action.REPLAY
    dies(unit, "SELECT f(2)")
    assert "ends its session" in unit.verdict(LOST).reason


def test_one_that_ended_two_connections_which_had_just_answered_is_not_sent_again() -> None:
    unit = Unit()
    for _ in range(2):
        dies(unit, "SELECT f('a')", fresh=False, before="SELECT 1")
    assert action(unit) is Action.RAISE


@pytest.mark.parametrize("second", ["SELECT g(1)", "BEGIN"])
def test_two_losses_at_different_statements_are_an_accident(second: str) -> None:
    unit = Unit()
    dies(unit, "SELECT f(1)")
    dies(unit, second)
    dies(unit, "SELECT h(1)")
    assert action(unit) is Action.REPLAY


def test_a_connection_that_may_have_been_lost_before_it_was_used_blames_no_statement() -> None:
    unit = Unit()
    for _ in range(3):
        dies(unit, INSERT, fresh=False)
        assert action(unit) is Action.REPLAY


@pytest.mark.parametrize("how", ["seen", "not seen"])
def test_a_statement_that_met_a_connection_which_was_lost_before_is_not_to_blame(how: str) -> None:
    unit = Unit()
    for _ in range(3):
        unit.begin_attempt()
        home, entry = Server(), Entry(None, 0.0, 0, 0.0)
        unit.join(1, home, entry, fresh=True)
        home.has_hung_up = True
        if how == "seen":
            entry.condemn(Cause.KILLED)
        unit.statement(INSERT, False, conn_id=1)
        unit.ended(conn_id=1, lost=True)
        assert action(unit) is Action.REPLAY


def test_a_begin_is_never_to_blame() -> None:
    unit = Unit()
    for _ in range(3):
        dies(unit, "BEGIN")
        assert action(unit) is Action.REPLAY


def test_a_connection_that_was_lost_after_an_answer_blames_no_statement() -> None:
    unit = Unit()
    for _ in range(3):
        unit.begin_attempt()
        unit.join(1, Server(), fresh=True)
        unit.statement(INSERT, False, conn_id=1)
        unit.acknowledged(conn_id=1)
        unit.ended(conn_id=1, lost=True)
        assert action(unit) is Action.REPLAY


def pauses(unit: Unit, after: int, *, fresh: bool = True) -> None:
    unit.begin_attempt()
    unit.join(1, Server(), fresh=fresh)
    for _ in range(after):
        unit.statement(INSERT, False, conn_id=1)
        unit.acknowledged(conn_id=1)
    unit.ended(conn_id=1, paused=True)


def test_a_pause_that_ends_its_session_twice_at_the_same_point_is_not_made_a_third_time() -> None:
    unit = Unit()
    pauses(unit, 2)
    assert action(unit) is Action.REPLAY
    pauses(unit, 3)
    assert action(unit) is Action.REPLAY
    pauses(unit, 2)
    assert action(unit) is Action.RAISE
    assert "idle" in unit.verdict(LOST).reason


@pytest.mark.parametrize(("after", "fresh"), [(0, True), (1, False)])
def test_a_connection_that_had_been_idle_before_the_unit_blames_no_pause(
    after: int, fresh: bool
) -> None:
    unit = Unit()
    for _ in range(3):
        pauses(unit, after, fresh=fresh)
        assert action(unit) is Action.REPLAY


def test_a_connection_that_its_holder_closed_is_not_replaced() -> None:
    assert (
        "the application closed the connection"
        in begun().verdict(Fault(FaultKind.LOST, Cause.CLOSED_BY_HOLDER)).reason
    )


def test_a_large_statement_that_was_lost_asks_how_large_one_may_be() -> None:
    home = Server("mariadb")
    unit = begun()
    unit.join(1, home)
    unit.statement("INSERT INTO t VALUES ('" + "x" * 5000 + "')", False, conn_id=1)
    assert unit.verdict(LOST).asks == ()
    unit.ended(conn_id=1, lost=True)
    assert unit.verdict(LOST).asks == ((home, Question.PACKET),)
    unit.hear(home, Question.PACKET, 1024)
    assert (
        unit.verdict(LOST).reason
        == "an INSERT of 5,026 bytes was sent, but the server accepts at most"
        " max_allowed_packet = 1,024 bytes"
    )
    unit.hear(home, Question.PACKET, 16_777_216)
    assert action(unit) is Action.REPLAY
    unit.hear(home, Question.PACKET, None)
    assert "could not be asked" in unit.verdict(LOST).reason


def test_a_refusal_for_being_read_only_is_the_callers_unless_the_server_takes_no_writes() -> None:
    unit, exc = begun(), KeyError()
    refusal = Fault(FaultKind.READ_ONLY, None, "25006")
    unit.note(exc, refusal)
    assert action(unit, refusal) is Action.RAISE
    unit.rule(Fault(FaultKind.READ_ONLY, None, "25006", "another"), FaultKind.WRONG_SERVER)
    assert unit.fault_of(exc) == refusal
    unit.rule(refusal, FaultKind.WRONG_SERVER)
    assert unit.fault_of(exc) == Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, "25006")
    assert action(unit, Fault(FaultKind.WRONG_SERVER)) is Action.REPLAY


# -- which unit ------------------------------------------------------------------------------------


def test_outside_of_a_unit_there_is_none() -> None:
    assert current() is None


def test_the_outermost_unit_is_the_one_that_counts() -> None:
    outer, inner = Unit(), Unit()
    token = enter(outer)
    assert token.outermost
    nested = enter(inner)
    assert not nested.outermost
    assert nested.unit is outer
    assert current() is outer
    leave(nested)
    assert current() is outer
    leave(token)
    assert current() is None
    assert outer.closed
    assert not inner.closed


def test_a_unit_that_was_left_takes_no_reports() -> None:
    unit = begun()
    leave(enter(unit))
    unit.doubt("x")
    unit.statement(None, None)
    unit.statement(INSERT, False)
    unit.committing()
    unit.committed()
    unit.commit_failed()
    unit.rolled_back()
    unit.ended()
    unit.note(KeyError(), LOST)
    assert action(unit) is Action.REPLAY
    assert not unit.wrote


def test_a_context_that_outlives_its_unit_is_in_none_and_may_begin_its_own() -> None:
    token = enter(Unit())
    context = contextvars.copy_context()
    leave(token)
    assert context.run(current) is None
    assert context.run(enter, Unit()).outermost


def test_a_unit_may_be_left_in_another_context() -> None:
    unit = Unit()
    context = contextvars.copy_context()
    token = context.run(enter, unit)
    leave(token)
    assert unit.closed
    assert current() is None
    assert context.run(current) is None


def test_threads_with_the_units_context_report_to_it() -> None:
    token = enter(begun())
    try:
        context = contextvars.copy_context()

        def work() -> None:
            found = current()
            assert found is not None
            found.doubt("in a thread")

        thread = threading.Thread(target=lambda: context.run(work))
        thread.start()
        thread.join(10)
        assert token.unit.verdict(LOST).reason == "in a thread"
    finally:
        leave(token)


def test_a_thread_of_no_unit_reports_to_the_unit_that_its_connection_joined() -> None:
    unit, gate = begun(), threading.Event()
    found: list[Unit | None] = []
    thread = threading.Thread(
        target=lambda: found.extend([gate.wait(10) or None, current(), current(7), current(8)])
    )
    thread.start()
    token = enter(unit)
    unit.join(7)
    gate.set()
    thread.join(10)
    assert found == [True, None, unit, None]
    assert current(7) is unit
    unit.ended(conn_id=7)
    leave(token)
    unit.join(7)
    assert current(7) is None


def test_a_unit_that_uses_the_connection_of_another_is_in_doubt_and_the_owner_hears_of_it() -> None:
    owner, other = begun(), begun()
    owner.join(7)
    token = enter(other)
    assert current(7) is owner
    assert action(other) is Action.RAISE
    assert action(owner, conn_id=7) is Action.REPLAY
    leave(token)
    owner.close()


def test_a_connection_that_a_task_of_the_attempt_still_has_forbids_a_replay() -> None:
    unit = begun()
    unit.join(7)
    unit.join(8)
    unit.ended(conn_id=7)
    assert action(unit) is Action.RAISE
    unit.ended(conn_id=8)
    assert action(unit) is Action.REPLAY
    unit.close()


def test_a_task_of_an_attempt_that_was_run_again_knows_it_even_when_the_unit_is_over() -> None:
    unit = Unit()
    token = enter(unit)
    unit.begin_attempt()
    first = contextvars.copy_context()
    assert not first.run(is_left_over)
    unit.begin_attempt()
    second = contextvars.copy_context()
    assert first.run(is_left_over)
    leave(token)
    assert first.run(is_left_over)
    assert not second.run(is_left_over)


def test_nested_deadlines_beside_each_other_do_not_mix() -> None:
    unit = begun()
    unit.until = 100.0
    with unit.within(0.0, 50.0):
        inside = contextvars.copy_context()
        with unit.within(0.0, 70.0):
            assert unit.until == 50.0
    assert unit.until == 100.0
    assert inside.run(lambda: unit.until) == 50.0


class Strike(BaseException):
    """What a signal handler raises."""


def strike_at(number: int, work: Callable[[], object], modules: tuple[str, ...]) -> Strike | None:
    """Run *work*, with a Strike at instruction *number* in code of *modules*; None: it has
    fewer.
    """
    left = [number]

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_globals.get("__name__") not in modules:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                raise Strike
        return trace

    sys.settrace(trace)
    try:
        work()
    except Strike as strike:
        return strike
    finally:
        sys.settrace(None)
    return None


def every_strike(work: Callable[[], object], *modules: str) -> int:
    """After a Strike at any instruction of *work* this thread is in no unit; gives how many there
    were.
    """
    number = 0
    while (strike := strike_at(number, work, modules)) is not None:
        # The exception, and with it each frame that it came through, is still there.
        assert current() is None, f"in a dead unit after a strike at instruction {number}"
        assert scope.entered() == []
        token = enter(Unit())
        assert token.outermost
        leave(token)
        assert not is_left_over()
        del strike
        number += 1
    return number


def test_an_exception_at_any_instruction_of_a_unit_leaves_no_thread_in_a_dead_one() -> None:
    work = lambda: run_unit(lambda: None, None, 3, lambda _: None)  # noqa: E731
    assert (
        every_strike(
            work,
            *LEDGER,
            "unbroken.pool.contexts",
            "unbroken.pool.jobs",
            "unbroken.pool.wrapping",
            "unbroken.pool.running",
            "unbroken.pool.replay",
        )
        > 200
    )


def test_an_exception_at_any_instruction_of_a_nested_unit_leaves_no_thread_in_a_dead_one() -> None:
    inner = lambda: run_unit(lambda: None, 5.0, 3, lambda _: None)  # noqa: E731
    work = lambda: run_unit(inner, None, 3, lambda _: None)  # noqa: E731
    assert every_strike(work, *LEDGER, "unbroken.pool.running") > 200


def test_an_exception_at_any_instruction_inside_an_observing_unit_leaves_the_thread_in_that() -> (
    None
):
    number, outer = 0, enter(observer := Unit(observing=True))
    work = lambda: run_unit(lambda: None, None, 3, lambda _: None)  # noqa: E731
    while (strike := strike_at(number, work, (*LEDGER, "unbroken.pool.running"))) is not None:
        assert current() is observer
        token = enter(Unit())
        assert token.outermost
        assert token.unit.above is observer
        leave(token)
        del strike
        number += 1
    assert observer.fate() is Fate.NOTHING
    leave(outer)


def test_a_unit_whose_runner_never_left_it_is_none() -> None:
    def runner() -> FrameType:
        token = enter(Unit(), id(sys._getframe()))
        frame = sys._getframe()
        assert token.outermost
        return frame  # as a traceback does, this keeps the token

    kept = runner()
    token = enter(Unit())
    assert token.outermost
    leave(token)
    assert current() is None
    del kept


def test_a_unit_ends_with_its_token() -> None:
    unit = Unit()
    token = enter(unit)
    context = contextvars.copy_context()
    del token
    assert unit.is_over
    assert current() is None
    assert context.run(current) is None
    assert scope.current_token() is None


def test_a_deadline_of_a_nested_unit_does_not_outlive_its_outer_unit() -> None:
    outer = begun()
    stays = outer.within(0.0, 5.0)
    stays.__enter__()
    assert outer.until == 5.0
    assert begun().until == math.inf
    stays.__exit__(None, None, None)


def test_a_connection_that_was_given_back_with_its_transaction_open_forbids_a_replay() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.ended(conn_id=1, clean=False)
    assert action(unit, conn_id=2) is Action.RAISE


# -- what became of the writes ---------------------------------------------------------------------


def test_a_unit_that_only_read_stored_nothing() -> None:
    unit = begun()
    unit.statement("SELECT 1", True, conn_id=1)
    unit.statement("SELECT 1", None, conn_id=2)
    unit.committing(conn_id=2)
    unit.committed(conn_id=2)
    assert unit.fate() is Fate.NOTHING


def test_writes_that_were_rolled_back_or_lost_before_their_commit_are_not_stored() -> None:
    unit = begun()
    for conn_id in (1, 2):
        unit.statement(INSERT, False, conn_id=conn_id)
    assert unit.fate() is Fate.UNKNOWN  # somebody may still commit them
    unit.rolled_back(conn_id=1)
    unit.ended(conn_id=2)
    assert unit.fate() is Fate.NOTHING


def test_an_acknowledged_commit_of_writes_is_stored_also_when_the_unit_is_over() -> None:
    token = enter(unit := begun())
    unit.statement(INSERT, False, conn_id=1)
    unit.committing(conn_id=1)
    assert unit.fate() is Fate.UNKNOWN
    unit.committed(conn_id=1)
    assert unit.fate() is Fate.STORED
    leave(token)
    assert unit.fate() is Fate.STORED


def test_one_commit_without_an_answer_makes_all_unknown() -> None:
    unit = begun()
    for conn_id in (1, 2):
        unit.statement(INSERT, False, conn_id=conn_id)
        unit.committing(conn_id=conn_id)
    unit.committed(conn_id=1)
    unit.ended(conn_id=2)
    assert unit.fate() is Fate.UNKNOWN


def test_a_commit_that_the_server_refused_stored_nothing() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.committing(conn_id=1)
    unit.commit_failed(conn_id=1)
    unit.rolled_back(conn_id=1)
    assert unit.fate() is Fate.NOTHING


def test_a_commit_whose_answer_nobody_told_is_unknown_although_the_connection_goes_on() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    unit.committing(conn_id=1)
    unit.statement("SELECT 1", False, conn_id=1)
    assert unit.fate() is Fate.UNKNOWN


@pytest.mark.parametrize("follow", [None, "SELECT 1", "COMMIT"])
def test_a_write_in_autocommit_is_unknown_until_its_answer_is_told(follow: str | None) -> None:
    unit = begun()
    unit.statement(INSERT, True, conn_id=1)
    if follow is not None:
        unit.statement(follow, True, conn_id=1)
    unit.ended(conn_id=1)
    assert unit.fate() is Fate.UNKNOWN


@pytest.mark.parametrize(("stored", "fate"), [(True, Fate.STORED), (False, Fate.NOTHING)])
def test_a_write_in_autocommit_has_the_fate_that_the_server_told(stored: bool, fate: Fate) -> None:
    unit = begun()
    unit.statement(INSERT, True, conn_id=1)
    unit.acknowledged(conn_id=1, stored=stored)
    unit.statement("SELECT 1", True, conn_id=1)
    unit.acknowledged(conn_id=1)  # a read's answer says nothing
    unit.ended(conn_id=1)
    assert unit.fate() is fate


@pytest.mark.parametrize(
    ("sql", "autocommit"),
    [
        ("CREATE TABLE t (a INT)", False),
        (None, False),
        ("CALL p()", False),
        (INSERT, None),
    ],
)
def test_what_may_commit_by_itself_is_unknown_for_ever(
    sql: str | None, autocommit: bool | None
) -> None:
    unit = begun()
    unit.statement(sql, autocommit, conn_id=1)
    unit.rolled_back(conn_id=1)
    unit.ended(conn_id=1)
    assert unit.fate() is Fate.UNKNOWN


def test_a_doubt_makes_the_fate_unknown() -> None:
    unit = begun()
    unit.doubt("x")
    assert unit.fate() is Fate.UNKNOWN


@pytest.mark.parametrize("as_bytes", [False, True])
def test_savepoints_alone_store_nothing(as_bytes: bool) -> None:
    unit = begun()
    for sql in ("SAVEPOINT a", "SELECT 1", "ROLLBACK TO SAVEPOINT a", "RELEASE SAVEPOINT a"):
        unit.statement(sql.encode() if as_bytes else sql, False, conn_id=1)
    assert unit.fate() is Fate.NOTHING
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    assert unit.fate() is Fate.NOTHING
    for sql in ("SAVEPOINT a", INSERT, "RELEASE SAVEPOINT a"):
        unit.statement(sql, False, conn_id=1)
    unit.committing(conn_id=1)
    unit.committed(conn_id=1)
    assert unit.fate() is Fate.STORED


def test_what_an_attempt_wrote_that_was_run_again_does_not_count() -> None:
    unit = begun()
    unit.statement(INSERT, False, conn_id=1)
    assert action(unit) is Action.REPLAY
    unit.begin_attempt()
    assert unit.fate() is Fate.NOTHING


@pytest.mark.parametrize("observing", [False, True])
@pytest.mark.parametrize(
    ("home", "sql", "keeps"),
    [
        (Server("mysql"), INSERT, True),
        (Server("mariadb"), INSERT, True),
        (Server("postgresql"), INSERT, False),
        (Server("sqlite"), INSERT, False),
        (None, INSERT, True),
        (Server("mysql"), "SELECT 1", False),
        (Server("mysql"), "SAVEPOINT a", False),
        (Server("mysql"), LOOK, True),
        (Server("postgresql"), LOOK, False),
        (None, LOOK, True),
    ],
)
def test_what_a_rollback_may_leave_in_tables_without_transactions_is_known_of_all_attempts(
    home: Server | None, sql: str, keeps: bool, observing: bool
) -> None:
    outer = enter(Unit(observing=True)) if observing else None
    unit = begun()
    inner = enter(unit)
    unit.join(1, home)
    unit.statement(sql, False, conn_id=1)
    unit.ended(conn_id=1, lost=True)
    unit.begin_attempt()
    asked = unit if outer is None else outer.unit
    assert (asked.fate(), asked.may_keep_rows()) == (Fate.NOTHING, keeps)
    leave(inner)
    assert (asked.fate(), asked.may_keep_rows()) == (Fate.NOTHING, keeps)
    if home is not None and sql == LOOK:
        home.may_hide_writes = False  # as the server said meanwhile
        assert not asked.may_keep_rows()
        home.may_hide_writes = True
    if outer is not None:
        leave(outer)


# -- one that watches ------------------------------------------------------------------------------


def test_a_unit_inside_an_observing_one_is_an_outermost_one_and_its_fate_counts_for_both() -> None:
    observer = Unit(observing=True)
    outer = enter(observer)
    inner = enter(begun())
    assert inner.outermost
    assert current() is inner.unit
    assert not enter(Unit()).outermost
    inner.unit.statement(INSERT, False, conn_id=1)
    assert observer.fate() is Fate.UNKNOWN  # before it is left, too
    inner.unit.committing(conn_id=1)
    inner.unit.committed(conn_id=1)
    assert observer.fate() is Fate.STORED
    leave(inner)
    assert current() is observer
    assert observer.fate() is Fate.STORED
    leave(outer)
    assert current() is None
    assert observer.fate() is Fate.STORED


def test_an_observing_unit_in_one_that_replays_is_part_of_it() -> None:
    outer = enter(begun())
    inner = enter(Unit(observing=True))
    assert not inner.outermost
    assert inner.unit is outer.unit
    leave(inner)
    leave(outer)


def test_what_an_inner_unit_leaves_open_is_followed_by_the_observing_one() -> None:
    observer = Unit(observing=True)
    outer = enter(observer)
    inner = enter(begun())
    inner.unit.join(7)
    inner.unit.statement(INSERT, False, conn_id=7)
    leave(inner)
    assert current(7) is observer
    assert observer.fate() is Fate.UNKNOWN
    observer.committing(conn_id=7)
    observer.committed(conn_id=7)
    observer.ended(conn_id=7)
    assert observer.fate() is Fate.STORED
    leave(outer)
    assert current(7) is None


def test_the_observing_one_knows_how_many_reports_an_inner_unit_heard_from_a_connection() -> None:
    observer = Unit(observing=True)
    outer = enter(observer)
    inner = enter(begun())
    inner.unit.join(7)
    inner.unit.statement("SELECT 1", False, conn_id=7)
    leave(inner)
    assert observer.reports(7) == 1
    leave(outer)


def test_an_inner_unit_that_uses_a_connection_of_the_observing_one_is_not_replayed_and_its_fate_stays_known() -> (  # noqa: E501
    None
):
    observer = Unit(observing=True)
    outer = enter(observer)
    observer.join(7)
    inner = enter(begun())
    assert current(7) is observer
    assert action(inner.unit) is Action.RAISE
    leave(inner)
    assert observer.fate() is Fate.NOTHING
    leave(outer)


def test_who_uses_a_connection_of_an_inner_unit_reports_to_it_and_doubts_nothing() -> None:
    observer = Unit(observing=True)
    outer = enter(observer)
    context = contextvars.copy_context()
    inner = enter(begun())
    inner.unit.join(7)
    assert context.run(current, 7) is inner.unit
    leave(inner)
    assert observer.fate() is Fate.NOTHING
    leave(outer)


def test_a_task_that_an_inner_unit_left_behind_reports_to_the_observing_one() -> None:
    observer = Unit(observing=True)
    outer = enter(observer)
    inner = enter(begun())
    context = contextvars.copy_context()
    leave(inner)
    assert context.run(current) is observer
    leave(outer)
    assert context.run(current) is None


def test_an_observing_unit_keeps_no_exceptions() -> None:
    observer = Unit(observing=True)
    observer.note(exc := KeyError(), LOST)
    assert observer.noted() == ()
    assert observer.fault_of(exc) is None


def test_an_observing_unit_waits_for_the_answer_to_every_commit() -> None:
    """Without a unit such a COMMIT is unknown: what a SELECT called may have written."""
    observer = Unit(observing=True)
    observer.statement("SELECT f()", False, conn_id=1)
    observer.committing(conn_id=1)
    assert observer.fate() is Fate.UNKNOWN
    assert action(observer) is Action.COMMIT_UNKNOWN
    observer.committed(conn_id=1)
    observer.statement("SELECT 1", False, conn_id=1)
    observer.committing(conn_id=1)
    observer.committed(conn_id=1)
    assert observer.fate() is (Fate.STORED if kind("SELECT f()") is Kind.WRITE else Fate.NOTHING)


def test_a_connection_from_before_a_unit_is_no_reason_for_doubt_where_an_observing_one_hears_of_it() -> (  # noqa: E501
    None
):
    observer = Unit(observing=True)
    outer = enter(observer)
    observer.join(7)
    inner = enter(begun())
    inner.unit.forbid("it is older", conn_id=7)
    assert inner.unit.verdict(LOST).reason == "it is older"
    assert observer.fate() is Fate.NOTHING
    inner.unit.forbid("it is older", conn_id=8)
    assert observer.fate() is Fate.UNKNOWN
    leave(inner)
    leave(outer)


# -- exceptions ------------------------------------------------------------------------------------


def raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except BaseException as exc:
        return exc
    raise AssertionError


def test_an_exception_is_known_by_itself_by_its_cause_and_by_its_context() -> None:
    unit = begun()
    first, second = KeyError(), ValueError()
    unit.note(first, LOST)
    unit.note(second, RETRY)

    def wrap() -> None:
        try:
            raise first
        except KeyError as exc:
            raise RuntimeError from exc

    def meet() -> None:
        try:
            raise first
        except KeyError:
            raise RuntimeError  # noqa: B904 - that is the case under test

    def hide() -> None:
        try:
            raise first
        except KeyError:
            raise RuntimeError from None

    assert unit.fault_of(first) is LOST
    assert unit.fault_of(second) is RETRY
    assert unit.fault_of(raised(wrap)) is LOST
    assert unit.fault_of(raised(meet)) is LOST
    assert unit.fault_of(raised(hide)) is None
    assert unit.fault_of(RuntimeError()) is None


def test_a_ring_of_causes_ends() -> None:
    a, b = KeyError(), KeyError()
    a.__cause__, b.__cause__ = b, a
    assert begun().fault_of(a) is None


def test_exceptions_are_let_go_with_the_unit() -> None:
    unit, exc = begun(), KeyError()
    unit.note(exc, LOST)
    unit.close()
    assert unit.fault_of(exc) is None


# -- against a model -------------------------------------------------------------------------------


@dataclass
class Session:
    """A session of the model's server."""

    autocommit: bool
    in_transaction: bool = False
    open: list[int] = field(default_factory=list)  # rows written in the open transaction


class Database:
    """A database that commits as MySQL does: DDL, BEGIN and SET autocommit end what is open.

    Rows are numbers.
    """

    def __init__(self) -> None:
        self.stored: list[int] = []

    def commit(self, session: Session) -> None:
        self.stored += session.open
        session.open, session.in_transaction = [], False

    def execute(self, session: Session, sql: str, row: int) -> None:
        word = sql.split()[0]
        if word == "XA":
            self.stored.append(row)  # what another session prepared
        elif word in ("BEGIN", "START", "CREATE", "COMMIT", "SET"):
            self.commit(session)
            session.in_transaction = word in ("BEGIN", "START")
            if word == "CREATE":
                self.stored.append(row)
            if word == "SET":
                session.autocommit = sql.endswith("1")
        elif word == "ROLLBACK" and "TO" not in sql:
            session.open, session.in_transaction = [], False
        elif word in ("INSERT", "WITH", "CALL"):
            session.in_transaction = session.in_transaction or not session.autocommit
            session.open.append(row)
            if not session.in_transaction or word == "CALL":
                self.commit(session)
        else:
            session.in_transaction = session.in_transaction or not session.autocommit


STATEMENTS = [
    "SELECT 1",
    INSERT,
    "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "CREATE TABLE t (a INT)",
    "CALL p()",
    "XA COMMIT 'x'",
    "SET autocommit = 0",
    "SET autocommit = 1",
]


class Model:
    """A unit that works on two connections, each of which may be lost at any point of any exchange.

    Each exchange: report, perhaps lose the connection, execute, perhaps lose it, answer. A verdict
    is asked for whenever an error reaches the unit's runner, and compared with what the database
    has stored.
    """

    def __init__(self, first: bool, second: bool) -> None:
        self.database = Database()
        self.sessions = [Session(first), Session(second)]
        self.rows = 0
        self.failed = False
        self.begin()

    def begin(self) -> None:
        """Another attempt or unit begins: every connection was rolled back, or is a new one."""
        self.unit = begun()
        self.before = list(self.database.stored)
        for session in self.sessions:
            session.open, session.in_transaction = [], False

    def happen(self, event: tuple[Any, ...]) -> None:
        if self.failed:
            self.failed = False
            self.begin()
        name, which, *rest = event
        getattr(self, name)(which, self.sessions[which], *rest)
        if not self.failed and self.database.stored != self.before:
            assert action(self.unit) is not Action.REPLAY, (
                "a replay would be given although something is stored"
            )
            assert action(self.unit, RETRY) is not Action.REPLAY
        self.check_fate()

    def check_fate(self) -> None:
        """Asked at every moment, also after a failure."""
        fate = self.unit.fate()
        if fate is Fate.NOTHING:
            assert self.database.stored == self.before, (
                "said to be nothing although something is stored"
            )
            assert not any(s.open for s in self.sessions), (
                "said to be nothing although it may still be committed"
            )
        if fate is Fate.STORED:
            assert self.database.stored != self.before, "said to be stored although nothing is"
            assert not any(s.open for s in self.sessions), (
                "said to be stored although some of it may still be undone"
            )

    def send(self, which: int, session: Session, sql: str, outcome: str) -> None:
        self.unit.statement(sql, session.autocommit and not session.in_transaction, conn_id=which)
        if outcome != "unsent":
            self.rows += 1
            self.database.execute(session, sql, self.rows)
        if outcome != "answered":
            self.lose(which, session)

    def commit(self, which: int, session: Session, outcome: str) -> None:
        self.unit.committing(conn_id=which)
        if outcome == "refused":
            session.open, session.in_transaction = [], False
            self.unit.commit_failed(conn_id=which)
            self.judge(RETRY, which)
            return
        if outcome != "unsent":
            self.database.commit(session)
        if outcome == "answered":
            self.unit.committed(conn_id=which)
        elif outcome != "silent":  # a driver that does not tell of the answer
            self.lose(which, session)

    def roll_back(self, which: int, session: Session, outcome: str) -> None:
        if outcome != "unsent":
            session.open, session.in_transaction = [], False
        if outcome == "answered":
            self.unit.rolled_back(conn_id=which)
        else:
            self.lose(which, session)

    def deadlock(self, which: int, session: Session) -> None:
        self.unit.statement(
            INSERT, session.autocommit and not session.in_transaction, conn_id=which
        )
        session.open, session.in_transaction = [], False
        self.judge(RETRY, which)

    def raise_an_old_retry(self, which: int, session: Session) -> None:
        """An application that kept a deadlock's exception, went on, and raises it only now."""
        self.judge(RETRY, None)

    def give_back(self, which: int, session: Session) -> None:
        """The pool rolls back and takes the connection."""
        session.open, session.in_transaction = [], False
        self.unit.ended(conn_id=which)

    def lose(self, which: int, session: Session) -> None:
        session.open = []  # the server rolls back what its lost session left open
        self.judge(LOST, which)

    def judge(self, fault: Fault, which: int | None) -> None:
        verdict = self.unit.verdict(fault, conn_id=which)
        self.failed = True
        if verdict.action is Action.REPLAY:
            assert self.database.stored == self.before, "replayed although something is stored"
            assert which is None or not any(s.open for s in self.sessions), (
                "replayed although a connection still holds writes"
            )
        assert verdict.reason


LOSSES = ("unsent", "unanswered")
ONE = [
    *[("send", sql, outcome) for sql in STATEMENTS for outcome in ("answered", *LOSSES)],
    *[("commit", outcome) for outcome in ("answered", "refused", "silent", *LOSSES)],
    *[("roll_back", outcome) for outcome in ("answered", *LOSSES)],
    ("deadlock",),
    ("raise_an_old_retry",),
    ("give_back",),
    ("lose",),
]
# What keeps a story going, more often than what ends it.
LIKELY = [
    e for e in ONE if e[-1] == "answered" and e[1] in ("BEGIN", INSERT, "SELECT 1", "answered")
] * 5
EVENTS = [(e[0], which, *e[1:]) for which in (0, 0, 1) for e in ONE + LIKELY]


class Ledgers(RuleBasedStateMachine):
    """Long stories, with two connections."""

    @initialize(first=st.booleans(), second=st.booleans())
    def connect(self, first: bool, second: bool) -> None:
        self.model = Model(first, second)

    @rule(event=st.sampled_from(EVENTS))
    def happen(self, event: tuple[Any, ...]) -> None:
        self.model.happen(event)


Ledgers.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestLedgers = Ledgers.TestCase


def every_story(length: int) -> None:
    """Everything that can happen to one connection in *length* events, and the losses of a second
    one in between.
    """
    events = [(e[0], 0, *e[1:]) for e in ONE] + [("lose", 1), ("send", 1, INSERT, "answered")]
    for autocommit in (False, True):
        for story in product(events, repeat=length):
            model = Model(autocommit, False)
            for event in story:
                model.happen(event)
                if model.failed:
                    break


def test_no_short_story_is_judged_wrongly() -> None:
    every_story(3)


def forgets_text_commits(sql: str | bytes | None) -> Kind:
    return Kind.READ if kind(sql) is Kind.COMMIT else kind(sql)


def trusts_ddl(sql: str | bytes | None) -> Kind:
    return Kind.WRITE if kind(sql) is Kind.ENDS else kind(sql)


def trusts_begin(sql: str | bytes | None) -> Kind:
    return Kind.READ if kind(sql) is Kind.BEGIN else kind(sql)


def believes_a_rollback_at_once(
    self: Unit, sql: str | bytes | None, autocommit: bool | None, *, conn_id: int | None = None
) -> None:
    if kind(sql) is Kind.COMMIT:
        self._part(conn_id).open = False
    else:
        _statement(self, sql, autocommit, conn_id=conn_id)


def forgets_the_commit(self: Unit, *, conn_id: int | None = None) -> None:
    self._part(conn_id).open = self._part(conn_id).pending = False


def believes_every_write(self: Unit, part: Any) -> None:
    self._stored = self._stored or part.direct or part.pending
    part.direct = part.pending = part.open = False


def does_nothing(self: Unit, *args: Any, **kwargs: Any) -> None:
    pass


_statement = Unit.statement

PLANTED: list[tuple[object, str, object]] = [
    (reports_module, "kind", forgets_text_commits),
    (reports_module, "kind", trusts_ddl),
    (reports_module, "kind", trusts_begin),
    (Unit, "statement", believes_a_rollback_at_once),
    (Unit, "committing", does_nothing),
    (Unit, "_commit_happened", does_nothing),
    (Unit, "_bar", does_nothing),
    (Unit, "_answered", does_nothing),
    (Unit, "_answered", believes_every_write),
    (Unit, "rolled_back", forgets_the_commit),
    (Unit, "ended", forgets_the_commit),
]


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    PLANTED,
    ids=lambda x: getattr(x, "__name__", str(x)).rsplit(".", 1)[-1],
)
def test_the_model_finds_planted_faults(
    monkeypatch: pytest.MonkeyPatch, where: object, name: str, fault: object
) -> None:
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(AssertionError):
        every_story(3)


def test_the_models_statements_are_what_it_takes_them_for() -> None:
    """The machine would prove nothing of statements that the ledger already gives up on."""
    assert {kind(sql) for sql in STATEMENTS} == set(Kind)


@pytest.mark.parametrize(("answered", "fate"), [(None, Fate.UNKNOWN), (False, Fate.NOTHING)])
def test_a_write_that_nobody_answered_for_is_in_doubt_after_its_unit_has_ended(
    answered: bool | None, fate: Fate
) -> None:
    outer = enter(observer := Unit(observing=True))
    inner = enter(unit := Unit())
    unit.sends(1, "an insert was sent")
    if answered is not None:
        unit.answered(1, stored=answered)
    leave(inner)
    leave(outer)
    assert observer.fate() is fate
