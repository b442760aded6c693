"""Has anything been sent on this connection since? Asked of the kernel (Linux: TCP_INFO), below the
driver and TLS.

The count grows with every byte that was written to the socket, sent already or still queued, and
with retransmissions (these only make it err on the safe side). Keepalive probes and bare ACKs do
not change it. So two equal counts prove that nothing at all was sent in between: no BEGIN, no
statement, nothing to roll back.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from unbroken.net.borrow import borrowed

# struct tcp_info, linux/tcp.h: tcpi_notsent_bytes (u32) at 144, tcpi_bytes_sent (u64, since Linux
# 4.19) at 200.
_TCP_INFO = 11
_LENGTH = 208
_OFFSETS = struct.Struct("=144xI52xQ")
# tcpi_unacked at 24, tcpi_last_ack_recv (milliseconds ago) at 56, tcpi_notsent_bytes (since Linux
# 4.6) at 144.
# tcpi_last_data_sent at 44, tcpi_last_data_recv at 52, both in milliseconds
_LAST_DATA = struct.Struct("=44xI4xI")
_STANDING = struct.Struct("=24xI28xI84xI")


class _Call(ctypes.Structure):
    """One getsockopt call's memory: the length, in and out, then what the kernel fills in."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("_align", ctypes.c_uint32),
        ("_head", ctypes.c_char * 144),
        ("notsent", ctypes.c_uint32),
        ("_middle", ctypes.c_char * 52),
        ("sent", ctypes.c_uint64),
    )


def _system_getsockopt() -> Any:
    try:
        return ctypes.PyDLL(
            None
        ).getsockopt  # PyDLL: a call this short is not worth giving the GIL away
    except (AttributeError, OSError, TypeError):
        return None


_getsockopt: Any = _system_getsockopt() if sys.platform == "linux" else None


def counter(fd: int | None) -> Callable[[], int | None]:
    """A function that gives the count of data sent on *fd* so far (about 0.85 µs a call), or None
    where none is kept.

    Made once per connection; only one thread may be inside it at a time. It never owns *fd*. It
    gives None for unix sockets, MPTCP, closed descriptors, systems other than Linux ≥ 4.19, and
    where the kernel does not really count (0 on a connection that has logged in).
    """
    if fd is None or fd < 0 or sys.platform != "linux" or not _is_tcp(fd):
        return _unknown
    return _by_dup(fd) if _getsockopt is None else _by_ctypes(fd)


def segments_sent(fd: int | None) -> int | None:
    """The count once, for callers who do not look again and again: see :func:`counter`."""
    return counter(fd)()


def unread_for(fd: int) -> float | None:
    """Whether the other side takes no data though there is some to send: seconds since it last
    acknowledged anything.

    None when nothing waits to be sent, or nothing is known. A server that is there answers the
    kernel's window probes all the while, so the number stays small: it only does not read, being
    busy with what it has.
    """
    try:
        with borrowed(fd) as sock:
            unacked, last_ack, unsent = _STANDING.unpack(
                sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _STANDING.size)
            )
    except (OSError, struct.error):
        return None
    return last_ack / 1000 if unsent and not unacked else None


def quiet_for(fd: int) -> float | None:
    """Seconds since data was last sent or received on *fd*; None where that is not known.

    A hang-up is no data.
    """
    found = last_data(fd)
    return None if found is None else min(found)


def last_data(fd: int) -> tuple[float, float] | None:
    """Seconds since data was last sent on *fd*, and since some was received; None where that is not
    known.
    """
    if not _is_tcp(fd):
        return None
    try:
        with borrowed(fd) as sock:
            sent, received = _LAST_DATA.unpack(
                sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA.size)
            )
    except (OSError, struct.error):
        return None
    return sent / 1000, received / 1000


def has_unsent(fd: int) -> bool:
    """Whether data waits to be sent on *fd* because the other side takes none: to write more may
    take for ever.
    """
    try:
        with borrowed(fd) as sock:
            _, _, unsent = _STANDING.unpack(
                sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _STANDING.size)
            )
    except (OSError, struct.error):
        return False
    return bool(unsent)


def _unknown() -> None:
    return None


def _is_tcp(fd: int) -> bool:
    try:
        with borrowed(fd) as sock:
            return (
                sock.family in (socket.AF_INET, socket.AF_INET6)
                and sock.proto == socket.IPPROTO_TCP
            )
    except OSError:
        return False


def _by_ctypes(fd: int) -> Callable[[], int | None]:
    getsockopt = _getsockopt
    call = _Call()
    address = ctypes.addressof(call)
    length, info = ctypes.c_void_p(address), ctypes.c_void_p(address + 8)

    def count() -> int | None:
        call.length = _LENGTH
        if getsockopt(fd, 6, _TCP_INFO, info, length) or call.length < _LENGTH:
            return None
        sent: int = call.sent
        return sent + int(call.notsent) if sent else None

    return count


def _by_dup(fd: int) -> Callable[[], int | None]:
    def count() -> int | None:
        try:
            with borrowed(fd) as sock:
                notsent, sent = _OFFSETS.unpack(
                    sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LENGTH)
                )
        except (OSError, struct.error):
            return None
        return int(sent) + int(notsent) if sent else None

    return count
