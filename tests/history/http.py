"""Histories over HTTP: web apps under real web servers, clients that repeat what they are told they
may, faults meanwhile.

From a shell: PYTHONPATH=tests python -m history.http flask-mariadb --seconds 60 --seed 7
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Self

import psutil

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server
from unbroken_drill.servers.ports import free_port

from .faults import Faults

CLIENTS = 8
#: A client that is told to try again later does so a little sooner, so that a short history holds
#: many repeats.
HASTE = 0.2
#: One client in so many takes a 503 for its last word: then nothing may be stored.
GIVES_UP = 5
SITES = Path(__file__).with_name("sites")
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Stand:
    """An app under a web server, on a database."""

    site: str  #: the file in sites/
    web: str
    driver: str
    manners: tuple[str, ...]  #: paths of its views

    @property
    def backend(self) -> str:
        """The kind of its database."""
        return "postgresql" if self.driver in ("psycopg", "psycopg2", "asyncpg") else "mariadb"

    def command(self, port: int) -> list[str]:
        """How its web server is started."""
        bind = f"127.0.0.1:{port}"
        if self.web == "uvicorn":
            app = f"{self.site}:{'asgi' if self.site == 'django_site' else 'app'}"
            options = [
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--workers",
                "2",
                "--log-level",
                "warning",
            ]
            return [str(BIN / "uvicorn"), *options, app]
        threads = ["-k", "gthread", "--threads", "4"] if self.web == "gthread" else []
        return [
            str(BIN / "gunicorn"),
            "-b",
            bind,
            "-w",
            "2",
            *threads,
            "--log-level",
            "warning",
            f"{self.site}:app",
        ]


def _both(*names: str) -> tuple[str, ...]:
    return (*names, *(f"replayed-{name}" for name in names))


_FLASK = ("reads", "replayed", "whole", "autocommit", "deadline", "swallowed")
_WSGI = _both("reads", "commits", "unit", "autocommit", "deadline")
_ASGI = (*_both("reads", "autocommit", "deadline"), "replayed-whole")
_DJANGO = _both("atomic", "reads", "autocommit", "deadline")

STANDS: dict[str, Stand] = {
    "flask-mariadb": Stand("flask_site", "gthread", "pymysql", _FLASK),
    "flask-postgresql": Stand("flask_site", "sync", "psycopg", _FLASK),
    "wsgi-mariadb": Stand("wsgi_site", "gthread", "pymysql", _WSGI),
    "wsgi-postgresql": Stand("wsgi_site", "gthread", "psycopg", _WSGI),
    "asgi-mariadb": Stand("asgi_site", "uvicorn", "aiomysql", _ASGI),
    "asgi-postgresql": Stand("asgi_site", "uvicorn", "asyncpg", _ASGI),
    "django-mariadb": Stand("django_site", "gthread", "mysqldb", _DJANGO),
    "django-postgresql": Stand("django_site", "gthread", "psycopg", _DJANGO),
    "django-uvicorn-mariadb": Stand("django_site", "uvicorn", "mysqldb", _DJANGO),
    "django-uvicorn-postgresql": Stand("django_site", "uvicorn", "psycopg", _DJANGO),
}

#: Its clients are told to try again whatever happened. It is there to be caught.
CARELESS = "careless"
KNOWN = STANDS | {
    CARELESS: Stand("careless_site", "gthread", "pymysql", ("reads", "commits", "unit"))
}


@dataclass
class Told:
    """What a client heard of one number, until it asked no more."""

    manner: str
    #: of each request: ``refused``, or the status and the error's name
    words: list[str] = field(default_factory=list)

    @property
    def is_acknowledged(self) -> bool:
        """Whether it ended with a 200."""
        return self.words[-1] == "200"


@dataclass
class Report:
    """What came of a history."""

    name: str
    requests: int
    told: dict[int, Told]
    stored: Counter[int]
    faults: Counter[str]
    slowest: float

    @property
    def wrongs(self) -> dict[str, list[str]]:
        """What is wrong, by its kind; empty when nothing is."""
        out: dict[str, list[str]] = {}
        for n, told in self.told.items():
            for wrong in _wrongs(told, self.stored[n]):
                out.setdefault(wrong, []).append(
                    f"{n} by {told.manner}: {told.words}, stored {self.stored[n]} times"
                )
        strange = [str(n) for n in self.stored if n not in self.told]
        return out | ({"strange": strange} if strange else {})

    def __str__(self) -> str:
        last = Counter(told.words[-1] for told in self.told.values())
        repeated = sum(len(told.words) > 1 for told in self.told.values())
        wrongs = {what: len(which) for what, which in self.wrongs.items()}
        return (
            f"{self.name}: {self.requests:,} requests for {len(self.told):,} rows, {repeated}"
            f" repeated, slowest {self.slowest:.1f} s; last words {dict(last)}; faults"
            f" {dict(self.faults)}; wrong {wrongs or 'nothing'}"
        )


def _wrongs(told: Told, stored: int) -> list[str]:
    last = told.words[-1]
    found = ["doubled"] if stored > 1 else []
    if told.is_acknowledged and not stored:
        found.append("lost")
    if last.startswith("503") and stored:
        found.append("told that nothing is stored")
    if last == "500 stored, not answered" and not stored:
        found.append("told that it is stored")
    return found


class Site:
    """The app and its web server, in processes of their own."""

    def __init__(self, stand: Stand, url: str, log: Path) -> None:
        self.port = free_port("127.0.0.1")
        self._log = log
        env = {**os.environ, "DATABASE_URL": url, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                stand.command(self.port),
                cwd=SITES,
                env=env,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        end = time.monotonic() + 60.0
        while self.ask("GET", "/healthz")[0] != "200":
            assert self._process.poll() is None, self.tail()
            assert time.monotonic() < end, self.tail()
            time.sleep(0.05)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-3000:]

    def ask(self, method: str, path: str) -> tuple[str, bool]:
        """One request: its word (see :class:`Told`), and whether it may be repeated."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        try:
            conn.connect()
        except ConnectionRefusedError:
            conn.close()
            return "refused", True
        try:
            conn.request(method, path)
            response = conn.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, False
        finally:
            conn.close()
        may = response.status == 503 and response.getheader("Retry-After") is not None
        if response.status == 200:
            return "200", False
        with suppress(ValueError, AttributeError):
            return f"{response.status} {json.loads(body).get('error')}", may
        return str(response.status), may

    def kill_worker(self) -> None:
        """End one of the web server's workers at once, whatever it does; its master starts
        another.
        """
        with suppress(psutil.NoSuchProcess, IndexError):
            workers = [
                each
                for each in psutil.Process(self._process.pid).children()
                if "resource_tracker" not in " ".join(each.cmdline())
            ]
            Random(len(workers)).choice(workers).kill()


