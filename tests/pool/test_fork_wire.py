"""Forks, with the wire looked at: between every driver's pool and its server stands a proxy that counts each byte either side
sends. While a child lives and dies, not one goes over a connection of its parent's, and none of these is ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from unbroken.testing import FaultProxy
from unbroken.testing.servers import MariaDB, PostgreSQL, Server

WORKER = Path(__file__).with_name("every_driver_worker.py")
MYSQL = ["pymysql", "mysqldb", "mariadbconnector", "mysqlconnector", "mysqlconnector_c", "aiomysql", "asyncmy", "mysqlconnector_async"]
POSTGRESQL = ["psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000"]
WAYS = ("os.fork, os._exit", "os.fork, sys.exit", "raw fork, os._exit", "raw fork, sys.exit", "never touches the pool", "multiprocessing")


def bytes_of(proxy: FaultProxy, own: set[int]) -> dict[int, tuple[str, int, int]]:
    return {each.n: (each.state, each.to_server, each.to_client) for each in proxy.connections if each.n in own}


class Subject:
    """A driver's process behind a proxy, which stops before each fork and after it to let the wire be looked at."""

    def __init__(self, driver: str, server: Server, stack: ExitStack) -> None:
        query = {"sslmode": "disable"} if isinstance(server, PostgreSQL) else {}
        if driver == "mysqlconnector_c":
            query = {"use_pure": "false", "read_timeout": "10"}
        url = server.url(driver.removesuffix("_async").removesuffix("_c"), **query)
        self.proxy = stack.enter_context(FaultProxy(url))
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), driver, self.proxy.url(url)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self.end)

    def ask(self, command: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"it ended with status {self.process.wait(5)}"
        return json.loads(line)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def subject(driver: str, request: pytest.FixtureRequest) -> Iterator[Subject]:
    server = request.getfixturevalue("mariadb" if driver in MYSQL else "postgres")
    with ExitStack() as stack:
        yield Subject(driver, server, stack)


@pytest.mark.parametrize("driver", [*MYSQL, *POSTGRESQL])
def test_no_child_puts_a_byte_on_its_parents_connections_nor_ends_one(subject: Subject) -> None:
    proxy, before = subject.proxy, subject.ask("warm")
    assert isinstance(before, list), before
    own = {each.n for each in proxy.connections if each.state == "open"}
    assert len(own) == len(before) == 3
    for way in WAYS:
        quiet = bytes_of(proxy, own)
        said = subject.ask(f"one_child {way}")
        assert said["status"] == 0, (way, said)
        assert way == "never touches the pool" or (said["session"] and said["session"] not in before), (way, said)
        assert bytes_of(proxy, own) == quiet, f"{way}: a foreign byte on the wire"
        assert subject.ask("warm") == before, way


UWSGI = """
import os
import unbroken

pool = unbroken.Pool({url!r}, max_size=2)

def session():
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute({me!r})
        return cursor.fetchone()[0]

mine = session()  # in the master, before it forks its workers

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), session(), mine]).encode()]
"""


@pytest.mark.parametrize("driver", ["pymysql", "mysqldb", "mariadbconnector", "mysqlconnector", "psycopg", "psycopg2", "pg8000"])
def test_no_worker_of_uwsgi_puts_a_byte_on_its_masters_connection(
    driver: str, mariadb: MariaDB, postgres: PostgreSQL, tmp_path: Path, until: Any
) -> None:
    """uWSGI forks its workers itself, after the app was loaded: Python hears nothing of it."""
    server: Server = mariadb if driver in MYSQL else postgres
    url = server.url(driver)
    with FaultProxy(url) as proxy, ExitStack() as stack:
        me = "SELECT CONNECTION_ID()" if server is mariadb else "SELECT pg_backend_pid()"
        (tmp_path / "app.py").write_text("import json\n" + textwrap.dedent(UWSGI.format(url=proxy.url(url), me=me)))
        uwsgi, port = _uwsgi(tmp_path, stack)
        until(lambda: _answers(port), seconds=30)
        masters = bytes_of(proxy, {1})  # all that went over it was before the fork
        seen: dict[int, set[int]] = {}
        for _ in range(40):
            worker, session, mine = _get(port)
            seen.setdefault(worker, set()).add(session)
            assert session != mine, "a worker uses its master's session"
            assert worker != uwsgi.pid
        sessions = [session for each in seen.values() for session in each]
        assert len(sessions) == len(set(sessions)), "two workers share a session"
        assert bytes_of(proxy, {1}) == masters, "a foreign byte on the master's connection"
        for worker in list(seen):
            os.kill(worker, 9)  # the master forks another one
        until(lambda: _answers(port) and _get(port)[0] not in seen, seconds=30)
        assert bytes_of(proxy, {1}) == masters


def _uwsgi(folder: Path, stack: ExitStack) -> tuple[subprocess.Popen[bytes], int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2",
               "--wsgi-file", "app.py", "--die-on-term", "--enable-threads", "--need-app"]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("wb"), start_new_session=True)

    def end() -> None:
        os.killpg(process.pid, signal.SIGKILL)  # master and workers: how uWSGI ends is not looked at here
        process.wait(20)

    stack.callback(end)
    return process, port


def _get(port: int) -> list[int]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        found: list[int] = json.load(answer)
        return found


def _answers(port: int) -> bool:
    try:
        return bool(_get(port))
    except OSError:
        return False
