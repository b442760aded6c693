"""Django's views on each way of connecting: requests a second, processor time, sessions opened, in
one run.

    python bench/django_views.py [--seconds 1.0] [--rounds 3]

prints rates as well, which `make bench` leaves out.

The site is examples/django_app.py, its view one query; requests go straight into Django's WSGI or
ASGI handler, without HTTP. Each way runs in a process of its own, in turns. Numbers are medians of
the rounds. Processor time is the site's own, not the server's: it hardly minds what else the
machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import Effort, Result, Row, Table, Target

from unbroken_drill.servers import MariaDB, PostgreSQL

EXAMPLES = Path(__file__).parents[1] / "examples"
WAYS = {
    "mysqldb": ("default", "persistent", "checked", "unbroken"),
    "psycopg": ("default", "persistent", "checked", "pool", "unbroken"),
}
NAMES = {
    "default": "Django, as it comes", "persistent": "Django, CONN_MAX_AGE=None",
    "checked": "… with health checks", "pool": "Django's own pool", "unbroken": "unbroken.django",
}  # fmt: skip
NOTE = (
    "Django's own work is in each row; unbroken's holds its middleware, which may run a request"
    " again."
)
REQUESTS = 1000


def request(app: Any) -> None:
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/items", "SCRIPT_NAME": "", "QUERY_STRING": "",
        "SERVER_NAME": "bench", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr,
    }  # fmt: skip
    status: list[str] = []
    response = app(environ, lambda text, _headers, _exc=None: status.append(text))
    b"".join(response)
    response.close()
    assert status == ["200 OK"], status


def rate(app: Any, threads: int, seconds: float) -> float:
    done = [0] * threads
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < until:
            request(app)
            done[number] += 1

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as running:
        for each in [running.submit(work, number) for number in range(threads)]:
            each.result()
    return sum(done) / (time.perf_counter() - started)


def coming_and_going(app: Any) -> None:
    """Each request on a thread of its own, eight at a time, as runserver does it."""
    places = threading.Semaphore(8)

    def work() -> None:
        with places:
            request(app)

    threads = [threading.Thread(target=work) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def under_asgi() -> None:
    """Twenty at a time through the ASGI handler."""
    import django_asgi

    async def one(places: asyncio.Semaphore) -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/items",
            "headers": [],
            "query_string": b"",
            "http_version": "1.1",
            "asgi": {},
        }
        messages = [{"type": "http.request", "body": b"", "more_body": False}]
        statuses: list[int] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if "status" in message:
                statuses.append(message["status"])

        async with places:
            await django_asgi.app(scope, receive, send)
        assert statuses == [200], statuses

    async def everything() -> None:
        places = asyncio.Semaphore(20)
        await asyncio.gather(*(one(places) for _ in range(REQUESTS)))

    asyncio.run(everything())


def child(what: str, seconds: float) -> float:
    sys.path.insert(0, str(EXAMPLES))
    import django_app

    for _ in range(20):
        request(django_app.app)
    started = time.perf_counter()
    if what == "cpu":
        begun = time.process_time()
        for _ in range(500):
            request(django_app.app)
        return (time.process_time() - begun) / 500 * 1e6
    if what in ("1", "4"):
        return rate(django_app.app, int(what), seconds)
    if what == "threads":
        coming_and_going(django_app.app)
    else:
        under_asgi()
    return REQUESTS / (time.perf_counter() - started)


def opened(server: Any) -> int:
    if server.backend == "mariadb":
        return int(server.admin("SHOW GLOBAL STATUS LIKE 'Connections'")[0][1])
    time.sleep(1.2)  # its statistics are that late
    return int(
        server.admin(f"SELECT sessions FROM pg_stat_database WHERE datname = '{server.database}'")[
            0
        ][0]
    )


def measure(server: Any, driver: str, way: str, what: str, seconds: float) -> tuple[float, int]:
    before = opened(server) if what in ("threads", "asgi") else 0
    url = f"{server.url(driver)}?engine={way}"
    command = [sys.executable, __file__, "--child", what, "--seconds", str(seconds)]
    done = subprocess.run(
        command, env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True
    )
    if done.returncode:
        print(f"{driver} {way} {what}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return 0.0, 0
    after = opened(server) if what in ("threads", "asgi") else 0
    return float(json.loads(done.stdout)), after - before - 1


def run(effort: Effort) -> Result:
    """Processor time of a request, and (not with --quick) sessions opened: what hardly minds how
    busy the machine is.
    """
    result = Result()
    for server, driver in (
        (MariaDB({"max_connections": 1100}), "mysqldb"),
        (PostgreSQL({"max_connections": 1100}), "psycopg"),
    ):
        with server:
            times: dict[str, list[float]] = {way: [] for way in WAYS[driver]}
            for _ in range(effort.repeats):
                for way in times:
                    times[way].append(measure(server, driver, way, "cpu", 0.0)[0] / 1e6)
            if not all(map(all, times.values())):
                raise RuntimeError("a site did not answer; its error stands above")
            base = min(times["persistent"])
            rows = [
                Row(NAMES[way], min(took), statistics.median(took), min(took) / base)
                for way, took in times.items()
            ]
            where = f"{server.backend}, {driver}"
            result.tables.append(
                Table(
                    f"Django, a view with one query, processor time: {where}",
                    "µs",
                    rows,
                    NAMES["persistent"],
                    NOTE,
                )
            )
            ours, theirs = min(times["unbroken"]), min(times["default"])
            result.targets.append(
                Target(
                    f"Django, {where}: less processor time than a connection for each request",
                    ours / theirs,
                    1.0,
                )
            )
            if effort.repeats > 1:
                for what, how in (("threads", "on a thread each"), ("asgi", "under ASGI")):
                    counts = [
                        Row(NAMES[way], measure(server, driver, way, what, 0.0)[1]) for way in times
                    ]
                    result.tables.append(
                        Table(f"Django, 1,000 requests {how}: {where}", "sessions opened", counts)
                    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--child")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.seconds)))
        return
    print(
        f"{'':32}{'1 thread':>12}{'4 threads':>12}{'processor':>14}"
        f"{'sessions opened in 1,000 requests':>36}"
    )
    print(f"{'':32}{'req/s':>12}{'req/s':>12}{'µs a request':>14}{'a thread each':>18}{'ASGI':>18}")
    for server, driver in (
        (MariaDB({"max_connections": 1100}), "mysqldb"),
        (PostgreSQL({"max_connections": 1100}), "psycopg"),
    ):
        with server:
            rates: dict[tuple[str, str], list[float]] = {}
            for _ in range(args.rounds):
                for way in WAYS[driver]:
                    for what in ("1", "4", "cpu"):
                        rates.setdefault((way, what), []).append(
                            measure(server, driver, way, what, args.seconds)[0]
                        )
            for way in WAYS[driver]:
                counts = [
                    measure(server, driver, way, what, args.seconds)[1]
                    for what in ("threads", "asgi")
                ]
                one, four, cpu = (statistics.median(rates[way, what]) for what in ("1", "4", "cpu"))
                print(
                    f"{server.backend:12}{way:20}{one:12.0f}{four:12.0f}{cpu:14.0f}{counts[0]:18}{counts[1]:18}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
