"""A Flask app with Flask-SQLAlchemy that does not notice when its database goes away for a moment.

    DATABASE_URL=mysql+pymysql://app:secret@127.0.0.1/shop gunicorn -w 2 flask_app:app

It is the same app under gunicorn's sync, gthread and gevent workers, with ``--preload``, and under
uWSGI as it comes. ``PLAIN=1`` takes unbroken out, for comparison.
"""

from __future__ import annotations

import os

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import unbroken.flask

PLAIN = bool(os.environ.get("PLAIN"))

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
if not PLAIN:
    unbroken.flask.Unbroken(app, healthz="/healthz", readyz="/readyz")
db = SQLAlchemy(app)


class Item(db.Model):  # type: ignore[name-defined, misc] # Flask-SQLAlchemy makes the base
    """One row of the shop.

    The number is the caller's, and nothing stops it from being stored twice.
    """

    id = db.Column(db.Integer, primary_key=True)
    number = db.Column(db.Integer, nullable=False)


with app.app_context():  # under --preload this warms the pool before the fork, and no harm is done
    try:
        db.create_all()
    except (
        DBAPIError
    ):  # another worker made the table between our look and our CREATE TABLE: it is there now
        db.create_all()


@app.get("/items")
def count() -> dict[str, int]:
    """How many items there are."""
    return {"items": db.session.query(Item).count()}


@app.post("/items")
@unbroken.flask.replay  # what a lost attempt wrote, the database has undone
def add() -> dict[str, int]:
    """Store one item."""
    number = int(request.form["number"])
    db.session.add(Item(number=number))
    db.session.commit()
    return {"stored": number}


kept = []


@app.get("/forget")
def forget() -> dict[str, str]:
    """A mistake: this view takes a connection, keeps hold of it and never closes it."""
    connection = db.engine.connect()
    kept.append(connection)
    connection.execute(text("SELECT 1"))
    return {"forgot": "to close"}


@app.get("/taken")
def taken() -> dict[str, int]:
    """How many connections of this process are checked out."""
    return {"taken": db.engine.pool.checkedout()}  # type: ignore[attr-defined] # QueuePool's
