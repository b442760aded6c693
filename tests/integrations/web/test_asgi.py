"""The ASGI middleware around Starlette and FastAPI apps, and the session that comes back in every
case.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

import unbroken
import unbroken.asgi
from unbroken_drill.servers import MariaDB, PostgreSQL

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(
    app: Any, method: str = "GET", path: str = "/", *, raising: bool = False, **kwargs: Any
) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=raising)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **kwargs)


class Work:
    """Reads on one connection, which is lost the first *times*."""

    def __init__(self, server: PostgreSQL, times: int = 1) -> None:
        self.server, self.times, self.calls = server, times, 0
        self.pool = unbroken.AsyncPool(server.url("asyncpg"), outage_wait=0.2)

    async def __call__(self, sql: str = "SELECT 1") -> int:
        self.calls += 1
        async with self.pool.connection() as conn:
            await conn.execute(sql)
            if self.calls <= self.times:
                await asyncio.to_thread(self.server.kill_sessions)
            await conn.execute(sql)
        return self.calls

    async def __aenter__(self) -> Work:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.pool.close()


def starlette(endpoint: Callable[..., Any], **kwargs: Any) -> Starlette:
    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST", "HEAD"])], **kwargs)


async def test_a_get_whose_connection_is_lost_is_run_again(postgres: PostgreSQL) -> None:
    async with Work(postgres, times=2) as work:

        async def endpoint(request: Request) -> Any:
            assert "seen" not in request.scope
            request.scope["seen"] = True
            return PlainTextResponse(str(await work()))

        response = await ask(unbroken.asgi.Unbroken(starlette(endpoint)))
        assert (response.status_code, response.text) == (200, "3")


async def test_it_is_run_again_under_middleware_and_through_a_page_that_the_app_made_of_the_error(
    postgres: PostgreSQL,
) -> None:
    async def sorry(_request: Request, _exc: Exception) -> Any:
        return JSONResponse({"sorry": True}, 500)

    async def passing(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    async with Work(postgres, times=2) as work:

        async def endpoint(_request: Request) -> Any:
            return PlainTextResponse(str(await work()))

        app = starlette(endpoint, exception_handlers={Exception: sorry, OSError: sorry})
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
        response = await ask(unbroken.asgi.Unbroken(app))
        assert (response.status_code, response.text) == (200, "3")
        work.times = 100
        response = await ask(unbroken.asgi.Unbroken(app, max_replays=1))
        assert (response.status_code, response.json()["fate"]) == (503, "nothing stored")
        assert work.calls == 5


async def test_it_may_also_be_added_as_one_of_the_apps_own_middlewares(
    postgres: PostgreSQL,
) -> None:
    async with Work(postgres, times=2) as work:
        app = FastAPI()
        app.add_middleware(unbroken.asgi.Unbroken, readyz="/readyz", databases=work.pool)

        @app.get("/")
        async def endpoint() -> int:
            return await work()

        assert (await ask(app)).json() == 3
        assert (await ask(app, path="/readyz")).status_code == 200
        work.times = 100
        assert (await ask(app)).status_code == 503


@pytest.mark.parametrize("inner", ["GET", "POST"])
@pytest.mark.parametrize(("outer", "status", "tries"), [("GET", 200, 2), ("POST", 503, 1)])
async def test_an_endpoint_that_uses_a_client_inside_is_run_again_as_any_other(
    outer: str, status: int, tries: int, inner: str, postgres: PostgreSQL
) -> None:
    asked: list[str] = []
    async with Work(postgres, times=1) as work:

        async def endpoint(request: Request) -> Any:
            if "inner" in request.query_params:
                return PlainTextResponse("inner")
            asked.append((await ask(app, inner, params={"inner": "1"})).text)
            return PlainTextResponse(str(await work()))

        app = unbroken.asgi.Unbroken(starlette(endpoint))
        assert (await ask(app, outer)).status_code == status
    assert asked == ["inner"] * tries


async def test_the_apps_own_errors_are_its_own(postgres: PostgreSQL) -> None:
    async def endpoint(_request: Request) -> Any:
        raise ValueError("the app's own")

    app = unbroken.asgi.Unbroken(starlette(endpoint))
    assert (await ask(app)).text == "Internal Server Error"
    with pytest.raises(ValueError, match="own"):
        await ask(app, raising=True)


async def test_a_post_is_run_again_only_where_the_settings_say_so_and_with_its_body(
    postgres: PostgreSQL,
) -> None:
    bodies: list[bytes] = []

    async def attempt(**settings: Any) -> tuple[int, list[bytes]]:
        bodies.clear()
        async with Work(postgres) as work:

            async def endpoint(request: Request) -> Any:
                bodies.append(await request.body())
                return PlainTextResponse(str(await work()))

            response = await ask(
                unbroken.asgi.Unbroken(starlette(endpoint), **settings), "POST", content=b"hello"
            )
            return response.status_code, list(bodies)

    assert await attempt() == (503, [b"hello"])
    assert await attempt(replay="/") == (200, [b"hello", b"hello"])
    assert await attempt(replay=lambda scope: scope["path"] == "/") == (200, [b"hello", b"hello"])
    assert await attempt(methods=["POST"], max_body=4) == (503, [b"hello"])


async def test_a_stream_goes_out_as_it_is_made_and_is_not_begun_again(postgres: PostgreSQL) -> None:
    events: list[Any] = []
    async with Work(postgres, times=2) as work:

        async def chunks() -> AsyncIterator[bytes]:
            yield b""
            yield b"%d" % await work("SELECT 1")  # lost twice: the stream has not begun
            work.times = 100
            for number in range(2):
                events.append(f"made {number}")
                yield b"x"
            await work()

        async def endpoint(_request: Request) -> Any:
            return StreamingResponse(chunks())

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            events.append(message.get("body", message["type"]))

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [],
            "query_string": b"",
            "asgi": {"spec_version": "2.4"},
        }
        with pytest.raises(Exception, match="connection"):
            await unbroken.asgi.Unbroken(starlette(endpoint))(scope, receive, send)
    assert events == ["http.response.start", b"", b"3", "made 0", b"x", "made 1", b"x"]


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("how", ["body", "stream", "one chunk", "json"])
async def test_the_body_is_there_again_whole_however_it_is_read(
    how: str, layers: int, postgres: PostgreSQL
) -> None:
    content = b'{"word": "' + b"x" * 70_000 + b'"}'
    seen: list[Any] = []

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 10_000):
            yield content[at : at + 10_000]

    async with Work(postgres, times=2) as work:

        async def endpoint(request: Request) -> Any:
            if how == "body":
                seen.append(await request.body())
            elif how == "stream":
                seen.append(b"".join([part async for part in request.stream()]))
            elif how == "one chunk":
                async for part in request.stream():
                    seen.append(part)
                    break
            else:
                seen.append(await request.json())
            return PlainTextResponse(str(await work()))

        app = unbroken.asgi.Unbroken(behind(endpoint, layers), replay="/")
        response = await ask(app, "POST", content=parts())
        assert (response.status_code, response.text) == (200, "3")
    whole = {"body": content, "stream": content, "one chunk": content[:10_000]}.get(
        how, {"word": "x" * 70_000}
    )
    assert seen == [whole] * 3


async def test_a_body_that_is_too_long_to_be_kept_is_read_whole_and_its_request_not_run_again(
    postgres: PostgreSQL,
) -> None:
    seen: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield b"x" * 1000

    async with Work(postgres, times=1) as work:

        async def endpoint(request: Request) -> Any:
            seen.append(len(await request.body()))
            return PlainTextResponse(str(await work()))

        app = unbroken.asgi.Unbroken(starlette(endpoint), replay="/", max_body=4500)
        assert (await ask(app, "POST", content=parts())).status_code == 503
        assert (await ask(app, "POST", content=parts())).status_code == 200
    assert seen == [8000, 8000]


# -- streams behind middleware that ends them in order, whatever became of them --------------------


async def passing(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def behind(endpoint: Callable[..., Any], layers: int) -> Starlette:
    app = starlette(endpoint)
    for _ in range(layers):
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    return app


async def sent_by(app: Any, method: str = "GET") -> tuple[list[Any], BaseException | None]:
    """What a server is given, message by message, and what the app raised."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(
            message["status"]
            if message["type"] == "http.response.start"
            else (message["body"], message.get("more_body", False))
        )

    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "headers": [],
        "query_string": b"",
        "asgi": {"spec_version": "2.4"},
    }
    try:
        await app(scope, receive, send)
    except Exception as exc:
        return sent, exc
    return sent, None


