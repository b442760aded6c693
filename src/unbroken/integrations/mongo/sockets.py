"""The sockets of one client in one process: known by number and identity, so that a forked child can cut off what it inherits.

A connection that a thread was reading from at the fork (the monitors' always are) is reachable in the child by nobody: the thread
is gone, its frame is not. Its descriptor would stay open there for good, and sit in CLOSE_WAIT once the server is gone.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

from unbroken.net.severance import abort, identity, sever


class Sockets:
    """Every connection that was opened, until it is closed or collected. Adding and removing are atomic: no lock."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], int, tuple[int, int]]] = {}

    def note(self, conn: Any) -> None:
        """Remember *conn*, a connection of PyMongo's that has just been opened."""
        fd = _descriptor(conn)
        who = None if fd is None else identity(fd)
        if fd is None or who is None:
            return
        key = id(conn)
        self._known[key] = (weakref.ref(conn, functools.partial(self._forget, key)), fd, who)

    def _forget(self, key: int, _ref: Any) -> None:
        self._known.pop(key, None)

    def sever(self) -> None:
        """In a forked child: put a dead socket in the place of each that was inherited. Reaches nobody else's."""
        for _, fd, who in list(self._known.values()):
            sever(fd, who)
        self._known.clear()

    def abort(self) -> None:
        """End them all, from outside, without closing them."""
        for _, fd, who in list(self._known.values()):
            abort(fd, who)

    def count(self) -> int:
        """How many there are, about: those that are closed and not yet collected count too."""
        return len(self._known)


def _descriptor(conn: Any) -> int | None:
    """The number of the socket below *conn*, in the ways of PyMongo 4.9 to 4.20, or None."""
    below = conn.conn
    try:
        sock = getattr(below, "sock", below)
        fd: int = sock.fileno()
    except Exception:
        return None
    return fd if fd >= 0 else None


def recording(pool: type[Any], sockets: Sockets, *, awaited: bool) -> type[Any]:
    """A class like PyMongo's *pool* that tells *sockets* of each connection it opens."""

    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        conn = pool.connect(self, *args, **kwargs)
        sockets.note(conn)
        return conn

    async def aconnect(self: Any, *args: Any, **kwargs: Any) -> Any:
        conn = await pool.connect(self, *args, **kwargs)
        sockets.note(conn)
        return conn

    return type(pool.__name__, (pool,), {"connect": aconnect if awaited else connect})
