"""Everything one process (and, for asyncio, one event loop) knows of one pool, and the small moves
on it.

The pools read ``kernel``, ``here`` and ``fresh_for`` on their hot paths. The flows beside this file
are the slow paths; they call the moves here. Locks are held for decisions only: logging, closing
and waking happen after letting go.
"""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from random import Random
from types import FrameType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from unbroken.abc import BaseDriver, Cause, Connection, Fault
from unbroken.backends import fault as faults
from unbroken.brain import stats
from unbroken.brain.entry import Entry
from unbroken.brain.health import Policy
from unbroken.brain.kernel import Kernel, Ticket
from unbroken.brain.outage import Try
from unbroken.errors import ConnectRejectedError, E, PoolClosedError, UnbrokenError, for_driver
from unbroken.ledger.questions import Question, answer, text_of
from unbroken.ledger.residue import Left, Trace, followed
from unbroken.ledger.unit import Unit, current, heard_by, testify
from unbroken.net import fork_guard, keepalive, last_words, liveness, sent_bytes
from unbroken.net.hangups import HangUps
from unbroken.net.watcher import Watcher
from unbroken.pool import contexts  # noqa: F401 - follows what units hand to threads and tasks
from unbroken.pool.bounds import limits_of
from unbroken.pool.registry import every, registry
from unbroken.pool.servers import Server, server_of
from unbroken.pool.steps import Call, Flow
from unbroken.settings import Settings

log = logging.getLogger("unbroken")


class Runtime(Protocol):
    """What the flows need of a body: threads or tasks, locks or none."""

    limits: Mapping[str, float]  #: see :func:`unbroken.pool.bounds.limits_of`

    @property
    def watcher(self) -> Watcher:
        """Who sees sockets end and keeps the time."""

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock for decisions."""

    def new_signal(self) -> Any:
        """Something that a ``Wait`` step waits for."""

    def wake(self, signal: Any) -> None:
        """Wake who waits for *signal*; once too often does no harm."""

    def spawn(self, flow: Flow[Any], name: str) -> None:
        """Run *flow* in the background."""

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* where this pool's state may be touched."""

    def is_awake(self) -> bool:
        """Whether what is spawned makes progress: an event loop may stand still.

        From any thread.
        """

    def in_hands(self, wanted: set[int]) -> set[int] | None:
        """Which of the entries with these ids somebody's stack refers to; None where stacks cannot
        be read.
        """

    def stacks(self) -> list[FrameType] | None:
        """Where all are that run now; None where that cannot be seen."""

    def stacks_aside(self) -> list[FrameType]:
        """Where all are that were put aside and will go on. Expensive."""

    def dialing(self, limit: float) -> Any:
        """An attempt to connect that can be ended from outside: see :mod:`unbroken.net.dialing`."""

    def describe_holder(self, entry: Entry) -> str:
        """Who has a lent *entry*, and where they are now: a thread or a task with its stack."""


#: After a no (a wrong password, say) nobody but a caller has the server asked again for so long:
#: some lock an account.
REJECTED_PAUSE = 30.0
#: Seconds for a driver that keeps the time to connect itself, and says better why it failed, before
#: it is ended from outside.
AT_THE_LIMIT = 0.1
#: A connection that was opened, or used, so many seconds ago was well a moment ago.
JUST_USED = 5.0
#: After a death was seen of a connection that nobody owned at that moment.
LOOK_AGAIN = 0.05


class Start:
    """A worker that was ordered."""

    __slots__ = ("is_called_off",)

    def __init__(self) -> None:
        self.is_called_off = False