class Clients:
    """They POST numbers, and repeat what they are told they may, nothing else."""

    def __init__(self, site: Site, manners: tuple[str, ...], seed: int) -> None:
        self.site, self.manners, self.seed = site, manners, seed
        self.told: dict[int, Told] = {}
        self.requests = 0
        self.slowest = 0.0
        self._numbers = count(1)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(CLIENTS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120.0)
        assert not any(thread.is_alive() for thread in self._threads), (
            f"a request never ended: {self.site.tail()}"
        )

    def _work(self) -> None:
        while not self._over.is_set():
            n = next(self._numbers)
            random = Random(f"{self.seed}:{n}")
            told = self.told[n] = Told(random.choice(self.manners))
            self._ask(n, told, random)
            time.sleep(random.uniform(0.0, 0.01))

    def _ask(self, n: int, told: Told, random: Random) -> None:
        while True:
            started = time.monotonic()
            word, may_repeat = self.site.ask("POST", f"/{told.manner}/{n}")
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.requests += 1
            told.words.append(word)
            if not may_repeat or (
                word.startswith("503") and (self._over.is_set() or random.randrange(GIVES_UP) == 0)
            ):
                return
            if word == "refused" and self._over.is_set():
                return
            time.sleep(HASTE * random.random())


def play(name: str, server: Server, seconds: float, seed: int) -> Report:
    """One history of the stand *name* on *server*, which is running and nobody else's."""
    stand = KNOWN[name]
    server.start()  # after a history that broke off
    _prepare(server)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        protocol = "postgresql" if stand.backend == "postgresql" else "mysql"
        proxy = stack.enter_context(FaultProxy((server.host, server.port), protocol=protocol))
        query = {"sslmode": "disable"} if stand.driver.startswith("psycopg") else {}
        site = stack.enter_context(
            Site(stand, proxy.url(server.url(stand.driver, **query)), folder / "log")
        )
        clients = Clients(site, stand.manners, seed)
        faults = Faults(server, proxy, site.kill_worker, seed, "http")
        with clients:
            faults.play(seconds)
    server.kill_sessions()
    stored = Counter(int(row[0]) for row in server.admin("SELECT n FROM orders"))
    return Report(name, clients.requests, clients.told, stored, faults.played, clients.slowest)


def _prepare(server: Server) -> None:
    server.kill_sessions()
    server.admin("DROP TABLE IF EXISTS orders")
    key = "BIGSERIAL" if isinstance(server, PostgreSQL) else "BIGINT AUTO_INCREMENT"
    server.admin(
        f"CREATE TABLE orders (`key` {key} PRIMARY KEY, n BIGINT)".replace(
            "`", '"' if isinstance(server, PostgreSQL) else "`"
        )
    )
    if isinstance(server, PostgreSQL):
        server.admin(f'GRANT ALL ON orders TO "{server.user}"')
        server.admin(f'GRANT ALL ON SEQUENCE orders_key_seq TO "{server.user}"')


def server_of(name: str) -> Server:
    """A server of the kind that the stand *name* needs, not started."""
    return (
        PostgreSQL({"deadlock_timeout": "50ms"})
        if KNOWN[name].backend == "postgresql"
        else MariaDB({"innodb_lock_wait_timeout": 5})
    )


def main() -> int:
    """Play what the command line says; 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m history.http", description="Play histories over HTTP, and check them."
    )
    parser.add_argument(
        "names", nargs="+", choices=[*KNOWN, "all"], metavar="NAME", help=", ".join([*KNOWN, "all"])
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each name (default: 10)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bad = 0
    for name in STANDS if "all" in options.names else options.names:
        with server_of(name) as server:
            report = play(name, server, options.seconds, options.seed)
        print(
            report,
            *(f"  {what}: {which[:5]}" for what, which in report.wrongs.items()),
            sep="\n",
            flush=True,
        )
        bad += bool(report.wrongs)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
