"""A connection that one of Django's wrappers holds. It is checked between statements, and returned
clean.
"""

from __future__ import annotations

import math
import threading
import weakref
from time import monotonic
from typing import Any

from unbroken.brain.health import Need
from unbroken.integrations.django.pools import Source
from unbroken.ledger.heal import Past
from unbroken.ledger.residue import DOUBTFUL, NOTHING, Left
from unbroken.ledger.scope import current, current_token, heard_by
from unbroken.net.ending import is_finalizing
from unbroken.pool.holder import outside
from unbroken.pool.kept import Kept
from unbroken.pool.steps import run

#: Seconds. A connection that is used for longer than this outside transactions is made available
#: again between two statements: to waiting callers, and to retirement.
TURN = 1.0


#: Seconds. A thread that has been at rest for less than that is about to go on.
REST = 0.005
#: Leftovers on a session that its holder does not rely on. After a use past Django's cursors, other
#: code may still have the driver's connection.
NOT_COUNTED_ON = DOUBTFUL - {Left.UNSEEN}

#: Frames of these packages did not take a connection for their own use.
_BETWEEN = frozenset({"django", "unbroken", "contextlib"})


class Held(Kept):
    """One connection, from acquiring to returning it."""

    remedy = "mark its function with @unbroken.django.replayable"

    __slots__ = (
        "_rested_at",
        "_wrapper",
        "cursors",
        "is_resting",
        "leaves",
        "left_before",
        "left_behind",
        "lost",
        "past",
        "pool",
        "seen_by",
        "source",
        "taken_at",
        "until",
        "used_at",
    )  # fmt: skip

    def __init__(self, source: Source, wrapper: Any) -> None:
        """Acquire a connection. Raises the errors of an acquire."""
        self.source = source
        self._wrapper = weakref.ref(wrapper)
        self._rested_at, self.is_resting = 0.0, False
        self.pool = source.pool
        conn = self.pool.acquire()
        loan: Any = self.pool.loan_of(conn)
        self.state, self.entry, self.conn, self.begun = loan.state, loan.entry, conn, None
        self._mark_place()
        self.taken_at = self.used_at = self.entry.taken_at
        self.left_behind = NOTHING  #: leftovers that the next user must not find
        self.leaves = NOTHING  #: possible leftovers of the statement that is sent now
        self.left_before = NOTHING  #: leftovers from before that
        self.cursors: list[Any] = []  #: weak references to those that may be open
        self.lost = False  #: an error reported that it is lost
        unit = current() if current_token() is not None else None
        self.seen_by = None if unit is None else (unit, unit.attempts)
        #: the statements sent on it; None: nothing is run again
        heals = self.pool.settings.heal and self.state.knows_status
        self.past: Past | None = Past() if heals else None
        deadline = self.pool.settings.deadline
        self.until = math.inf if deadline is None else self.taken_at + deadline
        self.arm(self.until)
        self.keep()

    def _mark_place(self) -> None:
        """Record the line that is named if it leaks: the first outside Django and this library."""
        frame = outside(_BETWEEN)
        self.entry.taken_at_call(frame.f_code, frame.f_lasti)

    def resume(self, other: Held) -> None:
        """Replace *other*, whose holder and deadline stay."""
        self.disarm()
        self.until = other.until
        self.arm(self.until)
        self.entry.code, self.entry.lasti = other.entry.code, other.entry.lasti

    def sends(self, leaves: frozenset[Left]) -> None:
        """Note a statement that is about to be sent, with its possible leftovers."""
        self.left_before, self.leaves = self.left_behind, leaves
        if leaves:
            self.left_behind |= leaves

    # -- while it is held --------------------------------------------------------------------------

    def opened(self, cursor: Any) -> None:
        """Note a new cursor."""
        self.cursors.append(weakref.ref(cursor))
        if len(self.cursors) > 16:
            self.cursors = [ref for ref in self.cursors if is_open(ref())]

    @property
    def is_inherited(self) -> bool:
        """Return whether this process is a child of the one that acquired it."""
        return not self.state.here[0]

    @property
    def is_tied(self) -> bool:
        """Return whether state of the session, or a cursor, is still needed, so that another
        connection would not do.
        """
        return not self.left_behind <= DOUBTFUL or any(is_open(ref()) for ref in self.cursors)

    def must_go(self) -> bool:
        """Return, between two statements and outside any transaction, whether another connection
        must replace this one.
        """
        if self.is_dead:
            # a lock or a temporary table would be lost with it: an error must report that
            return self.left_behind <= DOUBTFUL or self.lost
        if (
            current_token() is not None
            and (unit := current()) is not None
            and self.seen_by != (unit, unit.attempts)
        ):
            if not self.is_tied:
                return True  # so that the unit sees the statements
            unit.forbid(
                "the unit of work used a connection that was taken before it began",
                conn_id=id(self.conn),
            )
            self.seen_by = (unit, unit.attempts)
        now = monotonic()
        idle_since, self.used_at = self.used_at, now
        return now - self.taken_at >= TURN and self._turn(now, idle_since)

    def _turn(self, now: float, idle_since: float) -> bool:
        state, entry = self.state, self.entry
        entry.last_used = idle_since
        need = state.policy.need(entry, now)
        if need is Need.PING and not run(self.answers(idle_since), state.runtime.do):
            return True
        if not self.is_tied and (
            need is Need.RETIRE or state.waiting or entry.generation != state.kernel.generation
        ):
            return True
        self.taken_at = entry.taken_at = now
        return False

    # -- at rest -----------------------------------------------------------------------------------
    #
    # Between two uses the holder's thread is at rest. Then a thread that waits may take the
    # connection from it. The lock decides: the holder works again with the lock, and finds either
    # its connection or none. A caller that begins the end of this use, holder or waiter, gives the
    # connection back; the other one leaves it alone.

    def rest(self) -> None:
        """Note that the holder's thread has finished with the connection for now: a cursor was
        closed, a transaction ended.
        """
        self._rested_at, self.is_resting = monotonic(), True

    def work(self) -> None:
        """Note that the holder's thread is about to use the connection, if it still has it."""
        with self._lock:
            self.is_resting = False

    def give_back_from(self, wrapper: Any) -> None:
        """Return the connection for *wrapper*, which keeps a reference until it is back."""
        if self.is_inherited:
            self.put_back()  # a lock that another thread held at the fork is held for ever
        else:
            self.end_once(self.put_back)
        if wrapper._leaving is self and (self.is_inherited or self.is_over):
            wrapper._leaving = None

    def yield_to_waiter(self) -> bool:
        """Return the connection in place of its holder, if the holder does not need this one.

        Any thread may call it.
        """
        if super().yield_to_waiter():
            return True
        if not self.is_resting or monotonic() - self._rested_at < REST:
            return False
        return self.end_once(self.put_back, self._let_go)

    def _let_go(self) -> bool:
        """With the lock: detach the connection from the holder's wrapper, if the wrapper can do
        without it.
        """
        wrapper = self._wrapper()
        if self._giver is not None or wrapper is None or not self._is_spare(wrapper):
            return False
        wrapper.unbroken_let_go(self)
        return True

    def _is_spare(self, wrapper: Any) -> bool:
        """Return whether the holder, at rest, would notice no difference between this connection
        and another one.
        """
        return bool(
            self.is_resting
            and wrapper.autocommit
            and not wrapper._connecting
            and not wrapper.allow_thread_sharing
            and not wrapper.in_atomic_block
            and not self.is_inherited
            and self.left_behind <= NOT_COUNTED_ON
            and not any(is_open(ref()) for ref in self.cursors)
            and not (self.entry.watched and heard_by(id(self.conn)) is not None)
            and not self.is_dead
            and self.state.is_in_step(self.entry, self.conn)
            and self.state.is_settled(self.entry, self.conn)
        )

    # -- the end -----------------------------------------------------------------------------------

    def put_back(self) -> None:
        """Return it to the pool, as it was opened; or, if that is impossible, close it."""
        self.disarm()
        if self.is_inherited:
            self.state.sever()
            return
        if self.is_dead:
            self.drop()
            return
        for ref in self.cursors:
            cursor = ref()
            if is_open(cursor):
                self._close(cursor)
        self.cursors.clear()
        state, entry = self.state, self.entry
        if (
            not self.left_behind
            and not entry.watched
            and state.is_clean(self.conn, entry.traits)
            and state.in_use.get(entry.key) is entry
        ):
            self.pool.release(self.conn)  # nothing is due
            return
        try:
            run(self.reset(), self.state.runtime.do)
        finally:
            self.give_back()

    def find_left(self) -> frozenset[Left]:
        """Return the leftovers that Django's cursors noted."""
        return self.left_behind

    def _close(self, cursor: Any) -> None:
        """Close a cursor, because code that keeps it longer must not reach the connection's next
        user through it.
        """
        try:
            cursor.close()  # one round trip if it is on the server
        except Exception:
            self.left_behind |= {Left.ENDLESS}
            return
        if getattr(cursor, "name", None):
            self.left_behind |= {Left.CURSOR}


def is_open(cursor: Any) -> bool:
    """Return whether *cursor* was not closed."""
    if cursor is None:
        return False
    closed = getattr(cursor, "closed", None)
    if closed is None:  # the MySQL drivers' cursors drop their connection
        return getattr(cursor, "connection", None) is not None
    return not closed


class _Thread:
    """An object that lives as long as its thread or greenlet. Its end returns the connections that
    its wrappers still hold.
    """

    def __init__(self) -> None:
        self.wrappers: list[weakref.ref[Any]] = []

    def __del__(self) -> None:
        if is_finalizing():
            return  # the thread stands still, perhaps inside a check of its connection
        for ref in self.wrappers:
            wrapper = ref()
            if wrapper is not None and not wrapper.allow_thread_sharing:
                wrapper.unbroken_abandon()


_here = threading.local()


def with_this_thread(wrapper: Any) -> None:
    """Return the connection of *wrapper* when this thread ends, even if it was not closed."""
    thread = getattr(_here, "thread", None)
    if thread is None:
        thread = _here.thread = _Thread()
    thread.wrappers = [ref for ref in thread.wrappers if ref() is not None]
    thread.wrappers.append(weakref.ref(wrapper))