class PoolState:
    """One pool in one process. Made anew, from nothing, in a forked child."""

    entry_kind: type[Entry] = (
        Entry  #: what a body keeps of a connection, if it is more than an Entry
    )

    def __init__(
        self,
        driver: BaseDriver,
        settings: Settings,
        runtime: Runtime,
        name: str,
        emit: Callable[[str, Mapping[str, Any]], None],
        here: Any,
        connector: Callable[[PoolState], Flow[None]],
    ) -> None:
        self.here = here
        self.pid = os.getpid()
        self.driver = driver
        self.settings = settings
        self.runtime = runtime
        runtime.limits = limits_of(settings)
        self.name = name
        self.emit = emit
        self.server: Server = server_of(driver)
        self.hidden = self.server.hidden(driver.target.database)
        self.lock = runtime.new_lock()
        self.kernel = Kernel(settings.max_size, settings.min_size)
        #: for the hot paths
        self.idle, self.in_use, self.waiting = (
            self.kernel.idle,
            self.kernel.in_use,
            self.kernel.waiting,
        )
        self.sockets = HangUps()
        #: ``hung_up()`` is false: no connection of this pool is known dead
        self.hung_up = self.sockets.look
        #: of the last tick: near enough to note when a connection was used last
        self.now = time.monotonic()
        self.counters = stats.Counters()
        self.random = Random()
        self.clock = time.monotonic
        self.connector = connector  #: the flow that opens connections
        self.at_work = 0  #: how many of them have begun and not ended
        self.ordered: set[Start] = set()  #: those that were ordered and have not begun
        self.tries: dict[Try, Any] = {}  #: their attempts under way, and what can end each of these
        #: when an attempt is ended from outside
        self.connect_limit = settings.connect_timeout + AT_THE_LIMIT
        self.oversight: Any = None  #: the timer for the next look at these
        self.oversee: Callable[[PoolState], None] = (
            _look_away  #: has that look not be later than it must be
        )
        self.prober_wakeup: Any = None  #: the sleeping prober's signal
        self.rejected_at = -math.inf  #: when the server last said no: see :meth:`wants`
        #: finalizers append here; they must not take the lock
        self.forgotten: deque[Entry] = deque()
        #: since when: see :mod:`unbroken.pool.windows`
        self.borne: WeakKeyDictionary[Entry, float] = WeakKeyDictionary()
        self.suspects: dict[tuple[Entry, int], float] = {}  #: strays, and since when they are one
        self.next_look, self.next_wide_look = 0.0, 0.0  #: when to look for those again
        self.unseen: set[tuple[Entry, int]] = set()  #: uses that nobody was seen to be inside of
        #: Of flows that wait for an entry, were granted one and do not have it yet, or own one
        #: while they wait for the server. Weak: a ticket goes with its flow, wherever an exception
        #: strikes.
        self.tickets: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self.next_look_around = 0.0  #: when a caller in line looks around again
        self.last_collect = 0.0
        self.collect_took = (
            0.1  #: seconds; a caller with less time left than twice that does not collect
        )
        self.collect_cost = 0.0  #: seconds of the processor's that it took
        self.upkeep_timer: Any = None
        self.upkeep_running = False
        self.follows = settings.reset == "session"  #: what a use leaves on its session is followed
        #: a lease need not begin a transaction itself
        self.plain = driver.capabilities.implicit_begin
        self.is_clean = self._end_check()
        self.heard_goodbye: Callable[[Connection], bool] = getattr(driver, "has_ended", _not_known)
        self.is_tcp = driver.target.unix_socket is None
        self.decide_policy()
        with self.server.lock:
            # last: from now on other pools' threads come here with news
            self.server.pools.add(self)
        registry.add(self)

    def _end_check(self) -> Callable[[Connection, Any], bool]:
        """What to ask of a connection when it comes back: True means nothing has to be done."""
        return _never if callable(self.settings.reset) or self.follows else self.driver.is_clean

    def decide_policy(self) -> None:
        """Fill in the automatic settings with what is known of the server by now."""
        limit = self.server.limit.limit
        self.policy = Policy.decide(
            self.settings, self.driver.capabilities, is_tcp=self.is_tcp, idle_limit=limit
        )
        self.fresh_for = self.policy.fresh_for

    def limit_changed(self) -> None:
        """The server's idle limit was told or learned, or taken back: that concerns all its
        pools.
        """
        with self.server.lock:
            pools = every(self.server.pools)
        for pool in pools:
            pool.decide_policy()

    # -- birth -------------------------------------------------------------------------------------

    def adopt(self, conn: Connection, generation: int | None = None) -> Entry:
        """Make an entry of a fresh connection: its socket known, kept alive and watched.

        *generation* is the pool's when the attempt began: what was being opened during a drain is
        drained too.
        """
        now = self.clock()
        driver = self.driver
        generation = self.kernel.generation if generation is None else generation
        entry = self.entry_kind(
            conn, now, generation, self.policy.retire_at(now, self.random.random())
        )
        entry.session = driver.session_id(conn)
        entry.traits = driver.traits(conn)
        entry.fd = driver.fileno(conn)
        if entry.fd is not None:
            entry.identity = fork_guard.identity(entry.fd)
            entry.poll = liveness.poller(entry.fd)
            entry.count = sent_bytes.counter(entry.fd)
            if not self.knows_status:
                entry.sent = entry.count()
            policy = self.policy
            keepalive.bound(entry.fd, policy.keepalive, policy.probe_every, policy.send_timeout)
            self.sockets.add(entry.fd)
            this, state = weakref.ref(entry), weakref.ref(self)
            self.runtime.watcher.watch(entry.fd, lambda: _on_end(state, this))
        self._hold_weakly(entry)
        self.is_clean = self._end_check()  # the driver may have found out that it knows nothing
        return entry

    def strays(self) -> list[Entry]:
        """Entries that seem to have no owner: see :meth:`Kernel.strays`."""
        return self.kernel.strays()

    def _hold_weakly(self, entry: Entry) -> None:
        """While it is lent, only its holder keeps the connection alive: who forgets it gives it
        back.
        """
        this, state = weakref.ref(entry), weakref.ref(self)
        try:
            entry.ref = weakref.ref(entry.conn, lambda _: _on_forgotten(state, this))
        except TypeError:
            return  # such objects stay held by the pool; leak_after still reports them
        entry.anchor = None

    # -- what is known of a connection in use ------------------------------------------------------

    @property
    def knows_status(self) -> bool:
        """Whether the driver's own word on a connection counts.

        Where it does not, the kernel's count of bytes does.
        """
        return self.driver.capabilities.transaction_status and self.driver.blindness is None

    def is_settled(self, entry: Entry, conn: Connection) -> bool:
        """Whether it is certain, without a round trip, that no transaction is open.

        Either the driver knows, or nothing has been sent since it was certain last.
        """
        status = self.driver.is_in_transaction(conn)
        return status is False if status is not None else self._is_untouched(entry)

    def is_in_step(self, entry: Entry, conn: Connection) -> bool:
        """Whether it is certain that every answer was read: a statement sent now gets its own."""
        return self.driver.is_quiet(conn) or (not self.knows_status and self._is_untouched(entry))

    def is_streaming(self, conn: Connection) -> bool:
        """Whether nothing but a result that the application left half read is missing, and the
        driver can read the rest.
        """
        ask = getattr(self.driver, "is_streaming", None)
        return ask is not None and bool(ask(conn))

    def is_good(self, entry: Entry, conn: Connection) -> bool:
        """Whether *conn* is known to be fit for the next user just as it is."""
        driver = self.driver
        if self.settings.reset is None:
            return self.is_in_step(entry, conn)
        if driver.is_clean(conn, entry.traits):
            return True
        if self.knows_status or driver.traits(conn) != entry.traits:
            return False
        return self._is_untouched(entry) or (
            driver.is_quiet(conn) and entry.settled_at == entry.uses
        )

    def _is_untouched(self, entry: Entry) -> bool:
        """Whether nothing was sent since the connection was known to be well: the kernel counts."""
        return entry.sent is not None and entry.count() == entry.sent

    # -- giving back and granting ------------------------------------------------------------------

    def put(self, entry: Entry, conn: Connection) -> None:
        """Put a healthy entry that the caller owns into idle. (The pools have this inline.)"""
        entry.conn = conn
        entry.last_used = self.clock()
        self.kernel.put(entry)
        self.dispatch()

    def dispatch(self) -> None:
        """After something was put into idle: grant it to who waits, close what must not stay."""
        with self.lock:
            tickets, stale = self.kernel.serve()
        self.wake(tickets)
        for entry in stale:
            self.close_entry(entry)
        self.ensure_connecting()

    def wake(self, tickets: list[Ticket]) -> None:
        """Wake the callers who were granted something (or failed)."""
        for ticket in tickets:
            self.runtime.wake(ticket.signal)

    @property
    def wants(self) -> int:
        """How many more connections ought to be opened now.

        After a no of the server, not for min_size's sake alone for a while.
        """
        kernel = self.kernel
        if not kernel.waiting and (
            kernel.size >= kernel.min_size or self.clock() - self.rejected_at < REJECTED_PAUSE
        ):
            return 0
        kernel.silent = self.server.outage.silent(self, self.clock()) if self.tries else 0
        return kernel.wanted

    @property
    def unserved(self) -> int:
        """How many callers wait for whom no connection is coming."""
        kernel = self.kernel
        return len(kernel.waiting) - (kernel.opening - kernel.silent)

    @property
    def places(self) -> int:
        """How many more connections there may be."""
        return self.kernel.max_size - self.kernel.size

    def wake_prober(self) -> None:
        """A caller, of this pool or another of the server, has come: the prober need not sleep
        on.
        """
        with self.lock:
            prober_wakeup, self.prober_wakeup = self.prober_wakeup, None
        if prober_wakeup is not None:
            self.runtime.wake(prober_wakeup)
        elif self.tries:
            self.hasten()

    def hasten(self) -> None:
        """A caller, of this pool or another of the server, waits: where the prober's attempts are
        silent, begin one beside them.
        """
        with self.lock:
            outage = self.server.outage
            wanted = outage.active and outage.prober is self and self.places > 0
        if wanted:
            self._start_workers(lambda: min(1, outage.room(self, self.clock(), self.connectors)))
        self.oversee(self)

    def ensure_connecting(self) -> None:
        """See to it that what is wanted is being opened, and that a sleeping prober hears of a
        caller.
        """
        kernel = self.kernel
        if not kernel.waiting and not self.wants:
            return
        outage = self.server.outage
        if kernel.waiting:
            outage.call(self.clock())
            prober: Any = outage.prober
            if prober is not None and prober.runtime.is_awake():
                prober.runtime.call(prober.wake_prober)
            elif prober is not None:
                with self.server.lock:
                    outage.resign(prober)
        self._start_workers(self._missing_workers)
        if self.tries and kernel.waiting:
            self.oversee(self)

    @property
    def connectors(self) -> int:
        """How many workers open connections, or are about to begin."""
        return self.at_work + len(self.ordered)

    def _missing_workers(self) -> int:
        outage = self.server.outage
        somebody_else = outage.active and outage.prober not in (None, self)
        room = 0 if somebody_else else outage.room(self, self.clock(), self.connectors)
        return min(self.wants, room) if room else 0

    def _start_workers(self, missing: Callable[[], int]) -> None:
        """Start as many workers as *missing* says.

        An exception that strikes here leaves none counted that did not begin.
        """
        starts: list[Start] = []
        try:
            with self.lock:
                starts = [Start() for _ in range(missing())]
                self.ordered.update(starts)
            for start in starts:
                self.runtime.spawn(self._work(start), "connector")
        except BaseException as exc:
            with self.lock:
                for start in starts:
                    start.is_called_off = start in self.ordered
                self.ordered.difference_update(starts)
            if not isinstance(exc, RuntimeError):
                raise
            # No more threads: the limit is reached, or the interpreter is ending.
            log.exception("%s: cannot start a thread to connect with", self.name)

    def _work(self, start: Start) -> Flow[None]:
        with self.lock:
            if start.is_called_off:
                return
            self.ordered.discard(start)
            self.at_work += 1
        yield from self.connector(self)

    # -- death -------------------------------------------------------------------------------------

    def discard(self, entry: Entry, cause: Cause, words: str = "") -> None:
        """End an entry that the caller owns (it is neither idle nor lent) and make room for
        another.
        """
        entry.condemn(cause, words)
        with self.lock:
            self.kernel.forget(entry)
        self.close_entry(entry)
        self.ensure_connecting()

    def close_entry(self, entry: Entry) -> None:
        """Close an entry that has left the kernel; count and log why."""
        if entry.fd is not None and fork_guard.identity(entry.fd) == entry.identity:
            # Else its driver has closed it, and the number may be another connection's by now.
            self.sockets.forget(entry.fd)
            self.runtime.watcher.unwatch(entry.fd)
            if sent_bytes.has_unsent(entry.fd):
                # the goodbye would wait behind what the server does not take
                self.shutdown_socket(entry)
        if entry.conn is not None:
            self.driver.close(entry.conn)
        cause = entry.cause or Cause.DISCARDED
        with self.lock:
            self.counters.closed[cause.value] += 1
            self.counters.retired_uses += entry.uses
        level = logging.INFO if cause in THEIR_DOING else logging.DEBUG
        if log.isEnabledFor(level):
            said = f': "{entry.words}"' if entry.words else ""
            idle = (
                f", idle for {self.clock() - entry.last_used:.1f} s" if cause in THEIR_DOING else ""
            )
            log.log(
                level,
                "%s: connection %s ended: %s%s%s",
                self.name,
                entry.session or "",
                cause.value,
                said,
                idle,
            )
        self.emit(
            "closed",
            {
                "pool": self.name,
                "cause": cause.value,
                "session": entry.session,
                "words": entry.words,
            },
        )
        entry.conn = entry.anchor = entry.ref = None

    def discard_dead(self, entry: Entry) -> None:
        """End an entry that was found dead while idle, and look at all other idle ones at once."""
        cause, words = self.explain(entry)
        self.discard(entry, cause, words)
        self.sweep()

    def sweep(self) -> int:
        """Look at every idle socket in one poll and bury the dead: how many."""
        by_fd = {e.fd: e for e in self.kernel.all_idle() if e.fd is not None}
        if not by_fd:
            return 0
        dead = [
            by_fd[fd]
            for fd, look in liveness.sweep(by_fd).items()
            if look is liveness.Liveness.DEAD
        ]
        return self._evict(dead, self.explain)

    def drop_silent(self, idle: float) -> int:
        """A connection that was idle for *idle* seconds does not answer: drop those that were as
        long, or that need a ping.

        What forgot one (a NAT, a balancer) forgot the others too, and a caller must not wait for
        the silence of each.
        """
        since = self.clock() - min(idle, self.fresh_for)
        return self._evict(
            [e for e in self.kernel.all_idle() if e.last_used <= since],
            lambda _: (Cause.SILENT_DROP, ""),
        )

    def _evict(self, entries: list[Entry], why: Callable[[Entry], tuple[Cause, str]]) -> int:
        with self.lock:
            taken = self.kernel.take(entries)
        for entry in taken:
            entry.condemn(*why(entry))
            self.close_entry(entry)
        if taken:
            self.ensure_connecting()
        return len(taken)

    def close_hung_up(self) -> None:
        """A glance saw a death among all connections: find out whose, and deal with it."""
        with self.lock:
            dead = self.sockets.dead()
            owners = {e.fd: e for e in list(self.kernel.entries.values())}
            # What has no owner may be one that is being opened, and is about to stand in idle: it
            # must stay in sight.
            leftovers = [] if self.kernel.opening else [fd for fd in dead if fd not in owners]
            for fd in leftovers:
                self.sockets.forget(fd)
        for fd in dead:
            if fd in owners:
                self.ended(owners[fd])
        if not dead and self.hung_up():
            self.sockets.renew()
            self.hung_up = self.sockets.look

    def explain(self, entry: Entry, *, in_use: bool = False) -> tuple[Cause, str]:
        """Why the other side ended *entry*: by its last words, or by how long it had been idle.

        *in_use*: somebody had it, but may have left it idle as well.
        """
        if entry.cause is not None:
            return entry.cause, entry.words
        backend = self.driver.target.backend
        words = self.last_words(entry, entry.conn)
        now = self.clock()
        idle = (
            (sent_bytes.quiet_for(entry.fd) if entry.fd is not None else None)
            if in_use
            else now - entry.last_used
        )
        with self.server.lock:
            if words is not None:
                return (
                    faults.cause_of_words(words.code, words.text, backend),
                    f"{words.code} {words.text}",
                )
            explained = idle is not None and self.server.limit.explains(idle)
            learned = not in_use and idle is not None and self.server.limit.died(now, idle)
        if learned:
            log.info(
                "%s: learned that idle connections are ended after about %.1f s", self.name, idle
            )
            self.limit_changed()
        return (Cause.IDLE_LIMIT if explained or learned else Cause.CLOSED_BY_PEER), ""

    def last_words(
        self, entry: Entry, conn: Connection | None, *, arrived: bool = True
    ) -> last_words.Words | None:
        """What the server said unasked on *entry*'s connection; *arrived*: something may wait on
        its socket.
        """
        backend = self.driver.target.backend
        words = last_words.peek(entry.fd, backend) if arrived and entry.fd is not None else None
        if (
            words is None
            and conn is not None
            and (unread := getattr(self.driver, "unread", None)) is not None
        ):
            # an event loop takes what comes off the socket at once
            words = last_words.parse(unread(conn), backend)
        return words

    def ended(self, entry: Entry) -> None:
        """The watcher saw the other side end *entry*: evict it if it is idle; let its holder find
        out at once if not.
        """
        if self._evict([entry], self.explain):
            return
        if self.kernel.is_out(entry):
            entry.condemn(*self.explain(entry, in_use=True))
            if self._evict([entry], self.explain):
                return  # it came back before it was condemned
            # else the socket stays in CLOSE_WAIT for as long as its holder thinks
            self.shutdown_socket(entry)
            if entry.fd is not None and self.kernel.is_out(entry):
                # Who gives it back from here on sees the cause, so it is lent to nobody; and it
                # must not hide another's death. Any earlier, it could come back to idle in between,
                # where nobody would look at it again.
                self.sockets.forget(entry.fd)
        elif entry.cause is None:
            # between two owners, or a worker has it: it will be one or the other soon
            this, state = weakref.ref(entry), weakref.ref(self)
            self.runtime.watcher.at(self.clock() + LOOK_AGAIN, lambda: _on_end(state, this))

    def shutdown_socket(self, entry: Entry) -> None:
        """Shut an entry's socket down, whoever is using it; never close it."""
        if entry.fd is not None and entry.identity is not None:
            fork_guard.abort(entry.fd, entry.identity)

    def abort(self, entry: Entry, uses: int, cause: Cause) -> bool:
        """End use number *uses* of a lent entry from outside. False: that use is over already."""
        if entry.uses != uses or not self.kernel.is_out(entry):
            return False
        before = entry.generation
        entry.condemn(cause)
        if entry.uses != uses or not self.kernel.is_out(entry):
            if entry.cause is cause and entry.uses == uses:
                # it came back in between and nobody has it
                entry.generation, entry.cause = before, None
            return False
        self.shutdown_socket(entry)
        return True

    # -- leases ------------------------------------------------------------------------------------

    def lend(self, loan: Any, entry: Entry, frame: Any, now: float, holder: int) -> None:
        """Note in *loan* and in the books who has *entry* from now on. (The pools have this
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

    def join(self, unit: Unit, entry: Entry, conn: Connection) -> None:
        """A unit of work takes *conn*: what is sent on it is told to the unit until
        :meth:`part`.
        """
        reason = self.driver.blindness
        if reason is None and not self.driver.capabilities.watchable:
            reason = f"{self.driver.name} does not show its statements"
        if reason is not None:
            unit.doubt(reason)
            return
        unit.join(id(conn), self, entry, fresh=self.clock() - entry.last_used < JUST_USED)
        unit.ask(self.meaning)
        self.driver.watch(conn)
        entry.watched = True
        entry.joined = (entry.count(), unit.reports(id(conn)))

    def follow(self, unit: Unit | None, entry: Entry, conn: Connection) -> None:
        """As :meth:`join`, and note what statements leave on the session.

        Without a *unit*, for that alone.
        """
        followed.pop(id(conn), None)
        self.join(Unit(observing=True) if unit is None else unit, entry, conn)
        if entry.watched:
            followed[id(conn)] = Trace(self.driver.target.backend)

    def left(self, entry: Entry, conn: Connection) -> frozenset[Left]:
        """What may have been left on the session since :meth:`follow`.

        Anything, where something was not heard.
        """
        trace, unit = followed.get(id(conn)), heard_by(id(conn))
        if trace is None or unit is None or self._was_unseen(unit, entry, conn):
            return frozenset({Left.UNSEEN})
        return trace.left

    def leave_unit(self, entry: Entry, conn: Connection) -> None:
        """Undo :meth:`join`: nothing is open on *conn* any more, or it is about to be closed."""
        followed.pop(id(conn), None)
        if entry.watched:
            entry.watched = False
            self.driver.unwatch(conn)
            unit = current(id(conn))
            if unit is not None:
                if unit.has(id(conn)) and self._was_unseen(unit, entry, conn):
                    unit.doubt(
                        "something was sent on a connection, and its driver reported nothing",
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
        """Whether bytes may have gone out on *conn* since it joined *unit*, without any report.

        A socket that is closed tells no count. An event loop closes one by itself when the server
        hangs up; a blocking driver only after it tried to send or to read.
        """
        before, reports = entry.joined
        if before is None or unit.reports(id(conn)) != reports:
            return False
        sent = entry.count()
        return sent != before if sent is not None else not self.driver.is_async

    def arm(self, entry: Entry, until: float) -> Any:
        """End this use of *entry* at *until*, if it is not over by then: the timer."""
        uses, this = entry.uses, weakref.ref(self)

        def end() -> None:
            state = this()
            if state is not None:
                state.abort(entry, uses, Cause.DEADLINE)

        return self.runtime.watcher.at(until, end)

    def take_back(self, entry: Entry, conn: Connection, healthy: bool) -> None:
        """A lease is over. *healthy*: its connection may be lent again."""
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

    # -- the whole pool ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Close what is idle now, what is lent when it comes back; new ones are opened as they are
        wanted.
        """
        with self.lock:
            idle = self.kernel.drain()
        for entry in idle:
            self.close_entry(entry)
        self.ensure_connecting()

    def resize(self, settings: Settings) -> None:
        """Take over changed bounds."""
        self.settings = settings
        with self.lock:
            surplus = self.kernel.resize(settings.max_size, settings.min_size)
        for entry in surplus:
            self.close_entry(entry)
        self.ensure_connecting()

    def close(self) -> None:
        """Lend nothing any more. What is lent is closed when it comes back; who waits is told."""
        with self.lock:
            idle = self.kernel.close()
            tickets = self.kernel.fail(self.closed_error)
            prober_wakeup, self.prober_wakeup = self.prober_wakeup, None
            timer, self.upkeep_timer = self.upkeep_timer, None
        if timer is not None:
            timer.cancel()
        if prober_wakeup is not None:
            self.runtime.wake(prober_wakeup)
        self.wake(tickets)
        for entry in idle:
            self.close_entry(entry)

    # -- words -------------------------------------------------------------------------------------

    def error(self, kind: type[E], message: str, **attributes: Any) -> E:
        """One of our errors that the callers of this driver catch too."""
        error = for_driver(kind, self.driver.errors[0], message, **attributes)
        testify(error)
        return error

    def closed_error(self) -> PoolClosedError:
        """What an acquire from a closed pool gets."""
        return self.error(
            PoolClosedError, f"pool {self.name} is closed; make a new one to connect again"
        )

    @property
    def backend(self) -> str:
        """``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""
        return self.driver.target.backend

    @property
    def may_hide_writes(self) -> bool:
        """Whether a SELECT may store something here, as far as the server said."""
        return self.backend != "sqlite" and self.hidden.answer != ""

    def looked(self) -> None:
        """A SELECT was committed that may have stored something: what the server says of that
        should be kept new.
        """
        self.hidden.wanted = True

    def ask_hidden(
        self, conn: Connection, entry: Entry | None = None, until: float = math.inf
    ) -> Flow[None]:
        """Ask the server whether a SELECT may store something, so that the ledger can tell when the
        server is away.

        Ends at *until*, and leaves no transaction open. Raises the driver's error where *conn* must
        not be used any more.
        """
        self.hidden.asking(self.clock())
        if not self.knows_status:
            return  # no unit of work on it is run again, and when its exchanges end is not known
        try:
            self.hidden.answer = yield from self.read_answer(
                conn, Question.HIDDEN_WRITES, entry, until
            )
        except Exception as exc:
            fault = self.classify(exc)
            if fault.is_lost:
                self.hidden.wanted, self.hidden.asked_at = True, -math.inf
                raise
            log.debug("%s: what a SELECT may store here is not known: %s", self.name, fault.text)
        if self.driver.is_in_transaction(conn) is not False:
            yield Call("rollback", conn, entry, self._time_for_questions(until))

    def read_answer(
        self,
        conn: Connection,
        question: Question,
        entry: Entry | None = None,
        until: float = math.inf,
    ) -> Flow[Any]:
        """What the server answers to *question* on *conn*; None where it cannot be asked. Raises
        the driver's error.

        May leave a transaction open.
        """
        while (text := text_of(question, self.backend)) is not None:
            rows = yield Call("ask", conn, entry, self._time_for_questions(until), (text,))
            heard = answer(question, self.backend, rows)
            if not isinstance(heard, Question):
                return heard
            question = heard
        return None

    def _time_for_questions(self, until: float) -> float:
        return min(self.settings.ping_timeout, max(0.05, until - self.clock()))

    def has_ended(self, entry: Entry) -> bool:
        """Whether the other side is known to have ended a quiet *entry*: hung up, or said something
        unasked.
        """
        return (
            entry.cause is not None or liveness.judge(entry.poll(0)) is not liveness.Liveness.ALIVE
        )

    def inquire(self, question: Question, until: float) -> Flow[Any]:
        """See :func:`unbroken.pool.inquiry.inquire`."""
        from unbroken.pool.inquiry import inquire

        return inquire(self, question, until)

    def rejection(self, exc: Exception, fault: Fault) -> BaseException:
        """What each caller in the line gets when the server (or its driver) rejects a connect with
        *exc*.
        """
        told = self.error(
            ConnectRejectedError, f"cannot connect to {self.driver.target.label}: {fault.text}"
        )
        told.__cause__ = exc
        return told

    def describe_load(self) -> str:
        """``in use 10, idle 0, waiting 14`` for messages."""
        k = self.kernel
        return (
            f"in use {len(k.in_use)}, idle {len(k.idle)}, opening {k.opening}, waiting"
            f" {len(k.waiting)}, max_size {k.max_size}"
        )

    def describe_outage(self, now: float) -> str:
        """``server away for 7.2 s: [Errno 111] Connection refused``, or nothing."""
        outage = self.server.outage
        if not outage.active or outage.fault is None:
            return ""
        what = (
            "server is full" if outage.fault.kind.value == "too many connections" else "server away"
        )
        return f"{what} for {outage.age(now):.1f} s: {outage.fault.text}"

    def meaning(self, exc: BaseException) -> Fault | None:
        """What *exc* means if it is the driver's own, else None."""
        return (
            self.classify(exc)
            if isinstance(exc, self.driver.errors) and not isinstance(exc, UnbrokenError)
            else None
        )

    def classify(self, exc: BaseException) -> Fault:
        """What the driver (or the system) means by *exc*."""
        return self.driver.classify(exc)

    def stats(self) -> stats.Stats:
        """The numbers of this moment."""
        with self.lock, self.server.lock:
            return stats.snapshot(
                self.kernel,
                self.counters,
                self.server.outage,
                self.server.limit,
                self.clock(),
                name=self.name,
                server=self.driver.target.server,
                pid=self.pid,
            )

    # -- fork --------------------------------------------------------------------------------------

    def sever(self) -> None:
        """In a forked child: make every inherited descriptor lead nowhere. Takes no lock: it may be
        held for ever.

        A driver that hides its descriptors has a method ``abandon`` for that (see
        :class:`unbroken.abc.Capabilities`).
        """
        abandon = getattr(self.driver, "abandon", None)
        for entry in (
            *self.kernel.entries.values(),
            *self.kernel.reclaimed.values(),
            *self.forgotten,
        ):
            if entry.fd is not None and entry.identity is not None:
                fork_guard.sever(entry.fd, entry.identity)
            elif abandon is not None:
                conn = entry.conn if entry.conn is not None or entry.ref is None else entry.ref()
                if conn is not None:
                    abandon(conn)


