"""A proxy's reports: frozen snapshots of its connections, and a log of its events."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

#: Number of events that are kept; older ones are dropped.
KEPT = 20_000


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One connection through the proxy, at the moment of the call."""

    n: int  #: the nth that was accepted, from 1
    peer: str  #: the client's address; empty for a unix socket
    state: str  #: ``connecting`` (to the server), ``open``, ``half closed``, ``closed``
    to_server: int  #: bytes passed on to the server
    to_client: int  #: bytes passed on to the client
    dropped: int  #: bytes discarded by a black hole, both ways
    held: int  #: bytes waiting in the proxy, both ways
    round_trips: int  #: how often the client sent data after the server had (or first)
    opened: float  #: seconds since the proxy started
    closed: float | None = None
    reason: str = ""  #: why it ended


@dataclass(frozen=True, slots=True)
class Event:
    """An event. *name* is one of a few words (``accepted``, ``closed``, ``rst`` …), *text* is for
    people.
    """

    serial: int  #: from 1
    at: float  #: seconds since the proxy started
    name: str
    n: int | None = None  #: the connection, if it concerns one
    text: str = ""

    def __str__(self) -> str:
        who = f" #{self.n}" if self.n is not None else ""
        return f"{self.at:9.4f} {self.name}{who}{' ' if self.text else ''}{self.text}"


class Log:
    """The events in order. Any thread can read them and wait for them."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._serial = 0
        self._news = threading.Condition()

    def renew(self) -> None:
        """In a forked child: make a new lock. The old one's holder did not survive the fork."""
        self._news = threading.Condition()

    def now(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def add(self, name: str, n: int | None = None, text: str = "") -> None:
        """Add an event."""
        with self._news:
            self._serial += 1
            self._events.append(Event(self._serial, self.now(), name, n, text))
            self._news.notify_all()

    def after(self, serial: int = 0) -> tuple[Event, ...]:
        """Return the kept events after the one with that number."""
        with self._news:
            return tuple(event for event in self._events if event.serial > serial)

    def wait(self, serial: int, timeout: float) -> tuple[Event, ...]:
        """Return the same as :meth:`after`, but wait up to *timeout* seconds for the first."""
        with self._news:
            self._news.wait_for(lambda: self._serial > serial, timeout)
        return self.after(serial)
