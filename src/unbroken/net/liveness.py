"""Check without a round trip whether an idle connection is alive: the kernel knows of every FIN and
RST.

An idle socket with nothing to read is alive. ``POLLRDHUP`` means that the other side hung up, even
if data is still unread (PostgreSQL and MySQL send a goodbye packet before the FIN). A socket that
is readable without it is *undecided*: a NOTIFY or a TLS session ticket looks like that, and a ping
decides. A silent drop (NAT, power loss) is invisible here: see keepalive.py.

Linux and FreeBSD 14 have POLLRDHUP; macOS and older BSDs have kqueue's EV_EOF. On other systems a
MSG_PEEK sees a FIN only after all data before it was read, and gives undecided until then.
:data:`SUPPORTED` is False there.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, TypeAlias

from unbroken.net.borrow import borrowed
from unbroken.net.patched import has, original
from unbroken.net.sent_bytes import counter, segments_sent

__all__ = [
    "SUPPORTED",
    "Events",
    "Liveness",
    "counter",
    "judge",
    "look",
    "poller",
    "segments_sent",
    "sweep",
]

Events: TypeAlias = list[tuple[int, int]]

# The values of poll(2), for a Python that lacks the names. The other implementations report in the
# same bits.
_IN: int = getattr(select, "POLLIN", 0x1)
_ERR: int = getattr(select, "POLLERR", 0x8)
_HUP: int = getattr(select, "POLLHUP", 0x10)
_NVAL: int = getattr(select, "POLLNVAL", 0x20)
_RDHUP: int = getattr(select, "POLLRDHUP", 0)
_GONE = _RDHUP | _HUP | _ERR | _NVAL


class Liveness(Enum):
    """The kernel's view of an idle socket."""

    ALIVE = "alive"  #: no FIN, no RST, nothing to read
    DEAD = "dead"  #: the other side hung up, or the descriptor is closed
    UNDECIDED = "undecided"  #: something to read: ask the server


def judge(events: Events) -> Liveness:
    """Classify the *events* of one idle socket, in the form that ``poll`` returns."""
    if not events:
        return Liveness.ALIVE
    for _, bits in events:
        if bits & _GONE:
            return Liveness.DEAD
    return Liveness.UNDECIDED


def poller(fd: int | None) -> Callable[[int], Events]:
    """Return a function that checks *fd*. Call it with 0: an empty list means that the connection
    is alive; pass any other result to :func:`judge`.

    It is made once per connection. On Linux it is the bound method of a poll object (about 0.3 µs
    per call, no Python code). Only one thread may call it at a time. With *fd* None the function
    always returns [].
    """
    if fd is None:
        return _nothing
    if fd < 0:  # poll(2) ignores negative numbers; a driver shows one for a closed socket
        return _closed
    if not _RDHUP:
        return lambda _timeout: _events((fd,))
    poll = original("select", "poll")()
    poll.register(fd, _IN | _RDHUP)
    bound: Callable[[int], Events] = poll.poll
    return bound


def _nothing(_timeout: int) -> Events:
    return []


def _closed(_timeout: int) -> Events:
    return [(-1, _NVAL)]


def look(fd: int) -> Liveness:
    """The kernel's view of *fd* now."""
    return judge(_events((fd,)))


def sweep(fds: Iterable[int]) -> dict[int, Liveness]:
    """Check many descriptors in one system call. Return only the descriptors that are not alive."""
    return {fd: judge([(fd, bits)]) for fd, bits in _events(fds)}


def _poll_events(fds: Iterable[int]) -> Events:
    poll = original("select", "poll")()
    register = poll.register
    closed: Events = []
    for fd in fds:
        if fd < 0:
            closed.append((fd, _NVAL))
        else:
            register(fd, _IN | _RDHUP)
    found: Events = poll.poll(0)
    return found + closed if closed else found


def _kqueue_events(fds: Iterable[int], *, api: Any = None) -> Events:
    """The same with kqueue. *api* provides the names of the select module; tests pass a
    substitute.
    """
    kqueue = original("select", "kqueue") if api is None else api.kqueue
    api = _Select() if api is None else api
    wanted = set(fds)
    found = {fd: _NVAL for fd in wanted if fd < 0}
    if len(found) == len(wanted):
        return list(found.items())
    queue = kqueue()
    try:
        if queue.fileno() in wanted:
            found[queue.fileno()] = _NVAL  # a number that was just free is no connection
        changes = [
            api.kevent(fd, api.KQ_FILTER_READ, api.KQ_EV_ADD | api.KQ_EV_ONESHOT)
            for fd in wanted
            if fd not in found
        ]
        # Twice: if a change fails, the first call reports only the failures (XNU, kevent_internal).
        for event in queue.control(changes, len(changes), 0) + queue.control(None, len(changes), 0):
            found[event.ident] = found.get(event.ident, 0) | _from_kevent(event, api)
    finally:
        queue.close()
    return list(found.items())


class _Select:
    """The select module, including the names that gevent removed."""

    def __getattr__(self, name: str) -> Any:
        return original("select", name)


def _from_kevent(event: Any, api: Any) -> int:
    if event.flags & api.KQ_EV_ERROR:
        return _NVAL
    return _HUP if event.flags & api.KQ_EV_EOF else _IN


def _peek_events(fds: Iterable[int]) -> Events:
    """The same with MSG_PEEK, for systems that have neither. It does not see a FIN behind unread
    data.
    """
    found = ((fd, _peek_bits(fd)) for fd in fds)
    return [(fd, bits) for fd, bits in found if bits]


def _peek_bits(fd: int) -> int:
    try:
        if fd < 0 or not original("select", "select")([fd], [], [], 0)[0]:
            return _NVAL if fd < 0 else 0
        with borrowed(fd) as sock:
            return (
                _IN if sock.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)) else _HUP
            )
    except BlockingIOError:
        return 0
    except (OSError, ValueError):  # closed, reset, or a number too large for select
        return _ERR


_KQUEUE = not _RDHUP and has("select", "kqueue")
_events: Callable[[Iterable[int]], Events] = (
    _poll_events if _RDHUP else _kqueue_events if _KQUEUE else _peek_events
)

#: Whether this module detects every FIN and RST without a round trip.
SUPPORTED: bool = bool(_RDHUP) or _KQUEUE
