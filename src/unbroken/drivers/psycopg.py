"""psycopg 3, blocking and async. libpq knows for certain whether a transaction is open, and shows
its socket.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
import weakref
from collections.abc import Callable, Collection, Generator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Target
from unbroken.backends.postgresql import postgres_fault
from unbroken.backends.system import one_line, os_fault
from unbroken.drivers import _postgresql
from unbroken.drivers._base import Awaited, Base, Blocking
from unbroken.drivers._psycopg_lock import TaskLock, ThreadLock
from unbroken.drivers._psycopg_traits import (
    OUT_OF_STEP,
    Traits,
    is_as_opened,
    keep_adapters,
    noting,
    put_back,
    traits_of,
)
from unbroken.drivers._psycopg_watch import real_pgconn, watched
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    class_of,
    coerce,
    dial,
    dial_async,
    from_connect,
    is_lost,
    lost,
    optional_boolean,
    whole,
    without_target,
)
from unbroken.errors import ConfigurationError
from unbroken.ledger.residue import Left
from unbroken.net.fork_guard import abort, identity

NAME = "psycopg"
SCHEMES = ("postgresql+psycopg", "postgresql+psycopg_async")
DISTRIBUTION = "psycopg[binary]"
MODULE = "psycopg"
TESTED = ">=3.2,<3.4"
RANK = 10

_CONNECTION, _CURSOR, _BASE = (
    "psycopg:Connection",
    "psycopg:Cursor",
    "psycopg._connection_base:BaseConnection",
)
_SEAMS = (
    Seam(_CONNECTION, "_start_query", ("self",), ("_autocommit", "_exec_command")),
    Seam(_CONNECTION, "_exec_command", ("self", "command", "result_format")),
    Seam(_CONNECTION, "_commit_gen", ("self",), ("_exec_command",)),
    Seam(_CONNECTION, "_rollback_gen", ("self",), ("_exec_command",)),
    Seam(_CURSOR, "_start_query", ("self", "query"), ("_start_query",)),
    Seam(_CURSOR, "_execute_gen", ("self", "query", "params", ...), ("_start_query",)),
    Seam(
        _CURSOR,
        "_executemany_gen_no_pipeline",
        ("self", "query", "params_seq", "returning"),
        ("_start_query",),
    ),
    Seam(
        _CURSOR,
        "_executemany_gen_pipeline",
        ("self", "query", "params_seq", "returning"),
        ("_start_query",),
    ),
    Seam(_CURSOR, "_stream_send_gen", ("self", "query", "params", ...), ("_start_query",)),
    Seam(_CURSOR, "_start_copy_gen", ("self", "statement", "params"), ("_start_query",)),
    Seam("psycopg:ServerCursor", "_declare_gen", ("self", "query", ...), ("_start_query",)),
    Seam("psycopg:ServerCursor", "_fetch_gen", ("self", "num"), ("_exec_command",)),
    Seam("psycopg:Transaction", "_enter_gen", ("self",), ("_exec_command",)),
    Seam("psycopg:Transaction", "_commit_gen", ("self",), ("_exec_command",)),
    Seam("psycopg:Transaction", "_rollback_gen", ("self", "exc_val"), ("_exec_command",)),
    Seam("psycopg:Connection", "_connect_gen", ("conninfo", ...)),
    Seam(_CONNECTION, "_commit_gen", None, ("_num_transactions", "_tpc", "_pipeline")),
    Seam(_CONNECTION, "_get_tx_start_command", None, ("_begin_statement",)),
    Seam(
        _BASE,
        "__init__",
        None,
        ("pgconn", "_adapters", "_prepared", "_closed", "_notice_handlers", "_notify_handlers"),
    ),
    Seam(_BASE, "__init__", None, ("_isolation_level", "_read_only", "_deferrable", "_autocommit")),
    Seam("psycopg:Connection", "commit", ("self",), ("lock", "_commit_gen")),
    Seam("psycopg:AsyncConnection", "commit", ("self",), ("lock", "_commit_gen")),
    Seam("psycopg:Cursor", "execute", ("self", "query", ...), ("lock", "_execute_gen")),
    Seam("psycopg:AsyncCursor", "execute", ("self", "query", ...), ("lock", "_execute_gen")),
    Seam("psycopg._preparing:PrepareManager", "get", None, ("prepare_threshold",)),
    Seam("psycopg.adapt:AdaptersMap", "register_dumper", ("self", "cls", "dumper")),
    Seam("psycopg.adapt:AdaptersMap", "register_loader", ("self", "oid", "loader")),
    Seam("psycopg._typeinfo:TypesRegistry", "add", ("self", "info")),
    Seam("psycopg.generators", "execute"),
    Seam("psycopg.waiting", "Ready"),
)

_IDLE, _IN_TRANSACTION, _IN_ERROR = 0, 2, 3  # PQtransactionStatus; 1 is active, 4 unknown
_OK = 0  # PQstatus
_IN_PROGRESS = (  # libpq's word for a connection that is out of step
    "another command is already in progress"
)
_FATAL = 7  # PGRES_FATAL_ERROR
_MINIMUM = (
    2  # psycopg's (and libpq's) shortest connect_timeout; what is shorter is held by _Bounded
)


class _Base(Base):
    """What the blocking and the async driver have in common."""

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True)
    seams = _SEAMS

    def __init__(self, target: Target | None, connect: Callable[[], Any] | None = None) -> None:
        import psycopg

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        self.errors: tuple[type[BaseException], ...] = (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.Error,
        )
        self._psycopg = psycopg
        self._connect = connect
        self._arguments = _arguments(self.target)

    def fileno(self, conn: Connection) -> int | None:
        """libpq's socket, or None once it is closed."""
        try:
            fd: int = real_pgconn(conn).socket
        except Exception:  # psycopg raises its OperationalError for a closed one
            return None
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last ReadyForQuery; None in the middle of an exchange or of a pipeline."""
        pgconn = conn.__dict__[
            "pgconn"
            # as real_pgconn; asked at the end of every lease, where a call costs as much as all of
            # this
        ]
        # as is_out_of_pipelines
        inside = conn._pipeline is not None or conn.__dict__.get("_unbroken_inside")
        if inside or pgconn.pipeline_status or conn.lock.locked():
            return None
        status = pgconn.transaction_status  # 4 where the connection is lost
        return (
            False if status == _IDLE else True if status in (_IN_TRANSACTION, _IN_ERROR) else None
        )

    def is_quiet(self, conn: Connection) -> bool:
        """Whether libpq waits for nothing, and nobody holds the connection's lock: a half-read
        ``stream()`` does, and ``notifies()`` that was left in a variable; whoever asked for the
        lock would wait for ever.
        """
        # as real_pgconn; asked at the end of every use of an engine
        pgconn = conn.__dict__["pgconn"]
        return (
            pgconn.transaction_status in (_IDLE, _IN_TRANSACTION, _IN_ERROR)
            and pgconn.status == _OK
            and not pgconn.pipeline_status
            and not conn.lock.locked()
            and conn._pipeline is None
            and not conn.__dict__.get("_unbroken_inside")  # as is_out_of_pipelines
        )

    def was_closed(self, conn: Connection) -> bool:
        """psycopg's ``close()`` notes it, unless libpq had lost the connection before.

        ``with conn:`` calls it.
        """
        return bool(conn.__dict__.get("_closed", False))

    def traits(self, conn: Connection) -> Traits | None:
        """Transactions' modes, factories, adapters, handlers: all that psycopg keeps for a
        connection.
        """
        try:
            if self.is_known:
                # what was asked of it since it was opened may have had psycopg make them
                keep_adapters(conn)
            return traits_of(conn)
        except Exception:  # another make of connection
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """libpq is idle, the lock is free and the traits are as they were."""
        try:
            return (
                conn.pgconn.transaction_status == _IDLE
                and not conn.lock.locked()
                and (not conn._unbroken_changed or is_as_opened(conn, traits))
            )
        except Exception:  # something was taken away, or replaced
            return False

    def _known(self, conn: Connection) -> Connection:
        """A connection of the caller's own making, by a class that notes changes."""
        if self.is_known:
            conn.__class__ = noting(class_of(conn))
            keep_adapters(conn)
            if not conn.lock.locked():
                this = weakref.ref(conn)
                kind = TaskLock if self.is_async else ThreadLock
                conn.lock = kind(
                    lambda: None if (conn := this()) is None else self.fileno(conn),
                    self._out_of_step,
                )
        return conn

    def _restore(self, conn: Connection, traits: Any) -> None:
        if traits is None or not put_back(conn, traits):
            raise self._out_of_step()

    def _out_of_step(self) -> BaseException:
        return lost(self._psycopg.OperationalError(OUT_OF_STEP))

    def _check_free(self, conn: Connection) -> None:
        """Raise where a statement would wait for ever, or not get its own answer."""
        if real_pgconn(conn).status == _OK and not self.is_quiet(conn):
            raise self._out_of_step()

    def classify(self, exc: BaseException) -> Fault:
        """By SQLSTATE; by libpq's words where it gives none, as for a failed connect."""
        connecting = from_connect(exc)
        if is_lost(exc):
            fault = Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        elif not isinstance(exc, self._psycopg.Error):
            fault = os_fault(exc, connecting=connecting)
        elif isinstance(exc, self._psycopg.errors.ConnectionTimeout):
            fault = os_fault(TimeoutError(str(exc)), connecting=connecting)
        else:
            fault = postgres_fault(exc.sqlstate, str(exc), connecting=connecting)
            if (
                fault.kind is FaultKind.OTHER
                and isinstance(exc, self._psycopg.OperationalError)
                and exc.sqlstate is None
            ):
                pgconn = getattr(exc, "pgconn", None)
                gone = pgconn is not None and pgconn.status != _OK
                fault = (
                    replace(fault, kind=FaultKind.LOST)
                    if gone or _IN_PROGRESS in str(exc)
                    else fault
                )
        return replace(fault, text=one_line(fault.text, self.target.password))

    def session_id(self, conn: Connection) -> str | None:
        """The backend's pid."""
        pgconn = real_pgconn(conn)
        return str(pgconn.backend_pid) if pgconn.status == _OK else None

    def watch(self, conn: Connection) -> None:
        """Statements of cursors, and everything that the connection sends by itself."""
        conn.__class__ = watched(type(conn))

    def unwatch(self, conn: Connection) -> None:
        """Back to the class it was."""
        conn.__class__ = getattr(type(conn), "unwatched", type(conn))

    def close(self, conn: Connection) -> None:
        """libpq sends Terminate without waiting, then closes."""
        try:
            conn._closed = True
            real_pgconn(conn).finish()
        except Exception:  # finished before
            pass

    def _limit(self, timeout: float) -> float:
        given: float = self._arguments.get("connect_timeout", timeout)
        return min(timeout, given)

    def _timeout_arguments(self, timeout: float) -> dict[str, Any]:
        return {
            **self._arguments,
            "connect_timeout": max(_MINIMUM, math.ceil(self._limit(timeout))),
        }

    def _exchange(self, pgconn: Any, query: bytes) -> Generator[Any, Any, Any]:
        """One simple query below psycopg, which would open a transaction; gives the last result."""
        pgconn.send_query(query)
        results = yield from self._psycopg.generators.execute(pgconn)
        if results and results[-1].status == _FATAL:
            raise self._psycopg.errors.error_from_result(results[-1])
        return results[-1] if results else None

    def _timed_out(self) -> BaseException:
        error: BaseException = self._psycopg.errors.ConnectionTimeout(
            "the server did not answer in time"
        )
        return error

    def _is_failed(self, conn: Connection) -> bool:
        pgconn = real_pgconn(conn)
        return bool(pgconn.status == _OK and pgconn.transaction_status == _IN_ERROR)

    def _tell(self, failed: bool) -> None:
        if failed:
            raise self._psycopg.errors.InFailedSqlTransaction(_postgresql.NOT_COMMITTED)

    def _check_usable(self, conn: Connection) -> Any:
        pgconn = real_pgconn(conn)
        if pgconn.status != _OK:
            raise self._psycopg.OperationalError("the connection is closed")
        return pgconn

    def _ask_opening(self) -> bytes:
        return _postgresql.ask_opening(self._connect is None or self.sets_only).encode()

    def _opening(self, result: Any) -> str | None:
        value = result.get_value(0, 0)
        return None if value is None else value.decode()


