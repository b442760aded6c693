"""BEGIN, COMMIT and ROLLBACK of a peewee database: how each holds a connection, and how a lost one
affects it.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import peewee

from unbroken.integrations.peewee import upkeep
from unbroken.integrations.peewee.again import begins_later, lost_by
from unbroken.integrations.peewee.heal import Healing
from unbroken.integrations.peewee.slot import Pin, Slot
from unbroken.pool.bounds import bounded
from unbroken.pool.budget import may_repeat
from unbroken.pool.heal import tell_spent
from unbroken.pool.state import state_of
from unbroken.pool.steps import Call, run


class Transactions(Healing, peewee.Database):  # type: ignore[misc] # peewee ships no types
    """peewee's own methods, which notice a lost connection."""

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Do the same as peewee.

        A BEGIN whose connection is lost is sent again on another: nothing was done yet.
        """
        slot = self._state
        slot.begin_with = args, kwargs
        tries = 0
        slot.opening = False  # a BEGIN that was interrupted may have left it
        self._begin_anew(slot)
        while True:
            pin = Pin(self, slot)
            slot.ending = True
            try:
                slot.opening, slot.sql = True, "BEGIN"
                if not self._begins_later(args, kwargs):
                    super().begin(*args, **kwargs)
                slot.begun, slot.clean = True, False
                slot.ending = False
                if slot.loan is not None and slot.loan.past is not None:
                    slot.loan.past.begins()
                return
            except BaseException as exc:
                error = upkeep.failed(self, slot, exc, "BEGIN")
                again = lost_by(exc) is not None and tries < self.pool.settings.max_replays
                if again and (spent := may_repeat(state_of(self.pool))) is not None:
                    tell_spent(error, spent)
                    again = False
                if not again:
                    if error is not exc:
                        raise error from exc
                    raise
            finally:
                slot.opening, slot.sql = False, None
                self._unpin(slot, pin)
            tries += 1

    def commit(self) -> None:
        """Do the same as peewee.

        Raises CommitUnknownError if the answer to the COMMIT was lost, ConnectionLostError if it
        was not sent.
        """
        slot = self._state
        if slot.lost is not None:
            raise self._lost_error(slot)
        if slot.closed:
            raise peewee.InterfaceError("Cannot commit, database connection not open.")
        pin = Pin(self, slot)
        try:
            slot.ending = True
            try:
                with peewee.__exception_wrapper__:
                    self._commit(slot)
            except Exception as exc:
                if not self._forgets_commit(slot, exc):
                    raise
            slot.begun = slot.open = slot.ending = False
            slot.clean = True
            if slot.loan is not None and slot.loan.past is not None:
                slot.loan.past.ended()
        except BaseException as exc:
            error = upkeep.failed(self, slot, exc, "COMMIT", stays=True)
            if error is not exc:
                raise error from exc
            raise
        finally:
            self._unpin(slot, pin)

    def _begins_later(self, args: Any, kwargs: Any) -> bool:
        """Return whether BEGIN is sent with the first statement.

        It is not if it has options, or the application's own class sends it.
        """
        slot, pin = self._ready()
        try:
            given = (args, kwargs, getattr(self, "_isolation_level", None), slot.raw)
            return slot.loan is not None and begins_later(super().begin, given, slot.loan)
        finally:
            self._unpin(slot, pin)

    def _commit(self, slot: Slot) -> None:
        send = super().cursor
        loan = slot.loan
        if loan is None or not (slot.begun or slot.open):
            send().execute("COMMIT")
            return
        state = loan.state
        commit = Call("commit", loan.conn, loan.entry)  # peewee has its own way to send it

        def do(step: Any) -> Any:
            if step is not commit:
                return state.runtime.do(step)
            with bounded(state, "commit", loan.entry):
                return send().execute("COMMIT")

        if not loan.was_not_begun():
            run(loan.commit_and_go_on(commit), do)

    def rollback(self) -> None:
        """Do the same as peewee. A lost connection needs no ROLLBACK: the server has done it."""
        slot = self._state
        if slot.lost is not None:  # the server has rolled back
            slot.lost = None
            slot.begun = slot.open = slot.ending = False
            return
        if slot.closed and not slot.transactions and not slot.held:
            raise peewee.InterfaceError("Cannot rollback, database connection not open.")
        pin = Pin(self, slot)
        try:
            slot.ending = True
            loan = slot.loan
            if loan is not None and not loan.outlives_time() and loan.is_out_of_step:
                loan.break_off()
            not_begun = loan is not None and slot.begun and loan.was_not_begun()
            if not (slot.closed or upkeep.is_lost(slot) or not_begun):
                with (
                    peewee.__exception_wrapper__,
                    nullcontext() if loan is None else bounded(loan.state, "rollback", loan.entry),
                ):
                    super().cursor().execute("ROLLBACK")
            slot.ending, slot.clean = False, True
            if loan is not None and loan.past is not None:
                loan.past.ended()
        except BaseException as exc:
            upkeep.failed(self, slot, exc, "ROLLBACK")
            if lost_by(exc) is None:
                raise
        finally:
            slot.begun = slot.open = False
            if upkeep.is_lost(slot):
                self._give_back(slot)
            self._unpin(slot, pin)

    def _begin_anew(self, slot: Slot) -> None:
        """Before a statement: end a transaction whose end was interrupted, or the next BEGIN would
        commit it in MySQL.
        """
        if slot.is_left() or (slot.ending and not slot.opening):
            self._abandon(slot)

    def session_start(self) -> Any:
        """Do the same as peewee: begin a transaction that no ``with`` ends."""
        result = super().session_start()
        slot = self._state
        slot.by_hand = slot.transactions[:]
        return result

    def transaction_depth(self) -> int:
        """Return peewee's value, by which it decides whether a block is the outermost.

        A block that was interrupted is not counted.
        """
        slot = self._state
        self._begin_anew(slot)
        return len(slot.transactions)

    def pop_transaction(self) -> Any:
        """Do the same as peewee."""
        slot = self._state
        if len(slot.transactions) == 1 and isinstance(slot.transactions[0], peewee._transaction):
            # its COMMIT or ROLLBACK is next: from here on it counts as interrupted until it is
            # answered
            slot.ending = slot.begun
        top = slot.transactions.pop()
        if not slot.is_bound:
            self._settle(slot)
        return top
