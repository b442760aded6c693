"""More callers than PyMongo's pool of a server has connections: some get an error immediately.

``brain/line.py`` decides, as for every pool. PyMongo's pool keeps its own queue and serves it in
its own order. So a caller gets the error before it joins the queue, and never after that. An
operation that finds a free connection compares two numbers and does nothing else.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from pymongo import _csot
from pymongo.errors import WaitQueueTimeoutError

from unbroken.brain.line import Line, Refusal, crowded
from unbroken.brain.ranks import Rank, Ticket
from unbroken.integrations.mongo import pymongo_internals
from unbroken.integrations.mongo.client_options import Limits
from unbroken.integrations.mongo.errors import queue_error
from unbroken.integrations.mongo.gate import Gate
from unbroken.integrations.mongo.units import not_sent
from unbroken.ledger import scope
from unbroken.logs import Part
from unbroken.messages.pool import OVERLOADED
from unbroken.pool import wording
from unbroken.pool.callers import User, caller, has_limit
from unbroken.pool.overload import come_again

log = Part("pool")


class Queue:
    """The queue of one of PyMongo's pools: of one server, in one process."""

    __slots__ = ("line", "lock", "served", "users", "waiting")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.line = Line()
        #: Those who wait. A ticket ends with its caller, however that ends.
        self.waiting: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self.users: weakref.WeakSet[Ticket] = weakref.WeakSet()  #: those the line has a limit for
        #: Requests of which an operation has waited here and was served. They continue: otherwise
        #: half of their work would have been done for nothing.
        self.served: weakref.WeakSet[Any] = weakref.WeakSet()


class Overload:
    """Decides for the queues of one process's client, and counts the callers that got an error."""

    def __init__(self, gate: Gate, limits: Limits) -> None:
        self.gate = gate
        self.limits = limits
        self.shed = 0
        self._lock = threading.Lock()
        self._random = Random()

    def waits(self, pool: Any, started: float, handler: Any) -> Place:
        """A place in the queue of *pool*, which has no connection free, for the caller in this
        context. *started* and *handler* are PyMongo's.

        Raises PoolTimeoutError where the caller would be served too late.
        """
        queue = _queue_of(pool)
        rank, user = caller()
        now, until = time.monotonic(), _until(pool)
        ticket = Ticket(now, None, rank, is_users=has_limit(user, self.limits.target))
        with queue.lock:
            refusal = self._joins(pool, queue, ticket, user, until, _goes_on(handler))
            if refusal is None:
                queue.waiting.add(ticket)
                if ticket.is_users:
                    queue.users.add(ticket)
                return Place(self, pool, queue, ticket, user)
        pool._raise_if_not_ready(started, emit_event=True)  # an outage is not overload
        error = self._error(pool, queue, refusal, started)
        if handler is not None:
            handler.handled = True  # it says nothing of the server, and nothing of a transaction
        not_sent()
        try:
            raise error
        finally:
            del error  # no frame in its traceback refers to it

    def _joins(
        self,
        pool: Any,
        queue: Queue,
        ticket: Ticket,
        user: User | None,
        until: float,
        goes_on: bool,
    ) -> Refusal | None:
        """Why the caller of *ticket*, which has time until *until*, gets an error immediately;
        None: it may wait. The caller holds the lock.
        """
        line, places, now = queue.line, pool.max_pool_size, ticket.since
        if goes_on:
            return None
        ahead = len(queue.waiting)
        crowd = crowded(ticket.rank, ahead, self.limits.most)
        if crowd is not None:
            return crowd
        if not self.is_busy(pool, line, now):
            line.interrupted()
            return None
        rank, has_limit_here = ticket.rank, ticket.is_users
        if user is not None and rank is Rank.NORMAL and user in queue.served:
            rank, has_limit_here = Rank.BACKGROUND, False  # only its own time counts
        return line.came(
            now,
            rank,
            ahead,
            until - now,
            places,
            users=len(queue.users) if has_limit_here else None,
            target=self.limits.target,
        )

    def is_busy(self, pool: Any, line: Line, now: float) -> bool:
        """Whether those who have a connection of *pool* decide how long others wait."""
        gate = self.gate
        is_away = gate.reads.active or gate.writes.active
        opening = pymongo_internals.opening(pool)
        return not is_away and line.depends_on_holders(now, opening, pool.max_pool_size)

    def _error(self, pool: Any, queue: Queue, refusal: Refusal, started: float) -> Exception:
        after = come_again(self._random)
        load = f"in use {pool.active_sockets}, waiting {len(queue.waiting)}"
        line = wording.line(refusal, 0.0, f"{load}, maxPoolSize {pool.max_pool_size}")
        where = "{}:{}".format(*tuple(pool.address)[:2])
        try:
            pool._raise_wait_queue_timeout(started)  # those who listen to the pool's events hear it
        except WaitQueueTimeoutError as timeout:
            plain = timeout.with_traceback(None)
        error = queue_error(
            OVERLOADED(
                f"no connection to {where}, {line}; {refusal.why}; retry in {after:.1f} s, or raise"
                " maxPoolSize if the server can take more connections"
            ),
            after,
            plain,
        )
        with self._lock:
            self.shed += 1
        log.warning("callers told at once", OVERLOADED(str(error)), about=where, pool=where)
        return error


