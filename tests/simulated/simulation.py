"""A world in which the real pool runs against a server in memory, one step at a time, chosen by a
seed.

Every thread is a greenlet, and nothing else is faked than what the pool cannot have here: sockets
(``Net``), locks and threads (``Runtime``), time (``FakeClock``), the server and its driver
(``unbroken_drill.fake``). Threads are interrupted at round trips, at waits, and, in some worlds, at
every look at the clock and every lock. The same seed gives the same story.
"""

from __future__ import annotations

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import greenlet

from unbroken import sync
from unbroken.abc import Capabilities, Cause, Fault, FaultKind, Login
from unbroken.backends.fault import may_be_own
from unbroken.brain import entry as entry_module
from unbroken.brain.outage import AT_ONCE
from unbroken.ledger import deeds
from unbroken.net.last_words import Words
from unbroken.net.liveness import Liveness, judge
from unbroken.pool import acquire as acquire_module
from unbroken.pool import bounds, windows
from unbroken.pool import endings as endings_module
from unbroken.pool import finishing as finishing_module
from unbroken.pool import holding as holding_module
from unbroken.pool import knowledge as knowledge_module
from unbroken.pool import lease as lease_module
from unbroken.pool import leases as leases_module
from unbroken.pool import loan as loan_module
from unbroken.pool import replay as replay_module
from unbroken.pool import state as state_module
from unbroken.pool.servers import Server
from unbroken.pool.state import PoolState
from unbroken.pool.steps import run
from unbroken.pool.threads import ThreadRuntime
from unbroken.sync import Pool
from unbroken_drill import fake as fake_module
from unbroken_drill.fake import FakeConnection, FakeDriver
from unbroken_drill.fake_clock import FakeClock
from unbroken_drill.fake_server import PATIENCE, FakeOperationalError, FakeServer, Mode, Session

_HUNG_UP, _READABLE = 0x2000, 0x1  # POLLRDHUP, POLLIN


class Violation(AssertionError):  # noqa: N818 - it is no error of anything that runs here
    """A promise was broken."""


class Cancelled(BaseException):
    """What strikes a thread from outside: a signal handler's exception, a worker's time limit."""


class Vanished(BaseException):
    """The world has ended; a suspended thread unwinds without a trace."""


class Thread:
    """A greenlet with what it waits for."""

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self.name = name
        self.greenlet = greenlet.greenlet(work)
        self.greenlet.thread = self  # type: ignore[attr-defined] # greenlets take attributes
        self.ready: Callable[[], bool] | None = None  #: None: nothing but the time wakes it
        self.until = -math.inf
        self.strike: BaseException | None = None  #: raised in it when it goes on
        self.is_held_up = (
            False  #: everybody else goes first: the rarest orders are those in which one comes last
        )
        self.is_at_rest = False  #: interrupted, and time passes meanwhile
        self.is_waiting = False  #: for an answer or a signal: here exceptions may strike
        self.dialing: Dialing | None = None  #: the attempt to connect that it makes

    def __repr__(self) -> str:
        return self.name


class SimServer(FakeServer):
    """Its callers wait in the world's own way: here a call comes when there is an answer, or when
    the time is up.
    """

    def _await(self, session: Session | None, timeout: float) -> None:
        pass


