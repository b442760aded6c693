"""A server that exists only in memory, with a clock that stands still until the test moves it.

It is for tests of pools and of code that uses them, without a network and without waiting.

    clock = FakeClock()
    server = FakeServer(clock=clock, max_connections=5)
    driver = FakeDriver(server)
    conn = driver.connect(timeout=5.0)
    conn.execute("INSERT", 1)
    driver.commit(conn)
    assert server.rows == [1]
    server.kill_sessions()  # driver.ping(conn, 1.0) raises FakeOperationalError now

Transactions are real in one respect: rows are stored when their COMMIT arrives, whole or not at
all. So lost and doubled writes can be counted. If an operation takes time with a real server (a
frozen one, a packet that is never answered), it takes the same time on the clock. A
:class:`FakeClock` is moved forward; with ``time.monotonic`` the call blocks.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Any

from unbroken.abc import Capabilities, Cause, Fault, FaultKind, Login, Target
from unbroken.drivers._base import Blocking
from unbroken.ledger.scope import current
from unbroken_drill.fake_clock import FakeClock, FakeTimer
from unbroken_drill.fake_server import (
    FakeError,
    FakeOperationalError,
    FakeServer,
    Mode,
    Session,
)

__all__ = [
    "FakeClock",
    "FakeConnection",
    "FakeDriver",
    "FakeError",
    "FakeOperationalError",
    "FakeServer",
    "FakeTimer",
    "Mode",
]


class FakeConnection:
    """The client's side of a connection.

    ``execute`` is the only statement method. The first statement opens a transaction.
    """

    def __init__(self, session: Session, own_end: socket.socket | None = None) -> None:
        self.session = session
        self.is_closed = False
        self.is_busy = False
        self.is_watched = False
        self.in_transaction = False  #: the driver's own view
        self.sent = 0  #: number of messages sent: each message adds 1
        self._own_end = own_end

    def fileno(self) -> int:
        """The socket's descriptor; -1 if there is none."""
        return -1 if self._own_end is None or self.is_closed else self._own_end.fileno()

    def execute(self, statement: str, row: Any = None) -> list[Any]:
        """Run *statement*: ``INSERT`` adds *row* to the transaction, any other one costs its round
        trip.

        Returns the visible rows.
        """
        if self.is_watched and (unit := current(id(self))) is not None:
            unit.statement(statement, False, conn_id=id(self))
        self._exchange()
        server, session = self.session.server, self.session
        self.in_transaction = True
        session.pending = [] if session.pending is None else session.pending
        if statement.upper().startswith("INSERT"):
            if server.read_only:
                raise FakeOperationalError(
                    Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, 1290, "the server is read-only")
                )
            session.pending.append(row)
        return [*server.rows, *session.pending]

    def _exchange(self, timeout: float | None = None) -> None:
        if self.is_closed:
            raise FakeOperationalError(
                Fault(FaultKind.LOST, None, 2006, "the connection is closed")
            )
        self.sent += 1
        self.is_busy = True
        self.session.server.exchange(self.session, timeout)
        self.is_busy = False

    def abort(self) -> None:
        """Act like ``shutdown`` on its socket: a blocked call on it ends, and the server sees the
        end.
        """
        self.session.is_dropped = False
        self.session.end()

    def close(self) -> None:
        """Send a goodbye packet; the session ends."""
        if not self.is_closed:
            self.is_closed = True
            self.in_transaction = False
            self.session.on_hang_up = None
            self.session.end()
            if self._own_end is not None:
                self._own_end.close()

    def __del__(self) -> None:
        self.close()


class FakeDriver(Blocking):
    """A blocking driver (:class:`unbroken.abc.Driver`) for a :class:`FakeServer`.

    *sockets*: give each connection a real socket, so that the pools see its end without a round
    trip. *knows_status*: whether it can report an open transaction.
    """

    name = "fake"
    errors: tuple[type[BaseException], ...] = (FakeOperationalError, FakeError)

    def __init__(
        self, server: FakeServer, *, sockets: bool = False, knows_status: bool = True
    ) -> None:
        self.server = server
        self.sockets = sockets
        self.capabilities = Capabilities(
            fileno=sockets, transaction_status=knows_status, watchable=True, abort=sockets
        )
        #: the logins of the last attempts: address and user
        self.logins: deque[Login | None] = deque(maxlen=100)
        self.target = Target(scheme="fake", backend="fake", host=server.name, database="test")

    def connect(self, timeout: float, login: Login | None = None) -> FakeConnection:
        """Open a connection within *timeout* seconds, and note *login*."""
        self.logins.append(login)
        session = self.server.accept(timeout)
        if not self.sockets:
            return FakeConnection(session)
        own_end, session.wire = socket.socketpair()
        return FakeConnection(session, own_end)

    def fileno(self, conn: FakeConnection) -> int | None:
        """Return the descriptor of the connection's socket; None if there is none."""
        fd = conn.fileno()
        return None if fd < 0 else fd

    def is_in_transaction(self, conn: FakeConnection) -> bool | None:
        """Return whether a transaction is open; None if the driver cannot know."""
        return conn.in_transaction if self.capabilities.transaction_status else None

    def is_quiet(self, conn: FakeConnection) -> bool:
        """Return whether every request on *conn* was answered in full."""
        return not conn.is_busy and not conn.is_closed

    def classify(self, exc: BaseException) -> Fault:
        """Return the meaning of *exc*."""
        if isinstance(exc, FakeOperationalError):
            return exc.fault
        if isinstance(exc, ConnectionError | TimeoutError):
            return Fault(FaultKind.LOST, None, None, str(exc))
        return Fault(FaultKind.OTHER, text=str(exc))

    def session_id(self, conn: FakeConnection) -> str | None:
        """Return the server's number of the session; None if it is not known."""
        return str(conn.session.number)

    def watch(self, conn: FakeConnection) -> None:
        """Report the statements of *conn* from now on."""
        conn.is_watched = True

    def unwatch(self, conn: FakeConnection) -> None:
        """Stop reporting the statements of *conn*."""
        conn.is_watched = False

    def ping(self, conn: FakeConnection, timeout: float) -> None:
        """Make one round trip within *timeout* seconds. Raises if the connection is lost."""
        conn._exchange(timeout)

    def begin(self, conn: FakeConnection) -> None:
        """Begin a transaction."""
        conn.execute("BEGIN")

    def commit(self, conn: FakeConnection) -> None:
        """Commit the open transaction. Raises if its answer is lost."""
        unit = current(id(conn)) if conn.is_watched else None
        if unit is not None:
            unit.committing(conn_id=id(conn))
        if conn.is_closed:
            raise FakeOperationalError(
                Fault(FaultKind.LOST, None, 2006, "the connection is closed")
            )
        conn.sent += 1
        conn.is_busy = True
        self.server.commit(conn.session)
        conn.is_busy = conn.in_transaction = False
        if unit is not None:
            unit.committed(conn_id=id(conn))

    def rollback(self, conn: FakeConnection) -> None:
        """Roll back the open transaction."""
        conn._exchange()
        conn.session.pending, conn.in_transaction = None, False
        if conn.is_watched and (unit := current(id(conn))) is not None:
            unit.rolled_back(conn_id=id(conn))

    def close(self, conn: FakeConnection) -> None:
        """Close the connection."""
        conn.close()

    def idle_limit(self, conn: FakeConnection) -> float | None:
        """Ask the server for its idle limit in seconds; None: it has none."""
        conn._exchange()
        if not self.server.tells_idle_limit:
            raise FakeOperationalError(Fault(FaultKind.OTHER, None, 1142, "permission denied"))
        return self.server.idle_limit
