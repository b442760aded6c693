"""What the stand-ins for proxies have in common: they listen, and connect each client to a
server.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Any, Self


class Relay:
    """In front of *server*. ``opened`` counts the connections."""

    def __init__(self, server: Any) -> None:
        self.upstream = (server.host, server.port)
        self.opened = 0
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

    def relay(self, client: socket.socket, server: socket.socket) -> None:
        """Carry the bytes of one connection, until it ends. It has a thread of its own."""
        raise NotImplementedError

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += (client, server)
                self.opened += 1
                threading.Thread(target=self.relay, args=(client, server), daemon=True).start()
