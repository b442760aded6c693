"""What a server's answers mean.

What real servers answer is held in tests/drivers/test_questions.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from unbroken.ledger.questions import Question, answer, text_of
from unbroken.roles import Role

HIDDEN, VIEWS, READ_ONLY, PACKET = (
    Question.HIDDEN_WRITES,
    Question.VIEWS,
    Question.READ_ONLY,
    Question.PACKET,
)


@pytest.mark.parametrize(
    ("row", "hides"),
    [
        (("view v", "pg_catalog", "random", "v", "internal", "f"), False),
        (("view v", "pg_catalog", "lo_create", "v", "internal", "f"), True),
        (("view v", "pg_catalog", "upper", "i", "internal", "f"), False),
        (("view v", "public", "f", "v", "sql", "f"), True),
        (("view v", "public", "f", "s", "plpgsql", "f"), True),  # it may call one that writes
        (("operator ###", "public", "f", "i", "c", "f"), False),
        (
            ("view v", "public", "total", "i", "internal", "a"),
            True,
        ),  # an aggregate's functions are not told
        (("view v", b"public", b"f", b"v", b"c", b"f"), True),
        (("foreign table t", "public", "", "v", "", "f"), True),
    ],
)
def test_a_function_of_postgresql_may_write_unless_it_is_known_not_to(
    row: tuple[object, ...], hides: bool
) -> None:
    said = answer(HIDDEN, "postgresql", [row])
    assert bool(said) is hides
    assert not hides or str(row[0]) in said


READS = "select `shop`.`t`.`n` AS `n` from `shop`.`t`"


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ([], ""),
        ([("shop", "v", READS)], VIEWS),
        (
            [("shop", "v", "select `shop`.`f`() AS `f()`")],
            "view shop.v calls a function that may write, or its text is hidden",
        ),
        ([("shop", "v", "")], "view shop.v calls a function that may write, or its text is hidden"),
        (
            [("shop", "v", None)],
            "view shop.v calls a function that may write, or its text is hidden",
        ),
        ([("shop", "v", "select 1 from `a`")], "view shop.v cannot be parsed"),
        ([("shop", "v", "select 'from `a`.`b`' AS `x`")], ""),
        (
            [("shop", "v", "select extract(year from `q`.`d`) AS `y` from (select 1 AS `d`) `q`")],
            "",
        ),
    ],
)
def test_a_view_of_mysql_is_judged_by_its_text(
    views: list[tuple[object, ...]], said: object
) -> None:
    assert answer(HIDDEN, "mysql", [("view", *row) for row in views]) == said


def test_a_function_of_mysql_with_the_name_of_a_harmless_one_may_write() -> None:
    rows = [("view", "shop", "v", "select 1 AS `n`"), ("function", b"shop", b"total", None)]
    assert answer(HIDDEN, "mysql", rows) == "function shop.total may write"


@pytest.mark.parametrize(("level", "promises"), [("serializable", True), ("read committed", False)])
def test_only_a_serializable_transaction_promises_something_by_its_commit(
    level: str, promises: bool
) -> None:
    assert bool(answer(Question.ISOLATION, "postgresql", [(level,)])) is promises
    assert text_of(Question.ISOLATION, "mysql") is None


@pytest.mark.parametrize(
    ("rows", "hides"),
    [
        ([("shop", "t", None), ("shop", "v", READS)], False),
        (
            [("shop", "other", None), ("shop", "v", READS)],
            True,
        ),  # it reads what this user cannot see
        (
            [
                ("shop", "t", None),
                ("shop", "v", READS),
                ("shop", "w", "select `v`.`n` AS `n` from `shop`.`v`"),
            ],
            False,
        ),
        (
            [
                ("shop", "t", None),
                ("shop", "w", "select `v`.`n` AS `n` from (`shop`.`t` join `hidden`.`v`)"),
            ],
            True,
        ),
    ],
)
def test_what_a_view_of_mysql_reads_must_be_seen(
    rows: list[tuple[object, ...]], hides: bool
) -> None:
    found = [("table" if row[2] is None else "view", *row) for row in rows]
    assert bool(answer(VIEWS, "mariadb", found)) is hides


@pytest.mark.parametrize(
    ("backend", "rows", "role"),
    [
        ("postgresql", [(False, "off", "default")], Role.PRIMARY),
        ("postgresql", [(True, "off", "default")], Role.STANDBY),
        ("postgresql", [("f", "on", "configuration file")], Role.STANDBY),
        ("postgresql", [("f", "on", "user")], Role.PRIMARY),
        ("mysql", [("read_only", "OFF"), ("super_read_only", "OFF")], Role.PRIMARY),
        ("mysql", [("read_only", b"ON")], Role.STANDBY),
        ("mariadb", [("read_only", "OFF"), ("wsrep_on", "OFF")], Role.PRIMARY),
        ("mariadb", [("read_only", "OFF"), ("wsrep_on", "ON")], Question.READY),
        ("mariadb", [("wsrep_on", "ON"), ("wsrep_reject_queries", "ALL")], Role.UNREADY),
        ("mariadb", [("wsrep_on", "ON"), ("wsrep_reject_queries", "NONE")], Question.READY),
    ],
)
def test_a_server_says_its_role(backend: str, rows: list[tuple[object, ...]], role: object) -> None:
    assert answer(Question.ROLE, backend, rows) is role


@pytest.mark.parametrize(
    ("rows", "role"),
    [
        ([("wsrep_ready", "ON")], Role.PRIMARY),
        ([("wsrep_ready", "OFF")], Role.UNREADY),
        ([], Role.PRIMARY),
    ],
)
def test_a_node_of_galera_says_whether_it_is_ready(rows: list[Any], role: Role) -> None:
    assert answer(Question.READY, "mariadb", rows) is role


@pytest.mark.parametrize(
    ("backend", "rows", "demoted"),
    [
        ("postgresql", [(True, "off", "default")], True),
        ("postgresql", [(b"t", b"off", b"default")], True),
        ("postgresql", [(False, "off", "default")], False),
        ("postgresql", [(False, "on", "session")], False),
        ("postgresql", [(b"f", b"on", b"configuration file")], True),
        ("mysql", [("read_only", "OFF"), ("innodb_read_only", "OFF")], False),
        ("mysql", [("read_only", "ON")], True),
        ("mariadb", [("read_only", "NO_LOCK")], True),
        ("mysql", [], False),
    ],
)
def test_a_server_that_takes_no_writes_is_told_from_one_whose_transaction_was_read_only(
    backend: str, rows: list[tuple[object, ...]], demoted: bool
) -> None:
    assert answer(READ_ONLY, backend, rows) is demoted


def test_the_largest_statement_is_a_number() -> None:
    assert answer(PACKET, "mysql", [(b"1048576",)]) == 1_048_576


@pytest.mark.parametrize(
    ("question", "backend"),
    [(READ_ONLY, "postgresql"), (PACKET, "mysql"), (HIDDEN, "postgresql"), (HIDDEN, "mysql")],
)
def test_rows_that_cannot_be_read_are_no_answer(question: Question, backend: str) -> None:
    with pytest.raises(ValueError, match="cannot be parsed"):
        answer(question, backend, [] if question in (READ_ONLY, PACKET) else [(1,)])


def test_what_cannot_be_asked_has_no_text() -> None:
    assert text_of(PACKET, "postgresql") is None
    assert text_of(HIDDEN, "sqlite") is None
    assert text_of(HIDDEN, "mariadb") == text_of(HIDDEN, "mysql")
