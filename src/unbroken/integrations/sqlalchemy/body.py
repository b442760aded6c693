"""The state of one SQLAlchemy pool in one process (and event loop): the pools' PoolState, with
SQLAlchemy's records.

The same kernel and flows as for a ``Pool`` decide which caller gets a connection, waits, connects,
or gets an outage error. This module holds the differences: SQLAlchemy opens and closes the
connections and calls its events.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import weakref
from collections.abc import Callable
from contextvars import Context
from dataclasses import replace
from typing import Any

from unbroken.abc import Cause, Connection, Fault, FaultKind, Login
from unbroken.backends.fault import CLIENT_KINDS
from unbroken.brain.entry import Entry
from unbroken.brain.stats import Counters, Stats
from unbroken.drivers._shared import dial, from_connect, mark
from unbroken.errors import CommitUnknownError, ConnectionLostError, E, PoolClosedError, for_driver
from unbroken.integrations.sqlalchemy.plan import Plan
from unbroken.integrations.sqlalchemy.record import Record, Slot
from unbroken.integrations.sqlalchemy.runtimes import context_of, mark_of, opened_by
from unbroken.ledger.questions import Question, text_of
from unbroken.ledger.scope import testify
from unbroken.messages.integrations import ENGINE_GONE
from unbroken.pool import news
from unbroken.pool.connect import connector
from unbroken.pool.knowledge import AT_THE_LIMIT
from unbroken.pool.loan import Loan
from unbroken.pool.secrets import LoginError
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Attempt, Flow, run
from unbroken.pool.upkeep import schedule

#: Causes for which SQLAlchemy closes a connection; for all others it invalidates it.
_GENTLE = frozenset({Cause.SURPLUS, Cause.DRAINED, Cause.MOVED, Cause.POOL_CLOSED})
#: The maximum number of connections that were opened and have no entry yet. Beyond it, the oldest
#: ones are dropped as abandoned.
_FRESH = 32


class Body(PoolState):
    """A pool of SQLAlchemy's in one process, or, if async, on one loop. A child gets a new one."""

    entry_kind = Slot
    remedy = "mark its function with @unbroken.replayable"

    def __init__(self, pool: Any, plan: Plan, runtime: Any, counters: Counters | None) -> None:
        mark = mark_of(runtime)
        super().__init__(
            plan.driver, plan.settings, runtime, plan.name, plan.emit, mark, connector, plan.secrets
        )
        self._pool = weakref.ref(pool)
        self.plan = plan
        self.counters = counters or self.counters
        self.by_connection: dict[int, list[Slot]] = {}  #: by id of SQLAlchemy's DBAPI connection
        self.fresh: dict[
            int, tuple[Connection, Any, Record]
        ] = {}  #: opened, by id of the driver's object: no entry yet
        self.connect_limit = plan.connect_limit + AT_THE_LIMIT
        self.bounded = self.settings.deadline is not None
        self.abrupt = False  #: whether the present close must not wait
        self.caller: Context | None = (
            #: of a waiting caller: an application's ``creator`` may read its context variables
            None
        )
        this = weakref.ref(self)
        runtime.opener = lambda login: opened_by(this, login)
        runtime.context = lambda: context_of(this)
        self._look()
        self._take_bounds(pool)

    def _take_bounds(self, pool: Any) -> None:
        size, overflow, kernel = pool._pool.maxsize, pool._max_overflow, self.kernel
        kernel.max_size = sys.maxsize if overflow < 0 else size + overflow
        kernel.keep = self.keep = size or sys.maxsize
        kernel.oldest_first = not pool._pool.use_lifo
        self.take: Callable[[], Any] = (
            kernel.idle.popleft if kernel.oldest_first else kernel.idle.pop
        )

    def _look(self) -> None:
        """Look up the driver's methods that the hot paths use."""
        self.driver, self.connects_here = self.plan.driver, self.plan.is_blind
        self.is_quiet, self.heard_goodbye = self.driver.is_quiet, self.driver.has_ended
        self.look_at_answers()

    @property
    def pool(self) -> Any:
        """Return SQLAlchemy's pool, as long as a reference to it exists."""
        return self._pool()

    def run(self, flow: Flow[Any]) -> Any:
        """Run *flow* for a caller of SQLAlchemy's: on this thread, or inside SQLAlchemy's
        greenlet.
        """
        return run(flow, self.runtime.do_here)  # type: ignore[attr-defined] # both shells below have it

    # -- connecting --------------------------------------------------------------------------------

    @property
    def asks_login(self) -> bool:
        """Return PoolState's value, or True if a ``creator`` or a ``do_connect`` event of the
        application's may bring another login each time.
        """
        pool = self.pool
        if pool is None or self.secrets.are_asked or self.plan.is_created_outside:
            return True
        return len(pool._dialect.dispatch.do_connect) > self.plan.aims

    def open(self, login: Login | None = None) -> Connection:
        """Open a connection as *login*, as SQLAlchemy does. Returns the driver's own object.

        It runs on this thread, or inside a greenlet.
        """
        pool = self.pool
        if pool is None:
            raise self.error(
                PoolClosedError,
                ENGINE_GONE(f"the engine of {self.name} no longer exists; keep a reference to it"),
            )
        record = pool.blank()
        connection = dial(lambda: pool.raw_creator(record, login))
        try:
            raw = self._look_below(pool, connection)
        except BaseException:
            pool.close_raw(connection)
            raise
        while len(self.fresh) >= _FRESH:
            self.fresh.pop(next(iter(self.fresh)), None)
        self.fresh[id(raw)] = (raw, connection, record)
        return raw

    def _look_below(self, pool: Any, connection: Any) -> Connection:
        """Return the driver's object below *connection*.

        If that cannot be determined, the pool goes on without it.
        """
        if self.plan.is_blind:
            return connection
        raw = self.plan.genuine(pool._dialect.get_driver_connection(connection))
        if raw is not None:
            try:
                return self.runtime.wait_for(self.driver.adopt(raw))  # type: ignore[attr-defined] # Driver and AsyncDriver have it
            except (
                TypeError,
                AttributeError,
            ) as why:  # an object of a class that the driver file does not know
                self.plan.warn_unknown(why)
        self.plan.go_blind(pool._dialect)
        self._look()
        self.decide_policy()
        self.server.limit.asked = True
        return connection

    def adopt(self, conn: Connection, generation: int | None = None) -> Slot:
        """Return an entry for a connection that :meth:`open` returned."""
        entry = super().adopt(conn, generation)
        assert isinstance(entry, Slot)
        _, dbapi, record = self.fresh.pop(id(conn), (conn, conn, None))
        self._tie(entry, dbapi, record if record is not None else self.pool.blank())
        return entry

    def _tie(self, entry: Slot, dbapi: Any, record: Record) -> None:
        entry.dbapi, entry.record = dbapi, record
        record.hold(entry, self)
        with self.lock:
            self.by_connection.setdefault(id(dbapi), []).append(entry)

    def fill(self, record: Record, connection: Any) -> None:
        """Store *connection*, which the caller that has *record*'s place has opened for it."""
        place, entry = record.entry, PoolState.adopt(self, connection)
        assert isinstance(entry, Slot)
        self._tie(entry, connection, record)
        entry.uses, entry.taken_at = 1, entry.born
        with self.lock:
            self.count_opened()
            if place is None or not self.kernel.replace(place, entry):
                self.kernel.admit(entry)
        schedule(self)
        news.opened(self, entry)

    @property
    def has_room(self) -> bool:
        """Return whether a connection is being opened, or can be, for one caller beyond the waiting
        ones.
        """
        kernel = self.kernel
        return kernel.max_size - len(kernel.entries) > len(kernel.waiting)

    def place(self) -> Slot:
        """Return a place for a connection that its holder opens."""
        now = self.clock()
        place = Slot(None, now, self.kernel.generation, float("inf"))
        place.taken_at = now
        return place

    def ensure_connecting(self) -> None:
        """Open the wanted connections: by workers, or by callers if the driver is unknown."""
        if not self.connects_here:
            super().ensure_connecting()
            return
        if self.share is not None:
            self.share.seek_unasked(self)
        with self.lock:
            tickets = self.kernel.grant_places(self.place)
        self.wake(tickets)

    @property
    def is_opened_outside(self) -> bool:
        """Return whether the application's own code opens the connections."""
        return self.plan.is_created_outside

    def rejection(self, exc: Exception, fault: Fault) -> BaseException:
        """Return the driver's own error, a copy for each caller; ours if that tells too little."""
        is_ours = fault.kind in CLIENT_KINDS or hasattr(exc, "is_strangers")
        if isinstance(exc, LoginError) or (is_ours and not self.is_opened_outside):
            return super().rejection(exc, fault)
        try:
            return copy.copy(exc)
        except Exception:  # an exception class that cannot be copied
            return exc

    # -- the end of a connection -------------------------------------------------------------------

    def _hold_weakly(self, entry: Entry) -> None:
        """Do nothing: SQLAlchemy's record holds the connection, and SQLAlchemy detects forgotten
        ones.
        """

    def close_entry(self, entry: Entry) -> None:
        """Make SQLAlchemy close it: its events are called, and :meth:`say_goodbye` from there."""
        assert isinstance(entry, Slot)
        if self.kernel.reclaimed.get(entry.key) is entry:  # its holder keeps the object
            super().close_entry(entry)
            return
        record, dbapi, pool = entry.record, entry.dbapi, self.pool
        if dbapi is None:
            return  # a place, or a note about forgotten connections
        self.abrupt = entry.cause not in _GENTLE
        try:
            if pool is None:
                self.say_goodbye(dbapi, close=True)
            elif record is None or record.dbapi_connection is not dbapi:
                pool._close_connection(dbapi, terminate=True)
            elif entry.cause in _GENTLE:
                record.close()
            else:
                record.invalidate()
        finally:
            self.abrupt = False
            if entry.dbapi is not None:  # an event's listener raised: nothing was closed
                self.say_goodbye(dbapi, close=True)
            if pool is not None and record is not None:
                pool.stash(record)

    def say_goodbye(self, connection: Any, *, close: bool = False) -> None:
        """Stop managing *connection*, which SQLAlchemy is about to close, and count the cause of
        its end. If SQLAlchemy does not close it, *close* it.
        """
        with self.lock:
            entries = self.by_connection.get(id(connection))
            if not entries:
                return
            entry = next(
                (each for each in entries if each.record is not None and each.record.closing),
                entries[-1],
            )
            entries.remove(entry)
            if not entries:
                del self.by_connection[id(connection)]
        if self.kernel.came_back(entry.key) is entry:
            return
        record = entry.record
        self.release(entry)
        with self.lock:
            place = self.place()
            place.vacated = record is not None and record.used >= 0
            place.record, place.code, place.lasti, place.holder = (
                record,
                entry.code,
                entry.lasti,
                entry.holder,
            )
            kept = self.kernel.replace(entry, place)
            self.kernel.forget(entry)
        if record is not None and record.entry is entry:
            record.entry = place if kept else None
        if not close:
            entry.conn = None  # SQLAlchemy closes it
        super().close_entry(entry)
        entry.record = entry.dbapi = None

    def release(self, entry: Slot) -> None:
        """End a use of *entry*, with its unit of work and its deadline."""
        if entry.record is not None and entry.record.loan is not None:
            entry.record.loan.disarm()
            entry.record.loan = None
        if entry.watched:
            self.leave_unit(entry, entry.conn)

    def give_up(self, record: Record, place: Slot) -> None:
        """Return a place without a connection: to the next caller, if callers connect by
        themselves.
        """
        if self.connects_here and place.vacated:
            if self.kernel.is_back(place):
                self.put(place, None)
            return
        with self.lock:
            self.kernel.drop(place)
        record.entry = place.record = None
        pool = self.pool
        if pool is not None:  # otherwise it was collected before its last connection
            pool.stash(record)
        self.ensure_connecting()

    def detach(self, entry: Slot) -> None:
        """Note that its holder took the connection out of the pool; now only a fork affects it."""
        self.release(entry)
        if entry.fd is not None:
            self.sockets.forget(entry.fd)
            self.runtime.watcher.unwatch(entry.fd)
        with self.lock:
            entries = self.by_connection.pop(id(entry.dbapi), [])
            self.kernel.drop(entry)
            self.counters.closed[Cause.DISCARDED.value] += 1
            self.counters.retire(entry)
            if others := [each for each in entries if each is not entry]:
                self.by_connection[id(entry.dbapi)] = others
        with contextlib.suppress(TypeError):
            reclaimed, key = self.kernel.reclaimed, entry.key
            entry.ref = weakref.ref(entry.conn, lambda _: reclaimed.pop(key, None))
            reclaimed[key] = entry
        entry.conn = entry.anchor = entry.dbapi = entry.record = None
        self.ensure_connecting()

    # -- returning ---------------------------------------------------------------------------------

    def is_good(self, entry: Entry, conn: Connection) -> bool:
        """Return whether *conn* may be returned; SQLAlchemy handles open or set state on it."""
        return self.is_in_step(entry, conn)

    # -- forgotten and lost connections ------------------------------------------------------------

    def strays(self) -> list[Entry]:
        """Return the strays, including entries that are noted as in use but that SQLAlchemy has not
        handed out yet or has taken back already.

        A thread's stack shows whether it is using one just now. A task can only use one while it
        sets the connection up.
        """
        lent = [e for e in list(self.in_use.values()) if isinstance(e, Slot) and e.cause is None]
        found = [
            e
            for e in lent
            if e.record is None
            or (e.record.fairy_ref is None and not (self.plan.is_async and e.record.closing))
        ]
        return self.kernel.strays() + found

    def note_forgotten(self, entry: Slot | None) -> None:
        """Note a connection in use to which SQLAlchemy found no reference. Runs in a finalizer: no
        lock, no log.

        In a forked child SQLAlchemy is about to roll back, on the parent's session; this runs just
        before.
        """
        if not self.here[0]:
            self.sever()
        elif entry is not None and self.in_use.get(entry.key) is entry:
            self.report_forgotten(entry)

    def report_forgotten(self, entry: Slot) -> None:
        """Record a forgotten *entry* for the next check of the pool.

        SQLAlchemy takes the connection itself back.
        """
        ghost = Slot(None, entry.born, 0, 0.0)
        ghost.uses, ghost.reported = entry.uses, entry.reported
        ghost.code, ghost.lasti = entry.code, entry.lasti
        self.forgotten.append(ghost)

    def inquire(self, question: Question, until: float) -> Flow[Any]:  # noqa: ARG002 - pool_timeout bounds it
        """Return the server's answer to *question*, on a connection of SQLAlchemy's pool; None if
        it gives none.
        """
        if self.plan.is_blind or text_of(question, self.backend) is None:
            return "" if self.backend == "sqlite" and question is Question.HIDDEN_WRITES else None
        return (yield Attempt(lambda: self._ask(question)))

    def _ask(self, question: Question) -> Any:
        pool = self.pool
        fairy = None if pool is None else pool.connect()
        if fairy is None:
            return None
        try:
            entry = fairy._connection_record.entry
            return (
                None
                if entry is None or entry.conn is None
                else self.run(Loan.of(self, entry, entry.conn).ask(question))
            )
        finally:
            fairy.close()

    # -- numbers and errors ------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the numbers of this moment; ``max_size`` 0: no limit."""
        found = super().stats()
        return found if found.max_size != sys.maxsize else replace(found, max_size=0)

    def classify(self, exc: BaseException) -> Fault:
        """Return the fault that *exc* reports.

        SQLAlchemy's async dialects and its own errors wrap the driver's: the first informative one
        counts.
        """
        link: BaseException | None = exc
        first: Fault | None = None
        connecting = from_connect(exc)
        for _ in range(6):
            if link is None:
                break
            if isinstance(link, ConnectionLostError | CommitUnknownError):
                return Fault(FaultKind.LOST, text=str(link))
            if connecting:
                mark(link)
            fault = self.driver.classify(link)
            if fault.kind is not FaultKind.OTHER:
                return fault
            if first is None or first.code is None:  # an adapter's wrapper has none
                first = fault
            link = getattr(link, "orig", None) or link.__cause__
        return first or Fault(FaultKind.OTHER)

    def error(self, kind: type[E], message: str, **attributes: Any) -> E:
        """Return one of our errors that is the DBAPI's OperationalError too, so that SQLAlchemy
        wraps it as such.
        """
        error = for_driver(kind, self.plan.foreign, message, **attributes)
        testify(error)
        return error
