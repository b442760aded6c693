"""A pool entry with SQLAlchemy's side of it, and SQLAlchemy's record with ours."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import sqlalchemy
from sqlalchemy.pool.base import _ConnectionRecord

from unbroken.brain.entry import Entry
from unbroken.ledger.heal import Past
from unbroken.messages.integrations import HOLDERS
from unbroken.pool.heal import Before
from unbroken.pool.holder import HANDLES


class Slot(Entry):
    """A pool entry, with SQLAlchemy's DBAPI connection and its record.

    Without ``conn`` it is a place: its holder opens a connection, or returns the place.
    """

    __slots__ = ("dbapi", "record", "vacated")

    def __init__(self, conn: Any, now: float, generation: int, retire_at: float) -> None:
        super().__init__(conn, now, generation, retire_at)
        self.key = id(self)  # some drivers (and mocks) give one object for several connections
        self.dbapi: Any = None
        self.record: Any = None
        self.vacated = False  #: a place that had a connection before: SQLAlchemy keeps it


class _NoBody:
    """Stands in for a body before the first use: it sends every path the slow way."""

    here = (0,)
    waiting = idle = ()
    in_use: Mapping[int, Entry] = MappingProxyType({})

    def sever(self) -> None:
        """Do nothing: nothing is inherited."""


NO_BODY: Any = _NoBody()

_IS_2_0 = sqlalchemy.__version__.startswith("2.0.")


class Record(_ConnectionRecord):
    """SQLAlchemy's record of one connection, and the pool entry that the connection belongs to."""

    __slots__ = (
        "closing",
        "entry",
        "failed",
        "loan",
        "login",
        "owner",
        "past",
        "past_use",
        "pool",
        "sent_bytes",
        "sql",
        "used",
        "was_dead",
    )

    def __init__(self, pool: Any, connect: bool = True) -> None:
        self.pool = pool
        self.entry: Slot | None = None
        self.owner: Any = None  #: the Body that the entry belongs to
        self.loan: Any = None  #: this use's unit of work or deadline, which end with it
        #: the address and the login of the connect that is made for it
        self.login: Any = None
        self.closing = False  #: whether this record's connection is being closed, or set up, now
        #: the number of the use of the entry that a caller has; 0: of another entry, -1: none yet
        self.used = -1
        self.past = Past()  #: the statements sent on it in the use ``past_use``
        self.past_use: tuple[int, int] | None = None
        #: whether its connection had ended before the last statement was sent
        self.was_dead = Before.WELL
        self.sql: Any = None  #: that statement
        self.failed: int | None = None  #: the ``id`` of the error that its last call raised
        self.sent_bytes: tuple[int | None] | None = None  #: counted while handlers have a cursor
        super().__init__(pool, connect)

    def hold(self, entry: Slot, owner: Any) -> None:
        """Make this the record of *entry*, which is *owner*'s."""
        self.entry, self.owner, self.used = entry, owner, min(self.used, 0)

    def get_connection(self) -> Any:
        """Return SQLAlchemy's DBAPI connection; a new one if it has ended or must not be used any
        more.
        """
        conn, pool = self.dbapi_connection, self.pool
        if (
            conn is not None
            and pool._recycle < 0
            and pool._invalidate_time <= self.starttime
            and self._soft_invalidate_time <= self.starttime
        ):
            return conn
        return self._get_slowly()

    def _get_slowly(self) -> Any:
        # a variable of this frame: the search for strays sees that this thread has it
        entry = self.entry
        opened = entry is not None and self.dbapi_connection is None and entry.dbapi is not None
        if opened or self.owner is None or self.owner.connects_here:
            with self._closing():
                conn = super().get_connection()
            if entry is not None and entry.conn is not None:
                # after the events that set a connection up
                entry.traits = self.owner.driver.traits(entry.conn)
            return conn
        if self.dbapi_connection is not None:
            if not self.is_stale():
                return self.dbapi_connection
            self.recycle()
        return self.pool.renew(self)

    def is_stale(self) -> bool:
        """Return whether SQLAlchemy's rules (``pool_recycle``, an invalidation) forbid using the
        connection again.
        """
        age = self.pool._recycle
        return self._is_hard_or_soft_invalidated() or (
            age > -1 and time.time() - self.starttime > age
        )

    def recycle(self) -> None:
        """Close the connection as SQLAlchemy does for one that is stale."""
        self.pool.logger.info("Connection %r is stale; recycling", self.dbapi_connection)
        with self._closing():
            getattr(self, "_ConnectionRecord__close")(terminate=True)  # noqa: B009 - written out it would be mangled

    @contextmanager
    def _closing(self) -> Iterator[None]:
        self.closing = True
        try:
            yield
        finally:
            self.closing = False

    def close(self) -> None:
        """Do the same as SQLAlchemy."""
        with self._closing():
            super().close()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """Do the same as SQLAlchemy."""
        with self._closing():
            super().invalidate(e, soft)

    def take_over(self, other: Record) -> Any:
        """Make *other*'s connection this record's. No event is due for it. Returns the
        connection.
        """
        entry = other.entry
        self.dbapi_connection, other.dbapi_connection = other.dbapi_connection, None
        self.starttime, self._soft_invalidate_time, self.fresh = (
            other.starttime,
            other._soft_invalidate_time,
            False,
        )
        self.info.clear()
        self.info.update(other.info)
        other.entry = None
        if entry is not None:
            entry.record = self
            self.hold(entry, other.owner)
        return self.dbapi_connection

    @property
    def needs_gc(self) -> bool:
        """Return True if its holder let it be collected. Only SQLAlchemy's finalizer asks."""
        needs = super().needs_gc
        if needs and self.owner is not None:
            self.owner.note_forgotten(self.entry)
        return needs

    if _IS_2_0:

        def checkin(self, _fairy_was_created: bool = True) -> None:
            """Check the record in. A finalizer calls this directly; the object that it runs for is
            gone by then.
            """
            ref = self.fairy_ref
            if ref is not None and ref() is None and self.owner is not None:
                self.owner.note_forgotten(self.entry)
            super().checkin(_fairy_was_created)


