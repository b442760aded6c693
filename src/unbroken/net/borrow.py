"""A descriptor that somebody else owns, used for a moment as a socket."""

from __future__ import annotations

# the C type itself: gevent replaces socket.socket, and nothing here may wait for its hub
import _socket
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def borrowed(fd: int) -> Iterator[_socket.socket]:
    """The socket behind *fd*, through a duplicate that is closed afterwards: the owner's descriptor
    stays open.

    Options, ``MSG_PEEK`` and ``shutdown`` reach the very same socket. Raises OSError when *fd* is
    not an open socket, or when no descriptor is left for the duplicate.
    """
    if os.name == "nt":  # a handle cannot be duplicated by os.dup there
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