@pytest.mark.parametrize("layers", [0, 1, 5])
async def test_a_stream_that_is_lost_before_its_first_chunk_is_run_again_or_an_error(
    layers: int, postgres: PostgreSQL
) -> None:
    async with Work(postgres, times=1) as work:

        async def chunks() -> AsyncIterator[bytes]:
            yield b"%d" % await work()
            yield b"!"

        async def endpoint(_request: Request) -> Any:
            return StreamingResponse(chunks())

        app = unbroken.asgi.Unbroken(behind(endpoint, layers))
        response = await ask(app)
        assert (response.status_code, response.text) == (200, "2!")
        work.calls = 0
        work.calls = 0
        assert (await ask(app, "POST")).status_code == 503
        work.calls = 0
        sent, raised = await sent_by(app, "POST")
        assert (sent[0], raised) == (503, None)


@pytest.mark.parametrize("layers", [1, 5])
async def test_an_outage_before_a_streams_first_chunk_is_a_503(
    layers: int, new_postgres: Callable[..., PostgreSQL]
) -> None:
    server = new_postgres()
    async with Work(server, times=0) as work:

        async def chunks() -> AsyncIterator[bytes]:
            yield b"%d" % await work()

        async def endpoint(_request: Request) -> Any:
            return StreamingResponse(chunks())

        app = unbroken.asgi.Unbroken(behind(endpoint, layers))
        assert (await ask(app)).text == "1"
        await asyncio.to_thread(server.stop)
        for method in ("GET", "POST"):
            response = await ask(app, method, raising=True)
            assert (response.status_code, response.json()["fate"]) == (503, "nothing stored")


