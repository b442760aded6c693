"""What our two DatabaseWrappers share: their connection comes from a pool, and goes back to it."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper, debug_transaction
from django.db.transaction import TransactionManagementError
from django.db.utils import DatabaseError, DatabaseErrorWrapper, OperationalError
from django.utils.functional import cached_property

from unbroken import errors
from unbroken.errors import ConnectRejectedError, UnbrokenError, for_driver
from unbroken.integrations.django import pools
from unbroken.integrations.django.blocks import Blocks, Savepoints, is_left
from unbroken.integrations.django.held import Held, with_this_thread
from unbroken.integrations.django.statements import Noticing, is_foreign
from unbroken.ledger.residue import Left
from unbroken.pool.bounds import bounded
from unbroken.pool.steps import run


class Cursor(Noticing, CursorWrapper):  # type: ignore[misc] # Django has no types
    """Django's, which tells what a statement leaves behind."""


class Errors(DatabaseErrorWrapper):  # type: ignore[misc] # Django has no types
    """Django's translation of the driver's errors; ours stay recognisable as well."""

    def __exit__(self, kind: Any, exc: Any, trace: Any) -> None:
        if exc is None:
            return
        shown = self.wrapper.unbroken_met(exc)
        if isinstance(shown, UnbrokenError):
            self.wrapper.errors_occurred = True
            raise _translated(shown).with_traceback(trace) from exc
        super().__exit__(kind, exc, trace)


def _translated(exc: UnbrokenError) -> BaseException:
    """*exc* as Django's users catch it: OutageError and OperationalError in one."""
    kind = next(
        cls
        for cls in type(exc).__mro__
        if cls.__module__ == errors.__name__ and getattr(errors, cls.__name__, None) is cls
    )
    translated: BaseException = for_driver(kind, OperationalError, str(exc), **exc.__dict__)
    return translated


