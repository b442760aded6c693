"""What our two DatabaseWrappers share: their connection comes from a pool, and goes back to it."""

from __future__ import annotations

import math
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property

from unbroken.errors import ConfigurationError, ConnectRejectedError, UnbrokenError
from unbroken.integrations.django import pools, where
from unbroken.integrations.django.blocks import Blocks, Savepoints, is_left
from unbroken.integrations.django.errors import translated
from unbroken.integrations.django.held import Held, with_this_thread
from unbroken.integrations.django.statements import Noticing, is_foreign
from unbroken.integrations.django.transactions import Transactions
from unbroken.ledger.residue import Left
from unbroken.messages.data import TRANSACTION_LOST


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
            raise translated(shown).with_traceback(trace) from exc
        super().__exit__(kind, exc, trace)


class Pooled(Transactions):
    """Mixed in before one of Django's DatabaseWrappers.

    ``connect`` takes a connection from the pool of this alias, ``close`` gives it back, and between
    two statements outside ``atomic`` one that was lost is replaced.
    """

    unbroken_bare = False  #: opens sessions for the pool
    _held: Held | None = None
    _leaving: Held | None = None  #: on its way back to the pool
    _guarded = False
    _connecting = False
    rollback_exc: BaseException | None
    settings_dict: dict[str, Any]

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
            if self._held is not None and self._held.past is not None:
                self._held.past.renew()  # receivers do the same to the next connection
        finally:
            if self._held is not None:
                self._held.work()  # it was taken up for something
            self._connecting = False

    def get_connection_params(self) -> dict[str, Any]:
        """Django's, without our settings, bounded in time."""
        given: dict[str, Any] = self.settings_dict
        if not self.unbroken_bare:
            self.settings_dict = self._as_django_reads_it(given)
        try:
            params: dict[str, Any] = super().get_connection_params()
        finally:
            self.settings_dict = given
        params.pop("unbroken", None)
        if self.unbroken_bare:
            params.pop("target_session_attrs", None)  # the pool asks
            params.setdefault(
                "connect_timeout", math.ceil(pools.settings_of(self.settings_dict).connect_timeout)
            )
        return params

    def _as_django_reads_it(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings *given*, with one host, and for creating databases with a password."""
        try:
            if where.is_simple(given, self.vendor):
                return given
            asked = given if pools.is_pooled(self) else where.with_secrets(given)
            return where.at_first(asked, self.vendor)
        except ConfigurationError as exc:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {exc}") from exc

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """A connection of the pool's; for the pool, and for creating databases, a new one."""
        if self.unbroken_bare:
            return super().get_new_connection(conn_params)
        if not pools.is_pooled(self):
            make = super().get_new_connection
            return where.first_that_opens(self.settings_dict, self.vendor, conn_params, make)
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

    def _cursor(self, name: str | None = None) -> Any:
        self._begin_anew()
        self._look()
        return super()._cursor(name)

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
        self._met = (exc, fault)
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
                TRANSACTION_LOST(
                    f"unbroken: the connection was lost inside atomic ({why});"
                    f" {held.what_is_left()}; the next block gets another connection"
                )
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
