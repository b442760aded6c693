"""What our two DatabaseWrappers share: their connection comes from a pool, and goes back to it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper, debug_transaction
from django.db.utils import DatabaseError, DatabaseErrorWrapper, OperationalError
from django.utils.functional import cached_property

from unbroken import errors
from unbroken.core.residue import Left
from unbroken.errors import ConnectRejectedError, UnbrokenError, for_driver
from unbroken.flows.bounds import bounded
from unbroken.flows.steps import run
from unbroken.integrations.django import pools
from unbroken.integrations.django.held import Held, with_this_thread
from unbroken.integrations.django.session import Noticing, is_foreign


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
    kind = next(cls for cls in type(exc).__mro__ if cls.__module__ == errors.__name__ and getattr(errors, cls.__name__, None) is cls)
    translated: BaseException = for_driver(kind, OperationalError, str(exc), **exc.__dict__)
    return translated


class Pooled(BaseDatabaseWrapper):  # type: ignore[misc] # Django has no types
    """Mixed in before one of Django's DatabaseWrappers.

    ``connect`` takes a connection from the pool of this alias, ``close`` gives it back, and between two statements outside
    ``atomic`` one that was lost is replaced.
    """

    unbroken_bare = False  #: opens sessions for the pool
    _held: Held | None = None
    _guarded = False
    _connecting = False
    _settled = False  #: nothing was sent since a COMMIT or ROLLBACK was answered
    autocommit: bool
    rollback_exc: BaseException | None
    run_commit_hooks_on_set_autocommit_on: bool

    @property
    def connection(self) -> Any:
        """The driver's own. Code that takes it from here, other than Django's, may send anything."""
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

    def unbroken_driver(self) -> str:
        """The name of the driver that this wrapper uses, as ``unbroken.Pool`` takes it."""
        raise NotImplementedError

    @property
    def unbroken_pool(self) -> Any:
        """The pool of this alias, in this process: an :class:`unbroken.Pool`."""
        return pools.source_of(self).pool

    # -- connecting ------------------------------------------------------------------------------------------------

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
            params.setdefault("connect_timeout", math.ceil(pools.settings_of(self.settings_dict).connect_timeout))
        return params

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the pool's; for the pool, and for creating databases, a new one."""
        if self.unbroken_bare or not pools.is_pooled(self):
            return super().get_new_connection(conn_params)
        if self.settings_dict["OPTIONS"].get("pool"):
            raise ImproperlyConfigured(
                f'DATABASES[{self.alias!r}]: OPTIONS["pool"] is for Django\'s own pool; remove it and say OPTIONS["unbroken"] = '
                '{"max_size": …} instead'
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
            raise exc.__cause__ from None  # not the server's no: of Django's own settings, or of what is run on a new session
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
        """Outside a transaction: what was lost while idle is let go of, so that a new one takes its place."""
        held = self._held
        if held is None or self._connecting or self.in_atomic_block or self.connection is not held.conn:
            return
        if not held.is_inherited:
            between = self.autocommit or held.lost or held.state.driver.is_in_transaction(held.conn) is False
            if not between or not held.must_go():
                return
        self._give_back()
        self.connection = None

    def _cursor(self, name: str | None = None) -> Any:
        self._look()
        return super()._cursor(name)

    def get_autocommit(self) -> bool:
        """Django's, which connects; ``atomic`` begins with it."""
        self._look()
        return bool(super().get_autocommit())

    def set_autocommit(self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False) -> None:
        """Django's; what a connection that is not there will be anyway needs none: a COMMIT may be its last word."""
        self._look()
        usual = autocommit == self.settings_dict["AUTOCOMMIT"] and not self.in_atomic_block and pools.is_pooled(self)
        if self.connection is not None or not usual:
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
            if autocommit and self._held is not None:
                self._held.rest()
            return
        self.autocommit = autocommit
        if autocommit and self.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            self.run_commit_hooks_on_set_autocommit_on = False

    def _set_autocommit(self, autocommit: bool) -> None:
        """Django's. One that is lost just here is let go of if nothing is open on it: what was committed did not fail."""
        try:
            with self._bounded("rollback"):
                super()._set_autocommit(autocommit)
        except DatabaseError:
            usual = autocommit == self.settings_dict["AUTOCOMMIT"]
            if not (usual and self._settled and self._held is not None and self._held.is_dead):
                raise
            self._give_back()
            self.connection = None

    # -- using -----------------------------------------------------------------------------------------------------

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

    def _commit(self) -> None:
        held, self._settled = self._held, False
        if held is None or self.connection is not held.conn or self.unbroken_bare:
            super()._commit()
            return
        with debug_transaction(self, "COMMIT"), self.wrap_database_errors:
            run(held.commit(), held.state.shell.do)
        self._settled = True
        held.rest()

    def _rollback(self) -> None:
        with self._bounded("rollback"):
            super()._rollback()
        self._settled = True
        if self._held is not None:
            self._held.rest()

    def _bounded(self, what: str) -> Any:
        """The time that the pool's own call of that name has."""
        held = self._held
        return nullcontext() if held is None or held.is_inherited else bounded(held.state, what, held.entry)

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
        if fault.is_lost and shown is exc and self.in_atomic_block and not isinstance(exc, UnbrokenError):
            why = held.entry.words or (held.entry.cause or fault.kind).value
            self.rollback_exc = exc  # what Django refuses from here on is refused because of that
            exc.add_note(f"unbroken: the connection was lost inside atomic ({why}); its work is undone, "
                         "and the next block gets another connection")  # fmt: skip
        return shown

    # -- giving back -----------------------------------------------------------------------------------------------

    def _close(self) -> None:
        held = self._held
        if held is None:
            super()._close()
            return
        self._give_back()
        self.connection = None  # as with Django's own pool: in an atomic block, no other takes its place

    def _give_back(self) -> None:
        held, self._held = self._held, None
        self.rollback_exc = None
        if held is not None and held.claim(self):
            held.put_back()

    def unbroken_let_go(self, held: Held) -> None:
        """A waiter has claimed what this thread held at rest; with the lock of *held*."""
        if self._held is held:
            self._held = self.__dict__["connection"] = None

    def unbroken_abandon(self) -> None:
        """The thread that held a connection through this wrapper has ended."""
        if self._held is not None:
            self._give_back()
            self.connection = None

    def close_if_unusable_or_obsolete(self) -> None:
        """Between requests the connection goes back, whatever CONN_MAX_AGE is: the next one is taken up in microseconds."""
        if self.connection is not None:
            self.close()

    def is_usable(self) -> bool:
        """Whether the server answers: one round trip."""
        return self.connection is not None and bool(super().is_usable())

    def close_if_health_check_failed(self) -> None:
        """Not needed: the pool looks at each connection's socket when it is taken up, without a round trip."""
        if self._held is None:
            super().close_if_health_check_failed()

    def close_pool(self) -> None:
        """Close the pool of this alias in this process. A new one is made when it is next needed."""
        pools.close_pools(self.alias)


_classes: dict[type, type] = {}


def _noticing(base: type) -> type:
    made = _classes.get(base)
    if made is None:
        made = _classes[base] = type(base.__name__, (Noticing, base), {"__module__": base.__module__})
    return made


__all__ = ["Cursor", "Errors", "Pooled"]
