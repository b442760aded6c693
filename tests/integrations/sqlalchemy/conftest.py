"""Engines with the plugin on real servers, directly and through a fault proxy."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

import unbroken.sqlalchemy
from unbroken.pool import servers
from unbroken_drill import FaultProxy
from unbroken_drill.servers import Server

DRIVERS = ["pymysql", "mysqldb", "psycopg"]


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.002)
    return found


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(condition)``: wait until it is true, fail after a deadline."""
    return wait_until


class Face:
    """One driver on one server, with engines that are disposed of in the end."""

    def __init__(self, name: str, server: Server, stack: ExitStack) -> None:
        self.name, self.server, self._stack = name, server, stack
        self.is_mysql = server.backend in ("mysql", "mariadb")
        self.session_id = sa.text(
            "SELECT connection_id()" if self.is_mysql else "SELECT pg_backend_pid()"
        )

    def url(self, **query: object) -> str:
        return self.server.url(self.name, **query)

    def engine(self, url: str | None = None, **kwargs: Any) -> sa.Engine:
        engine = sa.create_engine(url or self.url(), plugins=["unbroken"], **kwargs)
        self._stack.callback(engine.dispose)
        return engine

    def bare(self, url: str | None = None, **kwargs: Any) -> sa.Engine:
        engine = sa.create_engine(url or self.url(), **kwargs)
        self._stack.callback(engine.dispose)
        return engine

    def proxy(self) -> FaultProxy:
        protocol = "mysql" if self.is_mysql else "postgresql"
        return self._stack.enter_context(
            FaultProxy((self.server.host, self.server.port), protocol=protocol)
        )

    def through(self, proxy: FaultProxy) -> str:
        """The server's URL through *proxy*, without TLS: what goes over it can be read."""
        plain = {
            "pymysql": {"ssl_disabled": "true"},
            "mysqldb": {"ssl_mode": "DISABLED"},
            "psycopg": {"sslmode": "disable"},
        }
        return proxy.url(self.url(**plain.get(self.name, {})))

    def warm(self, engine: sa.Engine, count: int) -> list[int]:
        """Have *count* connections open and idle: their numbers on the server."""
        held = [engine.connect() for _ in range(count)]
        numbers = [conn.scalar(self.session_id) for conn in held]
        for conn in held:
            conn.close()
        return numbers

    def ask(self, engine: sa.Engine) -> int:
        """A request: the number of the session that served it."""
        with engine.connect() as conn:
            number = conn.scalar(self.session_id)
            assert number is not None
            return int(number)

    def table(self, name: str) -> str:
        """A new table that is dropped in the end."""
        self.server.admin(f"DROP TABLE IF EXISTS {name}")
        kind = " ENGINE=InnoDB" if self.is_mysql else ""
        bare = self.bare()
        with bare.begin() as conn:
            conn.execute(sa.text(f"CREATE TABLE {name} (n INT PRIMARY KEY){kind}"))
        bare.dispose()
        self._stack.callback(lambda: self.server.admin(f"DROP TABLE IF EXISTS {name}"))
        return name

    def rows(self, table: str) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {table}"))


@pytest.fixture
def faces() -> Iterator[Callable[[str, Server], Face]]:
    with ExitStack() as stack:
        yield lambda name, server: Face(name, server, stack)


@pytest.fixture(params=DRIVERS)
def face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on the shared server of its kind."""
    return faces(
        request.param,
        request.getfixturevalue("postgres" if request.param == "psycopg" else "mariadb"),
    )


@pytest.fixture(params=DRIVERS)
def own_face(request: pytest.FixtureRequest, faces: Callable[[str, Server], Face]) -> Face:
    """Each driver in turn, on a server of its own that may be stopped and killed."""
    return faces(
        request.param,
        request.getfixturevalue("new_postgres" if request.param == "psycopg" else "new_mariadb")(),
    )


@pytest.fixture
def stats() -> Callable[[Any], Any]:
    return unbroken.sqlalchemy.stats


@pytest.fixture
def in_threads() -> Callable[..., list[Any]]:
    """``in_threads(n, fn)``: what ``fn(i)`` gives in *n* threads at once, or the exception that it
    raised.
    """

    def run(n: int, fn: Callable[[int], Any], seconds: float = 60.0) -> list[Any]:
        results: list[Any] = [None] * n

        def one(i: int) -> None:
            try:
                results[i] = fn(i)
            except BaseException as error:
                results[i] = error

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(n)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in threads)
        assert not stuck, f"{stuck} of {n} threads still run after {seconds} s"
        return results

    return run


@pytest.fixture
def script() -> Callable[..., str]:
    """``script(text, *args)``: run it in an interpreter of its own; what it printed.

    Its failure fails the test.
    """

    def run(text: str, *args: object, timeout: float = 60.0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(text), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout.strip()

    return run


@pytest.fixture(autouse=True)
def _no_old_news() -> None:
    """Engines made from now on ask their server anew: what an earlier test's pools knew of it may
    have changed since.
    """
    servers._records.clear()
