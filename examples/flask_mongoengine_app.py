"""A Flask app with MongoEngine, configured as Flask-MongoEngine was, that does not notice when its
database goes away for a moment.

    DATABASE_URL=mongodb://127.0.0.1/shop gunicorn --preload -w 2 flask_mongoengine_app:app

It is the same app under gunicorn's sync, gthread and gevent workers, and under uWSGI as it comes.
``PLAIN=1`` takes unbroken out, for comparison; ``WARM=1`` uses a document before the web server
forks.
"""

from __future__ import annotations

import os

import mongoengine
from flask import Flask, request

import unbroken.flask

app = Flask(__name__)
app.config["MONGODB_SETTINGS"] = {
    "host": os.environ["DATABASE_URL"],
    "uuidRepresentation": "standard",
}
if os.environ.get("PLAIN"):
    mongoengine.connect(**app.config["MONGODB_SETTINGS"])
else:
    unbroken.flask.Unbroken(app, healthz="/healthz", readyz="/readyz")


class Item(mongoengine.Document):  # type: ignore[misc] # MongoEngine has no types
    """One item of the shop.

    The number is the caller's, and nothing stops it from being stored twice.
    """

    number = mongoengine.IntField(required=True)


if os.environ.get("WARM"):
    Item.objects.first()


@app.get("/items")
def count() -> dict[str, int]:
    """How many items there are, and which worker says so."""
    return {"items": Item.objects.count(), "worker": os.getpid()}


@app.post("/items")
def add() -> dict[str, int]:
    """Store one item."""
    number = int(request.form["number"])
    Item(number=number).save()
    return {"stored": number, "worker": os.getpid()}
