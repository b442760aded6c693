"""Whether statements can be sent on a pg8000 connection before the last one was answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from unbroken.abc import Connection
from unbroken.backends.postgresql import postgres_fault
from unbroken.drivers import _pg8000_trips as trips
from unbroken.drivers import _postgresql_flight as flight

_UNASKED = (b"N", b"A", b"S")  # notices, notifications, settings


class Ahead:
    """The part of the driver that decides it for each connection. Sending ahead is off until
    :meth:`try_flight` has tried it with the server at the address.
    """

    is_known: Any
    blindness: Any
    _bounded: Callable[..., Any]  #: the driver's own

    #: A statement may be sent behind a COMMIT or ROLLBACK whose answer is still due.
    pipelines = True

    def share(self, conn: Connection, shared: bool) -> str | None:
        """Tell *conn* whether its session is shared. On a shared session nothing is sent before all
        answers have come, and the three requests of a COPY with a stream stay in one session.
        """
        conn._seen_shared = shared
        self._decide(conn)
        return None

    def let_fly(self, conn: Connection, may: bool) -> None:
        """Set whether a statement may be sent on *conn* before the last one was answered, if its
        session is its own.
        """
        conn._seen_flies = may
        self._decide(conn)

    def _decide(self, conn: Connection) -> None:
        conn._seen_alone = self._can_fly(conn) and conn._seen_flies

    def _can_fly(self, conn: Connection) -> bool:
        known = self.is_known and self.blindness is None and hasattr(conn, "_seen_flies")
        return bool(known and not conn._seen_shared)

    def is_unread(self, conn: Connection) -> bool:
        """Return whether the answer that is due was never read, also if *conn* has ended."""
        return conn._seen_due is not None

    def try_flight(self, conn: Connection, timeout: float) -> bool | None:
        """Send three statements in one flight, and return whether each got its own answer. None:
        that cannot be tried on *conn*. Nothing is open afterwards, unless the answer is False.

        Raises the error of a lost connection, also if even the first statement was not answered
        within *timeout* seconds.
        """
        if not self._can_fly(conn):
            return None
        trips.check_open(conn)
        mark = flight.new_mark()
        core = trips._library()
        unasked = conn.notices, conn.notifications
        before = [len(each) for each in unasked]
        conn._seen_sent += 1
        soon, later = flight.limits(timeout)
        try:
            self._bounded(conn, soon, lambda: _begin(conn, mark))
            try:
                self._bounded(conn, later, lambda: _hear(conn, flight.others(mark)))
            except (core.InterfaceError, TimeoutError) as error:
                if isinstance(error.__cause__ or error, TimeoutError):
                    return False
                raise
        except _OtherAnswerError:
            return False
        for each, length in zip(unasked, before, strict=True):
            while len(each) > length:
                each.pop()
        conn._seen_answered = conn._seen_sent
        return True


class _OtherAnswerError(Exception):
    pass


def _begin(conn: Any, mark: str) -> None:
    """Send all statements, and read the answer to the first."""
    core = trips._library()
    core._write(conn._sock, flight.requests(mark))
    core._flush(conn._sock)
    _hear(conn, flight.FIRST, is_first=True)


def _hear(conn: Any, answers: Iterable[flight.Expected], *, is_first: bool = False) -> None:
    """Read *answers*. An error may replace all but the last, if it answers the *first*."""
    context, refused = trips._library().Context(None), False
    for expected in answers:
        if refused and expected.kind != flight.READY:
            continue
        code, data = trips._read(conn)
        while code in _UNASKED:
            conn.message_types[code](data, context)
            code, data = trips._read(conn)
        if code[0] == flight.ERROR:
            _raise_goodbye(conn, data)
            refused = is_first and expected.kind != flight.READY
            if refused:
                continue
        if code[0] != expected.kind or expected.body not in (None, data):
            raise _OtherAnswerError
        if expected.kind == flight.READY:
            conn.message_types[code](data, context)


def _raise_goodbye(conn: Any, data: bytes) -> None:
    """Raise the server's goodbye, if the error *data* is one."""
    context = trips._library().Context(None)
    conn.message_types[b"E"](data, context)
    fields = context.error.args[0]
    if postgres_fault(fields.get("C"), str(fields.get("M"))).is_lost:
        raise context.error
