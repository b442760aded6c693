"""Eight gunicorn workers and a server of thirty connections: ``share="auto"`` with ``max_size=10``
in each, beside pools whose size was tuned by hand, so that all of them together fit.

Clients ask as fast as they are answered. "All workers" spreads them as gunicorn does; "two workers"
has the clients keep their connections to two of them, so that six are idle.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import Effort, Result, Row, Table, Target

import unbroken
from unbroken_drill.servers import PostgreSQL

WORKERS, THREADS, CLIENTS = 8, 10, 64
#: What one request keeps the server busy for, in seconds: a database that is the bottleneck.
WORK = 0.1
#: What a server of 30 has for all of them, less the margin: 27 are not the superusers'.
BY_HAND = 24 // WORKERS
CONTENDERS: dict[str, dict[str, Any]] = {
    "by hand: max_size=3 in each of 8 workers": {"max_size": BY_HAND},
    'unbroken: max_size=10, share="auto"': {"max_size": 10, "share": "auto"},
    "max_size=10, nothing shared": {"max_size": 10},
}
HAND, OURS, _ = CONTENDERS


# -- the application, in gunicorn's workers --------------------------------------------------------


def application() -> Any:
    """Each request sleeps in the database; the answer names its worker and what its pool saw."""
    given = dict(each.split("=") for each in os.environ["POOL"].split())
    pool = unbroken.Pool(os.environ["URL"], **unbroken.Settings.from_text(given))

    def app(_environ: Any, start_response: Any) -> list[bytes]:
        status = "200 OK"
        try:
            with pool.connection() as conn:
                conn.execute(f"SELECT pg_sleep({WORK})")
        except unbroken.UnbrokenError:
            status = "503 Service Unavailable"
        headers = [
            ("X-Worker", str(os.getpid())), ("X-Failures", str(pool.stats().connect_failures)),
            ("Content-Length", "0"),
        ]  # fmt: skip
        start_response(status, headers)
        return [b""]

    return app


# -- the load --------------------------------------------------------------------------------------


class Load:
    """Clients that ask all the time; what they were answered."""

    def __init__(self, port: int, only: int | None = None) -> None:
        self.port, self.only, self.over = port, only, threading.Event()
        self.answers: collections.Counter[int] = collections.Counter()
        self.workers: set[str] = set()
        self.failures: dict[str, int] = {}
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        conn = self._connect()
        while not self.over.is_set():
            try:
                conn.request("GET", "/")
                answer = conn.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.answers[0] += 1
                time.sleep(0.01)
                conn = self._connect()
                continue
            self._note(answer)

    def _connect(self) -> http.client.HTTPConnection:
        """A connection to one of the workers that are wanted: gunicorn keeps it there."""
        while True:
            conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
            if self.only is None or self.over.is_set():
                return conn
            with contextlib.suppress(OSError, http.client.HTTPException):
                conn.request("GET", "/")
                answer = conn.getresponse()
                answer.read()
                worker = answer.headers["X-Worker"]
                if len(self.workers) < self.only:
                    self.workers.add(worker)
                if worker in self.workers:
                    return conn
            conn.close()

    def _note(self, answer: http.client.HTTPResponse) -> None:
        self.answers[answer.status] += 1
        worker = answer.headers["X-Worker"]
        self.failures[worker] = max(self.failures.get(worker, 0), int(answer.headers["X-Failures"]))

    def rate(self, seconds: float) -> float:
        """Good answers a second, in the next *seconds*."""
        before, began = self.answers[200], time.monotonic()
        time.sleep(seconds)
        return (self.answers[200] - before) / (time.monotonic() - began)

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(35.0)


@contextlib.contextmanager
def gunicorn(url: str, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A running gunicorn, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    words = [
        sys.executable, "-m", "gunicorn", "share:application()", "-w", str(WORKERS),
        "-k", "gthread", "--threads", str(THREADS), "--keep-alive", "60", "-b",
        f"127.0.0.1:{port}", "--preload", "--log-level", "error", "--chdir", str(here),
    ]  # fmt: skip
    pool = " ".join(f"{name}={value}" for name, value in settings.items())
    paths = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        words, env={**os.environ, "URL": url, "POOL": pool, "PYTHONPATH": paths}
    )
    try:
        until = time.monotonic() + 60.0
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60.0).close()
                break
            time.sleep(0.05)
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60.0)


def refusals(server: PostgreSQL) -> int:
    """How many connects the server has refused because it was full."""
    text = server.log.read_text(errors="replace")
    return sum(words in text_line for text_line in text.splitlines() for words in _FULL)


_FULL = ("too many clients already", "connection slots are reserved")


def run(effort: Effort) -> Result:
    """Requests a second, and refused connects."""
    seconds, rounds = (2.0, 2) if effort.repeats == 1 else (5.0, 4)
    rates: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    refused: collections.Counter[str] = collections.Counter()
    with PostgreSQL({"max_connections": 30}) as server:
        for _ in range(rounds):
            for name, settings in CONTENDERS.items():
                before = refusals(server)
                for case, only in (("all workers", None), ("two workers", 2)):
                    with gunicorn(server.url("psycopg"), **settings) as (_process, port):
                        load = Load(port, only)
                        time.sleep(4.0)  # until each pool has what it gets
                        rates[case, name].append(load.rate(seconds))
                        load.end()
                refused[name] += refusals(server) - before
    result = Result()
    for case in ("all workers", "two workers"):
        base = statistics.median(rates[case, HAND])
        rows = [
            Row(f"{name}; {refused[name]} connects refused", max(found), middle, middle / base)
            for name in CONTENDERS
            if (found := rates[case, name]) and (middle := statistics.median(found))
        ]
        title = f"8 gunicorn workers, 30 connections, load on {case}"
        result.tables.append(Table(title, "requests/s", rows, base=HAND, note=_NOTE))
        ours = statistics.median(rates[case, OURS])
        limit = 1 / 0.9
        promise = f"share, {case}: at least 0.9 of the throughput tuned by hand"
        result.targets.append(Target(promise, base / ours, limit))
    result.targets.append(
        Target("share: no connect is refused because the server is full", refused[OURS], 0, "")
    )
    return result


_NOTE = (
    f"{CLIENTS} clients that ask again as soon as they are answered; each request keeps one"
    f" connection for {WORK:g} s."
)