class Pooled(BaseDatabaseWrapper):  # type: ignore[misc] # Django has no types
    """Mixed in before one of Django's DatabaseWrappers.

    ``connect`` takes a connection from the pool of this alias, ``close`` gives it back, and between
    two statements outside ``atomic`` one that was lost is replaced.
    """

    unbroken_bare = False  #: opens sessions for the pool
    _held: Held | None = None
    _leaving: Held | None = None  #: on its way back to the pool
    _guarded = False
    _connecting = False
    _settled = False  #: nothing was sent since a COMMIT or ROLLBACK was answered
    _in_atomic = False  #: autocommit was switched off by ``atomic``, and is not on again
    _undoing = False  #: a ROLLBACK was begun, and not answered
    _switching = False  #: autocommit is being switched: which way it is, is not known
    _outer: BaseException | None = None  #: what was being handled when autocommit was switched off
    _due: int | None = None  #: what was done within so many savepoints is to be undone, and is not
    autocommit: bool
    in_atomic_block: bool
    closed_in_transaction: bool
    commit_on_exit: bool
    needs_rollback: bool
    run_on_commit: list[Any]
    rollback_exc: BaseException | None
    run_commit_hooks_on_set_autocommit_on: bool

    @property
    def connection(self) -> Any:
        """The driver's own.

        Code that takes it from here, other than Django's, may send anything.
        """
        held = self._held
        if held is not None:
            if held.is_resting:
                held.work()
            if Left.UNSEEN not in held.left_behind and is_foreign(1):
                held.left_behind |= {Left.UNSEEN}
        return self.__dict__.get("connection")

    @connection.setter
    def connection(self, connection: Any) -> None:
        self.__dict__["connection"] = connection

    @property
    def savepoint_ids(self) -> Any:
        """Django's stack, watched."""
        return self.__dict__["savepoint_ids"]

    @savepoint_ids.setter
    def savepoint_ids(self, ids: Any) -> None:
        self.__dict__["savepoint_ids"] = Savepoints(self, ids)

    @property
    def atomic_blocks(self) -> Any:
        """Django's stack, watched."""
        return self.__dict__["atomic_blocks"]

    @atomic_blocks.setter
    def atomic_blocks(self, blocks: Any) -> None:
        self.__dict__["atomic_blocks"] = Blocks(self, blocks)

    def unbroken_driver(self) -> str:
        """The name of the driver that this wrapper uses, as ``unbroken.Pool`` takes it."""
        raise NotImplementedError

    @property
    def unbroken_pool(self) -> Any:
        """The pool of this alias, in this process: an :class:`unbroken.Pool`."""
        return pools.source_of(self).pool

    # -- connecting --------------------------------------------------------------------------------

    def connect(self) -> None:
        """Django's: take a connection, and tell the receivers of ``connection_created``."""
        self._connecting = True
        try:
            super().connect()
        finally:
            if self._held is not None:
                self._held.work()  # it was taken up for something
            self._connecting = False

    def get_connection_params(self) -> dict[str, Any]:
        """Django's, without our settings, bounded in time."""
        params: dict[str, Any] = super().get_connection_params()
        params.pop("unbroken", None)
        if self.unbroken_bare:
            params.setdefault(
                "connect_timeout", math.ceil(pools.settings_of(self.settings_dict).connect_timeout)
            )
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the pool's; for the pool, and for creating databases, a new one."""
        if self.unbroken_bare or not pools.is_pooled(self):
            return super().get_new_connection(conn_params)
        if self.settings_dict["OPTIONS"].get("pool"):
            raise ImproperlyConfigured(
                f'DATABASES[{self.alias!r}]: OPTIONS["pool"] is for Django\'s own pool; remove it'
                ' and say OPTIONS["unbroken"] = {"max_size": …} instead'
            )
        self._give_back()
        if not self._guarded:
            self._guarded = True
            with_this_thread(self)
        try:
            self._held = Held(pools.source_of(self), self)
        except ConnectRejectedError as exc:
            if exc.__cause__ is None or isinstance(exc.__cause__, self.Database.OperationalError):
                raise
            # not the server's no: of Django's own settings, or of what is run on a new session
            raise exc.__cause__ from None
        return self._held.conn

    def init_connection_state(self) -> None:
        """A pool's connection was set up when it was opened."""
        if self._held is not None and self._connecting:
            BaseDatabaseWrapper.init_connection_state(self)
        else:
            super().init_connection_state()

    def check_database_version_supported(self) -> None:
        """Told to the caller, not to a thread of the pool's."""
        if not self.unbroken_bare:
            super().check_database_version_supported()

    def _look(self) -> None:
        """Outside a transaction: what was lost while idle is let go of, so that a new one takes its
        place.
        """
        if self._leaving is not None:
            self._finish_leaving()
        held = self._held
        if self.in_atomic_block:
            if self.__dict__["atomic_blocks"] and is_left(self.__dict__["atomic_blocks"]):
                self.unbroken_abandon_blocks()
            return
        if held is None or self._connecting or self.connection is not held.conn:
            return
        if not held.is_inherited:
            between = (
                self.autocommit
                or held.lost
                or held.state.driver.is_in_transaction(held.conn) is False
            )
            if not between or not held.must_go():
                return
        self._give_back()
        self.connection = None

    def _begin_anew(self) -> None:
        """Outside of ``atomic``, before a statement: a block whose end was broken off ends now."""
        if (
            (self._in_atomic or self._undoing or self._switching)
            and not self.in_atomic_block
            and not self._connecting
        ):
            self._discard("a transaction on it was broken off")

    def _cursor(self, name: str | None = None) -> Any:
        self._begin_anew()
        self._look()
        return super()._cursor(name)

    def get_autocommit(self) -> bool:
        """Django's, which connects; ``atomic`` begins with it."""
        self._begin_anew()
        self._look()
        return bool(super().get_autocommit())

    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Django's; what a connection that is not there will be anyway needs none: a COMMIT may be
        its last word.

        Where a transaction is open that was to be rolled back, autocommit is not switched on, since
        MySQL would commit it: the connection is ended. Raises TransactionManagementError where the
        application did so itself after an exception.
        """
        if autocommit:
            self._commit_nothing()
        else:
            self._begin_anew()
        self._look()
        if not autocommit and self.autocommit:
            self._begin_block(by_atomic=force_begin_transaction_with_broken_autocommit)
        usual = (
            autocommit == self.settings_dict["AUTOCOMMIT"]
            and not self.in_atomic_block
            and pools.is_pooled(self)
        )
        if self.connection is not None or not usual:
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
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
            self.run_on_commit = []  # of a block that was broken off
            self._due, self._in_atomic = None, True
        self._outer = sys.exc_info()[1]

    def _commit_nothing(self) -> None:
        """Autocommit is about to be switched on: end a connection with a transaction that was to be
        rolled back.
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
                "set_autocommit(True) came after an exception, with a transaction open that was"
                " neither committed nor rolled back: its connection was closed, and nothing of it"
                " is stored. Commit or roll back first"
            )

    def _discard(self, why: str) -> None:
        """The connection is ended, and its server rolls back what is open.

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
        """What was done in a block within *depth* others is to be undone.

        Until it is, nothing is committed.
        """
        self._due = depth if self._due is None else min(depth, self._due)

    def unbroken_abandon_blocks(self) -> None:
        """Nobody is in a block of ``atomic`` any more, though Django's stacks say so: begin
        anew.
        """
        self.in_atomic_block = self.closed_in_transaction = False
        self.commit_on_exit = True
        self.savepoint_ids, self.atomic_blocks = [], []
        self._discard("a block of atomic was broken off")

    def set_rollback(self, rollback: bool) -> None:
        """Django's."""
        super().set_rollback(rollback)
        if not rollback:
            self._due = None  # the application knows better

    def savepoint_rollback(self, sid: str) -> None:
        """Django's."""
        super().savepoint_rollback(sid)
        if self._due is not None and self._due >= len(self.savepoint_ids):
            self._due = None

    def _set_autocommit(self, autocommit: bool) -> None:
        """Django's.

        One that is lost just here is let go of if nothing is open on it: what was committed did not
        fail.
        """
        self._switching = True
        try:
            with self._bounded("rollback"):
                super()._set_autocommit(autocommit)
        except DatabaseError:
            usual = autocommit == self.settings_dict["AUTOCOMMIT"]
            if not (usual and self._settled and self._held is not None and self._held.is_dead):
                raise
            self._give_back()
            self.connection = None
        self._switched(autocommit)

    # -- using -------------------------------------------------------------------------------------

    def create_cursor(self, name: str | None = None) -> Any:
        """Django's; remembered until it is closed."""
        self._settled = False
        cursor = super().create_cursor(name)
        if self._held is not None:
            self._held.opened(getattr(cursor, "cursor", cursor))
        return cursor

    def make_cursor(self, cursor: Any) -> Any:
        """Django's, noticing."""
        return Cursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """Django's, noticing."""
        made = super().make_debug_cursor(cursor)
        made.__class__ = _noticing(type(made))
        return made

    def rollback(self) -> None:
        """Django's."""
        self.validate_thread_sharing()
        self._undoing = not (self._settled or self.in_atomic_block)
        super().rollback()
        self._undoing = False

    def _commit(self) -> None:
        if (self._due is not None or self._undoing) and not self.unbroken_bare:
            raise TransactionManagementError(
                "COMMIT was not sent: a block of atomic, or a rollback, was broken off (by a signal"
                " handler or a time limit), and what it was to undo would be stored"
            )
        held, self._settled = self._held, False
        if held is None or self.connection is not held.conn or self.unbroken_bare:
            super()._commit()
            return
        with debug_transaction(self, "COMMIT"), self.wrap_database_errors:
            run(held.commit(), held.state.runtime.do)
        self._settled = True
        held.rest()

    def _rollback(self) -> None:
        with self._bounded("rollback"):
            super()._rollback()
        self._settled, self._undoing, self._due = True, False, None
        if self._held is not None:
            self._held.rest()

    def _bounded(self, what: str) -> Any:
        """The time that the pool's own call of that name has."""
        held = self._held
        return (
            nullcontext()
            if held is None or held.is_inherited
            else bounded(held.state, what, held.entry)
        )

    @cached_property  # type: ignore[untyped-decorator] # Django has no types
    def wrap_database_errors(self) -> Any:
        """Django's, ours kept."""
        return Errors(self)

    def unbroken_met(self, exc: BaseException) -> BaseException:
        """An error came up: what it says of the connection is noted. Gives the one to show."""
        held = self._held
        if held is None or held.is_inherited:
            return exc
        fault = held.failed(exc)
        if not isinstance(exc, held.state.driver.errors):
            return exc
        held.lost = held.lost or held.entry.cause is not None
        shown = held.shown(exc, held.state.settings.deadline)
        if (
            fault.is_lost
            and shown is exc
            and self.in_atomic_block
            and not isinstance(exc, UnbrokenError)
        ):
            why = held.entry.words or (held.entry.cause or fault.kind).value
            self.rollback_exc = exc  # what Django refuses from here on is refused because of that
            exc.add_note(
                f"unbroken: the connection was lost inside atomic ({why}); its work is undone, and"
                " the next block gets another connection"
            )
        return shown

    # -- giving back -------------------------------------------------------------------------------

    def _close(self) -> None:
        held = self._held
        if held is None:
            super()._close()
            return
        self._give_back()
        self.connection = (
            None  # as with Django's own pool: in an atomic block, no other takes its place
        )

    def _give_back(self) -> None:
        held = self._held
        if held is not None:
            self._finish_leaving()
            _call = None if held.is_inherited else held.begin_end()
            self._leaving = held  # first: at no moment does nobody know of it
        self.rollback_exc = self._due = self._outer = None
        self._in_atomic = self._undoing = self._switching = False
        self._finish_leaving()

    def _finish_leaving(self) -> None:
        """What this thread gives back, or was struck while it did, goes back."""
        leaving = self._leaving
        if leaving is not None:
            if self._held is leaving:
                self._held = self.__dict__["connection"] = None
            leaving.give_back_from(self)

    def unbroken_let_go(self, held: Held) -> None:
        """A waiter has claimed what this thread held at rest; with the lock of *held*."""
        if self._held is held:
            self._leaving = held
            self._held = self.__dict__["connection"] = None

    def unbroken_abandon(self) -> None:
        """The thread that held a connection through this wrapper has ended."""
        if self._held is not None or self._leaving is not None:
            self._give_back()
            self.connection = None

    def close(self) -> None:
        """Django's. Blocks of ``atomic`` that nobody is in any more end with it."""
        if self.in_atomic_block and (
            not self.atomic_blocks or is_left(self.atomic_blocks, thoroughly=True)
        ):
            self.unbroken_abandon_blocks()
        super().close()

    def close_if_unusable_or_obsolete(self) -> None:
        """Between requests the connection goes back, whatever CONN_MAX_AGE is: the next one is
        taken up in microseconds.
        """
        self._finish_leaving()
        if self.connection is not None or self.in_atomic_block:
            self.close()

    def is_usable(self) -> bool:
        """Whether the server answers: one round trip."""
        return self.connection is not None and bool(super().is_usable())

    def close_if_health_check_failed(self) -> None:
        """Not needed: the pool looks at each connection's socket when it is taken up, without a
        round trip.
        """
        if self._held is None:
            super().close_if_health_check_failed()

    def close_pool(self) -> None:
        """Close the pool of this alias in this process.

        A new one is made when it is next needed.
        """
        pools.close_pools(self.alias)


_classes: dict[type, type] = {}


def _noticing(base: type) -> type:
    made = _classes.get(base)
    if made is None:
        made = _classes[base] = type(
            base.__name__, (Noticing, base), {"__module__": base.__module__}
        )
    return made


__all__ = ["Cursor", "Errors", "Pooled"]
