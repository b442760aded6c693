"""MongoDB: PyMongo's clients by name, made anew in each process, with every wait bounded. See docs/mongodb.md."""

from __future__ import annotations

from unbroken.integrations.mongo.aio import AsyncMongoClient
from unbroken.integrations.mongo.client import MongoClient

__all__ = ["AsyncMongoClient", "MongoClient"]
