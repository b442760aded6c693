"""How a database manages its connections: it checks those held for long, examines errors, and joins
units of work.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import peewee

from unbroken.abc import Cause, FaultKind
from unbroken.brain.entry import Entry
from unbroken.errors import (
    ClosedByHolderError,
    CommitUnknownError,
    ConnectionLostError,
    DeadlineExceeded,
    UnbrokenError,
)
from unbroken.integrations.peewee.again import mark
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.integrations.peewee.slot import Slot
from unbroken.ledger.scope import current
from unbroken.logs import Part
from unbroken.messages.data import HELD_REPLACED
from unbroken.pool.loan import Loan
from unbroken.pool.steps import run
from unbroken.pool.undone import tell_on
from unbroken.sync import Pool

log = Part("pool")


def is_lost(slot: Slot) -> bool:
    """Return whether the connection in *slot* is known to be lost."""
    return slot.loan is not None and slot.loan.is_dead


def look_after(database: Any, slot: Slot) -> None:
    """Before a statement on a connection that is kept: replace one that has ended, if nothing is
    lost by that.

    Only its session's state is lost: SET values, temporary tables, locks. Code that took the
    connection itself keeps it.
    """
    loan = slot.loan
    if loan is None or not database.reconnect or slot.raw or slot.begun or not slot.clean:
        return
    owner, entry = loan.state, loan.entry
    since, now = slot.last_used, monotonic()
    if entry.cause is None and not owner.hung_up() and now - since < owner.fresh_for:
        return
    slot.last_used = now
    if run(loan.answers(since), owner.runtime.do):
        return
    if entry.cause is None:
        entry.condemn(*owner.explain(entry, in_use=True))
    tell_replaced(owner, entry)
    database._give_back(slot)
    database._take(slot)


def tell_replaced(owner: Any, entry: Entry) -> None:
    """Log that another connection replaces *entry*, which ended between two statements of its
    holder's.
    """
    log.info(
        "held connection ended",
        HELD_REPLACED(
            f"{owner.name}: the connection taken at {entry.place} ended ({entry.cause}); another"
            " one takes its place"
        ),
        pool=owner.name,
        cause=str(entry.cause),
        session=entry.session,
        place=str(entry.place),
    )


def join(slot: Slot) -> None:
    """Join the current unit of work before a statement. The unit must see it, also if the
    connection is older.
    """
    unit, loan = current(), slot.loan
    if unit is None or loan is None or loan.has_joined(unit):
        return
    older = slot.begun or not slot.clean
    loan.join(
        unit,
        "the unit of work uses a transaction that began before it" if older else None,
    )


def failed(
    database: Any,
    slot: Slot,
    exc: BaseException,
    sql: Any,
    *,
    stays: bool = False,
    may_heal: bool = False,
) -> BaseException:
    """Report *exc*, which a statement raised, to the pool and the unit of work. Returns the error
    that the caller should see.

    A lost connection that no transaction needs is returned immediately, unless it *stays* for a
    ROLLBACK to come. If the statement *may_heal*, the slot keeps the log's fields for the case that
    it is not sent again.
    """
    loan = slot.loan
    if loan is None:
        return exc
    entry, owner = loan.entry, loan.state
    fault = loan.failed(origin(exc))
    slot.met = (origin(exc), fault)
    if fault.kind is FaultKind.OTHER:
        slot.clean = owner.driver.is_in_transaction(slot.conn) is False
        slot.open = not slot.clean and slot.open
    told = shown(loan, exc)
    if fault.is_lost and isinstance(exc, Exception) and entry.cause is not Cause.DEADLINE:
        mark(exc, sql)
    tell_on(exc, entry.ending)
    if may_heal and entry.ending is not None:
        slot.undone, entry.ending = (owner, entry, entry.ending), None
    if entry.cause is not None and not stays and not (slot.begun or slot.transactions):
        database._give_back(slot)
    return told


def shown(loan: Loan, exc: BaseException) -> BaseException:
    """Return the error that the caller should see for *exc*."""
    if isinstance(exc, CommitUnknownError | ConnectionLostError | ClosedByHolderError):
        return translated(exc)
    if (
        loan.entry.cause is Cause.DEADLINE
        and isinstance(exc, peewee.PeeweeException)
        and not isinstance(exc, UnbrokenError)
    ):
        told = loan.shown(exc, loan.state.settings.deadline)
        return translated(told) if isinstance(told, DeadlineExceeded) else exc
    return exc


def discard(pool: Pool, conn: Any) -> None:
    """Ensure that *conn*, which *pool* has held, is closed on its return."""
    loan = pool.loan_of(conn)
    if loan is not None:
        loan.entry.condemn(Cause.DISCARDED)
