"""A web app under a real web server, traffic over real HTTP, and everything that happens to its
database meanwhile.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest

from unbroken_drill.servers import MariaDB, MySQL, PostgreSQL, Server
from unbroken_drill.servers.ports import free_port

from .fates import body, place

__all__ = ["body", "place"]  # fixtures

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Reply:
    """An HTTP response, or what came instead of one (status 0)."""

    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def wait_until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait until *condition* is true and give what it gave; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.01)
    return found


class Site:
    """An app of examples/ (or any folder) under a web server, in processes of its own."""

    def __init__(
        self, command: list[str], port: int, env: dict[str, str], log: Path, folder: Path
    ) -> None:
        self.port, self.log = port, log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **env},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def ask(
        self,
        path: str,
        form: dict[str, Any] | None = None,
        accept: str = "*/*",
        method: str | None = None,
    ) -> Reply:
        """One request on a connection of its own."""
        started = time.monotonic()
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = urlencode(form) if form is not None else None
        headers = {
            "Accept": accept,
            **({"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {}),
        }
        try:
            conn.request(method or ("GET" if form is None else "POST"), path, body, headers)
            response = conn.getresponse()
            data = response.read()
            return Reply(
                response.status,
                data,
                {k.lower(): v for k, v in response.getheaders()},
                time.monotonic() - started,
            )
        except (OSError, http.client.HTTPException) as error:
            return Reply(0, repr(error).encode(), {}, time.monotonic() - started)
        finally:
            conn.close()

    def wait_ready(self) -> Site:
        def answers() -> bool:
            assert self._process.poll() is None, self.tail()
            return self.ask("/items").status == 200

        try:
            wait_until(answers, 30.0)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.tail()}") from None
        return self

    @property
    def pids(self) -> list[int]:
        """Of all its processes."""
        try:
            leader = psutil.Process(self._process.pid)
            return [leader.pid, *(child.pid for child in leader.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def ends(self, seconds: float = 30.0) -> bool:
        """Whether all its processes end in that time when they are told to, as systemd does."""
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End all its processes: they lead a session of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            pass
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5.0)


@dataclass
class Traffic:
    """Continuous requests: what each got, by what was going on then."""

    site: Site
    post: Callable[[int], tuple[str, dict[str, Any] | None]]
    phase: str = "quiet"
    gets: Counter[tuple[str, int]] = field(default_factory=Counter)
    posts: dict[int, tuple[str, Reply]] = field(default_factory=dict)
    bad: list[tuple[str, Reply]] = field(default_factory=list)
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._numbers = count(1)
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._get, self._get, self._get, self._add, self._add)
        ]

    def _get(self) -> None:
        while not self._over.is_set():
            phase = self.phase
            reply = self.site.ask("/items")
            self.gets[phase, reply.status] += 1
            self.slowest = max(self.slowest, reply.seconds)
            if reply.status != 200:
                self.bad.append((phase, reply))
            time.sleep(0.005)

    def _add(self) -> None:
        while not self._over.is_set():
            number, phase = next(self._numbers), self.phase
            path, form = self.post(number)
            self.posts[number] = phase, self.site.ask(path, {} if form is None else form)
            time.sleep(0.01)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60.0)
        assert not any(thread.is_alive() for thread in self._threads), "a request never ended"

    def pause_for(self, requests: int) -> None:
        """Wait until so many more GETs are answered."""
        until = self.gets.total() + requests
        wait_until(lambda: self.gets.total() >= until, 30.0)


@dataclass(frozen=True)
class Outcome:
    """What users saw, and what is in the table."""

    gets: int
    not_200: Counter[tuple[str, int]]
    posts: Counter[int]
    away_503: int  #: POSTs answered 503 while the server was away
    unknown: int  #: POSTs told that their outcome is unknown
    other: list[tuple[str, int, bytes]]  #: POSTs with any other failure
    lost: list[int]
    doubled: list[int]
    ghosts: list[int]  #: stored, though the answer said that they were not
    slowest: float

    def row(self) -> str:
        bad = sum(self.not_200.values())
        parts = Counter[str]()
        for (phase, _), n in self.not_200.items():
            parts[phase] += n
        by = ", ".join(f"{phase} {n}" for phase, n in parts.items())
        failed = sum(n for status, n in self.posts.items() if status != 200)
        return (
            f"GET {self.gets:5d}  not 200 {bad:4d} {'(' + by + ')' if by else '':40s} POST"
            f" {self.posts.total():5d} failed {failed:4d} (unknown {self.unknown}) lost"
            f" {len(self.lost)} doubled {len(self.doubled)} slowest {self.slowest:.2f} s"
        )


def ordeal(
    server: Server, site: Site, post: Callable[[int], tuple[str, dict[str, Any] | None]]
) -> Outcome:
    """Idle until the server drops the sessions (limit 2 s), then traffic through kills, a restart
    and a crash of 1.5 s.
    """
    traffic = Traffic(site, post)
    traffic.phase = "idle"
    wait_until(lambda: not server.sessions(), 10.0)
    with traffic:
        traffic.pause_for(30)
        traffic.phase = "kill"
        for _ in range(5):
            server.kill_sessions()
            traffic.pause_for(10)
        for phase, break_it in (("restart", server.restart), ("crash", server.crash)):
            traffic.phase = phase
            break_it(1.5)
            traffic.pause_for(30)
            traffic.phase = "quiet"
            traffic.pause_for(20)
    return judge(server, traffic)


def judge(server: Server, traffic: Traffic) -> Outcome:
    stored = Counter(int(row[0]) for row in server.admin("SELECT number FROM item"))
    told = {number: reply for number, (_, reply) in traffic.posts.items()}
    said = (b"outcome unknown", b"stored, not answered")
    unknown = {
        n
        for n, reply in told.items()
        if reply.status == 500 and any(words in reply.body for words in said)
    }
    away = {
        n
        for n, (phase, reply) in traffic.posts.items()
        if reply.status == 503 and phase in ("restart", "crash")
    }
    others = [
        (phase, reply.status, reply.body[:200])
        for n, (phase, reply) in traffic.posts.items()
        if reply.status != 200 and n not in unknown | away
    ]
    return Outcome(
        gets=traffic.gets.total(),
        not_200=Counter({key: n for key, n in traffic.gets.items() if key[1] != 200}),
        posts=Counter(reply.status for reply in told.values()),
        away_503=len(away),
        unknown=len(unknown),
        other=others,
        lost=[n for n, reply in told.items() if reply.status == 200 and not stored[n]],
        doubled=[n for n, times in stored.items() if times > 1],
        ghosts=[n for n, reply in told.items() if reply.status == 503 and stored[n]],
        slowest=traffic.slowest,
    )


def database(driver: str) -> Server:
    """A server whose idle limit is 2 s."""
    if driver in ("psycopg", "asyncpg", "psycopg2"):
        return PostgreSQL({"idle_session_timeout": "2s"})
    if driver.startswith("mysql9"):
        return MySQL({"wait_timeout": 2, "interactive_timeout": 2})
    return MariaDB({"wait_timeout": 2, "interactive_timeout": 2})


@dataclass(frozen=True)
class Stand:
    """A database and an app on it."""

    server: Server
    site: Site


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(condition)``: wait until it is true, fail after a deadline."""
    return wait_until


