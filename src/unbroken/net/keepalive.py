"""Set TCP keepalive and user timeout by descriptor, with any driver. They detect a dead peer that
sent no FIN.

By default, systems send the first probe after 7200 s (tcp(7)), and not every driver enables
keepalive. The kernel resends unacknowledged data for about 15 minutes (net.ipv4.tcp_retries2), and
keepalive does not run meanwhile. The user timeout shortens that.
"""

from __future__ import annotations

import _socket
import math
import os
import socket
import sys

from unbroken.net.borrow import borrowed

_MAX_SECONDS = 32767  # MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, linux/tcp.h
_MAX_COUNT = 127  # MAX_TCP_KEEPCNT
# macOS names it TCP_KEEPALIVE
_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_INTERVAL: int | None = getattr(socket, "TCP_KEEPINTVL", None)
_COUNT: int | None = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux only, in milliseconds
#: The counterpart on macOS, in seconds: TCP_RXT_CONNDROPTIME, netinet/tcp.h. It limits
#: retransmissions, but not a zero window.
_DROP_TIME: int | None = 0x80 if sys.platform == "darwin" else None
_TCP = (socket.IPPROTO_TCP, getattr(socket, "IPPROTO_MPTCP", 262), 0)


def apply(
    fd: int,
    idle: float | None,
    interval: float | None = None,
    count: int = 3,
    user_timeout: float | None = None,
) -> bool:
    """Set keepalive on the connection behind *fd*. Return whether everything is set.

    *idle*: seconds of silence before the first probe (None: leave keepalive as it is). *interval*:
    seconds between probes (None: idle / count). *count*: unanswered probes that end the connection.
    *user_timeout*: seconds that sent data may stay unacknowledged (None: unchanged; 0: the system's
    default). Keepalive times are rounded up to whole seconds: at least 1, at most the kernel's
    maximum.

    Returns False if *fd* is closed or not TCP, or if the system does not support keepalive. A
    system that lacks only the user timeout (Windows, the BSDs) still returns True. Never raises.
    """
    try:
        with borrowed(fd) as sock:
            if not _is_tcp(sock) or (idle is not None and not _probe(sock, idle, interval, count)):
                return False
            if user_timeout is not None:
                _bound(sock, user_timeout)
    except (OSError, ValueError, OverflowError, ZeroDivisionError):
        return False
    return True


def bound(fd: int, keepalive: float, probe_every: float, send_timeout: float) -> None:
    """Apply the options that every connection of a pool gets: limits for a silent network, and
    close-on-exec.

    All times are in seconds. An infinite *keepalive* or *send_timeout* leaves that option as the
    driver set it. Never raises.
    """
    close_on_exec(fd)
    idle = None if keepalive == math.inf else keepalive
    timeout = None if send_timeout == math.inf else send_timeout
    if idle is not None or timeout is not None:
        apply(fd, idle, probe_every, user_timeout=timeout)


def close_on_exec(fd: int) -> None:
    """Close *fd* in programs that this process starts. Some client libraries leave it open there.
    Never raises.
    """
    try:
        os.set_inheritable(fd, False)
    except OSError:
        pass  # closed


def _is_tcp(sock: _socket.socket) -> bool:
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and sock.type == socket.SOCK_STREAM
        and sock.proto in _TCP
    )


def _probe(sock: _socket.socket, idle: float, interval: float | None, count: int) -> bool:
    seconds = _whole(idle)
    between = _whole(idle / count if interval is None else interval)
    if _IDLE is None:
        return False
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _IDLE, seconds)
    if _INTERVAL is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _INTERVAL, between)
    if _COUNT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _COUNT, max(1, min(count, _MAX_COUNT)))
    return True


def _bound(sock: _socket.socket, user_timeout: float) -> None:
    if _USER_TIMEOUT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, math.ceil(min(user_timeout, 2e6) * 1000))
    elif _DROP_TIME is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _DROP_TIME, _whole(user_timeout) if user_timeout else 0)


def _whole(seconds: float) -> int:
    return max(1, min(math.ceil(seconds), _MAX_SECONDS))
