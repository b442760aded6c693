"""The connections of one client in one process: counted, and known by number and identity, so that
a child can cut off what it inherits.

A connection that a thread was reading from at a fork (the monitors' always are) is reachable in the
child by nobody: the thread is gone, its frame is not. Its descriptor would stay open there for
good, and sit in CLOSE_WAIT once the server is gone.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pymongo.monitoring import ConnectionClosedReason

from unbroken.abc import Capabilities, Cause
from unbroken.brain.health import Policy
from unbroken.net import keepalive
from unbroken.net.fork_guard import abort, identity, sever
from unbroken.settings import Settings

if TYPE_CHECKING:
    from unbroken.integrations.mongo.gate import Gate

#: As for every other connection. PyMongo's own keepalive begins after two minutes, and it has no
#: bound for what nobody acknowledges.
_BOUNDS = Policy.decide(Settings(), Capabilities())

#: By PyMongo's reasons. "stale", and None for a monitor's own, are not among them: they end for the
#: gate's cause.
_CAUSES: Mapping[str | None, Cause] = {
    ConnectionClosedReason.IDLE: Cause.MAX_IDLE,
    ConnectionClosedReason.ERROR: Cause.LOST,
    ConnectionClosedReason.POOL_CLOSED: Cause.POOL_CLOSED,
}


class Sockets:
    """Every connection that was opened, until it is closed.

    Adding to and taking from a dictionary is atomic: no lock.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._known: dict[int, tuple[weakref.ref[Any], int, tuple[int, int]]] = {}
        self.opened = 0
        self.connect_seconds = 0.0
        self.connect_failures = 0
        self.closed: Counter[str] = Counter()  #: by cause

    def began(self) -> float:
        """An attempt to connect begins."""
        return time.monotonic()

    def failed(self) -> None:
        """It failed."""
        self.connect_failures += 1

    def note(self, conn: Any, began: float, closing: Any) -> None:
        """Remember *conn*, a connection of PyMongo's that has just been opened, and hear of its
        end.
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

    def _forget(self, key: int, _ref: Any = None) -> None:
        self._known.pop(key, None)

    def ended(self, key: int, reason: str | None) -> None:
        """The connection known as *key* was closed, for PyMongo's *reason*."""
        self._forget(key)
        cause = _CAUSES.get(reason) or self._gate.cause or Cause.CLOSED_BY_PEER
        self.closed[cause.value] += 1

    def sever(self) -> None:
        """In a forked child: put a dead socket in the place of each that was inherited.

        Reaches nobody else's.
        """
        for _, fd, who in list(self._known.values()):
            sever(fd, who)
        self._known.clear()

    def abort(self) -> None:
        """End them all, from outside, without closing them."""
        for _, fd, who in list(self._known.values()):
            abort(fd, who)


def _closing(
    conn_ref: weakref.ref[Any], sockets: Sockets, key: int
) -> Callable[[str | None], None]:
    """What stands in for a connection's ``close_conn``, to hear the reason; without keeping the
    connection alive.
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
    """As :func:`_closing`, awaited."""

    async def close_conn(reason: str | None) -> None:
        conn = conn_ref()
        if conn is not None and not conn.closed:
            sockets.ended(key, reason)
            await type(conn).close_conn(conn, reason)

    return close_conn


def _descriptor(conn: Any) -> int | None:
    """The number of the socket below *conn*, in the ways of PyMongo 4.9 to 4.20, or None."""
    below = conn.conn
    try:
        sock = getattr(below, "sock", below)
        fd: int = sock.fileno()
    except Exception:
        return None
    return fd if fd >= 0 else None


def recording(pool: Any, sockets: Sockets, *, keep: bool = True) -> Any:
    """A class like PyMongo's *pool* that tells *sockets* of each connection it opens, and that need
    not *keep* one after its use.

    What is no class is left as it is.
    """
    if not isinstance(pool, type):
        return pool
    plain: Any = pool

    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = sockets.began()
        try:
            conn = plain.connect(self, *args, **kwargs)
        except BaseException:
            sockets.failed()
            raise
        sockets.note(conn, began, _closing)
        return conn

    def checkin(self: Any, conn: Any) -> None:
        conn.generation = -1  # of another age than the pool's: it closes such
        plain.checkin(self, conn)

    return type(
        pool.__name__,
        (pool,),
        {"connect": connect} if keep else {"connect": connect, "checkin": checkin},
    )


def recording_async(pool: Any, sockets: Sockets) -> Any:
    """As :func:`recording`, for PyMongo's pool of asyncio connections."""
    if not isinstance(pool, type):
        return pool
    plain: Any = pool

    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = sockets.began()
        try:
            conn = await plain.connect(self, *args, **kwargs)
        except BaseException:
            sockets.failed()
            raise
        sockets.note(conn, began, _closing_async)
        return conn

    return type(pool.__name__, (pool,), {"connect": connect})
