"""A small shop in Flask and PyMySQL or SQLAlchemy, in four variants, for ``unbroken drill``.

    VARIANT=one         one global PyMySQL connection for the process, as many tutorials show it
    VARIANT=sqlalchemy  SQLAlchemy as it comes
    VARIANT=pre_ping    with pool_pre_ping=True
    VARIANT=unbroken    with unbroken

``drill.toml`` beside this file runs them all against each other: ``unbroken drill`` in this folder.
"""

from __future__ import annotations

import os
import threading
from urllib.parse import unquote, urlsplit

from flask import Flask, g
from werkzeug.exceptions import HTTPException

VARIANT = os.environ.get("VARIANT", "unbroken")
URL = os.environ["DATABASE_URL"]

app = Flask(__name__)

if VARIANT == "one":
    import pymysql

    parts = urlsplit(URL)
    connection = pymysql.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=unquote(parts.password or ""),
        database=parts.path.strip("/"),
    )
    lock = threading.Lock()

    def ask(sql: str) -> list[tuple[object, ...]]:
        """Run one statement and give its rows."""
        with lock, connection.cursor() as cursor:
            cursor.execute(sql)
            connection.commit()
            return list(cursor.fetchall())

else:
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session

    SETTINGS: dict[str, dict[str, object]] = {
        "sqlalchemy": {},
        "pre_ping": {"pool_pre_ping": True},
        "unbroken": {"plugins": ["unbroken"]},
    }
    engine = create_engine(URL, **SETTINGS[VARIANT])
    if VARIANT == "unbroken":
        import unbroken.flask

        unbroken.flask.Unbroken(app)

    @app.teardown_appcontext
    def close(_: BaseException | None) -> None:
        """Give the request's session back."""
        session = g.pop("session", None)
        if session is not None:
            session.close()

    def ask(sql: str) -> list[tuple[object, ...]]:
        """Run one statement in the request's session, and commit."""
        if "session" not in g:
            g.session = Session(engine)
        result = g.session.execute(text(sql))
        rows = [tuple(row) for row in result] if result.returns_rows else []
        g.session.commit()
        return rows


@app.get("/items")
def items() -> dict[str, object]:
    """The newest items."""
    return {
        "items": [list(row) for row in ask("SELECT id, name FROM items ORDER BY id DESC LIMIT 10")]
    }


@app.errorhandler(Exception)
def explain(error: Exception) -> tuple[str, int]:
    """What went wrong, on one line: the drill counts errors by it."""
    cause = getattr(error, "orig", None) or error  # the driver's own, where SQLAlchemy wraps it
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"[
        :300
    ], error.code or 500 if isinstance(error, HTTPException) else 500
