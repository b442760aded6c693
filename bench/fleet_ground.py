"""A thousand processes before one server, in simulated time: the real flows and policies on a heap
of events.

Each process has a real ``PoolState`` with its own record of the server and its own random numbers;
the flows' steps (connect, call, wait) are done by the event loop below. What is modelled is the
server: it opens so many connections a second, one after the other, holds so many sessions, and may
be down, starting or out of reach. ``fleet.py`` measures; this file knows no numbers.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from types import SimpleNamespace
from typing import Any

from unbroken.abc import Capabilities, Cause, Fault, FaultKind, Target
from unbroken.ledger import questions
from unbroken.ledger.questions import Question
from unbroken.pool import acquire as acquire_module
from unbroken.pool import knowledge as knowledge_module
from unbroken.pool.acquire import acquire
from unbroken.pool.connect import connector
from unbroken.pool.loan import Loan
from unbroken.pool.state import PoolState
from unbroken.pool.steps import Call, Connect, Wait
from unbroken.settings import Settings

#: When a SYN without an answer is sent again, in seconds after the first (Linux:
#: net.ipv4.tcp_syn_retries, doubling from 1 s).
SYN_AGAIN = (0.0, 1.0, 3.0, 7.0, 15.0)

Flow = Generator[Any, Any, Any]


class Events:
    """The clock, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, list[Any]]] = []
        self._count = 0

    def at(self, when: float, do: Callable[[], Any]) -> Any:
        """Call *do* at *when*; ``cancel()`` of what this gives forgets it."""
        self._count += 1
        cell: list[Any] = [do]
        if when != math.inf:
            heappush(self._heap, (max(when, self.now), self._count, cell))
        return SimpleNamespace(cancel=cell.clear, when=when)

    def stopped(self) -> None:
        """Time goes on."""

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until *until*, or until it is *enough*."""
        while self._heap and self._heap[0][0] <= until and not enough():
            self.now, _, cell = heappop(self._heap)
            if cell:
                cell[0]()
        if not enough():
            self.now = max(self.now, until)

    def start(self, flow: Flow) -> None:
        """Run *flow* from now on: ``None`` is what it yields to be resumed later by whom it
        told.
        """
        Runner(self, flow).go_on()


class Signal:
    """What a flow waits for."""

    __slots__ = ("is_set", "waiter")

    def __init__(self) -> None:
        self.is_set, self.waiter = False, None

    def wake(self) -> None:
        self.is_set = True
        if self.waiter is not None:
            self.waiter()


class Runner:
    """One flow under way."""

    __slots__ = ("events", "flow")

    def __init__(self, events: Events, flow: Flow) -> None:
        self.events, self.flow = events, flow

    def go_on(self, result: Any = None, error: BaseException | None = None) -> None:
        try:
            step = self.flow.send(result) if error is None else self.flow.throw(error)
        except StopIteration:
            return
        if isinstance(step, Wait):
            self._wait(step)
        else:
            step(self.go_on)

    def _wait(self, step: Wait) -> None:
        events, signal = self.events, step.signal
        if signal is None:
            events.at(events.now + step.timeout, self.go_on)
            return
        if signal.is_set:
            signal.is_set = False
            events.at(events.now, self.go_on)
            return

        def end() -> None:
            timer.cancel()
            signal.waiter, signal.is_set = None, False
            events.at(events.now, self.go_on)

        timer = events.at(events.now + step.timeout, end)
        signal.waiter = end


class FleetError(Exception):
    """What the driver of this place raises."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


@dataclass(eq=False, slots=True, weakref_slot=True)
class Session:
    """A connection: both its ends."""

    owner: Any
    is_open: bool = True
    #: wakes the caller that waits for an answer on it
    end: Signal = field(default_factory=Signal)


