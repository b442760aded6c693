"""The shared types: the interface of a driver, and the names for faults and their causes.

Everything here is a plain type: no I/O, no clock, nothing from a higher layer. A driver (layer 2)
implements :class:`Driver` or :class:`AsyncDriver`; the pools (layer 3) call it; the brain (layer 1)
only sees the :class:`Fault` and :class:`Cause` values that it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

#: A driver's own connection object. The pools never wrap it, so nothing is known of its type here.
Connection: TypeAlias = Any

#: The same, where a pool was told its type: ``Pool[psycopg.Connection]``, or by its ``connect=``.
#: By default it is Any.
# Both type checkers bring this module; at run time a TypeVar has a default from Python 3.13 on.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    ConnectionT = TypeVar("ConnectionT", default=Any)
else:
    from typing import TypeVar

    ConnectionT = TypeVar("ConnectionT")

#: A host, and its port; None: the backend's usual one.
Address: TypeAlias = tuple[str, int | None]

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class FaultKind(StrEnum):
    """The meaning of an exception for its connection and for callers that wait for one."""

    LOST = "lost"  #: this connection is gone; another one may work
    WRONG_SERVER = "wrong server"  #: it answers, but was demoted: find the new primary
    #: it refused a write: the application wanted it so, or it was demoted; only the server can tell
    READ_ONLY = "read only"
    TOO_LARGE = "too large"  #: a statement larger than it takes; this connection is gone
    TOO_MANY = "too many connections"  #: the server is full: wait, and retry slowly
    NOT_READY = "not ready"  #: the server answers, but is starting, stopping or recovering
    REFUSED = "refused"  #: no process listens (an attempt costs the server nothing)
    UNREACHABLE = "unreachable"  #: nothing answers: timed out, no route, name lookup failed for now
    UNKNOWN_NAME = "unknown name"  #: the name service knows no such host: it may be created later
    REJECTED = "rejected"  #: password, permission, unknown database: waiting does not help
    MISCONFIGURED = "misconfigured"  #: the client's own settings or files: no server took part
    EXHAUSTED = "exhausted"  #: the process, or its machine, has no descriptors, ports or memory
    RETRY = "retry"  #: the server undid the transaction and asks to try again: a deadlock, say
    OTHER = "other"  #: the application's own error; the connection is fine


#: Kinds that make an *outage* when a connect fails with them: waiting can help.
OUTAGE_KINDS = frozenset(
    {
        FaultKind.LOST,
        FaultKind.TOO_MANY,
        FaultKind.NOT_READY,
        FaultKind.REFUSED,
        FaultKind.UNREACHABLE,
        FaultKind.UNKNOWN_NAME,
        FaultKind.WRONG_SERVER,
    }
)


#: Kinds that a connection in use may meet if its server cannot serve any client now. They make an
#: outage, too, and the connection is not used again.
CANNOT_SERVE = frozenset({FaultKind.TOO_MANY, FaultKind.NOT_READY, FaultKind.WRONG_SERVER})


class Cause(StrEnum):
    """Why a connection ended.

    Every closed connection has exactly one cause; they are counted and logged.
    """

    # actions of the other side
    IDLE_LIMIT = "idle limit"  #: the server's wait_timeout / idle_session_timeout
    KILLED = "killed"  #: KILL, pg_terminate_backend
    SHUTDOWN = "server shutdown"
    CRASHED = "server crash"
    FAILOVER = "failover"  #: the server became read-only
    CANNOT_SERVE = "cannot serve"  #: the server, or a pooler before it, serves no client now
    TRANSACTION_LIMIT = (  #: idle_in_transaction_session_timeout, transaction_timeout
        "transaction limit"
    )
    CLOSED_BY_PEER = "closed by the other side"  #: a FIN without a message
    CONNECTION_RESET = "reset"  #: a RST
    SILENT_DROP = (  #: no answer came any more: keepalive, user timeout or a ping found out
        "silent drop"
    )
    OTHER_SESSION = (  #: a pooler has switched it to a session without its prepared statements
        "another session behind a pooler"
    )
    LOST = "lost in use"  #: the driver reported so while it was in use, and nothing better is known
    # actions of this library
    MAX_AGE = "max age"
    MAX_IDLE = "max idle"
    SURPLUS = "surplus"  #: the pool was made smaller
    RESET_FAILED = "reset failed"  #: the rollback at release did not work
    FORGOTTEN = "forgotten"  #: its holder was garbage-collected without returning it
    RECLAIMED = "reclaimed"  #: held longer than leak_after, with reclaim on
    DEADLINE = "deadline"
    CANCELLED = (  #: an exchange was interrupted: a cancellation, a time limit, a signal
        "cancelled"
    )
    CLOSED_BY_HOLDER = "closed by its holder"  #: the application closed it while it had it
    DRAINED = "drained"
    MOVED = "name moved"  #: the server's name leads to another address now
    POOL_CLOSED = "pool closed"
    DISCARDED = "discarded"  #: the application asked for it


@dataclass(frozen=True, slots=True)
class Fault:
    """The meaning of an exception (or a last packet).

    ``kind`` is the reaction to it. ``cause`` is why the connection ended (None if it did not, or is
    not known). ``code`` is the server's or the system's own code (MySQL errno, SQLSTATE, errno).
    ``text`` is one line for people, never with a password in it.
    """

    kind: FaultKind
    cause: Cause | None = None
    code: int | str | None = None
    text: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether the connection it came from must not be used again."""
        return self.kind in _ENDS_CONNECTION


