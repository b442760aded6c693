"""peewee: its pooled databases by name, on a pool that does not break; lazy queries that cannot leak. See docs/peewee.md."""

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