class Driver(Blocking, _Base):
    """See :class:`unbroken.abc.Driver`."""

    def connect(self, timeout: float) -> Connection:
        """*timeout* bounds all hosts and addresses together, and the handshake.

        Name lookup is the system's.
        """
        if self._connect is not None:
            return self._known(dial(self._connect))
        if not self.is_known:
            return dial(
                lambda: self._psycopg.Connection.connect(**self._timeout_arguments(timeout))
            )
        kind = _bounded(noting(self._psycopg.Connection))
        return self._known(
            dial(
                lambda: _within(
                    self._limit(timeout), lambda: kind.connect(**self._timeout_arguments(timeout))
                )
            )
        )

    def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        return self._known(conn)

    def ping(self, conn: Connection, timeout: float) -> None:
        """An empty query: one round trip, no transaction."""
        self._run(conn, b"", timeout)

    def begin(self, conn: Connection) -> None:
        """Not needed: psycopg opens a transaction by itself while autocommit is off."""
        conn.execute("BEGIN")

    def commit(self, conn: Connection) -> None:
        """psycopg sends nothing where nothing is open.

        Raises InFailedSqlTransaction where that was a rollback.
        """
        self._check_free(conn)
        failed = self._is_failed(conn)
        conn.commit()
        self._tell(failed)

    def rollback(self, conn: Connection) -> None:
        """Likewise."""
        self._check_free(conn)
        conn.rollback()

    def restore(self, conn: Connection, traits: Any) -> None:
        """No round trip: psycopg sends its modes with the next BEGIN."""
        self._restore(conn, traits)

    def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """The rows of *sql*, below psycopg: no transaction is opened, and the values are as the
        server sent them.
        """
        return _rows(self._run(conn, sql.encode(), 10.0))

    def idle_limit(self, conn: Connection) -> float | None:
        """``idle_session_timeout`` of this session."""
        result = self._run(conn, _postgresql.ASK_IDLE_LIMIT.encode(), 10.0)
        return _postgresql.limit(
            result.get_value(0, 0).decode() if result is not None and result.ntuples else None
        )

    def remember(self, conn: Connection) -> str | None:
        """Statements that set again what was set when *conn* was opened."""
        return self._opening(self._run(conn, self._ask_opening(), 10.0))

    def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """One round trip. Statements that psycopg prepared stay."""
        self._run(conn, _postgresql.reset_of(left, opening).encode(), 10.0)

    def probe(self, conn: Connection) -> str | None:
        """What is wrong with what our subclass reports and libpq tells; None: nothing.

        Four round trips.
        """
        rows, autocommit, opened = (
            self._psycopg.rows.tuple_row,
            conn.autocommit,
            self.is_in_transaction(conn),
        )
        with Trial(self, conn) as trial:
            if opened:  # the caller's own connect= began a transaction: it must stay as it is
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
            exchange = self._exchange(pgconn, query)
            until = time.monotonic() + timeout
            try:
                want = next(exchange)
                with selectors.DefaultSelector() as selector:  # gevent's own where it has patched
                    key = selector.register(pgconn.socket, want)
                    while True:
                        if key.events != want:
                            key = selector.modify(pgconn.socket, want)
                        ready = selector.select(max(0.0, until - time.monotonic()))
                        if not ready:
                            raise self._timed_out()
                        want = exchange.send(self._psycopg.waiting.Ready(ready[0][1]))
            except StopIteration as done:
                return done.value


