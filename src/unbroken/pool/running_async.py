"""Run a unit of work in this task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

from unbroken.ledger.questions import Question
from unbroken.ledger.scope import enter, leave, outside
from unbroken.ledger.unit import Unit
from unbroken.pool import threads
from unbroken.pool.async_lease import getframe, running_loop
from unbroken.pool.replay import replay
from unbroken.pool.running import tell_nobody
from unbroken.pool.steps import Attempt, run_async

T = TypeVar("T")


async def run_unit_async(
    work: Callable[[], Awaitable[T]],
    deadline: float | None,
    max_replays: int,
    on_replay: Callable[[str], None] = tell_nobody,
    subject: Any = None,
) -> T:
    """Run *work* as a unit of work in this task, replayed where that is provably safe.

    A nested unit is just run. *subject* is its function or request, for messages.
    """
    unit, token = Unit(), None
    unit.subject = subject

    async def do(step: Any) -> Any:
        if type(step) is Attempt:
            return await step.work()
        return await asyncio.wait((step.signal,), timeout=step.timeout)

    try:
        try:
            token = enter(unit, id(getframe()))
            if not token.outermost:
                with token.unit.within(monotonic(), deadline):
                    return await work()
            unit.until = math.inf if deadline is None else monotonic() + deadline
            signal = running_loop().create_future
            result: T = await run_async(
                replay(unit, work, monotonic, max_replays, signal, on_replay, inquire_async), do
            )
            return result
        finally:
            if token is not None:
                leave(token)
    finally:  # again: an exception from a signal may have struck while it was left
        if token is not None:
            leave(token)


async def inquire_async(state: Any, question: Question, until: float) -> Any:
    """Like :func:`unbroken.pool.threads.inquire`, awaited. A pool for threads is asked on a
    thread.
    """
    if not state.driver.is_async:
        return await asyncio.to_thread(threads.inquire, state, question, until)
    if state.runtime.loop is not running_loop():
        return None
    with outside():
        return await run_async(state.inquire(question, until), state.runtime.do)