_ENDS_CONNECTION = frozenset({FaultKind.LOST, FaultKind.TOO_LARGE}) | CANNOT_SERVE


@dataclass(frozen=True, slots=True)
class Target:
    """An address to connect to, taken from a URL.

    ``options`` are the query's, as text, in the driver's own spelling.
    """

    scheme: str  #: as written, e.g. ``mysql+pymysql``
    backend: str  #: ``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``
    host: str | None = None
    port: int | None = None
    unix_socket: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    # a mappingproxy has no hash before Python 3.12
    options: Mapping[str, str] = field(default_factory=lambda: NO_OPTIONS, hash=False)
    #: The further hosts of a cluster.
    others: tuple[Address, ...] = ()

    @property
    def hosts(self) -> tuple[Address, ...]:
        """All hosts of the cluster, in the order of the URL. A host that begins with ``/`` is a
        unix socket. Empty if the URL names no host.
        """
        first = self.unix_socket or self.host
        return ((first, self.port), *self.others) if first else ()

    @property
    def server(self) -> str:
        """The server's address for people and as a key: ``db:3306``, ``[::1]:5432``,
        ``/run/mysqld.sock``; of a cluster all of them, ``db1:5432,db2:5432``.
        """
        if not self.hosts:
            return "localhost" if self.backend != "sqlite" else "file"
        return ",".join(address(*each) for each in self.hosts)

    @property
    def label(self) -> str:
        """Server and database for messages: ``db:3306/shop``. Never a user or a password."""
        return f"{self.server}/{self.database}" if self.database else self.server


@dataclass(frozen=True, slots=True)
class Login:
    """The address and the user of one attempt to connect.

    A field that is None means "as in the URL". *port* belongs to *host*: beside a host, None is the
    backend's usual port. A *host* that begins with ``/`` is a unix socket. A caller's own
    ``connect=`` receives none of this.
    """

    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def is_path(host: str) -> bool:
    """Return whether *host* is the path of a unix socket."""
    return host.startswith("/")


