"""What one process (and event loop) knows of one SQLAlchemy pool: the pools' State, with SQLAlchemy's records in its hands.

SQLAlchemy's own pool says who has a connection and who waits. The kernel's questions (which are idle? is this one lent?) are
answered by :class:`Slots` from there, so the same flows look after these connections as after a ``Pool``'s: upkeep, leaks,
the watcher, a look at all when one dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import await_only

from unbroken.abc import AsyncDriver, Cause, Connection, Driver, Fault, FaultKind
from unbroken.core.entry import Entry
from unbroken.core.kernel import Kernel
from unbroken.core.questions import Question, text_of
from unbroken.core.stats import Counters
from unbroken.core.unit import testify
from unbroken.drivers._shared import from_connect, mark
from unbroken.errors import CommitUnknownError, ConnectionLostError, E, for_driver
from unbroken.flows.loan import Loan
from unbroken.flows.state import AT_THE_LIMIT, State
from unbroken.flows.steps import Attempt, Connect, Flow, run
from unbroken.flows.upkeep import schedule
from unbroken.integrations.sqlalchemy.plan import Plan
from unbroken.integrations.sqlalchemy.queue import Collector
from unbroken.loops import LoopShell
from unbroken.net.severance import fork_mark
from unbroken.threads import ThreadShell

#: Places for connections where SQLAlchemy's pool has no bound.
UNBOUNDED = 1_000_000
#: What a record points to while it has no connection. Never changed, never lent.
VACANT = Entry(None, float("-inf"), -1, float("-inf"))
VACANT.key = -1


class Slots(Kernel):
    """The kernel's view of SQLAlchemy's pool. It grants nothing: SQLAlchemy does."""

    def __init__(self, body: Body) -> None:
        self._body = weakref.ref(body)
        self.lent: dict[int, Entry] = {}
        self.returning: dict[int, Entry] = {}
        self.exiled: dict[int, Entry] = {}
        self.entries: dict[int, Entry] = {}
        self.min_size = self.generation = self.opening = self.silent = 0
        self.closed = False

    @property
    def _pool(self) -> Any:
        body = self._body()
        return None if body is None else body.pool

    @property
    def idle(self) -> Any:  # type: ignore[override] # made anew from SQLAlchemy's queue at each question
        """The connections of the records that are in SQLAlchemy's queue."""
        pool = self._pool
        return deque(r.entry for r in pool.queued() if r.entry is not VACANT) if pool is not None else deque()

    @property
    def waiting(self) -> Any:  # type: ignore[override]
        """Who waits for SQLAlchemy's queue, and who waits to connect. Only the number means something."""
        pool, body = self._pool, self._body()
        return range((0 if pool is None else pool.waiting()) + (0 if body is None else len(body.line)))

    @property
    def max_size(self) -> int:  # type: ignore[override]
        """pool_size and max_overflow together; 0 where they are without bound."""
        pool = self._pool
        return 0 if pool is None or pool._max_overflow < 0 else pool._pool.maxsize + pool._max_overflow

    def exile(self, entry: Entry) -> bool:
        """Give a lent *entry*'s place to another. False: it is closed when it comes back, by then with its own record."""
        pool = self._pool
        if pool is not None:
            pool.exile(entry)
        return False

    def claim(self, entry: Entry) -> bool:
        """Take *entry*'s record out of the queue."""
        body = self._body()
        return body is not None and body.claim(entry)

    @property
    def wanted(self) -> int:
        """None: SQLAlchemy's pool is lazy."""
        return 0

    def strays(self) -> list[Entry]:
        """None: what SQLAlchemy has in its hands is not ours to judge."""
        return []


