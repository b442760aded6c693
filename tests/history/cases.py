"""Which clients there are, by name, and which belong together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from unbroken_drill import FaultProxy
from unbroken_drill.drill.topologies import TOPOLOGIES, Topology
from unbroken_drill.servers import (
    MariaDB,
    MariaDBCluster,
    MongoDB,
    MySQL,
    PostgreSQL,
    PostgreSQLCluster,
    Server,
)

from . import clients, mongo, mongo_set
from .checker import Stored
from .workload import schema

#: PostgreSQL looks for deadlocks after a second, most of a short history; MongoDB keeps a
#: transaction whose client is gone for a minute.
SERVERS: dict[str, tuple[type[Server], dict[str, Any]]] = {
    "mariadb": (MariaDB, {"innodb_lock_wait_timeout": 5}),
    "mysql": (MySQL, {"innodb_lock_wait_timeout": 5}),
    "postgresql": (PostgreSQL, {"deadlock_timeout": "50ms"}),
    "mongodb": (MongoDB, {"transactionLifetimeLimitSeconds": 5}),
}
#: As the drill's, but a COMMIT is acknowledged before another server has it.
ASYNCHRONOUS: dict[str, Topology] = {
    "standby": replace(TOPOLOGIES["standby"], cluster=PostgreSQLCluster),
    "replica": replace(TOPOLOGIES["replica"], cluster=MariaDBCluster),
}
#: What the proxy has to understand, to cut at a COMMIT.
PROTOCOLS = {"mariadb": "mysql", "mysql": "mysql", "postgresql": "postgresql"}


@dataclass(frozen=True)
class Case:
    """A kind of client, the driver in its URL, and the kind of its server, spoken to by TLS or
    plainly.
    """

    name: str
    client: type[Any]
    driver: str
    backend: str
    tls: bool = False
    topology: str = ""  #: several servers, as the drill has them, and not one
    may_lose: bool = False  #: replication is asynchronous: a promotion loses what was on its way

    @property
    def is_async(self) -> bool:
        """Whether its units are awaited."""
        return self.client.__name__.startswith("Async")

    @property
    def replays(self) -> bool:
        """Whether its units are run again where that is safe."""
        return bool(getattr(self.client, "replays", True))

    @property
    def deck(self) -> str:
        """Which faults are played on it (see faults.py)."""
        if self.topology == "set":
            return "set"
        if self.topology:
            return "lossy" if self.may_lose else "cluster"
        return "mongodb" if self.backend == "mongodb" else "tls" if self.tls else "plain"

    def server(self) -> Any:
        """A server of its kind, or a site of its topology, not started."""
        if self.topology == "set":
            return mongo_set.MongoSet(SERVERS["mongodb"][1], tls=self.tls)
        if self.topology:
            return (ASYNCHRONOUS if self.may_lose else TOPOLOGIES)[self.topology].site()
        kind, options = SERVERS[self.backend]
        return (
            MongoDB(options, replica_set="one")
            if self.backend == "mongodb"
            else kind(options, tls=self.tls)
        )

    def proxy(self, server: Any) -> Any:
        """A proxy before it, which reads the statements where it can."""
        if self.topology == "set":
            return mongo_set.Ways(server)
        return FaultProxy(
            (server.host, server.port), protocol=None if self.tls else PROTOCOLS.get(self.backend)
        )

    def urls(self, server: Any, proxy: Any) -> tuple[str, str]:
        """The way through the proxy, and the one to the server itself."""
        if self.topology == "set":
            return server.url(), server.url()
        if self.backend == "mongodb":
            # a client that knew the whole set would find its way round the proxy
            return proxy.url(server.url(None, directConnection="true")), server.url()
        url = server.url(self.driver, **(self._by_tls(server) if self.tls else self._plain()))
        if self.topology and self.client in (clients.PoolClient, clients.AsyncPoolClient):
            # a child that is forked while the server is read-only has seen no other
            url += f"{'&' if '?' in url else '?'}target=primary"
        return proxy.url(url), url

    def _by_tls(self, server: Server) -> dict[str, object]:
        if self.backend == "postgresql":
            return {"sslmode": "verify-ca", "sslrootcert": str(server.ca_file)}
        return {"ssl_ca": str(server.ca_file)}

    def _plain(self) -> dict[str, object]:
        if self.driver == "mysqlconnector":
            return {"ssl_disabled": "true"}
        if (
            self.backend == "postgresql"
            and self.driver == "asyncpg"
            and self.client is not clients.AsyncPoolClient
        ):
            return (
                {"ssl": "disable"} if issubclass(self.client, clients.AsyncSQLAlchemyClient) else {}
            )
        if self.backend == "postgresql":
            return {"sslmode": "disable"}
        return (
            {"ssl_disabled": "true"} if self.backend == "mysql" and self.driver == "pymysql" else {}
        )

    def prepare(self, server: Any) -> None:
        """Empty tables, and nobody else there."""
        if self.backend == "mongodb":
            return mongo.prepare(server)
        server.kill_sessions()
        for statement in schema(self.backend != "postgresql", server.user):
            server.admin(statement)
        return None

    def stored(self, server: Any) -> Stored:
        """What the database holds in the end, when those who are still in a transaction have been
        sent away.
        """
        if self.backend == "mongodb":
            return mongo.stored(server)
        server.kill_sessions()
        return Stored(
            Counter((int(n), int(part)) for n, part in server.admin("SELECT n, part FROM numbers")),
            {int(n): int(value) for n, value in server.admin("SELECT id, balance FROM accounts")},
            {int(n): int(value) for n, value in server.admin("SELECT id, value FROM counters")},
        )


def _pools(
    backend: str, client: type[Any], drivers: str, prefix: str = "", *, tls: bool = False
) -> tuple[Case, ...]:
    def spelled(name: str) -> str:
        return name.removesuffix("_async")

    return tuple(
        Case(prefix + name, client, spelled(name), backend, tls) for name in drivers.split()
    )


def _clusters(
    topology: str, backend: str, client: type[Any], drivers: str, *, may_lose: bool = False
) -> tuple[Case, ...]:
    word = "lossy-" if may_lose else ""
    return tuple(
        Case(f"{word}{topology}-{name}", client, name, backend, False, topology, may_lose)
        for name in drivers.split()
    )


FAMILIES: dict[str, tuple[Case, ...]] = {
    "mysql-sync": _pools("mariadb", clients.PoolClient, "pymysql mysqldb mysqlconnector mariadbconnector"),  # noqa: E501
    "mysql-async": _pools("mariadb", clients.AsyncPoolClient, "aiomysql asyncmy mysqlconnector_async"),  # noqa: E501
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
    "healing": (
        Case("healing-pymysql", clients.HealingClient, "pymysql", "mariadb"),
        Case("healing-mysqldb", clients.HealingClient, "mysqldb", "mariadb"),
        Case("healing-psycopg", clients.HealingClient, "psycopg", "postgresql"),
        Case("healing-psycopg2", clients.HealingClient, "psycopg2", "postgresql"),
        Case("healing-aiomysql", clients.AsyncHealingClient, "aiomysql", "mariadb"),
        Case("healing-asyncpg", clients.AsyncHealingClient, "asyncpg", "postgresql"),
        Case("healing-django-mysql", clients.HealingDjangoClient, "mysqldb", "mariadb"),
        Case("healing-django-postgresql", clients.HealingDjangoClient, "psycopg", "postgresql"),
        Case("healing-peewee-pymysql", clients.HealingPeeweeClient, "pymysql", "mariadb"),
        Case("healing-peewee-psycopg", clients.HealingPeeweeClient, "psycopg", "postgresql"),
        Case("healing-peewee-psycopg2", clients.HealingPeeweeClient, "psycopg2", "postgresql"),
        Case("healing-peewee-aiomysql", clients.AsyncHealingPeeweeClient, "aiomysql", "mariadb"),
        Case("healing-peewee-asyncpg", clients.AsyncHealingPeeweeClient, "asyncpg", "postgresql"),
    ),
    # Without mysql-connector, which logs in to MySQL 9 over TLS only once the server has forgotten
    # its users' last visits.
    "mysql-9": (
        *_pools("mysql", clients.PoolClient, "pymysql mysqldb mariadbconnector", "mysql9-"),
        *_pools("mysql", clients.AsyncPoolClient, "aiomysql asyncmy", "mysql9-"),
    ),
    "mysql-tls": (
        *_pools("mariadb", clients.PoolClient, "pymysql mysqldb mysqlconnector mariadbconnector", "tls-", tls=True),  # noqa: E501
        *_pools("mariadb", clients.AsyncPoolClient, "aiomysql asyncmy mysqlconnector_async", "tls-", tls=True),  # noqa: E501
    ),
    "mysql-9-tls": (
        *_pools("mysql", clients.PoolClient, "pymysql mysqldb mysqlconnector mariadbconnector", "mysql9-tls-", tls=True),  # noqa: E501
        *_pools("mysql", clients.AsyncPoolClient, "aiomysql asyncmy mysqlconnector_async", "mysql9-tls-", tls=True),  # noqa: E501
    ),
    "postgresql-tls": (
        *_pools("postgresql", clients.PoolClient, "psycopg psycopg2 pg8000", "tls-", tls=True),
        *_pools("postgresql", clients.AsyncPoolClient, "psycopg_async asyncpg", "tls-", tls=True),
    ),
    "mongodb": (
        Case("pymongo", mongo.MongoDBClient, "pymongo", "mongodb"),
        Case("pymongo_async", mongo.AsyncMongoDBClient, "pymongo", "mongodb"),
    ),
    "mongodb-set": (
        Case("set-tls-pymongo", mongo.MongoDBClient, "pymongo", "mongodb", True, "set"),
        Case("set-tls-pymongo_async", mongo.AsyncMongoDBClient, "pymongo", "mongodb", True, "set"),
        Case("set-pymongo", mongo.MongoDBClient, "pymongo", "mongodb", False, "set"),
        Case("set-pymongo_async", mongo.AsyncMongoDBClient, "pymongo", "mongodb", False, "set"),
    ),
}  # fmt: skip

#: Behind HAProxy, which follows the server that takes writes. All replicate before they acknowledge
#: but the last two, whose losses are counted apart.
CLUSTERS = (
    *_clusters("standby", "postgresql", clients.PoolClient, "psycopg psycopg2"),
    *_clusters("standby", "postgresql", clients.AsyncPoolClient, "asyncpg"),
    *_clusters("replica", "mariadb", clients.PoolClient, "pymysql mysqldb"),
    *_clusters("replica", "mariadb", clients.AsyncPoolClient, "aiomysql"),
    Case(
        "standby-sqlalchemy-psycopg", clients.SQLAlchemyClient, "psycopg", "postgresql",
        topology="standby",
    ),
    Case(
        "replica-sqlalchemy-pymysql", clients.SQLAlchemyClient, "pymysql", "mariadb",
        topology="replica",
    ),
    *_clusters("galera", "mariadb", clients.PoolClient, "pymysql"),
    *_clusters("standby", "postgresql", clients.PoolClient, "psycopg", may_lose=True),
    *_clusters("replica", "mariadb", clients.PoolClient, "pymysql", may_lose=True),
)  # fmt: skip
FAMILIES["clusters"] = CLUSTERS

CASES = {case.name: case for family in FAMILIES.values() for case in family}

#: They try again whatever was lost. In no family: they are there to be caught.
CARELESS = {
    "careless": Case("careless", clients.CarelessClient, "pymysql", "mariadb"),
    "careless-pymongo": Case("careless-pymongo", mongo.CarelessMongoDBClient, "pymongo", "mongodb"),
}
