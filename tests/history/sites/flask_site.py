"""A Flask app whose views write one row each, in several manners: what a client is told must be
true in all of them.
"""

from __future__ import annotations

import os

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

import unbroken.flask
from unbroken import replayable

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
    "pool_size": 4,
    "max_overflow": 0,
    "pool_timeout": 1.0,
    "unbroken": {"outage_wait": 0.05},
}
unbroken.flask.Unbroken(app, healthz="/healthz")
db = SQLAlchemy(app)


class Order(db.Model):  # type: ignore[name-defined, misc] # Flask-SQLAlchemy makes the base
    """A row. Nothing in the database stops a number from being stored twice."""

    __tablename__ = "orders"
    key = db.Column(db.BigInteger, primary_key=True)
    n = db.Column(db.BigInteger)


INSERT = text("INSERT INTO orders (n) VALUES (:n)")
COUNT = text("SELECT COUNT(*) FROM orders WHERE n = :n")


@app.post("/reads/<int:n>")
def reads(n: int) -> dict[str, int]:
    """Commit, then read the row again: it expired with the commit."""
    order = Order(n=n)
    db.session.add(order)
    db.session.commit()
    return {"key": order.key}


@app.post("/replayed/<int:n>")
@unbroken.flask.replay
def replayed(n: int) -> dict[str, int]:
    """The same, in a view that may be run again."""
    return reads(n)


@app.post("/whole/<int:n>")
@unbroken.flask.replay
def whole(n: int) -> dict[str, int]:
    """One transaction, and nothing after it."""
    db.session.add(Order(n=n))
    db.session.commit()
    return {"n": n}


@app.post("/autocommit/<int:n>")
def autocommit(n: int) -> dict[str, int]:
    """A statement that is a transaction by itself, then another one."""
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(INSERT, {"n": n})
        return {"stored": conn.execute(COUNT, {"n": n}).scalar_one()}


@app.post("/deadline/<int:n>")
def deadline(n: int) -> dict[str, int]:
    """A unit of work that may run out of time after it committed."""

    @replayable(deadline=0.3)
    def work() -> int:
        with db.engine.begin() as conn:
            conn.execute(INSERT, {"n": n})
        with db.engine.connect() as conn:
            return int(conn.execute(COUNT, {"n": n}).scalar_one())

    return {"stored": work()}


@app.post("/swallowed/<int:n>")
def swallowed(n: int) -> tuple[dict[str, str], int]:
    """The view catches the error that comes after the commit, and answers by itself."""
    try:
        reads(n)
    except Exception:
        return {"error": "sorry"}, 500
    return {"ok": "yes"}, 200
