"""asyncpg: asyncio, its own protocol.

It opens no transaction by itself, so the pool does, with asyncpg's own object.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from unbroken.abc import Capabilities, Cause, Connection, Fault, FaultKind, Target
from unbroken.backends.postgresql import postgres_fault
from unbroken.backends.system import one_line, os_fault
from unbroken.drivers import _postgresql
from unbroken.drivers._asyncpg_layer import SENDS, Layer, closed_by_holder, noting, unknown
from unbroken.drivers._base import Awaited
from unbroken.drivers._seams import PROBE, Seam, Trial, flaw_of_status
from unbroken.drivers._shared import (
    abort_transport,
    boolean,
    class_of,
    coerce,
    dial_async,
    from_connect,
    is_lost,
    lost,
    number,
    seconds,
    whole,
    without_target,
)
from unbroken.ledger.residue import NOTHING, Left

NAME = "asyncpg"
SCHEMES = ("postgresql+asyncpg",)
DISTRIBUTION = "asyncpg"
MODULE = "asyncpg"
TESTED = ">=0.29,<0.33"
RANK = 5  # the fastest for asyncio

# What asyncpg reads from a DSN's query only, by libpq's names
_DSN = (
    "ssl", "sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation",
    "ssl_min_protocol_version", "ssl_max_protocol_version",
)  # fmt: skip
_SERVER_SETTINGS = (
    "application_name", "options", "search_path", "timezone", "statement_timeout", "lock_timeout",
    "idle_in_transaction_session_timeout",
)  # fmt: skip
_OPTIONS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys((*_DSN, *_SERVER_SETTINGS), str), "command_timeout": seconds,
    "connect_timeout": seconds, "timeout": seconds, "statement_cache_size": whole,
    "prepared_statement_cache_size": whole, "max_cached_statement_lifetime": number,
    "max_cacheable_statement_size": whole, "target_session_attrs": str, "direct_tls": boolean,
    "passfile": str, "krbsrvname": str, "gsslib": str,
}  # fmt: skip


_CONNECTION, _PROTOCOL = "asyncpg.connection:Connection", "asyncpg.protocol.protocol:BaseProtocol"
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
)

_OUT_OF_STEP = re.compile(r"another operation (?:\(\d+\) )?is|cannot switch to state")


class AsyncDriver(Awaited):
    """See :class:`unbroken.abc.AsyncDriver`."""

    name = NAME
    capabilities = Capabilities(transaction_status=True, watchable=True, implicit_begin=False)
    seams = _SEAMS

    def __init__(
        self, target: Target | None, connect: Callable[[], Awaitable[Connection]] | None = None
    ) -> None:
        import asyncpg

        self.check_seams()
        self.target = target or without_target(NAME, "postgresql")
        # asyncpg has no OperationalError; what its users catch for a lost connection are these
        self.errors: tuple[type[BaseException], ...] = (
            asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.PostgresError,
            asyncpg.InternalClientError,
        )  # fmt: skip
        self._connect = connect
        self._asyncpg = asyncpg
        self._arguments, self._timeout = _arguments(self.target)
        self._probe_state: Any = None

    async def connect(self, timeout: float) -> Connection:
        """*timeout* bounds everything, all addresses together."""
        return await dial_async(lambda: self._dial(min(timeout, self._timeout or timeout)))

    async def _dial(self, timeout: float) -> Connection:
        async with asyncio.timeout(timeout):
            if self._connect is not None:
                return self._known(await self._connect())
            return self._known(await self._asyncpg.connect(**self._arguments, timeout=timeout))

    async def adopt(self, conn: Connection) -> Connection:
        """Let *conn*, which was opened elsewhere, note and report what is done with it.

        Returns it.
        """
        return self._known(conn)

    def _known(self, conn: Connection) -> Connection:
        """*conn* with our layer in front of its protocol, by a class that notes what a holder
        changes.
        """
        if not isinstance(conn, self._asyncpg.Connection):
            class_of(conn)
            raise TypeError(
                f"connect= gave {type(conn).__name__}, which is no connection of asyncpg"
            )
        if self.is_known and conn._protocol is not None and not isinstance(conn._protocol, Layer):
            try:
                layer = Layer(
                    conn._protocol,
                    conn._transport,
                    id(conn),
                    self._asyncpg.ConnectionDoesNotExistError,
                )
                layer.hear()
            except AttributeError as missing:
                self.go_blind(one_line(missing))
                return conn
            conn.__class__ = noting(class_of(conn))
            conn._protocol = layer
        return conn

    def public_calls(self) -> Mapping[str, Callable[..., Any]]:
        """asyncpg's own, in place of Python's DB-API."""
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
            "begin": begin,
            "commit": end_by("commit"),
            "rollback": end_by("rollback"),
        }

    async def probe(self, conn: Connection) -> str | None:
        """What is wrong with what our layer reports and asyncpg tells; None: nothing.

        Five round trips.
        """
        layer = conn._protocol
        if not isinstance(layer, Layer):
            return "its connection has no protocol of the known kind"
        protocol: Any = type(layer.real)
        if (flaw := unknown(protocol)) is not None:
            return flaw
        with Trial(self, conn) as trial:
            if self.is_in_transaction(conn):
                # the caller's own connect= began it: it must stay as it is
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
            else "its connection does not tell when an answer is due"
        )

    async def ping(self, conn: Connection, timeout: float) -> None:
        """One round trip, no transaction. (asyncpg cannot read the answer to an empty query.)"""
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
                None  # ended by a COMMIT written as text: asyncpg would send a SAVEPOINT
            )
        await conn.transaction().start()

    async def commit(self, conn: Connection) -> None:
        """Commit what :meth:`begin`, or the application, opened; no round trip where nothing is
        open.

        Raises InFailedSQLTransactionError where PostgreSQL answered that with a rollback.
        """
        self._check_ready(conn)
        if conn._top_xact is None or not conn.is_in_transaction():
            await self._end(conn, "commit")
            return
        # As asyncpg's own commit does, but with a look at the answer
        conn._top_xact = None
        if await conn.execute("COMMIT") == "ROLLBACK":
            raise self._asyncpg.InFailedSQLTransactionError(_postgresql.NOT_COMMITTED)

    async def rollback(self, conn: Connection) -> None:
        """Likewise."""
        self._check_ready(conn)
        await self._end(conn, "rollback")

    def _check_ready(self, conn: Connection) -> None:
        """Raise where nothing can be sent: asyncpg's own methods would fail for want of a protocol,
        or wait.
        """
        if conn.is_closed():
            raise self._asyncpg.InterfaceError("connection is closed")
        if not self.is_quiet(conn):
            raise lost(
                self._asyncpg.InterfaceError(
                    "the connection is out of step: an answer was not read to its end"
                )
            )

    async def _end(self, conn: Connection, how: str) -> None:
        # the outermost transaction object; asyncpg keeps it for its own nesting
        outer = conn._top_xact
        if not conn.is_in_transaction() and self.is_quiet(conn):
            conn._top_xact = None  # ended by a COMMIT written as text, perhaps
        elif outer is not None:
            await getattr(outer, how)()
        else:
            await conn.execute(how.upper())

    def was_closed(self, conn: Connection) -> bool:
        """Whether ``close()`` or ``terminate()`` ended it, and not a loss."""
        return conn in closed_by_holder and conn.is_closed()

    def traits(self, conn: Connection) -> Any:
        """Listeners of every kind, whether something may be left on the session, and codecs that
        were set.
        """
        try:
            listeners, layer = (
                {channel: set(callbacks) for channel, callbacks in conn._listeners.items()},
                conn._protocol,
            )
            return (
                listeners, set(conn._log_listeners), set(conn._query_loggers),
                set(conn._termination_listeners), layer.residue, frozenset(layer.changed_codecs),
                layer.unsynced,
            )  # fmt: skip
        except Exception:  # another make of connection
            return None

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Every answer was read, nothing is open, and nothing was left on the session or the
        connection.
        """
        try:
            layer = conn._protocol
            listeners, log_listeners, query_loggers, termination_listeners, _, _, _ = traits
            if (
                layer.residue
                or layer.unsynced
                or conn._stmt_exclusive_section._acquired
                or layer.changed_codecs
                or not layer.is_connected()
                or layer.is_in_transaction()
                or conn._listeners != listeners
                or conn._log_listeners != log_listeners
                or conn._query_loggers != query_loggers
                or conn._termination_listeners != termination_listeners
                or (layer.may_be_busy and not self.is_quiet(conn))
            ):
                return False
            # ended by a COMMIT written as text, perhaps: asyncpg's own nesting would not know
            conn._top_xact = None
        except Exception:  # closed, or of another make
            return False
        return True

    async def restore(self, conn: Connection, traits: Any) -> None:
        """As asyncpg's own pool does, but only what is due: one round trip for the session, one for
        each codec that was set.

        Raises InterfaceError where the caller's own ``connect=`` may have changed the session
        before: what it set cannot be told from what the holder set.
        """
        self._check_ready(conn)
        layer = conn._protocol
        if (
            traits is None
            or self.is_in_transaction(conn) is not False
            or (not layer.was_new and (layer.residue or layer.changed_codecs))
        ):
            raise self._asyncpg.InterfaceError("the connection cannot be put back to what it was")
        listeners, log_listeners, query_loggers, termination_listeners, *_ = traits
        conn._listeners.clear()
        conn._listeners.update(
            {channel: set(callbacks) for channel, callbacks in listeners.items()}
        )
        for found, wanted in (
            (conn._log_listeners, log_listeners), (conn._query_loggers, query_loggers),
            (conn._termination_listeners, termination_listeners),
        ):  # fmt: skip
            found.clear()
            found.update(wanted)
        if Left.ENDLESS in layer.residue:
            raise self._asyncpg.InterfaceError("no reset undoes what was left on the session")
        if layer.residue or layer.unsynced:
            await layer.unreported(
                _postgresql.reset_of(layer.residue) if layer.residue else "SELECT 1"
            )
            layer.residue = NOTHING
        watched, layer.watched = layer.watched, False
        try:
            for typename, schema in list(layer.changed_codecs):
                await conn.reset_type_codec(typename, schema=schema)
                layer.changed_codecs.discard((typename, schema))
        finally:
            layer.watched = watched

    async def remember(self, conn: Connection) -> Any:
        """Nothing is set when it is opened.

        What the caller's own ``connect=`` set is not known: see :meth:`restore`.
        """
        layer = conn._protocol
        return "" if isinstance(layer, Layer) and layer.was_new else None

    async def reset_session(self, conn: Connection, opening: str, left: Collection[Left]) -> None:  # noqa: ARG002
        """One round trip."""
        conn._protocol.residue |= frozenset(left)
        await conn._protocol.unreported(_postgresql.reset_of(left))
        conn._protocol.residue = NOTHING

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """The rows of *sql*."""
        return [tuple(row) for row in await conn.fetch(sql)]

    async def idle_limit(self, conn: Connection) -> float | None:
        """``idle_session_timeout`` of this session."""
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
        """Of the transport's socket; None once it is closing."""
        transport = conn._transport
        if conn.is_closed() or transport is None or transport.is_closing():
            return None
        sock = transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        return fd if fd >= 0 else None

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """From the last ReadyForQuery; None in the middle of an exchange."""
        if not self.is_quiet(conn):
            return None
        is_open: bool = conn._protocol.is_in_transaction()
        if not is_open:
            # ended by a COMMIT written as text, perhaps: asyncpg's own nesting would not know
            conn._top_xact = None
        return is_open

    def is_quiet(self, conn: Connection) -> bool:
        """Whether asyncpg would accept a new command now."""
        try:
            layer = conn._protocol
            if conn.is_closed() or layer._is_cancelling() or conn._stmt_exclusive_section._acquired:
                return False
            if not layer.may_be_busy:
                return True
            if layer.may_have_ended:
                return False
            if not self._accepts(layer.real):
                return False
            layer.may_be_busy = False
        except Exception:  # closed meanwhile, or of another make
            return False
        return True

    def _accepts(self, protocol: Any) -> bool:
        # The protocol's state is hidden in C. It is checked first thing by every command, before
        # the arguments are: a command whose arguments cannot be encoded tells it, and sends
        # nothing. 1 µs.
        if self._probe_state is None:
            from asyncpg.protocol.protocol import PreparedStatementState

            self._probe_state = PreparedStatementState(
                "", "", protocol, self._asyncpg.Record, False
            )
        attempt = protocol.bind_execute(self._probe_state, _PROBE, "", 0, False, None)
        try:
            attempt.send(None)
        except _Refused as refused:
            refused.__traceback__ = refused.__context__ = (
                None  # it is one object for all: keep no frames alive
            )
            return True
        except Exception:
            return False
        finally:
            attempt.close()
        return False

    def classify(self, exc: BaseException) -> Fault:
        """By SQLSTATE; by asyncpg's words, or the system's error, where there is none."""
        if is_lost(exc):
            return Fault(FaultKind.LOST, Cause.CANCELLED, None, str(exc))
        connecting = from_connect(exc)
        fault = self._fault(exc, connecting)
        return replace(fault, text=one_line(fault.text, self.target.password))

    def _fault(self, exc: BaseException, connecting: bool) -> Fault:
        if isinstance(exc, self._asyncpg.PostgresError):
            return postgres_fault(getattr(exc, "sqlstate", None), str(exc), connecting=connecting)
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
                    FaultKind.REJECTED if connecting else FaultKind.OTHER, None, None, str(exc)
                )
            # "another operation (2) is in progress": the server's goodbye came in between two
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
        """What the server said when it ended the session, which asyncpg has read and keeps to
        itself.
        """
        layer = getattr(conn, "_protocol", None)
        return layer.goodbye if isinstance(layer, Layer) else b""

    def session_id(self, conn: Connection) -> str | None:
        """The backend's pid."""
        return None if conn.is_closed() else str(conn.get_server_pid())

    def watch(self, conn: Connection) -> None:
        """Our layer reports from now on."""
        self._known(conn)
        if isinstance(conn._protocol, Layer):
            conn._protocol.watched = True

    def unwatch(self, conn: Connection) -> None:
        """No more reports."""
        if isinstance(conn._protocol, Layer):
            conn._protocol.watched = False