class Connection(FakeConnection):
    """A connection with a number that the system uses again once it is closed."""

    fd = -1
    address = -1

    def __init__(self, world: World, session: Session, is_hidden: bool) -> None:
        super().__init__(session)
        self.world = world
        self.address = world.new_address()
        self.is_hidden = is_hidden
        self.process = world.process
        self.fd = world.net.open(self)
        self.owes = self.is_answered = False  #: the answer to a COMMIT or ROLLBACK; it has come
        self.owes_since = 0.0
        self.texts: list[str | None] = []

    def __del__(self) -> None:
        super().__del__()
        if self.address >= 0:
            self.world.free_addresses.append(self.address)

    def fileno(self) -> int:
        return -1 if self.is_closed else self.fd

    def execute(self, statement: str, row: Any = None) -> list[Any]:
        self.texts.append(statement)
        return super().execute(statement, row)

    def _exchange(self, timeout: float | None = None) -> None:
        if self.is_closed:
            super()._exchange(timeout)
        self.world.touch(self)
        if self.owes:
            self.take(math.inf)  # it comes before the answer to this one
        self.world.round_trip(self, math.inf)
        self.world.net.unread.discard(self.fd)
        super()._exchange(timeout)

    def end_transaction(self, sql: str) -> None:
        """Send COMMIT or ROLLBACK, which the server reads when it comes to it."""
        world, session = self.world, self.session
        if self.is_closed:
            super()._exchange()
        if self.owes:
            self.take(math.inf)
        world.touch(self)
        self.owes, self.is_answered, self.owes_since = True, False, world.clock.now
        self.in_transaction = False
        self.texts.clear()

        def arrives() -> None:
            world.round_trip(self, math.inf)
            if world.lingers:
                world.wait(None, world.clock.now + world.lingers)
            if not session.open or not world.server.answers(session):
                return
            if sql == "COMMIT":
                world.server.rows += session.pending or ()
            session.pending, session.last_active = None, world.clock.now
            self.is_answered = True
            world.net.unread.add(self.fd)

        if session.open and not session.is_dropped:
            world.start(arrives, "server")

    def take(self, until: float) -> None:
        """Wait for the answer to that, at most until *until*."""
        world, session = self.world, self.session
        self.is_busy = True
        until = min(until, world.clock.now + PATIENCE)
        if not self.is_answered:
            world.wait(lambda: self.is_answered or session.has_hung_up, until, safe=True)
        if not self.is_answered:
            raise FakeOperationalError(
                Fault(FaultKind.LOST, Cause.CLOSED_BY_PEER, 2013, "lost: no answer to its end")
            )
        world.net.unread.discard(self.fd)
        self.owes = self.is_answered = self.is_busy = False

    def close(self) -> None:
        if self.is_closed or self.fd < 0:
            return
        severed = self.world.net.close(self.fd)
        if severed or self.world.is_over:
            self.is_closed = True
        else:
            self.world.touch(self)
            super().close()


