"""A server that exists only in memory, with a clock that stands still until it is told to move: for
tests of pools and of code that uses them, without a network and without waiting.

    clock = FakeClock()
    server = FakeServer(clock=clock, max_connections=5)
    driver = FakeDriver(server)
    conn = driver.connect(timeout=5.0)
    conn.execute("INSERT", 1)
    driver.commit(conn)
    assert server.rows == [1]
    server.kill_sessions()  # driver.ping(conn, 1.0) raises FakeOperationalError now

Transactions are real in one respect: rows are stored when their COMMIT arrives, whole or not at
all, so lost and doubled writes can be counted. What takes time with a real server (a frozen one, a
packet that is never answered) takes the same time on the clock: a :class:`FakeClock` is moved on,
with ``time.monotonic`` the call blocks.
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
    """The client's side.

    ``execute`` is all the SQL there is; a transaction is opened by the first statement.
    """

    def __init__(self, session: Session, own_end: socket.socket | None = None) -> None:
        self.session = session
        self.is_closed = False
        self.is_busy = False
        self.is_watched = False
        self.in_transaction = False  #: what the driver believes
        self.sent = 0  #: how many messages it sent: grows with each, and never by itself
        self._own_end = own_end

    def fileno(self) -> int:
        """The socket's descriptor; -1 where there is none."""
        return -1 if self._own_end is None or self.is_closed else self._own_end.fileno()

    def execute(self, statement: str, row: Any = None) -> list[Any]:
        """``INSERT`` adds *row* to the transaction, anything else just costs its round trip.

        Gives the rows that it sees.
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
        """What ``shutdown`` on its socket does: a blocked call on it ends, and the server sees the
        end.
        """
        self.session.is_dropped = False
        self.session.end()

    def close(self) -> None:
        """Say goodbye; the session ends."""
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
    trip. *knows_status*: whether it can tell if a transaction is open.
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
        #: where the last attempts went, and as whom
        self.logins: deque[Login | None] = deque(maxlen=100)
        self.target = Target(scheme="fake", backend="fake", host=server.name, database="test")

    def connect(self, timeout: float, login: Login | None = None) -> FakeConnection:
        """See :class:`unbroken.abc.Driver`. Notes each *login*."""
        self.logins.append(login)
        session = self.server.accept(timeout)
        if not self.sockets:
            return FakeConnection(session)
        own_end, session.wire = socket.socketpair()
        return FakeConnection(session, own_end)

    def fileno(self, conn: FakeConnection) -> int | None:
        """See :class:`unbroken.abc.BaseDriver`."""
        fd = conn.fileno()
        return None if fd < 0 else fd

    def is_in_transaction(self, conn: FakeConnection) -> bool | None:
        """See :class:`unbroken.abc.BaseDriver`."""
        return conn.in_transaction if self.capabilities.transaction_status else None

    def is_quiet(self, conn: FakeConnection) -> bool:
        """See :class:`unbroken.abc.BaseDriver`."""
        return not conn.is_busy and not conn.is_closed

    def classify(self, exc: BaseException) -> Fault:
        """See :class:`unbroken.abc.BaseDriver`."""
        if isinstance(exc, FakeOperationalError):
            return exc.fault
        if isinstance(exc, ConnectionError | TimeoutError):
            return Fault(FaultKind.LOST, None, None, str(exc))
        return Fault(FaultKind.OTHER, text=str(exc))

    def session_id(self, conn: FakeConnection) -> str | None:
        """See :class:`unbroken.abc.BaseDriver`."""
        return str(conn.session.number)

    def watch(self, conn: FakeConnection) -> None:
        """See :class:`unbroken.abc.BaseDriver`."""
        conn.is_watched = True

    def unwatch(self, conn: FakeConnection) -> None:
        """See :class:`unbroken.abc.BaseDriver`."""
        conn.is_watched = False

    def ping(self, conn: FakeConnection, timeout: float) -> None:
        """See :class:`unbroken.abc.Driver`."""
        conn._exchange(timeout)

    def begin(self, conn: FakeConnection) -> None:
        """See :class:`unbroken.abc.Driver`."""
        conn.execute("BEGIN")

    def commit(self, conn: FakeConnection) -> None:
        """See :class:`unbroken.abc.Driver`."""
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
        """See :class:`unbroken.abc.Driver`."""
        conn._exchange()
        conn.session.pending, conn.in_transaction = None, False
        if conn.is_watched and (unit := current(id(conn))) is not None:
            unit.rolled_back(conn_id=id(conn))

    def close(self, conn: FakeConnection) -> None:
        """See :class:`unbroken.abc.Driver`."""
        conn.close()

    def idle_limit(self, conn: FakeConnection) -> float | None:
        """See :class:`unbroken.abc.Driver`."""
        conn._exchange()
        if not self.server.tells_idle_limit:
            raise FakeOperationalError(Fault(FaultKind.OTHER, None, 1142, "permission denied"))
        return self.server.idle_limit
