"""A server that exists only in memory; :mod:`unbroken_drill.fake` explains its use."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from enum import Enum
from time import monotonic
from typing import Any

from unbroken.abc import Cause, Fault, FaultKind
from unbroken_drill.fake_clock import FakeClock

#: A call without a time limit gives up after this many seconds of silence, as TCP_USER_TIMEOUT
#: would.
PATIENCE = 30.0


class FakeError(Exception):
    """The base of the fake driver's errors."""


class FakeOperationalError(FakeError):
    """The fake driver's error; ``fault`` is its meaning."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


class Mode(Enum):
    """The server's behaviour towards clients that connect."""

    UP = "up"
    REFUSING = "refusing"  #: nobody listens
    STARTING = "starting"  #: it answers that it is not ready
    UNREACHABLE = "unreachable"  #: new clients get no answer, existing connections work
    FROZEN = "frozen"  #: no client gets an answer until it thaws
    REJECTING = "rejecting"  #: the password is wrong


class Session:
    """The server's side of a connection.

    Its own transaction is the state of a real server, even if the driver reports another one.
    """

    __slots__ = (
        "goodbye",
        "is_dropped",
        "last_active",
        "number",
        "on_hang_up",
        "open",
        "pending",
        "server",
        "wire",
    )

    def __init__(self, server: FakeServer, number: int) -> None:
        self.server = server
        self.number = number
        self.open = True
        #: a device on the way lost the connection: nothing arrives any more, no side is notified
        self.is_dropped = False
        self.goodbye: Fault | None = None  #: the server's last message when it ended the session
        self.pending: list[Any] | None = None  #: rows of the open transaction; None: none is open
        self.last_active = server.clock()
        self.on_hang_up: Callable[[], Any] | None = None
        self.wire: socket.socket | None = None  #: the server's end, if there are real sockets

    @property
    def has_hung_up(self) -> bool:
        """Whether the client's kernel knows that the session is over."""
        return not self.open and not self.is_dropped

    def end(self, goodbye: Fault | None = None) -> None:
        """End the session: an open transaction is rolled back, and the client sees a hang-up."""
        if not self.open:
            return
        self.open, self.goodbye, self.pending = False, goodbye, None
        self.server.sessions.pop(self.number, None)
        if self.wire is not None:
            self.wire.close()
        if self.on_hang_up is not None and not self.is_dropped:
            self.on_hang_up()


LOST = Fault(
    FaultKind.LOST, Cause.CLOSED_BY_PEER, 2013, "lost connection to the server during the query"
)


