"""Requests of a small app, from many threads, each watched and recorded."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final, NamedTuple

from unbroken_drill.drill.contenders.base import OK, WRONG, SmallApp
from unbroken_drill.drill.results import one_line
from unbroken_drill.drill.worker import workload
from unbroken_drill.drill.worker.workload import Unit

#: A request that takes longer than this hangs. It is longer than any bound that a user would have
#: set, and shorter than users wait.
WATCHDOG: Final = 15.0

#: Seconds of the application's own work between two statements: long enough that a fault often
#: occurs in the middle.
THINK: Final = 0.003


class Record(NamedTuple):
    """One finished request.

    Times are ``time.monotonic()``, which all processes of a machine share.
    """

    start: float
    end: float
    outcome: str
    writes: bool
    number: int


class Traffic:
    """Sends requests to *app* and keeps a :class:`Record` of each.

    *first* keeps the numbers of several processes apart. *seed* makes the times of the requests
    repeatable.
    """

    def __init__(self, app: SmallApp, backend: str, seed: int, first: int = 1) -> None:
        self.app, self.backend = app, backend
        self.records: list[Record] = []
        self.samples: Counter[str] = Counter()  #: one line for each kind of failure
        self.sessions: set[int] = set()  #: every session of the server that answered
        self._random = random.Random(seed)
        self._numbers = count(first)
        self._under_way: dict[int, float] = {}
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()

    def start(self, readers: int, writers: int, every: float) -> None:
        """Begin steady traffic. Each thread sends one request per *every* seconds, and is late only
        if the last one took longer.
        """
        self._stop = threading.Event()
        for index in range(readers + writers):
            make = workload.writing if index >= readers else workload.reading
            self._spawn(self._user, make, every, self._random.random() * every, self._stop)

    def _user(
        self,
        make: Callable[[str, int, float], Unit],
        every: float,
        wait: float,
        stop: threading.Event,
    ) -> None:
        due = time.monotonic() + wait
        while not stop.wait(max(0.0, due - time.monotonic())):
            self.request(make(self.backend, next(self._numbers), THINK))
            due = max(due + every, time.monotonic())

    def pause(self) -> int:
        """Stop the traffic and wait for the requests in progress, up to the watchdog's bound.
        Returns the number of hanging ones.
        """
        self._stop.set()
        return self._settle()

    def burst(self, threads: int, each: int) -> int:
        """Send *threads* requests at once, *each* times. Returns the number of hanging ones."""

        def user() -> None:
            for _ in range(each):
                self.request(workload.reading(self.backend, next(self._numbers), THINK))

        for _ in range(threads):
            self._spawn(user)
        return self._settle()

    def careless(self, requests: int, keep: list[Any] | None) -> None:
        """Send *requests* at once that raise and never return their connection. An object in *keep*
        keeps each connection alive.

        They fail by their own fault, so they are not recorded, and nobody waits for them.
        """
        for _ in range(requests):
            self._spawn(self._careless, keep)

    def _careless(self, keep: list[Any] | None) -> None:
        try:
            conn = self.app.take(workload.who(self.backend, next(self._numbers)))
            if keep is not None:
                keep.append(conn)
            raise RuntimeError("the handler has a bug")
        except Exception:
            return

    def ask_who(self, times: int) -> None:
        """Send *times* short requests, one after the other, in this thread."""
        for _ in range(times):
            self.request(workload.who(self.backend, next(self._numbers)))

    def request(self, unit: Unit) -> None:
        """Send one request, and record it with any outcome."""
        start = time.monotonic()
        self._under_way[unit.number] = start
        try:
            rows = self.app.work(unit)
            wrong = workload.problem(unit, rows)
            outcome = WRONG if wrong else OK
            if wrong:
                self.samples[wrong] += 1
            session = workload.session(rows)
            if session is not None:
                self.sessions.add(session)
        except BaseException as error:  # a user would have seen any error
            outcome = self.app.outcome(error)
            self.samples[one_line(error)] += 1
        if self._under_way.pop(unit.number, None) is not None:
            # otherwise it was counted as hanging before
            self.records.append(Record(start, time.monotonic(), outcome, unit.writes, unit.number))

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        # a hanging request must not keep the process alive
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _settle(self) -> int:
        """Wait until every thread has ended, or has used the watchdog's time. Returns the number of
        hanging requests.

        A hanging request is removed from the list: it is counted once, and has no record unless it
        ends later.
        """
        deadline = time.monotonic() + WATCHDOG
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = []
        hung = list(self._under_way)
        for _ in hung:
            self.samples[f"no answer within {WATCHDOG:.0f} s"] += 1
        self._under_way = {}
        return len(hung)


def merge(samples: Iterable[dict[str, int]]) -> Counter[str]:
    """Return several processes' samples as one."""
    total: Counter[str] = Counter()
    for one in samples:
        total.update(one)
    return total
