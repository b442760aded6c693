"""A socket whose packets the kernel discards: nothing is acknowledged, as after a cut cable. Linux
only.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys

from unbroken_drill.messages import PROXY_KERNEL
from unbroken_drill.proxy.errors import ProxyError

_ATTACH, _DETACH = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER: asm-generic/socket.h
#: One instruction of a socket filter (linux/filter.h): return 0, which lets no byte of any packet
#: in.
_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)


def lose(sock: socket.socket) -> None:
    """Let the kernel discard the packets for *sock* from now on, before TCP sees them. For a
    listening socket these are connects.

    Raises ProxyError if the system does not support it.
    """
    if sys.platform != "linux" or sock.family == socket.AF_UNIX:
        raise ProxyError(
            PROXY_KERNEL("blackhole('lose') needs Linux and TCP; use blackhole('drop')")
        )
    program = ctypes.create_string_buffer(_NOTHING)
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _ATTACH, struct.pack("@HP", 1, ctypes.addressof(program))
        )
    except OSError as error:
        raise ProxyError(
            PROXY_KERNEL(f"this kernel rejects a socket filter: {error}; use blackhole('drop')")
        ) from None


def find(sock: socket.socket) -> None:
    """Undo :func:`lose`. Data that the other side sends again arrives."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _DETACH, 0)
    except OSError:
        pass  # there was none, or the socket has ended