class Place:
    """One caller's place in PyMongo's queue. It is left in every case, by one of its methods."""

    __slots__ = ("_overload", "_pool", "_queue", "_ticket", "_user")

    def __init__(
        self, overload: Overload, pool: Any, queue: Queue, ticket: Ticket, user: User | None
    ) -> None:
        self._overload, self._pool, self._queue = overload, pool, queue
        self._ticket, self._user = ticket, user

    def served(self) -> None:
        """PyMongo has given the caller a connection."""
        queue = self._queue
        now = time.monotonic()
        with queue.lock:
            self._leave()
            if self._is_busy(now):
                queue.line.granted(now, self._pool.max_pool_size, others=bool(queue.waiting))
            else:
                queue.line.interrupted()
            if self._user is not None:
                with suppress(TypeError):  # it cannot be referred to weakly
                    queue.served.add(self._user)

    def left(self, error: BaseException) -> None:
        """The caller has got *error* in place of a connection."""
        queue, ticket = self._queue, self._ticket
        now = time.monotonic()
        with queue.lock:
            self._leave()
            if isinstance(error, WaitQueueTimeoutError):
                return  # its time was up
            if isinstance(error, Exception):
                queue.line.interrupted()
            elif ticket.rank is Rank.NORMAL and self._is_busy(now):
                queue.line.left(now, now - ticket.since, self._pool.max_pool_size)

    def _leave(self) -> None:
        self._queue.waiting.discard(self._ticket)
        self._queue.users.discard(self._ticket)

    def _is_busy(self, now: float) -> bool:
        return self._overload.is_busy(self._pool, self._queue.line, now)


def _queue_of(pool: Any) -> Queue:
    known = vars(pool)
    queue: Queue = known.get("_unbroken_queue") or known.setdefault("_unbroken_queue", Queue())
    return queue


def _until(pool: Any) -> float:
    """When the time of the caller in this context is up."""
    limit = pool.opts.wait_queue_timeout
    until = time.monotonic() + limit if limit else math.inf
    if _csot.get_timeout():
        until = _csot.get_deadline()
    unit = None if scope.current_token() is None else scope.current()
    return until if unit is None else min(until, unit.until)


def _goes_on(handler: Any) -> bool:
    """Whether an operation continues or ends a transaction, which the server keeps until then.
    An operation with an unknown kind of *handler* counts as one.
    """
    if handler is None:
        return False
    session: Any = getattr(handler, "session", None)
    is_begun = session is not None and session.in_transaction and not session._starting_transaction
    return is_begun or not hasattr(handler, "handled")


def telling(pool: Any, overload: Overload) -> Any:
    """A class like PyMongo's *pool*. *overload* decides which callers may wait in its queue.

    Anything but a class that is built as PyMongo's is known to be stays as it is: all callers wait.
    """
    if not pymongo_internals.has_known_queue(pool):
        return pool
    plain: Any = pool._get_conn

    def _get_conn(self: Any, checkout_started_time: float, handler: Any = None) -> Any:
        if self.requests < self.max_pool_size or self.closed:
            return plain(self, checkout_started_time, handler)
        place = overload.waits(self, checkout_started_time, handler)
        try:
            conn = plain(self, checkout_started_time, handler)
        except BaseException as error:
            place.left(error)
            raise
        try:
            place.served()
        except BaseException:  # a signal's
            self.checkin(conn)
            raise
        return conn

    return _with(pool, _get_conn)


def telling_async(pool: Any, overload: Overload) -> Any:
    """As :func:`telling`, for PyMongo's pool of asyncio connections."""
    if not pymongo_internals.has_known_queue(pool):
        return pool
    plain: Any = pool._get_conn

    def _get_conn(self: Any, checkout_started_time: float, handler: Any = None) -> Any:
        if self.requests < self.max_pool_size or self.closed:
            return plain(self, checkout_started_time, handler)
        return in_line(self, checkout_started_time, handler)

    async def in_line(self: Any, checkout_started_time: float, handler: Any) -> Any:
        place = overload.waits(self, checkout_started_time, handler)
        try:
            conn = await plain(self, checkout_started_time, handler)
        except BaseException as error:
            place.left(error)
            raise
        try:
            place.served()
        except BaseException:  # a signal's
            await self.checkin(conn)
            raise
        return conn

    return _with(pool, _get_conn)


def _with(pool: Any, get_conn: Callable[..., Any]) -> Any:
    return type(pool.__name__, (pool,), {"_get_conn": get_conn})