HANDLES[Record] = lambda record: record.entry


class Shelf:
    """The attributes of a QueuePool's queue that SQLAlchemy (and applications) read: its idle
    records, from our kernel.
    """

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        self.maxsize, self.use_lifo = maxsize, use_lifo
        self.pool: Any = None  #: a weak reference

    def _idle(self) -> list[Any]:
        pool = self.pool() if self.pool is not None else None
        return [] if pool is None or not pool._body.here[0] else pool._body.kernel.all_idle()

    @property
    def queue(self) -> list[Any]:
        """Return the idle records."""
        return [entry.record for entry in self._idle()]

    @queue.setter
    def queue(self, records: Any) -> None:
        """Remove idle records that are not among *records* from the pool."""
        kept = list(records)
        gone = [entry for entry in self._idle() if entry.record not in kept]
        if gone:
            self.pool()._body.kernel.take(gone)

    def qsize(self) -> int:
        """Return how many connections are idle."""
        return len(self._idle())

    def empty(self) -> bool:
        """Return whether none is idle."""
        return not self._idle()


def note_holders(body: Any, exc: BaseException) -> None:
    """Add a note that names the holders of the connections that callers wait for."""
    places = sorted({str(e.place) for e in list(body.in_use.values())[:50] if e.place is not None})
    if places:
        exc.add_note(
            HOLDERS(
                "unbroken: connections are held by"
                f" {', '.join(places[:3])}{' …' if len(places) > 3 else ''}"
            )
        )
    outage = body.describe_outage(body.clock())
    if outage:
        exc.add_note(HOLDERS(f"unbroken: {outage}"))


def in_greenlet() -> bool:
    """Return whether this runs inside one of SQLAlchemy's greenlets, where async drivers can be
    waited for.
    """
    greenlet: Any = sys.modules.get("greenlet")
    return greenlet is not None and getattr(
        greenlet.getcurrent(), "__sqlalchemy_greenlet_provider__", False
    )


def outside() -> Any:
    """Return the frame that waits for SQLAlchemy's greenlet, on the async caller's side; None if
    there is none.
    """
    greenlet: Any = sys.modules.get("greenlet")
    parent = greenlet.getcurrent().parent if greenlet is not None else None
    return parent.gr_frame if parent is not None else None
