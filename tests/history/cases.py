"""Which clients there are, by name, and which belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unbroken.testing.servers import MariaDB, MySQL, PostgreSQL, Server

from . import clients

#: PostgreSQL looks for deadlocks after a second, which is most of a short history.
SERVERS: dict[str, tuple[type[Server], dict[str, Any]]] = {
    "mariadb": (MariaDB, {"innodb_lock_wait_timeout": 5}),
    "mysql": (MySQL, {"innodb_lock_wait_timeout": 5}),
    "postgresql": (PostgreSQL, {"deadlock_timeout": "50ms"}),
}


@dataclass(frozen=True)
class Case:
    """A kind of client, the driver in its URL, and the kind of its server."""

    name: str
    client: type[Any]
    driver: str
    backend: str

    @property
    def is_mysql(self) -> bool:
        """Or MariaDB."""
        return self.backend != "postgresql"

    @property
    def is_async(self) -> bool:
        """Whether its units are awaited."""
        return self.client.__name__.startswith("Async")

    def server(self) -> Server:
        """A server of its kind, not started."""
        kind, options = SERVERS[self.backend]
        return kind(options)

    def url(self, server: Server) -> str:
        """The server's URL, without TLS: the proxy has to read the statements."""
        return server.url(self.driver, **self._plain())

    def _plain(self) -> dict[str, object]:
        if self.driver == "mysqlconnector":
            return {"ssl_disabled": "true"} | ({"use_pure": "false"} if self.name.endswith("_c") else {})
        if self.backend == "postgresql" and self.driver == "asyncpg" and self.client is not clients.AsyncPoolClient:
            return {"ssl": "disable"} if self.client is clients.AsyncSQLAlchemyClient else {}
        if self.backend == "postgresql":
            return {"sslmode": "disable"}
        return {"ssl_disabled": "true"} if self.backend == "mysql" and self.driver == "pymysql" else {}


def _pools(backend: str, client: type[Any], drivers: str, prefix: str = "") -> tuple[Case, ...]:
    def spelled(name: str) -> str:
        return name.removesuffix("_async").removesuffix("_c")

    return tuple(Case(prefix + name, client, spelled(name), backend) for name in drivers.split())


FAMILIES: dict[str, tuple[Case, ...]] = {
    "mysql-sync": _pools("mariadb", clients.PoolClient, "pymysql mysqldb mysqlconnector mysqlconnector_c mariadbconnector"),
    "mysql-async": _pools("mariadb", clients.AsyncPoolClient, "aiomysql asyncmy mysqlconnector_async"),
    "postgresql-sync": _pools("postgresql", clients.PoolClient, "psycopg psycopg2 pg8000"),
    "postgresql-async": _pools("postgresql", clients.AsyncPoolClient, "psycopg_async asyncpg"),
    "frameworks": (
        Case("sqlalchemy-pymysql", clients.SQLAlchemyClient, "pymysql", "mariadb"),
        Case("sqlalchemy-aiomysql", clients.AsyncSQLAlchemyClient, "aiomysql", "mariadb"),
        Case("sqlalchemy-psycopg", clients.SQLAlchemyClient, "psycopg", "postgresql"),
        Case("sqlalchemy-asyncpg", clients.AsyncSQLAlchemyClient, "asyncpg", "postgresql"),
        Case("django-mysql", clients.DjangoClient, "mysqldb", "mariadb"),
        Case("django-postgresql", clients.DjangoClient, "psycopg", "postgresql"),
        Case("peewee-pymysql", clients.PeeweeClient, "pymysql", "mariadb"),
        Case("peewee-psycopg", clients.PeeweeClient, "psycopg", "postgresql"),
        Case("peewee-aiomysql", clients.AsyncPeeweeClient, "aiomysql", "mariadb"),
        Case("peewee-asyncpg", clients.AsyncPeeweeClient, "asyncpg", "postgresql"),
    ),
    # Without mysql-connector, which logs in to MySQL 9 over TLS only once the server has forgotten its users' last visits.
    "mysql-9": (
        *_pools("mysql", clients.PoolClient, "pymysql mysqldb mariadbconnector", "mysql9-"),
        *_pools("mysql", clients.AsyncPoolClient, "aiomysql asyncmy", "mysql9-"),
    ),
}  # fmt: skip

#: Tries again whatever was lost. In no family: it is there to be caught.
CARELESS = Case("careless", clients.CarelessClient, "pymysql", "mariadb")

CASES = {case.name: case for family in FAMILIES.values() for case in family}