def address(host: str, port: int | None) -> str:
    """Return *host* and *port* for people: ``db:3306``, ``[::1]:5432``, ``/run/mysqld.sock``."""
    if is_path(host):
        return host
    name = f"[{host}]" if ":" in host else host
    return f"{name}:{port}" if port else name


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The abilities of a driver. ``docs/drivers.md`` is generated from these, and tests verify
    them.

    A driver without ``fileno`` whose connections send a goodbye when they are deallocated has a
    method ``abandon(conn)`` too. In a forked child it ensures that the inherited copy never sends
    anything, not even at exit.
    """

    fileno: bool = (
        True  #: it exposes its socket: losses show without a round trip, a fork can be cut off
    )
    transaction_status: bool = (
        False  #: it always knows, without a round trip, whether a transaction is open
    )
    watchable: bool = False  #: its statements can be seen, so that units of work may be replayed
    implicit_begin: bool = (
        True  #: it opens a transaction by itself (DB-API); False: ``begin`` must be called
    )
    abort: bool = True  #: a blocked call can be ended from outside (shutdown on its socket)
    server: bool = True  #: there is a server at the other end (False: SQLite)


class BaseDriver(Protocol):
    """The common part of sync and async drivers: everything that costs no I/O.

    One instance serves one pool: it holds the connect arguments, and objects that the pool's
    connections share (an SSL context). ``errors`` are the driver's exception classes that callers
    already catch, best first: unbroken's own errors derive from ``errors[0]`` too.
    """

    name: str
    capabilities: Capabilities
    target: Target
    errors: tuple[type[BaseException], ...]

    def fileno(self, conn: Connection) -> int | None:
        """Return the socket's descriptor, or None if it is hidden, already closed, or missing."""

    def is_in_transaction(self, conn: Connection) -> bool | None:
        """Return whether a transaction is open, without a round trip; None if that is not certain.

        Never raises.
        """

    def is_quiet(self, conn: Connection) -> bool:
        """Return True if every request was certainly answered in full and nothing is left unread.
        Never raises.

        The driver counts a request as sent before its first byte leaves, and as answered after the
        last step of reading the answer. Only an error that the server sent ends an exchange; any
        other exception leaves it open.
        """

    def traits(self, conn: Connection) -> Any:
        """Return the state of *conn* that a holder can change and that is known without a round
        trip: autocommit, isolation level, row factory and the like, as one comparable value. Never
        raises.
        """

    def was_closed(self, conn: Connection) -> bool:
        """Return True if the application closed a usable *conn*. False if that is unknown."""

    def has_ended(self, conn: Connection) -> bool:
        """Return whether an event loop has read the server's goodbye already, though the socket
        shows no end yet. Asked of an idle connection before a caller gets it. No I/O. Never raises.
        """

    def is_clean(self, conn: Connection, traits: Any) -> bool:
        """Return True if *conn* is certainly, without a round trip, open and quiet, in no
        transaction, and still has the *traits* that it was opened with. Asked at every release.
        Never raises.
        """

    #: Why the statements of this driver's connections cannot be followed, so that no unit of work
    #: may be replayed (a newer library works differently, say); None: they can be followed.
    blindness: str | None

    #: For a caller's own ``connect=``: whether it changes only a session's settings (None: not
    #: known), and whether its user or password may be another one each time.
    sets_only: bool | None
    login_may_change: bool

    #: Whether its connections belong to an event loop.
    is_async: bool

    def needs_trial(self, conn: Connection) -> bool:
        """Return whether connections like *conn* still have to prove, by ``probe(conn)``, that
        their statements are seen.
        """

    def tried(self, conn: Connection, flaw: str | None, *, final: bool = True) -> None:
        """Note that the trial has ended, with *flaw* or well (None).

        Unless *final*, the next connection is tried again.
        """

    def classify(self, exc: BaseException) -> Fault:
        """Return the fault that *exc*, of this driver or the system, reports. Never raises."""

    def session_id(self, conn: Connection) -> str | None:
        """Return the server's number of this session (CONNECTION_ID(), backend pid), known without
        a round trip; else None.
        """

    def close(self, conn: Connection) -> None:
        """Close politely but without waiting for the other side (async: abort the transport); never
        raises.
        """

    def watch(self, conn: Connection) -> None:
        """From now on, report every statement and COMMIT on *conn* to
        :func:`unbroken.ledger.scope.current`.
        """

    def unwatch(self, conn: Connection) -> None:
        """Undo :meth:`watch`."""