class Body(State):
    """One pool of SQLAlchemy's in one process, for an async engine on one event loop. Made anew after a fork."""

    def __init__(self, pool: Any, plan: Plan, shell: Any, connector: Callable[[Any], Flow[None]], counters: Counters | None) -> None:
        super().__init__(plan.driver, plan.settings, shell, plan.name, plan.emit, _mark_of(shell), connector)
        self._pool = weakref.ref(pool)
        self.plan = plan
        self.kernel = Slots(self)
        self.lent, self.counters = self.kernel.lent, counters or self.counters
        self.by_connection: dict[int, Entry] = {}  #: by id of what SQLAlchemy calls the DBAPI connection
        self.records: dict[int, Any] = {}  #: by an entry's key
        self.claimed: set[int] = set()  #: keys of entries whose records were taken out of the queue
        self.line: deque[Any] = deque()  #: who waits to connect: see gate.py
        self.timers: dict[int, Any] = {}  #: by an entry's key: ends a use that has a deadline
        self.collector = Collector()
        self.last_failure: Exception | None = None  #: of an attempt to connect
        self.connect_limit = plan.connect_limit + AT_THE_LIMIT
        self.bounded = self.settings.deadline is not None
        self.is_quiet = plan.driver.is_quiet

    @property
    def pool(self) -> Any:
        """SQLAlchemy's pool, as long as somebody uses it."""
        return self._pool()

    def run(self, flow: Flow[Any]) -> Any:
        """Run *flow* for a caller of SQLAlchemy's: on this thread, or inside SQLAlchemy's greenlet."""
        return run(flow, self.shell.do_here)  # type: ignore[attr-defined] # both shells below have it

    # -- birth and death -----------------------------------------------------------------------------------------

    def welcome(self, record: Any, connection: Any, raw: Connection) -> Entry:
        """A new connection: *connection* is what SQLAlchemy knows, *raw* the driver's own object (None: it cannot be told)."""
        if raw is None:
            entry = Entry(None, self.clock(), 0, float("inf"))
            entry.key = id(connection)
        else:
            entry = self.adopt(raw)
        with self.lock:
            self.kernel.entries[entry.key] = entry
            self.by_connection[id(connection)] = entry
            self.records[entry.key] = record
        record.entry, record.home = entry, self
        schedule(self)
        self.emit("opened", {"pool": self.name, "session": entry.session})
        return entry

    def _hold_weakly(self, entry: Entry) -> None:
        """Not here: SQLAlchemy's record holds the connection, and SQLAlchemy finds out who forgot it."""

    def bid_farewell(self, connection: Any) -> None:
        """SQLAlchemy is about to close *connection*: look after it no more, count why it ended."""
        entry = self.by_connection.pop(id(connection), None)
        if entry is None:
            return
        self.kernel.exiled.pop(entry.key, None)
        record = self.records.pop(entry.key, None)
        if record is not None and record.entry is entry:
            record.entry = VACANT
        with self.lock:
            self.kernel.forget(entry)
        self.lent.pop(entry.key, None)
        self.release(entry)
        entry.conn = None  # SQLAlchemy closes it
        super().finish_off(entry)

    def release(self, entry: Entry) -> None:
        """A use of *entry* is over: its unit of work and its deadline with it."""
        if entry.watched:
            self.part(entry, entry.conn)
        if self.timers and (timer := self.timers.pop(entry.key, None)) is not None:
            timer.cancel()

    def detach(self, entry: Entry) -> None:
        """Its holder took the connection out of the pool for good; only a fork still concerns us."""
        self.release(entry)
        if entry.fd is not None:
            self.sockets.forget(entry.fd)
            self.shell.watcher.unwatch(entry.fd)
        record = self.records.pop(entry.key, None)
        if record is not None:
            record.entry = VACANT
        with self.lock:
            self.kernel.forget(entry)
            self.counters.closed[Cause.DISCARDED.value] += 1
            self.counters.retired_uses += entry.uses
        with contextlib.suppress(TypeError):
            exiled, key = self.kernel.exiled, entry.key
            entry.ref = weakref.ref(entry.conn, lambda _: exiled.pop(key, None))
            exiled[key] = entry
        entry.conn = entry.anchor = None

    def bury(self, entry: Entry, cause: Cause, words: str = "") -> None:
        """End an entry that the caller owns; its record stays, without a connection."""
        entry.condemn(cause, words)
        self.finish_off(entry)

    def finish_off(self, entry: Entry) -> None:
        """Have SQLAlchemy close it: its events are called, and :meth:`bid_farewell` from there."""
        record = self.records.get(entry.key)
        if record is None or record.entry is not entry:
            return
        try:
            record.invalidate()
        finally:
            self.hand_back(entry, record)

    def claim(self, entry: Entry) -> bool:
        """Take the record of an idle *entry* out of SQLAlchemy's queue. False: somebody has it."""
        record, pool = self.records.get(entry.key), self.pool
        if record is None or pool is None or not pool.take_out(record):
            return False
        self.claimed.add(entry.key)
        return True

    def hand_back(self, entry: Entry, record: Any) -> None:
        """The opposite of :meth:`claim`: a record without a connection goes where it is used last."""
        if entry.key in self.claimed:
            self.claimed.discard(entry.key)
            pool = self.pool
            if pool is not None:
                pool.put_in(record)

    def put(self, entry: Entry, conn: Connection) -> None:  # noqa: ARG002 - as State has it
        """An idle entry that was claimed is well: it goes back."""
        record = self.records.get(entry.key)
        if record is not None:
            self.hand_back(entry, record)

    # -- what callers forgot -------------------------------------------------------------------------------------

    def note_forgotten(self, entry: Entry) -> None:
        """SQLAlchemy found out that nobody refers to a connection that is lent. In a finalizer: no lock, no log.

        In a forked child it is about to roll back, on the parent's session; this runs just before.
        """
        if not self.mark[0]:
            self.sever()
        elif self.lent.pop(entry.key, None) is entry:
            self.report_forgotten(entry)

    def report_forgotten(self, entry: Entry) -> None:
        """Leave word of a forgotten *entry* for the next look through the pool. SQLAlchemy takes the connection itself back."""
        ghost = Entry(None, entry.born, 0, 0.0)
        ghost.key, ghost.uses, ghost.reported = id(ghost), entry.uses, entry.reported
        ghost.code, ghost.lasti = entry.code, entry.lasti
        self.forgotten.append(ghost)

    # -- connecting ----------------------------------------------------------------------------------------------

    @property
    def wants(self) -> int:
        """For how many in line no connection is coming. SQLAlchemy's pool is lazy: nothing is opened for nobody.

        SQLAlchemy has given each caller in line a place, so one attempt for each needs no other. Only what begins beside a
        silent attempt needs a place of its own.
        """
        if not self.line:
            return 0
        self.kernel.silent = self.server.outage.silent(self, self.clock()) if self.tries else 0
        return max(0, len(self.line) - len(self.tries), min(self.unserved, self.places))

    @property
    def unserved(self) -> int:
        """For how many in line no connection is coming."""
        return len(self.line) - (len(self.tries) - self.kernel.silent)

    @property
    def places(self) -> int:
        """How many more connections there may be."""
        most = self.kernel.max_size
        return most - self.kernel.size if most else UNBOUNDED

    def inquire(self, question: Question, until: float) -> Flow[Any]:  # noqa: ARG002 - pool_timeout bounds it
        """What the server answers to *question*, on a connection of SQLAlchemy's pool; None where it does not."""
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
            return None if entry.conn is None else self.run(Loan.of(self, entry, entry.conn).ask(question))
        finally:
            fairy.close()

    # -- words ---------------------------------------------------------------------------------------------------

    def classify(self, exc: BaseException) -> Fault:
        """What *exc* means. SQLAlchemy's async dialects and its own errors wrap the driver's: the first that says something counts."""
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
            first = first or fault
            link = getattr(link, "orig", None) or link.__cause__
        return first or Fault(FaultKind.OTHER)

    def error(self, kind: type[E], message: str, **attributes: Any) -> E:
        """One of our errors that is the DBAPI's OperationalError too, so that SQLAlchemy wraps it as such."""
        error = for_driver(kind, self.plan.foreign, message, **attributes)
        testify(error)
        return error


