"""How a pool for threads runs the flows' steps: by blocking the thread that runs them."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from unbroken.abc import Driver, is_path
from unbroken.brain.entry import Entry
from unbroken.ledger.questions import Question
from unbroken.ledger.scope import outside
from unbroken.logs import Part
from unbroken.messages.pool import WORKER_FAILED
from unbroken.net.dialing import Dialing, blocking
from unbroken.net.signals import start_thread
from unbroken.net.watcher import ThreadWatcher
from unbroken.pool.bounds import Bound, limits_of
from unbroken.pool.holder import describe, referred_to, suspended, thread_frames
from unbroken.pool.secrets import ask
from unbroken.pool.steps import TIMED, Attempt, Call, Connect, Consult, Flow, Reset, Wait, run
from unbroken.settings import Settings

log = Part("pool")


class ThreadRuntime:
    """Runs the flows' steps by blocking the thread that runs them."""

    #: Seconds: see :mod:`unbroken.brain.waiting`. Twice the interpreter's switch interval: shorter
    #: ones gain less, and longer ones make callers wait without any gain (docs/benchmarks.md).
    patience = 0.01
    #: Seconds for each of the driver's methods; the pool's own come from its state.
    limits: Mapping[str, float] = limits_of(Settings())

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.watcher = ThreadWatcher.get()

    def new_lock(self) -> AbstractContextManager[Any]:
        """A lock of the kind that ``threading`` makes now (gevent may have patched it since
        import).

        Reentrant: a finalizer may end a lease (of a forgotten generator, for example) on a thread
        that holds the lock already.
        """
        return threading.RLock()

    def new_signal(self) -> Any:
        """A lock that is held until its waiter is woken: cheaper than an Event."""
        signal = threading.Lock()
        signal.acquire()
        return signal

    def wake(self, signal: Any) -> None:
        """Wake the waiter of *signal*."""
        try:
            signal.release()
        except RuntimeError:
            pass  # it was woken before

    def spawn(self, flow: Flow[Any], name: str) -> None:
        """Run *flow* on a daemon thread. Raises RuntimeError if no thread can be started."""
        start_thread(self._run_logged, flow, name=f"unbroken-{name}")

    def _run_logged(self, flow: Flow[Any]) -> None:
        try:
            run(flow, self.do)
        except Exception:
            log.exception(
                "worker failed",
                WORKER_FAILED("a background worker failed; the next one takes over"),
            )

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* here: any thread may access this pool's state."""
        function()

    def is_awake(self) -> bool:
        """Return True: threads always make progress."""
        return True

    def in_hands(self, wanted: set[int]) -> set[int] | None:
        """The ids in *wanted* of entries that a thread has in a variable. None if stacks cannot be
        read.

        A suspended greenlet owns only entries that the pool has recorded: it is suspended only
        where it waits.
        """
        frames = thread_frames()
        if frames is None:
            return None
        # above the calling function, whose variables they are
        frames[threading.get_ident()] = sys._getframe(2)
        return referred_to(frames.values(), wanted)

    def stacks(self) -> list[FrameType] | None:
        """The current frame of each thread."""
        frames = thread_frames()
        return None if frames is None else list(frames.values())

    def stacks_aside(self) -> list[FrameType]:
        """The frame of each suspended greenlet."""
        return suspended()

    def dialing(self, limit: float) -> Dialing:
        """An attempt to connect on the current thread."""
        hosts = self.driver.target.hosts
        # or the caller's own connect, of an unknown kind
        is_unix = not hosts or any(is_path(host) for host, _ in hosts)
        return blocking(self.watcher, limit, is_unix=is_unix)

    def describe_holder(self, entry: Entry) -> str:
        """The thread (or greenlet) that has *entry*, and its stack."""
        return describe(entry.holder)

    def do(self, step: Any) -> Any:
        """Run one step of a flow."""
        kind = type(step)
        if kind is Wait:
            return (
                step.signal.acquire(timeout=step.timeout)
                if step.timeout > 0
                else step.signal.acquire(blocking=False)
            )
        if kind is Call:
            return self._call(step)
        if kind is Connect:
            with step.dialing:
                if step.make is None:
                    return self.driver.connect(step.timeout, step.login)
                return step.make() if step.context is None else step.context.run(step.make)
        if kind is Consult:
            with step.dialing:
                return ask(step.name, step.function)
        if kind is Reset:
            with Bound(
                self.watcher,
                self.driver,
                step.conn,
                self.limits["reset"],
                "the statements of the reset function",
            ):
                return step.function(step.conn)
        if kind is Attempt:
            return step.work()
        raise TypeError(f"unknown step {step!r}")

    def _call(self, step: Call) -> Any:
        method = getattr(self.driver, step.method)
        limit = self.limits[step.method] if step.timeout is None else step.timeout
        if limit == math.inf:
            return method(step.conn, *step.args)
        # Not every driver can limit every call: one that still blocks a little later is ended from
        # outside.
        with Bound(self.watcher, self.driver, step.conn, limit * 1.05, step.method, step.entry):
            return (
                method(step.conn, limit) if step.method in TIMED else method(step.conn, *step.args)
            )


class Sleeper(ThreadRuntime):
    """The part of a runtime that a unit of work needs; it has no driver."""

    def __init__(self) -> None:
        pass


def inquire(state: Any, question: Question, until: float) -> Any:
    """The answer to *question* from the server of *state*, a pool's state. None if it cannot be
    asked here.

    Raises the errors of an acquire.
    """
    if state.driver.is_async:
        return None
    with outside():
        return run(state.inquire(question, until), state.runtime.do)
