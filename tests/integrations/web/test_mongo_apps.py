"""Web apps with MongoDB: in Flask configured as Flask-MongoEngine and Flask-PyMongo are; and 503 in
an outage, in all of them.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import flask
import flask_mongoengine
import flask_pymongo
import httpx
import mongoengine
import mongomock
import pymongo
import pytest

import unbroken
import unbroken.asgi
import unbroken.flask
import unbroken.mongo
import unbroken.wsgi
from unbroken.integrations.web.flask_mongo import read_settings
from unbroken_drill.servers import MongoDB
from unbroken_drill.servers.ports import free_port


class Product(mongoengine.Document):  # type: ignore[misc]
    number = mongoengine.IntField()


@pytest.fixture(scope="module")
def server() -> Iterator[MongoDB]:
    with MongoDB() as mongod:
        yield mongod


@pytest.fixture
def uri(server: MongoDB) -> str:
    return f"mongodb://127.0.0.1:{server.port}/t{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    yield
    unbroken.mongo.disconnect_all()
    mongoengine.connection._connection_settings.clear()


def made(**config: Any) -> flask.Flask:
    app = flask.Flask("shop")
    app.config.update(config)
    return app


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({}, []),
        ({"MONGODB_SETTINGS": {"db": "shop"}}, [{"alias": "default", "db": "shop"}]),
        (
            {"MONGODB_SETTINGS": {"DB": "shop", "MONGODB_HOST": "db1", "PORT": 27018}},
            [{"alias": "default", "db": "shop", "host": "db1", "port": 27018}],
        ),
        (
            {
                "MONGODB_SETTINGS": [
                    {"db": "a"},
                    {"host": "mongodb://db2/b", "alias": "b", "replicaSet": "rs", "connect": False},
                ]
            },
            [
                {"alias": "default", "db": "a"},
                {"alias": "b", "host": "mongodb://db2/b", "replicaSet": "rs", "connect": False},
            ],
        ),
        (
            {
                "MONGODB_SETTINGS": {
                    "name": "a",
                    "authentication_source": "admin",
                    "tz_aware": True,
                    "maxPoolSize": 3,
                    "password": None,
                }
            },
            [
                {
                    "alias": "default",
                    "name": "a",
                    "authentication_source": "admin",
                    "tz_aware": True,
                    "maxPoolSize": 3,
                }
            ],
        ),
        (
            {
                "MONGODB_DB": "shop",
                "MONGODB_HOST": "db1",
                "MONGODB_PORT": 1,
                "MONGODB_TZ_AWARE": True,
                "MONGODB_URI": "mine",
            },
            [{"alias": "default", "db": "shop", "host": "db1", "port": 1, "tz_aware": True}],
        ),
        ({"MONGODB_URI": "mine"}, []),
        (
            {"MONGODB_SETTINGS": {"host": "mongomock://localhost/shop"}},
            [
                {
                    "alias": "default",
                    "host": "mongodb://localhost/shop",
                    "mongo_client_class": mongomock.MongoClient,
                }
            ],
        ),
        (
            {"MONGODB_SETTINGS": {"db": "a", "is_mock": True}},
            [{"alias": "default", "db": "a", "mongo_client_class": mongomock.MongoClient}],
        ),
    ],
)
def test_settings_are_read_as_flask_mongoengine_reads_them(
    config: dict[str, Any], read: list[dict[str, Any]]
) -> None:
    assert read_settings(config) == read


def test_settings_that_cannot_be_are_refused_without_showing_them() -> None:
    with pytest.raises(
        unbroken.ConfigurationError, match="dictionary, or a list of dictionaries"
    ) as refused:
        unbroken.flask.Unbroken(made(MONGODB_SETTINGS="mongodb://u:secret@db/shop"))
    assert "secret" not in str(refused.value)
    with pytest.raises(mongoengine.ConnectionFailure, match="port"):
        unbroken.flask.Unbroken(made(MONGODB_SETTINGS={"db": "shop", "port": "many"}))


def test_an_app_without_flask_mongoengine_keeps_its_settings(uri: str) -> None:
    app = made(
        MONGODB_SETTINGS=[
            {"host": uri, "uuidRepresentation": "standard"},
            {"host": uri + "x", "alias": "aware", "tz_aware": True, "timeoutMS": 700},
        ]
    )
    unbroken.flask.Unbroken(app, readyz="/readyz")

    @app.get("/items")
    def items() -> dict[str, int]:
        Product(number=1).save()
        return {"items": Product.objects.count()}

    assert app.test_client().get("/items").json == {"items": 1}
    client = mongoengine.get_connection("aware")
    assert isinstance(client, unbroken.mongo.MongoClient)
    assert client.codec_options.tz_aware
    assert client.options.timeout == 0.7
    name = uri.rsplit("/", 1)[1]
    assert app.test_client().get("/readyz").json == {"status": "ok", name: "ok", f"{name}x": "ok"}


def test_a_connection_that_the_app_makes_itself_later_is_not_in_its_way_and_is_told_of(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = made(MONGODB_HOST=uri, MONGODB_DB="other")
    unbroken.flask.Unbroken(app)
    mongoengine.connect(host=uri, uuidRepresentation="standard")
    app.test_client().get("/")
    assert "MongoEngine's connection 'default' uses PyMongo's own client" in caplog.text
    assert "unbroken.mongo.connect" in caplog.text


@pytest.mark.parametrize("before", [True, False])
def test_flask_mongoengine_s_connections_become_ours(
    before: bool, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = made(MONGODB_SETTINGS={"host": uri, "uuidRepresentation": "standard"})
    if before:
        db = flask_mongoengine.MongoEngine(app)
        Product(number=1).save()
        unbroken.flask.Unbroken(app)
    else:
        unbroken.flask.Unbroken(app)
        db = flask_mongoengine.MongoEngine(app)
        Product(number=1).save()

    @app.get("/items")
    def items() -> dict[str, int]:
        return {"items": Product.objects.count()}

    assert app.test_client().get("/items").json == {"items": 1}
    assert isinstance(mongoengine.get_connection(), unbroken.mongo.MongoClient)
    with app.app_context():
        assert db.connection == {"default": mongoengine.get_connection()}
        assert db.connection["default"] is mongoengine.get_connection()
    assert caplog.text == ""


def test_flask_pymongo_s_client_becomes_ours_and_keeps_what_it_adds(uri: str) -> None:
    app, other = made(MONGO_URI=uri), made(MONGO_URI=uri)
    extension = unbroken.flask.Unbroken(app, readyz="/readyz")
    mongo = flask_pymongo.PyMongo(app, outage_wait=0.5)
    plain = flask_pymongo.PyMongo(other)
    assert isinstance(mongo.cx, unbroken.mongo.MongoClient)
    assert isinstance(mongo.cx, flask_pymongo.wrappers.MongoClient)
    assert not isinstance(plain.cx, unbroken.mongo.MongoClient)

    @app.get("/items/<int:number>")
    def item(number: int) -> Any:
        return mongo.db.item.find_one_or_404({"number": number}, {"_id": 0})

    mongo.db.item.insert_one({"number": 1})
    client = app.test_client()
    assert client.get("/items/1").json == {"number": 1}
    assert client.get("/items/2").status_code == 404
    assert client.get("/readyz").json == {"status": "ok", mongo.db.name: "ok"}
    assert extension.mongo.cx is mongo.cx
    plain.cx.close()


def test_flask_pymongo_before_unbroken_is_told_of(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = made(MONGO_URI=uri)
    mongo = flask_pymongo.PyMongo(app)
    unbroken.flask.Unbroken(app)
    assert "call unbroken.flask.Unbroken(app) before PyMongo(app)" in caplog.text
    mongo.cx.close()


@pytest.mark.parametrize("imported", [False, True])
def test_mongo_uri_needs_no_extension(
    imported: bool, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not imported:
        monkeypatch.delitem(sys.modules, "flask_pymongo")
    app = made(MONGO_URI=uri)
    extension = unbroken.flask.Unbroken()
    with pytest.raises(unbroken.ConfigurationError, match="app context"):
        _ = extension.mongo
    extension.init_app(app)

    @app.get("/items")
    def items() -> dict[str, int]:
        extension.mongo.db.item.insert_one({"number": 1})
        return {"items": extension.mongo.db.item.count_documents({})}

    assert app.test_client().get("/items").json == {"items": 1}
    assert isinstance(extension.mongo.cx, unbroken.mongo.MongoClient)
    none = unbroken.flask.Unbroken(made())
    with pytest.raises(unbroken.ConfigurationError, match="MONGO_URI"):
        _ = none.mongo


def test_an_outage_is_answered_503_with_retry_after_and_the_app_is_not_ready() -> None:
    client = unbroken.mongo.MongoClient(
        f"mongodb://127.0.0.1:{free_port('127.0.0.1')}/shop", timeoutMS=300, outage_wait=0
    )
    app = made()
    unbroken.flask.Unbroken(app, databases=client, healthz="/healthz", readyz="/readyz")
    app.add_url_rule(
        "/items",
        view_func=lambda: {"items": client.shop.item.count_documents({})},
        methods=["GET", "POST"],
    )

    def careful() -> Any:
        try:
            return {"items": client.shop.item.count_documents({})}
        except pymongo.errors.ConnectionFailure:
            return "my own page", 500

    app.add_url_rule("/careful", view_func=careful)
    web = app.test_client()
    for method in ("GET", "POST"):
        answer = web.open("/items", method=method)
        assert (answer.status_code, answer.json["error"]) == (503, "service unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert web.get("/careful").status_code == 503  # as for SQL: a 500 that an outage caused says so
    assert web.get("/healthz").status_code == 200
    ready = web.get("/readyz")
    assert (ready.status_code, ready.json) == (503, {"status": "away", "shop": "away"})
    client.close()


@pytest.mark.parametrize(
    ("method", "status", "error"),
    [("GET", 503, "service unavailable"), ("POST", 500, "outcome unknown")],
)
def test_a_server_that_freezes_in_the_middle_of_a_request_is_told_of_honestly(
    method: str, status: int, error: str
) -> None:
    with MongoDB() as frozen:
        client = unbroken.mongo.MongoClient(frozen.url(), timeoutMS=400)
        app = made()
        unbroken.flask.Unbroken(app)

        def view() -> dict[str, str]:
            client.shop.item.find_one()
            frozen.freeze()
            if flask.request.method == "POST":
                client.shop.item.insert_one({"number": 1})
            else:
                client.shop.item.find_one()
            return {}

        app.add_url_rule("/items", view_func=view, methods=["GET", "POST"])
        answer = app.test_client().open("/items", method=method)
        assert (answer.status_code, answer.json["error"]) == (status, error)
        assert ("Retry-After" in answer.headers) == (status == 503)
        frozen.thaw()
        client.close()


def test_any_wsgi_app_answers_503_in_an_outage_of_mongodb() -> None:
    client = unbroken.mongo.MongoClient(
        f"mongodb://127.0.0.1:{free_port('127.0.0.1')}/shop", timeoutMS=300, outage_wait=0
    )

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        client.shop.item.insert_one({"number": 1})
        raise AssertionError("nobody is there")

    said: list[Any] = []
    environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/", "wsgi.input": None}
    body = unbroken.wsgi.Unbroken(app)(environ, lambda *args: said.extend(args))
    assert said[0] == "503 Service Unavailable"
    assert dict(said[1])["Retry-After"]
    assert b"cannot be reached" in b"".join(body)
    client.close()


@pytest.mark.parametrize("kind", [unbroken.mongo.AsyncMongoClient, unbroken.mongo.MongoClient])
def test_any_asgi_app_answers_503_in_an_outage_of_mongodb_and_is_not_ready(kind: Any) -> None:
    async def main() -> None:
        client = kind(
            f"mongodb://127.0.0.1:{free_port('127.0.0.1')}/shop", timeoutMS=300, outage_wait=0
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found = client.shop.item.find_one()
            if inspect.isawaitable(found):
                await found
            raise AssertionError("nobody is there")

        made = unbroken.asgi.Unbroken(app, databases=client, readyz="/readyz")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(made), base_url="http://test"
        ) as web:
            answer = await web.post("/items")
            assert (answer.status_code, answer.json()["error"]) == (503, "service unavailable")
            assert answer.headers["Retry-After"]
            ready = await web.get("/readyz")
            assert (ready.status_code, ready.json()) == (503, {"status": "away", "shop": "away"})
        closed = client.close()
        if closed is not None:
            await closed

    asyncio.run(main())
