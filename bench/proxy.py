"""What the fault proxy costs: throughput and added latency beside a direct connection, on one
machine's loopback.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from measure import Effort, Result, Row, Slice, Table, interleaved, repeated

import unbroken
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

BLOCK = 64 * 1024
HELLO = (8).to_bytes(4, "big") + (196608).to_bytes(4, "big")  # a startup message without parameters
FLUSH = b"H" + (4).to_bytes(4, "big")
DIRECT = "direct"


def run(effort: Effort) -> Result:
    """A round trip of a SELECT, a connect, and a stream of bytes: direct, through a plain proxy,
    and through one that reads along.
    """
    result = Result()
    with contextlib.ExitStack() as stack:
        servers: list[tuple[Server, str, str]] = [
            (stack.enter_context(PostgreSQL()), "psycopg", "postgresql")
        ]
        if available("mariadb") is None:
            servers.append((stack.enter_context(MariaDB()), "pymysql", "mysql"))
        for server, driver, protocol in servers:
            name = "PostgreSQL, psycopg" if protocol == "postgresql" else "MariaDB, PyMySQL"
            ways = _ways((server.host, server.port), protocol, stack)
            asks = {
                way: _asking(through(server.url(driver)), stack) for way, through in ways.items()
            }
            result.tables.append(
                Table(
                    f"The fault proxy: one SELECT, {name}",
                    "µs",
                    interleaved(asks, effort, DIRECT),
                    DIRECT,
                )
            )
            opens = {
                way: _opening(through(server.url(driver)), stack) for way, through in ways.items()
            }
            result.tables.append(
                Table(
                    f"The fault proxy: connect and close, {name}",
                    "ms",
                    interleaved(opens, effort, DIRECT),
                    DIRECT,
                )
            )
        source = stack.enter_context(_source())
        ways = _ways(source, "postgresql", stack)
        streams = {
            way: _stream(through(f"tcp://{source[0]}:{source[1]}/"), stack)
            for way, through in ways.items()
        }
        note = (
            f"Higher is better. One connection, one PostgreSQL message of {BLOCK // 1024} KiB at a"
            " time, from a thread of this process."
        )
        rows = [_per_second(row) for row in interleaved(streams, effort, DIRECT)]
        result.tables.append(
            Table("The fault proxy: throughput from server to client", "MB/s", rows, DIRECT, note)
        )
    return result


def _ways(
    upstream: tuple[str, int], protocol: str, stack: contextlib.ExitStack
) -> dict[str, Callable[[str], str]]:
    plain = stack.enter_context(FaultProxy(upstream))
    reading = stack.enter_context(FaultProxy(upstream, protocol=protocol))
    return {
        DIRECT: lambda url: url,
        "through the proxy": plain.url,
        "through the proxy, with protocol=": reading.url,
    }


def _asking(url: str, stack: contextlib.ExitStack) -> Slice:
    pool = stack.enter_context(unbroken.Pool(url, max_size=1))
    conn = pool.acquire()
    stack.callback(pool.release, conn)
    cursor = conn.cursor()

    def ask() -> None:
        cursor.execute("SELECT 1")
        cursor.fetchone()

    return repeated(ask)


def _opening(url: str, stack: contextlib.ExitStack) -> Slice:
    pool = stack.enter_context(unbroken.Pool(url, max_size=1))

    def open_one() -> None:
        pool.release(pool.acquire())
        pool.drain()

    return repeated(open_one)


@contextlib.contextmanager
def _source() -> Iterator[tuple[str, int]]:
    """A server that speaks PostgreSQL's protocol as far as it must: a DataRow for each Flush that
    it hears.
    """
    block = b"D" + (BLOCK - 1).to_bytes(4, "big") + bytes(BLOCK - 5)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError):
                client.recv(len(HELLO), socket.MSG_WAITALL)
                while client.recv(len(FLUSH), socket.MSG_WAITALL):
                    client.sendall(block)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(
                        target=serve, args=(listener.accept()[0],), daemon=True
                    ).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _stream(url: str, stack: contextlib.ExitStack) -> Slice:
    host, _, port = url.removeprefix("tcp://").rstrip("/").partition(":")
    sock = stack.enter_context(socket.create_connection((host, int(port))))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HELLO)
    memory = bytearray(BLOCK)

    def stream(count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            sock.sendall(FLUSH)
            left = BLOCK
            while left:
                left -= sock.recv_into(memory, left)
        return perf_counter() - began

    return stream


def _per_second(row: Row) -> Row:
    """Seconds for a block, as megabytes (10^6) a second."""

    def speed(seconds: Any) -> float:
        return BLOCK / float(seconds) / 1e6

    return Row(row.name, speed(row.best), speed(row.median), row.ratio and 1 / row.ratio)
