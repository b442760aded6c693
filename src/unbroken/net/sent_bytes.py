"""Detect whether data was sent on a connection, by asking the kernel (Linux: TCP_INFO), below the
driver and TLS.

The count grows with every byte that was written to the socket, sent or still queued. It also grows
with retransmissions, which only makes it err on the safe side. Keepalive probes and bare ACKs do
not change it. So two equal counts prove that nothing was sent in between: no BEGIN, no statement,
nothing to roll back.
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
    """The memory of one getsockopt call: the length, in and out, then the kernel's data."""

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
        return ctypes.PyDLL(None).getsockopt  # PyDLL: the call is too short to release the GIL
    except (AttributeError, OSError, TypeError):
        return None


_getsockopt: Any = _system_getsockopt() if sys.platform == "linux" else None


def counter(fd: int | None) -> Callable[[], int | None]:
    """Return a function that gives the count of data sent on *fd* so far (about 0.85 µs per call),
    or None if the kernel keeps no count.

    It is made once per connection; only one thread may call it at a time. It never owns *fd*. It
    gives None for unix sockets, MPTCP, closed descriptors and systems other than Linux ≥ 4.19. It
    also gives None if the kernel does not really count (0 on a connection that has logged in).
    """
    if fd is None or fd < 0 or sys.platform != "linux" or not _is_tcp(fd):
        return _unknown
    return _by_dup(fd) if _getsockopt is None else _by_ctypes(fd)


def segments_sent(fd: int | None) -> int | None:
    """The count, once, for callers that do not check repeatedly: see :func:`counter`."""
    return counter(fd)()


def unread_for(fd: int) -> float | None:
    """Seconds since the other side last acknowledged anything, if it does not accept the data that
    waits to be sent.

    None if no data waits, or if nothing is known. A host that is alive keeps answering the kernel's
    window probes, so the number stays small: the server is busy and does not read.
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
    """Seconds since data was last sent or received on *fd*. None if unknown.

    A hang-up does not count as data.
    """
    found = last_data(fd)
    return None if found is None else min(found)


def last_data(fd: int) -> tuple[float, float] | None:
    """Seconds since data was last sent on *fd*, and since data was last received. None if
    unknown.
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
    """Whether data waits to be sent on *fd* because the other side does not accept it. Another
    write could block for ever.
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
