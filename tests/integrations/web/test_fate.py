"""What a client is told of its writes: 503 and Retry-After only for a request that stored nothing,
through every body.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import flask
import httpx
import pytest
import sqlalchemy as sa
from django.db import connections, transaction
from django.http import JsonResponse
from django.test import AsyncClient, Client
from django.urls import path
from fastapi import FastAPI
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import unbroken
import unbroken.asgi
import unbroken.django
import unbroken.flask
import unbroken.wsgi
from unbroken.pool import servers
from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL

INSERT = "INSERT INTO fate VALUES (1)"
COUNT = "SELECT COUNT(*) FROM fate"

#: What a view does, step by step, and what its client must be told: status, fate, rows stored.
STORIES = {
    "reads": (["read", "away", "read"], 503, "nothing stored", 0),
    "commits, then reads": (["store", "away", "read"], 500, "stored", 1),
    "commits in a unit of its own": (["unit", "away", "read"], 500, "stored", 1),
    "commits, then reads in a unit": (["store", "away", "unit"], 500, "stored", 1),
    "holds writes that nobody committed": (["hold", "away", "read"], 503, "nothing stored", 0),
    "commits beside writes that nobody committed": (["hold", "store", "away", "read"], 500, "stored", 1),  # noqa: E501
    "commits on a thread": (["thread", "away", "read"], 500, "stored", 1),
    "writes in autocommit": (["alone", "away", "read"], 500, "", 1),
}  # fmt: skip


WORDS = {
    "nothing stored": "Nothing from this request is stored",
    "stored": "are stored, but its response",
    "unknown": "It is unknown whether",
}


EXCEPTION = "is stored, except in tables without transactions (MyISAM, Aria, MEMORY). Please"


class Place:
    """A server, a fault proxy before it, and a table."""

    def __init__(self, server: PostgreSQL | MariaDB, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy
        self.is_postgres = isinstance(server, PostgreSQL)

    def url(self, driver: str, **options: Any) -> str:
        return self.proxy.url(self.server.url(driver, **options))

    def away(self) -> None:
        """Every connection is reset, and none is taken."""
        self.proxy.refuse()
        self.proxy.rst()

    def rows(self) -> int:
        return int(self.server.admin(COUNT)[0][0])


@pytest.fixture(params=["postgresql", "mariadb"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    servers._records.clear()  # the proxy may get the port of an earlier one, which is away
    is_postgres = request.param == "postgresql"
    server = request.getfixturevalue("postgres" if is_postgres else "mariadb")
    server.admin(
        "CREATE TABLE fate (number INT)" + ("; GRANT ALL ON fate TO PUBLIC" if is_postgres else "")
    )
    with FaultProxy(
        (server.host, server.port), protocol="postgresql" if is_postgres else "mysql"
    ) as proxy:
        yield Place(server, proxy)
    server.kill_sessions()
    server.admin("DROP TABLE fate")


class Blocking:
    """Views that use a plain pool; each step is a method."""

    driver = ("psycopg", "pymysql")
    insert = INSERT

    def __init__(self, place: Place) -> None:
        self.place = place
        self.pool = unbroken.Pool(
            place.url(self.driver[0 if place.is_postgres else 1], outage_wait=0.2)
        )
        self.steps: list[str] = []

    def view(self) -> None:
        with contextlib.ExitStack() as stack:
            self.held = stack
            for step in self.steps:
                getattr(self, step)()

    def execute(self, conn: Any, sql: str) -> None:
        with conn.cursor() as cursor:
            cursor.execute(sql)

    def read(self) -> None:
        with self.pool.connection() as conn:
            self.execute(conn, COUNT)

    def store(self) -> None:
        with self.pool.connection() as conn:
            self.execute(conn, self.insert)

    def hold(self) -> None:
        self.execute(self.held.enter_context(self.pool.connection()), self.insert)

    def unit(self) -> None:
        self.pool.run(self.execute, self.insert)

    def thread(self) -> None:
        asyncio.run(asyncio.to_thread(self.store))  # type: ignore[func-returns-value]

    def alone(self) -> None:
        with self.pool.connection(transaction=False) as conn:
            conn.autocommit = True if self.place.is_postgres else conn.autocommit
            if not self.place.is_postgres:
                conn.autocommit(True)
            self.execute(conn, self.insert)

    def away(self) -> None:
        self.place.away()

    def close(self) -> None:
        self.pool.close(0.1)


class Wsgi(Blocking):
    """``unbroken.wsgi`` around a plain app."""

    def ask(self, method: str, **settings: Any) -> tuple[int, dict[str, str], bytes]:
        def app(_environ: Any, start_response: Any) -> Any:
            self.view()
            start_response("200 OK", [])
            return [b"{}"]

        return ask_wsgi(unbroken.wsgi.Unbroken(app, **settings), method)


def ask_wsgi(app: Any, method: str) -> tuple[int, dict[str, str], bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": "/"}
    setup_testing_defaults(environ)
    said: list[Any] = []
    result = app(environ, lambda status, headers, _exc=None: said.append((status, headers)))
    try:
        body = b"".join(result)
    finally:
        getattr(result, "close", lambda: None)()
    status, headers = said[-1]
    return int(status[:3]), {name.lower(): value for name, value in headers}, body


class Flask(Blocking):
    """The Flask extension with Flask-SQLAlchemy."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.app = flask.Flask("fate")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = place.url(
            self.driver[0 if place.is_postgres else 1], outage_wait=0.2
        )
        self.extension = unbroken.flask.Unbroken(self.app, databases=self.pool)
        self.db = SQLAlchemy(self.app)

        @self.app.route("/", methods=["GET", "POST"])
        def view() -> dict[str, str]:
            self.view()
            return {}

    def read(self) -> None:
        self.db.session.execute(sa.text(COUNT)).scalar()
        self.db.session.commit()

    def store(self) -> None:
        self.db.session.execute(sa.text(INSERT))
        self.db.session.commit()

    def thread(self) -> None:
        asyncio.run(asyncio.to_thread(super().store))  # type: ignore[func-returns-value]

    def hold(self) -> None:
        other = self.held.enter_context(self.db.engine.connect())
        other.execute(sa.text(INSERT))

    def alone(self) -> None:
        with self.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.text(INSERT))

    def ask(self, method: str) -> tuple[int, dict[str, str], bytes]:
        return ask_wsgi(self.app, method)

    def close(self) -> None:
        super().close()
        with self.app.app_context():
            self.db.engine.dispose()


