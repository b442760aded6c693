"""Ask the server a question that only it can answer (:mod:`unbroken.ledger.questions`), on a
connection of the same pool.
"""

from __future__ import annotations

import sys
from threading import get_ident
from typing import Any

from unbroken.abc import Cause
from unbroken.ledger.questions import Question, text_of
from unbroken.pool.acquire import acquire
from unbroken.pool.loan import Loan
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Flow

#: Maximum number of connections, if each is lost while it is asked.
ATTEMPTS = 3


def inquire(state: PoolState, question: Question, until: float) -> Flow[Any]:
    """The server's answer to *question*. None if it gives none. Ends at *until*, or after the
    setting acquire_timeout.

    Raises the errors of an acquire.
    """
    if state.backend == "sqlite" and question is Question.HIDDEN_WRITES:
        return ""  # a SELECT can only call the application's own Python
    if text_of(question, state.backend) is None:
        return None
    for _ in range(ATTEMPTS):
        started = state.clock()
        entry = yield from acquire(
            state, None, started, min(until, started + state.settings.acquire_timeout)
        )
        loan = Loan()
        state.lend(loan, entry, sys._getframe(), state.clock(), get_ident())
        try:
            heard = yield from loan.ask(question)
            if question is Question.HIDDEN_WRITES:
                state.hidden.asking(started)
                state.hidden.answer = heard
            yield from loan.roll_back()
            if entry.cause is None or heard is not None:
                return heard
        finally:
            loan.give_back(Cause.CANCELLED)
    return None
