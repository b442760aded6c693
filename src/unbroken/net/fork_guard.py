"""Ending a connection from below its driver: in a forked child, or from another thread. And: is
this a fork?

A child inherits its parent's sockets. Closing such a connection there, or letting it be
garbage-collected, sends a goodbye that ends the *parent's* session (mysqlclient, mysql-connector,
mariadb). ``dup2`` of a dead socket over the descriptor makes the child's copy harmless, whatever
the driver does with it later.
"""

from __future__ import annotations

import _socket  # the C module itself: gevent replaces the names in socket
import mmap
import os
import stat
import sys
from typing import Protocol

from unbroken.net.borrow import borrowed

_MADV_WIPEONFORK = 18  # linux/mman.h, since Linux 4.14; Python names it from 3.13 on


def identity(fd: int) -> tuple[int, int] | None:
    """Device and inode of the socket behind *fd*: what tells it from any other that may get its
    number. Else None.
    """
    try:
        found = os.fstat(fd)
    except (OSError, OverflowError):
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None


_identity = identity  # the functions below have a parameter of that name


def sever(fd: int, identity: tuple[int, int]) -> bool:
    """In a forked child: put a dead socket in the place of the inherited *fd*; say whether that was
    done.

    Only if *fd* is still the socket with that :func:`identity`: a child that became a daemon may
    have closed it and given its number to something else. Reading gives EOF afterwards, writing
    EPIPE; not a byte reaches the parent's session.
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
    """End the connection behind *fd*, from any thread, without closing it; say whether it was still
    that very socket.

    ``shutdown`` wakes whoever is blocked on it with an end of file, under TLS as well. The owner
    closes it, as always.
    """
    try:
        with borrowed(
            fd
        ) as sock:  # the duplicate cannot change under us, whatever happens to fd meanwhile
            return _shut_down(sock, identity)
    except OSError:
        # closed; or no descriptor is left for the duplicate, which is just when this may matter
        # most
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
        pass  # not connected any more: it has ended already
    return True


class ForkMark(Protocol):
    """``mark[0]`` is 1 in the process that made it and 0 in every child, at about 13 ns."""

    def __getitem__(self, index: int, /) -> int: ...


class _PidMark:
    """The same by the process id, where the kernel does not wipe pages (about 150 ns)."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _index: int, /) -> int:
        return 1 if os.getpid() == self._pid else 0


def fork_mark() -> ForkMark:
    """A mark of this very process: a page of memory that the kernel empties in a child, however it
    was forked.

    Also after a ``fork`` that Python does not see (uWSGI, a C library). A child makes its own.
    """
    page = _wiped_page()
    # A view: a free-threaded Python locks the page itself at each look, and a child that Python
    # does not see being made may inherit that lock held.
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
        # emulators that ignore madvise accept nonsense too: then its promise is worth nothing
        page.madvise(-1)
    except OSError:
        page[0] = 1
        return page
    page.close()
    return None
