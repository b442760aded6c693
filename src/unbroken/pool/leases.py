"""A connection between its acquire and its return."""

from __future__ import annotations

import weakref
from typing import Any

from unbroken.abc import Cause, Connection
from unbroken.brain.entry import Entry
from unbroken.ledger.residue import Left, Trace, followed
from unbroken.ledger.scope import current, heard_by
from unbroken.ledger.unit import Unit
from unbroken.net import liveness
from unbroken.pool.endings import THEIR_DOING, Endings
from unbroken.pool.poolers import uses_session

#: A connection that was opened or used within this many seconds was alive a moment ago.
JUST_USED = 5.0
#: Causes on the other side that do not exclude that the statement itself ended the connection.
UNEXPLAINED = THEIR_DOING - {
    Cause.IDLE_LIMIT,
    Cause.TRANSACTION_LIMIT,
    Cause.SHUTDOWN,
    Cause.CRASHED,
    Cause.FAILOVER,
    Cause.CANNOT_SERVE,
}
#: … and those that mean that the holder sent nothing to the server for too long.
PAUSED = frozenset({Cause.IDLE_LIMIT, Cause.TRANSACTION_LIMIT})


class Leases(Endings):
    """Acquire, record statements, take back, grant."""

    def lend(self, loan: Any, entry: Entry, frame: Any, now: float, holder: int) -> None:
        """Record the new owner of *entry* in *loan* and in the kernel. (The pools have this
        inline.)
        """
        entry.code, entry.lasti = frame.f_code, frame.f_lasti if loan.in_block else ~frame.f_lasti
        entry.holder = holder
        entry.taken_at = now
        entry.uses += 1
        loan.state, loan.entry, loan.begun = self, entry, None
        loan.conn = entry.conn
        self.kernel.lend(entry)
        entry.conn = entry.anchor

    def arm(self, entry: Entry, until: float) -> Any:
        """End this use of *entry* at *until*, if it is not over by then. Return the timer."""
        uses, this = entry.uses, weakref.ref(self)

        def end() -> None:
            state = this()
            if state is not None:
                state.abort(entry, uses, Cause.DEADLINE)

        return self.runtime.watcher.at(until, end)

    def take_back(self, entry: Entry, conn: Connection, healthy: bool) -> None:
        """A lease is over. *healthy*: its connection can be used again."""
        kernel = self.kernel
        if kernel.is_back(entry):
            self.give_back(entry, conn, healthy)
        elif kernel.came_back(entry.key) is entry:
            self.driver.close(conn)

    def give_back(self, entry: Entry, conn: Connection, healthy: bool) -> None:
        """An entry that the caller has just taken out of ``in_use`` becomes idle, or ends."""
        entry.conn = conn
        kernel = self.kernel
        with self.lock:
            welcome = entry.generation == kernel.generation and not kernel.closed
        if healthy and welcome:
            self.put(entry, conn)
            return
        if entry.cause is None:
            entry.condemn(*self._why_not(entry, healthy))
        lost = entry.cause in THEIR_DOING
        self.discard(entry, entry.cause or Cause.DISCARDED)
        if lost:
            self.sweep()

    def _why_not(self, entry: Entry, healthy: bool) -> tuple[Cause, str]:
        if not healthy:
            is_dead = liveness.judge(entry.poll(0)) is liveness.Liveness.DEAD
            return self.explain(entry, in_use=True) if is_dead else (Cause.RESET_FAILED, "")
        if self.kernel.closed:
            return Cause.POOL_CLOSED, ""
        return Cause.DRAINED, ""

    def put(self, entry: Entry, conn: Connection, used: float | None = None) -> None:
        """Make a healthy entry that the caller owns idle. (The pools have this inline.) *used*:
        when it was last used; None: now.
        """
        entry.conn = conn
        entry.last_used = self.clock() if used is None else used
        self.kernel.put(entry)
        self.dispatch()

    def left_early(self, entry: Entry) -> None:
        """The caller that has *entry* was cancelled. If it had waited for longer than it has used
        the entry, this counts as leaving the line.
        """
        use, since = entry.queued
        now = self.clock()
        if use == entry.uses and entry.taken_at - since > now - entry.taken_at:
            with self.lock:
                self.line.left(now, now - since, self.kernel.bound)

    def dispatch(self) -> None:
        """After an entry became idle: grant it to a waiting caller, and close entries that must
        leave.
        """
        with self.lock:
            tickets, stale = self.kernel.serve(self.clock())
        self.wake(tickets)
        for entry in stale:
            self.close_entry(entry)
        self.ensure_connecting()

    # -- units of work -----------------------------------------------------------------------------

    def join(self, unit: Unit, entry: Entry, conn: Connection) -> None:
        """*unit* takes *conn*: it records the statements on it until :meth:`leave_unit`."""
        reason = self.driver.blindness
        if reason is None and not self.driver.capabilities.watchable:
            reason = f"the driver {self.driver.name} does not report its statements"
        if reason is not None:
            unit.doubt(reason)
            return
        # The event that ended the first attempt's connection may have ended another at the same
        # time.
        older = unit.attempts == 2 and entry.uses > 1
        just_used = self.clock() - entry.last_used < JUST_USED
        unit.join(id(conn), self, entry, fresh=just_used and not older, older=older)
        entry.joins += not unit.observing
        unit.ask(self.meaning)
        self.driver.watch(conn)
        entry.watched = True
        entry.joined = (entry.count(), unit.reports(id(conn)))
        if self.server.pooler.stands:
            followed.setdefault(id(conn), Trace(self.driver.target.backend))

    def follow(self, unit: Unit | None, entry: Entry, conn: Connection) -> None:
        """Like :meth:`join`, and also record what statements leave on the session.

        Without a *unit*, only the residue is recorded.
        """
        followed.pop(id(conn), None)
        self.join(Unit(observing=True) if unit is None else unit, entry, conn)
        if entry.watched:
            followed[id(conn)] = Trace(self.driver.target.backend)

    def left(self, entry: Entry, conn: Connection) -> frozenset[Left]:
        """The residue that may be on the session since :meth:`follow`.

        Everything, if some statements were not recorded.
        """
        trace, unit = followed.get(id(conn)), heard_by(id(conn))
        if trace is None or unit is None or self._was_unseen(unit, entry, conn):
            return frozenset({Left.UNSEEN})
        return trace.left

    def leave_unit(self, entry: Entry, conn: Connection) -> None:
        """Undo :meth:`join`: no transaction is open on *conn* any more, or it is about to be
        closed.
        """
        trace = followed.pop(id(conn), None)
        if trace is not None:
            uses_session(self, trace.left)
        if entry.watched:
            entry.watched = False
            self.driver.unwatch(conn)
            unit = current(id(conn))
            if unit is not None:
                if unit.has(id(conn)) and self._was_unseen(unit, entry, conn):
                    unit.doubt(
                        "data was sent on a connection, but its driver reported no statement",
                        conn_id=id(conn),
                    )
                clean = self.settings.reset is not None or entry.cause is not None
                unit.ended(
                    conn_id=id(conn),
                    clean=clean,
                    lost=entry.cause in UNEXPLAINED,
                    paused=entry.cause in PAUSED,
                )

    def _was_unseen(self, unit: Unit, entry: Entry, conn: Connection) -> bool:
        """Whether bytes may have been sent on *conn* since it joined *unit*, without any report.

        A closed socket gives no count. An event loop closes one by itself when the server hangs up;
        a blocking driver only after it tried to send or to read.
        """
        before, reports = entry.joined
        if before is None or unit.reports(id(conn)) != reports:
            return False
        sent = entry.count()
        return sent != before if sent is not None else not self.driver.is_async
