"""A request that met a kill and was not run again: its error and the log say which, why, and what
to write.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import flask
import psycopg
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
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "hush" not in caplog.text
    return record


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
    with pytest.raises(psycopg.OperationalError) as caught:
        app(environ("POST"), lambda *_: None)  # type: ignore[arg-type, return-value]
    (note,) = caught.value.__notes__
    assert note.startswith("unbroken did not run POST /orders again: requests by POST are only run")
    assert "nothing was committed" in note
    assert "name its path in replay=" in note
    record = told(caplog)
    assert note in record.getMessage()
    assert record.unbroken_request == "POST /orders"


def test_a_request_whose_ledger_forbids_it_gives_the_ledgers_reason_alone(
    pool: unbroken.Pool, lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def view(*_: Any) -> list[bytes]:
        with pool.connection() as conn:
            conn.execute("CREATE TEMPORARY TABLE one (n int)")
        lose()
        return [b"well"]

    with pytest.raises(psycopg.OperationalError) as caught:
        unbroken.wsgi.Unbroken(view)(environ("POST"), lambda *_: None)  # type: ignore[arg-type, return-value]
    (note,) = caught.value.__notes__
    assert "POST /orders again: an earlier COMMIT was acknowledged" in note
    assert "may run twice" not in note
    told(caplog)


def test_a_marked_request_with_a_body_that_is_too_long_says_so(
    lose: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    def view(environ: dict[str, Any], _start: Any) -> list[bytes]:
        environ["wsgi.input"].read()
        lose()
        return [b"well"]

    app = unbroken.wsgi.Unbroken(view, replay="/orders", max_body=10)
    with pytest.raises(psycopg.OperationalError) as caught:
        app(environ("POST", b"x" * 100), lambda *_: None)  # type: ignore[arg-type, return-value]
    assert "POST /orders again: its body is longer than max_body=10 bytes" in notes(caught.value)
    told(caplog)


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

    assert app.test_client().post("/orders?token=hush").status_code == 500
    assert "mark its view @unbroken.flask.replay" in notes(seen[0])
    assert "hush" not in caplog.text
    (record,) = [r for r in caplog.records if r.name.startswith("unbroken.")]
    assert record.unbroken_request == "POST /orders"


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
            with pytest.raises(psycopg.OperationalError) as caught:
                await unbroken.asgi.Unbroken(app)(scope, nothing, nothing)
            assert "POST /orders again" in notes(caught.value)

    asyncio.run(main())
    assert told(caplog).unbroken_request == "POST /orders"


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
