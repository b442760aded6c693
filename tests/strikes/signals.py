"""Jobs under a time limit that a real signal keeps, at random moments, in a process of its own.

Run by run.py: python -m strikes.signals ORDER, a JSON object (see orders.py). The main thread runs
jobs, two thirds of them under a limit that may strike at any moment of theirs; other threads run
jobs that nothing strikes. It says what it found as lines of JSON.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from .bodies import BODIES, PATIENCE, Body, DjangoPyMySQLBody, Told
from .orders import Order
from .points import KINDS
from .watchdog import Hang, Watchdog
from .worker import BOUND, is_ours, say, summary

#: Threads whose jobs nothing strikes. They share the pool with those that are struck.
BYSTANDERS = 2
#: Jobs to know how long one takes.
TRIALS = 20
#: Jobs that are struck, by how often.
JOBS = (
    "select",
    "write",
    "write",
    "several",
    "several",
    "fail",
    "again",
    "again",
    "caught",
    "caught_write",
    "own_commit",
    "acquire",
)


class Signals:
    """The jobs of one body on one driver."""

    def __init__(self, order: Order) -> None:
        self.order = order
        kind = BODIES[order.body][0]
        self._kind = (
            DjangoPyMySQLBody if (order.body, order.driver) == ("django", "pymysql") else kind
        )
        self.told = Told()
        self.random = random.Random(order.seed)
        self.dog = Watchdog(BOUND, {urlsplit(order.url).port or 0})
        self.limit: type[BaseException] | None = None
        self.strikes = self.jobs = 0
        self.slowest = 0.0
        self.label = ""
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, *_signal: Any) -> None:
        limit, self.limit = self.limit, None
        if limit is not None:
            self.strikes += 1
            raise limit("struck")

    def play(self) -> None:
        """All passes."""
        for size, kind in self.order.passes:
            self._pass(size, KINDS[kind])
        say(
            points=self.strikes,
            jobs=self.jobs,
            missed=0,
            slowest=self.slowest,
            told=summary(self.told),
        )

    def _pass(self, size: int, kind: type[BaseException]) -> None:
        body = self._kind(self.order.driver, self.order.url, size, self.told)
        body.limits = (kind,)
        times = {name: self._time(body, name) for name in JOBS}
        over = threading.Event()
        bystanders = [
            threading.Thread(target=self._stand_by, args=(body, over), daemon=True)
            for _ in range(BYSTANDERS)
        ]
        for thread in bystanders:
            thread.start()
        before, started = self.strikes, time.monotonic()
        while time.monotonic() - started < self.order.signals:
            name = self.random.choice(JOBS)
            self.label = self.told.point = f"{name}/{size}/{kind.__name__}"
            if self.random.random() < 0.67:
                self._job_with_limit(body, name, self.random.uniform(0.0, 1.3 * times[name]), kind)
            else:
                self._innocent(body, self.random.choice(("select", "write", "again")))
        over.set()
        for thread in bystanders:
            thread.join(BOUND)
        self._look_at_rest(body)
        say(
            scene="signals",
            size=size,
            kind=kind.__name__,
            points=self.strikes - before,
            seconds=time.monotonic() - started,
        )
        try:
            body.close()
        except Exception as error:
            say(
                found="failed",
                at=self.label,
                detail=f"at the end: {type(error).__name__}: {error}"[:600],
            )

    def _time(self, body: Body, name: str) -> float:
        started = time.monotonic()
        for _ in range(TRIALS):
            self._request(body, name)
        return (time.monotonic() - started) / TRIALS

    def _request(self, body: Body, name: str) -> None:
        body.end()
        try:
            getattr(body, name)()
        finally:
            body.end()

    def _job_with_limit(
        self, body: Body, name: str, delay: float, kind: type[BaseException]
    ) -> None:
        """As a job runner does it: the limit is armed before the job and disarmed after it."""
        self.jobs += 1
        before = self.strikes
        self.dog.begin()
        try:
            try:
                self.limit = kind
                signal.setitimer(signal.ITIMER_REAL, max(delay, 1e-5))
                self._request(body, name)
            finally:
                self.limit = None
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Hang:
            say(found="hang", at=self.label, detail="a job with a limit")
        except AssertionError as wrong:
            if is_ours(wrong) or self.strikes == before:
                # else it is what a library made of the strike
                say(found="wrong", at=self.label, detail=f"in the job itself: {wrong!r}")
        except BaseException as error:
            if self.strikes == before and not isinstance(error, kind):
                say(
                    found="failed",
                    at=self.label,
                    detail=f"with no strike: {type(error).__name__}: {error}"[:600],
                )
        self.dog.end()

    def _innocent(self, body: Body, name: str) -> None:
        self.jobs += 1
        self.dog.begin()
        try:
            self._request(body, name)
        except Hang:
            say(found="hang", at=self.label, detail=f"an innocent {name}")
        except AssertionError as wrong:
            say(found="wrong", at=self.label, detail=f"an innocent {name}: {wrong}")
        except BaseException as error:
            say(
                found="failed",
                at=self.label,
                detail=f"an innocent {name}: {type(error).__name__}: {error}"[:600],
            )
        self.dog.end()

    def _stand_by(self, body: Body, over: threading.Event) -> None:
        """Jobs of another thread."""
        while not over.is_set():
            for name in ("select", "write"):
                try:
                    self._request(body, name)
                except AssertionError as wrong:
                    say(found="wrong", at=self.label, detail=f"a bystander's {name}: {wrong}")
                except BaseException as error:
                    say(
                        found="failed",
                        at=self.label,
                        detail=f"a bystander's {name}: {type(error).__name__}: {error}"[:600],
                    )
                time.sleep(0.002)

    def _look_at_rest(self, body: Body) -> None:
        """All places are there within the time that the contract gives."""
        self.dog.begin()
        started = time.monotonic()
        try:
            held = body.hold()
            for conn in held:
                body.ask_raw(conn)
            body.let_go(held)
        except Hang:
            say(found="hang", at=self.label, detail="at rest")
        except BaseException as error:
            say(
                found="place",
                at=self.label,
                detail=f"at rest: {type(error).__name__}: {error}"[:600],
            )
        self.slowest = max(self.slowest, time.monotonic() - started)
        if self.slowest > PATIENCE:
            say(found="place", at=self.label, detail=f"back after {self.slowest:.2f} s")
        stats = body.stats()
        if (stats.idle, stats.size, stats.used) != (body.size, body.size, 0):
            say(
                found="rest",
                at=self.label,
                detail=f"idle {stats.idle}, size {stats.size}, used {stats.used} of {body.size}",
            )
        self.dog.end()


def main() -> None:
    """Do what the command line says."""
    order = Order(**json.loads(sys.argv[1]))
    for name in ("unbroken", "sqlalchemy", "django"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # a strike within a finalizer is not raised; what it did is looked at
    sys.unraisablehook = lambda _: None
    Signals(order).play()
    os._exit(0)


if __name__ == "__main__":
    main()
