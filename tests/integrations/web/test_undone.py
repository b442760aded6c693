"""A request that met a kill and was not run again: the log says which, why, and what to write.
What its client is told: test_lost_work.py.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest

import unbroken
import unbroken.asgi
import unbroken.flask
import unbroken.wsgi
from unbroken_drill.servers import PostgreSQL


@pytest.fixture
def pool(postgres: PostgreSQL) -> Iterator[unbroken.Pool]:
    with unbroken.Pool(postgres.url("psycopg")) as pool:
        yield pool


@pytest.fixture
def lose(pool: unbroken.Pool, postgres: PostgreSQL) -> Callable[[], None]:
    def work() -> None:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            postgres.kill_sessions()
            conn.execute("SELECT 2")

    return work


def environ(method: str, body: bytes = b"") -> dict[str, Any]:
    return {
        "REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": "/orders", "SERVER_NAME": "x",
        "QUERY_STRING": "token=hush", "SERVER_PORT": "80", "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)),
    }  # fmt: skip


def told(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The one warning about the lost work. The one after it is about the answer."""
    warnings = [r for r in caplog.records if r.levelname == "WARNING"]
    (record,) = [r for r in warnings if r.name != "unbroken.web"]
    assert len(warnings) <= 2
    assert "hush" not in caplog.text
    return record


def answer(app: Any, given: dict[str, Any]) -> tuple[str, bytes]:
    """The status and the body of a WSGI app's response."""
    said: list[str] = []
    body = b"".join(app(given, lambda status, *_: said.append(status)))
    return said[-1], body


def notes(error: BaseException | None) -> str:
    found: list[str] = []
    while error is not None:
        found += getattr(error, "__notes__", [])
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def test_an_unmarked_post_of_a_wsgi_app(
    pool: unbroken.Pool, lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    app = unbroken.wsgi.Unbroken(lambda *_: lose() or [b"well"], databases=pool)
    assert answer(app, environ("POST"))[0].startswith("503")
    record = told(caplog)
    said = record.getMessage()
    assert "unbroken did not run POST /orders again: a POST request is run again only if" in said
    assert "nothing was committed" in said
    assert "name its path in replay=" in said
    assert record.unbroken_request == "POST /orders"


def test_a_request_whose_ledger_forbids_it_gives_the_ledgers_reason_alone(
    pool: unbroken.Pool, lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def view(*_: Any) -> list[bytes]:
        with pool.connection() as conn:
            conn.execute("CREATE TEMPORARY TABLE one (n int)")
        lose()
        return [b"well"]

    status, body = answer(unbroken.wsgi.Unbroken(view), environ("POST"))
    assert status.startswith("500")
    assert b'"fate": "stored"' in body
    said = told(caplog).getMessage()
    assert "POST /orders again: an earlier COMMIT was acknowledged" in said
    assert "may run twice" not in said


def test_a_marked_request_with_a_body_that_is_too_long_says_so(
    lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def view(environ: dict[str, Any], _start: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        lose()
        return [b"well"]

    app = unbroken.wsgi.Unbroken(view, replay="/orders", max_body=10)
    assert answer(app, environ("POST", b"x" * 100))[0].startswith("503")
    said = told(caplog).getMessage()
    assert "POST /orders again: its body is longer than max_body=10 bytes" in said


def test_an_unmarked_post_of_a_flask_app(
    lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    app = flask.Flask("shop")
    unbroken.flask.Unbroken(app)
    seen: list[BaseException] = []

    @app.post("/orders")
    def order() -> str:
        try:
            lose()
        except Exception as error:
            seen.append(error)
            raise
        return "well"

    assert app.test_client().post("/orders?token=hush").status_code == 503
    assert "mark its view with @unbroken.flask.replay" in notes(seen[0])
    assert told(caplog).unbroken_request == "POST /orders"


def test_an_unmarked_post_of_an_asgi_app(
    postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with unbroken.AsyncPool(postgres.url("psycopg")) as pool:

            async def app(_scope: Any, _receive: Any, _send: Any) -> None:
                async with pool.connection() as conn:
                    await conn.execute("SELECT 1")
                    await asyncio.to_thread(postgres.kill_sessions)
                    await conn.execute("SELECT 2")

            async def nothing(*_: Any) -> Any:
                return {"type": "http.request", "body": b"", "more_body": False}

            scope = {
                "type": "http", "method": "POST", "path": "/orders", "headers": [],
                "query_string": b"token=hush",
            }  # fmt: skip
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            await unbroken.asgi.Unbroken(app)(scope, nothing, send)
            assert sent[0]["status"] == 503

    asyncio.run(main())
    record = told(caplog)
    assert "POST /orders again" in record.getMessage()
    assert record.unbroken_request == "POST /orders"


def test_a_get_that_was_run_again_is_no_warning(
    pool: unbroken.Pool, postgres: PostgreSQL, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def view(_environ: Any, start: Any) -> list[bytes]:
        seen.append(1)
        with pool.connection() as conn:
            conn.execute("SELECT 1")
            if len(seen) == 1:
                postgres.kill_sessions()
            conn.execute("SELECT 2")
        start("200 OK", [])
        return [b"well"]

    with caplog.at_level(logging.INFO, "unbroken"):
        app = unbroken.wsgi.Unbroken(view)
        assert app(environ("GET"), lambda *_: None) == [b"well"]  # type: ignore[arg-type, return-value]
    assert {r.levelname for r in caplog.records} == {"INFO"}
    assert any(
        "GET /orders is run again" in r.getMessage() and r.unbroken_request == "GET /orders"
        for r in caplog.records
    )
