"""What every body does around a statement that is run again on a fresh connection
(:mod:`unbroken.ledger.heal`).
"""

from __future__ import annotations

import logging
from typing import Any

from unbroken.abc import Fault
from unbroken.ledger.heal import Ruling
from unbroken.ledger.questions import Question
from unbroken.ledger.statements import verb
from unbroken.pool.loan import Loan
from unbroken.pool.steps import Call, Flow

log = logging.getLogger("unbroken")

#: What a statement's error says where another attempt was not possible.
HINT = "a unit of work (@unbroken.replayable, pool.run) runs the whole transaction again"


def objection(loan: Loan, ruling: Ruling) -> Flow[str | None]:
    """What the server says against *ruling*, asked on the fresh connection of *loan*; None:
    nothing.

    Nothing is open on the connection afterwards. If it was lost meanwhile, its entry has a cause.
    """
    if not ruling.asks:
        return None
    state, entry = loan.state, loan.entry
    against = "the server could not be asked whether that is safe"
    for question in ruling.asks:
        heard = yield from loan.ask(question)
        if question is Question.HIDDEN_WRITES:
            state.hidden.asking(state.clock())
            state.hidden.answer = heard
        if heard == "" or entry.cause is not None:
            break
        against = heard or against
    if entry.cause is None and state.driver.is_in_transaction(loan.conn) is not False:
        yield Call("rollback", loan.conn, entry, state.settings.ping_timeout)
    return None if heard == "" else against


def note(state: Any, sql: str | bytes | None, where: object, fault: Fault) -> None:
    """Count and log a statement that was run again, which the function at *where* has sent."""
    with state.lock:
        state.counters.healed += 1
    log.info(
        "%s: %s of %s was run again on another connection: %s",
        state.name,
        verb(sql),
        where or "somebody",
        fault.text,
    )
