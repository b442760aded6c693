"""SQLAlchemy's QueuePool and AsyncAdaptedQueuePool, asking unbroken's brain at each turn of a connection's life.

Order, overflow, timeouts, events, ``status``, ``detach``, ``invalidate``, ``dispose`` and ``recreate`` stay SQLAlchemy's. What is
added hangs on these: ``connect`` (fork? place), ``_do_get`` (is it alive?), the creator (outages), ``_do_return_conn``,
``_close_connection`` (why did it end?).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Any

import sqlalchemy
from sqlalchemy import exc as sqla_exc
from sqlalchemy import pool as sqla_pool
from sqlalchemy.engine import Engine
from sqlalchemy.pool.base import _ConnectionFairy
from sqlalchemy.util import queue as sqla_queue
from sqlalchemy.util.concurrency import await_only

from unbroken.abc import Cause
from unbroken.core.entry import Entry
from unbroken.core.health import Need
from unbroken.core.stats import Stats
from unbroken.core.unit import current, glimpse
from unbroken.drivers._shared import dial
from unbroken.errors import UnbrokenError
from unbroken.flows.acquire import ping
from unbroken.flows.loan import Loan
from unbroken.integrations.sqlalchemy import gate
from unbroken.integrations.sqlalchemy.body import VACANT, Body, GreenletShell, SyncShell
from unbroken.integrations.sqlalchemy.plan import Blind, Plan
from unbroken.integrations.sqlalchemy.queue import SlotQueue
from unbroken.integrations.sqlalchemy.record import NO_BODY, Record, explain_timeout, in_greenlet, outside
from unbroken.net.liveness import Liveness, judge
from unbroken.settings import Settings

_getframe = sys._getframe
_checkout = _ConnectionFairy._checkout
_pools: weakref.WeakSet[Any] = weakref.WeakSet()

_IS_2_0 = sqlalchemy.__version__.startswith("2.0.")
_SQLALCHEMY = os.path.dirname(sqlalchemy.__file__) + os.sep  #: where SQLAlchemy's own frames are from
_RAW_CONNECTION, _ENGINE_CONNECT = Engine.raw_connection.__code__, Engine.connect.__code__  #: the usual way in

#: A new connection that is lost again while SQLAlchemy sets it up is replaced this often.
SETUP_ATTEMPTS = 3


class _Unbroken(sqla_pool.QueuePool):
    """What both pools below share."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"  # people set their levels by this name
    _plan: Plan
    _body: Any
    _pool: Any
    _dialect: Any

    def __init__(self, creator: Any, *args: Any, unbroken: Plan | None = None, **kwargs: Any) -> None:
        self._plan = unbroken or Plan(Blind(), Settings.of(max_idle=float("inf")))
        self._body = NO_BODY
        self._births: dict[Any, object] = {}
        self._counters: Any = None
        super().__init__(creator, *args, **kwargs)
        _pools.add(self)

    def recreate(self) -> Any:
        """A new pool of the same kind with the same arguments, as SQLAlchemy says. In a forked child nothing inherited is touched."""
        if self._body is not NO_BODY and not self._body.mark[0]:
            self._body.sever()
        self.logger.info("Pool recreating")
        kwargs = {
            "pool_size": self._pool.maxsize, "max_overflow": self._max_overflow, "pre_ping": self._pre_ping,
            "use_lifo": self._pool.use_lifo,
            "timeout": self._timeout, "recycle": self._recycle, "echo": self.echo, "logging_name": self._orig_logging_name,
            "reset_on_return": self._reset_on_return, "_dispatch": self.dispatch, "dialect": self._dialect,
        }  # fmt: skip
        fresh = self.__class__(self._creator, unbroken=self._plan, **kwargs)
        fresh._counters = getattr(self._body, "counters", self._counters)
        return fresh

    def dispose(self) -> None:
        """As SQLAlchemy's; in a forked child nothing inherited is touched."""
        body = self._body
        if body is not NO_BODY:
            if not body.mark[0]:
                self._enter()
                return
            for entry in body.kernel.all_idle():
                entry.condemn(Cause.DRAINED)
        super().dispose()

    # -- lending -------------------------------------------------------------------------------------------------

    def connect(self) -> Any:
        """A connection, fit to be used, as SQLAlchemy hands it out."""
        body = self._body
        if not body.mark[0]:
            body = self._enter()
        try:
            fairy = _checkout(self)
        except Exception as exc:
            fairy = self._again(exc)
        try:
            record: Any = fairy._connection_record
            entry = record.entry
            if entry is VACANT:  # a checkout event has replaced the connection by something of its own
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
            entry.taken_at_call(frame.f_code, frame.f_lasti)
            entry.holder = get_ident()
            entry.uses += 1
            body.lent[entry.key] = entry
            if body.bounded or glimpse() is not None:
                record.begun = True
                self._begin(body, entry)
        except BaseException:
            fairy.close()
            raise
        return fairy

    def _begin(self, body: Body, entry: Entry) -> None:
        """What not every use needs: a unit of work that looks on, a deadline."""
        unit = current()
        until = float("inf") if body.settings.deadline is None else entry.taken_at + body.settings.deadline
        if unit is not None:
            until = min(until, unit.until)
            if entry.conn is None:
                unit.doubt("its connections are wrapped by something that cannot be looked below")
            else:
                body.join(unit, entry, entry.conn)
        if until == float("inf"):
            return
        if entry.conn is None:
            body.timers[entry.key] = body.arm(entry, until)
        else:
            loan = Loan.of(body, entry, entry.conn)
            loan.arm(until)
            body.timers[entry.key] = loan.begun[1]  # type: ignore[index] # it is armed

    def _again(self, exc: BaseException) -> Any:
        """A checkout failed. A new connection that was lost while it was being set up is replaced; all else is the caller's."""
        for attempt in range(SETUP_ATTEMPTS):
            ours = isinstance(exc, UnbrokenError | sqla_exc.SQLAlchemyError) and not isinstance(exc, sqla_exc.DBAPIError)
            if ours or self._body.plan.is_blind or not self._body.classify(exc).is_lost or attempt == SETUP_ATTEMPTS - 1:
                raise exc
            try:
                return _checkout(self)
            except Exception as another:
                exc = another
        raise exc

    def _examine(self, record: Any) -> Any:
        """Make sure that the connection of *record* may be lent; what may not is ended, and SQLAlchemy opens another."""
        body, entry = self._body, record.entry
        if entry is VACANT:
            return record
        if body.glance():
            body.attend()
        now = entry.taken_at = body.clock()
        looks = judge(entry.poll(0))
        need = body.policy.need(entry, now)
        if entry.cause is not None:
            body.bury(entry, entry.cause, entry.words)
        elif looks is Liveness.DEAD:
            body.bury_dead(entry)
        elif need is Need.RETIRE:
            body.bury(entry, Cause.MAX_AGE)
        elif (looks is not Liveness.ALIVE or need is Need.PING) and not body.plan.is_blind and entry.conn is not None:
            body.run(ping(body, entry, body.settings.ping_timeout))
        return record

    # -- giving back ---------------------------------------------------------------------------------------------

    def _do_return_conn(self, record: Any) -> None:
        body, entry = self._body, record.entry
        if (
            body.lent.pop(entry.key, None) is entry
            and body.mark[0]
            and entry.cause is None
            and not record.begun
            and record.dbapi_connection is not None
            and (entry.conn is None or body.is_quiet(entry.conn))
        ):
            entry.last_used = body.now
            self._put(record, entry)
            return
        self._return_slowly(record, entry)

    def _put(self, record: Any, entry: Entry) -> None:
        try:
            self._pool.put(record, False)
        except sqla_queue.Full:
            self._close_surplus(record, entry)

    def _return_slowly(self, record: Any, entry: Entry) -> None:
        body, home = self._body, record.home
        if not body.mark[0] or (home is not None and home is not body) or record.exiled:
            self._close_foreign(record)
            return
        if entry is not VACANT:
            if record.dbapi_connection is None:
                if _IS_2_0 and self._is_asyncio and not in_greenlet():  # an async user who detaches is in a greenlet; a finalizer is not
                    body.report_forgotten(entry)
                body.detach(entry)
            else:
                if entry.conn is not None and not body.is_in_step(entry, entry.conn):
                    Loan.of(body, entry, entry.conn).break_off()
                body.release(entry)
                entry.last_used = body.clock()
                if entry.cause is not None:
                    body.finish_off(entry)
        record.begun = False
        self._put(record, record.entry)

    def _close_surplus(self, record: Any, entry: Entry) -> None:
        if entry is not VACANT:
            entry.condemn(Cause.SURPLUS)
        try:
            record.close()
        finally:
            self._dec_overflow()

    def _close_foreign(self, record: Any) -> None:
        """A connection of the parent process, or of an event loop that has ended, or one that was taken away: not our pool's any more."""
        home = record.home
        if home is not None and not home.mark[0]:
            home.sever()
        record.close()

    # -- connecting and closing ----------------------------------------------------------------------------------

    def _create_connection(self) -> Any:
        return Record(self)

    def _should_wrap_creator(self, creator: Any) -> Callable[[Any], Any]:
        inner: Callable[[Any], Any] = super()._should_wrap_creator(creator)
        this = weakref.ref(self)

        def create(record: Any) -> Any:
            pool = this()
            return inner(record) if pool is None else pool._open(record, lambda: inner(record))

        return create

    def _open(self, record: Any, inner: Callable[[], Any]) -> Any:
        """Open a connection for *record*, through the gate."""
        body = self._body
        if not body.mark[0]:
            body = self._enter()
        if body.plan.is_blind:
            connection = inner()
            _welcome(body, record, connection, connection)
            return connection
        connection = body.run(gate.connect(body, lambda: dial(inner), self._timeout))
        try:
            _welcome(body, record, connection, self._know(body, connection))
        finally:
            gate.arrived(body)
        return connection

    def _know(self, body: Body, connection: Any) -> Any:
        """The driver's object below *connection*, known to the driver; the server asked for its idle limit, once."""
        try:
            raw = body.plan.genuine(self._dialect.get_driver_connection(connection))
            if raw is None:
                return None
            try:
                self._wait_for(body.plan.know(raw))
            except (TypeError, AttributeError) as why:  # an object of another make than the driver file knows
                body.plan.warn_unknown(why)
                return None
            if not body.server.limit.asked:
                body.run(gate.ask_limit(body, raw))
            body.run(gate.prove(body, raw))
            if body.hidden.is_due(body.clock()):
                body.run(body.ask_hidden(raw))
        except BaseException:
            super()._close_connection(connection, terminate=True)
            raise
        return raw

    def _wait_for(self, value: Any) -> Any:
        return value

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        body = self._body
        if body is not NO_BODY and body.mark[0]:
            body.bid_farewell(connection)
        super()._close_connection(connection, terminate=terminate)

    def look_in(self) -> None:
        """Open a connection and close it again, only to know whether the server is there."""
        record = Record(self, connect=False)
        connection = self._raw_creator(record)
        super()._close_connection(connection, terminate=True)

    def _raw_creator(self, record: Any) -> Any:
        inner: Callable[[Any], Any] = super()._should_wrap_creator(self._creator)
        return dial(lambda: inner(record))

    # -- which process, which loop -------------------------------------------------------------------------------

    def _enter(self) -> Any:
        """The body of this process (and loop), made at first use. Of several threads that come at once, one makes it."""
        token = object()
        key = (os.getpid(), id(self._loop_here()))
        while self._births.setdefault(key, token) is not token:
            if self._body.mark[0]:
                return self._body
            time.sleep(0.001)
        try:
            old = self._body
            if old.mark[0]:
                return old
            if old is not NO_BODY:
                self._leave(old)
            counters = self._counters if old is NO_BODY else (old.counters if old.pid == os.getpid() else None)
            self._body = self._new_body(counters)
            return self._body
        finally:
            del self._births[key]

    def _leave(self, old: Any) -> None:
        """Start with nothing: what *old* held is the parent's, or of a loop that has ended."""
        old.sever()
        if old.pid == os.getpid():  # a loop that has ended: its transports complain if they are left to the garbage collector
            for entry in list(old.kernel.entries.values()):
                self._plan.driver.close(entry.conn)
        self._inherited = (old, self._pool)  # its records are kept: their end must not be a goodbye
        self._pool = self._queue_class(self._pool.maxsize, use_lifo=self._pool.use_lifo)
        self._overflow = 0 - self._pool.maxsize
        self._overflow_lock = threading.Lock()

    def _new_body(self, counters: Any) -> Body:
        raise NotImplementedError

    def _loop_here(self) -> Any:
        return None

    # -- for the body --------------------------------------------------------------------------------------------

    def queued(self) -> list[Any]:
        """The records in the queue."""
        raise NotImplementedError

    def waiting(self) -> int:
        """How many callers wait for the queue."""
        raise NotImplementedError

    def exile(self, entry: Entry) -> None:
        """Give the place of a lent *entry* to a new record; the holder's is closed when it comes back."""
        record = self._body.records.get(entry.key)
        if record is not None and not record.exiled:
            record.exiled = True
            self._body.lent.pop(entry.key, None)
            self.put_in(Record(self, connect=False))

    def put_in(self, record: Any) -> None:
        """Put a record into the queue where it is used last."""
        raise NotImplementedError

    def unbroken_stats(self) -> Stats:
        """The pool's numbers in this process at this moment."""
        body = self._body if self._body.mark[0] else self._new_body(self._counters)
        return body.stats()