class Awaiting:
    """Views that use an AsyncPool."""

    driver = ("asyncpg", "aiomysql")
    insert = INSERT

    def __init__(self, place: Place) -> None:
        self.place = place
        self.steps: list[str] = []

    def open(self) -> None:
        self.pool = unbroken.AsyncPool(
            self.place.url(self.driver[0 if self.place.is_postgres else 1], outage_wait=0.2)
        )

    async def view(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            self.held = stack
            for step in self.steps:
                await getattr(self, step)()

    async def execute(self, conn: Any, sql: str) -> None:
        if self.place.is_postgres:
            await conn.execute(sql)
            return
        async with conn.cursor() as cursor:
            await cursor.execute(sql)

    async def read(self) -> None:
        async with self.pool.connection() as conn:
            await self.execute(conn, COUNT)

    async def store(self) -> None:
        async with self.pool.connection() as conn:
            await self.execute(conn, self.insert)

    async def hold(self) -> None:
        await self.execute(await self.held.enter_async_context(self.pool.connection()), self.insert)

    async def unit(self) -> None:
        await self.pool.run(self.execute, self.insert)

    async def thread(self) -> None:
        blocking = Blocking(self.place)
        try:
            await run_in_threadpool(blocking.store)
        finally:
            blocking.close()

    async def alone(self) -> None:
        async with self.pool.connection(transaction=False) as conn:
            if not self.place.is_postgres:
                await conn.autocommit(True)
            await self.execute(conn, self.insert)

    async def away(self) -> None:
        await asyncio.to_thread(self.place.away)

    def app(self) -> Any:
        async def endpoint(_request: Request) -> Any:
            await self.view()
            return JSONResponse({})

        return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])

    def ask(self, method: str, **settings: Any) -> tuple[int, dict[str, str], bytes]:
        async def go() -> httpx.Response:
            self.open()
            transport = httpx.ASGITransport(
                unbroken.asgi.Unbroken(self.app(), **settings), raise_app_exceptions=False
            )
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                response = await client.request(method, "/")
            await self.shut()
            return response

        response = asyncio.run(go())
        return (
            response.status_code,
            {name.lower(): value for name, value in response.headers.items()},
            response.content,
        )

    async def shut(self) -> None:
        await self.pool.close(0.1)

    def close(self) -> None:
        pass