_REPORTS = (("BEGIN", True), (PROBE, False), "committing", "committed", (PROBE, True))


class _Refused(Exception):  # noqa: N818 - never seen outside
    pass


class _NotEncodable:
    """Arguments that no statement can have: a sequence (asyncpg looks) without a length."""

    __slots__ = ()

    def __len__(self) -> int:
        raise _REFUSED

    def __getitem__(self, index: int) -> Any:
        raise _REFUSED


_REFUSED = _Refused()
_PROBE = _NotEncodable()


def _arguments(target: Target) -> tuple[dict[str, Any], float | None]:
    """Keyword arguments for ``asyncpg.connect``, and the user's own limit for connecting."""
    out = coerce(target.options, _OPTIONS, NAME)
    limits = [out.pop(name) for name in ("connect_timeout", "timeout") if name in out]
    if "prepared_statement_cache_size" in out:  # SQLAlchemy's name
        out.setdefault("statement_cache_size", out.pop("prepared_statement_cache_size"))
    if "ssl" in out:  # SQLAlchemy's and asyncpg's name for libpq's sslmode
        out["sslmode"] = {"true": "require", "false": "disable"}.get(out["ssl"].lower(), out["ssl"])
        del out["ssl"]
    settings = {name: out.pop(name) for name in _SERVER_SETTINGS if name in out}
    if settings:
        out["server_settings"] = settings
    dsn = "&".join(f"{name}={quote(out.pop(name), safe='')}" for name in _DSN if name in out)
    if dsn:
        out["dsn"] = f"postgresql://?{dsn}"
    given = {
        "host": target.unix_socket or target.host,
        "port": target.port,
        "user": target.user,
        "password": target.password,
        "database": target.database,
    }
    out.update({name: value for name, value in given.items() if value is not None})
    return out, min(limits) if limits else None
