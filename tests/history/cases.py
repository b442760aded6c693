"""Which clients there are, by name, and which belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unbroken.testing.servers import MariaDB, PostgreSQL, Server

from . import clients


@dataclass(frozen=True)
class Case:
    """A kind of client, and the driver in its URL."""

    name: str
    client: type[Any]
    driver: str
    is_mysql: bool

    @property
    def is_async(self) -> bool:
        """Whether its units are awaited."""
        return self.client.__name__.startswith("Async")

    def server(self) -> Server:
        """A server of its kind, not started."""
        if self.is_mysql:
            return MariaDB({"innodb_lock_wait_timeout": 5})
        return PostgreSQL({"deadlock_timeout": "50ms"})  # the usual second is most of a short history

    def url(self, server: Server) -> str:
        """The server's URL, without TLS: the proxy has to read the statements."""
        query: dict[str, object] = {} if self.is_mysql else {"sslmode": "disable"}
        if self.driver == "mysqlconnector":
            query = {"ssl_disabled": "true"} | ({"use_pure": "false"} if self.name.endswith("_c") else {})
        if self.name == "sqlalchemy-asyncpg":
            query = {"ssl": "disable"}
        if self.name == "peewee-asyncpg":
            query = {}
        return server.url(self.driver, **query)


#: The drivers' own pools, a family at a time.
POOLS: dict[str, dict[str, str]] = {
    "mysql-sync": {
        "pymysql": "pymysql", "mysqldb": "mysqldb", "mysqlconnector": "mysqlconnector", "mysqlconnector_c": "mysqlconnector",
        "mariadbconnector": "mariadbconnector",
    },
    "mysql-async": {"aiomysql": "aiomysql", "asyncmy": "asyncmy", "mysqlconnector_async": "mysqlconnector"},
    "postgresql-sync": {"psycopg": "psycopg", "psycopg2": "psycopg2", "pg8000": "pg8000"},
    "postgresql-async": {"psycopg_async": "psycopg", "asyncpg": "asyncpg"},
}  # fmt: skip

FRAMEWORKS = (
    Case("sqlalchemy-pymysql", clients.SQLAlchemyClient, "pymysql", True),
    Case("sqlalchemy-aiomysql", clients.AsyncSQLAlchemyClient, "aiomysql", True),
    Case("sqlalchemy-psycopg", clients.SQLAlchemyClient, "psycopg", False),
    Case("sqlalchemy-asyncpg", clients.AsyncSQLAlchemyClient, "asyncpg", False),
    Case("django-mysql", clients.DjangoClient, "mysqldb", True),
    Case("django-postgresql", clients.DjangoClient, "psycopg", False),
    Case("peewee-pymysql", clients.PeeweeClient, "pymysql", True),
    Case("peewee-psycopg", clients.PeeweeClient, "psycopg", False),
    Case("peewee-aiomysql", clients.AsyncPeeweeClient, "aiomysql", True),
    Case("peewee-asyncpg", clients.AsyncPeeweeClient, "asyncpg", False),
)

FAMILIES: dict[str, tuple[Case, ...]] = {
    family: tuple(
        Case(name, clients.AsyncPoolClient if family.endswith("async") else clients.PoolClient, driver, family.startswith("mysql"))
        for name, driver in drivers.items()
    )
    for family, drivers in POOLS.items()
} | {"frameworks": FRAMEWORKS}

#: Tries again whatever was lost. In no family: it is there to be caught.
CARELESS = Case("careless", clients.CarelessClient, "pymysql", True)

CASES = {case.name: case for family in FAMILIES.values() for case in family}
