"""A FastAPI app on an AsyncMongoClient that does not notice when its database goes away for a
moment.

    DATABASE_URL=mongodb://127.0.0.1/shop uvicorn --workers 2 fastapi_mongo_app:app

``PLAIN=1`` takes unbroken out, for comparison.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
from fastapi import FastAPI

import unbroken.asgi
import unbroken.mongo

PLAIN = bool(os.environ.get("PLAIN"))

client: Any = (pymongo.AsyncMongoClient if PLAIN else unbroken.mongo.AsyncMongoClient)(
    os.environ["DATABASE_URL"]
)
# kept in a variable: it is right in every process and on every event loop
items = client.get_default_database()["item"]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """In the end close what is open."""
    yield
    await client.close()


app: Any = FastAPI(lifespan=lifespan)


@app.get("/items")
async def count() -> dict[str, int]:
    """How many items there are, and which worker says so."""
    return {"items": await items.count_documents({}), "worker": os.getpid()}


@app.post("/items")
async def add(number: int) -> dict[str, int]:
    """Store one item."""
    await items.insert_one({"number": number})
    return {"stored": number, "worker": os.getpid()}


if not PLAIN:
    app = unbroken.asgi.Unbroken(app, databases=client, healthz="/healthz", readyz="/readyz")
