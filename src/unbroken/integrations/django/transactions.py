"""BEGIN, COMMIT, ROLLBACK and autocommit of a wrapper whose connection comes from a pool."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

from django.db.backends.utils import debug_transaction
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError

from unbroken.integrations.django import pools
from unbroken.integrations.django.heal import Healing
from unbroken.messages.integrations import AUTOCOMMIT_TOO_EARLY, BLOCK_BROKEN_OFF
from unbroken.pool.bounds import bounded
from unbroken.pool.steps import run


class Transactions(Healing):
    """Django's own methods, changed so that they never commit as a side effect."""

    unbroken_bare: bool
    _connecting: bool
    _settled = False  #: nothing was sent since a COMMIT or ROLLBACK was answered
    _in_atomic = False  #: autocommit was switched off by ``atomic``, and is not on again
    _undoing = False  #: a ROLLBACK was begun, and not answered
    _switching = False  #: autocommit is being switched, and its present value is not known
    #: the exception that was being handled when autocommit was switched off
    _outer: BaseException | None = None
    _due: int | None = None  #: the depth of savepoints whose work must still be undone

    def _begin_anew(self) -> None:
        """Before a statement outside of ``atomic``: end a block whose exit was interrupted."""
        if (
            (self._in_atomic or self._undoing or self._switching)
            and not self.in_atomic_block
            and not self._connecting
        ):
            self._discard("a transaction on it was interrupted")

    def get_autocommit(self) -> bool:
        """Return Django's value. This connects, and ``atomic`` begins with it."""
        self._begin_anew()
        self._look()
        return bool(super().get_autocommit())

    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Switch autocommit as Django does. Without a connection, the value that a new one has
        anyway needs none: the last one may have ended after a COMMIT.

        If a transaction is open that should have been rolled back, autocommit is not switched on,
        since MySQL would commit it; the connection is closed. Raises TransactionManagementError if
        the application itself switched it on after an exception.
        """
        if autocommit:
            self._commit_nothing()
        else:
            self._begin_anew()
        self._look()
        by_atomic = force_begin_transaction_with_broken_autocommit
        if not autocommit and self.autocommit:
            self._begin_block(by_atomic=by_atomic)
        usual = (
            autocommit == self.settings_dict["AUTOCOMMIT"]
            and not self.in_atomic_block
            and pools.is_pooled(self)
        )
        if self.connection is not None or not usual:
            while True:
                try:
                    super().set_autocommit(autocommit, by_atomic)
                    break
                except DatabaseError as exc:
                    if autocommit or not self.unbroken_lost_at_begin(exc):
                        raise
                self._begin_block(by_atomic=by_atomic)
            if autocommit and self._held is not None:
                self._held.rest()
            return
        self._switched(autocommit)
        if autocommit and self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    def _switched(self, autocommit: bool) -> None:
        self.autocommit = autocommit
        if autocommit:
            self._in_atomic, self._outer = False, None
        self._switching = False

    def _begin_block(self, *, by_atomic: bool) -> None:
        if by_atomic and not self.in_atomic_block and not self.unbroken_bare:
            self.ensure_connection()
            self.run_on_commit = []  # of a block that was interrupted
            self._due, self._in_atomic = None, True
        self._outer = sys.exc_info()[1]

    def _commit_nothing(self) -> None:
        """Before autocommit is switched on: close a connection with a transaction that should have
        been rolled back.
        """
        held = self._held
        if (
            held is None
            or held.is_inherited
            or self._settled
            or self._connecting
            or self.autocommit
            or self.in_atomic_block
        ):
            return
        by_app, error = not (self._in_atomic or self._undoing), sys.exc_info()[1]
        if (
            by_app and (error is None or error is self._outer or held.is_dead)
        ) or held.end_unless_settled():
            return
        self._discard("")
        if by_app:
            raise TransactionManagementError(
                AUTOCOMMIT_TOO_EARLY(
                    "set_autocommit(True) was called after an exception, while a transaction was"
                    " open. Its connection was closed, so it is not stored; commit or roll back"
                    " before you call set_autocommit(True)"
                )
            )

    def _discard(self, why: str) -> None:
        """Close the connection, so that its server rolls back the open transaction.

        The next statement gets another one.
        """
        held = self._held
        if held is not None and not held.is_inherited:
            held.end(why)
        self.needs_rollback, self.run_on_commit = False, []
        self.run_commit_hooks_on_set_autocommit_on = False
        self._give_back()
        self.connection = None
        self._switched(self.settings_dict["AUTOCOMMIT"])

    def unbroken_due(self, depth: int) -> None:
        """Note that the work in a block within *depth* others must be undone.

        Until it is, nothing is committed.
        """
        self._due = depth if self._due is None else min(depth, self._due)

    def unbroken_abandon_blocks(self) -> None:
        """Reset Django's stacks, because no code runs in a block of ``atomic`` any more although
        they contain one.
        """
        self.in_atomic_block = self.closed_in_transaction = False
        self.commit_on_exit = True
        self.savepoint_ids, self.atomic_blocks = [], []
        self._discard("an atomic block was interrupted")

    def set_rollback(self, rollback: bool) -> None:
        """Do the same as Django."""
        super().set_rollback(rollback)
        if not rollback:
            self._due = None  # the application's decision takes precedence

    def savepoint_rollback(self, sid: str) -> None:
        """Do the same as Django."""
        super().savepoint_rollback(sid)
        if self._due is not None and self._due >= len(self.savepoint_ids):
            self._due = None

    def _set_autocommit(self, autocommit: bool) -> None:
        """Do the same as Django.

        A connection that is lost just here is dropped if nothing is open on it, because the
        committed work did not fail.
        """
        self._switching = True
        held = self._held
        may_go = autocommit == self.settings_dict["AUTOCOMMIT"] and self._settled
        is_gone = may_go and held is not None and bool(held.outlives_time())
        try:
            if not is_gone:
                with self._bounded("rollback"):
                    if not self._switches_unwaited(autocommit):
                        super()._set_autocommit(autocommit)
        except DatabaseError:
            if not (may_go and held is not None and held.is_dead):
                raise
            is_gone = True
        if is_gone:
            self._give_back()
            self.connection = None
        self._switched(autocommit)

    def _switches_unwaited(self, autocommit: bool) -> bool:
        held = self._held
        if held is None or held.is_inherited or self._connecting:
            return False
        if self.connection is not held.conn or self.unbroken_bare:
            return False
        with self.wrap_database_errors:
            return run(held.switch(on=bool(autocommit)), held.state.runtime.do)

    def rollback(self) -> None:
        """Do the same as Django."""
        self.validate_thread_sharing()
        self._undoing = not (self._settled or self.in_atomic_block)
        super().rollback()
        self._undoing = False

    def _commit(self) -> None:
        if (self._due is not None or self._undoing) and not self.unbroken_bare:
            raise TransactionManagementError(
                BLOCK_BROKEN_OFF(
                    "COMMIT was not sent: a signal handler or a time limit interrupted an atomic"
                    " block or a rollback, and COMMIT would store writes that must be undone; roll"
                    " back, and run the work again"
                )
            )
        held, self._settled = self._held, False
        if held is None or self.connection is not held.conn or self.unbroken_bare:
            super()._commit()
            return
        with debug_transaction(self, "COMMIT"), self.wrap_database_errors:
            try:
                run(held.commit_and_go_on(), held.state.runtime.do)
            except Exception as exc:
                if not self.unbroken_forgets_commit(held, exc):
                    raise
        self._settled = True
        held.rest()

    def _rollback(self) -> None:
        if self._held is None or not self._held.outlives_time():
            with self._bounded("rollback"):
                super()._rollback()
        self._settled, self._undoing, self._due = True, False, None
        if self._held is not None:
            self._held.rest()

    def _bounded(self, what: str) -> Any:
        """Return a context with the time limit of the pool's own call of that name."""
        held = self._held
        return (
            nullcontext()
            if held is None or held.is_inherited
            else bounded(held.state, what, held.entry)
        )