class Net:
    """The kernel's side of sockets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sessions: dict[
            int, tuple[Session, int]
        ] = {}  #: by descriptor, with what tells one from its successor
        self.severed: set[int] = set()
        self.unread: set[int] = set()
        self.callbacks: dict[int, Callable[[], Any]] = {}
        self.sent: dict[int, int] = {}
        self.processes: dict[int, Any] = {}  #: who opened it
        self._serial = 0

    def open(self, conn: Connection) -> int:
        fd = next(n for n in range(3, 10_000) if n not in self.sessions)
        self._serial += 1
        self.sessions[fd] = (conn.session, self._serial)
        self.processes[fd] = self.world.process
        conn.session.on_hang_up = lambda: self._hung_up(fd)
        return fd

    def close(self, fd: int) -> bool:
        """Free the number; say whether it was severed."""
        del self.sessions[fd]
        self.unread.discard(fd)
        severed = fd in self.severed
        self.severed.discard(fd)
        return severed

    def identity(self, fd: int) -> tuple[int, int] | None:
        return (1, self.sessions[fd][1]) if fd in self.sessions else None

    def poll(self, fd: int) -> list[tuple[int, int]]:
        if fd not in self.sessions or fd in self.severed or self.sessions[fd][0].has_hung_up:
            return [(fd, _HUNG_UP)]
        return [(fd, _READABLE)] if fd in self.unread else []

    def sweep(self, fds: Any) -> dict[int, Liveness]:
        looks = {fd: self.poll(fd) for fd in fds}
        return {
            fd: Liveness.DEAD if events[0][1] == _HUNG_UP else Liveness.UNDECIDED
            for fd, events in looks.items()
            if events
        }

    def last_words(self, fd: int, _backend: str) -> Words | None:
        session = self.sessions[fd][0] if fd in self.sessions else None
        said = None if session is None or session.open else session.goodbye
        return None if said is None or said.cause is Cause.IDLE_LIMIT else Words(1927, said.text)

    def abort(self, fd: int, identity: tuple[int, int]) -> bool:
        if self.identity(fd) != identity:
            return False
        if fd not in self.severed:
            session = self.sessions[fd][0]
            session.is_dropped = False
            session.end()
        return True

    def sever(self, fd: int, identity: tuple[int, int]) -> bool:
        if self.identity(fd) != identity:
            return False
        self.severed.add(fd)
        return True

    def find_silent_ones(self) -> None:
        """What TCP keepalive does after a while."""
        for session, _ in list(self.sessions.values()):
            if session.is_dropped:
                session.is_dropped = False
                if session.on_hang_up is not None:
                    session.on_hang_up()

    # what a watcher does

    def watch(self, fd: int, callback: Callable[[], Any]) -> None:
        self.callbacks[fd] = callback
        if fd in self.sessions and self.sessions[fd][0].has_hung_up:
            self._hung_up(fd)

    def unwatch(self, fd: int) -> None:
        self.callbacks.pop(fd, None)

    def _hung_up(self, fd: int) -> None:
        if not self.world.is_over:
            self.world.start(lambda: self._report(fd), "watcher")

    def _report(self, fd: int) -> None:
        if fd in self.sessions and self.sessions[fd][0].has_hung_up:
            callback = self.callbacks.pop(fd, None)
            if callback is not None:
                callback()

    def stopped(self) -> None:
        """Time goes on."""

    def at(self, when: float, callback: Callable[[], Any]) -> Any:
        if when == math.inf:
            return SimpleNamespace(cancel=lambda: None)
        process = self.world.process

        def due() -> None:
            if self.world.process is process:  # a child has no watcher of its parent's
                self.world.start(callback, "timer")

        return self.world.clock.at(when, due)


class HangUps:
    """One look at all sockets of a pool."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.known: dict[int, tuple[int, int] | None] = {}
        self.look = self.seen

    def seen(self) -> list[int]:
        """As epoll: a socket that was closed is looked at no more."""
        net = self.net
        return [
            fd
            for fd, who in self.known.items()
            if who == net.identity(fd) and net.sweep([fd]).get(fd) is Liveness.DEAD
        ]

    def add(self, fd: int) -> None:
        self.known[fd] = self.net.identity(fd)

    def forget(self, fd: int) -> None:
        self.known.pop(fd, None)

    def dead(self) -> list[int]:
        return [
            fd for fd, look in self.net.sweep(list(self.known)).items() if look is Liveness.DEAD
        ]

    def renew(self) -> None:
        pass


class Lock:
    """A lock; trying to take it is a moment in which another thread may come first."""

    def __init__(self, world: World, *, reentrant: bool = False) -> None:
        self.world, self.reentrant = world, reentrant
        self.process = world.process
        self.holder: Any = None
        self.depth = 0

    def is_free(self) -> bool:
        return self.holder is None

    def __enter__(self) -> None:
        world = self.world
        me = greenlet.getcurrent()
        if world.is_over:
            return
        if self.process is not world.process:
            raise world.violation("a lock of the parent process was touched in the child")
        if self.holder is None and not world.interrupts:
            self.holder, self.depth = me, 1
            return
        if self.holder is me:
            if not self.reentrant:
                raise world.violation("a thread waits for a lock that it holds")
            self.depth += 1
            return
        world.pause()
        while self.holder is not None:
            world.wait(self.is_free, math.inf)
        self.holder, self.depth = me, 1

    def __exit__(self, *_exc: object) -> None:
        self.depth -= 1
        if self.depth <= 0:
            self.holder = None


class Signal:
    """A lock that its waiter waits on, as ``ThreadRuntime.new_signal`` gives."""

    def __init__(self, world: World) -> None:
        self.world, self.is_set = world, False

    def has_been_set(self) -> bool:
        return self.is_set

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        until = math.inf if timeout < 0 else self.world.clock.now + timeout
        self.world.wait(self.has_been_set, until if blocking else self.world.clock.now, safe=True)
        woken, self.is_set = self.is_set, False
        return woken

    def release(self) -> None:
        if self.is_set:
            raise RuntimeError("release unlocked lock")
        self.is_set = True