@dataclass(slots=True)
class Server:
    """One database server. *mode*: ``up``, ``refusing``, ``starting``, ``unreachable``."""

    events: Events
    connects_per_second: float
    max_connections: int
    round_trip: float = 0.0005
    mode: str = "up"
    sessions: dict[Session, None] = field(default_factory=dict)
    #: when each was begun, and what became of it
    attempts: list[tuple[float, str]] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    _free_at: float = 0.0

    def connect(
        self, owner: Any, timeout: float, done: Callable[..., Any], dialing: Dialing | None = None
    ) -> None:
        """Somebody's attempt: *done* is called with a session, or with ``error=``."""
        events = self.events
        if self.mode == "refusing":
            self._end("refused", FaultKind.REFUSED, events.now + self.round_trip, done)
        elif self.mode == "starting":
            self._end("not ready", FaultKind.NOT_READY, events.now + self.round_trip, done)
        elif self.mode == "unreachable":
            self.attempts.append((events.now, "no answer"))
            self._send_again(owner, events.now, timeout, done, dialing)
        else:
            if dialing is not None:
                dialing.is_in_line = True
            self._open(owner, events.now + timeout, done)

    def _end(self, what: str, kind: FaultKind, when: float, done: Callable[..., Any]) -> None:
        self.attempts.append((self.events.now, what))
        self.counted[what] += 1
        error = FleetError(Fault(kind, None, None, what))
        self.events.at(when, lambda: done(error=error))

    def _send_again(
        self,
        owner: Any,
        begun: float,
        timeout: float,
        done: Callable[..., Any],
        dialing: Dialing | None,
    ) -> None:
        """Nothing answered: the kernel sends its SYN again, until the caller's time is up."""
        events = self.events
        due = next((begun + after for after in SYN_AGAIN if begun + after > events.now), math.inf)
        if due >= begun + timeout:
            error = FleetError(Fault(FaultKind.UNREACHABLE, None, 110, "timed out"))
            self.counted["no answer"] += 1
            events.at(begun + timeout, lambda: done(error=error))
            return

        def again() -> None:
            if self.mode == "unreachable":
                self._send_again(owner, begun, timeout, done, dialing)
            else:
                self.connect(owner, begun + timeout - events.now, done, dialing)

        events.at(due, again)

    def _open(self, owner: Any, until: float, done: Callable[..., Any]) -> None:
        """It opens one after the other. Who has given up meanwhile costs it the same."""
        events = self.events
        self._free_at = max(self._free_at, events.now) + 1.0 / self.connects_per_second
        if self._free_at > until:
            self._end("timed out", FaultKind.UNREACHABLE, until, done)
            return
        begun = events.now

        def opened() -> None:
            if self.mode != "up":
                self._end("refused", FaultKind.REFUSED, events.now, done)
            elif len(self.sessions) >= self.max_connections:
                self.attempts.append((begun, "full"))
                self.counted["full"] += 1
                done(
                    error=FleetError(Fault(FaultKind.TOO_MANY, None, 1040, "too many connections"))
                )
            else:
                self.attempts.append((begun, "accepted"))
                self.counted["accepted"] += 1
                session = Session(owner)
                self.sessions[session] = None
                done(session)

        events.at(self._free_at + self.round_trip, opened)

    def lose_all(self, mode: str) -> None:
        """Every session ends, and from here on it is in *mode*."""
        self.mode, sessions = mode, list(self.sessions)
        self.sessions.clear()
        for session in sessions:
            session.is_open = False
            self.events.at(self.events.now + self.round_trip, session.owner.session_ended)
            self.events.at(self.events.now + self.round_trip, session.end.wake)

    def close(self, session: Session) -> None:
        session.is_open = False
        self.sessions.pop(session, None)


class Driver:
    """What PoolState asks of a driver, here."""

    name = "fleet"
    errors = (FleetError,)
    capabilities = Capabilities(fileno=True, transaction_status=True)
    target = Target(scheme="fleet", backend="fleet", host=None, database="fleet")
    blindness = None
    login_may_change = False
    _connect = True  # a record of its own for each: each pool is a process

    def __init__(self, server: Server) -> None:
        self.server = server

    def fileno(self, _conn: Session) -> None:
        return None

    def session_id(self, _conn: Session) -> None:
        return None

    def is_in_transaction(self, _conn: Session) -> bool:
        return False

    def is_clean(self, _conn: Session, _traits: Any) -> bool:
        return True

    def is_quiet(self, _conn: Session) -> bool:
        return True

    def traits(self, _conn: Session) -> None:
        return None

    def needs_trial(self, _conn: Session) -> bool:
        return False

    def classify(self, exc: BaseException) -> Fault:
        return exc.fault if isinstance(exc, FleetError) else Fault(FaultKind.OTHER, text=str(exc))

    def close(self, conn: Session) -> None:
        self.server.close(conn)


class Dialing:
    """One attempt to connect, which its process may give up; it costs the server the same."""

    def __init__(self, server: Server, limit: float) -> None:
        self.server, self.limit = server, limit
        self.is_ended = self.is_over = self.is_in_line = False
        self.asks: str | None = None
        self._done: Callable[..., Any] = lambda **_: None

    def begin(self, owner: Any, done: Callable[..., Any]) -> None:
        self._done = done
        self.server.connect(owner, self.limit, self._came, self)

    def _came(self, session: Session | None = None, error: Exception | None = None) -> None:
        if not self.is_ended:
            self.is_over = True
            self._done(session, error)
        elif session is not None:
            self.server.close(session)

    def end(self, *, overtaken: bool = False) -> None:
        if not self.is_over and not self.is_ended:
            self.is_ended = True
            self._done(error=FleetError(Fault(FaultKind.UNREACHABLE, None, 110, "timed out")))

    def has_made(self, fd: int | None) -> None:
        """No question hangs here."""

    def is_moving(self, within: float) -> bool:
        return False

    def is_asking(self, within: float) -> bool:
        return False

    def is_connected(self) -> bool:
        return self.is_in_line


