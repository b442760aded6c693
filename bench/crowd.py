"""A pool with more idle connections than a database server would hold here: real TCP sockets, their
other ends in a process of their own that only keeps them; the sessions behind them are the fake
server's, in memory. What the pool does is the same.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import unbroken
from unbroken import sync
from unbroken.abc import Login
from unbroken_drill.fake import FakeConnection, FakeDriver, FakeServer

_KEEPER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(listener.getsockname()[1], flush=True)
kept = []
while True:
    kept.append(listener.accept()[0])
"""


class TcpDriver(FakeDriver):
    """The fake driver, with a TCP socket for each connection."""

    def __init__(self, server: FakeServer, port: int) -> None:
        super().__init__(server, sockets=True)
        self.port = port

    def connect(self, timeout: float, login: Login | None = None) -> FakeConnection:
        return FakeConnection(
            self.server.accept(timeout), socket.create_connection(("127.0.0.1", self.port), timeout)
        )


@contextlib.contextmanager
def crowd() -> Iterator[TcpDriver]:
    """A driver for as many connections as this process may have descriptors."""
    keeper = subprocess.Popen([sys.executable, "-c", _KEEPER], stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    try:
        yield TcpDriver(FakeServer(max_connections=1_000_000), int(keeper.stdout.readline()))
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdout.close()


def pool_on(driver: TcpDriver, size: int, **settings: object) -> unbroken.Pool:
    """An empty pool of *size* places on *driver*."""
    before = sync.open_driver
    sync.open_driver = lambda *_args, **_options: driver  # type: ignore[assignment,return-value]
    try:
        return unbroken.Pool(connect=lambda: None, driver="fake", max_size=size, **settings)
    finally:
        sync.open_driver = before


def fill(pool: unbroken.Pool, size: int) -> unbroken.Pool:
    """Open *size* connections, all of which are idle then."""
    for conn in [pool.acquire(timeout=60.0) for _ in range(size)]:
        pool.release(conn)
    return pool
