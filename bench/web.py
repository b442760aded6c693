"""A Flask app's request with one SELECT, by what people do about lost connections.

Without a web server: only what the app costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.util import setup_testing_defaults

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from measure import Effort, Result, Slice, Table, Target, best_of, interleaved, repeated
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import unbroken.flask
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

SELECT = text("SELECT n FROM stock")
BARE = "Flask-SQLAlchemy, as it comes"
OURS = "unbroken.flask"


def run(effort: Effort) -> Result:
    """One request after the other, in one process."""
    result = Result()
    with PostgreSQL() as server:
        _measure(result, effort, "PostgreSQL, psycopg", server, server.url("psycopg"))
    if available("mariadb") is None:
        with MariaDB() as maria:
            _measure(result, effort, "MariaDB, PyMySQL", maria, maria.url("pymysql"))
    return result


def _measure(result: Result, effort: Effort, where: str, server: Server, url: str) -> None:
    server.admin("CREATE TABLE stock (n INT)")
    if server.backend == "postgresql":
        server.admin("GRANT ALL ON stock TO PUBLIC")
    apps: dict[str, Slice] = {
        BARE: _served(_extension(url)),
        "… pool_recycle=280": _served(_extension(url, pool_recycle=280)),
        "… pool_pre_ping": _served(_extension(url, pool_pre_ping=True)),
        "… NullPool": _served(_extension(url, poolclass=NullPool)),
        "scoped_session, remove() at teardown": _served(_scoped(url)),
        "a new Session in each view": _served(_fresh(url)),
        "unbroken's plugin alone": _served(_extension(url, plugins=["unbroken"])),
        OURS: _served(_extension(url, ours=True)),
    }
    rows = interleaved(apps, effort, base=BARE)
    note = (
        "Flask's own work is in each row. unbroken's row holds the look at the sockets and the"
        " ledger of a request that may be run again."
    )
    result.tables.append(
        Table(f"A Flask request with one SELECT: {where}", "µs", rows, base=BARE, note=note)
    )
    result.targets.append(
        Target(
            f"Flask request, {where}: at most half as much again as without any care",
            best_of(rows, OURS) / best_of(rows, BARE),
            1.5,
        )
    )


def _extension(url: str, *, ours: bool = False, **options: Any) -> Flask:
    app = Flask("bench")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = options
    if ours:
        unbroken.flask.Unbroken(app)
    db = SQLAlchemy(app)

    @app.get("/")
    def view() -> str:
        return str(db.session.execute(SELECT).all())

    return app


def _scoped(url: str) -> Flask:
    app = Flask("bench")
    registry = scoped_session(sessionmaker(create_engine(url)))

    @app.teardown_appcontext
    def remove(_exc: object) -> None:
        registry.remove()

    @app.get("/")
    def view() -> str:
        return str(registry.execute(SELECT).all())

    return app


def _fresh(url: str) -> Flask:
    app = Flask("bench")
    engine = create_engine(url)

    @app.get("/")
    def view() -> str:
        with Session(engine) as session:
            return str(session.execute(SELECT).all())

    return app


def _served(app: Flask) -> Slice:
    return repeated(_request(app))


def _request(app: Flask) -> Callable[[], None]:
    made: dict[str, Any] = {"PATH_INFO": "/"}
    setup_testing_defaults(made)
    wsgi: Any = app

    def started(status: str, _headers: Any, _exc: Any = None) -> None:
        if status != "200 OK":
            raise RuntimeError(f"the app answered {status}")

    def request() -> None:
        body = wsgi(dict(made), started)
        for _ in body:
            pass
        body.close()

    return request
