"""Django is set up once per process; each test adds its own databases. And a wire that loses answers."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import django
import pytest
from django.conf import settings as site_settings

if not site_settings.configured:
    site_settings.configure(DATABASES={}, SECRET_KEY="of tests only", USE_TZ=True, ALLOWED_HOSTS=["*"], INSTALLED_APPS=[], MIDDLEWARE=[])
    django.setup()


@pytest.fixture
def settings() -> Iterator[Any]:
    """Django's settings; what a test sets is undone."""
    before = dict(site_settings._wrapped.__dict__)
    yield site_settings
    site_settings._wrapped.__dict__.clear()
    site_settings._wrapped.__dict__.update(before)
    for name in [name for name in site_settings.__dict__ if name != "_wrapped"]:
        site_settings.__dict__.pop(name)


class LossyWire:
    """A TCP wire to a server on which one message, or the answer to it, can be lost: then both ends are closed."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lose: bytes | None = None  #: the next message with this in it, in any case of its letters, …
        self.arrives = True  #: … arrives, and only its answer is lost
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._pass_on, args=(self._listener.accept()[0],), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._there) as server, suppress(OSError):
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and self.lose is not None and self.lose in data.upper():
                        self.lose = None
                        self.lost += 1
                        if self.arrives:
                            server.sendall(data)
                            server.recv(65536)
                        return
                    (server if source is client else client).sendall(data)

    def close(self) -> None:
        """No new connections; those that there are end with their clients."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()


@pytest.fixture
def lossy() -> Iterator[Callable[[Any], LossyWire]]:
    """``lossy(server)``: a wire to that server."""
    with ExitStack() as stack:

        def make(server: Any) -> LossyWire:
            wire = LossyWire(server.host, server.port)
            stack.callback(wire.close)
            return wire

        yield make