class FakeServer:
    """A server in memory. A test can change ``mode`` (or call the verbs), ``max_connections``,
    ``idle_limit`` and ``read_only`` at any time.

    ``rows`` are the committed rows, in order. ``attempts`` lists every attempt to connect, with its
    time and outcome. ``round_trips`` counts every exchange. *idle_limit* seconds without a
    statement end a session (None: never).
    """

    def __init__(
        self,
        clock: Callable[[], float] = monotonic,
        *,
        name: str = "fake",
        max_connections: int = 100,
        idle_limit: float | None = None,
        tells_idle_limit: bool = True,
    ) -> None:
        self.clock = clock
        self.name = name
        self.max_connections = max_connections
        self.idle_limit = idle_limit
        self.tells_idle_limit = (
            tells_idle_limit  #: False: asking for it gives an error, as with little privilege
        )
        self.mode = Mode.UP
        self.read_only = False
        self.commits_to_lose = (
            0  #: so many of the next COMMITs are stored, but the session ends before the answer
        )
        self.rows: list[Any] = []
        self.sessions: dict[int, Session] = {}
        self.attempts: list[tuple[float, str]] = []
        self.round_trips = 0
        self._numbers = 0
        self._in_flight: list[
            tuple[Session, list[Any]]
        ] = []  # COMMITs that arrived while it was frozen
        self._changed = threading.Condition(threading.RLock())

    # -- verbs -------------------------------------------------------------------------------------

    def up(self) -> None:
        """Accept connections and answer. Requests that arrived during a freeze are done now."""
        with self._changed:
            self.mode = Mode.UP
            for session, rows in self._in_flight:
                self.rows += rows
                session.pending = None
            self._in_flight.clear()
            self._changed.notify_all()

    def down(self) -> None:
        """Stop in order: every session is notified, then nobody listens."""
        self.kill_sessions(
            Fault(FaultKind.LOST, Cause.SHUTDOWN, 1053, "server shutdown in progress")
        )
        self.mode = Mode.REFUSING

    def crash(self) -> None:
        """Crash: every session ends, uncommitted work is gone, and nobody listens."""
        self.kill_sessions(None)
        self.mode = Mode.REFUSING

    def freeze(self) -> None:
        """Answer no client until :meth:`up`. Nothing is lost yet."""
        self.mode = Mode.FROZEN

    def reject(self) -> None:
        """Refuse the password of every new connection from now on."""
        self.mode = Mode.REJECTING

    def kill_sessions(
        self,
        goodbye: Fault | None = Fault(FaultKind.LOST, Cause.KILLED, 1927, "connection was killed"),  # noqa: B008
    ) -> int:
        """End every session, with *goodbye* as the server's last message. Returns their number."""
        self._in_flight.clear()
        sessions = list(self.sessions.values())
        for session in sessions:
            session.end(goodbye)
        return len(sessions)

    def drop_silently(self) -> int:
        """Let a device on the way lose every connection: neither side receives anything from the
        other any more. Returns their number.
        """
        sessions = list(self.sessions.values())
        for session in sessions:
            session.is_dropped = True
            session.end()
        return len(sessions)

    # -- what happens on the wire ------------------------------------------------------------------

    def answers(self, session: Session | None = None) -> bool:
        """Return whether a request (on *session*, or to connect) is answered now, also by an error
        or a hang-up.
        """
        if self.mode is Mode.FROZEN:
            return session is not None and session.has_hung_up
        if session is None:
            return self.mode is not Mode.UNREACHABLE
        return session.open or not session.is_dropped

    def accept(self, timeout: float) -> Session:
        """Return a new session for a client that waits *timeout* seconds for it.

        Raises FakeOperationalError.
        """
        self.round_trips += 1
        self._await(None, timeout)
        fault = self._refusal()
        self.attempts.append((self.clock(), "accepted" if fault is None else fault.kind.value))
        if fault is not None:
            raise FakeOperationalError(fault)
        self._numbers += 1
        session = self.sessions[self._numbers] = Session(self, self._numbers)
        self._watch_idleness(session)
        return session

    def _refusal(self) -> Fault | None:
        if not self.answers():
            return Fault(FaultKind.UNREACHABLE, None, 110, "timed out")
        if self.mode is Mode.REFUSING:
            return Fault(FaultKind.REFUSED, None, 111, "[Errno 111] Connection refused")
        if self.mode is Mode.STARTING:
            return Fault(FaultKind.NOT_READY, None, 57, "the server is starting up")
        if self.mode is Mode.REJECTING:
            return Fault(FaultKind.REJECTED, None, 1045, "access denied for user 'app'")
        if len(self.sessions) >= self.max_connections:
            return Fault(FaultKind.TOO_MANY, None, 1040, "too many connections")
        return None

    def exchange(self, session: Session, timeout: float | None = None) -> None:
        """Make one round trip on *session*.

        Raises FakeOperationalError if it has ended, or does not answer in time.
        """
        self.round_trips += 1
        self._await(session, PATIENCE if timeout is None else timeout)
        if not self.answers(session):
            raise FakeOperationalError(Fault(FaultKind.LOST, Cause.SILENT_DROP, 110, "timed out"))
        if not session.open:
            goodbye = session.goodbye
            raise FakeOperationalError(LOST if goodbye is None else goodbye)
        session.last_active = self.clock()

    def commit(self, session: Session, timeout: float | None = None) -> None:
        """Store the rows of the open transaction, if the COMMIT arrives. Then answer, unless
        something prevents that.
        """
        if self.mode is Mode.FROZEN and session.open:
            # it is in the server's buffer, even if the client gives up later
            self._in_flight.append((session, session.pending or []))
        self.exchange(session, timeout)
        self.rows += session.pending or ()
        session.pending = None
        if self.commits_to_lose > 0:
            self.commits_to_lose -= 1
            session.end()
            raise FakeOperationalError(LOST)

    def _await(self, session: Session | None, timeout: float) -> None:
        """Wait until there is an answer, or *timeout* seconds are over."""
        if self.answers(session):
            return
        if isinstance(self.clock, FakeClock):
            until = self.clock.now + timeout
            while not self.answers(session) and self.clock.now < until:
                due = self.clock.next_timer  # one of the timers may be what thaws it
                self.clock.advance_to(until if due is None else min(due, until))
            return
        with self._changed:
            self._changed.wait_for(lambda: self.answers(session), timeout)

    def _watch_idleness(self, session: Session) -> None:
        if self.idle_limit is None or not isinstance(self.clock, FakeClock):
            return
        clock, limit = self.clock, self.idle_limit

        def look() -> None:
            if not session.open:
                return
            if clock.now >= session.last_active + limit:  # the very sum that the timer is set to
                session.end(
                    Fault(
                        FaultKind.LOST,
                        Cause.IDLE_LIMIT,
                        4031,
                        "disconnected by the server because of inactivity",
                    )
                )
            else:
                clock.at(session.last_active + limit, look)

        clock.at(session.last_active + limit, look)