class Fastapi(Awaiting):
    """FastAPI with SQLAlchemy's async sessions."""

    def open(self) -> None:
        super().open()
        url = self.place.url(self.driver[0 if self.place.is_postgres else 1], outage_wait=0.2)
        self.engine = create_async_engine(url, plugins=["unbroken"])
        self.sessions = async_sessionmaker(self.engine)

    def app(self) -> Any:
        app = FastAPI()

        @app.api_route("/", methods=["GET", "POST"])
        async def endpoint() -> dict[str, str]:
            async with self.sessions() as self.session:
                await self.view()
            return {}

        return app

    async def read(self) -> None:
        await self.session.execute(sa.text(COUNT))
        await self.session.commit()

    async def store(self) -> None:
        await self.session.execute(sa.text(INSERT))
        await self.session.commit()

    async def hold(self) -> None:
        other = await self.held.enter_async_context(self.engine.connect())
        await other.execute(sa.text(INSERT))

    async def alone(self) -> None:
        async with self.engine.connect() as conn:
            conn = await conn.execution_options(isolation_level="AUTOCOMMIT")
            await conn.execute(sa.text(INSERT))

    async def shut(self) -> None:
        await super().shut()
        await self.engine.dispose()


served: Any = None  #: whose steps Django's view takes


def django_view(_request: Any) -> JsonResponse:
    served.view()
    return JsonResponse({})


urlpatterns = [path("", django_view)]


class Django(Blocking):
    """Django's middleware, under WSGI."""

    def __init__(self, place: Place, settings: Any) -> None:
        super().__init__(place)
        global served
        served = self
        self.alias = django_alias(place)
        settings.ROOT_URLCONF = __name__
        settings.MIDDLEWARE = ["unbroken.django.middleware.UnbrokenMiddleware"]

    def sql(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)

    def read(self) -> None:
        self.sql(COUNT)

    def alone(self) -> None:
        self.sql(INSERT)

    def store(self) -> None:
        with transaction.atomic(using=self.alias):
            self.sql(INSERT)

    def unit(self) -> None:
        unbroken.django.replayable(self.store)()

    def thread(self) -> None:
        asyncio.run(asyncio.to_thread(super().store))  # type: ignore[func-returns-value]

    def ask(self, method: str) -> tuple[int, dict[str, str], bytes]:
        response = Client(raise_request_exception=False).generic(method, "/")
        return (
            response.status_code,
            {name.lower(): value for name, value in response.items()},
            response.content,
        )

    def close(self) -> None:
        super().close()
        connections[self.alias].close()
        connections[self.alias].close_pool()
        del connections[self.alias]
        connections.settings.pop(self.alias)


class DjangoAsync(Django):
    """Django's middleware under ASGI, with the same blocking view."""

    def ask(self, method: str) -> tuple[int, dict[str, str], bytes]:
        async def go() -> Any:
            return await AsyncClient(raise_request_exception=False).generic(method, "/")

        response = asyncio.run(go())
        return (
            response.status_code,
            {name.lower(): value for name, value in response.items()},
            response.content,
        )


numbers = itertools.count()


def django_alias(place: Place, **more: Any) -> str:
    """A database of Django's, behind the proxy. asgiref keeps a thread, with its wrappers, from
    test to test: its name is new.
    """
    name, server = f"fate{next(numbers)}", place.server
    kind = "postgresql" if place.is_postgres else "mysql"
    made = {
        "ENGINE": f"unbroken.django.{kind}", "NAME": server.database, "USER": server.user,
        "HOST": place.proxy.host, "PASSWORD": server.password, "PORT": place.proxy.port,
        "OPTIONS": {"unbroken": {"outage_wait": 0.2, "acquire_timeout": 1.0}}, **more,
    }  # fmt: skip
    connections.settings[name] = connections.configure_settings({"default": {}, "x": made})["x"]
    return name


BODIES: dict[str, Callable[..., Any]] = {
    "wsgi": Wsgi, "flask": Flask, "asgi": Awaiting, "fastapi": Fastapi, "django": Django,
    "django under asgi": DjangoAsync,
}  # fmt: skip


@pytest.fixture(params=list(BODIES))
def body(request: pytest.FixtureRequest, place: Place) -> Iterator[Any]:
    kind = BODIES[request.param]
    made = (
        kind(place, request.getfixturevalue("settings"))
        if issubclass(kind, Django)
        else kind(place)
    )  # type: ignore[arg-type]
    yield made
    made.close()


