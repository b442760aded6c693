"""``unbroken.mongo``: PyMongo's client, unbroken. See docs/mongodb.md."""

from __future__ import annotations

from unbroken.integrations.mongo import MongoClient

__all__ = ["MongoClient"]
