"""The result of ``Pool.connection``: a ``with`` block around one loan."""

from __future__ import annotations

import math
import sys
from threading import get_ident
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Generic

from unbroken.abc import ConnectionT
from unbroken.brain.entry import Entry
from unbroken.ledger.scope import current_token
from unbroken.pool.answers import take_at_once
from unbroken.pool.loan import Loan
from unbroken.pool.steps import Call, run

getframe = sys._getframe


def caller() -> FrameType:
    """The frame of the caller of the function that calls this. If that caller is C code (at the
    start of a greenlet), the frame of that function itself.
    """
    try:
        return getframe(2)
    except ValueError:
        return getframe(1)


class Lease(Loan, Generic[ConnectionT]):
    """``with pool.connection() as conn:`` acquires a connection, commits on success, rolls back on
    an exception.

    It has no ``__init__``: its maker sets ``_pool``, because a call costs more than an attribute.
    """

    __slots__ = ("_pool",)

    _timeout: float | None = None
    _deadline: float | None = None
    _transaction = True
    in_block = True
    _plain = True  #: nothing to do at the beginning, unless a unit of work records

    _pool: Any  #: the Pool

    def __enter__(self) -> ConnectionT:
        try:
            state = self._pool._state
            entry: Entry | None = None
            if not state.waiting and state.here[0]:
                try:
                    entry = state.idle.pop()
                except IndexError:
                    pass
                else:
                    now = monotonic()
                    if (
                        now - entry.last_used < state.fresh_for
                        and not state.hung_up()
                        and (entry.due is None or take_at_once(state, entry, now))
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
                        if self._plain and current_token() is None:
                            return conn
                        return self._start()
            self._take(entry, monotonic(), getframe(1))
            if self._plain and current_token() is None:
                return self.conn
            return self._start()
        except BaseException:
            self._give_up()
            raise

    def _take(self, suspect: Entry | None, started: float, frame: Any) -> None:
        self._pool._acquire_slowly(self, suspect, started, self._timeout, self._deadline, frame)

    def _start(self) -> ConnectionT:
        """The parts that not every lease needs: a deadline, a unit of work that records, a BEGIN.

        If a connection is lost at its BEGIN, no statement ran on it yet. The pool takes another
        one, and the caller does not notice.
        """
        started, frame = self.entry.taken_at, getframe(2)
        while True:
            state, conn = self.state, self.conn
            try:
                self.begin(math.inf if self._deadline is None else started + self._deadline)
                if self._transaction and not state.plain:
                    state.runtime.do(Call("begin", conn, self.entry))
                return conn
            except BaseException as exc:
                if not self.is_lost_at_begin(exc):
                    self._leave(exc)
                    raise
                self.drop()
                self.conn = self.begun = None
            self._take(None, started, frame)

    def _give_up(self) -> None:
        """An exception struck between taking a connection and handing it out, or during its
        return.
        """
        if getattr(self, "conn", None) is not None:
            self.give_back()
            self.conn = None

    def __exit__(
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
                if (
                    entry.cause is None
                    # Checked after the pop (see PoolState.ended): a taker does not check the cause
                    # of an idle entry.
                ):
                    self.conn = None
                    entry.last_used = state.now
                    entry.conn = conn
                    state.idle.append(entry)
                    if state.waiting or entry.generation != state.kernel.generation:
                        state.dispatch()
                    return
                state.in_use[entry.key] = entry
            self._leave(exc)
        except BaseException:
            self._give_up()
            raise

    def _leave(self, exc: BaseException | None) -> None:
        """End a lease that needs more than a quick check.

        Raises the exception that the caller must see, if that is not *exc*.
        """
        state = self.state
        if not state.here[0]:
            self.conn = None
            state.left_in_child(exc)
            return
        try:
            seen = run(self.finish(exc, commit=self._transaction), state.runtime.do)
        finally:
            self.give_back()
            self.conn = None
        if seen is not None:
            shown = self.shown(seen, self._deadline)
            if shown is not exc:
                raise shown


class BoundedLease(Lease[ConnectionT]):
    """A lease with a timeout, a deadline or no transaction of its own."""

    __slots__ = ("_deadline", "_timeout", "_transaction")

    _plain = False

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
