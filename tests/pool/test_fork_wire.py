"""Forks, with the wire looked at: between every driver's pool and its server stands a proxy that
counts each byte either side sends. While a child lives and dies, not one goes over a connection of
its parent's, and none of these is ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from unbroken_drill import FaultProxy
from unbroken_drill.servers import PostgreSQL, Server
from unbroken_drill.servers.ports import free_port

from .every_driver import KINDS, Worker, url_of

ASYNC = ("psycopg_async", "asyncpg", "aiomysql", "asyncmy", "mysqlconnector_async")
WAYS = (
    "os.fork, os._exit",
    "os.fork, sys.exit",
    "raw fork, os._exit",
    "raw fork, sys.exit",
    "never touches the pool",
    "multiprocessing",
)
#: By its own hands. The fork has severed them, so this says nothing to the server either, no
#: goodbye and no close_notify.
CLOSES = "os.fork, closes its parent's, sys.exit"
#: A fork that Python does not see, and not a look at the pool before: nothing has severed them.
#: What a child may do to its parent.
CLOSES_UNSEVERED = "raw fork, closes its parent's and that is all, os._exit"


def bytes_of(proxy: FaultProxy, own: set[int]) -> dict[int, tuple[str, int, int]]:
    return {
        each.n: (each.state, each.to_server, each.to_client)
        for each in proxy.connections
        if each.n in own
    }


@pytest.fixture(scope="module")
def server_of() -> Iterator[Callable[[str], Server]]:
    """A server of each kind, with a certificate."""
    made: dict[str, Server] = {}
    with ExitStack() as stack:

        def server(kind: str) -> Server:
            if kind not in made:
                made[kind] = stack.enter_context(KINDS[kind][0](tls=True))
                if (
                    kind == "mysql"
                    # without TLS mysql-connector may log in to MySQL 9 only as somebody whom the
                    # server remembers
                ):
                    with Worker(
                        "pymysql", url_of(made[kind], "pymysql", True)
                    ).closing() as visitor:
                        visitor.ask("warm")
            return made[kind]

        yield server


def _url(server: Server, driver: str, tls: bool) -> str:
    more: dict[str, object] = {}
    if not tls and driver.startswith(("pymysql", "mysqlconnector")):
        # which take TLS where it is to be had
        more["ssl_disabled"] = "true"
    return url_of(server, driver, tls, **more)


class Subject:
    """A driver's process behind a proxy, which stops before each fork and after it to let the wire
    be looked at.
    """

    def __init__(self, server: Server, driver: str, tls: bool, stack: ExitStack) -> None:
        url = _url(server, driver, tls)
        self.proxy = stack.enter_context(FaultProxy(url))
        self.ask = stack.enter_context(Worker(driver, self.proxy.url(url)).closing()).ask
        self.sessions = self.ask("warm")
        assert isinstance(self.sessions, list), self.sessions
        assert bool(self.ask("cipher")) is tls
        self.own = {each.n for each in self.proxy.connections if each.state == "open"}
        assert len(self.own) == len(self.sessions) == 3

    def bytes(self) -> dict[int, tuple[str, int, int]]:
        """What has gone over the parent's connections so far, and whether they live.

        Nobody waits for the answers to the pool's own ROLLBACKs: they are let through first.
        """
        deadline, seen = time.monotonic() + 5.0, bytes_of(self.proxy, self.own)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if (now := bytes_of(self.proxy, self.own)) == seen:
                break
            seen = now
        return seen

    def since(self, before: dict[int, tuple[str, int, int]]) -> dict[int, tuple[str, int, int]]:
        """What has gone over them since *before*, and whether they live."""
        return {
            n: (state, up - before[n][1], down - before[n][2])
            for n, (state, up, down) in self.bytes().items()
        }


@pytest.fixture
def subject(row: tuple[str, str, bool], server_of: Callable[[str], Server]) -> Iterator[Subject]:
    kind, driver, tls = row
    with ExitStack() as stack:
        yield Subject(server_of(kind), driver, tls, stack)


def _row(kind: str, driver: str, tls: bool, *, soak: bool = False) -> Any:
    name = f"{kind}-{driver}-{'tls' if tls else 'plain'}"
    return pytest.param((kind, driver, tls), id=name, marks=[pytest.mark.soak] if soak else [])


ROWS = [
    _row(kind, driver, tls, soak=kind == "mysql" and not tls)
    for kind, (_, drivers) in KINDS.items()
    for driver in drivers
    for tls in (False, True)
]


@pytest.mark.parametrize("row", ROWS)
def test_no_child_puts_a_byte_on_its_parents_connections_nor_ends_one(
    subject: Subject, row: tuple[str, str, bool]
) -> None:
    quiet = subject.bytes()
    assert subject.ask("warm") == subject.sessions
    usual = subject.since(quiet)
    for way in WAYS if row[1] in ASYNC else (*WAYS, CLOSES):
        quiet = subject.bytes()
        said = subject.ask(f"one_child {way}")
        assert said["status"] == 0, (way, said)
        assert way == "never touches the pool" or (
            said["session"] and said["session"] not in subject.sessions
        ), (way, said)
        assert subject.bytes() == quiet, f"{way}: a foreign byte on the wire"
        assert subject.ask("warm") == subject.sessions, way
        assert subject.since(quiet) == usual, f"{way}: a foreign byte before what the parent said"


@pytest.mark.parametrize(
    "row",
    [
        _row("mariadb", "mysqldb", True),
        _row("postgresql", "psycopg2", True),
        _row("postgresql", "pg8000", True),
    ],
)
def test_what_a_child_says_on_connections_that_were_not_severed_is_seen(
    subject: Subject, row: tuple[str, str, bool], until: Any
) -> None:
    quiet = subject.bytes()
    assert subject.ask(f"one_child {CLOSES_UNSEVERED}")["status"] == 0
    until(lambda: all(now[1] > quiet[n][1] for n, now in subject.bytes().items()))


UWSGI = """
import json, os, sys
import unbroken

