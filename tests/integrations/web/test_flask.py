"""The Flask extension: what it runs again, what it gives back, when it commits, what it answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import flask
import pytest
import sqlalchemy as sa
from flask.views import MethodView
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import scoped_session, sessionmaker

import unbroken
import unbroken.flask
from unbroken_drill.servers import MariaDB


class Shop:
    """A Flask app with Flask-SQLAlchemy on a real server, and a table."""

    def __init__(self, server: MariaDB, **settings: Any) -> None:
        self.server = server
        self.app = flask.Flask("shop")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = server.url("pymysql")
        self.extension = unbroken.flask.Unbroken(self.app, **settings)
        self.db = SQLAlchemy(self.app)
        self.calls: list[str] = []
        self.kills = 0
        self.own_page = False

        @self.app.before_request
        def before() -> None:
            self.calls.append("before")

        @self.app.teardown_request
        def after(_exc: Any) -> None:
            self.calls.append("teardown")

    @property
    def engine(self) -> sa.Engine:
        # without an app context, whose end is what is tested here
        engine: sa.Engine = self.db._app_engines[self.app][None]
        return engine

    @property
    def taken(self) -> int:
        return self.engine.pool.checkedout()  # type: ignore[attr-defined, no-any-return]

    def ask(self, path: str, method: str = "GET", **kwargs: Any) -> Any:
        response = self.app.test_client().open(path, method=method, **kwargs)
        with contextlib.closing(response):
            response.get_data()
        return response

    def read(self) -> int:
        return int(self.db.session.execute(sa.text("SELECT COUNT(*) FROM shop_item")).scalar_one())

    def insert(self) -> None:
        self.db.session.execute(sa.text("INSERT INTO shop_item VALUES (1)"))

    def lose(self) -> None:
        """Lose the connection, as often as the test wants, in the middle of a transaction."""
        self.calls.append("view")
        self.read()
        if self.kills:
            self.kills -= 1
            self.server.kill_sessions()
        self.read()

    def stored(self) -> int:
        return int(self.server.admin("SELECT COUNT(*) FROM shop_item")[0][0])


@pytest.fixture
def shops(mariadb: MariaDB) -> Iterator[Callable[..., Shop]]:
    mariadb.admin("CREATE TABLE shop_item (number INT) ENGINE=InnoDB")
    made: list[Shop] = []

    def make(**settings: Any) -> Shop:
        made.append(Shop(mariadb, **settings))
        return made[-1]

    yield make
    for shop in made:
        shop.engine.dispose()
    mariadb.kill_sessions()
    mariadb.admin("DROP TABLE shop_item")


def test_a_lost_get_is_run_again_with_its_before_and_teardown_functions_and_without_a_word_to_error_handlers(  # noqa: E501
    shops: Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    shop = shops()
    handled: list[Exception] = []

    @shop.app.get("/")
    def view() -> str:
        shop.lose()
        return "well"

    @shop.app.errorhandler(Exception)
    def handler(error: Exception) -> Any:
        handled.append(error)
        return "sorry", 500

    shop.kills = 2
    assert shop.ask("/").text == "well"
    assert shop.calls == ["before", "view", "teardown"] * 3
    assert handled == []
    assert not [r for r in caplog.records if r.exc_info]


def test_a_view_is_marked_for_replay_or_against_it(shops: Callable[..., Shop]) -> None:
    shop = shops()

    @shop.app.post("/plain")
    def plain() -> str:
        shop.lose()
        return "well"

    @shop.app.post("/marked/<int:number>")
    @unbroken.flask.replay
    def marked(number: int) -> str:
        shop.lose()
        shop.insert()
        shop.db.session.commit()
        return f"{number} {flask.request.form['word']}"

    @shop.app.get("/against")
    @unbroken.flask.no_replay
    def against() -> str:
        shop.lose()
        return "well"

    class Class(MethodView):
        @unbroken.flask.replay
        def post(self) -> str:
            shop.lose()
            return "well"

        def put(self) -> str:
            shop.lose()
            return "well"

    shop.app.add_url_rule("/class", view_func=Class.as_view("class"))

    def tries(path: str, method: str = "POST") -> tuple[int, int]:
        shop.kills = 1
        shop.calls.clear()
        status = shop.ask(path, method, data={"word": "hi"}).status_code
        return status, shop.calls.count("view")

    assert tries("/plain") == (503, 1)
    assert tries("/marked/7") == (200, 2)
    assert shop.stored() == 1
    assert tries("/against", "GET") == (503, 1)
    assert tries("/class") == (200, 2)
    assert tries("/class", "PUT") == (503, 1)
    assert tries("/nowhere") == (404, 0)
    assert shop.taken == 0


@pytest.mark.parametrize("inner", ["GET", "POST"])
@pytest.mark.parametrize("outer", ["GET", "POST"])
def test_a_view_that_uses_a_test_client_is_run_again_as_any_other(
    outer: str, inner: str, shops: Callable[..., Shop]
) -> None:
    shop = shops()

    @shop.app.route("/inner", methods=["GET", "POST"])
    def asked() -> str:
        return str(shop.read())

    @shop.app.route("/outer", methods=["GET", "POST"])
    def asking() -> str:
        shop.read()
        found = shop.app.test_client().open("/inner", method=inner).text
        shop.lose()
        return found

    shop.kills = 1
    response = shop.ask("/outer", outer)
    assert response.status_code == (200 if outer == "GET" else 503)
    assert shop.calls.count("view") == (2 if outer == "GET" else 1)
    assert shop.taken == 0


def test_what_a_test_client_inside_a_view_stored_counts_for_that_view_too(
    shops: Callable[..., Shop],
) -> None:
    shop = shops()

    @shop.app.post("/inner")
    def asked() -> str:
        shop.insert()
        shop.db.session.commit()
        return "x"

    @shop.app.get("/outer")
    def asking() -> str:
        shop.app.test_client().post("/inner")
        shop.lose()
        return "well"

    shop.kills = 1
    assert shop.ask("/outer").status_code == 500
    assert (shop.calls.count("view"), shop.stored()) == (1, 1)


def test_what_was_committed_before_the_loss_is_never_done_again(shops: Callable[..., Shop]) -> None:
    shop = shops(methods=["POST"])

    @shop.app.post("/")
    def view() -> str:
        shop.insert()
        shop.db.session.commit()
        shop.lose()
        return "well"

    shop.kills = 1
    assert shop.ask("/", "POST").status_code == 500
    assert shop.stored() == 1


def test_nothing_stays_taken_whatever_a_view_did(
    shops: Callable[..., Shop], mariadb: MariaDB, caplog: pytest.LogCaptureFixture
) -> None:
    other = sa.create_engine(mariadb.url("pymysql"))
    registry = scoped_session(sessionmaker(other))
    shop = shops(sessions=registry, databases=other)
    kept: list[Any] = []

    def forget_connection() -> str:
        kept.append(shop.db.engine.connect())
        return "x"

    def forget_session() -> str:
        kept.append(shop.db.session.registry())
        shop.read()
        return "x"

    def forget_registry() -> str:
        registry.execute(sa.text("SELECT 1"))
        return "x"

    def forget_raw() -> str:
        kept.append(other.raw_connection())
        return "x"

    def raise_in_the_middle() -> str:
        forget_connection()
        shop.insert()
        raise ValueError("the app's own")

    views = (forget_connection, forget_session, forget_registry, forget_raw, raise_in_the_middle)
    for view in views:
        shop.app.add_url_rule(f"/{view.__name__}", view_func=view, methods=["GET", "POST"])
    for view in views:
        for number in range(40):
            shop.ask(f"/{view.__name__}", ("GET", "POST")[number % 2])
        assert (view.__name__, shop.taken, other.pool.checkedout()) == (view.__name__, 0, 0)  # type: ignore[attr-defined]
    said = [r.getMessage() for r in caplog.records if "without releasing" in r.getMessage()]
    assert len(said) == 2
    assert all(__file__ in words for words in said)
    assert shop.stored() == 0
    other.dispose()


def test_nothing_stays_taken_when_a_teardown_raises(shops: Callable[..., Shop]) -> None:
    shop = shops()

    @shop.app.teardown_appcontext
    def broken(_exc: Any) -> None:
        raise RuntimeError("a teardown that fails keeps Flask from calling the others")

    @shop.app.get("/")
    def view() -> str:
        shop.read()
        return "x"

    for _ in range(30):
        with pytest.raises(RuntimeError):
            shop.ask("/")
    assert shop.taken == 0


def test_a_stream_keeps_what_it_needs_and_nothing_stays_taken_when_it_ends(
    shops: Callable[..., Shop], mariadb: MariaDB
) -> None:
    other = sa.create_engine(mariadb.url("pymysql"))
    registry = scoped_session(sessionmaker(other))
    shop = shops(sessions=[registry], databases=[other])
    kept: list[Any] = []

    @shop.app.get("/")
    def view() -> Any:
        connection = other.connect()
        kept.append(connection)

        def rows() -> Iterator[str]:
            for _ in range(3):
                yield str(connection.execute(sa.text("SELECT 7")).scalar())
                yield str(registry.execute(sa.text("SELECT 8")).scalar())
                yield str(shop.db.session.execute(sa.text("SELECT 9")).scalar())

        return flask.Response(flask.stream_with_context(rows()))

    for _ in range(10):
        assert shop.ask("/").text == "789789789"
        assert (shop.taken, other.pool.checkedout()) == (0, 0)  # type: ignore[attr-defined]
    for _ in range(10):  # the client goes away in the middle
        response = shop.app.test_client().get("/")
        next(iter(response.response))
        response.close()
        assert (shop.taken, other.pool.checkedout()) == (0, 0)  # type: ignore[attr-defined]
    other.dispose()


def test_commit_is_done_for_what_succeeded_and_for_nothing_else(shops: Callable[..., Shop]) -> None:
    shop = shops(commit=True)

    @shop.app.post("/<int:status>")
    def view(status: int) -> Any:
        shop.insert()
        if status == 0:
            raise ValueError("the app's own")
        return "x", status

    @shop.app.post("/abort")
    def abort() -> Any:
        shop.insert()
        flask.abort(409)

    for path, rows in (
        ("/200", 1),
        ("/201", 2),
        ("/302", 3),
        ("/400", 3),
        ("/500", 3),
        ("/0", 3),
        ("/abort", 3),
    ):
        shop.ask(path, "POST")
        assert (path, shop.stored()) == (path, rows)


def test_without_the_setting_nothing_is_committed(shops: Callable[..., Shop]) -> None:
    shop = shops()

    @shop.app.post("/")
    def view() -> str:
        shop.insert()
        return "x"

    assert shop.ask("/", "POST").status_code == 200
    assert shop.stored() == 0


def test_a_commit_that_fails_is_an_error_and_its_handlers_see_it(
    shops: Callable[..., Shop],
) -> None:
    shop = shops(commit=True)
    shop.server.admin("CREATE TABLE shop_key (number INT PRIMARY KEY)")

    class Key(shop.db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "shop_key"
        number = shop.db.Column(sa.Integer, primary_key=True)

    @shop.app.post("/")
    def view() -> str:
        shop.db.session.add(Key(number=1))  # sent at the flush, which the commit does
        return "x"

    @shop.app.errorhandler(sa.exc.IntegrityError)
    def taken_already(_error: Exception) -> Any:
        return "taken", 409

    try:
        assert shop.ask("/", "POST").status_code == 200
        response = shop.ask("/", "POST")
        assert (response.status_code, response.text) == (409, "taken")
        assert shop.taken == 0
    finally:
        shop.server.kill_sessions()
        shop.server.admin("DROP TABLE shop_key")


def test_a_lost_commit_of_a_view_that_may_be_run_again_is_run_again_while_nothing_was_sent(
    shops: Callable[..., Shop],
) -> None:
    shop = shops(commit=True, methods=["POST"])

    @shop.app.post("/")
    def view() -> str:
        shop.calls.append("view")
        shop.insert()
        if shop.kills:
            shop.kills -= 1
            shop.server.kill_sessions()  # just before the extension commits
        return "x"

    shop.kills = 1
    assert shop.ask("/", "POST").status_code == 200
    assert (shop.calls.count("view"), shop.stored()) == (2, 1)


@pytest.fixture
def away(new_mariadb: Callable[..., MariaDB]) -> Iterator[Shop]:
    """A shop whose server is away."""
    server = new_mariadb()
    shop = Shop(server, readyz="/ready", ready_timeout=2)
    shop.app.config["SQLALCHEMY_DATABASE_URI"] = server.url("pymysql", outage_wait=0.2)
    with contextlib.suppress(KeyError):
        del shop.app.extensions["sqlalchemy"]
    shop.db = SQLAlchemy(shop.app)
    shop.app.register_blueprint(shop.extension.blueprint(url_prefix="/ops"))

    @shop.app.route("/", methods=["GET", "POST"])
    def view() -> str:
        shop.db.session.execute(sa.text("SELECT 1"))
        return "well"

    @shop.app.errorhandler(503)
    def page(error: Any) -> Any:
        return (f"back soon ({error.code})", 503) if shop.own_page else error

    @shop.app.after_request
    def allow(response: flask.Response) -> flask.Response:
        response.headers["Access-Control-Allow-Origin"] = "*"
        return response

    assert shop.ask("/").text == "well"
    assert shop.ask("/ready").json == {"status": "ok", "shop": "ok"}
    assert shop.ask("/ops/readyz").json == {"status": "ok", "shop": "ok"}
    server.stop()
    yield shop
    shop.engine.dispose()


def test_an_outage_is_a_503_that_passes_the_apps_after_request_functions(
    away: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("GET", "POST"):
        response = away.ask("/", method)
        assert (response.status_code, response.headers["Retry-After"], response.json["error"]) == (
            503,
            "1",
            "service unavailable",
        )
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "<!doctype html>" in away.ask("/", headers={"Accept": "text/html"}).text
    assert not [r for r in caplog.records if r.exc_info]
    assert away.ask("/ready").status_code == away.ask("/ops/readyz").status_code == 503
    assert away.ask("/ops/healthz").status_code == 200
    away.server.start()
    with contextlib.suppress(AssertionError):
        while away.ask("/").status_code != 200:
            pass


def test_the_apps_own_page_for_503_is_the_one_that_is_shown(away: Shop) -> None:
    away.own_page = True
    response = away.ask("/")
    assert (response.status_code, response.text, response.headers["Retry-After"]) == (
        503,
        "back soon (503)",
        "1",
    )


def test_a_plain_pool_of_the_apps_is_enough(mariadb: MariaDB) -> None:
    app = flask.Flask("plain")
    with unbroken.Pool(mariadb.url("pymysql")) as pool:
        unbroken.flask.Unbroken(app, databases=pool, readyz="/readyz")
        calls: list[int] = []

        @app.get("/")
        def view() -> str:
            calls.append(1)
            with pool.connection() as conn, conn.cursor() as cursor:
                cursor.execute("SELECT 1")
                if len(calls) == 1:
                    mariadb.kill_sessions()
                cursor.execute("SELECT 1")
            return "well"

        client = app.test_client()
        assert client.get("/").text == "well"
        assert len(calls) == 2
        assert client.get("/readyz").status_code == 200


def pools(app: flask.Flask, db: SQLAlchemy) -> list[str]:
    return sorted(type(engine.pool).__name__ for engine in db._app_engines[app].values())


def test_engines_get_the_plugin_by_themselves_before_and_after_flask_sqlalchemy_and_in_binds() -> (
    None
):
    there = "mysql+pymysql://app:secret@127.0.0.1/shop"
    for unbroken_first in (True, False):
        app = flask.Flask("x")
        app.config["SQLALCHEMY_DATABASE_URI"] = there
        app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 3}
        app.config["SQLALCHEMY_BINDS"] = {
            "text": there,
            "made": {"url": there, "pool_size": 7},
            "file": "sqlite:///:memory:",
        }
        db = SQLAlchemy()
        for extension in (
            (unbroken.flask.Unbroken(), db) if unbroken_first else (db, unbroken.flask.Unbroken())
        ):
            extension.init_app(app)
        assert pools(app, db) == ["StaticPool", *["UnbrokenQueuePool"] * 3]
        engines = db._app_engines[app]
        assert (engines[None].pool.size(), engines["made"].pool.size()) == (3, 7)  # type: ignore[attr-defined]
        assert app.teardown_appcontext_funcs.count(db._teardown_session) == 1


def test_engines_whose_pool_was_chosen_or_that_are_in_use_stay_as_they_are(
    mariadb: MariaDB, caplog: pytest.LogCaptureFixture
) -> None:
    app = flask.Flask("x")
    app.config["SQLALCHEMY_DATABASE_URI"] = mariadb.url("pymysql")
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": sa.pool.NullPool}
    unbroken.flask.Unbroken(app)
    assert pools(app, SQLAlchemy(app)) == ["NullPool"]
    app = flask.Flask("y")
    app.config["SQLALCHEMY_DATABASE_URI"] = mariadb.url("pymysql")
    db = SQLAlchemy(app)
    with app.app_context():
        db.session.execute(sa.text("SELECT 1"))
    unbroken.flask.Unbroken(app)
    assert pools(app, db) == ["QueuePool"]
    assert "already in use" in caplog.text
    db._app_engines[app][None].dispose()


def test_a_request_leaves_no_circle_behind_that_would_keep_what_it_had(
    shops: Callable[..., Shop],
) -> None:
    import gc
    import weakref

    shop = shops()
    seen: list[Any] = []

    class Kept:
        pass

    @shop.app.get("/")
    def view() -> str:
        kept = Kept()
        seen.append(weakref.ref(kept))
        flask.request.environ["kept"] = kept
        shop.lose()
        return "x"

    gc.collect()
    gc.disable()
    try:
        environ: dict[str, Any] = {"PATH_INFO": "/"}
        setup_testing_defaults(environ)
        body = shop.app.wsgi_app(environ, lambda *_: None)  # type: ignore[arg-type, return-value]
        assert b"".join(body) == b"x"
        body.close()  # type: ignore[attr-defined]
        del body, environ
        assert [ref() for ref in seen] == [None]
    finally:
        gc.enable()


def test_an_app_is_made_unbroken_once_and_settings_that_cannot_work_are_refused() -> None:
    app = flask.Flask("x")
    unbroken.flask.Unbroken().init_app(app)
    with pytest.raises(unbroken.ConfigurationError, match="call it once for each app"):
        unbroken.flask.Unbroken(app)
    with pytest.raises(unbroken.ConfigurationError, match="did you mean 'replay'"):
        unbroken.flask.Unbroken(replays="/x")
    with pytest.raises(unbroken.ConfigurationError, match="scoped_session"):
        unbroken.flask.Unbroken(sessions=object())
    with pytest.raises(unbroken.ConfigurationError, match="commit='yes'"):
        unbroken.flask.Unbroken(commit="yes")  # type: ignore[arg-type]
