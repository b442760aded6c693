"""Clients on real servers through a fault proxy, and what the kernel says of their sockets."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any

import psycopg
import pymysql
import pytest

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

_numbers = count(1)

#: Of struct tcp_info, linux/tcp.h.
ESTABLISHED, SYN_SENT, CLOSED, CLOSE_WAIT = 1, 2, 7, 8


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait until *condition* is true and give what it gave; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.002)
    return found


class Kernel:
    """What the kernel says of a TCP socket, whoever owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=os.dup(fd))

    def close(self) -> None:
        self._sock.close()

    def shutdown(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _info(self, layout: str) -> Any:
        return struct.unpack_from(
            layout, self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        )[0]

    @property
    def state(self) -> int:
        return int(self._info("=B"))

    @property
    def error(self) -> int:
        """The error that the next call would get; reading it takes it away."""
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    @property
    def unsent(self) -> int:
        return int(self._info("=144xI"))

    @property
    def unacknowledged(self) -> int:
        """Segments that were sent and not acknowledged."""
        return int(self._info("=24xI"))

    @property
    def segments_in(self) -> int:
        """Segments with data that came."""
        return int(self._info("=152xI"))

    @property
    def bytes_in(self) -> int:
        return int(self._info("=128xQ"))


class Client:
    """A bare driver's connection through the proxy, outside any pool, in autocommit."""

    def __init__(self, line: Line, conn: Any) -> None:
        self._line, self.conn = line, conn
        self.fd: int = (
            conn.fileno() if isinstance(conn, psycopg.Connection) else conn._sock.fileno()
        )
        self.kernel = Kernel(self.fd)

    def ask(self, sql: str = "SELECT 1") -> Any:
        with self.conn.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def in_background(self, sql: str = "SELECT 1") -> Asked:
        return Asked(lambda: self.ask(sql))

    def close(self) -> None:
        # a thread may still be waiting for an answer, and close() for that thread
        self.kernel.shutdown()
        self.kernel.close()
        with suppress(Exception):
            self.conn.close()


class Asked:
    """A question that is waiting for its answer in a thread."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._ask = ask
        self.answer: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.answer = self._ask()
        except Exception as error:
            self.answer = error

    @property
    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float = 15.0) -> Any:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"no answer within {seconds} s"
        return self.answer


class Line:
    """A server, a proxy before it, and clients through that."""

    def __init__(self, server: Server, tls: bool, stack: ExitStack) -> None:
        self.server, self.tls, self._stack = server, tls, stack
        self.is_mysql = not isinstance(server, PostgreSQL)
        self.protocol = "mysql" if self.is_mysql else "postgresql"
        self.proxy = self.before((server.host, server.port))

    def before(self, upstream: Any, **more: Any) -> FaultProxy:
        return self._stack.enter_context(FaultProxy(upstream, protocol=self.protocol, **more))

    def client(self, timeout: float = 10.0) -> Client:
        client = Client(self, self.connect(timeout))
        self._stack.callback(client.close)
        return client

    def connect(self, timeout: float = 10.0, port: int | None = None) -> Any:
        server, port = self.server, port or self.proxy.port
        if self.is_mysql:
            more: dict[str, Any] = (
                {"ssl": {"ca": str(server.ca_file)}} if self.tls else {"ssl_disabled": True}
            )
            return pymysql.connect(
                host="127.0.0.1", port=port, user=server.user, password=server.password,
                database=server.database, autocommit=True, connect_timeout=timeout, read_timeout=60,
                **more,
            )  # fmt: skip
        more = (
            {"sslmode": "verify-ca", "sslrootcert": str(server.ca_file)}
            if self.tls
            else {"sslmode": "disable"}
        )
        return psycopg.connect(
            host="127.0.0.1", port=port, user=server.user, password=server.password,
            dbname=server.database, autocommit=True, connect_timeout=max(2, int(timeout)), **more,
        )  # fmt: skip

    def table(self) -> str:
        name = f"rows_{os.getpid()}_{next(_numbers)}"
        self.server.admin(f"CREATE TABLE {name} (n INT)")
        if not self.is_mysql:
            self.server.admin(f'ALTER TABLE {name} OWNER TO "{self.server.user}"')
        self._stack.callback(self._drop, name)
        return name

    def _drop(self, name: str) -> None:
        self.server.kill_sessions()  # an open transaction would hold the table
        self.server.admin(f"DROP TABLE IF EXISTS {name}")

    def stored(self, table: str) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {table}"))

    def wide(self, size: int) -> str:
        """A question whose answer is so many bytes long."""
        return f"SELECT REPEAT('x', {size})"

    def info(self, n: int) -> Any:
        return next(info for info in self.proxy.connections if info.n == n)


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """Servers that take TLS and plain connections, made when asked for."""
    kinds: dict[str, type[Server]] = {"mariadb": MariaDB, "postgresql": PostgreSQL}
    made: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(kind: str) -> Server:
            if kind not in made:
                made[kind] = stack.enter_context(kinds[kind](tls=True))
            return made[kind]

        yield server


@pytest.fixture(params=["mariadb-plain", "mariadb-tls", "postgresql-plain", "postgresql-tls"])
def line(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Iterator[Line]:
    """Each server, plain and with TLS, behind a proxy of this test's own."""
    kind, _, how = request.param.partition("-")
    with ExitStack() as stack:
        yield Line(servers(kind), how == "tls", stack)


@pytest.fixture(params=["mariadb", "postgresql"])
def plain_line(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Iterator[Line]:
    """Each server, without TLS."""
    with ExitStack() as stack:
        yield Line(servers(request.param), False, stack)
