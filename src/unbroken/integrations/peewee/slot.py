"""One thread's (or greenlet's) part of a database: peewee's connection state, and the reasons to
keep the connection.

A connection is kept by an explicit ``connect()`` (``held``), by a transaction (``begun``,
``transactions``, ``open``), by results that are not read to the end (``readers``) and by a running
call (``pins``). When none of them is left, it is returned. A result may be collected on any thread.
So the last two are changed under ``lock``, inside which nothing waits.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import weakref
from types import CodeType
from typing import Any, TypeAlias

import peewee

from unbroken.abc import Fault
from unbroken.brain.entry import Place
from unbroken.integrations._ended import is_left
from unbroken.ledger.heal import Past
from unbroken.pool.heal import Before
from unbroken.pool.holder import outside
from unbroken.pool.kept import Kept
from unbroken.pool.steps import run
from unbroken.sync import Pool

Where: TypeAlias = tuple[CodeType, int]

#: Frames of these packages did not take a connection for their own use.
_BETWEEN = frozenset({"peewee", "playhouse", "unbroken"})


class Taken(Kept):
    """A slot's connection and other state from a pool."""

    remedy = "mark its function with @db.unit or @db.atomic()"

    __slots__ = ("past", "pool", "until")

    pool: Pool
    past: Past | None  #: the statements sent on it; None: nothing is run again
    until: float  #: when this use is ended

    def resume(self, other: Taken) -> None:
        """Replace *other*, whose deadline stays."""
        self.disarm()
        self.until = min(self.until, other.until)
        self.arm(self.until)

    def put_back(self) -> None:
        """Return it to the pool; or, if that is impossible, close it."""
        self.disarm()
        entry, state = self.entry, self.state
        if state.in_use.get(entry.key) is entry or state.kernel.reclaimed.get(entry.key) is entry:
            self.pool.release(self.conn)
            return
        try:
            run(self.reset(), state.runtime.do)
        finally:
            self.give_back()


class Slot:
    """peewee's ``_ConnectionState`` (with peewee's names: closed, conn, ctx, transactions,
    commit_callbacks) with additions.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.pins: weakref.WeakSet[Pin] = weakref.WeakSet()
        self.readers: dict[int, Any] = {}  #: weak references to results that are being read
        self.opening = (
            False  #: a BEGIN is about to be sent: opening a connection for it is no accident
        )
        self.sql: str | None = None  #: the next statement, for error messages
        self.opened: Where | None = None  #: where the last connection was acquired …
        self.left: Where | None = None  #: … and returned (strict mode)
        self.leaving: Taken | None = None  #: on its way back to the pool
        #: the known state of the open transaction, which gets no connection any more
        self.lost: str | None = None
        #: the connection on which the statement under way was reported …
        self.told: Taken | None = None
        self.was_dead = Before.WELL  #: … and whether it was known to be lost
        #: the driver's last error, and its fault
        self.met: tuple[BaseException, Fault] | None = None
        #: the pool, the entry and the log's fields for lost work, if the statement is not sent
        #: again
        self.undone: tuple[Any, Any, Any] | None = None
        self.begin_with: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.until = math.inf  #: when the unit of work that this thread is in must be over
        self.reset()

    def reset(self) -> None:
        """Clear all state."""
        self.ctx: list[Any] = []
        self.transactions: list[Any] = []
        self.commit_callbacks: list[Any] = []
        self.by_hand: list[
            Any
        ] = []  #: transactions that no ``with`` ends: kept, so that they do not count as left
        self.entered: dict[
            int, int
        ] = {}  #: by the id of a context of ``with db:``, the id of the frame that runs the block
        self.held = self.opening = False
        self.lost = None
        self.orphan = False  #: a forked child inside its parent's transaction
        self.drop()

    def drop(self) -> None:
        """Drop the connection; the scope stays."""
        self.closed = True
        self.conn: Any = None
        self.loan: Taken | None = None  #: the pool's record of it
        self.begun = False  #: db.begin() was called, and neither commit nor rollback since
        #: a BEGIN, COMMIT or ROLLBACK is under way, or was interrupted: the transaction's state is
        #: not known
        self.ending = False
        #: the driver reported after the last statement that a transaction is open
        self.open = False
        self.clean = True  #: … or that certainly none is
        self.raw = False  #: the caller has the connection itself, or a cursor of it
        self.last_used = 0.0
        self.readers.clear()

    def set_connection(self, conn: Any) -> None:
        """Do the same as peewee."""
        self.reset()
        self.conn = conn
        self.closed = False

    @property
    def is_bound(self) -> bool:
        """Return whether a transaction or an explicit connect holds the connection."""
        return self.held or self.begun or self.open or bool(self.transactions)

    def is_left(self) -> bool:
        """Return whether no code runs in the outermost transaction any more, because an exception
        interrupted its exit.
        """
        transactions = self.transactions
        if not transactions:
            return False
        within = next(
            (ctx for ctx in self.ctx if getattr(ctx, "_helper", None) is transactions[0]), None
        )
        if within is None:
            return is_left(transactions, (peewee._atomic, "_helper"))
        where = self.entered.get(id(within))
        return where is not None and not _runs(where)

    @property
    def is_free(self) -> bool:
        """Return whether there is no reason left to keep the connection."""
        return not (self.closed or self.pins or self.readers or self.is_bound)

    def inherited(self) -> None:
        """Mark the connection as the parent's, in a forked child.

        An open transaction's scope stays, so that it is refused.
        """
        transactions, ctx = self.transactions, self.ctx
        self.lock = threading.RLock()
        self.pins = weakref.WeakSet()
        self.reset()
        self.transactions, self.ctx = transactions, ctx
        self.orphan = bool(transactions)


def _runs(number: int) -> bool:
    """Return whether the frame with that id is on this thread's stack."""
    frame: Any = sys._getframe()
    while frame is not None:
        if id(frame) == number:
            return True
        frame = frame.f_back
    return False