def told(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and fate, which must agree with each other, with Retry-After and with the words."""
    status, headers, data = answer
    shown = json.loads(data)
    fate = shown["fate"]
    assert (
        (status == 503)
        == (fate == "nothing stored")
        == ("retry-after" in headers)
        == ("retry_after" in shown)
    )
    assert WORDS[fate] in shown["detail"]
    return status, fate


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("story", list(STORIES))
def test_only_a_request_that_stored_nothing_is_told_to_try_again(
    story: str, method: str, body: Any
) -> None:
    body.steps, status, fate, rows = STORIES[story]
    reply = body.ask(method)
    answer = told(reply)
    assert answer[0] == status
    assert fate in answer[1]
    assert body.place.rows() == rows
    if status == 503:  # only writes can have gone to such tables, which PostgreSQL has not
        may_keep = "hold" in body.steps and not body.place.is_postgres
        assert (EXCEPTION in json.loads(reply[2])["detail"]) == may_keep


@pytest.mark.parametrize("place", ["mariadb"], indirect=True)
@pytest.mark.parametrize("kind", [Wsgi, Awaiting])
def test_a_row_in_a_table_without_transactions_is_excepted_from_what_a_503_says(
    kind: Any, place: Place
) -> None:
    place.server.admin("ALTER TABLE fate ENGINE = MyISAM")
    body = kind(place)
    body.steps = ["hold", "away", "read"]
    reply = body.ask("POST")
    assert told(reply) == (503, "nothing stored")
    assert EXCEPTION in json.loads(reply[2])["detail"]
    assert place.rows() == 1
    body.close()


@pytest.mark.parametrize("story", ["reads", "commits, then reads"])
def test_the_log_says_the_same_words(
    story: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    body = Wsgi(place)
    body.steps, status, fate, _ = STORIES[story]
    body.ask("POST")
    assert (
        caplog.records[-1]
        .getMessage()
        .startswith(f"POST / was answered with {status} (its writes: {fate}): OutageError: ")
    )
    body.close()


def slow(place: Place, seconds: float) -> str:
    """An INSERT that takes so long."""
    if place.is_postgres:
        return f"INSERT INTO fate SELECT 1 FROM pg_sleep({seconds})"
    return f"INSERT INTO fate SELECT 1 + 0 * SLEEP({seconds})"


@pytest.mark.parametrize("kind", [Wsgi, Awaiting])
@pytest.mark.parametrize(
    ("step", "expected"), [("alone", (500, "unknown")), ("store", (503, "nothing stored"))]
)
def test_a_write_that_its_deadline_ended_is_told_to_be_tried_again_only_in_a_transaction(
    step: str, expected: tuple[int, str], kind: Any, place: Place, until: Callable[..., Any]
) -> None:
    """The server goes on with a write in autocommit, and stores it later."""
    body = kind(place)
    body.insert, body.steps = slow(place, 1.0), [step]
    assert told(body.ask("GET", deadline=0.3)) == expected
    if step == "alone":
        until(place.rows)
    else:
        until(lambda: not place.server.sessions())
        assert place.rows() == 0
    body.close()


@pytest.mark.parametrize("kind", [Wsgi, Awaiting])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_without_an_answer_is_unknown_whether_it_arrived_or_not(
    when: str, kind: Any, place: Place
) -> None:
    body = kind(place)
    body.steps = ["store"]
    place.proxy.cut_at("COMMIT", before=when == "before")
    assert told(body.ask("POST")) == (500, "unknown")
    assert place.rows() == (when == "after")
    body.close()


def test_no_free_connection_after_a_commit_is_no_reason_to_repeat_it_either(place: Place) -> None:
    class Busy(Wsgi):
        def away(self) -> None:
            for _ in range(self.pool.settings.max_size):
                self.held.enter_context(self.pool.connection())

        def read(self) -> None:
            self.pool.acquire(timeout=0.2)

    body = Busy(place)
    for steps, expected in (
        (["away", "read"], (503, "nothing stored")),
        (["store", "away", "read"], (500, "stored")),
    ):
        body.steps = steps
        assert told(body.ask("POST")) == expected
    body.close()


# -- Flask: what happens around a view -------------------------------------------------------------


@pytest.fixture
def shop(place: Place) -> Iterator[Flask]:
    made = Flask(place)
    yield made
    made.close()


@pytest.mark.parametrize("where", ["after_request", "teardown_request", "teardown_appcontext"])
def test_what_a_function_after_the_view_stores_counts(where: str, shop: Flask) -> None:
    """It runs when the page for the outage is made already, and what a view left open must not be
    stored by it.
    """
    other = sa.create_engine(
        shop.place.server.url("psycopg" if shop.place.is_postgres else "pymysql"),
        plugins=["unbroken"],
    )

    def store(given: Any) -> Any:
        with other.begin() as conn:
            conn.execute(sa.text(INSERT))
        return given

    getattr(shop.app, where)(store)
    shop.steps = ["read", "away", "read"]
    assert told(shop.ask("POST")) == (500, "stored")
    assert shop.place.rows() == 1
    other.dispose()


@pytest.mark.parametrize(
    ("step", "expected"), [("store", (500, "stored")), ("read", (503, "nothing stored"))]
)
def test_an_error_after_the_view_is_answered_by_what_the_view_stored(
    step: str, expected: tuple[int, str], shop: Flask
) -> None:
    def fail(given: Any) -> Any:
        shop.away()
        with shop.db.engine.connect():
            return given

    shop.app.after_request(fail)
    shop.steps = [step]
    assert told(shop.ask("POST")) == expected


def test_what_a_view_left_open_is_rolled_back_before_an_after_request_function_could_commit_it(
    shop: Flask,
) -> None:
    def commit(given: Any) -> Any:
        shop.db.session.commit()
        return given

    def leave_open() -> None:
        shop.db.session.execute(sa.text(INSERT))
        raise unbroken.OutageError("another database's")

    shop.app.after_request(commit)
    shop.away = leave_open  # type: ignore[method-assign]
    shop.steps = ["away"]
    assert told(shop.ask("POST")) == (503, "nothing stored")
    assert shop.place.rows() == 0


@pytest.mark.parametrize("status", [409, 502, 503])
def test_a_page_that_the_view_makes_of_an_outage_is_its_own(status: int, shop: Flask) -> None:
    @shop.app.errorhandler(Exception)
    def handler(_error: Exception) -> Any:
        return "sorry", status

    shop.steps = ["store", "away", "read"]
    answer = shop.ask("POST")
    assert (answer[0], answer[2]) == (status, b"sorry")
    assert "retry-after" not in answer[1]


def test_two_sessions_of_which_one_was_committed_are_not_told_to_be_tried_again(
    place: Place,
) -> None:
    """With ``commit=True``: the second one's server is lost in between."""
    from sqlalchemy.orm import scoped_session, sessionmaker

    driver = "psycopg" if place.is_postgres else "pymysql"
    direct = sa.create_engine(place.server.url(driver), plugins=["unbroken"])
    through = sa.create_engine(place.url(driver, outage_wait=0.2), plugins=["unbroken"])
    first, second = scoped_session(sessionmaker(direct)), scoped_session(sessionmaker(through))
    app = flask.Flask("two")
    unbroken.flask.Unbroken(app, commit=True, sessions=[first, second])

    @app.post("/")
    def view() -> str:
        for session in (first, second):
            session.execute(sa.text(INSERT))
        sa.event.listen(direct, "commit", lambda _conn: place.away())
        return "well"

    assert told(ask_wsgi(app, "POST")) == (500, "stored")
    assert place.rows() == 1
    direct.dispose()
    through.dispose()


# -- apps in apps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["before", "after"])
def test_what_an_outer_part_of_the_same_request_stored_counts_for_a_mounted_app(
    layer: str, place: Place
) -> None:
    outer, inner = Wsgi(place), Wsgi(place)
    inner.steps = ["away", "read"] if layer == "before" else ["read", "away", "read"]

    def mounted(_environ: Any, start_response: Any) -> Any:
        inner.view()
        start_response("200 OK", [])
        return [b"{}"]

    part = unbroken.wsgi.Unbroken(mounted)

    def app(environ: Any, start_response: Any) -> Any:
        if layer == "before":
            outer.store()
            return part(environ, start_response)
        found = part(environ, start_response)
        with unbroken.Pool(
            place.server.url("psycopg" if place.is_postgres else "pymysql")
        ) as direct:
            direct.run(outer.execute, INSERT)
        return found

    assert told(ask_wsgi(unbroken.wsgi.Unbroken(app), "POST")) == (500, "stored")
    assert place.rows() == 1
    outer.close()
    inner.close()


def test_a_mounted_asgi_app_shares_the_ledger_of_the_whole_request(place: Place) -> None:
    body = Awaiting(place)

    async def go() -> httpx.Response:
        body.open()
        inner = FastAPI()

        @inner.post("/")
        async def endpoint() -> None:
            await body.away()
            await body.read()

        async def first(request: Request, call_next: Any) -> Any:
            await body.store()
            return await call_next(request)

        outer = FastAPI()
        outer.mount("/inner", unbroken.asgi.Unbroken(inner))
        outer.middleware("http")(first)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(unbroken.asgi.Unbroken(outer)), base_url="http://test"
        ) as client:
            response = await client.post("/inner/")
        await body.shut()
        return response

    response = asyncio.run(go())
    assert told((response.status_code, dict(response.headers), response.content)) == (500, "stored")
    assert place.rows() == 1


