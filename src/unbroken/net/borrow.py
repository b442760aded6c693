"""Use a descriptor that other code owns as a socket for a moment."""

from __future__ import annotations

# The C type itself: gevent replaces socket.socket, and this code must never wait for gevent's hub.
import _socket
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def borrowed(fd: int) -> Iterator[_socket.socket]:
    """Yield the socket behind *fd* through a duplicate. The duplicate is closed afterwards; the
    owner's descriptor stays open.

    Options, ``MSG_PEEK`` and ``shutdown`` apply to the same socket. Raises OSError if *fd* is not
    an open socket, or if no descriptor is left for the duplicate.
    """
    if os.name == "nt":  # os.dup cannot duplicate a handle there
        sock = _socket.socket(fileno=fd)
        try:
            yield sock
        finally:
            sock.detach()
        return
    copy = os.dup(fd)
    try:
        sock = _socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
    try:
        yield sock
    finally:
        sock.close()
