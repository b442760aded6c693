"""End a connection below its driver, in a forked child or from another thread. Detect forks.

A child inherits its parent's sockets. If the child closes such a connection or garbage-collects it,
mysqlclient, mysql-connector and mariadb send a goodbye packet that ends the *parent's* session.
``dup2`` of a dead socket over the descriptor makes the child's copy harmless. The driver can then
do anything with it.
"""

from __future__ import annotations

import _socket  # The C module itself: gevent replaces the names in socket.
import mmap
import os
import stat
import sys
from typing import Protocol

from unbroken.net.borrow import borrowed

_MADV_WIPEONFORK = 18  # linux/mman.h, since Linux 4.14; Python names it from 3.13 on


def identity(fd: int) -> tuple[int, int] | None:
    """Device and inode of the socket behind *fd*. They distinguish it from any other socket that
    may get the same number. None if *fd* is not an open socket.
    """
    try:
        found = os.fstat(fd)
    except (OSError, OverflowError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


_identity = identity  # the functions below have a parameter of that name


def sever(fd: int, identity: tuple[int, int]) -> bool:
    """In a forked child, replace the inherited *fd* with a dead socket. Return whether it was
    replaced.

    It is replaced only if *fd* is still the socket with that :func:`identity`. A child that became
    a daemon may have closed it, and its number may belong to another file. Afterwards, reads give
    EOF and writes give EPIPE. Not a byte reaches the parent's session.
    """
    if _identity(fd) != identity:
        return False
    try:
        dead, other = _socket.socketpair()
    except OSError:
        return False
    try:
        other.close()
        os.dup2(dead.fileno(), fd, inheritable=os.get_inheritable(fd))
    except OSError:
        return False
    finally:
        dead.close()
    return True


def abort(fd: int, identity: tuple[int, int]) -> bool:
    """Shut down the connection behind *fd* from any thread, without closing it. Return whether *fd*
    was still that socket.

    ``shutdown`` wakes a thread that is blocked on the socket with an end of file, under TLS as
    well. The owner closes the descriptor, as always.
    """
    try:
        with borrowed(fd) as sock:  # the duplicate stays valid if fd is closed
            return _shut_down(sock, identity)
    except OSError:
        # Either it is closed, or no descriptor is left for the duplicate. In that second case, this
        # call may matter most.
        return _abort_in_place(fd, identity)


def _abort_in_place(fd: int, identity: tuple[int, int]) -> bool:
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        return _shut_down(sock, identity)
    finally:
        sock.detach()


def _shut_down(sock: _socket.socket, identity: tuple[int, int]) -> bool:
    if _identity(sock.fileno()) != identity:
        return False
    try:
        sock.shutdown(_socket.SHUT_RDWR)
    except OSError:
        pass  # it is not connected any more
    return True


class ForkMark(Protocol):
    """``mark[0]`` is 1 in the process that made it and 0 in every child. A read takes about
    13 ns.
    """

    def __getitem__(self, index: int, /) -> int: ...


class _PidMark:
    """The same, based on the process id, for kernels that cannot wipe pages (about 150 ns)."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _index: int, /) -> int:
        return 1 if os.getpid() == self._pid else 0


def fork_mark() -> ForkMark:
    """Return a mark of this process: a page of memory that the kernel zeroes in a child.

    It also detects a ``fork`` that Python does not see (uWSGI, a C library). A child makes its own
    mark.
    """
    page = _wiped_page()
    # A memoryview, because a free-threaded Python locks the page object itself at each read. A
    # child whose fork Python does not see may inherit that lock while it is held.
    return _PidMark() if page is None else memoryview(page)


def _wiped_page() -> mmap.mmap | None:
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_MADV_WIPEONFORK)
    except OSError:
        page.close()
        return None
    try:
        # Emulators that ignore madvise accept an invalid argument too, so their success proves
        # nothing.
        page.madvise(-1)
    except OSError:
        page[0] = 1
        return page
    page.close()
    return None
