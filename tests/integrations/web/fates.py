"""Views whose steps a test chooses, in every web body, on a server behind a fault proxy."""

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

WORDS = {
    "nothing stored": "Nothing from this request is stored",
    "stored": "are stored, but its response",
    "unknown": "It is unknown whether",
}


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

    def lose(self) -> None:
        with self.pool.connection() as conn:
            self.execute(conn, self.insert)
            self.reset()
            self.execute(conn, COUNT)

    def reset(self) -> None:
        """All connections that are open now end; new ones work."""
        self.place.proxy.rst()

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

    def lose(self) -> None:
        self.db.session.execute(sa.text(INSERT))
        self.reset()
        self.db.session.execute(sa.text(COUNT))

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

    async def lose(self) -> None:
        async with self.pool.connection() as conn:
            await self.execute(conn, self.insert)
            await self.reset()
            await self.execute(conn, COUNT)

    async def reset(self) -> None:
        """As that of :class:`Blocking`."""
        await asyncio.to_thread(self.place.proxy.rst)

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

    async def lose(self) -> None:
        await self.session.execute(sa.text(INSERT))
        await self.reset()
        await self.session.execute(sa.text(COUNT))

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

    def lose(self) -> None:
        with transaction.atomic(using=self.alias):
            self.sql(INSERT)
            self.reset()
            self.sql(COUNT)

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