# -- Django ----------------------------------------------------------------------------------------


@pytest.fixture
def site(place: Place, settings: Any) -> Iterator[Django]:
    made = Django(place, settings)
    yield made
    made.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_atomic_requests_on_two_databases_of_which_one_was_committed(
    is_async: bool, site: Django
) -> None:
    """The inner block commits, then the server of the outer one is lost."""
    with FaultProxy(
        (site.place.server.host, site.place.server.port), protocol=site.place.proxy.protocol
    ) as proxy:
        other = Place(site.place.server, proxy)
        inner, outer = site.alias, django_alias(other)
        for alias in (inner, outer):
            connections.settings[alias]["ATOMIC_REQUESTS"] = True

        def both() -> None:
            for alias in (inner, outer):
                connections[alias].settings_dict["ATOMIC_REQUESTS"] = True
                with connections[alias].cursor() as cursor:
                    cursor.execute(INSERT)
            transaction.on_commit(other.away, using=inner)

        site.store = both  # type: ignore[method-assign]
        site.steps = ["store"]
        answer = (DjangoAsync if is_async else Django).ask(site, "POST")
        assert told(answer) == (500, "stored")
        assert site.place.rows() == 1
        connections[outer].close()
        connections[outer].close_pool()
        del connections[outer]
        connections.settings.pop(outer)


