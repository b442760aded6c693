"""The result of ``AsyncPool.connection``: an ``async with`` block around one loan."""

from __future__ import annotations

import asyncio
import math
import sys
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any, Generic

from unbroken.abc import Cause, ConnectionT
from unbroken.brain.entry import Entry
from unbroken.ledger.scope import current_token
from unbroken.pool.answers import is_soon
from unbroken.pool.loan import Loan
from unbroken.pool.steps import Call, run_async

getframe = sys._getframe
running_loop = asyncio.get_running_loop


class AsyncLease(Loan, Generic[ConnectionT]):
    """``async with pool.connection() as conn:`` acquires a connection, commits on success, rolls
    back on an exception.
    """

    __slots__ = ("_deadline", "_pool", "_timeout", "_transaction")

    def __init__(
        self,
        pool: Any,
        timeout: float | None,
        deadline: float | None,
        transaction: bool,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._deadline = deadline
        self._transaction = transaction
        self.begun = None
        self.conn = None

    async def __aenter__(self) -> ConnectionT:
        try:
            loop, state = self._pool._home
            entry: Entry | None = None
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
                        self.state, self.entry, self.begun = state, entry, None
                        self.conn = conn = entry.conn
                        state.in_use[entry.key] = entry
                        entry.conn = entry.anchor
                        if (
                            self._deadline is None
                            and current_token() is None
                            and (state.plain or not self._transaction)
                            and not state.follows
                        ):
                            return conn
                        return await self._start(now)
            started = monotonic()
            await self._take(entry, started, getframe(1))
            state = self.state
            if (
                self._deadline is None
                and current_token() is None
                and (state.plain or not self._transaction)
                and not state.follows
            ):
                return self.conn
            return await self._start(started)
        except BaseException:
            self._give_up()
            raise

    async def _take(self, suspect: Entry | None, started: float, frame: Any) -> None:
        await self._pool._acquire_slowly(
            self, suspect, started, self._timeout, self._deadline, frame
        )

    async def _start(self, started: float) -> ConnectionT:
        """The parts that not every lease needs: a deadline, a unit of work that records, a BEGIN.

        If a connection is lost at its BEGIN, no statement ran on it yet. The pool takes another
        one, and the caller does not notice.
        """
        frame = getframe(2)
        while True:
            state, entry, conn = self.state, self.entry, self.conn
            try:
                self.begin(math.inf if self._deadline is None else started + self._deadline)
                if self._transaction and not state.plain:
                    await state.runtime.do(Call("begin", conn, entry))
                return conn
            except BaseException as exc:
                if not self.is_lost_at_begin(exc):
                    await self._leave(exc)
                    raise
                self.drop()
                self.conn = self.begun = None
            await self._take(None, started, frame)

    def _give_up(self) -> None:
        """An exception struck between taking a connection and handing it out, or during its
        return.
        """
        if self.conn is not None:
            self.give_back(Cause.CANCELLED)
            self.conn = None

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            state, entry, conn = self.state, self.entry, self.conn
            if (
                exc is None
                and self.begun is None
                and state.here[0]
                and state.is_clean(conn, entry.traits)
                and state.in_use.pop(entry.key, None) is entry
            ):
                if entry.cause is None:
                    self.conn = None
                    entry.last_used = state.now
                    entry.conn = conn
                    state.idle.append(entry)
                    if state.waiting or entry.generation != state.kernel.generation:
                        state.dispatch()
                    return
                state.in_use[entry.key] = entry
            await self._leave(exc)
        except BaseException:
            self._give_up()
            raise

    async def _leave(self, exc: BaseException | None) -> None:
        """End a lease that needs more than a quick check.

        Raises the exception that the caller must see, if that is not *exc*.
        """
        state = self.state
        if not state.here[0]:
            self.conn = None
            state.left_in_child(exc)
            return
        otherwise: Cause | None = Cause.CANCELLED
        try:
            if isinstance(exc, GeneratorExit):
                # the block was garbage-collected: nothing can be awaited
                otherwise = Cause.FORGOTTEN
                return
            seen = await run_async(self.finish(exc, commit=self._transaction), state.runtime.do)
            otherwise = None
        finally:
            self.give_back(otherwise)
            self.conn = None
        if seen is not None:
            shown = self.shown(seen, self._deadline)
            if shown is not exc:
                raise shown
