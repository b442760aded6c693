"""Open-loop traffic over HTTP on web servers whose pool of five connections can serve less: half of
what it can serve up to five times as much. Users leave after a second.

``python bench/overload_http.py [seconds] [unit of work in seconds] [apps …]``; not a part of
``make bench``: it takes minutes, and wants a quiet machine. ``SERVER=mariadb`` for MariaDB.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aiohttp

from unbroken_drill.servers import MariaDB, PostgreSQL
from unbroken_drill.servers.ports import free_port

BIN, HERE = Path(sys.executable).parent, Path(__file__).parent
SIZE, PATIENCE = int(os.environ.get("SIZE", "5")), 1.0
LOADS = tuple(map(float, os.environ.get("LOADS", "0.5 0.9 1 2 3 5").split()))
APPS = (
    "fastapi-unbroken", "fastapi-asyncpg", "fastapi-psycopg_pool", "fastapi-psycopg_pool=50",
    "flask-unbroken", "flask-sqlalchemy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Told:
    """What one user got: when it came, how long that took, and what (0: it left)."""

    came: float
    took: float
    status: int


@contextmanager
def serving(app: str, url: str, unit: float) -> Iterator[str]:
    """A web server with one worker: uvicorn, or gunicorn with 40 threads."""
    port = free_port("127.0.0.1")
    server = (
        ["uvicorn", "overload_apps:app", "--port", str(port), "--log-level", "critical"]
        if app.startswith("fastapi")
        else [
            "gunicorn", "overload_apps:app", "-k", "gthread", "--threads", "40", "-b",
            f"127.0.0.1:{port}", "--log-level", "critical",
        ]
    )  # fmt: skip
    environ = {**os.environ, "APP": app, "URL": url, "UNIT": str(unit)}
    process = subprocess.Popen(
        [sys.executable, "-m", *server],
        cwd=HERE, env=environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def ask(session: aiohttp.ClientSession, url: str, start: float, patience: float) -> Told:
    """One request of one user."""
    came = time.perf_counter()
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=patience)) as reply:
            await reply.read()
            status = reply.status
    except (TimeoutError, aiohttp.ClientError, OSError):
        status = 0
    return Told(came - start, time.perf_counter() - came, status)


async def load(base: str, rate: float, seconds: float, checks: bool) -> tuple[list[Told], ...]:
    """Users at *rate* a second, and health checks ten times a second: what they got."""
    random, start = Random(1), time.perf_counter()
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def users() -> list[Told]:
            tasks, when = [], 0.0
            while (when := when + random.expovariate(rate)) < seconds:
                await asyncio.sleep(start + when - time.perf_counter())
                tasks.append(asyncio.create_task(ask(session, f"{base}/", start, PATIENCE)))
            return await asyncio.gather(*tasks)

        async def monitor() -> list[Told]:
            tasks = []
            while checks and time.perf_counter() < start + seconds:
                await asyncio.sleep(0.1)
                tasks.append(asyncio.create_task(ask(session, f"{base}/readyz", start, 5.0)))
            return await asyncio.gather(*tasks)

        return tuple(await asyncio.gather(users(), monitor()))


async def up(base: str) -> None:
    """Wait until the server answers."""
    async with aiohttp.ClientSession() as session:
        for _ in range(300):
            if (await ask(session, f"{base}/", 0.0, 2.0)).status == 200:
                return
            await asyncio.sleep(0.1)
    raise SystemExit("the web server does not answer")


async def capacity(base: str) -> float:
    """Answers a second to as many users as there are connections, each of which comes again."""
    ends, done = time.perf_counter() + 3.0, 0
    async with aiohttp.ClientSession() as session:

        async def again() -> None:
            nonlocal done
            while time.perf_counter() < ends:
                got = await ask(session, f"{base}/", 0.0, 5.0)
                done += got.status == 200

        await asyncio.gather(*(again() for _ in range(SIZE + 1)))
    return done / 3.0


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    found = sorted(values)
    return 1000 * found[min(int(share * len(found)), len(found) - 1)] if found else 0.0


async def measure(app: str, url: str, unit: float, seconds: float) -> None:
    for factor in LOADS:
        with serving(app, url, unit) as base:
            await up(base)
            most = await capacity(base)
            users, checks = await load(base, factor * most, seconds, "unbroken" in app)
            after, _ = await load(base, 0.3 * most, 3.0, False)
            served = [each.took for each in users if each.status == 200]
            steady = [each.took for each in users if each.status == 200 and each.came > 2.0]
            told = [each.took for each in users if each.status >= 500]
            bad = [each.came for each in after if each.status != 200]
            line = (
                f"{app:24s} {factor:3.1f} of {most:4.0f}/s:"
                f" in time {len(served) / seconds / most:4.2f}"
                f"  p99 {quantile(served, 0.99):5.0f} (after 2 s {quantile(steady, 0.99):5.0f})"
                f"  told p50 {quantile(told, 0.5):5.1f} p99 {quantile(told, 0.99):5.0f} ms"
                f"  {dict(Counter(each.status for each in users))}"
                f"  well after {max(bad, default=0.0):4.2f} s"
            )
            if checks:
                line += f"  readyz p99 {quantile([c.took for c in checks], 0.99):4.0f} ms"
                line += f" {dict(Counter(c.status for c in checks))}"
            print(line, flush=True)


def main() -> None:
    seconds, unit, *apps = [*sys.argv[1:], *("8", "0.04")[len(sys.argv[1:3]) :]]
    is_mariadb = os.environ.get("SERVER") == "mariadb"
    with (MariaDB if is_mariadb else PostgreSQL)() as server:
        for app in apps or APPS:
            driver = "aiomysql" if app.startswith("fastapi") else "pymysql"
            url = server.url(driver if is_mariadb else "psycopg")
            asyncio.run(measure(app, url, float(unit), float(seconds)))


if __name__ == "__main__":
    main()