@pytest.mark.parametrize("layers", [1, 5])
async def test_a_stream_that_the_app_breaks_before_its_first_chunk_is_an_error_and_no_empty_answer(
    layers: int,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        if layers:
            raise ValueError("the app's own")
        yield b"never"

    async def endpoint(_request: Request) -> Any:
        return StreamingResponse(chunks())

    app = unbroken.asgi.Unbroken(behind(endpoint, layers))
    for method in ("GET", "POST"):
        assert (await ask(app, method)).status_code == 500  # the server's: the app began with a 200
        sent, raised = await sent_by(app, method)
        assert sent == []
        assert isinstance(raised, ValueError)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_stream_that_is_lost_after_its_first_chunk_is_not_ended_as_if_it_were_whole(
    method: str, postgres: PostgreSQL
) -> None:
    async with Work(postgres, times=0) as work:

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            work.times = 100
            yield b"%d" % await work()

        async def endpoint(_request: Request) -> Any:
            return StreamingResponse(chunks())

        sent, raised = await sent_by(unbroken.asgi.Unbroken(behind(endpoint, 2)), method)
        assert sent == [200, (b"first", True)]
        assert raised is not None


@pytest.mark.parametrize("layers", [0, 2])
async def test_an_empty_stream_is_whole_before_its_background_task_is_done(layers: int) -> None:
    finished, whole = asyncio.Event(), asyncio.Event()

    async def later() -> None:
        await whole.wait()
        finished.set()

    async def endpoint(_request: Request) -> Any:
        return StreamingResponse(iter(()), background=BackgroundTask(later))

    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            assert not finished.is_set()
            whole.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [],
        "query_string": b"",
        "asgi": {"spec_version": "2.4"},
    }
    async with asyncio.timeout(20):
        await unbroken.asgi.Unbroken(behind(endpoint, layers))(scope, receive, send)
    assert finished.is_set()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def test_what_runs_after_the_response_is_a_unit_of_its_own(postgres: PostgreSQL) -> None:
    calls: list[int] = []

    async def task(pool: unbroken.AsyncPool) -> None:
        async def work(conn: Any) -> None:
            calls.append(1)
            await conn.execute("SELECT 1")
            if len(calls) == 1:
                await asyncio.to_thread(postgres.kill_sessions)
            await conn.execute("SELECT 1")

        await pool.run(work)

    async with Work(postgres) as work:

        async def endpoint(_request: Request) -> Any:
            return PlainTextResponse("sent", background=BackgroundTask(task, work.pool))

        response = await ask(unbroken.asgi.Unbroken(starlette(endpoint)), raising=True)
        assert (response.text, len(calls)) == ("sent", 2)


async def test_endpoints_on_threads_are_run_again_too(postgres: PostgreSQL) -> None:
    calls: list[int] = []
    with unbroken.Pool(postgres.url("psycopg")) as pool:
        app = FastAPI()

        @app.get("/")
        def endpoint() -> int:
            calls.append(1)
            with pool.connection() as conn:
                conn.execute("SELECT 1")
                if len(calls) == 1:
                    postgres.kill_sessions()
                conn.execute("SELECT 1")
            return len(calls)

        assert (await ask(unbroken.asgi.Unbroken(app))).json() == 2