class Dialing:
    """An attempt to connect that can be ended from outside."""

    def __init__(self, world: World, limit: float) -> None:
        self.world, self.limit = world, limit
        self.is_ended = self.is_over = self.is_overtaken = False
        self.asks = ""
        self.made: tuple[int, tuple[int, int]] | None = None

    def end(self, *, overtaken: bool = False) -> None:
        self.is_ended, self.is_overtaken = True, overtaken
        if self.is_over and self.made is not None:
            self.world.net.abort(*self.made)

    def has_made(self, fd: int | None) -> None:
        who = None if fd is None else self.world.net.identity(fd)
        self.made = None if fd is None or who is None else (fd, who)

    def is_moving(self, within: float) -> bool:
        return False

    def is_asking(self, within: float) -> bool:
        return False

    def is_connected(self) -> bool | None:
        return None

    def __enter__(self) -> None:
        me = self.world.me()
        if me is not None:
            me.dialing = self
        self.timer = self.world.net.at(self.world.clock.now + self.limit, self.end)

    def __exit__(self, *_exc: object) -> None:
        me = self.world.me()
        if me is not None:
            me.dialing = None
        self.is_over = True
        self.timer.cancel()


class Driver(FakeDriver):
    """The fake driver, each of whose calls takes its time in the world."""

    def __init__(self, world: World, *, knows_status: bool, shows_socket: bool) -> None:
        super().__init__(world.server, knows_status=knows_status)
        self.world = world
        self.rejected_at = -math.inf
        self.pool: Callable[[], Pool | None] = lambda: None
        self.capabilities = Capabilities(
            fileno=shows_socket, transaction_status=knows_status, watchable=True
        )

    @property
    def has_served(self) -> bool:
        """Whether its pool has ever been let in."""
        pool = self.pool()
        return pool is not None and pool._state.has_served

    def connect(self, timeout: float, login: Login | None = None) -> FakeConnection:
        world = self.world
        with world.attempt(self):
            world.dial(world.clock.now + timeout)
            if self.server.mode is Mode.REJECTING:
                self.rejected_at = world.clock.now
            return Connection(
                world, self.server.accept(timeout), is_hidden=not self.capabilities.fileno
            )

    def fileno(self, conn: FakeConnection) -> int | None:
        return super().fileno(conn) if self.capabilities.fileno else None

    def ping(self, conn: FakeConnection, timeout: float) -> None:
        assert isinstance(conn, Connection)
        self.world.round_trip(conn, self.world.clock.now + timeout)
        self.world.touch(conn)
        if conn.owes:
            conn.take(self.world.clock.now + timeout)
        self.world.net.unread.discard(conn.fd)
        FakeConnection._exchange(conn, timeout)

    def owes_answer(self, conn: FakeConnection) -> bool:
        assert isinstance(conn, Connection)
        return conn.owes

    def take_answer(self, conn: FakeConnection, timeout: float) -> bool:
        assert isinstance(conn, Connection)
        was_due = conn.owes
        conn.take(self.world.clock.now + timeout)
        return was_due

    def texts(self, conn: FakeConnection) -> list[str | None]:
        assert isinstance(conn, Connection)
        return conn.texts

    def commit(self, conn: FakeConnection) -> None:
        assert isinstance(conn, Connection)
        self.world.touch(conn)
        if conn.owes:
            conn.take(math.inf)
        self.world.round_trip(conn, math.inf)
        super().commit(conn)
        conn.texts.clear()


class Deferring(Driver):
    """… and whose transactions can be ended without a wait."""

    pipelines = undoes_at_once = True

    def send_end(self, conn: FakeConnection, sql: str) -> None:
        assert isinstance(conn, Connection)
        conn.end_transaction(sql)


UNANSWERED = Fault(FaultKind.UNREACHABLE, None, 110, "timed out")


class Attempt:
    """An attempt to connect."""

    def __init__(self, driver: Driver, began: float) -> None:
        self.driver, self.began = driver, began
        self.is_doubtful = False  #: it failed, perhaps by its pool's own fault