# -- databases that no driver of ours speaks to ----------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("SELECT COUNT(*) FROM other", (503, "nothing stored")),
        ("INSERT INTO other VALUES (1)", (500, "unknown")),
        ("raw", (500, "unknown")),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_write_through_an_engine_without_the_plugin_is_unknown(
    step: str, expected: tuple[int, str], kind: str, place: Place, tmp_path: Any
) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    with engine.begin() as conn:
        conn.execute(sa.text("CREATE TABLE other (number INT)"))

    def write() -> None:
        if step == "raw":
            engine.raw_connection().close()
            return
        with engine.begin() as conn:
            conn.execute(sa.text(step))

    class Writing(Wsgi if kind == "sync" else Awaiting):  # type: ignore[misc]
        if kind == "sync":

            def store(self) -> None:
                write()

        else:

            async def store(self) -> None:
                await asyncio.to_thread(write)

    body = Writing(place)
    body.steps = ["store", "away", "read"]
    assert told(body.ask("POST", databases=[engine])) == expected
    body.close()
    engine.dispose()


def test_a_write_to_a_flask_bind_without_the_plugin_is_unknown(place: Place, tmp_path: Any) -> None:
    app = flask.Flask("binds")
    app.config["SQLALCHEMY_DATABASE_URI"] = place.url(
        "psycopg" if place.is_postgres else "pymysql", outage_wait=0.2
    )
    app.config["SQLALCHEMY_BINDS"] = {"file": f"sqlite:///{tmp_path}/other.db"}
    unbroken.flask.Unbroken(app)
    db = SQLAlchemy(app)

    @app.post("/")
    def view() -> str:
        with db.engines["file"].begin() as conn:
            conn.execute(sa.text("CREATE TABLE other (number INT)"))
        place.away()
        db.session.execute(sa.text(COUNT))
        return "well"

    assert told(ask_wsgi(app, "POST")) == (500, "unknown")
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [("SELECT 1", (503, "nothing stored")), ("CREATE TABLE other (n int)", (500, "unknown"))],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_write_to_a_database_of_django_with_another_engine_is_unknown(
    sql: str, expected: tuple[int, str], is_async: bool, site: Django, tmp_path: Any
) -> None:
    other = f"other{next(numbers)}"
    made = {
        "default": {},
        "x": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "other.db")},
    }
    connections.settings[other] = connections.configure_settings(made)["x"]

    def store() -> None:
        with connections[other].cursor() as cursor:
            cursor.execute(sql)

    site.store = store  # type: ignore[method-assign]
    site.steps = ["store", "away", "read"]
    assert told((DjangoAsync if is_async else Django).ask(site, "POST")) == expected
    connections[other].close()
    del connections[other]
    connections.settings.pop(other)