class UnbrokenQueuePool(_Unbroken):
    """SQLAlchemy's QueuePool that does not break. Arguments as QueuePool's; the plugin fills in ``unbroken``."""

    _queue_class = SlotQueue

    def _do_get(self) -> Any:
        queue = self._pool
        if not queue.waiting:
            try:
                record = queue.take()
            except IndexError:
                pass
            else:
                body, entry = self._body, record.entry
                now = monotonic()
                if now - entry.last_used < body.fresh_for and not body.glance():
                    entry.taken_at = now
                    return record
                return self._examine(record)
        try:
            record = super()._do_get()
        except sqla_exc.TimeoutError as exc:
            explain_timeout(self._body, exc)
            raise
        return self._examine(record)

    def _do_return_conn(self, record: Any) -> None:
        body, entry = self._body, record.entry
        if (
            body.lent.pop(entry.key, None) is entry
            and body.mark[0]
            and entry.cause is None
            and not record.begun
            and record.dbapi_connection is not None
            and (entry.conn is None or body.is_quiet(entry.conn))
        ):
            entry.last_used = body.now
            queue = self._pool
            if self._overflow > 0 or not queue.maxsize:
                self._put(record, entry)
                return
            queue.append(record)  # no more connections than places: there is room for each
            if queue.waiting:
                queue.announce()
            return
        self._return_slowly(record, entry)

    def _new_body(self, counters: Any) -> Body:
        return Body(self, self._plan, SyncShell(self._plan.driver), gate.seek, counters)  # type: ignore[arg-type] # a blocking driver

    def queued(self) -> list[Any]:
        """See above."""
        return list(self._pool.queue)

    def waiting(self) -> int:
        """See above."""
        return int(self._pool.waiting)

    def take_out(self, record: Any) -> bool:
        """Take an idle record out of the queue; False when somebody has it."""
        return bool(self._pool.take_out(record))

    def put_in(self, record: Any) -> None:
        """See above."""
        self._pool.put_in(record)


