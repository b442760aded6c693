"""TCP ports for servers. A port stays reserved while its server is stopped: other processes that
choose a port in this way leave it alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import struct
import threading
import weakref

from unbroken_drill.messages import FOLDER
from unbroken_drill.servers import folders
from unbroken_drill.servers.errors import ServerError, ServerUnavailable

#: Below the ports that the system gives to outgoing connections (Linux from 32768, macOS from
#: 49152). A client that tries such a port repeatedly while the server is down can get that port
#: itself, and connect to itself.
_PORTS = (15000, 32000)
_FLOCK = struct.Struct("hhqqi0q")  #: ``struct flock`` of Linux: type, whence, start, length, pid


class _Reservations:
    """The ports of this process. Each is the lock of one byte of a file in the cache.

    The kernel releases the locks of a process that has ended. A lock belongs to the open file, so a
    forked child opens the file anew, and this process notes its own ports. Where the file cannot be
    locked, no port counts as reserved by others.
    """

    def __init__(self) -> None:
        self._own: set[int] = set()
        self._fd, self._owner = -1, 0
        self._lock = threading.RLock()  # a finalizer may run inside it

    def take(self, port: int) -> bool:
        """Reserve *port*. Return False if it is reserved already."""
        if self._owner != os.getpid():
            self._begin()
        with self._lock:
            if port in self._own or not self._call(fcntl.F_WRLCK, port):
                return False
            self._own.add(port)
            return True

    def give_back(self, port: int) -> None:
        """End the reservation of *port*, if it is this process's."""
        if self._owner != os.getpid():
            return
        with self._lock:
            if port in self._own:
                self._own.discard(port)
                self._call(fcntl.F_UNLCK, port)

    def _begin(self) -> None:
        self._own, self._fd, self._lock = set(), -1, threading.RLock()
        self._owner = os.getpid()
        with contextlib.suppress(OSError, ServerUnavailable):
            path = folders.cache_folder() / "ports.lock"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _call(self, kind: int, port: int) -> bool:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if self._fd < 0 or command is None:
            return True
        try:
            fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, os.SEEK_SET, port, 1, 0))
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True


_reservations = _Reservations()


def free_port(host: str) -> int:
    """Return a TCP port of *host* on which nobody listens now, outside the range of outgoing
    connections. No other process gets this port from this function while this one lives.

    Raises ServerError if there is none.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(range(*_PORTS), 200):
        if not _reservations.take(port):
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
        _reservations.give_back(port)
    raise ServerError(
        FOLDER(f"no free port on {host}: tried 200 ports from {_PORTS[0]} to {_PORTS[1]}")
    )


def port_for(owner: object, host: str) -> int:
    """Return the result of :func:`free_port`, reserved for as long as *owner* lives."""
    port = free_port(host)
    weakref.finalize(owner, _reservations.give_back, port).atexit = False
    return port