sys.path.insert(0, {folder!r})
from raw_fork import wait_for_rest

pool = unbroken.Pool({url!r}, max_size=2)

def session():
    with pool.connection() as conn:
        cursor = conn.cursor()
        cursor.execute({me!r})
        return cursor.fetchone()[0]

mine = session()  # in the master, before it forks its workers
wait_for_rest()  # who is forked while a thread asks for the interpreter's lock hangs, whatever library it uses: docs/contract.md

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), session(), mine]).encode()]
"""  # noqa: E501


BLOCKING = [
    (kind, driver)
    for kind, (_, drivers) in KINDS.items()
    for driver in drivers
    if driver not in ASYNC
]
UNDER_UWSGI = [
    _row(kind, driver, tls, soak=kind == "mysql" or (tls and driver not in ("mysqldb", "psycopg2")))
    for kind, driver in BLOCKING
    for tls in (False, True)
]


@pytest.mark.parametrize("row", UNDER_UWSGI)
def test_no_worker_of_uwsgi_puts_a_byte_on_its_masters_connection(
    row: tuple[str, str, bool], server_of: Callable[[str], Server], tmp_path: Path, until: Any
) -> None:
    """uWSGI forks its workers itself, after the app was loaded: Python hears nothing of it."""
    kind, driver, tls = row
    server = server_of(kind)
    url = _url(server, driver, tls)
    with FaultProxy(url) as proxy, ExitStack() as stack:
        me = (
            "SELECT pg_backend_pid()"
            if isinstance(server, PostgreSQL)
            else "SELECT CONNECTION_ID()"
        )
        (tmp_path / "app.py").write_text(
            UWSGI.format(folder=str(Path(__file__).parent), url=proxy.url(url), me=me)
        )
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


IN_LINE = """
import json, os, sys, threading
import unbroken

sys.path.insert(0, {folder!r})
from raw_fork import wait_for_rest

pool = unbroken.Pool({url!r}, max_size=1)
with pool.connection() as conn:
    pass
wait_for_rest()
errors = []

def work():
    try:
        with pool.connection() as conn:
            conn.cursor().execute("SELECT pg_sleep(0.1)")
    except Exception as error:
        errors.append(repr(error))

def application(environ, start_response):
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([os.getpid(), len(errors), 0]).encode()]
"""


def test_callers_wait_in_a_worker_of_uwsgi_whose_master_has_used_the_pool(
    postgres: PostgreSQL, tmp_path: Path, until: Any
) -> None:
    """The interpreter there lists threads of the master. A caller that waits looks at threads."""
    text = IN_LINE.format(folder=str(Path(__file__).parent), url=postgres.url("psycopg"))
    (tmp_path / "app.py").write_text(text)
    with ExitStack() as stack:
        _, port = _uwsgi(tmp_path, stack)
        until(lambda: _answers(port), seconds=30)
        for _ in range(4):
            assert _get(port)[1] == 0
        assert "Segmentation" not in (tmp_path / "log").read_text()


def _uwsgi(folder: Path, stack: ExitStack) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port("127.0.0.1")
    command = [str(Path(sys.executable).with_name("uwsgi")), "--http-socket", f"127.0.0.1:{port}", "--master", "--processes", "2",  # noqa: E501
               "--wsgi-file", "app.py", "--die-on-term", "--enable-threads", "--need-app"]  # fmt: skip  # noqa: E501
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
        start_new_session=True,
    )

    def end() -> None:
        # master and workers: how uWSGI ends is not looked at here
        os.killpg(process.pid, signal.SIGKILL)
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
