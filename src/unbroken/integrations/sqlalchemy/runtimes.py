"""How an engine's callers wait and call: on their own threads, or inside SQLAlchemy's greenlets."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy.util import greenlet_spawn
from sqlalchemy.util.concurrency import await_only

from unbroken.abc import AsyncDriver, Connection, Driver, Login
from unbroken.errors import PoolClosedError
from unbroken.ledger.scope import apart, tell
from unbroken.messages.integrations import ENGINE_GONE
from unbroken.net.fork_guard import fork_mark
from unbroken.pool.holder import referred_to, thread_frames
from unbroken.pool.loops import LoopRuntime
from unbroken.pool.steps import Attempt, Connect
from unbroken.pool.threads import ThreadRuntime


class LoopMark:
    """``mark[0]`` is 1 in the process that made it, and as long as the event loop is not closed."""

    __slots__ = ("_fork", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._fork, self._loop = fork_mark(), loop

    def __getitem__(self, _index: int, /) -> int:
        return self._fork[0] and not self._loop.is_closed()


def mark_of(runtime: Any) -> Any:
    """Return the mark that shows whether this process (and event loop) is the one that *runtime*
    was made in.
    """
    return LoopMark(runtime.loop) if isinstance(runtime, GreenletRuntime) else fork_mark()


def context_of(body_ref: Callable[[], Any]) -> Any:
    """Return a context for an attempt to connect: a waiting caller's, outside its unit of work."""
    body: Any = body_ref()
    caller = None if body is None else body.caller
    if caller is None:
        return apart()
    context = caller.copy()
    context.run(tell, None)
    return context


def opened_by(body_ref: Callable[[], Any], login: Login | None) -> Connection:
    """Open a connection of the body's as *login*, as SQLAlchemy does. Raises if the body is
    gone.
    """
    body: Any = body_ref()
    if body is None:
        raise PoolClosedError(ENGINE_GONE("the engine no longer exists; keep a reference to it"))
    return body.open(login)


class SyncRuntime(ThreadRuntime):
    """The runtime of blocking engines.

    Locks are reentrant: SQLAlchemy returns connections in finalizers, which run anywhere.
    """

    opener: Callable[[Login | None], Connection]
    context: Callable[[], Context]

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)

    def new_lock(self) -> AbstractContextManager[Any]:
        """Return a reentrant lock."""
        return threading.RLock()

    def do(self, step: Any) -> Any:
        """Run a step, a worker's or a caller's. SQLAlchemy opens the connections."""
        return super().do(
            replace(step, make=partial(self.opener, step.login), context=self.context())
            if type(step) is Connect
            else step
        )

    do_here = do

    def in_hands(self, wanted: set[int]) -> set[int] | None:
        """Return ThreadRuntime's value, extended to greenlets: one may be switched out while
        SQLAlchemy sets its connection up.
        """
        frames = thread_frames()
        if frames is None:
            return None
        frames[threading.get_ident()] = sys._getframe(2)
        found = referred_to(frames.values(), wanted)
        return found if found >= wanted else found | referred_to(self.stacks_aside(), wanted)

    def wait_for(self, result: Any) -> Any:
        """Return the result: a blocking driver has waited already."""
        return result


class GreenletRuntime(LoopRuntime):
    """The runtime of async engines.

    Workers are tasks; callers are in SQLAlchemy's greenlets, and wait through them.
    """

    opener: Callable[[Login | None], Connection]
    context: Callable[[], Context]

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(driver, loop)

    async def do(self, step: Any) -> Any:
        """Run a worker's step. SQLAlchemy's calls in it need a greenlet."""
        return await (greenlet_spawn(step.work) if type(step) is Attempt else super().do(step))

    async def _connect(self, step: Connect) -> Any:
        made = greenlet_spawn(self.opener, step.login)
        return await self.loop.create_task(made, context=self.context())

    def wait_for(self, result: Any) -> Any:
        """Return the awaited result of an async driver's method, inside a greenlet."""
        return await_only(result)

    def do_here(self, step: Any) -> Any:
        """Run a caller's step, inside its greenlet."""
        return step.work() if type(step) is Attempt else await_only(super().do(step))