class Attempts:
    """The attempts of one process to connect, as its server sees them.

    No pool has more than AT_ONCE under way. During an outage one pool probes. Each other pool makes
    one attempt of its own at most, and only as long as each failure may be the fault of a pool that
    was never let in.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.under_way: list[Attempt] = []
        self.failures: list[Attempt] = []  #: those that may have begun the next outage
        self.outage: float | None = None  #: the beginning of the outage that was seen last
        self.prober: Driver | None = None  #: the pool that probes
        self.looked: set[Driver] = set()  #: the pools that have made an attempt of their own
        self.is_doubtful = False  #: whether each failure since then may be its pool's own fault

    def begin(self, driver: Driver) -> Attempt:
        world = self.world
        mine = sum(each.driver is driver for each in self.under_way)
        world.demand(mine < AT_ONCE, "a pool makes more attempts at the same time than it may")
        attempt = Attempt(driver, world.clock.now)
        if self._sees_outage() and driver is not self.prober:
            if not self.is_doubtful or driver in self.looked:
                world.demand(
                    not any(each.driver is self.prober for each in self.under_way)
                    or world.interrupts > 0,  # it may have been decided on before the outage began
                    "more probe at the same time than may",
                )
                self.prober = driver  # the one before has resigned
            self.looked.add(driver)
        self.under_way.append(attempt)
        return attempt

    def failed(self, attempt: Attempt, fault: Fault) -> None:
        attempt.is_doubtful = may_be_own(fault) and not attempt.driver.has_served
        if self._sees_outage():
            self.is_doubtful = self.is_doubtful and attempt.is_doubtful
        else:
            self.failures.append(attempt)

    def end(self, attempt: Attempt) -> None:
        self.under_way.remove(attempt)

    def _sees_outage(self) -> bool:
        """Whether there is an outage; of a new one, note which failure has begun it."""
        outage = self.world.record.outage
        if outage.active and self.outage != outage.counted:
            self.outage = outage.counted
            began = [each for each in self.failures if each.began == self.outage]
            # none: a connection in use was told
            self.prober = began[0].driver if began else None
            self.looked.clear()
            self.is_doubtful = bool(began) and all(each.is_doubtful for each in began)
            self.failures.clear()
        return outage.active


class World:
    """Everything there is, and who goes next."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = FakeClock()
        self.server = SimServer(self.clock, max_connections=self.random.choice((3, 8, 100)))
        self.net = Net(self)
        self.hub = greenlet.getcurrent()
        self.threads: list[Thread] = []
        self.pools: list[Pool] = []
        self.buried: list[
            Any
        ] = []  #: threads of a parent process: they do not exist, nor may they unwind
        self.process = SimpleNamespace(number=1)
        self.here = [1]
        self.record = self._new_record()
        self.is_over = False
        self.failure: BaseException | None = None
        self.steps = 0
        #: how often a thread is interrupted
        self.interrupts = self.random.choice((0.0, 0.0, 0.02, 0.2, 0.5))
        #: somebody who was interrupted may have been at rest until then
        self.rested_until = -math.inf
        self.latency = self.random.choice((0.0, 0.001, 0.02))
        #: how often an attempt that began while nothing answered stays without an answer for good
        self.stuck = 0.3
        #: how many seconds the server takes for the end of a transaction
        self.lingers = 0.0
        self.attempts = Attempts(self)
        self.last_failure: tuple[float, FaultKind] | None = None
        self.on_attempt: Callable[[], None] = lambda: None
        self.collections = 0
        self.garbage: list[
            Any
        ] = []  #: connections in reference cycles: only a collection ends them
        self.free_addresses: list[
            int
        ] = []  #: where connections have been in memory: others may come there
        self._addresses = 0

    def violation(self, what: str) -> Violation:
        """Note a broken promise at once: whoever raised it may be surrounded by something that
        swallows it.
        """
        broken = Violation(
            f"{what} [seed {self.seed}, step {self.steps}, t={self.clock.now - 1000:.3f} s]"
        )
        self.failure = self.failure or broken
        return broken

    def demand(self, holds: bool, what: str) -> None:
        if not holds:
            raise self.violation(what)

    def new_address(self) -> int:
        """Where the next connection stands in memory, for ``id``: chosen by the seed like all
        else.
        """
        if self.free_addresses and self.random.random() < 0.7:
            return self.free_addresses.pop()
        self._addresses += 1
        return self._addresses

    # -- threads -----------------------------------------------------------------------------------

    def start(self, work: Callable[[], Any], name: str) -> Thread:
        thread = Thread(lambda: self._guarded(work), name)
        if not self.is_over:
            self.threads.append(thread)
        return thread

    def _guarded(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except (Vanished, greenlet.GreenletExit):
            pass
        except BaseException as exc:
            if not self.is_over:
                self.failure = self.failure or exc

    def me(self) -> Thread | None:
        return getattr(greenlet.getcurrent(), "thread", None)

    def wait(self, ready: Callable[[], bool] | None, until: float, *, safe: bool = False) -> None:
        """Let others go on until *ready*, or until the clock reaches *until*. *safe*: exceptions
        may strike here.
        """
        if self.is_over:
            raise Vanished
        thread = getattr(greenlet.getcurrent(), "thread", None)
        if thread is None:
            return  # the hub itself: a timer, a fault
        thread.ready, thread.until, thread.is_waiting = ready, until, safe
        self.hub.switch()
        thread.is_waiting = False
        if self.is_over:
            raise Vanished
        if thread.strike is not None:
            strike, thread.strike = thread.strike, None
            try:
                raise strike
            finally:
                del strike  # else its traceback would hold this frame, and this frame it

    def pause(self) -> None:
        """A moment in which a thread may be interrupted."""
        if self.interrupts and not self.is_over and self.random.random() < self.interrupts:
            me = self.me()
            chance = self.random.random()
            if me is not None and chance < 0.05:
                # the system lets it rest for a while, whatever it holds
                until = self.clock.now + chance * 0.1
                self.rested_until = max(self.rested_until, until)
                me.is_at_rest = True
                self.wait(None, until)
            elif self.is_any_able(but=me):
                if me is not None:
                    me.is_held_up = chance < 0.25
                self.wait(None, self.clock.now)
            else:
                self.look()  # nobody else can go on: no need to go by way of the hub

    def dial(self, until: float) -> None:
        """The way of an attempt to connect.

        What began while nothing answered may get no answer later either.
        """
        me = self.me()
        dialing = None if me is None else me.dialing
        stuck = not self.server.answers() and self.random.random() < self.stuck
        if not stuck:
            self.round_trip(None, until, dialing)
        elif dialing is not None:
            self.wait(lambda: dialing.is_ended, min(until, self.clock.now + PATIENCE), safe=True)
        if dialing is not None and dialing.is_ended:
            raise TimeoutError("ended from outside")
        if stuck:
            raise FakeOperationalError(Fault(FaultKind.UNREACHABLE, None, 110, "timed out"))

    def round_trip(
        self, conn: Connection | None, until: float, dialing: Dialing | None = None
    ) -> None:
        """Wait for an answer, at most until *until* (or PATIENCE)."""
        now = self.clock.now
        session = None if conn is None else conn.session
        if self.latency:
            self.wait(None, now + self.random.random() * self.latency, safe=True)
        if not self.server.answers(session) or self.interrupts:
            ready = self.server.answers
            self.wait(
                lambda: ready(session) or (dialing is not None and dialing.is_ended),
                min(until, now + PATIENCE),
                safe=True,
            )

    def run(self, until: Callable[[], bool], at_most: float) -> bool:
        """Let threads take turns until *until*; False: *at_most* seconds were not enough, or
        nothing can happen any more.
        """
        clock = self.clock
        end = clock.now + at_most
        moved = self.steps
        while not until():
            now = clock.now
            if able := self.able():
                able = [t for t in able if not t.is_held_up] or able
                self.step(able[self.random.randrange(len(able))] if len(able) > 1 else able[0])
                if self.steps - moved >= 5_000:
                    raise self.violation("it spins: no time passes")
                continue
            self.pass_time()
            timer = clock.next_timer
            moment = min([t.until for t in self.threads], default=math.inf)
            if timer is not None and timer < moment:
                moment = timer
            if moment > end:
                clock.advance_to(end)
                return until()
            if moment > now:
                moved = self.steps
            clock.advance_to(moment)
        return True

    def able(self, but: Thread | None = None) -> list[Thread]:
        """Who can go on at this moment."""
        now = self.clock.now
        return [
            t
            for t in self.threads
            if t is not but
            and (t.until <= now or (t.ready is not None and t.ready()) or t.strike is not None)
        ]

    def is_any_able(self, but: Thread | None) -> bool:
        """Whether another thread can go on at this moment."""
        now = self.clock.now
        for t in self.threads:
            if t is not but and (
                t.until <= now or (t.ready is not None and t.ready()) or t.strike is not None
            ):
                return True
        return False

    def step(self, thread: Thread) -> None:
        thread.until, thread.ready = math.inf, None
        thread.is_held_up = thread.is_at_rest = False
        thread.greenlet.switch()
        if thread.greenlet.dead and thread in self.threads:  # it may have forked
            self.threads.remove(thread)
        self.look()

    def look(self) -> None:
        """A step has been made: does all that must hold?"""
        self.steps += 1
        self.check()
        if self.failure is not None:
            raise self.failure

    check: Callable[[], None] = staticmethod(lambda: None)  # type: ignore[assignment]
    pass_time: Callable[[], None] = staticmethod(lambda: None)  # type: ignore[assignment] # nobody can go on before time passes

    # -- what the pool is told ---------------------------------------------------------------------

    def _new_record(self) -> Server:
        record = Server()
        record._guard = Lock(self, reentrant=True)  # type: ignore[assignment]
        record.pools = Ordered()  # type: ignore[assignment]
        return record

    def touch(self, conn: Connection) -> None:
        """Something goes out on *conn*."""
        inherited = conn.process is not self.process and conn.fd not in self.net.severed
        if inherited and not conn.is_hidden and not self.is_over:
            # what hides its socket cannot be severed
            # a finalizer could not raise it
            self.violation("a child used, or said goodbye on, its parent's session")
        self.net.sent[conn.fd] = self.net.sent.get(conn.fd, 0) + 1

    @contextlib.contextmanager
    def attempt(self, driver: Driver) -> Iterator[None]:
        """Around an attempt to connect."""
        attempts = self.attempts
        self.on_attempt()
        attempt = attempts.begin(driver)
        try:
            yield
        except FakeOperationalError as error:
            if error.fault.kind is not FaultKind.REJECTED:
                self.last_failure = (self.clock.now, error.fault.kind)
            attempts.failed(attempt, error.fault)
            raise
        except TimeoutError:
            me = self.me()
            if me is None or me.dialing is None or not me.dialing.is_overtaken:
                attempts.failed(attempt, UNANSWERED)
            raise
        finally:
            attempts.end(attempt)

    def collect(self) -> None:
        self.collections += 1
        self.garbage.clear()

    def fork(self, keep: Thread | None) -> None:
        """From here on this is the child: of all threads only the one that forked goes on."""
        self.buried += [t for t in self.threads if t is not keep]
        self.buried.append(self.record)
        self.threads = [] if keep is None else [keep]
        self.here[0] = 0
        self.here = [1]
        self.process = SimpleNamespace(number=self.process.number + 1)
        self.record = self._new_record()
        self.net.callbacks = {}
        self.attempts, self.last_failure = Attempts(self), None

    def end(self) -> None:
        """Unwind what is suspended; nothing of that counts."""
        self.is_over = True
        for thread in [*self.threads, *(t for t in self.buried if isinstance(t, Thread))]:
            while thread.greenlet and not thread.greenlet.dead:
                thread.greenlet.throw(Vanished)
        self.threads, self.buried = [], []
        for pool in self.pools:
            for state in pool._states.values():
                state.kernel.closed = True  # its finalizer comes when this world is no more
                for held in (
                    state.kernel.entries,
                    state.kernel.reclaimed,
                    state.kernel.idle,
                    state.kernel.in_use,
                ):
                    held.clear()

    def new_pool(
        self,
        *,
        knows_status: bool = True,
        shows_socket: bool = True,
        defers: bool = False,
        **settings: Any,
    ) -> Pool:
        kind = Deferring if defers else Driver
        driver = kind(self, knows_status=knows_status, shows_socket=shows_socket)
        sync.open_driver = lambda *_args, **_kwargs: driver  # type: ignore[assignment]
        pool = Pool(connect=lambda: None, driver="fake", **settings)
        driver.pool = weakref.ref(pool)
        self.pools.append(pool)
        return pool


class Ordered:
    """Pools in the order in which they came: a weak set's order is not the seed's."""

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Any]] = []

    def add(self, pool: Any) -> None:
        self._refs.append(weakref.ref(pool))

    def __iter__(self) -> Iterator[Any]:
        return iter([pool for ref in self._refs if (pool := ref()) is not None])


