"""SQLAlchemy's QueuePool and AsyncAdaptedQueuePool, based on unbroken's kernel.

Arguments, overflow, timeouts, events, ``status``, ``detach``, ``invalidate``, ``dispose`` and
``recreate`` work as SQLAlchemy documents them. The kernel and the flows decide, as for a ``Pool``,
which caller gets which connection, waits or connects, and which connection is closed. SQLAlchemy
asks for a record (``_do_get``), returns it (``_do_return_conn``) and closes
(``_close_connection``). Each record belongs to one entry of the kernel's.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections import deque
from contextvars import copy_context
from threading import get_ident
from time import monotonic
from typing import Any

import sqlalchemy
from sqlalchemy import exc as sqla_exc
from sqlalchemy.engine import Engine
from sqlalchemy.pool.base import _ConnectionFairy

from unbroken.abc import Cause
from unbroken.brain.stats import Stats
from unbroken.errors import PoolTimeoutError, UnbrokenError, for_driver
from unbroken.integrations.sqlalchemy.body import Body
from unbroken.integrations.sqlalchemy.creating import _SQLALCHEMY, Creating
from unbroken.integrations.sqlalchemy.plan import Blind, Plan
from unbroken.integrations.sqlalchemy.record import (
    NO_BODY,
    Record,
    Slot,
    in_greenlet,
    note_holders,
    outside,
)
from unbroken.integrations.sqlalchemy.runtimes import SyncRuntime
from unbroken.ledger.scope import current, current_token
from unbroken.messages.pool import OVERLOADED
from unbroken.pool.acquire import acquire
from unbroken.pool.answers import take_at_once
from unbroken.pool.closing import tell
from unbroken.pool.loan import Loan
from unbroken.pool.news import began_anew
from unbroken.settings import Settings

_getframe = sys._getframe
_checkout = _ConnectionFairy._checkout
_pools: weakref.WeakSet[Any] = weakref.WeakSet()

_IS_2_0 = sqlalchemy.__version__.startswith("2.0.")
#: the usual call path
_RAW_CONNECTION, _ENGINE_CONNECT = (Engine.raw_connection.__code__, Engine.connect.__code__)

#: The number of replacements for a new connection that is lost again while SQLAlchemy sets it up.
SETUP_ATTEMPTS = 3


class EnginePool(Creating):
    """The common part of both pools below."""

    _sqla_logger_namespace = (  # log levels are set by this name
        "sqlalchemy.pool.impl.QueuePool"
    )

    def __init__(
        self, creator: Any, *args: Any, unbroken: Plan | None = None, **kwargs: Any
    ) -> None:
        self._plan = unbroken or Plan(Blind(), Settings.of(max_idle=float("inf")))
        self._body: Any = NO_BODY
        self._births: dict[Any, Any] = {}  #: see _enter
        self._counters: Any = None
        self._vacant = deque()
        super().__init__(creator, *args, **kwargs)
        self._pool.pool = weakref.ref(self)
        _pools.add(self)

    def recreate(self) -> Any:
        """Return a new pool of the same kind with the same arguments, as SQLAlchemy requires.

        In a forked child nothing inherited is touched.
        """
        if self._body is not NO_BODY and not self._body.here[0]:
            self._body.sever()
        self.logger.info("Pool recreating")
        kwargs = {
            "pool_size": self._pool.maxsize, "max_overflow": self._max_overflow,
            "pre_ping": self._pre_ping, "use_lifo": self._pool.use_lifo, "timeout": self._timeout,
            "recycle": self._recycle, "echo": self.echo, "logging_name": self._orig_logging_name,
            "reset_on_return": self._reset_on_return, "_dispatch": self.dispatch,
            "dialect": self._dialect,
        }  # fmt: skip
        fresh = self.__class__(self._creator, unbroken=self._plan, **kwargs)
        fresh._counters = getattr(self._body, "counters", self._counters)
        return fresh

    def dispose(self) -> None:
        """Close idle connections; those in use stay open.

        In a forked child nothing inherited is touched.
        """
        body = self._body
        if body is not NO_BODY:
            if not body.here[0]:
                self._enter()
                return
            with body.lock:
                idle = body.kernel.take(body.kernel.all_idle())
            for entry in idle:
                entry.condemn(Cause.DRAINED)
                body.close_entry(entry)
            body.ensure_connecting()
            tell(body, "is disposed of", "each is closed when it is returned")
        self.logger.info("Pool disposed. %s", self.status())

    # -- SQLAlchemy's counters ---------------------------------------------------------------------

    @property
    def _overflow(self) -> int:
        """Return the number of connections beyond ``pool_size``; below 0: how many may still be
        opened before that.
        """
        size = self._body.kernel.size if self._body.here[0] else 0
        return int(size - self._pool.maxsize)

    @_overflow.setter
    def _overflow(self, value: int) -> None:
        """Ignore the value: SQLAlchemy's constructor sets it, but the kernel counts."""

    # -- handing out -------------------------------------------------------------------------------

    def connect(self) -> Any:
        """Return a connection, fit for use, as SQLAlchemy hands it out."""
        body = self._body
        if not body.here[0]:
            body = self._enter()
        try:
            fairy = _checkout(self)
        except Exception as exc:
            fairy = self._again(exc)
        try:
            record: Any = fairy._connection_record
            entry = record.entry
            if entry is None or entry.conn is None:
                # a checkout event has replaced the connection by another object
                return fairy
            frame: Any = _getframe(1)
            if frame.f_code is _RAW_CONNECTION:
                try:
                    if _getframe(3).f_code is _ENGINE_CONNECT:
                        frame = _getframe(4)
                except ValueError:
                    pass  # the stack ends there: a greenlet's
            while frame.f_code.co_filename.startswith(_SQLALCHEMY):
                up = frame.f_back or outside()
                if up is None:
                    break
                frame = up
            entry.code, entry.lasti = frame.f_code, ~frame.f_lasti  # as Entry.taken_at_call
            entry.holder = get_ident()
            record.used = entry.uses
            if body.bounded or current_token() is not None:
                self._begin(body, record, entry)
        except BaseException:
            fairy.close()
            raise
        return fairy

    def _begin(self, body: Body, record: Record, entry: Slot) -> None:
        """Do the parts that not every use needs: join a watching unit of work, set a deadline."""
        if body.connects_here:
            unit = current()
            if unit is not None:
                unit.doubt("its connections are wrapped in objects that unbroken does not know")
            return
        record.loan = loan = Loan.of(body, entry, entry.conn)
        limit = body.settings.deadline
        loan.begin(float("inf") if limit is None else entry.taken_at + limit)

    def _again(self, exc: BaseException) -> Any:
        """Handle a failed checkout.

        A new connection that was lost while it was being set up is replaced. All other errors are
        the caller's.
        """
        for _ in range(SETUP_ATTEMPTS - 1):
            ours = isinstance(exc, UnbrokenError | sqla_exc.SQLAlchemyError) and not isinstance(
                exc, sqla_exc.DBAPIError
            )
            if ours or self._body.plan.is_blind or not self._body.classify(exc).is_lost:
                break
            try:
                return _checkout(self)
            except Exception as another:
                exc = another
        try:
            raise exc
        finally:
            # otherwise it would be part of a cycle with this frame, and keep everything in its
            # traceback
            del exc

    def _take_slowly(self, suspect: Slot | None, *, again: bool = False) -> Slot:
        """Wait for an entry, or for a place to connect in, and note that it is in use. *suspect*
        was popped from idle.
        """
        body = self._body
        started = monotonic()
        until = float("inf") if self._timeout is None else started + self._timeout
        if body.has_room:
            # pool_timeout is for connections that others have: opening one takes its own time
            until = max(until, started + body.connect_limit)
        unit = current()
        if unit is not None:
            until = min(until, unit.until)
        body.caller = copy_context()
        try:
            entry = body.run(acquire(body, suspect, started, until, again=again))
        except PoolTimeoutError as exc:
            raise self._timed_out(body, exc) from None
        finally:
            if not body.waiting:
                body.caller = None
        if entry.record is None:
            entry.record = record = self.blank()
            record.hold(entry, body)
        entry.taken_at = monotonic()
        entry.uses += 1
        body.kernel.lend(entry)
        return entry  # type: ignore[no-any-return]

    def _timed_out(self, body: Body, exc: PoolTimeoutError) -> Exception:
        """Return SQLAlchemy's own error if all connections are in use; ours if the server does not
        answer.
        """
        if exc.code == OVERLOADED.code:
            told = for_driver(PoolTimeoutError, sqla_exc.TimeoutError, str(exc))
            told.retry_after = exc.retry_after
            return told
        if len(body.in_use) < body.kernel.max_size:
            return exc
        error = sqla_exc.TimeoutError(
            f"QueuePool limit of size {self.size()} overflow {self.overflow()} reached, connection"
            f" timed out, timeout {self._timeout:0.2f}",
            code="3o7r",
        )
        note_holders(body, error)
        return error

    def renew(self, record: Record) -> Any:
        """Return another connection for *record*, whose own has ended while its holder had it."""
        body, place = self._body, record.entry
        record.entry = None
        if place is not None:
            with body.lock:
                body.kernel.drop(place)
        while True:
            entry = self._take_slowly(None, again=True)
            other = entry.record
            if other.dbapi_connection is None:
                other.entry, entry.record = None, record
                record.hold(entry, body)
                return record.get_connection()
            if not other.is_stale():
                return record.take_over(other)
            other.recycle()
            self._return_slowly(other)

    # -- returning ---------------------------------------------------------------------------------

    def _do_return_conn(self, record: Any) -> None:
        body, entry = self._body, record.entry
        if (
            entry is not None
            and body.here[0]
            and record.loan is None
            and entry.dbapi is not None
            and record.dbapi_connection is entry.dbapi
            and body.is_quiet(entry.conn)
            and body.in_use.pop(entry.key, None) is entry
        ):
            if entry.cause is None:  # asked after the pop, see PoolState.ended
                entry.last_used = body.now
                body.idle.append(entry)
                if (
                    body.waiting
                    or entry.generation != body.kernel.generation
                    or len(body.idle) > body.keep
                ):
                    body.dispatch()
                return
            body.in_use[entry.key] = entry
        self._return_slowly(record)

    def _return_slowly(self, record: Record) -> None:
        body, owner, entry = self._body, record.owner, record.entry
        if owner is None or entry is None:
            self.stash(record)
        elif not body.here[0] or owner is not body:
            self._close_foreign(record)
        elif body.kernel.reclaimed.get(entry.key) is entry:
            # its place was given to another while its holder kept it for too long
            record.close()
        elif entry.dbapi is None:
            body.give_up(record, entry)
        elif record.dbapi_connection is None:
            if _IS_2_0 and self._is_asyncio and not in_greenlet():
                # an async user that detaches is in a greenlet; a finalizer is not
                body.report_forgotten(entry)
            body.detach(entry)
            record.entry = None
            self.stash(record)
        else:
            loan, record.loan = record.loan or Loan.of(body, entry, entry.conn), None
            if not body.is_in_step(entry, entry.conn):
                loan.break_off()
            loan.give_back()

    # -- connecting and closing --------------------------------------------------------------------

    # -- which process, which loop -----------------------------------------------------------------

    def _enter(self) -> Any:
        """Return the body of this process (and loop), created at first use. If several threads come
        at the same time, one's body counts.

        No lock: a fork, or an exception at any instruction, could leave it locked for ever.
        """
        old = self._body
        if old.here[0]:
            return old
        key = (os.getpid(), id(self._loop_here()))
        counters = (
            self._counters if old is NO_BODY else (old.counters if old.pid == os.getpid() else None)
        )
        made = self._new_body(counters)
        body = self._births.setdefault(key, made)
        if not body.here[0]:  # of an earlier loop with the same id
            body = self._births[key] = made
        if old is not NO_BODY:
            self._leave(old)
            if old.pid != os.getpid():
                began_anew(old)
        self._body = body
        for other in [each for each in list(self._births) if each != key]:
            self._births.pop(other, None)
        return body

    def _leave(self, old: Any) -> None:
        """Start empty: the connections of *old* are the parent's, or of a loop that has ended."""
        old.sever()
        if (
            old.pid == os.getpid()
            # a loop that has ended: its transports warn if they are left to the garbage collector
        ):
            for entry in list(old.kernel.entries.values()):
                if entry.conn is not None:
                    self._plan.driver.close(entry.conn)
        # its records are kept: their end must not send a goodbye
        self._inherited = (old, self._vacant)
        self._vacant = deque()

    def _new_body(self, counters: Any) -> Body:
        raise NotImplementedError

    def _loop_here(self) -> Any:
        return None

    def unbroken_stats(self) -> Stats:
        """Return the pool's numbers in this process at this moment."""
        body = self._body if self._body.here[0] else self._new_body(self._counters)
        return body.stats()


class UnbrokenQueuePool(EnginePool):
    """SQLAlchemy's QueuePool, unbroken.

    It takes QueuePool's arguments; the plugin fills in ``unbroken``.
    """

    def _do_get(self) -> Any:
        body, entry = self._body, None
        if not body.waiting:
            try:
                entry = body.take()
            except IndexError:
                pass
            else:
                now = monotonic()
                if (
                    now - entry.last_used < body.fresh_for
                    and not body.hung_up()
                    and (entry.due is None or take_at_once(body, entry, now))
                ):
                    entry.taken_at = now
                    entry.uses += 1
                    body.in_use[entry.key] = entry
                    return entry.record
        return self._take_slowly(entry).record

    def _new_body(self, counters: Any) -> Body:
        return Body(self, self._plan, SyncRuntime(self._plan.driver), counters)  # type: ignore[arg-type] # a blocking driver


def _sever_all() -> None:
    """Cut off everything inherited: after a fork that Python sees, and at the end of a child whose
    fork it did not see.
    """
    for pool in list(_pools):
        if not pool._body.here[0]:
            pool._body.sever()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever_all)
atexit.register(_sever_all)
