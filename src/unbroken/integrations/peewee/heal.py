"""Sends a statement whose connection was lost again on another one, if that is safe.

:mod:`unbroken.ledger.heal` decides whether it is. This module holds peewee's part: the report of
    each statement, and how a slot gets another connection in the middle of a transaction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peewee

from unbroken.abc import Fault
from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.integrations.peewee.slot import Slot, Taken
from unbroken.ledger.heal import Past, Ruling, may_forget_commit, may_run_again
from unbroken.messages.data import SESSION_LOST
from unbroken.pool.heal import (
    Before,
    Losses,
    before,
    connections,
    curable,
    forget,
    is_open,
    is_own_affair,
    is_replayed,
    is_serializable,
    lost_at,
    note,
    objection,
)
from unbroken.pool.state import state_of
from unbroken.pool.steps import run


class Refused(Exception):  # noqa: N818 - no error: it says why not
    """The reason why a statement is not sent again."""


class OwnAffair(Exception):  # noqa: N818 - likewise
    """The application has made its transaction read-only."""


def past_for(pool: Any) -> Past | None:
    """Return the record that a use of one of *pool*'s connections keeps. None: nothing is run
    again.
    """
    state = state_of(pool)
    return Past() if pool.settings.heal and state.knows_status else None


def tell(slot: Slot, sql: Any) -> None:
    """Report *sql*, which is about to be sent. Raises ConnectionLostError if it needs state of a
    lost session.
    """
    loan = slot.loan
    if loan is None or loan.past is None:
        return
    past, slot.told = loan.past, loan
    slot.was_dead = before(loan, past, sql)
    if slot.raw:
        past.unseen("the application has the driver's connection, or a cursor of it")
    if past.forgot and past.misses(sql):
        raise translated(missed(loan.state))
    past.sent(sql, is_open(loan, past, lambda: not slot.begun))


def missed(state: Any) -> UnbrokenError:
    """Return the error for state that only the lost session had."""
    error: UnbrokenError = state.error(
        ConnectionLostError,
        SESSION_LOST(
            "this statement needs state of a session that was lost, and a new session has taken its"
            " place; run it again together with the statements that it depends on"
        ),
    )
    return error


class Healing:
    """Mixed in before a peewee database: it sends the statements of ``execute_sql``."""

    _take: Callable[[Slot], None]
    _give_back: Callable[[Slot], None]
    begin: Callable[..., None]
    reconnect: bool

    def _send_safely(self, slot: Slot, sql: Any, send: Callable[[], Any]) -> Any:
        """Return the result of *send*, which sends *sql*.

        It is called again if the connection was lost and that is safe.
        """
        losses, healed = Losses(), None
        while True:
            slot.told = slot.met = slot.undone = None
            try:
                result = send()
            except Exception as exc:
                fault = self._lost_by(slot, exc, sql)
                if fault is None or slot.told is None:
                    if slot.undone is not None:
                        slot.undone[0].tell_lost(*slot.undone[1:])
                    raise
                loan, past = slot.told, slot.told.past
                assert past is not None  # it was reported
                if slot.undone is not None:
                    _, loan.entry.ending = slot.undone[1:]
                count = losses.add(loan, past, was_dead=slot.was_dead)
                in_transaction = slot.begun and past.begun
                lost = lost_at(
                    loan, sql, fault, count, in_transaction=in_transaction, until=loan.until,
                    was=slot.was_dead,
                )  # fmt: skip
                try:
                    ruling = may_run_again(past, lost)
                    if ruling.heals and run(is_own_affair(loan, fault), loan.state.runtime.do):
                        raise OwnAffair
                    if ruling.heals and (spent := losses.pay(loan, fault)) is not None:
                        ruling = Ruling(False, spent)
                    self._move(slot, loan, past, ruling)
                except OwnAffair:
                    raise exc from exc.__cause__
                except (Refused, peewee.PeeweeException, UnbrokenError) as why:
                    losses.refused(exc, why, loan)
                    raise exc from exc.__cause__
                finally:
                    slot.met = None
                forget(exc)
                healed = fault
                continue
            if healed is not None and slot.told is not None:
                note(slot.told.state, sql, slot.told.entry.place, healed)
            return result

    def _lost_by(self, slot: Slot, exc: Exception, sql: Any) -> Fault | None:
        """Return the fault that *exc* reports, if another connection might cure it."""
        if slot.told is None and slot.begun and slot.loan is not None and slot.loan.is_dead:
            tell(slot, sql)  # the driver gave no cursor, so nothing was sent
            slot.was_dead = Before.GONE
        met, loan = slot.met, slot.told
        if (
            met is None
            or loan is None
            or met[0] is not origin(exc)
            or isinstance(exc, UnbrokenError)
            or is_replayed()
        ):
            return None
        return curable(loan, met[1], was_dead=slot.was_dead)

    def _move(self, slot: Slot, loan: Taken, past: Past, ruling: Ruling) -> None:
        """Put another connection into *slot*, in the same transaction. Raises the exception that
        refused it.
        """
        if not ruling.heals:
            raise Refused(ruling.reason)
        if slot.held and not self.reconnect:
            raise Refused("reconnect=False keeps the connection that connect() took")
        begun, is_over, left = slot.begun, False, loan.what_is_left()
        try:
            for _ in connections(loan.state):
                if self._moved(slot, loan, past, ruling, begun):
                    is_over = True
                    return
            raise Refused("other connections were lost before it could be sent")
        finally:
            if not is_over and begun:  # this transaction gets none any more
                slot.lost = left
                slot.begun = True
                if not slot.closed:
                    self._give_back(slot)

    def _moved(self, slot: Slot, old: Taken, past: Past, ruling: Ruling, begun: bool) -> bool:
        """Make one attempt. False: that connection was lost, too."""
        if not slot.closed:
            self._give_back(slot)
        try:
            self._take(slot)
        except (peewee.PeeweeException, UnbrokenError) as exc:
            raise Refused(f"no other connection was available: {exc}") from exc
        new = slot.loan
        if new is None or new.past is None:
            raise Refused("the application has replaced the connection")
        new.past = past
        past.moved()
        new.resume(old)
        against = run(objection(new, ruling), new.state.runtime.do)
        if new.entry.cause is not None:
            return False
        if against is not None:
            raise Refused(against)
        if begun:
            arguments, options = slot.begin_with
            self.begin(*arguments, **options)
            if slot.loan is not None and slot.loan is not new:  # it was lost at BEGIN
                slot.loan.past = past
            past.begins()
        return True

    def _forgets_commit(self, slot: Slot, exc: Exception) -> bool:
        """Return whether the failure of COMMIT with *exc* loses nothing, because only reads went
        before it.
        """
        loan = slot.loan
        past = None if loan is None else loan.past
        if loan is None or past is None or slot.raw or is_replayed():
            return False
        fault = loan.failed(origin(exc))
        lost = lost_at(loan, "COMMIT", fault, 1, in_transaction=True, until=loan.until)
        ruling = may_forget_commit(past, lost, serializable=False)
        if not ruling.heals or (ruling.asks and loan.state.may_hide_writes):
            return False
        if loan.state.backend == "postgresql" and (
            any(slot.begin_with) or getattr(self, "_isolation_level", None)
        ):
            return False  # the application has chosen an isolation level
        if loan.state.backend == "postgresql" and is_serializable(loan.pool):
            return False
        loan.end("")
        loan.entry.ending = None
        past.ended()
        note(loan.state, "COMMIT", loan.entry.place, fault)
        return True
