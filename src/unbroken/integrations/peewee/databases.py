"""The databases by playhouse's names, one for each way that peewee connects, and their URLs."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import peewee
from playhouse import db_url, mysql_ext, postgres_ext

from unbroken.drivers._addresses import ENCODE
from unbroken.drivers._wrong_urls import no_text, no_url
from unbroken.drivers.url import parse
from unbroken.errors import ConfigurationError
from unbroken.hints import nearest, shown
from unbroken.integrations.peewee.database import PooledDatabase
from unbroken.integrations.peewee.where import without_hosts
from unbroken.messages.configuration import NOT_A_URL, URL_UNREADABLE
from unbroken.messages.integrations import PEEWEE_DATABASE


class PooledMySQLDatabase(PooledDatabase, peewee.MySQLDatabase):  # type: ignore[misc] # peewee ships no types that we could use
    """playhouse's ``PooledMySQLDatabase``, unbroken: PyMySQL, or mysqlclient if peewee uses
    that.
    """


class PooledMySQLConnectorDatabase(PooledDatabase, mysql_ext.MySQLConnectorDatabase):  # type: ignore[misc]
    """playhouse's, unbroken: mysql-connector-python."""


class PooledMariaDBConnectorDatabase(PooledDatabase, mysql_ext.MariaDBConnectorDatabase):  # type: ignore[misc]
    """playhouse's, unbroken: MariaDB Connector/Python."""


class PooledPostgresqlDatabase(PooledDatabase, peewee.PostgresqlDatabase):  # type: ignore[misc]
    """playhouse's ``PooledPostgresqlDatabase``, unbroken: psycopg2, or psycopg 3 with
    ``prefer_psycopg3=True``.
    """


class PooledPostgresqlExtDatabase(PooledDatabase, postgres_ext.PostgresqlExtDatabase):  # type: ignore[misc]
    """playhouse's, unbroken: hstore, server-side cursors."""


class PooledPsycopg3Database(PooledDatabase, postgres_ext.Psycopg3Database):  # type: ignore[misc]
    """playhouse's, unbroken: psycopg 3."""


_SCHEMES = {
    "mysql": PooledMySQLDatabase,
    "mariadb": PooledMySQLDatabase,
    "mysqlconnector": PooledMySQLConnectorDatabase,
    "mariadbconnector": PooledMariaDBConnectorDatabase,
    "postgres": PooledPostgresqlDatabase,
    "postgresql": PooledPostgresqlDatabase,
    "postgresext": PooledPostgresqlExtDatabase,
    "postgresqlext": PooledPostgresqlExtDatabase,
    "psycopg3": PooledPsycopg3Database,
}
#: SQLAlchemy's names of the same drivers.
_ALIASES = {
    "mysql+pymysql": "mysql",
    "mariadb+pymysql": "mysql",
    "mysql+mysqlconnector": "mysqlconnector",
    "mariadb+mariadbconnector": "mariadbconnector",
    "postgresql+psycopg2": "postgresql",
    "postgresql+psycopg": "psycopg3",
}
_ASYNC = {
    "mysql+aiomysql": "aiomysql",
    "mariadb+aiomysql": "aiomysql",
    "postgres+asyncpg": "asyncpg",
    "postgresql+asyncpg": "asyncpg",
}
for _name, _kind in _SCHEMES.items():
    # playhouse.db_url.connect("mysql+unbroken://...")
    db_url.register_database(_kind, f"{_name}+unbroken")


def connect(url: str, **options: Any) -> Any:
    """Do the same as ``playhouse.db_url.connect``, for any of its MySQL and PostgreSQL schemes
    (``mysql``, ``mysql+pool``, ``psycopg3+pool`` …).

    ``mysql+aiomysql`` and ``postgresql+asyncpg`` make the asyncio databases.

    Settings may be in the query: ``postgresql+pool://…/shop?max_connections=5&strict=true``. User
    and password are unquoted. Raises ConfigurationError for a scheme that unbroken does not
    support.
    """
    scheme = _scheme_of(url)
    if scheme in _ASYNC:
        import unbroken.integrations.peewee.aio  # noqa: F401 - registers its schemes
    name = _ASYNC.get(scheme) or _ALIASES.get(scheme, scheme).removesuffix("+pool").removesuffix(
        "+unbroken"
    )
    if name not in (*_SCHEMES, *_ASYNC.values()):
        near = nearest(scheme, [*_SCHEMES, *_ALIASES, *_ASYNC])
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ConfigurationError(
            PEEWEE_DATABASE(
                f"unbroken.peewee does not support the scheme {shown(scheme)}{hint}; it supports"
                f" {', '.join(_SCHEMES)}, each with or without +pool, and for asyncio"
                f" {', '.join(_ASYNC)}"
            )
        )
    if not urlsplit(url).path.strip("/") and "database" not in options:
        # playhouse's error would show the URL, with its password
        raise ConfigurationError(
            NOT_A_URL(
                f"the {scheme}:// URL has no database name; write"
                f" {scheme}://user:password@host/name"
            )
        )
    url, several = without_hosts(url)
    options = {"unquote_password": True, "unquote_user": True, **several, **options}
    try:
        return db_url.connect(f"{name}+unbroken{url[len(scheme) :]}", **options)
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(URL_UNREADABLE(f"the URL cannot be parsed; {ENCODE}")) from None


def _scheme_of(url: object) -> str:
    """Return the scheme of *url*. Raises ConfigurationError for a value that is no URL, without
    showing it.
    """
    if not isinstance(url, str):
        raise ConfigurationError(NOT_A_URL(no_text(url)))
    try:
        scheme, several = urlsplit(url).scheme, "," in urlsplit(url).netloc
        if scheme and not several:
            _ = urlsplit(url).port
    except ValueError:
        scheme, _, rest = url.partition("://")
        parse(f"mysql://{rest}")  # raises for the flaw, if it finds one
        raise ConfigurationError(URL_UNREADABLE(f"the URL cannot be parsed; {ENCODE}")) from None
    if not scheme or "://" not in url:
        raise ConfigurationError(NOT_A_URL(no_url(url.strip())))
    return scheme
