"""What a client is told of its writes: 503 and Retry-After only for a request that stored nothing,
through every body.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import flask
import httpx
import pytest
import sqlalchemy as sa
from django.db import connections, transaction
from fastapi import FastAPI
from flask_sqlalchemy import SQLAlchemy
from starlette.requests import Request

import unbroken
import unbroken.asgi
import unbroken.django
import unbroken.flask
import unbroken.wsgi
from unbroken_drill import FaultProxy

from .fates import (
    COUNT,
    INSERT,
    Awaiting,
    Django,
    DjangoAsync,
    Flask,
    Place,
    Wsgi,
    ask_wsgi,
    django_alias,
    numbers,
    told,
)  # fmt: skip

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


EXCEPTION = "is stored, except in tables without transactions (MyISAM, Aria, MEMORY). Please"


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
    body.steps = ["read"]
    assert body.ask("GET")[0] == 200  # a new server is first tried with a COMMIT of our own
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
