"""``unbroken.mongo``: PyMongo's clients, unbroken. docs/mongodb.md describes them."""

from __future__ import annotations

from unbroken.extras import needed

with needed("mongo", "pymongo", "bson", "gridfs", extra="mongo"):
    from unbroken.integrations.mongo import AsyncMongoClient, MongoClient, stats
    from unbroken.integrations.mongo.engine import (
        connect,
        disconnect,
        disconnect_all,
        register_connection,
    )

__all__ = [
    "AsyncMongoClient",
    "MongoClient",
    "connect",
    "disconnect",
    "disconnect_all",
    "register_connection",
    "stats",
]