class Pin:
    """Keeps a slot's connection there while a call runs, in any way that the call ends.

    The slot refers to it weakly. If an exception (of a signal handler, say) strikes before the call
    can take its pin out, the pin goes with the call's frame. The connection is then returned if
    nothing else keeps it.
    """

    __slots__ = ("__weakref__", "_database", "_slot")

    def __init__(self, database: Any, slot: Slot) -> None:
        self._database, self._slot = database, slot
        with slot.lock:
            slot.pins.add(self)

    def take_out(self) -> None:
        """Note that the call does not need the connection any more."""
        slot, self._slot = self._slot, None  # type: ignore[assignment] # it is over
        with slot.lock:
            slot.pins.discard(self)

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)  # an exception may have struck while it was made
        if slot is not None and not slot.is_bound and not sys.is_finalizing():
            with contextlib.suppress(Exception):
                self._database._settle(slot)


class PerThread(threading.local):
    """One slot for each thread or greenlet."""

    def __init__(self) -> None:
        self.slot = Slot()


class Shared:
    """One slot for all (``thread_safe=False``)."""

    def __init__(self) -> None:
        self.slot = Slot()


def caller() -> Where:
    """Return the nearest place outside of peewee, playhouse and this package: 0.1 µs a frame."""
    frame = outside(_BETWEEN)
    return frame.f_code, frame.f_lasti


def place(where: Where) -> Place:
    """Return a place in readable form."""
    return Place.of(*where)


def refusal(sql: Any, opened: Where | None, left: Where | None) -> str:
    """Return the text of strict mode's refusal: the statement (None: a cursor), its place, and
    where the last scope was *opened* and *left*.
    """
    what = "a cursor" if sql is None else " ".join(str(sql).split())[:300]
    text = f"strict mode refused {what} at {place(caller())}, because no scope was open"
    if opened is not None and left is not None:
        text += (
            f"; the last scope of this thread was opened at {place(opened)} and left at"
            f" {place(left)}"
        )
    return (
        f"{text}; run it inside db.connection_context(), or let @db.unit read the whole result"
        " before the connection is released"
    )
