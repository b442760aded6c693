"""psycopg 3, blocking and async. libpq always knows whether a transaction is open, and exposes its
socket.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Collection
from functools import partial
from typing import Any

from unbroken.abc import Connection, Login
from unbroken.drivers import _postgresql
from unbroken.drivers import _psycopg_trial as trial
from unbroken.drivers import _psycopg_trips as trips
from unbroken.drivers._base import Awaited, Blocking
from unbroken.drivers._postgresql_flight import limits, new_mark
from unbroken.drivers._psycopg_base import Base
from unbroken.drivers._psycopg_dial import bounded, drive, open_bounded, within
from unbroken.drivers._psycopg_traits import (
    noting,
)
from unbroken.drivers._psycopg_waits import (
    close_later,
    forget_descriptor,
    is_waited_for,
    note_wait,
)
from unbroken.drivers._psycopg_watch import real_pgconn
from unbroken.drivers._seams import PROBE, Trial, flaw_of_status
from unbroken.drivers._shared import (
    dial,
    dial_async,
)
from unbroken.ledger.residue import Left

NAME = "psycopg"
SCHEMES = ("postgresql+psycopg", "postgresql+psycopg_async")
DISTRIBUTION = "psycopg[binary]"
MODULE = "psycopg"
TESTED = ">=3.2,<3.4"
RANK = 10


class Driver(Blocking, Base):
    """The blocking driver for psycopg; its methods are described in
    :class:`unbroken.abc.Driver`.
    """

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds all hosts and addresses together, and the handshake.

        Name lookup is the system's.
        """
        if self._connect is not None:
            return self._known(dial(lambda: self.own(login)))
        given = self._timeout_arguments(timeout, login)
        if not self.is_known:
            return dial(lambda: self._psycopg.Connection.connect(**given))
        kind = bounded(noting(self._psycopg.Connection))
        return self._known(
            dial(lambda: within(self._limit(timeout), lambda: kind.connect(**given)))
        )

    def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        return self._known(conn)

    def ping(self, conn: Connection, timeout: float) -> None:
        """Send an empty query: one round trip, no transaction."""
        self._run(conn, b"", timeout)

    def begin(self, conn: Connection) -> None:
        """Do nothing: psycopg opens a transaction by itself while autocommit is off."""
        conn.execute("BEGIN")

    def commit(self, conn: Connection) -> None:
        """Commit. psycopg sends nothing if nothing is open.

        Raises InFailedSqlTransaction if that was a rollback.
        """
        self._check_free(conn)
        failed = self._is_failed(conn)
        conn.commit()
        self._tell(failed)

    def rollback(self, conn: Connection) -> None:
        """Roll back. psycopg sends nothing if nothing is open."""
        self._check_free(conn)
        conn.rollback()

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the traits without a round trip: psycopg sends its modes with the next BEGIN."""
        self._restore(conn, traits)

    def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*, below psycopg: no transaction is opened, and the values are as
        the server sent them.
        """
        return _rows(self._run(conn, sql.encode(), 10.0))

    def idle_limit(self, conn: Connection) -> float | None:
        """Return ``idle_session_timeout`` of this session, in seconds."""
        result = self._run(conn, _postgresql.ASK_IDLE_LIMIT.encode(), 10.0)
        return _postgresql.limit(
            result.get_value(0, 0).decode() if result is not None and result.ntuples else None
        )

    def remember(self, conn: Connection) -> str | None:
        """Return statements that restore the settings that *conn* had when it was opened."""
        return self._opening(self._run(conn, self._ask_opening(), 10.0))

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Reset the session in one round trip. Statements that psycopg prepared stay."""
        self._run(conn, _postgresql.reset_of(left, opening).encode(), 10.0)

    def probe(self, conn: Connection) -> str | None:
        """Return the flaw in our subclass's reports and libpq's status; None: there is none.

        Four round trips.
        """
        rows, autocommit, opened = (
            self._psycopg.rows.tuple_row,
            conn.autocommit,
            self.is_in_transaction(conn),
        )
        with Trial(self, conn) as trial:
            if opened:  # the caller's own connect= began a transaction, so it must stay open
                conn.cursor(row_factory=rows).execute(PROBE)
                return trial.flaw([(PROBE, False)])
            conn.autocommit = False
            conn.cursor(row_factory=rows).execute(PROBE)
            opened = self.is_in_transaction(conn)
            conn.commit()
            closed = self.is_in_transaction(conn)
            conn.autocommit = True
            conn.cursor(row_factory=rows).execute(PROBE)
            conn.autocommit = autocommit
        return trial.flaw(_REPORTS) or flaw_of_status(opened, closed)

    def _run(self, conn: Connection, query: bytes, timeout: float) -> Any:
        self._check_free(conn)
        with conn.lock:
            pgconn = self._check_usable(conn)
            exchange = self._exchange(conn, pgconn, query)
            return drive(pgconn, exchange, timeout, self._timed_out)

    def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        trips.send_end(conn, sql)

    def take_answer(self, conn: Connection, timeout: float) -> bool:
        """Read that answer, if it was not read yet. Returns whether it did."""
        if conn._unbroken_due is None:
            return False
        left = trips.take_free(conn)
        if left is not None:
            with conn.lock:
                drive(self._check_usable(conn), left, timeout, self._timed_out)
        return True

    def try_flight(self, conn: Connection, timeout: float) -> bool | None:
        """Send three statements in one flight, and return whether each got its own answer. None:
        that cannot be tried on *conn*. Nothing is open afterwards, unless the answer is False.

        Raises the error of a lost connection, also if even the first statement was not answered
        within *timeout* seconds.
        """
        if not self._can_fly(conn):
            return None
        mark, (soon, later) = new_mark(), limits(timeout)
        with conn.lock:
            pgconn = self._check_usable(conn)
            try:
                drive(pgconn, trial.first(conn, mark), soon, self._timed_out)
                drive(pgconn, trial.others(conn, mark), later, trial.OtherAnswerError)
            except trial.OtherAnswerError:
                return False
        return True


class AsyncDriver(Awaited, Base):
    """The asyncio driver for psycopg; its methods are described in
    :class:`unbroken.abc.AsyncDriver`.
    """

    async def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds everything."""
        return await dial_async(lambda: self._dial(timeout, login))

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        try:
            async with asyncio.timeout(self._limit(timeout)):
                if self._connect is not None:
                    return self._known(await self.own(login))
                kind = self._psycopg.AsyncConnection
                kind = noting(kind) if self.is_known else kind
                made = await open_bounded(kind, **self._timeout_arguments(timeout, login))
                return self._known(made)
        except TimeoutError:
            raise self._psycopg.errors.ConnectionTimeout("connection timeout expired") from None

    async def open(self, *args: Any, **kwargs: Any) -> Connection:
        """Open a connection with psycopg's own arguments, which may be a framework's.

        A cancelled call leaves no socket open.
        """
        return await open_bounded(self._psycopg.AsyncConnection, *args, **kwargs)

    def close(self, conn: Connection) -> None:
        """Do the same as the blocking driver, but once no task waits for *conn* any more."""
        fd = self.fileno(conn)
        if is_waited_for(conn.__dict__):
            conn._closed = True
            close_later(fd, conn.__dict__, partial(self.close, conn))
            return
        if fd is not None:
            forget_descriptor(fd)
        super().close(conn)

    async def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        return self._known(conn)

    async def ping(self, conn: Connection, timeout: float) -> None:
        """Send an empty query: one round trip, no transaction."""
        await self._run(conn, b"", timeout)

    async def begin(self, conn: Connection) -> None:
        """Do nothing: psycopg opens a transaction by itself while autocommit is off."""
        await conn.execute("BEGIN")

    async def commit(self, conn: Connection) -> None:
        """Commit. psycopg sends nothing if nothing is open.

        Raises InFailedSqlTransaction if that was a rollback.
        """
        self._check_free(conn)
        failed = self._is_failed(conn)
        await conn.commit()
        self._tell(failed)

    async def rollback(self, conn: Connection) -> None:
        """Roll back. psycopg sends nothing if nothing is open."""
        self._check_free(conn)
        await conn.rollback()

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Restore the traits without a round trip: psycopg sends its modes with the next BEGIN."""
        self._restore(conn, traits)

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Do the same as the blocking driver."""
        return _rows(await self._run(conn, sql.encode(), 10.0))

    async def idle_limit(self, conn: Connection) -> float | None:
        """Return ``idle_session_timeout`` of this session, in seconds."""
        result = await self._run(conn, _postgresql.ASK_IDLE_LIMIT.encode(), 10.0)
        return _postgresql.limit(
            result.get_value(0, 0).decode() if result is not None and result.ntuples else None
        )

    async def remember(self, conn: Connection) -> str | None:
        """Do the same as the blocking driver."""
        return self._opening(await self._run(conn, self._ask_opening(), 10.0))

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """Do the same as the blocking driver."""
        await self._run(conn, _postgresql.reset_of(left, opening).encode(), 10.0)

    async def probe(self, conn: Connection) -> str | None:
        """Do the same as the blocking driver."""
        rows, autocommit, opened = (
            self._psycopg.rows.tuple_row,
            conn.autocommit,
            self.is_in_transaction(conn),
        )
        with Trial(self, conn) as trial:
            if opened:
                await conn.cursor(row_factory=rows).execute(PROBE)
                return trial.flaw([(PROBE, False)])
            await conn.set_autocommit(False)
            await conn.cursor(row_factory=rows).execute(PROBE)
            opened = self.is_in_transaction(conn)
            await conn.commit()
            closed = self.is_in_transaction(conn)
            await conn.set_autocommit(True)
            await conn.cursor(row_factory=rows).execute(PROBE)
            await conn.set_autocommit(autocommit)
        return trial.flaw(_REPORTS) or flaw_of_status(opened, closed)

    async def _run(self, conn: Connection, query: bytes, timeout: float) -> Any:
        self._check_free(conn)
        async with conn.lock:
            pgconn = self._check_usable(conn)
            return await self._drive(conn, self._exchange(conn, pgconn, query), timeout)

    async def _drive(
        self, conn: Connection, exchange: Any, timeout: float, late: Any = None
    ) -> Any:
        work = self._driven(real_pgconn(conn), exchange, timeout, late)
        note_wait(conn.__dict__, work)
        return await work

    async def _driven(self, pgconn: Any, exchange: Any, timeout: float, late: Any) -> Any:
        try:
            want = next(exchange)
            want = exchange.send(want)  # the awaited data is usually already there
            async with asyncio.timeout(timeout):
                while True:
                    want = exchange.send(await _ready(pgconn.socket, want))
        except StopIteration as done:
            return done.value
        except TimeoutError:
            raise (late or self._timed_out)() from None

    async def send_end(self, conn: Connection, sql: str) -> None:
        """Send *sql*, COMMIT or ROLLBACK. :meth:`take_answer` reads the answer."""
        trips.send_end(conn, sql)

    async def take_answer(self, conn: Connection, timeout: float) -> None:
        """Read that answer."""
        left = trips.take_free(conn)
        if left is not None:
            async with conn.lock:
                self._check_usable(conn)
                await self._drive(conn, left, timeout)

    async def try_flight(self, conn: Connection, timeout: float) -> bool | None:
        """Do the same as the blocking driver."""
        if not self._can_fly(conn):
            return None
        mark, (soon, later) = new_mark(), limits(timeout)
        async with conn.lock:
            self._check_usable(conn)
            try:
                await self._drive(conn, trial.first(conn, mark), soon)
                await self._drive(conn, trial.others(conn, mark), later, trial.OtherAnswerError)
            except trial.OtherAnswerError:
                return False
        return True


_REPORTS = (("BEGIN", False), (PROBE, False), "committing", "committed", (PROBE, True))


def _rows(result: Any) -> list[tuple[Any, ...]]:
    if result is None:
        return []
    return [
        tuple(result.get_value(row, column) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


async def _ready(fd: int, want: int) -> int:
    """Wait until *fd* is readable (1) and/or writable (2), as *want* asks. Returns the events that
    occurred.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[int] = loop.create_future()

    def wake(event: int) -> None:
        if not done.done():
            done.set_result(event)

    if want & selectors.EVENT_READ:
        loop.add_reader(fd, wake, selectors.EVENT_READ)
    if want & selectors.EVENT_WRITE:
        loop.add_writer(fd, wake, selectors.EVENT_WRITE)
    try:
        return await done
    finally:
        if want & selectors.EVENT_READ:
            loop.remove_reader(fd)
        if want & selectors.EVENT_WRITE:
            loop.remove_writer(fd)


# -- connecting in time ----------------------------------------------------------------------------


# -- arguments -------------------------------------------------------------------------------------
