"""SQLAlchemy's record with what unbroken knows of the connection in it, and who took it where."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import sqlalchemy
from sqlalchemy.pool.base import _ConnectionRecord

from unbroken.core.entry import Entry
from unbroken.integrations.sqlalchemy.body import VACANT, Body


class _NoBody:
    """Stands in for a body before the first use: it sends every path the slow way."""

    mark = (0,)
    lent: Mapping[int, Entry] = MappingProxyType({})
    timers: Mapping[int, Any] = lent

    def sever(self) -> None:
        """Nothing is inherited."""


NO_BODY: Any = _NoBody()


class Record(_ConnectionRecord):
    """SQLAlchemy's slot for one connection, and what unbroken knows of the connection in it."""

    __slots__ = ("begun", "entry", "exiled", "home")

    def __init__(self, pool: Any, connect: bool = True) -> None:
        self.entry: Entry = VACANT
        self.home: Body | None = None
        self.begun = False  #: this use has a unit of work or a deadline, which end with it
        self.exiled = False  #: its place was given to another record while its holder kept it for too long
        super().__init__(pool, connect)

    @property
    def needs_gc(self) -> bool:
        """Asked by SQLAlchemy's finalizer alone, so True means: its holder let it be collected."""
        needs = super().needs_gc
        if needs and self.home is not None:
            self.home.note_forgotten(self.entry)
        return needs

    if sqlalchemy.__version__.startswith("2.0."):

        def checkin(self, _fairy_was_created: bool = True) -> None:
            """There, a finalizer comes straight here; the one it comes for is gone by then."""
            ref = self.fairy_ref
            if ref is not None and ref() is None and self.home is not None:
                self.home.note_forgotten(self.entry)
            super().checkin(_fairy_was_created)


def explain_timeout(body: Any, exc: BaseException) -> None:
    """Say in a note who holds what everybody waits for."""
    with body.lock:
        body.counters.timeouts += 1
    places = sorted({str(e.place) for e in list(body.lent.values())[:50] if e.place is not None})
    if places:
        exc.add_note(f"unbroken: connections are held by {', '.join(places[:3])}{' …' if len(places) > 3 else ''}")
    outage = body.describe_outage(body.clock())
    if outage:
        exc.add_note(f"unbroken: {outage}")


def in_greenlet() -> bool:
    """Whether this is inside one of SQLAlchemy's greenlets, where async drivers can be waited for."""
    greenlet: Any = sys.modules.get("greenlet")
    return greenlet is not None and getattr(greenlet.getcurrent(), "__sqlalchemy_greenlet_provider__", False)


def outside() -> Any:
    """The frame that waits for SQLAlchemy's greenlet, on the async caller's side; None where there is none."""
    greenlet: Any = sys.modules.get("greenlet")
    parent = greenlet.getcurrent().parent if greenlet is not None else None
    return parent.gr_frame if parent is not None else None