class AsyncDriver(Awaited, _Base):
    """See :class:`unbroken.abc.AsyncDriver`."""

    async def connect(self, timeout: float) -> Connection:
        """*timeout* bounds everything."""
        return await dial_async(lambda: self._dial(timeout))

    async def _dial(self, timeout: float) -> Connection:
        try:
            async with asyncio.timeout(self._limit(timeout)):
                if self._connect is not None:
                    return self._known(await self._connect())
                kind = self._psycopg.AsyncConnection
                made = await _open(
                    noting(kind) if self.is_known else kind, **self._timeout_arguments(timeout)
                )
                return self._known(made)
        except TimeoutError:
            raise self._psycopg.errors.ConnectionTimeout("connection timeout expired") from None

    async def open(self, *args: Any, **kwargs: Any) -> Connection:
        """A connection by psycopg's own arguments, which may be a framework's.

        One that is cancelled leaves no socket open.
        """
        return await _open(self._psycopg.AsyncConnection, *args, **kwargs)

    def close(self, conn: Connection) -> None:
        """As the blocking driver's. What an exception left of a wait in the event loop goes first:
        the loop would keep the descriptor's number, and the next connection that gets that number
        could not be waited for.
        """
        fd = self.fileno(conn)
        if fd is not None:
            with suppress(RuntimeError, OSError, ValueError):  # no loop runs here
                loop = asyncio.get_running_loop()
                loop.remove_reader(fd)
                loop.remove_writer(fd)
        super().close(conn)

    async def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        return self._known(conn)

    async def ping(self, conn: Connection, timeout: float) -> None:
        """An empty query: one round trip, no transaction."""
        await self._run(conn, b"", timeout)

    async def begin(self, conn: Connection) -> None:
        """Not needed: psycopg opens a transaction by itself while autocommit is off."""
        await conn.execute("BEGIN")

    async def commit(self, conn: Connection) -> None:
        """psycopg sends nothing where nothing is open.

        Raises InFailedSqlTransaction where that was a rollback.
        """
        self._check_free(conn)
        failed = self._is_failed(conn)
        await conn.commit()
        self._tell(failed)

    async def rollback(self, conn: Connection) -> None:
        """Likewise."""
        self._check_free(conn)
        await conn.rollback()

    async def restore(self, conn: Connection, traits: Any) -> None:
        """No round trip: psycopg sends its modes with the next BEGIN."""
        self._restore(conn, traits)

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """As the blocking driver's."""
        return _rows(await self._run(conn, sql.encode(), 10.0))

    async def idle_limit(self, conn: Connection) -> float | None:
        """``idle_session_timeout`` of this session."""
        result = await self._run(conn, _postgresql.ASK_IDLE_LIMIT.encode(), 10.0)
        return _postgresql.limit(
            result.get_value(0, 0).decode() if result is not None and result.ntuples else None
        )

    async def remember(self, conn: Connection) -> str | None:
        """As the blocking driver's."""
        return self._opening(await self._run(conn, self._ask_opening(), 10.0))

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:
        """As the blocking driver's."""
        await self._run(conn, _postgresql.reset_of(left, opening).encode(), 10.0)

    async def probe(self, conn: Connection) -> str | None:
        """As the blocking driver's."""
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
            exchange = self._exchange(pgconn, query)
            try:
                async with asyncio.timeout(timeout):
                    want = next(exchange)
                    while True:
                        ready = await _ready(pgconn.socket, want)
                        want = exchange.send(self._psycopg.waiting.Ready(ready))
            except StopIteration as done:
                return done.value
            except TimeoutError:
                raise self._timed_out() from None


