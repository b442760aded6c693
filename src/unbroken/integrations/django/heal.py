"""Sends a statement whose connection was lost again on another one, if that is safe.

:mod:`unbroken.ledger.heal` decides whether it is. This module holds Django's part: the report of
    each statement, and how a wrapper gets another connection inside a block of ``atomic``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError
from django.db.utils import Error

from unbroken.abc import Fault
from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.integrations.django.errors import translated
from unbroken.integrations.django.held import NOT_COUNTED_ON, Held
from unbroken.integrations.django.held import is_open as has_cursor
from unbroken.integrations.django.statements import READ_ONCE, text_of
from unbroken.ledger.heal import Lost, Past, Ruling, may_forget_commit, may_run_again
from unbroken.ledger.residue import VAGUE
from unbroken.messages.data import SESSION_LOST
from unbroken.pool.heal import (
    Losses,
    before,
    connections,
    curable,
    forget,
    is_open,
    is_own_affair,
    is_replayed,
    lost_at,
    note,
    objection,
)
from unbroken.pool.steps import run
from unbroken.pool.undone import tell_on

#: The attributes of a block of ``atomic`` that Django's ``connect`` and our ``set_autocommit``
#: reset.
_BLOCK = (
    "in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback", "commit_on_exit",
    "closed_in_transaction", "run_on_commit", "run_commit_hooks_on_set_autocommit_on", "_outer",
)  # fmt: skip


_UNSEEN = "the application bypassed Django's cursors, or called a procedure"


class _Refused(Exception):  # noqa: N818 - no error: it says why not
    """The reason why a statement is not sent again."""


class _OwnAffair(Exception):  # noqa: N818 - likewise
    """The application has made its transaction read-only."""


class Healing(BaseDatabaseWrapper):  # type: ignore[misc] # Django has no types
    """Mixed in before one of Django's DatabaseWrappers. It sends the statements of its cursors."""

    _held: Held | None
    _give_back: Callable[[], None]
    #: the driver's last error, and the fault that it reports
    _met: tuple[BaseException, Fault] | None = None
    autocommit: bool
    atomic_blocks: Any
    closed_in_transaction: bool
    commit_on_exit: bool
    in_atomic_block: bool
    needs_rollback: bool
    run_commit_hooks_on_set_autocommit_on: bool
    run_on_commit: list[Any]
    savepoint_ids: Any

    def unbroken_send(
        self, cursor: Any, sql: Any, send: Callable[[], Any], *, against: str = ""
    ) -> Any:
        """Return the result of *send*, which sends *sql* on *cursor*.

        It is called again, with another cursor of the driver's in *cursor*, if the connection was
        lost and that is safe. *against* is the reason, if any, why it must not be called again.
        """
        held = self._held
        if held is None or held.past is None or not has_cursor(cursor.__dict__["cursor"]):
            return send()
        text = sql if isinstance(sql, (str, bytes)) else text_of(held.conn, sql)
        losses, healed, leaves = Losses(), None, held.leaves
        while True:
            held = self._held
            if held is None or held.past is None:
                return send()
            if healed is not None:
                held.sends(leaves)
            was_dead = before(held, held.past, text)
            _tell(self, held, held.past, text)
            self._met = None
            try:
                result = send()
            except Error as exc:
                fault = self._fault_of(exc, held, was_dead)
                if fault is None or is_replayed():
                    tell_on(exc, held.entry.ending)
                    raise
                count = losses.add(held, held.past, was_dead=was_dead)
                lost = self._lost(held, text, fault, count, was_dead)
                try:
                    if against and (against is READ_ONCE or not lost.unsent):
                        raise _Refused(against) from None
                    if not (lost.unsent or leaves.isdisjoint(VAGUE)):
                        raise _Refused(_UNSEEN) from None
                    self._move(cursor, held, losses, lost)
                except _OwnAffair:
                    raise exc from exc.__cause__
                except (_Refused, Error, UnbrokenError) as why:
                    losses.refused(exc, why, held)
                    raise exc from exc.__cause__
                finally:
                    self._met = None
                forget(exc)
                healed = fault
                continue
            if healed is not None:
                note(held.state, text, held.entry.place, healed)
            return result

    def _fault_of(self, exc: Error, held: Held, was_dead: int) -> Fault | None:
        """Return the fault that *exc* reports, if another connection might cure it."""
        met = self._met
        if (
            met is None
            or met[0] is not exc.__cause__
            or isinstance(exc, (UnbrokenError, TransactionManagementError))
            or held.is_inherited
        ):
            return None
        return curable(held, met[1], was_dead=was_dead)

    def _lost(
        self, held: Held, sql: str | bytes | None, fault: Fault, losses: int, was: int = 0
    ) -> Lost:
        begun = not self.autocommit
        return lost_at(held, sql, fault, losses, in_transaction=begun, until=held.until, was=was)

    # -- another connection ------------------------------------------------------------------------

    def _move(self, cursor: Any, held: Held, losses: Losses, lost: Lost) -> None:
        """Get another connection, in the same block, and put a cursor of it into *cursor*.

        Raises the exception that refused it. Then this block gets none any more.
        """
        past = held.past
        assert past is not None  # it was reported
        ruling = may_run_again(past, lost)
        if not ruling.heals:
            raise _Refused(ruling.reason)
        if run(is_own_affair(held, lost.fault), held.state.runtime.do):
            raise _OwnAffair
        if (spent := losses.pay(held, lost.fault)) is not None:
            raise _Refused(spent)
        block = {name: self.__dict__.get(name, getattr(self, name)) for name in _BLOCK}
        is_over = False
        try:
            for _ in connections(held.state):
                if self._moved(cursor, held, past, ruling, block):
                    is_over = True
                    return
            raise _Refused("other connections were lost before it could be sent")
        finally:
            if not is_over:
                self._end_block(block)

    def _moved(
        self, cursor: Any, held: Held, past: Past, ruling: Ruling, block: dict[str, Any]
    ) -> bool:
        """Make one attempt. False: that connection was lost, too."""
        was_autocommit, raw = self.autocommit, cursor.__dict__["cursor"]
        with suppress(Exception):
            raw.close()  # before its connection: Django closes it once more
        self.__dict__["in_atomic_block"] = False  # as before it began
        self._give_back()
        self.connection = None
        try:
            self.connect()
        except (Error, UnbrokenError) as exc:
            raise _Refused(f"no other connection was available: {exc}") from exc
        new = self._held
        if new is None or new.past is None:
            raise _Refused("the application's own handler has replaced the connection")
        new.past = past
        past.moved()
        new.resume(held)
        against = run(objection(new, ruling), new.state.runtime.do)
        if new.entry.cause is not None:
            self.autocommit = was_autocommit
            return False
        if against is not None:
            raise _Refused(against)
        try:
            if not was_autocommit and self.autocommit:
                self._begin_again(by_atomic=block["in_atomic_block"])
        except Error:
            self.autocommit = was_autocommit
            if not new.is_dead:
                raise
            return False
        self.__dict__.update(block)
        cursor.cursor = self.create_cursor(getattr(raw, "name", None))
        with suppress(Exception):
            cursor.cursor.arraysize = raw.arraysize
        return True

    def _begin_again(self, *, by_atomic: bool) -> None:
        self.set_autocommit(False, force_begin_transaction_with_broken_autocommit=by_atomic)

    def _end_block(self, block: dict[str, Any]) -> None:
        """Note that this block has no connection any more, in the state that Django's ``close``
        leaves.
        """
        if self._held is not None:
            self._give_back()
        self.connection = None
        self.__dict__.update(block)
        if self.in_atomic_block:
            self.autocommit = False
            self.closed_in_transaction = self.needs_rollback = True

    # -- BEGIN and COMMIT --------------------------------------------------------------------------

    def unbroken_lost_at_begin(self, exc: Error) -> bool:
        """Return whether BEGIN failed with *exc* only because its connection was lost.

        In that case the connection is returned to the pool.
        """
        held = self._held
        if held is None or held.past is None or not self.autocommit or is_replayed():
            return False
        met, driver = exc.__cause__, held.state.driver
        if not isinstance(met, driver.errors) or not held.is_lost_at_begin(met):
            return False
        past = held.past.copy()
        past.sent("BEGIN", False)
        losses = Losses()
        lost = self._lost(held, "BEGIN", held.state.classify(met), losses.add(held, past))
        if not may_run_again(past, lost).heals:
            return False
        if (spent := losses.pay(held, lost.fault)) is not None:
            losses.refused(exc, spent, held)
            return False
        note(held.state, "BEGIN", held.entry.place, lost.fault)
        self._give_back()
        self.connection = None
        return True

    def unbroken_forgets_commit(self, held: Held, exc: Exception) -> bool:
        """Return whether the failure of COMMIT with *exc* loses nothing, because only reads went
        before it.
        """
        past, state = held.past, held.state
        if past is None or is_replayed() or not held.left_behind <= NOT_COUNTED_ON:
            return False
        fault = held.failed(exc)
        lost = self._lost(held, "COMMIT", fault, 1)
        ruling = may_forget_commit(past, lost, serializable=False)
        if (
            not ruling.heals
            or (ruling.asks and state.may_hide_writes)
            or self.unbroken_is_serializable()
        ):
            return False
        held.end("")
        held.entry.ending = None
        past.ended()
        note(state, "COMMIT", held.entry.place, fault)
        return True

    def unbroken_is_serializable(self) -> bool:
        """Return whether transactions are, or may be, SERIALIZABLE in PostgreSQL's sense."""
        return False


def _tell(db: Any, held: Held, past: Past, sql: str | bytes | None) -> None:
    """Report *sql*, which is about to be sent. Raises ConnectionLostError if it needs state of a
    lost session.
    """
    if not held.left_before.isdisjoint(VAGUE):
        past.unseen(_UNSEEN)
    if past.forgot and past.misses(sql):
        raise translated(
            held.state.error(
                ConnectionLostError,
                SESSION_LOST(
                    "this statement needs state of a session that was lost, and a new session has"
                    " taken its place; run it again together with the statements that it depends on"
                ),
            )
        )
    past.sent(sql, is_open(held, past, lambda: bool(db.autocommit)))