class LoopMark:
    """``mark[0]`` is 1 in the process that made it, and as long as the event loop is not closed."""

    __slots__ = ("_fork", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._fork, self._loop = fork_mark(), loop

    def __getitem__(self, _index: int, /) -> int:
        return self._fork[0] and not self._loop.is_closed()


def _mark_of(shell: Any) -> Any:
    return LoopMark(shell.loop) if isinstance(shell, GreenletShell) else fork_mark()


class SyncShell(ThreadShell):
    """Blocking engines. Locks are reentrant: SQLAlchemy gives connections back in finalizers, which run anywhere."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)

    def new_lock(self) -> AbstractContextManager[Any]:
        """See the class."""
        return threading.RLock()

    def do_here(self, step: Any) -> Any:
        """A caller's step: workers' are done the same way."""
        return self.do(step)


class GreenletShell(LoopShell):
    """Async engines. Workers are tasks; callers are in SQLAlchemy's greenlets, and wait through them."""

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(driver, loop)

    async def do(self, step: Any) -> Any:
        """A worker's step. What it attempts is SQLAlchemy's code, which needs a greenlet."""
        return await (greenlet_spawn(step.work) if type(step) is Attempt else super().do(step))

    async def _connect(self, step: Connect) -> Any:
        if step.make is None:
            return await super()._connect(step)
        return await self.loop.create_task(greenlet_spawn(step.make), context=step.context)

    def do_here(self, step: Any) -> Any:
        """A caller's step, inside its greenlet."""
        return step.work() if type(step) is Attempt else await_only(super().do(step))