_REPORTS = (("BEGIN", False), (PROBE, False), "committing", "committed", (PROBE, True))


def _rows(result: Any) -> list[tuple[Any, ...]]:
    if result is None:
        return []
    return [
        tuple(result.get_value(row, column) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


async def _ready(fd: int, want: int) -> int:
    """Wait until *fd* is readable (1) and/or writable (2), whichever *want* asks for; gives
    which.
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

_until: ContextVar[float] = ContextVar("unbroken_connect_until", default=math.inf)


def _within(timeout: float, make: Callable[[], Any]) -> Any:
    token = _until.set(time.monotonic() + timeout)
    try:
        return make()
    finally:
        _until.reset(token)


_asked: ContextVar[list[Any] | None] = ContextVar("unbroken_connect_asked", default=None)


async def _open(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A connection of *kind*.

    Its socket is shut down where that fails: a generator that was left lives as long as its
    traceback.
    """
    asked: list[Any] = []  # what psycopg's generator waits for: a descriptor, and for what
    token = _asked.set(asked)
    try:
        return await _bounded(kind).connect(*args, **kwargs)
    except BaseException:
        fd = asked[0][0] if asked and isinstance(asked[0], tuple) else -1
        who = identity(fd) if isinstance(fd, int) and fd >= 0 else None
        if who is not None:
            abort(fd, who)
        raise
    finally:
        _asked.reset(token)


@cache
def _bounded(base: Any) -> Any:
    """*base* whose ``connect`` obeys one deadline over all its attempts. What it makes is a plain
    *base*.

    psycopg waits at least 2 s, for each address anew. Its waiting loop wakes the generator ten
    times a second, so that a generator around it can look at the clock.
    """
    import psycopg

    class Bounded(base):  # type: ignore[misc] # the base is only known here
        @classmethod
        def _connect_gen(cls, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            inner = base._connect_gen(*args, **kwargs)
            until, ready, asked = _until.get(), None, _asked.get()
            try:
                while True:
                    if time.monotonic() >= until:
                        raise psycopg.errors.ConnectionTimeout("connection timeout expired")
                    wanted = inner.send(ready)
                    if asked is not None:
                        asked[:] = [wanted]
                    ready = yield wanted
            except StopIteration as done:
                return done.value
            finally:
                inner.close()

    return Bounded


# -- arguments -------------------------------------------------------------------------------------

_EXTRA: dict[str, Callable[[str], Any]] = {
    "autocommit": optional_boolean,
    "prepare_threshold": whole,
    "connect_timeout": whole,
}


def _arguments(target: Target) -> dict[str, Any]:
    out = coerce(target.options, {**dict.fromkeys(_libpq_options(), str), **_EXTRA}, NAME)
    if "connect_timeout" in out and out["connect_timeout"] <= 0:
        raise ConfigurationError(
            "option connect_timeout in the URL is not a number of seconds above 0"
        )
    given = {
        "host": target.unix_socket or target.host,
        "port": target.port,
        "user": target.user,
        "password": target.password,
        "dbname": target.database,
    }
    out.update({name: value for name, value in given.items() if value is not None})
    return out


@cache
def _libpq_options() -> frozenset[str]:
    """What this libpq takes in a connection string."""
    from psycopg import pq

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults()) - {
        "user",
        "password",
        "dbname",
    }
