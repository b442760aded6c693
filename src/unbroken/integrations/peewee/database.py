"""The base class: a peewee database whose connections come from a pool of unbroken's.

``slot.py`` describes how long a connection is kept. Nothing here waits under a lock. peewee's own
``connect`` and ``close`` hold one for all threads, so a caller that waits for a connection would
keep others from returning theirs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import peewee
from playhouse.pool import MaxConnectionsExceeded

from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.integrations.peewee import pool_options, upkeep, where
from unbroken.integrations.peewee.errors import translated
from unbroken.integrations.peewee.executing import _CAN_GO_ON, Executing
from unbroken.integrations.peewee.heal import past_for
from unbroken.integrations.peewee.poolish import Poolish
from unbroken.integrations.peewee.result import Result
from unbroken.integrations.peewee.slot import PerThread, Pin, Shared, Slot, Taken, caller
from unbroken.integrations.peewee.transactions import Transactions
from unbroken.integrations.peewee.unit import Atomic, unit
from unbroken.ledger.scope import current, current_token
from unbroken.logs import Part
from unbroken.messages.data import TRANSACTION_LOST
from unbroken.pool.arguments import by_our_names
from unbroken.pool.state import state_of
from unbroken.settings import Settings
from unbroken.sync import Pool

log = Part("pool")


F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["MaxConnectionsExceeded", "PooledDatabase"]


class PooledDatabase(Executing, Transactions, Poolish, peewee.Database):  # type: ignore[misc] # peewee ships no types that we could use
    """Mixed in before one of peewee's MySQL or PostgreSQL databases, like playhouse's class of that
    name.

    These are playhouse's arguments: *max_connections* (20; 0: no bound), *stale_timeout* (seconds
    that a connection may live; None: 3600) and *timeout* (seconds to wait for one; None: 10, 0: for
    ever). Every setting of :class:`unbroken.Settings` may be given by its own name. *strict*:
    refuse statements outside of a scope instead of connecting for them. *reconnect*: replace a
    connection that an explicit ``connect()`` holds and that ended between two statements, with no
    transaction open (its session state is lost).
    """

    is_async = False

    def __init__(
        self,
        database: Any,
        max_connections: Any = 20,
        stale_timeout: Any = None,
        timeout: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        self.strict = bool(kwargs.pop("strict", False))
        self.reconnect = bool(kwargs.pop("reconnect", True))
        self._made: Pool | None = None
        self._retired: list[Pool] = []
        self._given = pool_options.settings_of(max_connections, stale_timeout, timeout, {})
        super().__init__(database, *args, **kwargs)

    def init(
        self,
        database: Any,
        max_connections: Any = None,
        stale_timeout: Any = None,
        timeout: Any = None,
        **kwargs: Any,
    ) -> None:
        """Initialize as playhouse does; takes unbroken's settings too. Idle connections of the
        former pool are closed now, those in use on their return.

        Raises ConfigurationError for settings that cannot work.
        """
        self.strict = bool(kwargs.pop("strict", self.strict))
        self.reconnect = bool(kwargs.pop("reconnect", self.reconnect))
        ours, theirs = Settings.split(by_our_names(kwargs))
        given = {
            **self._given,
            **pool_options.settings_of(max_connections, stale_timeout, timeout, ours),
        }
        Settings.of(**given)
        pool_options.check_names(self, theirs)
        super().init(database, **theirs)
        self._given = given
        self._retire()

    @property
    def pool(self) -> Pool:
        """Return the pool behind this database.

        It is created at the first call and connects to nothing by itself.
        """
        made = self._made
        return made if made is not None else self._make()

    def _make(self) -> Pool:
        if self.deferred:
            raise peewee.InterfaceError(
                "Error, database must be initialized before opening a connection."
            )
        driver = pool_options.driver_of(self)
        settings = Settings.of(**self._given)
        connect = pool_options.opener(self, type(self)._dial, driver, settings)
        params = self.connect_params
        pool = Pool(
            where.target_of(self.database, params, driver),
            connect=connect,
            driver=driver,
            **where.callables_of(params),
            **self._given,
        )
        pool._driver.given = where.options_of(params)  # type: ignore[attr-defined] # of Base
        if self._made is None:
            self._made = pool
        else:
            pool.close(timeout=0.0)  # another thread was first
        return self._made

    def _retire(self) -> None:
        pool, self._made = self._made, None
        if pool is not None:
            pool.close(timeout=0.0)
            self._retired = [*(p for p in self._retired if p.stats().used), pool]

    def _dial(self) -> Any:
        """Open a new connection, peewee's own way."""
        return super()._connect()

    # -- which connection --------------------------------------------------------------------------

    @property
    def _state(self) -> Slot:
        slot: Slot = self._threads.slot
        loan = slot.loan
        if loan is not None and not loan.state.here[0]:
            slot.inherited()
        return slot

    @_state.setter
    def _state(self, _theirs: Any) -> None:
        self._threads: Any = PerThread() if self.thread_safe else Shared()

    def is_closed(self) -> bool:
        """Return whether this thread has no connection, nor a scope that has one."""
        slot = self._state
        return slot.closed and not slot.held

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Acquire a connection from the pool for this thread, until ``close()``, as peewee does.

        Raises PoolTimeoutError (also a MaxConnectionsExceeded), OutageError or
        ConnectRejectedError, each also a ``peewee.OperationalError``.
        """
        slot = self._state
        if slot.is_bound:
            if reuse_if_open:
                return False
            raise peewee.OperationalError("Connection already opened.")
        if slot.closed:
            self._take(slot)
        slot.held = True
        return True

    def close(self) -> bool:
        """Return this thread's connection to the pool. Like peewee's, it returns whether there was
        one.
        """
        if self.deferred:
            raise peewee.InterfaceError(
                "Error, database must be initialized before opening a connection."
            )
        slot = self._state
        self._finish_leaving(slot)
        if slot.is_left():
            self._abandon(slot)
        if slot.transactions:
            raise peewee.OperationalError("Attempting to close database while transaction is open.")
        was_open = slot.held or not slot.closed
        if not slot.closed:
            self._give_back(slot, caller() if self.strict else None)
        slot.reset()
        return was_open

    def connection(self) -> Any:
        """Return the driver's connection of this thread. It opens one as ``connect()`` does, until
        ``close()``.
        """
        slot = self._state
        if slot.closed:
            if not slot.held:
                self.connect()
            else:
                self._take(slot)
        else:
            slot.held = True
        slot.raw = True
        return slot.conn

    def __enter__(self) -> Any:
        opened, slot, frame = self.is_closed(), self._state, sys._getframe(1)
        before = len(slot.ctx), len(slot.transactions)
        try:
            result = super().__enter__()
            if len(slot.ctx) == 1:
                slot.entered.clear()
            if (
                not frame.f_code.co_flags & _CAN_GO_ON
                and frame.f_globals.get("__name__") != "contextlib"
            ):
                slot.entered[id(slot.ctx[-1])] = id(frame)
            return result
        except BaseException:
            if len(slot.transactions) > before[1]:  # the block is not run: nothing was done in it
                if before[1]:
                    slot.transactions.pop()
                else:
                    self._abandon(slot)
            del slot.ctx[before[0] :]
            if opened and not slot.transactions:
                self.close()
            raise

    def __exit__(self, kind: Any, exc: Any, trace: Any) -> None:
        slot = self._state
        ctx = slot.ctx.pop()
        try:
            ctx.__exit__(kind, exc, trace)
        finally:
            if getattr(ctx, "_helper", None) in slot.transactions:  # its exit was interrupted
                self._abandon(slot)
            if not slot.ctx:
                self.close()

    def _abandon(self, slot: Slot) -> None:
        """End the connection of *slot*, because no code runs in its transactions any more. The
        server rolls back.
        """
        transactions = slot.transactions[:]
        slot.transactions.clear()
        slot.commit_callbacks.clear()
        slot.ctx = [ctx for ctx in slot.ctx if getattr(ctx, "_helper", None) not in transactions]
        slot.entered.clear()
        slot.ending = slot.opening = False
        slot.lost = None
        if slot.loan is not None:
            slot.loan.end("a transaction on it was interrupted")
        if not slot.closed:
            self._give_back(slot)

    def _connect(self) -> Any:
        try:
            return self.pool.acquire()
        except UnbrokenError as error:
            raise translated(error) from error

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        for pool in (self._made, *self._retired):
            if pool is not None and pool.loan_of(conn) is not None:
                if close_conn:
                    upkeep.discard(pool, conn)
                pool.release(conn)
                return

    def _take(self, slot: Slot) -> None:
        """Acquire a connection into *slot*. The caller must ensure that it is kept."""
        if self.deferred:
            raise peewee.InterfaceError(
                "Error, database must be initialized before opening a connection."
            )
        self._finish_leaving(slot)
        if slot.lost is not None:
            raise self._lost_error(slot)
        slot.conn, slot.closed = self._connect(), False
        conn, pool = slot.conn, self._made
        known = pool.loan_of(conn) if pool is not None else None
        if pool is not None and known is not None:
            loan: Any = Taken.of(known.state, known.entry, conn)
            loan.pool, loan.past = pool, past_for(pool)
            loan.keep()
            entry, deadline = loan.entry, loan.state.settings.deadline
            slot.opened = caller()
            entry.taken_at_call(*slot.opened)
            slot.loan, slot.last_used = loan, entry.taken_at
            if current_token() is not None:
                loan.begun = (current(), None)  # acquire() has enlisted it
            limit = math.inf if deadline is None else entry.taken_at + deadline
            loan.until = min(slot.until, limit)
            loan.arm(loan.until)
        try:
            if self.server_version is None:
                self._set_server_version(conn)
            self._initialize_connection(conn)
        except BaseException:
            self._give_back(slot)
            raise

    def _lost_error(self, slot: Slot) -> UnbrokenError:
        what = f"the connection of this transaction was lost; {slot.lost}"
        return translated(state_of(self.pool).error(ConnectionLostError, TRANSACTION_LOST(what)))

    def _give_back(self, slot: Slot, where: Any = None) -> None:
        """Remove the connection from *slot*, whose scope stays, and release it."""
        self._finish_leaving(slot)
        with slot.lock:
            conn, loan = slot.conn, slot.loan
            readers = [
                reader for ref in list(slot.readers.values()) if (reader := ref()) is not None
            ]
            if loan is not None and loan.state.here[0]:
                _call = loan.begin_end()
                slot.leaving = loan  # first: at every moment some reference exists
            slot.drop()
        slot.left = where
        if loan is not None:
            loan.disarm()
        for reader in readers:
            reader.let_go(rows=True)
        if slot.leaving is not None:
            self._finish_leaving(slot)
        elif conn is not None:
            self._close(conn)

    def _finish_leaving(self, slot: Slot) -> None:
        """Return the connection whose return by this thread is pending or was interrupted."""
        leaving = slot.leaving
        if leaving is None:
            return
        if slot.loan is leaving:
            slot.drop()
        if leaving.state.here[0]:
            leaving.end_once(leaving.put_back)
        if slot.leaving is leaving and (not leaving.state.here[0] or leaving.is_over):
            slot.leaving = None

    def _settle(self, slot: Slot) -> None:
        """Return a connection that is not kept any more."""
        with slot.lock:
            if not slot.is_free:
                return
            pin = Pin(self, slot)  # from here on this call must return it
        try:
            self._give_back(slot)
        finally:
            pin.take_out()

    def _unpin(self, slot: Slot, pin: Pin) -> None:
        pin.take_out()
        if not slot.is_bound:
            self._settle(slot)

    def _reader_ended(self, slot: Slot, key: int) -> None:
        """Note that a result was read to its end, or closed."""
        slot.readers.pop(key, None)
        if not slot.is_bound:
            self._settle(slot)

    def _reader_collected(self, slot: Slot, key: int, result: Result) -> None:
        """Note that a result is being collected, on any thread. A forked child's is the parent's
        business.
        """
        loan = slot.loan
        if (
            loan is None
            or not loan.state.here[0]
            or slot.readers.pop(key, None) is None
            or slot.is_bound
        ):
            return
        with slot.lock:
            last = slot.is_free
        if last:
            result.let_go()
            self._settle(slot)

    # -- statements --------------------------------------------------------------------------------

    # -- units of work -----------------------------------------------------------------------------

    def atomic(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as peewee.

        As a decorator, the outermost one makes its function a unit of work: replayed if that is
        provably safe.
        """
        return Atomic(self, *args, **kwargs)

    def unit(self, function: Any = None, /, **options: Any) -> Any:
        """``@db.unit``; :func:`unbroken.peewee.unit` describes it."""
        return unit(self, function, **options)