def _not_known(_conn: Connection) -> bool:
    return False


def _never(_conn: Connection, _traits: Any) -> bool:
    return False


def _look_away(_state: PoolState) -> None:
    pass


#: Causes that lie with the other side: worth a line in the log, and a look at the other
#: connections.
THEIR_DOING = frozenset(
    {
        Cause.IDLE_LIMIT,
        Cause.KILLED,
        Cause.SHUTDOWN,
        Cause.CRASHED,
        Cause.FAILOVER,
        Cause.TRANSACTION_LIMIT,
        Cause.CLOSED_BY_PEER,
        Cause.CONNECTION_RESET,
        Cause.SILENT_DROP,
        Cause.LOST,
    }
)


#: Of these, the causes that say nothing of what else ended the connection than the statement that
#: it carried.
UNEXPLAINED = THEIR_DOING - {
    Cause.IDLE_LIMIT,
    Cause.TRANSACTION_LIMIT,
    Cause.SHUTDOWN,
    Cause.CRASHED,
    Cause.FAILOVER,
}
#: … and those that say that the holder had asked nothing of the server for too long.
PAUSED = frozenset({Cause.IDLE_LIMIT, Cause.TRANSACTION_LIMIT})


def _on_end(
    state_ref: Callable[[], PoolState | None], entry_ref: Callable[[], Entry | None]
) -> None:
    state, entry = state_ref(), entry_ref()
    if state is not None and entry is not None:
        state.ended(entry)


def _on_forgotten(
    state_ref: Callable[[], PoolState | None], entry_ref: Callable[[], Entry | None]
) -> None:
    """The holder of a lent connection let it be collected. Runs in a finalizer: no lock, no log.

    In a forked child the collection itself would say goodbye on the parent's session; this runs
    just before it.
    """
    state, entry = state_ref(), entry_ref()
    if state is None or entry is None:
        return
    if not state.here[0] and entry.fd is not None and entry.identity is not None:
        fork_guard.sever(entry.fd, entry.identity)
        return
    if state.kernel.lose(entry):
        state.forgotten.append(entry)