def address_of(thing: Any) -> int:
    """What ``id`` says in the simulated world."""
    return thing.address if type(thing) is Connection else id(thing)


def _runtime_for(world: World) -> type[ThreadRuntime]:
    class Runtime(ThreadRuntime):
        def __init__(self, driver: Any = None) -> None:
            self.driver = driver
            self.watcher = world.net  # type: ignore[assignment]

        def new_lock(self) -> Any:
            return Lock(world)

        def new_signal(self) -> Any:
            return Signal(world)

        def dialing(self, limit: float) -> Any:
            return Dialing(world, limit)

        def spawn(self, flow: Any, name: str) -> None:
            world.start(lambda: run(flow, self.do), name)

        def describe_holder(self, entry: Any) -> str:
            return "a thread of the simulation"

        def in_hands(self, wanted: set[int]) -> set[int] | None:
            return None

        def stacks(self) -> None:
            return None

        def stacks_aside(self) -> list[Any]:
            return []

    return Runtime


@contextlib.contextmanager
def installed(world: World) -> Iterator[None]:
    """Put *world* in the place of the real one, below the real pool."""
    runtime, net = _runtime_for(world), world.net
    looks = SimpleNamespace(
        poller=lambda fd: lambda _t: net.poll(fd),
        sweep=net.sweep,
        judge=judge,
        Liveness=Liveness,
    )
    guard = SimpleNamespace(identity=net.identity, abort=net.abort, sever=net.sever)
    counts = SimpleNamespace(
        counter=lambda fd: lambda: net.sent.get(fd, 0),
        has_unsent=lambda _fd: False,
        quiet_for=lambda _fd: None,
    )
    clock = world.clock

    def now() -> float:
        if world.interrupts:
            world.pause()
        return clock.now

    def new_state(*args: Any) -> PoolState:
        state = PoolState(*args)
        state.clock = now
        return state

    time = SimpleNamespace(monotonic=lambda: world.clock.now)
    patches: list[tuple[Any, str, Any]] = [
        (sync, "monotonic", now),
        (lease_module, "monotonic", now),
        (bounds, "monotonic", now),
        (bounds, "identity", net.identity),
        (bounds, "abort", net.abort),
        (sync, "fork_mark", lambda: world.here),
        (sync, "open_driver", None),
        (sync, "ThreadRuntime", runtime),
        (sync, "Sleeper", runtime),
        (sync, "PoolState", new_state),
        *(
            (module, "liveness", looks)
            for module in (knowledge_module, endings_module, leases_module, state_module)
        ),
        *((module, "fork_guard", guard) for module in (endings_module, state_module)),
        *((module, "sent_bytes", counts) for module in (endings_module, state_module)),
        (windows, "sent_bytes", SimpleNamespace(unread_for=lambda _fd: None)),
        (state_module, "keepalive", SimpleNamespace(bound=lambda *_: None)),
        (endings_module, "last_words", SimpleNamespace(peek=net.last_words)),
        (knowledge_module, "HangUps", lambda: HangUps(net)),
        (knowledge_module, "server_of", lambda *_: world.record),
        (knowledge_module, "os", SimpleNamespace(getpid=lambda: world.process.number)),
        (knowledge_module, "Random", lambda: Random(world.random.random())),
        (knowledge_module, "time", time),
        (replay_module, "uniform", world.random.uniform),
        (acquire_module, "gc", SimpleNamespace(collect=world.collect)),
        *(
            (module, "id", address_of)
            for module in (
                sync,
                lease_module,
                leases_module,
                holding_module,
                finishing_module,
                loan_module,
                entry_module,
                fake_module,
            )
        ),
    ]
    before = [(where, name, getattr(where, name, id)) for where, name, _ in patches]
    silence = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    for where, name, what in patches:
        setattr(where, name, what)
    try:
        yield
    finally:
        world.end()
        deeds.joined.clear()  # by addresses, which the next world gives to others
        for where, name, what in before:
            setattr(where, name, what)
        logging.disable(silence)


__all__ = ["Cancelled", "Connection", "Thread", "Violation", "World", "installed"]
