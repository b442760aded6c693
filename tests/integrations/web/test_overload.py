"""More requests than connections: a request's class, health checks first, and a 503 at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse

import unbroken
import unbroken.asgi
import unbroken.flask
import unbroken.wsgi
from unbroken.brain.ranks import Rank
from unbroken.integrations.web.settings import HttpSettings
from unbroken.pool import callers

from .test_wsgi import Client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "not true in time"
        time.sleep(0.002)


def seen(_environ: Any, start: Any) -> list[bytes]:
    rank, user = callers.caller()
    start("200 OK", [])
    return [f"{rank.name} {user is not None and not user.begun}".encode()]


PATHS = {"/admin": "health", "/admin/export": "background", "/reports": "background"}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "NORMAL"), ("/admin", "HEALTH"), ("/admin/users", "HEALTH"),
        ("/admin/export/1", "BACKGROUND"), ("/reports", "BACKGROUND"), ("/reports-old", "NORMAL"),
    ],
)  # fmt: skip
def test_a_request_has_the_class_that_its_path_has(path: str, said: str) -> None:
    app = Client(unbroken.wsgi.Unbroken(seen, priority=PATHS))
    assert app.ask(path=path) == f"{said} True".encode()
    assert callers.caller() == (Rank.NORMAL, None)


def test_a_callable_may_read_a_header_of_the_applications_own_proxy() -> None:
    app = Client(unbroken.wsgi.Unbroken(seen, priority=lambda environ: environ.get("HTTP_X_CLASS")))
    assert app.ask(HTTP_X_CLASS="background") == b"BACKGROUND True"
    assert app.ask() == b"NORMAL True"


@pytest.mark.parametrize("wrong", [{"/a": "urgent"}, {"a": "health"}, {3: "health"}, "health", 7])
def test_what_is_no_class_or_no_path_is_told_when_the_application_starts(wrong: Any) -> None:
    with pytest.raises(unbroken.ConfigurationError, match="priority"):
        HttpSettings.of(priority=wrong)


async def test_nobody_waits_for_what_is_done_after_the_response() -> None:
    app, after = FastAPI(), []

    async def later() -> None:
        user = callers.caller()[1]
        after.append(user is not None and not user.begun)

    @app.get("/")
    async def page() -> PlainTextResponse:
        user = callers.caller()[1]
        after.append(user is not None and not user.begun)
        return PlainTextResponse("ok", background=BackgroundTask(later))

    transport = httpx.ASGITransport(unbroken.asgi.Unbroken(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/")).text == "ok"
    assert after == [True, False]


async def test_requests_beyond_the_line_get_503_at_once_each_with_another_time_to_come_again(
    postgres,
) -> None:
    async with unbroken.AsyncPool(postgres.url("psycopg"), max_size=1, max_waiting=1) as pool:
        app = FastAPI()

        @app.get("/")
        async def page() -> str:
            async with pool.connection():
                return "ok"

        transport = httpx.ASGITransport(unbroken.asgi.Unbroken(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with pool.connection():
                first = asyncio.create_task(client.get("/"))
                async with asyncio.timeout(10):
                    while pool.stats().waiting < 1:
                        await asyncio.sleep(0.002)
                told = [await client.get("/") for _ in range(30)]
            assert (await first).status_code == 200
    assert {each.status_code for each in told} == {503}
    assert "UB212" in told[0].text
    assert "no free connection" in told[0].text
    times = {int(each.headers["Retry-After"]) for each in told}
    assert len(times) > 1
    assert times <= set(range(1, 6))


@pytest.mark.parametrize("kind", ["wsgi", "flask"])
def test_a_health_check_is_answered_before_those_that_came_before_it(postgres, kind: str) -> None:
    with unbroken.Pool(postgres.url("psycopg"), max_size=1) as pool:
        order: list[str] = []

        def use(environ: Any, start: Any) -> list[bytes]:
            with pool.connection():
                time.sleep(0.3)
            order.append("page")
            start("200 OK", [])
            return [b"ok"]

        app: Any = unbroken.wsgi.Unbroken(use, databases=[pool], readyz="/readyz", ready_timeout=9)
        if kind == "flask":
            import flask

            inner = flask.Flask(__name__)
            extension = unbroken.flask.Unbroken(inner, databases=[pool], ready_timeout=9)
            inner.register_blueprint(extension.blueprint())
            inner.add_url_rule("/", view_func=lambda: use({}, lambda *_: None)[0])
            app = inner.wsgi_app

        def ask(path: str) -> None:
            Client(app).ask(path=path)
            if path == "/readyz":
                order.append(path)

        held = pool.acquire()
        threads = [threading.Thread(target=ask, args=(path,)) for path in ("/", "/", "/readyz")]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: pool.stats().waiting == number + 1)
        pool.release(held)
        for thread in threads:
            thread.join(10.0)
        assert order == ["/readyz", "page", "page"]