@pytest.fixture
def ordeals() -> Callable[..., Outcome]:
    """``ordeals(stand)``: everything that happens to a database, under traffic; what came of it."""

    def run(
        stand: Stand, post: Callable[[int], tuple[str, dict[str, Any] | None]] | None = None
    ) -> Outcome:
        return ordeal(
            stand.server, stand.site, post or (lambda number: ("/items", {"number": number}))
        )

    return run


@pytest.fixture
def stands(sites: Callable[..., Site]) -> Iterator[Callable[..., Stand]]:
    """``stands(web, driver)``: an app of examples/ under the web server *web*, on a database of its
    own.
    """
    with ExitStack() as stack:

        def make(
            web: str, driver: str, *, plain: bool = False, app: str = "flask_app", query: str = ""
        ) -> Stand:
            server = stack.enter_context(database(driver))
            url = server.url(driver.removeprefix("mysql9 "))
            site = sites(web, app, f"{url}?{query}" if query else url, plain=plain)
            return Stand(server, site.wait_ready())

        yield make


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """``sites(web, app, url)``: an app of examples/ under the web server *web*, on the database at
    *url*.
    """
    numbers = count()
    with ExitStack() as stack:

        def make(web: str, app: str, url: str, *, plain: bool = False, **more: str) -> Site:
            port = free_port("127.0.0.1")
            env = {
                "DATABASE_URL": url,
                "PLAIN": "1" if plain else "",
                "PYTHONUNBUFFERED": "1",
                **more,
            }
            site = Site(
                commands(web, port, app),
                port,
                env,
                tmp_path / f"web{next(numbers)}.log",
                ROOT / "examples",
            )
            stack.callback(site.close)
            return site

        yield make


def commands(web: str, port: int, app: str) -> list[str]:
    """How a web server is started, as its manual says: two workers, nothing tuned for databases."""
    bind = f"127.0.0.1:{port}"
    name, *options = web.split()
    gunicorn = [
        str(BIN / "gunicorn"),
        "-b",
        bind,
        "-w",
        "2",
        "--log-level",
        "warning",
        f"{app}:app",
    ]
    kinds = {
        "sync": [*gunicorn], "gthread": [*gunicorn, "-k", "gthread", "--threads", "4"],
        "gevent": [*gunicorn, "-k", "gevent"],
        "uwsgi": [str(BIN / "uwsgi"), "--http-socket", bind, "--master", "--processes", "2", "--need-app", "--die-on-term", "--module", f"{app}:app", "--home", str(BIN.parent), "--disable-logging"],  # noqa: E501
        "tornado": [sys.executable, f"{app}.py", str(port)],
        "uvicorn": [str(BIN / "uvicorn"), "--host", "127.0.0.1", "--port", str(port), "--workers", "2", "--log-level", "warning", f"{app}:app"],  # noqa: E501
    }  # fmt: skip
    return [*kinds[name], *options]
