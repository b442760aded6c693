"""A TCP proxy that counts round trips on the wire."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit


class CountingProxy:
    """Passes connections on to *port*, and counts how often a client speaks after the server had (or at first): ``trips``."""

    def __init__(self, port: int) -> None:
        self.trips = 0
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> CountingProxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.close()

    def through(self, url: str) -> str:
        """*url* with this proxy's port."""
        port = urlsplit(url).port
        return url.replace(f":{port}/", f":{self.port}/")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening = True  # whether the server has spoken since the client did
            while True:
                ready: Any = select.select([client, server], [], [])[0]
                for source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and listening:
                        self.trips += 1
                    listening = source is server
                    (server if source is client else client).sendall(data)
