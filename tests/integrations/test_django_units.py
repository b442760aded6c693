"""Requests and functions as units of work: run again where that is safe, an outage answered with
503.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, transaction
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from unbroken.django import replayable
from unbroken_drill.servers import MariaDB, PostgreSQL

server: Any = None  #: the one that the views speak to
alias = ""  #: and by which name: asgiref keeps a thread, with its wrappers, from test to test
numbers = itertools.count()
calls: list[str] = []
kills = 0


def kill() -> None:
    """The sessions end, as often as the test asked for it."""
    global kills
    if kills:
        kills -= 1
        server.kill_sessions()


def ask(sql: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def count() -> int:
    return int(ask("SELECT count(*) FROM note"))


def read(request: Any) -> Any:
    calls.append("read")
    request.visits = getattr(request, "visits", 0) + 1
    before = count()
    kill()
    with transaction.atomic(using=alias):
        # a statement outside would be healed without anybody's help
        ask("SELECT 1")
        kill()
        return JsonResponse({"notes": count(), "before": before, "visits": request.visits})


def write(request: Any) -> Any:
    calls.append("write")
    with transaction.atomic(using=alias):
        ask("INSERT INTO note VALUES (1)")
        kill()
        return JsonResponse({"notes": count(), "text": request.POST.get("text")})


def write_alone(request: Any) -> Any:
    calls.append("write_alone")
    ask("INSERT INTO note VALUES (1)")
    with transaction.atomic(using=alias):
        ask("SELECT 1")
        kill()
        return JsonResponse({"notes": count()})


def swallow(request: Any) -> Any:
    calls.append("swallow")
    try:
        return read(request)
    except OperationalError:
        return HttpResponse("sorry", status=500)


def stream(request: Any) -> Any:
    calls.append("stream")

    def lines() -> Iterator[str]:
        yield f"{count()}\n"
        kill()
        yield f"{count()}\n"

    return StreamingHttpResponse(lines())


async def read_async(request: Any) -> Any:
    calls.append("read_async")
    return await sync_to_async(read)(request)


def asking(request: Any) -> Any:
    """Asks the site itself, and loses its connection afterwards."""
    calls.append("asking")
    before = (
        Client(raise_request_exception=False)
        .generic(request.GET["method"], "/count")
        .content.decode()
    )
    with transaction.atomic(using=alias):
        ask("SELECT 1")
        kill()
        return HttpResponse(f"{before} {count()}")


def counting(_request: Any) -> Any:
    calls.append("counting")
    return HttpResponse(str(count()))


reading: list[Callable[[Any], Any]] = []


@replayable
def reader(request: Any) -> Any:
    """Reads the request as the test wants it, and stores a row."""
    reading[-1](request)
    with transaction.atomic(using=alias):
        ask("INSERT INTO note VALUES (1)")
        kill()
        ask("SELECT 1")
    return HttpResponse("read")


marked = replayable(write)
urlpatterns = [
    path("reader", reader), path("asking", asking), path("count", counting), path("read", read),
    path("write", write), path("marked", marked), path("write_alone", write_alone),
    path("swallow", swallow), path("stream", stream), path("read_async", read_async),
]  # fmt: skip


@pytest.fixture(params=["mysql", "postgresql"])
def site(request: Any, settings: Any, new_mariadb: Any, new_postgres: Any) -> Iterator[Client]:
    """A client of a site under the middleware."""
    global server, kills, alias
    alias = f"site{next(numbers)}"
    server = new_mariadb() if request.param == "mysql" else new_postgres()
    connections.settings[alias] = connections.configure_settings(
        { "default": {}, "x": { "ENGINE": f"unbroken.django.{request.param}", "NAME": server.database, "USER": server.user, "HOST": server.host, "PASSWORD": server.password, "PORT": server.port, "OPTIONS": {"unbroken": {"outage_wait": 0.2, "acquire_timeout": 1.0}}, }, },  # noqa: E501
    )["x"]  # fmt: skip
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = ["unbroken.django.middleware.UnbrokenMiddleware"]
    calls.clear()
    kills = 0
    ask("CREATE TABLE note (n integer)")
    connections[alias].close()
    yield Client(raise_request_exception=False)
    connections[alias].close()
    connections[alias].close_pool()
    del connections[alias]
    connections.settings.pop(alias)


def stored() -> int:
    return int(server.admin("SELECT count(*) FROM note")[0][0])


def test_a_get_whose_connection_is_lost_is_run_again_and_finds_the_request_as_it_was(
    site: Client,
) -> None:
    global kills
    kills = 2
    response = site.get("/read")
    assert (response.status_code, response.json()["visits"]) == (200, 1)
    assert calls == ["read", "read"]
    assert connections[alias].connection is None  # given back before the response went out


def test_a_get_is_not_run_again_after_a_write_in_autocommit(site: Client) -> None:
    global kills
    kills = 1
    assert site.get("/write_alone").status_code == 500
    assert calls == ["write_alone"]
    assert stored() == 1


def test_a_post_is_run_again_only_where_its_view_says_so(site: Client) -> None:
    global kills
    kills = 1
    assert site.post("/write", {"text": "a"}).status_code == 503
    assert stored() == 0
    kills = 1
    response = site.post("/marked", {"text": "b"})
    assert (response.status_code, response.json()) == (200, {"notes": 1, "text": "b"})
    assert calls == ["write", "write", "write"]
    assert stored() == 1


@pytest.mark.parametrize("inner", ["GET", "POST"])
def test_a_view_that_uses_a_client_inside_is_run_again_as_any_other(
    inner: str, site: Client
) -> None:
    global kills
    kills = 1
    assert site.get(f"/asking?method={inner}").content == b"0 0"
    assert calls == ["asking", "counting"] * 2


CONTENT = b"".join(b'"line %d", ' % number for number in range(3000))

READERS: dict[str, Callable[[Any], Any]] = {
    "body": lambda request: request.body,
    "read": lambda request: request.read(),
    "read in parts": lambda request: b"".join(iter(lambda: request.read(1000), b"")),
    "readline": lambda request: b"".join(iter(request.readline, b"")),
    "readlines": lambda request: b"".join(request.readlines()),
    "iteration": b"".join,
    "read, then body": lambda request: (request.read(10), request.body)[1],
    "below the request": lambda request: request.META["wsgi.input"].read(),
}


@pytest.mark.parametrize("how", list(READERS))
def test_a_view_that_reads_the_request_itself_finds_all_of_it_in_each_attempt(
    how: str, site: Client
) -> None:
    global kills
    kills, reader, found = 2, READERS[how], []
    reading.append(lambda request: found.append(reader(request)))
    assert site.generic("POST", "/reader", CONTENT, "text/plain").status_code == 200
    assert found == [CONTENT] * 3
    assert stored() == 1


@pytest.mark.parametrize("how", [how for how in READERS if how != "below the request"])
def test_it_finds_all_of_it_under_asgi_too(how: str, site: Client) -> None:
    global kills
    kills, reader, found = 2, READERS[how], []
    reading.append(lambda request: found.append(reader(request)))

    async def go() -> int:
        response = await AsyncClient(raise_request_exception=False).generic(
            "POST", "/reader", CONTENT, "text/plain"
        )
        await sync_to_async(lambda: connections[alias].close())()
        return int(response.status_code)

    assert asyncio.run(go()) == 200
    assert found == [CONTENT] * 3


def test_json_forms_and_files_are_there_in_each_attempt(site: Client) -> None:
    global kills
    found: list[Any] = []
    reading.append(lambda request: found.append(json.load(request)))
    kills = 1
    assert site.post("/reader", {"a": 1}, "application/json").status_code == 200
    reading.append(lambda request: found.append((request.read(5), request.POST["a"])))
    kills = 1
    assert site.post("/reader", "a=1&b=2", "application/x-www-form-urlencoded").status_code == 200
    reading.append(lambda request: found.append((request.POST["a"], request.FILES["file"].read())))
    kills = 1
    assert site.post("/reader", {"a": "1", "file": io.BytesIO(CONTENT)}).status_code == 200
    assert found == [{"a": 1}] * 2 + [(b"a=1&b", "1")] * 2 + [("1", CONTENT)] * 2
    assert stored() == 3


@pytest.mark.parametrize("how", [how for how in READERS if how != "below the request"])
def test_a_view_that_is_a_unit_by_itself_finds_all_of_it_too(
    how: str, site: Client, settings: Any
) -> None:
    """Without the middleware."""
    global kills
    settings.MIDDLEWARE = []
    kills, reader, found = 2, READERS[how], []
    reading.append(lambda request: found.append(reader(request)))
    assert (
        Client(raise_request_exception=False)
        .generic("POST", "/reader", CONTENT, "text/plain")
        .status_code
        == 200
    )
    assert found == [CONTENT] * 3
    assert stored() == 1


def test_a_body_that_is_too_long_to_be_kept_is_read_whole_and_its_request_not_run_again(
    site: Client, settings: Any
) -> None:
    global kills
    found: list[bytes] = []
    settings.UNBROKEN = {"max_body": 1000}
    reading.append(lambda request: found.append(request.read()))
    assert site.generic("POST", "/reader", CONTENT, "text/plain").status_code == 200
    kills = 1
    assert site.generic("POST", "/reader", CONTENT, "text/plain").status_code == 503
    assert found == [CONTENT] * 2
    assert stored() == 1


def test_atomic_requests_are_run_again_too(site: Client) -> None:
    global kills
    connections[alias].settings_dict["ATOMIC_REQUESTS"] = True
    kills = 1
    response = site.post("/marked", {"text": "b"})
    assert (response.status_code, response.json()["notes"]) == (200, 1)
    assert stored() == 1


def test_an_error_page_that_the_site_made_of_a_loss_is_not_sent(site: Client) -> None:
    global kills
    kills = 2
    assert site.get("/swallow").status_code == 200
    assert calls == ["swallow", "read", "swallow", "read"]


def test_nobody_is_told_of_an_error_that_another_attempt_cures(site: Client) -> None:
    global kills
    from django.core.signals import got_request_exception

    told: list[Any] = []

    def receiver(**kwargs: Any) -> None:
        told.append(kwargs)

    got_request_exception.connect(receiver)
    try:
        kills = 2
        assert site.get("/read").status_code == 200
        assert told == []
    finally:
        got_request_exception.disconnect(receiver)


def test_a_streaming_response_heals_between_its_statements_and_gives_back_at_its_end(
    site: Client,
) -> None:
    global kills
    kills = 1
    response = site.get("/stream")
    assert list(response.streaming_content) == [b"0\n", b"0\n"]
    response.close()
    assert calls == ["stream"]


@pytest.mark.parametrize(
    ("accept", "kind"), [("text/html", "text/html; charset=utf-8"), ("*/*", "application/json")]
)
def test_an_outage_is_answered_with_503_and_retry_after(
    site: Client, accept: str, kind: str
) -> None:
    assert site.get("/read").status_code == 200
    server.stop()
    response = site.get("/read", headers={"accept": accept})
    assert (response.status_code, response["Content-Type"]) == (503, kind)
    assert int(response["Retry-After"]) >= 1
    assert server.password.encode() not in response.content
    assert site.post("/write").status_code == 503


def plain_middleware(get_response: Any) -> Any:
    """Blocking only: under ASGI, Django runs it and all below it on threads, in turn with the
    loop.
    """

    def middleware(request: Any) -> Any:
        response = get_response(request)
        response["X-Seen"] = str(response.status_code)
        return response

    return middleware


@pytest.mark.parametrize("where", ["/read", "/read_async"])
def test_blocking_middleware_under_asgi_changes_nothing_and_what_it_adds_is_kept(
    where: str, site: Client, settings: Any
) -> None:
    global kills
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        f"{__name__}.plain_middleware",
        f"{__name__}.plain_middleware",
    ]

    async def go() -> list[Any]:
        client = AsyncClient(raise_request_exception=False)
        found = [await client.get(where)]
        await sync_to_async(server.stop)()
        found += [await client.get(where), await client.post(where)]
        await sync_to_async(lambda: connections[alias].close())()
        return found

    kills = 2
    lost, *away = asyncio.run(go())
    assert (lost.status_code, lost["X-Seen"]) == (200, "200")
    for response in away:
        assert (response.status_code, response["X-Seen"], response["Retry-After"]) == (
            503,
            "503",
            "1",
        )
        assert response.json()["fate"] == "nothing stored"
        assert int(response["Content-Length"]) == len(response.content)


def test_async_views_and_middleware_do_the_same(site: Client) -> None:
    global kills

    async def go() -> tuple[int, int, int]:
        client = AsyncClient(raise_request_exception=False)
        lost = await client.get("/read_async")
        sync_view = await client.get("/read")
        server.stop()
        away = await client.get("/read_async")
        await sync_to_async(lambda: connections[alias].close())()
        return lost.status_code, sync_view.status_code, away.status_code

    kills = 2
    assert asyncio.run(go()) == (200, 200, 503)
    assert calls[:4] == ["read_async", "read", "read_async", "read"]


def test_a_function_of_a_worker_is_a_unit_of_work(site: Client) -> None:
    global kills
    tries: list[int] = []

    @replayable
    def job() -> int:
        tries.append(1)
        with transaction.atomic(using=alias):
            ask("INSERT INTO note VALUES (2)")
            kill()
            return count()

    kills = 2
    count()  # the worker has its connection from before
    assert job() == 1
    assert len(tries) == 3
    assert stored() == 1


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("caught", [False, True])
def test_a_loss_inside_a_savepoint_is_run_again(site: Client, depth: int, caught: bool) -> None:
    global kills
    tries: list[int] = []

    def nested(left: int) -> None:
        with transaction.atomic(using=alias):
            ask(f"INSERT INTO note VALUES ({left})")
            if left:
                nested(left - 1)
            else:
                kill()
                ask("INSERT INTO note VALUES (9)")

    @replayable
    def job() -> None:
        tries.append(1)
        with transaction.atomic(using=alias):
            ask("INSERT INTO note VALUES (7)")
            try:
                nested(depth - 1)
            except OperationalError:
                if caught:
                    ask("SELECT 1")  # Django refuses it; the loss is behind that
                raise

    kills = 1
    job()
    assert len(tries) == 2
    assert stored() == depth + 2


def test_a_select_that_wrote_through_a_view_is_not_run_again(site: Client) -> None:
    global kills
    if connections[alias].vendor == "mysql":
        server.admin(
            "CREATE FUNCTION put() RETURNS INT BEGIN INSERT INTO note VALUES (1); RETURN 1; END"
        )
    else:
        server.admin(
            "CREATE FUNCTION put() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO note"
            " VALUES (1) RETURNING 1'"
        )
        server.admin("GRANT ALL ON note TO PUBLIC")
    server.admin("CREATE VIEW writing AS SELECT put() AS n")
    if connections[alias].vendor == "postgresql":
        server.admin("GRANT ALL ON writing TO PUBLIC")
    tries: list[int] = []

    @replayable
    def job() -> None:
        tries.append(1)
        ask("SELECT n FROM writing")  # committed by itself
        with transaction.atomic(using=alias):
            ask("SELECT 1")
            kill()
            ask("SELECT 1")

    kills = 1
    with pytest.raises(OperationalError):
        job()
    assert len(tries) == 1
    assert stored() == 1


def test_an_attempt_that_committed_is_not_run_again(site: Client) -> None:
    global kills

    @replayable
    def job() -> None:
        with transaction.atomic(using=alias):
            ask("INSERT INTO note VALUES (3)")
        with transaction.atomic(using=alias):
            ask("SELECT 1")
            kill()
            count()

    kills = 1
    with pytest.raises(OperationalError):
        job()
    assert stored() == 1


def test_a_deadlock_is_tried_again(site: Client) -> None:
    ask("INSERT INTO note VALUES (1), (2)")
    if connections[alias].vendor == "mysql":
        ask("ALTER TABLE note ADD PRIMARY KEY (n)")
    connections[alias].close()
    both_hold_one = threading.Barrier(2)
    tries: list[int] = []

    @replayable
    def job(first: int, second: int) -> None:
        tries.append(first)
        with transaction.atomic(using=alias):
            ask(f"UPDATE note SET n = n WHERE n = {first}")
            if tries.count(first) == 1:
                both_hold_one.wait(10)
            ask(f"UPDATE note SET n = n WHERE n = {second}")

    def run(first: int, second: int) -> None:
        try:
            job(first, second)
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(run, 1, 2), threads.submit(run, 2, 1)]:
            done.result()
    assert len(tries) == 3


def test_settings_of_the_middleware_that_cannot_work_are_refused(settings: Any) -> None:
    from django.core.exceptions import ImproperlyConfigured

    from unbroken.django.middleware import UnbrokenMiddleware

    for given, words in (
        ({"max_bodi": 1}, "did you mean 'max_body'"),
        ({"readyz": "/r"}, "is not a setting of the Django middleware"),
        ({"deadline": -1}, "deadline=-1"),
    ):
        settings.UNBROKEN = given
        with pytest.raises(ImproperlyConfigured, match=words):
            UnbrokenMiddleware(lambda request: None)


# -- the other drivers, each of which needs a process of its own -----------------------------------

PROGRAM = """
import json, sys
sys.modules.update(HIDE)
if PYMYSQL:
    import pymysql; pymysql.install_as_MySQLdb()
