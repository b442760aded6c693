"""``unbroken.peewee``: peewee's pooled databases, unbroken. docs/peewee.md describes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unbroken.extras import needed

with needed("peewee", "peewee", "playhouse", extra="peewee"):
    from unbroken.integrations.peewee.database import PooledDatabase
    from unbroken.integrations.peewee.databases import (
        PooledMariaDBConnectorDatabase,
        PooledMySQLConnectorDatabase,
        PooledMySQLDatabase,
        PooledPostgresqlDatabase,
        PooledPostgresqlExtDatabase,
        PooledPsycopg3Database,
        connect,
    )
    from unbroken.integrations.peewee.errors import LazyQueryError
    from unbroken.integrations.peewee.unit import DatabaseProxy, unit

if TYPE_CHECKING:
    from unbroken.integrations.peewee.aio import AsyncMySQLDatabase, AsyncPostgresqlDatabase

__all__ = [
    "AsyncMySQLDatabase",
    "AsyncPostgresqlDatabase",
    "DatabaseProxy",
    "LazyQueryError",
    "PooledDatabase",
    "PooledMariaDBConnectorDatabase",
    "PooledMySQLConnectorDatabase",
    "PooledMySQLDatabase",
    "PooledPostgresqlDatabase",
    "PooledPostgresqlExtDatabase",
    "PooledPsycopg3Database",
    "connect",
    "unit",
]


def __getattr__(name: str) -> Any:
    if name in ("AsyncMySQLDatabase", "AsyncPostgresqlDatabase"):
        # playhouse.pwasyncio needs greenlet, and a newer peewee
        with needed("peewee", "playhouse", "greenlet", extra="peewee"):
            from unbroken.integrations.peewee import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
