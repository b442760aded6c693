"""Read a server's first bytes on a separate socket, without a login."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import closing

from unbroken.abc import Address, is_path

_PORTS = {"postgresql": 5432}
_SSL_REQUEST = struct.pack("!II", 8, 80877103)  # PostgreSQL manual, "SSLRequest"
#: Seconds to wait for the answer to each query.
_WORD = 0.25
_ENOUGH = 128


def is_silent(where: Address, backend: str, limit: float) -> bool:
    """Whether the server at *where* sends nothing within *limit* seconds. Blocks.

    MySQL and MariaDB greet every new connection; PostgreSQL answers a request for TLS. A server
    that is busy, full or starting sends something. Returns False if the server cannot be asked: a
    unix socket, or a host name that does not resolve.
    """
    host, port = where
    if is_path(host):
        return False
    try:
        usual = _PORTS.get(backend, 3306)
        with closing(socket.create_connection((host, port or usual), limit)) as sock:
            if backend == "postgresql":
                sock.sendall(_SSL_REQUEST)
            return not sock.recv(1)
    except socket.gaierror:
        return False
    except OSError:
        return True


def first_words(where: Address, backend: str, questions: Sequence[bytes]) -> bytes:
    """The first bytes from the port at *where*. Empty if the port sends nothing, closes the
    connection or cannot be reached.

    *questions* are sent one after the other, each if the one before got no answer. Blocks for less
    than a second plus the time of the name lookup.
    """
    host, port = where
    try:
        usual = _PORTS.get(backend, 3306)
        with closing(socket.create_connection((host, port or usual), 2 * _WORD)) as sock:
            for word in questions:
                sock.sendall(word)
                sock.settimeout(_WORD)
                try:
                    return sock.recv(_ENOUGH)
                except TimeoutError:
                    continue
    except (OSError, ValueError):  # ValueError: not a valid host name
        pass
    return b""