async def test_an_outage_is_a_503_and_readiness_says_so(
    new_postgres: Callable[..., PostgreSQL],
) -> None:
    server = new_postgres()
    async with Work(server, times=0) as work:

        async def endpoint(_request: Request) -> Any:
            return PlainTextResponse(str(await work()))

        async def refusing(_request: Request, _exc: Exception) -> Any:
            return PlainTextResponse("sorry", 500)

        engine = create_async_engine(server.url("asyncpg"), plugins=["unbroken"])
        settings = {
            "databases": [work.pool, engine],
            "healthz": "/healthz",
            "readyz": "/readyz",
            "ready_timeout": 2,
        }
        app = unbroken.asgi.Unbroken(starlette(endpoint), **settings)
        assert (await ask(app)).status_code == 200
        ready = await ask(app, path="/readyz")
        assert (ready.status_code, ready.json()) == (
            200,
            {"status": "ok", "shop": "ok", "shop (2)": "ok"},
        )
        await asyncio.to_thread(server.stop)
        for made in (
            app,
            unbroken.asgi.Unbroken(
                starlette(endpoint, exception_handlers={Exception: refusing, OSError: refusing})
            ),
        ):
            for method in ("GET", "POST"):
                response = await ask(made, method, raising=True)
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
                assert response.json()["error"] == "service unavailable"
        response = await ask(app, headers={"accept": "text/html"})
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert (await ask(app, "HEAD")).content == b""
        ready = await ask(app, path="/readyz")
        assert (ready.status_code, ready.json()) == (
            503,
            {"status": "away", "shop": "away", "shop (2)": "away"},
        )
        assert (await ask(app, path="/healthz")).status_code == 200
        await engine.dispose()


async def test_everything_else_than_http_passes_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    wrapped = unbroken.asgi.Unbroken(app)
    for kind in ("lifespan", "websocket"):
        await wrapped({"type": kind}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan", "websocket"]


# -- sessions --------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncpg", "psycopg", "aiomysql"])
def url(request: pytest.FixtureRequest, postgres: PostgreSQL, mariadb: MariaDB) -> str:
    return (mariadb if request.param == "aiomysql" else postgres).url(request.param)


@pytest.mark.parametrize("plugins", [[], ["unbroken"]])
async def test_an_async_session_comes_back_in_every_case(url: str, plugins: list[str]) -> None:
    engine = create_async_engine(url, plugins=plugins, pool_size=2, max_overflow=0, pool_timeout=5)
    app = FastAPI()
    nap = "SELECT SLEEP(20)" if "mysql" in url else "SELECT pg_sleep(20)"
    session = Depends(unbroken.asgi.session(async_sessionmaker(engine)))
    inside = asyncio.Event()

    @app.get("/{what}")
    async def endpoint(what: str, db: Any = session) -> Any:
        await db.execute(sa.text("SELECT 1"))
        if what == "raise":
            raise ValueError("the app's own")
        if what == "stream":

            async def chunks() -> AsyncIterator[bytes]:
                while True:
                    await db.execute(sa.text("SELECT 1"))
                    yield b"x"

            return StreamingResponse(chunks())
        if what != "return":
            inside.set()
            await db.execute(sa.text(nap)) if what == "query" else await asyncio.sleep(20)
        return {}

    wrapped = unbroken.asgi.Unbroken(app)
    for _ in range(4):
        for what in ("return", "raise"):
            await ask(wrapped, path=f"/{what}")
        for what in ("query", "sleep"):
            inside.clear()
            task = asyncio.create_task(ask(wrapped, path=f"/{what}"))
            await asyncio.wait_for(inside.wait(), 10)
            await asyncio.sleep(0.02)  # into the query
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await _leave_a_stream(wrapped)
    async with asyncio.timeout(10):
        while engine.pool.checkedout():  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    assert (await ask(wrapped, path="/return")).status_code == 200
    await engine.dispose()


async def _leave_a_stream(app: Any) -> None:
    """A client that takes three chunks of an endless answer and goes away."""
    gone = asyncio.Event()
    chunks = 0

    async def receive() -> Any:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal chunks
        chunks += 1
        if chunks > 3:
            gone.set()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/stream",
        "headers": [],
        "query_string": b"",
        "asgi": {},
    }
    async with asyncio.timeout(10):
        await app(scope, receive, send)


async def test_a_blocking_session_comes_back_in_every_case(mariadb: MariaDB) -> None:
    engine = sa.create_engine(
        mariadb.url("pymysql"), plugins=["unbroken"], pool_size=2, max_overflow=0, pool_timeout=5
    )
    app = FastAPI()
    session = Depends(unbroken.asgi.session(sessionmaker(engine)))
    inside = asyncio.Event()

    @app.get("/{what}")
    def endpoint(what: str, db: Any = session) -> Any:
        db.execute(sa.text("SELECT 1"))
        if what == "raise":
            raise ValueError("the app's own")
        if what == "query":
            loop.call_soon_threadsafe(inside.set)
            db.execute(sa.text("SELECT SLEEP(0.2)"))
        return {}

    loop = asyncio.get_running_loop()
    wrapped = unbroken.asgi.Unbroken(app)
    for _ in range(4):
        for what in ("return", "raise"):
            await ask(wrapped, path=f"/{what}")
        inside.clear()
        task = asyncio.create_task(ask(wrapped, path="/query"))
        await asyncio.wait_for(inside.wait(), 10)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    async with asyncio.timeout(10):
        while engine.pool.checkedout():  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
    engine.dispose()
