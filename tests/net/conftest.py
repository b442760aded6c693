"""Real sockets, sessions of real servers, children, and waiting on a condition."""

from __future__ import annotations

import gc
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest


@pytest.fixture
def until() -> Callable[..., None]:
    """``until(condition)``: wait until it is true, fail after a deadline."""

    def wait(condition: Callable[[], Any], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not true within {seconds} s"
            time.sleep(0.002)

    return wait


@pytest.fixture
def tcp_pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Makes connected TCP sockets: (ours, the server's)."""
    with ExitStack() as stack:

        def make() -> tuple[socket.socket, socket.socket]:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                ours = stack.enter_context(socket.create_connection(listener.getsockname()))
                theirs, _ = listener.accept()
                stack.enter_context(theirs)
            return ours, theirs

        yield make


@pytest.fixture
def reset() -> Callable[[socket.socket], None]:
    """``reset(sock)``: close it with a RST."""

    def send_rst(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    return send_rst


@pytest.fixture
def in_child() -> Callable[..., str]:
    """``in_child(fn)``: what *fn* returns in a forked child, as text; its failure fails the test.

    ``fork=`` another fork.
    """

    def run(fn: Callable[[], Any], fork: Callable[[], int] = os.fork) -> str:
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            try:
                os.write(writer, f"{fn()}".encode())
            except BaseException as exc:
                os.write(writer, f"failed: {exc!r}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as answers:
            answer = answers.read()
        os.waitpid(pid, 0)
        return answer

    return run


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many descriptors this process has open, what earlier tests left to the collector
    apart.
    """

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    return count


@pytest.fixture
def run_script() -> Callable[[str], str]:
    """Run a script in an interpreter of its own and give what it printed."""

    def run(script: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


class Sessions:
    """Connections to real servers, and their descriptors and numbers."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def pymysql(self, server: Any, **options: Any) -> Any:
        import pymysql

        where = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
        }
        conn = pymysql.connect(**where, database=server.database, **options)
        self._stack.callback(conn._force_close)
        return conn

    def mysqlclient(self, server: Any, **options: Any) -> Any:
        import MySQLdb

        where = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
        }
        conn = MySQLdb.connect(**where, database=server.database, **options)
        self._stack.callback(conn.close)
        return conn

    def psycopg(self, server: Any, **options: Any) -> Any:
        import psycopg

        where = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
        }
        conn = psycopg.connect(**where, dbname=server.database, autocommit=True, **options)
        self._stack.callback(conn.close)
        return conn

    @staticmethod
    def fd(conn: Any) -> int:
        return int(conn._sock.fileno() if hasattr(conn, "_sock") else conn.fileno())

    @staticmethod
    def ask(conn: Any, sql: str) -> Any:
        with conn.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0]


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with ExitStack() as stack:
        yield Sessions(stack)
