"""The common part of our two DatabaseWrappers: their connection comes from a pool, and is returned
to it.
"""

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
    """Django's class, which reports a statement's leftovers."""


class Errors(DatabaseErrorWrapper):  # type: ignore[misc] # Django has no types
    """Django's translation of the driver's errors. Ours stay recognizable as well."""

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

    ``connect`` acquires a connection from the pool of this alias, and ``close`` returns it. A
    connection lost between two statements outside ``atomic`` is replaced.
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
        """Return the driver's own connection.

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
        """Return the name of the driver that this wrapper uses, as ``unbroken.Pool`` takes it."""
        raise NotImplementedError

    @property
    def unbroken_pool(self) -> Any:
        """Return the pool of this alias, in this process: an :class:`unbroken.Pool`."""
        return pools.source_of(self).pool

    # -- connecting --------------------------------------------------------------------------------

    def connect(self) -> None:
        """Acquire a connection as Django does, and call the receivers of ``connection_created``."""
        self._connecting = True
        try:
            super().connect()
            if self._held is not None and self._held.past is not None:
                self._held.past.renew()  # receivers do the same to the next connection
        finally:
            if self._held is not None:
                self._held.work()  # it was acquired for a use
            self._connecting = False

    def get_connection_params(self) -> dict[str, Any]:
        """Return Django's parameters, without our settings, bounded in time."""
        given: dict[str, Any] = self.settings_dict
        if not self.unbroken_bare:
            self.settings_dict = self._as_django_reads_it(given)
        try:
            params: dict[str, Any] = super().get_connection_params()
        finally:
            self.settings_dict = given
        params.pop("unbroken", None)
        if self.unbroken_bare:
            params.pop("target_session_attrs", None)  # the pool checks it
            params.setdefault(
                "connect_timeout", math.ceil(pools.settings_of(self.settings_dict).connect_timeout)
            )
        return params

    def _as_django_reads_it(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the settings *given*, with one host, and for creating databases with a
        password.
        """
        try:
            if where.is_simple(given, self.vendor):
                return given
            asked = given if pools.is_pooled(self) else where.with_secrets(given)
            return where.at_first(asked, self.vendor)
        except ConfigurationError as exc:
            raise ImproperlyConfigured(f"DATABASES[{self.alias!r}]: {exc}") from exc

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Return a connection of the pool's; for the pool, and for creating databases, a new
        one.
        """
        if self.unbroken_bare:
            return super().get_new_connection(conn_params)
        if not pools.is_pooled(self):
            make = super().get_new_connection
            return where.first_that_opens(self.settings_dict, self.vendor, conn_params, make)
        if self.settings_dict["OPTIONS"].get("pool"):
            raise ImproperlyConfigured(
                f'DATABASES[{self.alias!r}]: OPTIONS["pool"] is for Django\'s own pool; remove it'
                ' and set OPTIONS["unbroken"] = {"max_size": …} instead'
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
            # not the server's refusal, but an error of Django's own settings or of code run on a
            # new session
            raise exc.__cause__ from None
        return self._held.conn

    def init_connection_state(self) -> None:
        """Do nothing: a pool's connection was set up when it was opened."""
        if self._held is not None and self._connecting:
            BaseDatabaseWrapper.init_connection_state(self)
        else:
            super().init_connection_state()

    def check_database_version_supported(self) -> None:
        """Check on the caller's thread, not on one of the pool's."""
        if not self.unbroken_bare:
            super().check_database_version_supported()

    def _look(self) -> None:
        """Outside a transaction: drop a connection that was lost while idle, so that a new one
        replaces it.
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
        """Return Django's cursor, which is remembered until it is closed."""
        self._settled = False
        cursor = super().create_cursor(name)
        if self._held is not None:
            self._held.opened(getattr(cursor, "cursor", cursor))
        return cursor

    def make_cursor(self, cursor: Any) -> Any:
        """Return Django's cursor, which notes leftovers."""
        return Cursor(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """Return Django's cursor, which notes leftovers."""
        made = super().make_debug_cursor(cursor)
        made.__class__ = _noticing(type(made))
        return made

    @cached_property  # type: ignore[untyped-decorator] # Django has no types
    def wrap_database_errors(self) -> Any:
        """Return Django's context, with our errors kept."""
        return Errors(self)

    def unbroken_met(self, exc: BaseException) -> BaseException:
        """Note the effect of an error on the connection. Returns the error to show."""
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
            self.rollback_exc = exc  # Django refuses later calls because of this error
            exc.add_note(
                TRANSACTION_LOST(
                    f"unbroken: the connection was lost inside atomic ({why});"
                    f" {held.what_is_left()}; the next block gets another connection"
                )
            )
        return shown

    # -- returning ---------------------------------------------------------------------------------

    def _close(self) -> None:
        held = self._held
        if held is None:
            super()._close()
            return
        self._give_back()
        self.connection = (
            None  # as with Django's own pool: in an atomic block, no other replaces it
        )

    def _give_back(self) -> None:
        held = self._held
        if held is not None:
            self._finish_leaving()
            _call = None if held.is_inherited else held.begin_end()
            self._leaving = held  # first: at every moment some reference exists
        self.rollback_exc = self._due = self._outer = None
        self._in_atomic = self._undoing = self._switching = False
        self._finish_leaving()

    def _finish_leaving(self) -> None:
        """Return the connection whose return by this thread is pending or was interrupted."""
        leaving = self._leaving
        if leaving is not None:
            if self._held is leaving:
                self._held = self.__dict__["connection"] = None
            leaving.give_back_from(self)

    def unbroken_let_go(self, held: Held) -> None:
        """Drop a connection that this thread held at rest and that a waiter has claimed. Runs with
        the lock of *held*.
        """
        if self._held is held:
            self._leaving = held
            self._held = self.__dict__["connection"] = None

    def unbroken_abandon(self) -> None:
        """Return the connection of a thread that held it through this wrapper and has ended."""
        if self._held is not None or self._leaving is not None:
            self._give_back()
            self.connection = None

    def close(self) -> None:
        """Close as Django does. Blocks of ``atomic`` that no code runs in end with it."""
        if self.in_atomic_block and (
            not self.atomic_blocks or is_left(self.atomic_blocks, thoroughly=True)
        ):
            self.unbroken_abandon_blocks()
        super().close()

    def close_if_unusable_or_obsolete(self) -> None:
        """Return the connection between requests, for any CONN_MAX_AGE: acquiring the next one
        takes microseconds.
        """
        self._finish_leaving()
        if self.connection is not None or self.in_atomic_block:
            self.close()

    def is_usable(self) -> bool:
        """Return whether the server answers: one round trip."""
        return self.connection is not None and bool(super().is_usable())

    def close_if_health_check_failed(self) -> None:
        """Do nothing: the pool checks each connection's socket at acquire, without a round trip."""
        if self._held is None:
            super().close_if_health_check_failed()

    def close_pool(self) -> None:
        """Close the pool of this alias in this process.

        A new one is created when it is next needed.
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
