"""Connections that a request acquired and did not return: engines' connections, sessions,
connections of our pools.

Each is reported once per place in the code, and closed rather than reused: the code that forgot it
may still have a reference.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextvars import ContextVar
from time import monotonic
from typing import Any

from unbroken import sync
from unbroken.integrations.web.exchange import log
from unbroken.messages.integrations import SESSION_NOT_ENDED
from unbroken.messages.processes import REQUEST_LEFT
from unbroken.pool.holder import outside
from unbroken.pool.leaks import reclaim
from unbroken.pool.state import state_of

#: Frames of these packages did not take a connection for their own use.
_BETWEEN = frozenset({"sqlalchemy", "flask_sqlalchemy", "unbroken"})
_KEY = "unbroken_taken"

_ident = threading.get_ident  #: the pools' value: they import it when we do

_watched: weakref.WeakSet[Any] = weakref.WeakSet()


class Taken:
    """The connections that one request has acquired so far."""

    __slots__ = ("notes", "since")

    def __init__(self) -> None:
        self.notes: set[_Note] = set()
        self.since = monotonic()


current: ContextVar[Taken | None] = ContextVar("unbroken_taken", default=None)


class _Note:
    """One checkout of an engine's connection: its holder, and its place in the code."""

    __slots__ = ("code", "fairy", "line", "taken")

    def __init__(self, taken: Taken, fairy: Any) -> None:
        self.taken = taken
        self.fairy = weakref.ref(fairy)
        frame = outside(_BETWEEN)
        self.code, self.line = frame.f_code, frame.f_lineno

    @property
    def place(self) -> str:
        return f"{self.code.co_filename}:{self.line} in {self.code.co_qualname}"


def watch(engine: Any) -> None:
    """Record from now on which request has which connections of this (sync) engine of
    SQLAlchemy's.
    """
    if engine in _watched:
        return
    _watched.add(engine)
    from sqlalchemy import event

    event.listen(engine, "checkout", _on_checkout)
    event.listen(engine, "checkin", _on_checkin)


def _on_checkout(_connection: Any, record: Any, fairy: Any) -> None:
    taken = current.get()
    if taken is not None:
        note = record.info[_KEY] = _Note(taken, fairy)
        taken.notes.add(note)


def _on_checkin(_connection: Any, record: Any) -> None:
    note = record.info.pop(_KEY, None)
    if note is not None:
        note.taken.notes.discard(note)
        if note.fairy() is None:  # it was not returned but collected
            tell(note.place)


def is_engine(database: Any) -> bool:
    """Return whether *database* is one of SQLAlchemy's blocking engines."""
    return (
        hasattr(database, "pool")
        and hasattr(database, "dialect")
        and not hasattr(database, "sync_engine")
    )


def take_back(taken: Taken, databases: Iterable[Any]) -> None:
    """End everything that the request still has, because it is over. Never raises."""
    for note in list(taken.notes):
        fairy = note.fairy()
        taken.notes.discard(note)
        if fairy is None or getattr(fairy, "dbapi_connection", None) is None:
            continue
        tell(note.place)
        try:
            fairy.invalidate()
        except Exception:
            log.exception(
                "session not closed",
                SESSION_NOT_ENDED(
                    f"a connection that was taken at {note.place} could not be closed"
                ),
                place=note.place,
            )
    for database in databases:
        if isinstance(database, sync.Pool):
            _take_back_of(database, taken.since)


def _take_back_of(pool: sync.Pool, since: float) -> None:
    """Take back everything that this thread has acquired since the request began. A request has its
    thread (or greenlet) to itself, so all of it is the request's.
    """
    if _ident is not threading.get_ident:
        return  # gevent patched threads after we were imported: greenlets cannot be told apart
    state, me = state_of(pool), _ident()
    for entry in list(state.in_use.values()):
        if entry.holder == me and entry.taken_at >= since:
            entry.reported = entry.uses
            tell(str(entry.place))
            reclaim(state, entry, entry.uses)


def tell(place: str) -> None:
    """Warn once about each place."""
    log.warning(
        "left by a request",
        REQUEST_LEFT(
            f"a request ended without releasing the connection that it took at {place}; unbroken"
            " took the connection back (logged once per place)"
        ),
        about=place,
        once=True,
        place=place,
    )
