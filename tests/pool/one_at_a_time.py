"""A proxy for MySQL that takes one statement at a time, as ProxySQL does: it closes a connection on
which a command comes before the last one was answered.
"""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from typing import Any

from .relaying import Relay

_HEADER = 4
#: Seconds that each answer is on its way.
AWAY = 0.003


class OneAtATime(Relay):
    """In front of *server*. ``closed`` counts the connections that it closed for that."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self.closed = 0

    def relay(self, client: socket.socket, server: socket.socket) -> None:
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
