"""Find the socket that another thread of this process is blocked on (Linux only).

The kernel lists in ``/proc/self/task/<thread>/syscall`` the system call that the thread is blocked
in, and its arguments: a descriptor, or the address of a list of descriptors in our own memory. With
it, another thread can end a connect, whichever C library makes it.

Only a wait for a single socket counts. A thread that waits for several sockets runs an event loop,
and most of those sockets do not belong to its connect.
"""

from __future__ import annotations

import os
import platform
import socket
import struct
import sys
from threading import get_native_id

from unbroken.net.borrow import borrowed
from unbroken.net.fork_guard import identity

#: Numbers of system calls (asm/unistd.h), in four groups: calls with the descriptor as their first
#: argument, then poll, select and epoll calls.
_CALLS: dict[str, tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int]]] = {
    # read write readv writev connect sendto recvfrom sendmsg recvmsg; poll ppoll; select pselect6;
    # epoll_wait epoll_pwait epoll_pwait2
    "x86_64": (
        frozenset({0, 1, 19, 20, 42, 44, 45, 46, 47}),
        frozenset({7, 271}),
        frozenset({23, 270}),
        frozenset({232, 281, 441}),
    ),
    "aarch64": (
        frozenset({63, 64, 65, 66, 203, 206, 207, 211, 212}),
        frozenset({73}),
        frozenset({72}),
        frozenset({22, 441}),
    ),
}
_KNOWN = _CALLS.get(platform.machine()) if sys.platform == "linux" else None

_POLLFD = struct.Struct("=ihh")
# struct tcp_info, linux/tcp.h: tcpi_state at 0; tcpi_last_data_recv, milliseconds ago, at 52.
_TCP_INFO = 11
_HEARD = struct.Struct("=B51xI")
_ESTABLISHED, _SYN_SENT = 1, 2  # net/tcp_states.h
_MOST_SELECTED = 1024  # FD_SETSIZE


def end_wait(thread: int, families: frozenset[int]) -> bool:
    """Shut down the one TCP or unix socket that *thread* (a native thread id) is blocked on. Return
    whether it was shut down.

    *families*: the address families that may be shut down. The thread's call returns as if the
    server had closed the connection. Never raises.
    """
    try:
        before = _look(thread)
        fd = None if before is None else _descriptor(before)
        if fd is None:
            return False
        with borrowed(fd) as sock:  # the duplicate keeps pointing at this socket
            if sock.type != socket.SOCK_STREAM or sock.family not in families:
                return False
            # The wait is unchanged, so the number belonged to this thread throughout, and the
            # duplicate refers to the same socket.
            if _look(thread) != before or identity(fd) != identity(sock.fileno()):
                return False
            sock.shutdown(socket.SHUT_RDWR)
        return True
    except (OSError, ValueError, OverflowError):
        return False


def heard_for(thread: int) -> float | None:
    """Seconds since data arrived on the TCP connection that *thread* is blocked on, or since the
    connection was established. None if unknown.
    """
    found = _info(thread)
    return found[1] / 1000 if found is not None and found[0] == _ESTABLISHED else None


def is_connected(thread: int) -> bool | None:
    """Whether the other side has acknowledged the TCP connection that *thread* is blocked on. None
    if unknown.
    """
    found = _info(thread)
    return {_ESTABLISHED: True, _SYN_SENT: False}.get(found[0]) if found is not None else None


def _info(thread: int) -> tuple[int, int] | None:
    try:
        seen = _look(thread)
        fd = None if seen is None else _descriptor(seen)
        if fd is None:
            return None
        with borrowed(fd) as sock:
            found: tuple[int, int] = _HEARD.unpack(
                sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _HEARD.size)
            )
        return found
    except (OSError, ValueError, OverflowError, struct.error):
        return None


def can_tell() -> bool:
    """Whether this system exposes the system call that a thread is blocked in."""
    try:
        with open(f"/proc/self/task/{get_native_id()}/syscall", encoding="ascii") as file:
            return _KNOWN is not None and bool(file.read())
    except OSError:
        return False


def _look(thread: int) -> tuple[str, ...] | None:
    """The thread's system call, its arguments and its stack pointer. None while it is running."""
    if _KNOWN is None:
        return None
    with open(f"/proc/self/task/{thread}/syscall", encoding="ascii") as file:
        words = tuple(file.read().split())
    return words if len(words) > 2 else None


def _descriptor(words: tuple[str, ...]) -> int | None:
    assert _KNOWN is not None
    number, first, second = int(words[0]), int(words[1], 16), int(words[2], 16)
    direct, polls, selects, epolls = _KNOWN
    if number in direct:
        return first
    if number in polls:
        return _polled(first, second)
    if number in selects:
        return _selected(first, [int(word, 16) for word in words[2:5]])
    return _watched(first) if number in epolls else None


def _polled(address: int, count: int) -> int | None:
    """For poll(fds, nfds, …): the descriptor, if there is exactly one."""
    if count != 1:
        return None
    fd: int = _POLLFD.unpack(_memory(address, _POLLFD.size))[0]
    return fd if fd >= 0 else None


def _selected(count: int, sets: list[int]) -> int | None:
    """For select(nfds, readfds, writefds, exceptfds, …): the descriptor, if the sets have
    only one.
    """
    if count > _MOST_SELECTED:
        return None
    found = 0
    for address in sets:
        if address:
            found |= int.from_bytes(_memory(address, (count + 7) // 8), "little") & (
                (1 << count) - 1
            )
    return found.bit_length() - 1 if found.bit_count() == 1 else None


def _watched(epoll: int) -> int | None:
    """For an epoll set: the descriptor in it, if there is exactly one."""
    with open(f"/proc/self/fdinfo/{epoll}", encoding="ascii") as file:
        found = [int(line.split()[1]) for line in file if line.startswith("tfd:")]
    return found[0] if len(found) == 1 else None


def _memory(address: int, size: int) -> bytes:
    """Read our own memory through the kernel. Memory that was freed meanwhile gives an OSError
    instead of a crash.
    """
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(memory, size, address)
    finally:
        os.close(memory)
    if len(data) < size:
        raise ValueError("that memory is not there any more")
    return data
