"""How a pool for asyncio runs the flows' steps, by awaiting them on one event loop, and how it ends
with its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import FrameType
from typing import Any

from unbroken.abc import AsyncDriver, Connection
from unbroken.brain.entry import Entry
from unbroken.ledger.scope import apart
from unbroken.logs import Part
from unbroken.messages.pool import WORKER_FAILED
from unbroken.net.dialing import Dialing, OnLoop
from unbroken.net.watcher import LoopWatcher
from unbroken.pool.bounds import Bound, limits_of
from unbroken.pool.holder import DEPTH, in_a_line
from unbroken.pool.secrets import Aside
from unbroken.pool.state import PoolState
from unbroken.pool.steps import TIMED, Attempt, Call, Connect, Consult, Flow, Reset, Wait, run_async
from unbroken.settings import Settings

log = Part("pool")

#: Seconds that a driver has to notice that its socket was ended, before its call is cancelled.
AFTER_THE_END = 0.25


class LoopRuntime:
    """Runs the flows' steps by awaiting, on one event loop."""

    patience = 0.0  # a task that is woken costs no switch of threads
    #: Seconds for each of the driver's methods; the pool's own come from its state.
    limits: Mapping[str, float] = limits_of(Settings())

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self.driver = driver
        self.loop = loop
        self.watcher = LoopWatcher(loop)
        self.aside = Aside(loop)
        self._tasks: set[asyncio.Task[Any]] = set()  # a loop holds its tasks only weakly
        self.finalizer: weakref.finalize[..., Any] | None = None  #: for a pool that is dropped
        self.farewell: AsyncGenerator[None, None] | None = None  #: for a loop that ends

    def new_lock(self) -> AbstractContextManager[Any]:
        """A context manager that locks nothing: between two awaits only one task runs."""
        return contextlib.nullcontext()

    def new_signal(self) -> asyncio.Future[None]:
        """A new future, for :meth:`wake`."""
        return self.loop.create_future()

    def wake(self, signal: asyncio.Future[None]) -> None:
        """Resolve *signal*."""
        if not signal.done():
            signal.set_result(None)

    def spawn(self, flow: Flow[Any], name: str) -> None:
        """Run *flow* as a task, outside any unit of work."""
        task = self.loop.create_task(
            self._run_logged(flow), name=f"unbroken-{name}", context=apart()
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_logged(self, flow: Flow[Any]) -> None:
        task = asyncio.current_task()

        async def do(step: Any) -> Any:
            if task is not None and task.cancelling():
                # a driver turned the cancellation into its own error
                raise asyncio.CancelledError
            return await self.do(step)

        try:
            await run_async(flow, do)
        except Exception:
            log.exception(
                "worker failed",
                WORKER_FAILED("a background worker failed; the next one takes over"),
            )

    def call(self, function: Callable[[], None]) -> None:
        """Run *function* on the loop, soon. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to run it
            self.loop.call_soon_threadsafe(function)

    def is_awake(self) -> bool:
        """Whether the loop runs now."""
        return self.loop.is_running()

    def in_hands(self, wanted: set[int]) -> set[int] | None:  # noqa: ARG002 - as the blocking one has it
        """Return none of them: between two awaits only one task runs, and the pool itself records
        the entries that a task owns while it awaits.
        """
        return set()

    def stacks(self) -> list[FrameType] | None:
        """Return None, unknown: a coroutine may wait anywhere.

        An exception strikes a task only where it awaits something.
        """
        return None

    def stacks_aside(self) -> list[FrameType]:
        """Return nothing: see :meth:`stacks`."""
        return []

    def dialing(self, limit: float) -> Dialing:
        """An attempt to connect in the current task."""
        return OnLoop(self.watcher, limit)

    def describe_holder(self, entry: Entry) -> str:
        """The task that has *entry*, and its current position. That is a task with the connection
        in a variable, else one inside the function that took it.
        """
        conn = None if entry.ref is None else entry.ref()
        found: tuple[asyncio.Task[Any], list[FrameType]] | None = None
        for task in asyncio.all_tasks(self.loop):
            frames = _stack(task)
            if conn is not None and any(
                value is conn for frame in frames for value in frame.f_locals.values()
            ):
                found = (task, frames)
                break
            if any(frame.f_code is entry.code for frame in frames):
                found = found or (task, frames)
        if found is None:
            return "a task that has ended"
        return (
            f"task {found[0].get_name()}, which is now at {in_a_line(reversed(found[1][-DEPTH:]))}"
        )

    async def do(self, step: Any) -> Any:
        """Run one step of a flow."""
        kind = type(step)
        if kind is Wait:
            await asyncio.wait((step.signal,), timeout=step.timeout)
            return None
        if kind is Call:
            return await self._call(step)
        if kind is Connect:
            async with step.dialing:
                return await self._connect(step)
        if kind is Consult:
            async with step.dialing:
                return await self.aside.ask(step.name, step.function)
        if kind is Reset:
            return await self._reset(step)
        if kind is Attempt:
            return await step.work()
        raise TypeError(f"unknown step {step!r}")

    async def _connect(self, step: Connect) -> Any:
        return await self.driver.connect(step.timeout, step.login)

    async def _call(self, step: Call) -> Any:
        method = getattr(self.driver, step.method)
        limit = self.limits[step.method] if step.timeout is None else step.timeout
        if limit == math.inf:
            return await method(step.conn, *step.args)
        async with self._bounded(step.conn, limit, step.method, step.entry):
            return await (
                method(step.conn, limit) if step.method in TIMED else method(step.conn, *step.args)
            )

    async def _reset(self, step: Reset) -> Any:
        async with self._bounded(
            step.conn, self.limits["reset"], "the statements of the reset function"
        ):
            result = step.function(step.conn)
            return await result if hasattr(result, "__await__") else result

    @contextlib.asynccontextmanager
    async def _bounded(
        self, conn: Connection, limit: float, what: str, entry: Entry | None = None
    ) -> AsyncIterator[None]:
        """End the socket when the time is up, which every driver detects. Then cancel a call that
        continues nevertheless.

        A cancelled driver may itself wait for the server first (psycopg asks it to cancel the
        query, asyncpg too).
        """
        last = None if limit == math.inf else limit * 1.05 + AFTER_THE_END
        with Bound(self.watcher, self.driver, conn, limit * 1.05, what, entry):
            async with asyncio.timeout(last):
                yield

    async def stop(self) -> None:
        """End the background tasks."""
        tasks = [t for t in self._tasks if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _stack(task: asyncio.Task[Any]) -> list[FrameType]:
    """The frames of a suspended *task*, innermost last. (``Task.get_stack`` only gives the
    outermost coroutine.)
    """
    frames: list[FrameType] = []
    inside: Any = task.get_coro()
    while inside is not None:
        frame = getattr(inside, "cr_frame", None) or getattr(inside, "gi_frame", None)
        if frame is not None:
            frames.append(frame)
        inside = getattr(inside, "cr_await", None) or getattr(inside, "gi_yieldfrom", None)
    return frames


def runtime_of(state: PoolState) -> LoopRuntime:
    """The runtime of an asyncio pool's state."""
    runtime = state.runtime
    assert isinstance(runtime, LoopRuntime)
    return runtime


def cut_off(state: PoolState) -> None:
    """End a state whose loop may never run again: shut down its sockets immediately, and resign as
    the prober.
    """
    if state.share is not None:
        state.share.leave_behind()
    for entry in list(state.kernel.entries.values()):
        state.shutdown_socket(entry)
        if entry.conn is not None and runtime_of(state).loop.is_closed():
            # otherwise its finalizer would try, and warn that it cannot
            state.driver.close(entry.conn)
    if state.server.lock.acquire(blocking=False):  # a finalizer may run inside it
        state.server.outage.resign(state)
        state.server.lock.release()


def put_away(state: PoolState) -> None:
    """Close a state and stop watching its sockets."""
    state.close()
    state.runtime.watcher.close()


def abandon(state: PoolState) -> None:
    """The pool was garbage-collected without being closed. Any thread may call this."""
    if state.here[0]:
        cut_off(state)
        state.runtime.call(partial(put_away, state))


async def farewell(
    forget_ref: Callable[[], Callable[[PoolState], None] | None],
    state_ref: Callable[[], PoolState | None],
) -> AsyncGenerator[None, None]:
    """Wait for the end of the loop, which ends its asynchronous generators before it closes
    (``asyncio.run`` ensures that).

    So connections of an unclosed pool are closed in order, while that is possible. *forget_ref*
    gives a function that removes the state from its pool; both references are weak.
    """
    try:
        yield
    finally:
        forget, state = forget_ref(), state_ref()
        if forget is not None and state is not None and state.here[0]:
            forget(state)
            put_away(state)
            await runtime_of(state).stop()
            for entry in list(state.kernel.entries.values()):
                # a holder, or a background task that was stopped, can do nothing with these
                conn = entry.conn if entry.ref is None else entry.ref()
                if conn is not None:
                    state.driver.close(conn)
            await asyncio.sleep(0)  # transports end in the loop's next iteration
