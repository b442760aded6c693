"""A Flask app with peewee: each request has one connection, and none is left behind.

    DATABASE_URL=postgresql://app:secret@127.0.0.1/shop gunicorn -w 2 peewee_flask_app:app

``unbroken.flask`` answers an outage with 503 and replays safe requests; ``FlaskDB`` opens and
closes around each request.
"""

from __future__ import annotations

import os

import peewee
from flask import Flask, request
from playhouse.flask_utils import FlaskDB

import unbroken.flask
import unbroken.peewee

app = Flask(__name__)
db = unbroken.peewee.connect(os.environ["DATABASE_URL"], max_connections=10)
flask_db = FlaskDB(app, db)
unbroken.flask.Unbroken(app)


class Item(flask_db.Model):  # type: ignore[name-defined, misc] # peewee makes the base
    """One row of the shop."""

    name = peewee.CharField()

    class Meta:  # noqa: D106 - peewee's own idiom
        table_name = "peewee_flask_item"


try:
    db.create_tables([Item])
except (
    peewee.DatabaseError
):  # PostgreSQL's IF NOT EXISTS does not keep two workers apart; the other one has made it
    db.create_tables([Item])


@app.get("/items")
def items() -> dict[str, list[str]]:
    """All items."""
    return {"items": [item.name for item in Item.select().order_by(Item.id)]}


@app.post("/items")
@db.unit(atomic=True)
def add() -> dict[str, str]:
    """Store one item, in one transaction."""
    return {"stored": Item.create(name=request.form["name"]).name}
