"""The connections of one client in one process: counted, and known by number and identity, so that
a child can cut off those it inherits.

A connection that a thread was reading from at a fork (the monitors' always are) is unreachable in
the child: the thread is gone, its frame is not. Its descriptor would stay open there for good, and
stay in CLOSE_WAIT once the server is gone.
"""

from __future__ import annotations

import asyncio
import functools
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pymongo.errors import NetworkTimeout, _OperationCancelled
from pymongo.monitoring import ConnectionClosedReason

from unbroken.abc import Capabilities, Cause
from unbroken.brain.health import Policy
from unbroken.net import keepalive
from unbroken.net.fork_guard import abort, identity, sever
from unbroken.settings import Settings

if TYPE_CHECKING:
    from unbroken.integrations.mongo.gate import Gate

#: The same bounds as for every other connection. PyMongo's own keepalive begins after two minutes,
#: and it has no bound for data that is not acknowledged.
_BOUNDS = Policy.decide(Settings(), Capabilities())

#: The error of a round trip if a heartbeat has found its server silent.
_SILENT = "timed out: the server no longer answers heartbeats"

#: By PyMongo's reasons. "stale", and None for a monitor's own, are not among them: those
#: connections end for the gate's cause.
_CAUSES: Mapping[str | None, Cause] = {
    ConnectionClosedReason.IDLE: Cause.MAX_IDLE,
    ConnectionClosedReason.ERROR: Cause.LOST,
    ConnectionClosedReason.POOL_CLOSED: Cause.POOL_CLOSED,
}


class Sockets:
    """Every connection that was opened, until it is closed.

    Adding to and removing from a dictionary is atomic: no lock.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._known: dict[int, tuple[weakref.ref[Any], int, tuple[int, int]]] = {}
        self.opened = 0
        self.connect_seconds = 0.0
        self.connect_failures = 0
        self.closed: Counter[str] = Counter()  #: by cause

    def began(self) -> float:
        """Note that an attempt to connect begins."""
        return time.monotonic()

    def failed(self) -> None:
        """Note that it failed."""
        self.connect_failures += 1

    def note(self, conn: Any, began: float, closing: Any) -> None:
        """Keep *conn*, a connection of PyMongo's that has just been opened, and get notified of its
        end.

        A connection that PyMongo interrupts reports the reason.
        """
        self.opened += 1
        self.connect_seconds += time.monotonic() - began
        key, fd = id(conn), _descriptor(conn)
        who = None if fd is None else identity(fd)
        ref = weakref.ref(conn, functools.partial(self._forget, key))
        if fd is not None and who is not None:
            self._known[key] = (ref, fd, who)
            keepalive.bound(fd, _BOUNDS.keepalive, _BOUNDS.probe_every, _BOUNDS.send_timeout)
        conn.close_conn = closing(ref, self, key)
        if not _is_monitors(conn):
            conn._raise_connection_failure = _failing(ref)

    def _forget(self, key: int, _ref: Any = None) -> None:
        self._known.pop(key, None)

    def ended(self, key: int, reason: str | None) -> None:
        """Note that the connection known as *key* was closed, for PyMongo's *reason*."""
        self._forget(key)
        cause = _CAUSES.get(reason) or self._gate.cause or Cause.CLOSED_BY_PEER
        self.closed[cause.value] += 1

    def sever(self) -> None:
        """In a forked child: replace each inherited socket by a closed one.

        Other sockets are not affected.
        """
        for _, fd, who in list(self._known.values()):
            sever(fd, who)
        self._known.clear()

    def interrupt(self, pool: Any) -> None:
        """End the round trips on the connections of *pool* that PyMongo has interrupted.

        PyMongo only signals their readers, which check every half second.
        """
        for ref, fd, who in list(self._known.values()):
            conn = ref()
            if conn is not None and conn.pool_ref() is pool and _is_interrupted(conn):
                abort(fd, who)

    def abort(self) -> None:
        """Abort them all, from outside, without closing them."""
        for _, fd, who in list(self._known.values()):
            abort(fd, who)


def _closing(
    conn_ref: weakref.ref[Any], sockets: Sockets, key: int
) -> Callable[[str | None], None]:
    """Return a replacement for a connection's ``close_conn`` that receives the reason. It does not
    keep the connection alive.
    """

    def close_conn(reason: str | None) -> None:
        conn = conn_ref()
        if conn is not None and not conn.closed:
            sockets.ended(key, reason)
            type(conn).close_conn(conn, reason)

    return close_conn


