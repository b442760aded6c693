"""What is known of a connection when a statement is to be sent on it."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from unbroken.abc import Cause
from unbroken.ledger.heal import Past
from unbroken.net.liveness import poller
from unbroken.pool.heal import Before, before

READ, CALL = "SELECT 1", "CALL sell()"


@pytest.mark.parametrize(
    ("sql", "sent", "hung_up", "cause", "known"),
    [
        (READ, 0, True, None, Before.WELL),  # it can be run again anyway: nobody looks
        (CALL, 0, False, None, Before.WELL),
        (CALL, 0, True, None, Before.GONE),
        (None, 0, True, None, Before.GONE),
        (CALL, 1, True, None, Before.WELL),  # in a transaction that is lost with it
        (READ, 0, True, Cause.KILLED, Before.GONE),
        (CALL, 0, False, Cause.DRAINED, Before.CONDEMNED),  # what is sent now may be executed
        (CALL, 0, True, Cause.DRAINED, Before.GONE),
    ],
)
def test_the_socket_is_looked_at_where_that_decides(
    sql: Any, sent: int, hung_up: bool, cause: Cause | None, known: Before
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        past, looks = Past(), []
        for _ in range(sent):
            past.sent(READ, False)
        poll = poller(ours.fileno())
        entry = SimpleNamespace(cause=cause, poll=lambda wait: looks.append(wait) or poll(wait))
        if hung_up:
            theirs.close()
        loan: Any = SimpleNamespace(entry=entry)
        assert before(loan, past, sql) is known
        assert bool(looks) is (cause is not None or (sql != READ and not sent))
