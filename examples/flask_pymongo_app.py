"""A Flask app with PyMongo that does not notice when its database goes away for a moment.

    export DATABASE_URL=mongodb://127.0.0.1/shop
    uwsgi --http-socket :8000 --master --processes 2 --module flask_pymongo_app:app

It is the same app under uWSGI as it comes, and under gunicorn's sync, gthread and gevent workers,
with ``--preload`` too. ``PLAIN=1`` takes unbroken out, for comparison; ``WARM=1`` uses the client
before the web server forks.
"""

from __future__ import annotations

import os

import pymongo
from flask import Flask, request

import unbroken.flask
import unbroken.mongo

PLAIN = bool(os.environ.get("PLAIN"))

app = Flask(__name__)
client = (
    pymongo.MongoClient(os.environ["DATABASE_URL"])
    if PLAIN
    else unbroken.mongo.MongoClient(os.environ["DATABASE_URL"])
)
if not PLAIN:
    unbroken.flask.Unbroken(app, databases=client, healthz="/healthz", readyz="/readyz")
items = client.get_default_database()["item"]  # kept in a variable: it is right in every worker
if os.environ.get("WARM"):
    items.find_one()


@app.get("/items")
def count() -> dict[str, int]:
    """How many items there are, and which worker says so."""
    return {"items": items.count_documents({}), "worker": os.getpid()}


@app.post("/items")
def add() -> dict[str, int]:
    """Store one item."""
    number = int(request.form["number"])
    items.insert_one({"number": number})
    return {"stored": number, "worker": os.getpid()}
