"""``unbroken.mongo``: PyMongo's clients, unbroken. See docs/mongodb.md."""

from __future__ import annotations

from unbroken.integrations.mongo import AsyncMongoClient, MongoClient

__all__ = ["AsyncMongoClient", "MongoClient"]
