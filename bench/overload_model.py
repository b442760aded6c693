"""More callers than a pool can serve, in simulated time: the real line of the kernel under several
rules of who is told at once.

Nothing here waits: an event says when it happens. Callers come by themselves, at random, whether or
not others have been served (an open loop: users), or each again when it has been served (a closed
loop: a batch job). Users leave after their patience. Some take their request with them
(``cancels``), others leave a request behind that is served in vain, as a web server's mostly do.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from unbroken.brain.entry import Entry
from unbroken.brain.kernel import Kernel, Ticket
from unbroken.brain.line import Line, Refusal
from unbroken.brain.ranks import Rank

UNIT = 0.020  #: seconds of the usual unit of work
THREAD = 0.001  #: … that a web server's thread has to do besides
CONNECT = 0.010  #: … and until a connection is replaced

Sampler = Callable[[Random], float]


def constant(_random: Random) -> float:
    return UNIT


def exponential(random: Random) -> float:
    return random.expovariate(1 / UNIT)


def heavy(random: Random) -> float:
    """Pareto with index 1.5, cut off at 100 times the mean: few long units, most short."""
    return min(random.paretovariate(1.5) / 3.0, 100.0) * UNIT


UNITS: dict[str, Sampler] = {"constant": constant, "exponential": exponential, "heavy": heavy}


@dataclass(slots=True, eq=False)
class Caller:
    """One use of the pool that somebody wants."""

    came: float
    rank: Rank = Rank.NORMAL
    patience: float = math.inf  #: it leaves so many seconds after it came …
    cancels: bool = False  #: … and takes its request with it
    web: bool = False
    timeout: float = 10.0
    again: bool = False  #: of a closed loop: the next one comes when this one is over
    ticket: Ticket | None = None
    entry: Entry | None = None
    granted: float = math.inf
    over: float = math.inf
    how: str = ""  #: served, shed, timed out, left

    @property
    def in_time(self) -> bool:
        return self.how == "served" and self.over - self.came <= self.patience

    @property
    def took(self) -> float:
        return self.over - self.came


class Rule(Protocol):
    """Who is told at once."""

    def came(self, model: Model, caller: Caller) -> bool:
        """Whether *caller*, who has just joined the line, is told at once."""

    def granted(self, model: Model, caller: Caller) -> bool:
        """Whether *caller*, who was just granted a connection, is told that it came too late."""

    def left(self, model: Model, caller: Caller) -> None:
        """*caller* left the line."""


class Waits:
    """Everybody waits for its time: SQLAlchemy, asyncpg, psycopg_pool by default."""

    def came(self, model: Model, caller: Caller) -> bool:
        return False

    def granted(self, model: Model, caller: Caller) -> bool:
        return False

    def left(self, model: Model, caller: Caller) -> None:
        pass


class MaxWaiting(Waits):
    """psycopg_pool with max_waiting."""

    def __init__(self, most: int = 50) -> None:
        self.most = most

    def came(self, model: Model, caller: Caller) -> bool:
        return len(model.kernel.waiting) > self.most


class Ecto(Waits):
    """DBConnection's: an interval in which nobody waited for less than the target makes the pool
    slow; while it is, those that have waited for twice the target are told when their turn comes.
    """

    def __init__(self, target: float = 0.05, interval: float = 1.0) -> None:
        self.target, self.interval = target, interval
        self.began, self.least, self.slow = 0.0, math.inf, False

    def granted(self, model: Model, caller: Caller) -> bool:
        assert caller.ticket is not None
        now, waited = model.now, model.now - caller.ticket.since
        if now >= self.began + self.interval:
            self.slow = self.least > self.target and self.least < math.inf
            self.began, self.least = now, math.inf
        self.least = min(self.least, waited)
        return self.slow and waited > 2 * self.target

    def left(self, model: Model, caller: Caller) -> None:
        pass


class Ours:
    """unbroken's own, as ``pool/acquire.py`` asks it."""

    def __init__(self, target: float | None = None) -> None:
        self.line, self.target = Line(), target
        self.why: dict[str, int] = {}

    def came(self, model: Model, caller: Caller) -> bool:
        now, kernel, ticket = model.now, model.kernel, caller.ticket
        assert ticket is not None
        ahead = kernel.ahead(ticket)
        told: Refusal | None = self.line.came(
            now,
            caller.rank,
            ahead,
            caller.timeout,
            kernel.max_size,
            users=kernel.users - 1 if caller.web or self.target is not None else None,
            target=self.target,
        )
        if told is not None or self.line.patience(now) < math.inf:
            for late in self.line.late(now, kernel.waiting, kernel.max_size):
                if late is not ticket:
                    model.tell(late.signal)
        if told is not None:
            self.why[told.why] = self.why.get(told.why, 0) + 1
        return told is not None

    def granted(self, model: Model, caller: Caller) -> bool:
        if caller.granted > caller.came:
            self.line.granted(model.now, model.size, others=bool(model.kernel.waiting))
        return False

    def left(self, model: Model, caller: Caller) -> None:
        self.line.left(model.now, model.now - caller.came, model.size)