from django.conf import settings
settings.configure(DATABASES={"default": json.loads(sys.argv[1])}, SECRET_KEY="x", USE_TZ=True)
import django; django.setup()
from django.db import connection, transaction
def session():
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()" if connection.vendor == "mysql" else "SELECT pg_backend_pid()")
        return cursor.fetchone()[0]
first = session(); connection.close(); assert session() == first
connection.connection.close()  # as a server would
assert session() != first
with transaction.atomic():
    session()
connection.close()
with connection.cursor() as cursor:
    cursor.execute("SET time_zone = '+01:00'" if connection.vendor == "mysql" else "SET statement_timeout = 5000")
second = session(); connection.close(); assert session() == second
with connection.cursor() as cursor:
    cursor.execute("SELECT @@time_zone" if connection.vendor == "mysql" else "SHOW statement_timeout")
    assert cursor.fetchone()[0] in ("SYSTEM", "0")
connection.close()
assert connection.unbroken_pool._driver.errors[0] is connection.Database.OperationalError  # not a second copy of its module
print(type(connection.unbroken_pool._driver).__module__, connection.unbroken_pool.stats().opened)
"""  # noqa: E501


@pytest.mark.parametrize(("kind", "driver"), [("mysql", "pymysql"), ("postgresql", "psycopg2")])
def test_the_other_driver_that_django_takes_works_alike(
    kind: str, driver: str, mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    there: Any = mariadb if kind == "mysql" else postgres
    given = {
        "ENGINE": f"unbroken.django.{kind}", "NAME": there.database, "USER": there.user,
        "PASSWORD": there.password, "HOST": there.host, "PORT": there.port,
    }  # fmt: skip
    program = textwrap.dedent(PROGRAM).replace(
        "HIDE", '{"psycopg": None}' if driver == "psycopg2" else "{}"
    )
    program = program.replace("PYMYSQL", str(driver == "pymysql"))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [f"unbroken.drivers.{driver}", "2"]