def _closing_async(
    conn_ref: weakref.ref[Any], sockets: Sockets, key: int
) -> Callable[[str | None], Awaitable[None]]:
    """Do the same as :func:`_closing`, awaited."""

    async def close_conn(reason: str | None) -> None:
        conn = conn_ref()
        if conn is not None and not conn.closed:
            sockets.ended(key, reason)
            await type(conn).close_conn(conn, reason)

    return close_conn


def _is_monitors(of: Any) -> bool:
    """Return whether a connection or a pool is a monitor's, which takes PyMongo's errors
    unchanged.
    """
    if hasattr(of, "is_sdam"):
        return bool(of.is_sdam)
    pool = of.pool_ref() if hasattr(of, "pool_ref") else of  # PyMongo before 4.11
    return not getattr(pool, "handshake", True)


def _is_interrupted(conn: Any) -> bool:
    """Return whether a heartbeat has found that the server below *conn* does not answer any
    more.
    """
    return bool(conn.cancel_context.cancelled) and not conn.closed


def _meaning(conn: Any, error: BaseException) -> BaseException:
    """Return the meaning of *error* of *conn* if the connection was interrupted: the server has
    been silent too long.
    """
    if _is_interrupted(conn) and isinstance(error, (OSError, _OperationCancelled)):
        return TimeoutError(_SILENT)
    return error


def _failing(conn_ref: weakref.ref[Any]) -> Callable[[BaseException], Any]:
    """Return a replacement for a connection's ``_raise_connection_failure`` that names the reason.

    PyMongo awaits its result if the original is awaited.
    """

    def fail(error: BaseException) -> Any:
        conn = conn_ref()
        if conn is None:
            raise error
        return type(conn)._raise_connection_failure(conn, _meaning(conn, error))

    return fail


def _descriptor(conn: Any) -> int | None:
    """Return the number of the socket below *conn*, in the ways of PyMongo 4.9 to 4.20, or None."""
    below = conn.conn
    try:
        sock = getattr(below, "sock", below)
        fd: int = sock.fileno()
    except Exception:
        return None
    return fd if fd >= 0 else None


def recording(pool: Any, sockets: Sockets, *, keep: bool = True) -> Any:
    """Return a class like PyMongo's *pool* that tells *sockets* of each connection it opens, and
    that need not *keep* one after its use.

    An object that is no class is returned unchanged.
    """
    if not isinstance(pool, type):
        return pool
    plain: Any = pool

    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = sockets.began()
        try:
            conn = plain.connect(self, *args, **kwargs)
        except BaseException as error:
            sockets.failed()
            if isinstance(error, _OperationCancelled) and not _is_monitors(self):
                raise _silent(self) from error
            raise
        sockets.note(conn, began, _closing)
        return conn

    def reset(self: Any, service_id: Any = None, interrupt_connections: bool = False) -> None:
        plain.reset(self, service_id, interrupt_connections)
        if interrupt_connections:
            sockets.interrupt(self)

    def checkin(self: Any, conn: Any) -> None:
        # of an older generation than the pool's: the pool closes such connections
        conn.generation = -1
        plain.checkin(self, conn)

    ours: dict[str, Any] = {"connect": connect, "reset": reset}
    return type(pool.__name__, (pool,), ours if keep else {**ours, "checkin": checkin})


def recording_async(pool: Any, sockets: Sockets) -> Any:
    """Do the same as :func:`recording`, for PyMongo's pool of asyncio connections."""
    if not isinstance(pool, type):
        return pool
    plain: Any = pool

    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = sockets.began()
        try:
            async with asyncio.timeout(_handshake_limit(self.opts)):
                conn = await plain.connect(self, *args, **kwargs)
        except BaseException as error:
            sockets.failed()
            is_silent = isinstance(error, _OperationCancelled) and not _is_monitors(self)
            if is_silent or type(error) is TimeoutError:
                raise _silent(self) from error
            raise
        sockets.note(conn, began, _closing_async)
        return conn

    async def reset(self: Any, service_id: Any = None, interrupt_connections: bool = False) -> None:
        await plain.reset(self, service_id, interrupt_connections)
        if interrupt_connections:
            sockets.interrupt(self)

    return type(pool.__name__, (pool,), {"connect": connect, "reset": reset})


def _silent(pool: Any) -> NetworkTimeout:
    return NetworkTimeout("{}:{}: {}".format(*pool.address[:2], _SILENT))


def _handshake_limit(options: Any) -> float | None:
    """Return how long opening a connection over TLS may take, in seconds. asyncio's handshake has a
    bound of its own, of a minute, and PyMongo sets none.
    """
    limit = options.connect_timeout
    return 2 * limit if limit and options._ssl_context is not None else None
