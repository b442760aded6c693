"""The pool for asyncio: ``AsyncPool``. It uses the same brain and the same flows as ``Pool``; only
the waiting differs.

All parts of one pool run on one event loop, so nothing is locked. A second loop (another
``asyncio.run``, another thread) gets its own connections, because sockets belong to the loop that
opened them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from threading import get_ident
from time import monotonic
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from unbroken.abc import Cause, Connection, ConnectionT, Observer, Target
from unbroken.adoption import adopt_for
from unbroken.brain.entry import Entry
from unbroken.brain.stats import Stats
from unbroken.drivers import open_driver
from unbroken.ledger.scope import current, current_token
from unbroken.net.fork_guard import fork_mark
from unbroken.pool.acquire import acquire, ping
from unbroken.pool.answers import is_soon
from unbroken.pool.arguments import bounded, not_picklable, take_settings
from unbroken.pool.async_lease import AsyncLease, getframe, running_loop
from unbroken.pool.callables import awaitable, done, require_eager
from unbroken.pool.closing import TIMEOUT, close
from unbroken.pool.connect import connector
from unbroken.pool.loan import Loan
from unbroken.pool.loops import LoopRuntime, abandon, cut_off, farewell, runtime_of
from unbroken.pool.news import began_anew
from unbroken.pool.observers import tell
from unbroken.pool.running_async import run_unit_async
from unbroken.pool.secrets import take_secrets
from unbroken.pool.state import PoolState
from unbroken.pool.steps import run_async
from unbroken.pool.upkeep import schedule
from unbroken.settings import Settings

T = TypeVar("T")
P = ParamSpec("P")

_RUN = "AsyncPool.run()"

_pools: weakref.WeakSet[AsyncPool[Any]] = weakref.WeakSet()
_inherited: list[
    PoolState
    # kept in a child, so that none of the parent's objects is collected: finalizers would use the
    # parent's loop
] = []


class AsyncPool(Generic[ConnectionT]):
    """A pool of connections for asyncio, to one database. Arguments and settings are those of
    :class:`unbroken.Pool`.

    *connect* is a callable that returns an awaitable of a new connection. *password* and *user* may
    return an awaitable of a string. Plain callables run on a thread, so that none blocks the loop.
    Creating a pool opens no connection and needs no running loop. Raises ConfigurationError
    (DriverNotInstalledError) for a URL or settings that cannot work.
    """

    def __init__(
        self,
        url: str | Target | None = None,
        *,
        connect: Callable[[], Awaitable[ConnectionT]] | None = None,
        driver: str | None = None,
        password: str | Callable[[], str | Awaitable[str]] | None = None,
        user: str | Callable[[], str | Awaitable[str]] | None = None,
        observers: tuple[Observer, ...] = (),
        **settings: Any,
    ) -> None:
        target, given = take_settings(url, settings)
        target, self._secrets = take_secrets(target, password, user, is_async=True)
        self.settings = Settings.of(**given)
        self._driver = open_driver(target, is_async=True, connect=connect, driver=driver)
        self.settings = bounded(self._driver, self.settings)
        adopt_for(self.settings.units, self.settings.max_replays)
        self.name = self.settings.name or self._driver.target.label
        self._emit = partial(tell, observers)  # no method: a state must not keep its pool alive
        self._states: dict[tuple[int, int], PoolState] = {}
        self._home: tuple[Any, Any] = (None, _NO_STATE)
        _pools.add(self)

    def _current(self) -> PoolState:
        """The state of this process and loop; created at first use.

        Raises RuntimeError outside a running loop.
        """
        loop, state = self._home
        running = running_loop()
        if running is loop and state.here[0]:
            return state
        if loop is not None and not state.here[0]:
            self._leave_inherited()
        key = (os.getpid(), id(running))
        known = self._states.get(key)
        if known is None or runtime_of(known).loop is not running:
            self._forget_closed_loops()
            known = self._states[key] = self._new_state(running)
            if self.settings.min_size:
                known.ensure_connecting()
                schedule(known)
        self._home = (running, known)
        return known

    def _new_state(self, running: asyncio.AbstractEventLoop) -> PoolState:
        runtime = LoopRuntime(self._driver, running)
        fresh = PoolState(
            self._driver,
            self.settings,
            runtime,
            self.name,
            self._emit,
            fork_mark(),
            connector,
            self._secrets,
        )
        runtime.finalizer = weakref.finalize(self, abandon, fresh)
        runtime.farewell = farewell(weakref.WeakMethod(self._forget), weakref.ref(fresh))
        with contextlib.suppress(StopIteration):
            runtime.farewell.__anext__().send(None)  # up to its yield: now the loop knows it
        return fresh

    def _leave_inherited(self) -> None:
        for state in list(self._states.values()):
            if not state.here[0]:
                state.sever()
                _inherited.append(state)
                began_anew(state)
        self._states = {k: s for k, s in self._states.items() if s.here[0]}
        self._home = (None, _NO_STATE)

    def _forget_closed_loops(self) -> None:
        """Drop connections of loops that have ended. They cannot work any more, but each holds a
        session.
        """
        for state in list(self._states.values()):
            if runtime_of(state).loop.is_closed():
                self._forget(state)
                cut_off(state)

    def _forget(self, state: PoolState) -> None:
        for key, known in list(self._states.items()):
            if known is state:
                del self._states[key]
        if self._home[1] is state:
            self._home = (None, _NO_STATE)
        finalizer = runtime_of(state).finalizer
        if finalizer is not None:
            finalizer.detach()

    # -- handing out -------------------------------------------------------------------------------

    def connection(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        transaction: bool = True,
    ) -> AsyncLease[ConnectionT]:
        """An async context manager that checks out the driver's own connection.

        It commits on success and rolls back on an exception. It begins a transaction for drivers
        such as asyncpg, which do not begin one themselves. With ``transaction=False`` it does
        neither, and only resets open work. *timeout*, *deadline* and exceptions are those of
        :meth:`unbroken.Pool.connection`.
        """
        return AsyncLease(
            self, timeout, self.settings.deadline if deadline is None else deadline, transaction
        )

    async def acquire(self, timeout: float | None = None) -> ConnectionT:
        """Check out a connection, without beginning a transaction. Return it with :meth:`release`.

        Raises the same exceptions as :meth:`unbroken.Pool.acquire`.
        """
        conn: Connection = None
        loop, state = self._home
        entry: Entry | None = None
        try:
            if not state.waiting and state.here[0] and running_loop() is loop:
                try:
                    entry = state.idle.pop()
                except IndexError:
                    pass
                else:
                    now = monotonic()
                    if (
                        now - entry.last_used < state.fresh_for
                        and not state.hung_up()
                        and (entry.due is None or is_soon(state, entry, now))
                    ):
                        frame = getframe(1)
                        entry.code = frame.f_code
                        entry.lasti = frame.f_lasti
                        entry.holder = get_ident()
                        entry.taken_at = now
                        entry.uses += 1
                        conn = entry.conn
                        state.in_use[entry.key] = entry
                        entry.conn = entry.anchor
                        if current_token() is not None or state.follows:
                            Loan.of(state, entry, conn).enlist()
                        return conn
            return (await self._acquire_loan(entry, timeout, getframe(1))).conn
        except BaseException:
            if entry is not None and conn is not None and state.in_use.get(entry.key) is entry:
                Loan.of(state, entry, conn).give_back(Cause.CANCELLED)
            raise

    async def _acquire_loan(self, suspect: Entry | None, timeout: float | None, frame: Any) -> Loan:
        """The slow path to a connection that :meth:`release` returns."""
        loan = Loan()
        try:
            await self._acquire_slowly(loan, suspect, monotonic(), timeout, None, frame)
            if current_token() is not None or loan.state.follows:
                loan.enlist()
        except BaseException:
            if getattr(loan, "conn", None) is not None:
                loan.give_back(Cause.CANCELLED)
            raise
        return loan

    async def release(self, conn: ConnectionT) -> None:
        """Return *conn* to the pool, which rolls back open work (setting ``reset``).

        Raises NotYoursError for a connection that this pool did not hand out on this loop, or that
        was already returned.
        """
        state = self._current()
        entry = state.in_use.pop(id(conn), None)
        if entry is None:
            self._release_unknown(state, conn)
            return
        if not entry.watched and entry.cause is None and state.is_clean(conn, entry.traits):
            entry.last_used = state.now
            entry.conn = conn
            state.idle.append(entry)
            if state.waiting or entry.generation != state.kernel.generation:
                state.dispatch()
            return
        state.kernel.resets(entry)
        loan, otherwise = Loan.of(state, entry, conn), Cause.CANCELLED
        try:
            await run_async(loan.reset(at_end=True), runtime_of(state).do)
            otherwise = None  # type: ignore[assignment] # the pool finds out why
        finally:
            loan.ended_unseen()
            loan.give_back(otherwise)

    def _release_unknown(self, state: PoolState, conn: Connection) -> None:
        for inherited in _inherited:
            if id(conn) in inherited.kernel.in_use:
                inherited.left_in_child(None)
        if state.kernel.came_back(id(conn)) is None:
            raise state.not_lent_error()
        self._driver.close(conn)

    async def _acquire_slowly(
        self,
        loan: Loan,
        suspect: Entry | None,
        started: float,
        timeout: float | None,
        deadline: float | None,
        frame: Any,
    ) -> None:
        """Take a connection on the slow path, into *loan*."""
        state = self._current()
        patience = state.settings.acquire_timeout if timeout is None else timeout
        if deadline is not None:
            patience = min(patience, deadline)
        unit = current()
        until = started + patience if unit is None else min(started + patience, unit.until)
        entry = await run_async(acquire(state, suspect, started, until), runtime_of(state).do)
        state.lend(loan, entry, frame, monotonic() if deadline is None else started, get_ident())

    def loan_of(self, conn: ConnectionT) -> Loan | None:
        """The :class:`Loan` of a connection that this pool handed out on this loop; else None."""
        state = self._current()
        entry = state.in_use.get(id(conn))
        return None if entry is None else Loan.of(state, entry, conn)

    # -- units of work -----------------------------------------------------------------------------

    @overload
    def run(
        self, fn: Callable[..., Awaitable[T]], *args: Any, deadline: float | None, **kwargs: Any
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def run(
        self,
        fn: Callable[Concatenate[ConnectionT, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Coroutine[Any, Any, T]: ...

    def run(  # type: ignore[misc] # as the blocking twin's
        self,
        fn: Callable[..., Awaitable[T]],
        *args: Any,
        deadline: float | None = None,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, T]:
        """Run ``await fn(conn, *args, **kwargs)`` as one unit of work and return its result. The
        pool replays it if that is provably safe.

        *fn* is an ``async def``, or returns an awaitable. Otherwise it works as
        :meth:`unbroken.Pool.run`.
        """
        require_eager(fn, _RUN)
        caller = getframe(1)  # as a task of its own it would have none
        code, lasti = caller.f_code, caller.f_lasti

        async def work() -> T:
            lease: AsyncLease[ConnectionT] = AsyncLease(self, None, None, True)
            async with lease as conn:
                entry = lease.entry
                entry.taken_at_call(code, lasti)  # the caller of run took it
                result: T = done(await awaitable(fn(conn, *args, **kwargs), fn, _RUN), fn, _RUN)
                return result

        def count(_why: str) -> None:
            self._current().counters.replays += 1

        return run_unit_async(
            work,
            self.settings.deadline if deadline is None else deadline,
            self.settings.max_replays,
            count,
            fn,
        )

    # -- maintenance -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the pool's numbers in this process and loop at this moment, as a frozen object.

        Must be called on the loop.
        """
        return self._current().stats()

    async def check(self, timeout: float | None = None) -> Stats:
        """Ping every idle connection of this loop now, replace dead ones, and verify that the
        server answers.

        It takes and raises the same as :meth:`unbroken.Pool.check`.
        """
        state = self._current()
        state.sweep()
        for entry in state.kernel.all_idle():
            if not state.kernel.claim(entry):
                continue
            do = state.runtime.do  # type: ignore[attr-defined] # a LoopRuntime
            if await run_async(ping(state, entry, state.settings.ping_timeout), do):
                state.put(entry, entry.conn)
        await self.release(await self.acquire(timeout))
        return self.stats()

    async def drain(self) -> None:
        """Replace every connection of this loop: idle ones are closed now, those in use when they
        are returned.

        Use it before a planned failover.
        """
        self._current().drain()

    async def resize(self, max_size: int | None = None, min_size: int | None = None) -> None:
        """Change the limits of a pool in use, for this loop and future loops.

        Raises ConfigurationError for impossible values.
        """
        bounds = {"max_size": max_size, "min_size": min_size}
        self.settings = self.settings.changed(**{k: v for k, v in bounds.items() if v is not None})
        self._current().resize(self.settings)

    async def close(self, timeout: float = TIMEOUT) -> None:
        """Close this loop's idle connections, and wait up to *timeout* seconds (default 5.0) until
        those in use are returned. The lines that hold them are logged immediately, as a warning.

        A connection that is returned later is closed then. Any acquire on this loop, including one
        that already waits, raises PoolClosedError. Calling it more than once is harmless. Other
        loops are not affected.
        """
        state = self._current()
        await run_async(close(state, timeout), runtime_of(state).do)
        await runtime_of(state).stop()
        state.runtime.watcher.close()

    def __copy__(self) -> AsyncPool[ConnectionT]:
        """Return the pool itself, because a pool has an identity."""
        return self

    def __deepcopy__(self, _memo: Any) -> AsyncPool[ConnectionT]:
        """Return the pool itself, so that settings that hold a pool can be copied."""
        return self

    def __reduce__(self) -> Any:
        raise not_picklable("an unbroken.AsyncPool")

    async def __aenter__(self) -> AsyncPool[ConnectionT]:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        s = self._home[1]
        used = f"{len(s.in_use)} used, {len(s.idle)} idle, {len(s.waiting)} waiting"
        return f"<unbroken.AsyncPool {self.name}: {used}, max_size {self.settings.max_size}>"


def _sever_all() -> None:
    """Disconnect the inherited sockets after a fork that Python sees. A connection that is
    collected in the child would otherwise unregister its socket from the parent's loop (both share
    the epoll), or send a goodbye packet on the parent's session.
    """
    for pool in list(_pools):
        pool._leave_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever_all)


class _NoState:
    """Replaces a state before the first use: it always sends the hot path to the slow one."""

    here = (0,)
    waiting = idle = ()
    in_use: Mapping[int, Any] = {}


_NO_STATE = _NoState()