class AsyncUnbrokenQueuePool(_Unbroken, sqla_pool.AsyncAdaptedQueuePool):
    """The same for async engines."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"

    def _do_get(self) -> Any:
        try:
            return self._examine(self._get_patiently())
        except sqla_exc.TimeoutError as exc:
            explain_timeout(self._body, exc)
            raise

    def _get_patiently(self) -> Any:
        """SQLAlchemy's ``_do_get``; who has waited for a moment has the garbage collected, and goes on waiting."""
        body = self._body
        end = body.clock() + self._timeout
        for patience in body.collector.looks(end):
            if self._max_overflow < 0 or self._overflow < self._max_overflow or not self._pool.empty():
                break
            try:
                return self._pool.get(True, min(patience, max(0.0, end - body.clock())))
            except sqla_queue.Empty:
                body.collector.collect(end)
        return super()._do_get()

    def dispose(self) -> None:
        """As SQLAlchemy's. The watcher ends with it, since the loop may."""
        super().dispose()
        body = self._body
        if body is not NO_BODY and body.mark[0] and not body.lent and not body.line:
            body.shell.watcher.close()
            self._counters, self._body = body.counters, NO_BODY

    def _loop_here(self) -> Any:
        return asyncio.get_running_loop()

    def _new_body(self, counters: Any) -> Body:
        return Body(self, self._plan, GreenletShell(self._plan.driver, self._loop_here()), gate.seek, counters)  # type: ignore[arg-type] # an async one

    def _wait_for(self, value: Any) -> Any:
        return await_only(value)

    def _close_connection(self, connection: Any, *, terminate: bool = False) -> None:
        """On the event loop itself nothing can be awaited: there the driver closes at once, which not every dialect can."""
        if self._plan.is_blind or in_greenlet():
            super()._close_connection(connection, terminate=terminate)
            return
        raw = self._plan.genuine(self._dialect.get_driver_connection(connection))
        if self._body.mark[0]:
            self._body.bid_farewell(connection)
        self._plan.driver.close(raw)

    def queued(self) -> list[Any]:
        """See above."""
        return list(self._pool._queue._queue)

    def waiting(self) -> int:
        """See above."""
        return sum(not getter.done() for getter in self._pool._queue._getters)

    def take_out(self, record: Any) -> bool:
        """See above."""
        try:
            self._pool._queue._queue.remove(record)
        except ValueError:
            return False
        return True

    def put_in(self, record: Any) -> None:
        """See above."""
        queue = self._pool._queue
        (queue._queue.appendleft if self._pool.use_lifo else queue._queue.append)(record)
        queue._wakeup_next(queue._getters)


def _welcome(body: Body, record: Any, connection: Any, raw: Any) -> None:
    if isinstance(record, Record):
        entry = body.welcome(record, connection, raw)
        entry.taken_at = entry.born


def _sever_all() -> None:
    """After a fork that Python sees, and at the end of a child whose fork it did not see: sever what was inherited."""
    for pool in list(_pools):
        if not pool._body.mark[0]:
            pool._body.sever()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever_all)
atexit.register(_sever_all)
