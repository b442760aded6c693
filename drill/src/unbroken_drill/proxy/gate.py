"""The listening socket of a proxy: it accepts, refuses, or lets connects hang."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
from typing import Any

from unbroken_drill.messages import PROXY_CANNOT_LISTEN
from unbroken_drill.proxy.addresses import Address
from unbroken_drill.proxy.errors import ProxyError

BACKLOG = 512
_AT_ONCE = 0.02  #: seconds, many times as long as the kernel needs to connect to itself
_FILLERS = 8  #: a queue of length 0 takes one on Linux; other systems round up


class Gate:
    """A listening socket on *wanted* (port 0: a free one)."""

    def __init__(self, wanted: Address) -> None:
        found = wanted.resolve()[0]
        self._family: int = found[0]
        self._name: Any = found[1]
        self._fillers: list[socket.socket] = []
        self._filler_names: set[Any] = set()
        self.is_open = True
        try:
            self.sock = self._bound()
            self.sock.listen(BACKLOG)
        except OSError as error:
            raise ProxyError(
                PROXY_CANNOT_LISTEN(
                    f"cannot listen on {wanted}: {error.strerror or error}; choose another address,"
                    " or port 0 for a free one"
                )
            ) from None
        self.address = wanted
        if wanted.path is None:
            self._name = self.sock.getsockname()
            self.address = Address(wanted.host, self._name[1])

    def _bound(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                self._sweep()
            sock.bind(self._name)
        except OSError:
            sock.close()
            raise
        return sock

    def _sweep(self) -> None:
        """Remove a socket file on which nobody listens any more. Leave all other files to bind's
        error.
        """
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(self._name).st_mode):
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor:
                try:
                    visitor.connect(self._name)
                except ConnectionRefusedError:
                    os.unlink(self._name)

    def accept(self) -> tuple[socket.socket, str] | None:
        """Return the next client and its name for people; None if there is none now."""
        while True:
            try:
                sock, name = self.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return None
            if name and name in self._filler_names:  # a filler from the time when connects hung
                self._filler_names.discard(name)
                sock.close()
                continue
            sock.setblocking(False)
            return sock, str(Address(*name[:2])) if isinstance(name, tuple) else ""

    def refuse(self) -> None:
        """Let the kernel refuse connects from now on.

        The port stays bound, but nobody listens.
        """
        self.reopen()
        self.sock.close()
        if self._family != socket.AF_UNIX:  # the file of a unix socket stays, and refuses
            self.sock = self._bound()
        self.is_open = False

    def hang(self) -> None:
        """Let connects hang from now on: the accept queue is full, and the kernel ignores further
        ones.
        """
        self.reopen()
        self.is_open = False
        self.sock.listen(0)
        for _ in range(_FILLERS):
            filler = socket.socket(self._family, socket.SOCK_STREAM)
            filler.setblocking(False)
            if self._family == socket.AF_UNIX:
                with contextlib.suppress(OSError):
                    filler.bind("")  # Linux gives it a name, which identifies it
            # kept, also the one that hangs: it is closed when the gate opens again
            self._fillers.append(filler)
            if filler.connect_ex(self._own_name()) not in (0, errno.EINPROGRESS) or not _is_through(
                filler
            ):
                return  # the queue is full
            self._filler_names.add(filler.getsockname())

    def _own_name(self) -> Any:
        if self._family == socket.AF_UNIX:
            return self._name
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to find ourselves
        return (anywhere.get(self._name[0], self._name[0]), *self._name[1:])

    def reopen(self) -> None:
        """Listen as in the beginning. A client that hung is accepted when its kernel next tries
        (after 1, 3, 7 … s).
        """
        if self.is_open:
            return
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if self.sock.fileno() < 0:
            self.sock = self._bound()
        self.sock.listen(BACKLOG)
        self.is_open = True

    def close(self) -> None:
        """Stop listening; a unix socket's file is removed."""
        for filler in self._fillers:
            filler.close()
        self.sock.close()
        if self._family == socket.AF_UNIX:
            with contextlib.suppress(OSError):
                os.unlink(self._name)

    def abandon(self) -> None:
        """In a forked child: close the parent's sockets, without sending a byte."""
        for sock in (*self._fillers, self.sock):
            sock.close()


def _is_through(sock: socket.socket) -> bool:
    """Return whether a connect that was begun is done."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return (
        bool(poll.poll(_AT_ONCE * 1000))
        and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    )