@runtime_checkable
class Driver(BaseDriver, Protocol):
    """A blocking driver.

    Timeouts are seconds as floats; a longer call raises. Errors are the driver's own.
    """

    def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Return a new connection, or raise the driver's exception. *login* is the address and the
        user (None: those of the URL).

        Must end within about *timeout*, handshake included.
        """

    def adopt(self, conn: Connection) -> Connection:
        """Make a connection that a framework opened note and report as this driver's own do.
        Returns it.

        Raises TypeError or AttributeError for an object of another class.
        """

    def ping(self, conn: Connection, timeout: float) -> None:
        """Make one round trip.

        Raises if the connection does not answer. Leaves no transaction open.
        """

    def begin(self, conn: Connection) -> None:
        """Open a transaction (only called if ``implicit_begin`` is False)."""

    def commit(self, conn: Connection) -> None:
        """Send COMMIT; no round trip if the driver itself knows that nothing is open."""

    def rollback(self, conn: Connection) -> None:
        """Send ROLLBACK; no round trip if the driver itself knows that nothing is open."""

    def restore(self, conn: Connection, traits: Any) -> None:
        """Restore *traits*, with at most one round trip.

        Nothing is open. Raises if that fails.
        """

    def remember(self, conn: Connection) -> Any:
        """Return the settings that :meth:`reset_session` must restore, asked of a session that was
        just opened. One round trip.

        None if they are not known: such a session is closed instead of reset.
        """

    def reset_session(self, conn: Connection, opening: Any, left: Any) -> None:
        """Undo everything that was left on the session (kinds *left*, of
        :class:`unbroken.ledger.residue.Left`), then restore *opening*. Nothing is open. Raises if
        that fails.
        """

    def idle_limit(self, conn: Connection) -> float | None:
        """Return how long the server lets this session idle, in seconds; None for no limit. One
        round trip.

        Raises the driver's error if the query is not allowed. Leaves no transaction open.
        """

    def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*, a query of the pool's own. May leave a transaction open."""


@runtime_checkable
class AsyncDriver(BaseDriver, Protocol):
    """A driver for asyncio: :class:`Driver`, awaited."""

    async def connect(self, timeout: float, login: Login | None = None) -> Connection:
        """Await the same as :meth:`Driver.connect`."""

    async def adopt(self, conn: Connection) -> Connection:
        """Await the same as :meth:`Driver.adopt`."""

    async def ping(self, conn: Connection, timeout: float) -> None:
        """Await the same as :meth:`Driver.ping`."""

    async def begin(self, conn: Connection) -> None:
        """Await the same as :meth:`Driver.begin`."""

    async def commit(self, conn: Connection) -> None:
        """Await the same as :meth:`Driver.commit`."""

    async def rollback(self, conn: Connection) -> None:
        """Await the same as :meth:`Driver.rollback`."""

    async def restore(self, conn: Connection, traits: Any) -> None:
        """Await the same as :meth:`Driver.restore`."""

    async def remember(self, conn: Connection) -> Any:
        """Await the same as :meth:`Driver.remember`."""

    async def reset_session(self, conn: Connection, opening: Any, left: Any) -> None:
        """Await the same as :meth:`Driver.reset_session`."""

    async def idle_limit(self, conn: Connection) -> float | None:
        """Await the same as :meth:`Driver.idle_limit`."""

    async def ask(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Await the same as :meth:`Driver.ask`."""


class Observer(Protocol):
    """A callable that receives the pool's events, outside every lock, on slow paths only.

    Its exceptions are logged and swallowed.
    """

    def __call__(self, event: str, fields: Mapping[str, Any]) -> None:
        """*event* is a short name (``opened``, ``closed``, ``outage began`` …), *fields* are its
        details.
        """


Reset: TypeAlias = Callable[[Connection], Any]
