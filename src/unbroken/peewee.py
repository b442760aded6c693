"""``unbroken.peewee``: peewee's pooled databases, unbroken. See docs/peewee.md."""

from __future__ import annotations

from unbroken.integrations.peewee import (
    DatabaseProxy,
    LazyQueryError,
    PooledDatabase,
    PooledMariaDBConnectorDatabase,
    PooledMySQLConnectorDatabase,
    PooledMySQLDatabase,
    PooledPostgresqlDatabase,
    PooledPostgresqlExtDatabase,
    PooledPsycopg3Database,
    connect,
    unit,
)

__all__ = [
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
