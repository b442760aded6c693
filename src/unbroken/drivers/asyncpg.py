"""asyncpg: asyncio, its own protocol.

It opens no transaction by itself, so the pool does, with asyncpg's own object.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Login, Target
from unbroken.backends.postgresql import is_fatal, postgres_fault
from unbroken.backends.system import one_line, os_fault
from unbroken.drivers import _postgresql
from unbroken.drivers._asyncpg_arguments import arguments
from unbroken.drivers._asyncpg_layer import SENDS, Layer, noting, unknown
from unbroken.drivers._asyncpg_state import Status
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    abort_transport,
    class_of,
    dial_async,
    from_connect,
    is_lost,
    without_target,
)

NAME = "asyncpg"
SCHEMES = ("postgresql+asyncpg",)
DISTRIBUTION = "asyncpg"
MODULE = "asyncpg"
TESTED = ">=0.29,<0.33"
RANK = 5  # the fastest for asyncio


_CONNECTION, _PROTOCOL = "asyncpg.connection:Connection", "asyncpg.protocol.protocol:BaseProtocol"
_TRANSACTION = "asyncpg.transaction:Transaction"
_SEAMS = (
    *(
        Seam(_CONNECTION, name)
        for name in ("_protocol", "_transport", "_top_xact", "_stmt_exclusive_section")
    ),
    Seam(_PROTOCOL, "query", ("self", "query", "timeout")),
    Seam(
        _PROTOCOL,
        "bind_execute",
        ("self", "state", "args", "portal_name", "limit", "return_extra", "timeout"),
    ),
    Seam(_PROTOCOL, "bind_execute_many", ("self", "state", "args", ...)),
    Seam(_PROTOCOL, "bind", ("self", "state", "args", ...)),
    Seam(_PROTOCOL, "copy_in", ("self", "copy_stmt", ...)),
    Seam(_PROTOCOL, "copy_out", ("self", "copy_stmt", ...)),
    Seam(_PROTOCOL, "is_in_transaction", ("self",)),
    Seam(_PROTOCOL, "_is_cancelling", ("self",)),
    *(Seam(_PROTOCOL, name) for name in ("is_connected", "queries_count", *sorted(SENDS))),
    *(
        Seam(_CONNECTION, name)
        for name in ("_listeners", "_log_listeners", "_query_loggers", "_termination_listeners")
    ),
    *(
        Seam(_CONNECTION, name, None, ("_introspect_type",))
        for name in ("set_type_codec", "reset_type_codec", "set_builtin_type_codec")
    ),
    Seam("asyncpg.protocol.protocol", "PreparedStatementState"),
    Seam(_CONNECTION, "execute", ("self", "query", ...), ("_protocol", "query")),
    Seam(_CONNECTION, "is_in_transaction", ("self",), ("_protocol", "is_in_transaction")),
    Seam(_TRANSACTION, "start", ("self",), ("_top_xact", "_protocol", "execute")),
    *(Seam(_TRANSACTION, name) for name in ("_state", "_isolation")),
    Seam("asyncpg.transaction", "TransactionState"),
)

_OUT_OF_STEP = re.compile(r"another operation (?:\(\d+\) )?is|cannot switch to state")


class AsyncDriver(Status):
    """The asyncio driver for asyncpg; its methods are described in
    :class:`unbroken.abc.AsyncDriver`.
    """

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True, implicit_begin=False)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        import asyncpg

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        # asyncpg has no OperationalError. Its users catch these for a lost connection.
        self.errors: tuple[type[BaseException], ...] = (
            asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.PostgresError,
            asyncpg.InternalClientError,
        )  # fmt: skip
        self._connect = connect
        self._refusals: list[bytes] = []
        self._asyncpg = asyncpg
        self._arguments, self._timeout = arguments(self.target)

    async def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Open a connection. *timeout* bounds everything, all addresses together."""
        return await dial_async(lambda: self._dial(min(timeout, self._timeout or timeout), login))

    async def _dial(self, timeout: float, login: Login | None) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return self._known(await self.own(login))
            given = self.aimed(login)
            return self._known(await self._asyncpg.connect(**given, timeout=timeout))

    async def adopt(self, conn: Connection) -> Connection:
        """Make *conn*, which was opened elsewhere, note and report everything done with it.

        Returns it.
        """
        return self._known(conn)

    def _known(self, conn: Connection) -> Connection:
        """Return *conn* with our layer in front of its protocol, in a class that notes a holder's
        changes.
        """
        if not isinstance(conn, self._asyncpg.Connection):
            class_of(conn)
            raise TypeError(
                f"connect= returned an object of type {type(conn).__name__}, not a connection of"
                " asyncpg"
            )
        if self.is_known and conn._protocol is not None and not isinstance(conn._protocol, Layer):
            try:
                layer = Layer(
                    conn._protocol,
                    conn._transport,
                    id(conn),
                    self._asyncpg.ConnectionDoesNotExistError,
                )
                layer.refusals = self._refusals
                layer.hear()
            except AttributeError as missing:
                self.go_blind(one_line(missing))
                return conn
            conn.__class__ = noting(class_of(conn))
            conn._protocol = layer
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """Return asyncpg's own calls, in place of Python's DB-API."""
        begun: dict[int, Any] = {}

        async def ping(conn: Connection, timeout: float) -> None:
            await conn.execute("SELECT 1", timeout=timeout)

        async def begin(conn: Connection) -> None:
            begun[id(conn)] = transaction = conn.transaction()
            await transaction.start()

        async def end(conn: Connection, how: str) -> None:
            transaction = begun.pop(id(conn), None)
            if transaction is not None and conn.is_in_transaction():
                await getattr(transaction, how)()
            elif conn.is_in_transaction():
                await conn.execute(how.upper())

        def end_by(how: str) -> Callable[[Connection], Awaitable[None]]:
            return lambda conn: end(conn, how)

        return {
            **super().public_calls(),
            "ping": ping,
            "ask": lambda conn, sql: AsyncDriver.ask(self, conn, sql),
            "begin": begin,
            "commit": end_by("commit"),
            "rollback": end_by("rollback"),
        }

    async def probe(self, conn: Connection) -> str | None:
        """Return the flaw in our layer's reports and asyncpg's status; None: there is none.

        Five round trips.
        """
        layer = conn._protocol
        if not isinstance(layer, Layer):
            return "its connection has an unknown kind of protocol"
        protocol: Any = type(layer.real)
        if (flaw := unknown(protocol)) is not None:
            return flaw
        with Trial(self, conn) as trial:
            if self.is_in_transaction(conn):
                # the caller's own connect= began it, so it must stay open
                await conn.fetchval(PROBE)
                return trial.flaw([(PROBE, False)])
            transaction = conn.transaction()
            await transaction.start()
            await conn.fetchval(PROBE)
            opened = self.is_in_transaction(conn)
            await transaction.commit()
            closed = self.is_in_transaction(conn)
            under_way = asyncio.ensure_future(conn.execute(PROBE))
            await asyncio.sleep(0)
            busy = layer.may_be_busy and not self.is_quiet(conn)
            await under_way
        flaw = trial.flaw(_REPORTS) or flaw_of_status(opened, closed)
        return flaw or (
            None
            if busy and self.is_quiet(conn)
            else "its connection does not report when an answer is due"
        )

    async def ping(self, conn: Connection, timeout: float) -> None:
        """Ping the server: one round trip, no transaction. (asyncpg cannot read the answer to an
        empty query.)
        """
        self._check_ready(conn)
        try:
            async with asyncio.timeout(timeout):
                await conn.execute("SELECT 1", timeout=timeout)
        except TimeoutError as error:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the server did not answer within {timeout} s"
            ) from error

    async def begin(self, conn: Connection) -> None:
        """Start a transaction of asyncpg's own, so that the application's ``conn.transaction()``
        becomes a savepoint in it.
        """
        self._check_ready(conn)
        if conn._top_xact is not None and not conn.is_in_transaction():
            conn._top_xact = (
                None  # a COMMIT written as text ended it: asyncpg would send a SAVEPOINT
            )
        await conn.transaction().start()

    async def commit(self, conn: Connection) -> None:
        """Commit the transaction that :meth:`begin`, or the application, opened; no round trip if
        nothing is open.

        Raises InFailedSQLTransactionError if PostgreSQL answered that with a rollback.
        """
        self._check_ready(conn)
        if conn._top_xact is None or not conn.is_in_transaction():
            await self._end(conn, "commit")
            return
        # Like asyncpg's own commit, but it checks the answer.
        conn._top_xact = None
        if await conn.execute("COMMIT") == "ROLLBACK":
            raise self._asyncpg.InFailedSQLTransactionError(_postgresql.NOT_COMMITTED)

    async def rollback(self, conn: Connection) -> None:
        """Roll that transaction back; no round trip if nothing is open."""
        self._check_ready(conn)
        await self._end(conn, "rollback")

    async def _end(self, conn: Connection, how: str) -> None:
        # the outermost transaction object; asyncpg keeps it for its own nesting
        outer = conn._top_xact
        if not conn.is_in_transaction() and self.is_quiet(conn):
            conn._top_xact = None  # a COMMIT written as text may have ended it
        elif outer is not None:
            await getattr(outer, how)()
        else:
            await conn.execute(how.upper())

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*, a query of the pool's own, which leaves nothing on the
        session.
        """
        layer = conn._protocol
        before = layer.residue if isinstance(layer, Layer) else None
        rows = [tuple(row) for row in await conn.fetch(sql)]
        if before is not None:
            layer.residue = before
        return rows

    async def idle_limit(self, conn: Connection) -> float | None:
        """Return ``idle_session_timeout`` of this session, in seconds."""
        return _postgresql.limit(await conn.fetchval(_postgresql.ASK_IDLE_LIMIT))

    def close(self, conn: Connection) -> None:
        """Abort the transport."""
        transport = conn._transport
        try:
            conn.terminate()
        except Exception:  # its loop is closed already
            if transport is not None:
                abort_transport(transport)

    def fileno(self, conn: Connection) -> int | None:
        """Return the number of the transport's socket; None once it is closing."""
        transport = conn._transport
        if conn.is_closed() or transport is None or transport.is_closing():
            return None
        sock = transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def classify(self, exc: BaseException) -> Fault:
        """Classify an error by SQLSTATE, or by asyncpg's message or the system's error if there is
        none.
        """
        if is_lost(exc):
            return Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        connecting = from_connect(exc)
        fault = self._fault(exc, connecting)
        return replace(fault, text=self.shown(fault.text))

    def _fault(self, exc: BaseException, connecting: bool) -> Fault:
        said = exc.__cause__
        if isinstance(exc, self._asyncpg.PostgresConnectionError) and isinstance(
            said, self._asyncpg.PostgresError
        ):
            exc = said  # the server's error before it closed the connection
        if isinstance(exc, self._asyncpg.PostgresError):
            fields = ("server_source_filename", "severity_en", "severity")
            fatal = is_fatal(*(getattr(exc, each, None) for each in fields))
            code = getattr(exc, "sqlstate", None)
            return postgres_fault(code, str(exc), connecting=connecting, fatal=fatal)
        if isinstance(exc, (self._asyncpg.InterfaceError, self._asyncpg.InternalClientError)):
            if isinstance(exc, self._asyncpg.exceptions.TargetServerAttributeNotMatched):
                return Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, None, str(exc))
            if isinstance(
                exc,
                (
                    self._asyncpg.exceptions.ClientConfigurationError,
                    self._asyncpg.exceptions.DataError,
                ),
            ):
                return Fault(
                    FaultKind.MISCONFIGURED if connecting else FaultKind.OTHER, None, None, str(exc)
                )
            # "another operation (2) is in progress": the server's goodbye came between two
            # statements
            if isinstance(exc, self._asyncpg.exceptions.ProtocolError) or _OUT_OF_STEP.search(
                str(exc)
            ):
                return Fault(FaultKind.LOST, None, None, str(exc))
            return postgres_fault(None, str(exc), connecting=connecting)
        if isinstance(exc, ConnectionError) and "SSL" in str(exc) and connecting:
            return Fault(
                FaultKind.REJECTED if "rejected SSL" in str(exc) else FaultKind.NOT_READY,
                None,
                None,
                str(exc),
            )
        if isinstance(exc, TimeoutError) and exc.errno is None and not connecting:
            # command_timeout, timeout=: asyncpg cancels the query
            return Fault(FaultKind.OTHER, None, None, "a statement took longer than its timeout")
        return os_fault(exc, connecting=connecting)

    def unread(self, conn: Connection) -> bytes:
        """Return the server's error at the end of the session, which asyncpg has read and hides."""
        layer = getattr(conn, "_protocol", None)
        return layer.goodbye if isinstance(layer, Layer) else b""

    def session_id(self, conn: Connection) -> str | None:
        """Return the backend's pid."""
        return None if conn.is_closed() else str(conn.get_server_pid())

    def watch(self, conn: Connection) -> None:
        """Make our layer report from now on."""
        self._known(conn)
        if isinstance(conn._protocol, Layer):
            conn._protocol.watched = True

    def unwatch(self, conn: Connection) -> None:
        """Stop the reports."""
        if isinstance(conn._protocol, Layer):
            conn._protocol.watched = False


_REPORTS = (("BEGIN", True), (PROBE, False), "committing", "committed", (PROBE, True))