class Process:
    """One process with one of our pools: what its flows need of a body."""

    patience = 0.0

    def __init__(self, server: Server, size: int, random: Random, **settings: Any) -> None:
        self.server, self.events = server, server.events
        self.watcher = self.events
        self.driver = Driver(server)
        self.settings = Settings.of(max_size=size, **settings)
        self.state = PoolState(
            self.driver, self.settings, self, "fleet", lambda *_: None, [1], connector
        )  # type: ignore[arg-type]
        self.state.random = random
        self.state.clock = lambda: self.events.now

    def new_lock(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def new_signal(self) -> Signal:
        return Signal()

    def wake(self, signal: Signal) -> None:
        signal.wake()

    def spawn(self, flow: Flow, _name: str) -> None:
        self.events.at(self.events.now, lambda: self.events.start(self._steps(flow)))

    def call(self, function: Callable[[], None]) -> None:
        function()

    def is_awake(self) -> bool:
        return True

    def dialing(self, limit: float) -> Dialing:
        return Dialing(self.server, limit)

    def describe_holder(self, _entry: Any) -> str:
        return ""

    def _steps(self, flow: Flow) -> Flow:
        """*flow*, with its steps turned into what the event loop does."""
        result, error = None, None
        while True:
            try:
                step = flow.send(result) if error is None else flow.throw(error)
            except StopIteration as end:
                return end.value
            try:
                result, error = (yield self._as_event(step)), None
            except FleetError as exc:
                result, error = None, exc

    def _as_event(self, step: Any) -> Any:
        if isinstance(step, Connect):
            return lambda done: step.dialing.begin(self, done)
        if isinstance(step, Call):
            return lambda done: self.events.at(
                self.events.now + self.server.round_trip, lambda: self._answer(step, done)
            )
        return step

    def _answer(self, step: Call, done: Callable[..., Any]) -> None:
        if step.conn.is_open:
            done([(len(self.server.sessions),)] if step.method == "ask" else None)
        else:
            done(error=FleetError(Fault(FaultKind.LOST, Cause.CLOSED_BY_PEER, 2013, "lost")))

    def session_ended(self) -> None:
        """What the watcher sees."""
        for entry in list(self.state.kernel.entries.values()):
            conn = entry.conn if entry.conn is not None or entry.ref is None else entry.ref()
            if conn is not None and not conn.is_open:
                self.state.ended(entry)

    def request(self, hold: float) -> Flow:
        """One request: wait for a connection, use it, give it back. True: it was served."""
        state, events = self.state, self.events
        started = events.now
        entry = yield from self._steps(
            acquire(state, None, started, started + self.settings.acquire_timeout)
        )
        loan = Loan()
        state.lend(loan, entry, sys._getframe(), events.now, 1)
        yield Wait(loan.conn.end, hold)
        served: bool = loan.conn.is_open
        state.take_back(entry, loan.conn, healthy=served)
        return served


class Naive:
    """One process with a pool as most are: who finds nothing idle connects, and when that fails
    tries again after *pause*.
    """

    def __init__(self, server: Server, random: Random, pause: float, timeout: float = 5.0) -> None:
        self.server, self.events, self.random, self.pause, self.timeout = (
            server,
            server.events,
            random,
            pause,
            timeout,
        )
        self.idle: list[Session] = []

    def session_ended(self) -> None:
        pass  # it finds out when it uses one

    def request(self, hold: float) -> Flow:
        """As :meth:`Process.request`."""
        while True:
            conn = self.idle.pop() if self.idle else None
            if conn is None:
                try:
                    conn = yield lambda done: self.server.connect(self, self.timeout, done)
                except FleetError:
                    yield Wait(None, self.pause)
                    continue
            yield Wait(conn.end, hold)
            if conn.is_open:
                self.idle.append(conn)
                return True


@contextmanager
def without_sockets() -> Iterator[None]:
    """The flows' parts that look at sockets and memory, put out of work: there are none here."""
    patches = [
        (
            knowledge_module,
            "HangUps",
            lambda: SimpleNamespace(
                look=list, forget=lambda _: None, add=lambda _: None, dead=list
            ),
        ),
        (acquire_module, "gc", SimpleNamespace(collect=lambda: None)),
        (acquire_module, "judge", lambda _: acquire_module.Liveness.ALIVE),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in patches]
    count = ("fleet", Question.SESSIONS)
    questions._TEXTS[count] = "how many sessions?"
    for where, name, what in patches:
        setattr(where, name, what)
    try:
        yield
    finally:
        del questions._TEXTS[count]
        for where, name, what in before:
            setattr(where, name, what)


__all__ = ["Events", "Naive", "Process", "Server", "without_sockets"]
