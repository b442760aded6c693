"""Which answers to a COMMIT prove that nothing was stored: those that are listed, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.backends.commits import proves_nothing_stored


@pytest.mark.parametrize(
    ("code", "text", "proof"),
    [
        (1213, "Deadlock found when trying to get lock", True),
        (1290, "The MariaDB server is running with the --read-only option", True),
        (3101, "Plugin instructed the server to rollback the current transaction.", True),
        (1402, "XA_RBROLLBACK: Transaction branch was rolled back", True),
        (1397, "XAER_NOTA: Unknown XID", True),
        (9007, "Write conflict, txnStartTS=1 [try again later]", True),
        (8028, "Information schema is changed during the execution [try again later]", True),
        (1213, "target: shop.-80.primary: vttablet: rpc error: code = Aborted desc = …", False),
        (1180, "Got error 149 'Lock deadlock; Retry transaction' during COMMIT", False),
        (1317, "Query execution was interrupted", False),
        (1047, "WSREP has not yet prepared node for application use", False),
        (1205, "Lock wait timeout exceeded", False),
        (1053, "Server shutdown in progress", False),
        (3100, "Error on observer while running replication hook 'before_commit'.", False),
        (1030, "Got error 168 from storage engine", False),
        (1026, "Error writing file", False),
        (1197, "Multi-statement transaction required more than 'max_binlog_cache_size'", False),
        (1105, "Unknown error", False),
        (1401, "XAER_RMERR: Fatal error occurred in the transaction branch", False),
        (2013, "Lost connection to MySQL server during query", False),
        (None, "", False),
    ],
)
def test_what_an_answer_of_mysql_proves(code: int | None, text: str, proof: bool) -> None:
    assert proves_nothing_stored("mysql", code, text) is proof
    assert proves_nothing_stored("mariadb", code, text) is proof


@pytest.mark.parametrize(
    ("code", "proof"),
    [
        ("23503", True),  # a deferred constraint
        ("40001", True),
        ("40P01", True),
        ("P0001", True),  # RAISE in a deferred trigger
        ("U0001", True),  # … with a code of the application's own
        ("25P02", True),
        ("40003", False),  # statement_completion_unknown
        ("08007", False),  # transaction_resolution_unknown
        ("08P01", False),  # PgBouncer's
        ("08006", False),
        ("53100", False),
        ("57014", False),
        ("57P01", False),
        ("58030", False),
        ("XX000", False),
        ("XXA00", False),
        ("25P03", False),
        ("4000", False),
        (1213, False),
        (None, False),
    ],
)
def test_what_an_answer_of_postgresql_proves(code: int | str | None, proof: bool) -> None:
    assert proves_nothing_stored("postgresql", code) is proof


@given(st.integers(0, 10_000), st.text(max_size=40))
def test_an_answer_that_is_not_listed_proves_nothing(code: int, text: str) -> None:
    listed = {1213, 1290, 1397, 1398, 1399, 1400, 1402, 1613, 1614, 3101}
    tidb = {8002, 8005, 8022, 8028, 9007}
    if code not in listed | tidb:
        assert not proves_nothing_stored("mysql", code, text)
    assert not proves_nothing_stored("oracle", code, text)
