"""TCP keepalive and user timeout by descriptor, whatever the driver: they find what no FIN announces.

Systems' own default is a first probe after 7200 s (tcp(7)), and not every driver switches keepalive on.
"""

from __future__ import annotations

import math
import socket

from unbroken.net.borrow import borrowed

_MAX_SECONDS = 32767  # MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, linux/tcp.h
_MAX_COUNT = 127  # MAX_TCP_KEEPCNT
_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # macOS names it TCP_KEEPALIVE
_INTERVAL: int | None = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT: int | None = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only
_TCP = (socket.IPPROTO_TCP, getattr(socket, "IPPROTO_MPTCP", 262), 0)


def apply(fd: int, idle: float, interval: float | None = None, count: int = 3, user_timeout: float | None = None) -> bool:
    """Set keepalive on the connection behind *fd*, and say whether it is set now.

    *idle*: seconds of silence before the first probe; *interval*: seconds between probes (None: idle / count);
    *count*: unanswered probes that end it; *user_timeout*: seconds that sent data may stay unacknowledged (None: as it
    is). Rounded up to whole seconds, at least 1, at most what the kernel takes. False when *fd* is closed, not TCP, or
    the system cannot do it; where only the user timeout is unknown (macOS), the rest still counts. Never raises.
    """
    try:
        seconds = _whole(idle)
        between = _whole(idle / count if interval is None else interval)
        with borrowed(fd) as sock:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM or sock.proto not in _TCP:
                return False
            if _IDLE is None:
                return False
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, _IDLE, seconds)
            if _INTERVAL is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _INTERVAL, between)
            if _COUNT is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _COUNT, max(1, min(count, _MAX_COUNT)))
            if _USER_TIMEOUT is not None and user_timeout is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, max(1, math.ceil(min(user_timeout, 2e6) * 1000)))
    except (OSError, ValueError, OverflowError, ZeroDivisionError):
        return False
    return True


def _whole(seconds: float) -> int:
    return max(1, min(math.ceil(seconds), _MAX_SECONDS))
