"""A FastAPI app whose documents are Beanie's, on an AsyncMongoClient that does not notice when its
database goes away for a moment.

    DATABASE_URL=mongodb://127.0.0.1/shop uvicorn --workers 2 fastapi_beanie_app:app

``PLAIN=1`` takes unbroken out, for comparison.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
from beanie import Document, init_beanie
from fastapi import FastAPI

import unbroken.asgi
import unbroken.mongo

PLAIN = bool(os.environ.get("PLAIN"))

client: Any = (pymongo.AsyncMongoClient if PLAIN else unbroken.mongo.AsyncMongoClient)(
    os.environ["DATABASE_URL"]
)


class Item(Document):
    """What is sold."""

    number: int

    class Settings:
        """Where it is kept."""

        name = "item"


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Beanie makes what it needs in each process; in the end close what is open."""
    await init_beanie(database=client.get_default_database(), document_models=[Item])
    yield
    await client.close()


app: Any = FastAPI(lifespan=lifespan)


@app.get("/items")
async def count() -> dict[str, int]:
    """How many items there are, and which worker says so."""
    return {"items": await Item.count(), "worker": os.getpid()}


@app.post("/items")
async def add(number: int) -> dict[str, int]:
    """Store one item."""
    await Item(number=number).insert()
    return {"stored": number, "worker": os.getpid()}


if not PLAIN:
    app = unbroken.asgi.Unbroken(app, databases=client, healthz="/healthz", readyz="/readyz")