@dataclass
class Model:
    """One pool, its callers, and a rule."""

    size: int
    rule: Any
    unit: Sampler = exponential
    seed: int = 1
    threads: int | None = None  #: of a web server that has so many: others wait before it
    #: seconds of the one processor that such a thread needs for each answer (Python's lock)
    answering: float = 0.0
    now: float = 0.0
    callers: list[Caller] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.kernel = Kernel(self.size)
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._number = itertools.count()
        self._busy = 0
        self._answered = 0.0  #: when the processor has done with all answers
        self._before: deque[Caller] = deque()
        for _ in range(self.size):
            self.kernel.opening += 1
            self.kernel.opened(Entry(Place(), 0.0, 0, math.inf))

    @property
    def capacity(self) -> float:
        """Units of work a second."""
        return self.size / UNIT

    def at(self, when: float, what: Callable[..., None], about: Any = None) -> None:
        heapq.heappush(self._events, (when, next(self._number), what, about))

    def open_loop(self, start: float, end: float, factor: float, **about: Any) -> None:
        """Users come at random, *factor* times as many as can be served."""
        when, rate = start, factor * self.capacity
        while (when := when + self.random.expovariate(rate)) < end:
            self.at(when, self._comes, Caller(when, **about))

    def burst(self, when: float, number: int, **about: Any) -> None:
        for _ in range(number):
            self.at(when, self._comes, Caller(when, **about))

    def closed_loop(self, number: int, until: float, **about: Any) -> None:
        self.ends = until
        for i in range(number):
            when = 0.0001 * i
            self.at(when, self._comes, Caller(when, again=True, **about))

    def run(self) -> Model:
        while self._events:
            self.now, _, what, about = heapq.heappop(self._events)
            what(about)
        return self

    # -- events ------------------------------------------------------------------------------------

    def _comes(self, caller: Caller) -> None:
        self.callers.append(caller)
        if self.threads is None:
            self._asks(caller)
            return
        self._before.append(caller)
        self._next_thread()

    def _next_thread(self) -> None:
        assert self.threads is not None
        while self._before and self._busy < self.threads:
            self._busy += 1
            self._asks(self._before.popleft())

    def _thread_is_free(self, _about: Any) -> None:
        self._busy -= 1
        self._next_thread()

    def _asks(self, caller: Caller) -> None:
        caller.ticket = ticket = Ticket(self.now, caller, caller.rank)
        ticket.is_users = caller.web or getattr(self.rule, "target", None) is not None
        if not self.kernel.waiting and self.kernel.idle:
            self._start([*self.kernel.enter(ticket)])
            return
        self._start(self.kernel.enter(ticket))
        if ticket.entry is None and caller.how == "":
            if self.rule.came(self, caller):
                self.tell(caller)
                return
            self.at(self.now + caller.timeout, self._time_is_up, caller)
        if caller.cancels:
            self.at(caller.came + caller.patience, self._leaves, caller)

    def tell(self, caller: Caller, how: str = "shed") -> None:
        """*caller* does not wait any longer."""
        assert caller.ticket is not None
        self.kernel.leave(caller.ticket)
        self._over(caller, how)

    def _over(self, caller: Caller, how: str) -> None:
        self._answered = max(self.now, self._answered) + self.answering
        caller.over, caller.how = self._answered, how
        if self.threads is not None:
            self.at(self._answered + THREAD, self._thread_is_free)
        if caller.again and self.now < self.ends:
            another = Caller(self.now, again=True, web=caller.web, rank=caller.rank)
            self.at(self.now, self._comes, another)

    def _start(self, tickets: list[Ticket]) -> None:
        tickets = list(tickets)
        while tickets:
            ticket = tickets.pop(0)
            caller: Caller = ticket.signal
            entry, ticket.entry = ticket.entry, None
            assert entry is not None
            caller.granted, caller.entry = self.now, entry
            if self.rule.granted(self, caller):
                self._over(caller, "shed")
                self.kernel.put(entry)
                tickets += self.kernel.serve()[0]
                continue
            self.kernel.lend(entry)
            self.at(self.now + self.unit(self.random), self._ends, caller)

    def _ends(self, caller: Caller) -> None:
        if caller.how == "":
            self._over(caller, "served")
            self._give(caller)

    def _give(self, caller: Caller) -> None:
        assert caller.entry is not None
        self.kernel.put(self.kernel.in_use.pop(caller.entry.key))
        self._start(self.kernel.serve()[0])

    def _time_is_up(self, caller: Caller) -> None:
        if caller.how == "" and caller.entry is None:
            self.tell(caller, "timed out")

    def _leaves(self, caller: Caller) -> None:
        if caller.how:
            return
        if caller.entry is None:
            self.tell(caller, "left")
            self.rule.left(self, caller)
            return
        # in the middle of its unit of work: the connection is closed, and another one opened
        self._over(caller, "left")
        if caller.granted - caller.came > self.now - caller.granted:
            self.rule.left(self, caller)
        self.at(self.now + CONNECT, self._give, caller)

    # -- figures -----------------------------------------------------------------------------------

    def between(self, start: float, end: float, rank: Rank | None = None) -> Figures:
        found = [
            c for c in self.callers if start <= c.came < end and (rank is None or c.rank is rank)
        ]
        done = sum(c.in_time and start <= c.over < end for c in self.callers)
        return Figures(found, done / (end - start) / self.capacity)


class Place:
    """Stands for a driver's connection."""


@dataclass
class Figures:
    """What became of some callers."""

    callers: list[Caller]
    goodput: float  #: answers in time while they came, as a share of what the pool can serve

    def quantile(self, share: float, *hows: str) -> float:
        """Seconds until callers that ended so were told, or served."""
        took = sorted(c.took for c in self.callers if c.how in hows)
        return took[min(int(share * len(took)), len(took) - 1)] if took else 0.0

    def share(self, *hows: str) -> float:
        """Which part of them ended so."""
        return sum(c.how in hows for c in self.callers) / max(1, len(self.callers))

    @property
    def p99(self) -> float:
        return self.quantile(0.99, "served")


RULES: dict[str, Callable[[], Any]] = {
    "everybody waits": Waits,
    "max_waiting=50": MaxWaiting,
    "Ecto's rule": Ecto,
    "unbroken": Ours,
}
