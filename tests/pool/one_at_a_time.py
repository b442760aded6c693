"""A proxy for MySQL that takes one statement at a time, as ProxySQL does: it closes a connection on
which a command comes before the last one was answered.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Self

_HEADER = 4
#: Seconds that each answer is on its way.
AWAY = 0.003


class OneAtATime:
    """In front of *server*. ``closed`` counts the connections that it closed for that."""

    def __init__(self, server: Any) -> None:
        self.upstream = (server.host, server.port)
        self.closed = self.opened = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += (client, server)
                self.opened += 1
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        commands, is_busy, is_late = _Commands(), False, False
        with suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ)
            selector.register(server, selectors.EVENT_READ)
            while True:
                ready = sorted(selector.select(), key=lambda each: each[0].fileobj is server)
                key = ready[0][0]
                if key.fileobj is server and not is_late:
                    # it is on its way; what the client sends meanwhile comes first
                    is_late = True
                    time.sleep(AWAY)
                    continue
                is_late = False
                data = key.fileobj.recv(65536)  # type: ignore[union-attr] # they are sockets
                if not data:
                    break
                if key.fileobj is server:
                    is_busy = False
                    client.sendall(data)
                    continue
                for _ in range(commands.count(data)):
                    if is_busy:
                        self.closed += 1
                        raise ConnectionAbortedError
                    is_busy = True
                server.sendall(data)
        for each in (client, server):
            each.close()


class _Commands:
    """Counts the commands in what a client sends: packets with the number 0."""

    def __init__(self) -> None:
        self._rest = b""

    def count(self, data: bytes) -> int:
        """How many commands begin in *data*, what was sent next."""
        self._rest += data
        found = 0
        while len(self._rest) >= _HEADER:
            length = _HEADER + int.from_bytes(self._rest[:3], "little")
            if len(self._rest) < length:
                break
            found += self._rest[3] == 0
            self._rest = self._rest[length:]
        return found
