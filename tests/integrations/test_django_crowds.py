"""Two hundred at once on five sessions: greenlets, and requests under ASGI.

Each crowd in an interpreter of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CROWD, MAX_SIZE = 200, 5

HEAD = """
import json, sys
import django
from django.conf import settings
given, crowd = json.loads(sys.argv[1]), int(sys.argv[2])
if given.pop("driver") == "pymysql":
    import pymysql
    pymysql.install_as_MySQLdb()
settings.configure(
    DATABASES={"default": given}, ROOT_URLCONF=__name__, SECRET_KEY="of tests only", ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["unbroken.django.middleware.UnbrokenMiddleware"],
)
django.setup()
from django.db import connection

served = []

def ask(number):
    with connection.cursor() as cursor:  # waits in line
        served.append(number)
        nap = "SELECT 1 FROM (SELECT SLEEP(0.01)) t" if connection.vendor == "mysql" else "SELECT 1 FROM pg_sleep(0.01)"
        cursor.execute(nap)
        return cursor.fetchone()[0]

pool = connection.unbroken_pool
taken = [pool.acquire() for _ in range(pool.settings.max_size)]  # until the whole crowd stands in line

def open_the_gate():
    assert pool.stats().waiting == crowd, pool.stats()
    for each in taken:
        pool.release(each)

def tell(answers):
    stats = pool.stats()
    print(json.dumps({"answers": answers, "served": served, "opened": stats.opened, "used": stats.used,
                      "waiting": stats.waiting, "leaked": stats.leaked}))
"""  # noqa: E501

GREENLETS = (
    "from gevent import monkey; monkey.patch_all()\n"
    + HEAD
    + """
import gevent

def request(number):
    try:
        return ask(number)
    finally:
        connection.close()

greenlets = []
for number in range(crowd):
    greenlets.append(gevent.spawn(request, number))
    while pool.stats().waiting <= number:
        gevent.sleep(0)
open_the_gate()
gevent.joinall(greenlets, raise_error=True)
tell([each.value for each in greenlets])
"""
)

REQUESTS = (
    HEAD
    + """
import asyncio
import httpx
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.urls import path

def blocking(request, number):
    return HttpResponse(str(ask(number)))

async def asynchronous(request, number):
    return HttpResponse(str(await sync_to_async(ask)(number)))

urlpatterns = [path("blocking/<int:number>", blocking), path("asynchronous/<int:number>", asynchronous)]

async def everybody():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(ASGIHandler()), base_url="http://site", timeout=30) as client:
        async def one(number):
            reply = await client.get(f"/{'asynchronous' if number % 2 else 'blocking'}/{number}")
            return int(reply.text) if reply.status_code == 200 else f"{reply.status_code} {reply.text[:300]}"
        requests = []
        for number in range(crowd):
            requests.append(asyncio.create_task(one(number)))
            while pool.stats().waiting <= number:
                await asyncio.sleep(0.001)
        open_the_gate()
        return await asyncio.gather(*requests)

tell(asyncio.run(everybody()))
"""  # noqa: E501
)


@pytest.fixture
def gather(mariadb: Any, postgres: Any, tmp_path: Path) -> Any:
    """``gather(script, driver)``: what the script told, and the most sessions that the server had
    meanwhile.
    """

    def run(script: str, driver: str) -> tuple[dict[str, Any], int]:
        server = postgres if driver.startswith("psycopg") else mariadb
        given = {
            "driver": driver,
            "ENGINE": f"unbroken.django.{'postgresql' if server is postgres else 'mysql'}",
            "NAME": server.database, "USER": server.user, "PASSWORD": server.password,
            "HOST": server.host, "PORT": server.port,
            "OPTIONS": {"unbroken": {"max_size": MAX_SIZE, "acquire_timeout": 30.0}},
        }  # fmt: skip
        out = tmp_path / "out"
        most, until = 0, time.monotonic() + 60
        # of tests before: a server may take its time to end one
        others = {session.id for session in server.sessions()}
        with out.open("wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-c", script, json.dumps(given), str(CROWD)],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            while child.poll() is None:
                assert time.monotonic() < until, out.read_text()[-2000:]
                most = max(most, len({session.id for session in server.sessions()} - others))
                time.sleep(0.005)
        finally:
            child.kill()
            child.wait()
        assert child.returncode == 0, out.read_text()[-2000:]
        return json.loads(out.read_text().splitlines()[-1]), most

    return run


def hold(told: dict[str, Any], most: int) -> None:
    assert told["answers"] == [1] * CROWD
    assert most == MAX_SIZE
    assert told["opened"] == MAX_SIZE
    assert (told["used"], told["waiting"], told["leaked"]) == (0, 0, 0)
    worst = max(abs(number - at) for at, number in enumerate(told["served"]))
    assert worst <= 4 * MAX_SIZE, (
        f"somebody was served {worst} places away from where they stood in line"
    )


@pytest.mark.parametrize("driver", ["pymysql", "psycopg"])
def test_two_hundred_greenlets_share_five_sessions_in_their_order(driver: str, gather: Any) -> None:
    told, most = gather(GREENLETS, driver)
    hold(told, most)


def test_two_hundred_requests_under_asgi_share_five_sessions_in_their_order(gather: Any) -> None:
    told, most = gather(REQUESTS, "mysqldb")
    hold(told, most)
