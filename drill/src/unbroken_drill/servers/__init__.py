"""Real, private database servers for tests and demonstrations. They start in a fraction of a
second, and tests can break them.

    from unbroken_drill.servers import PostgreSQL

    with PostgreSQL({"max_connections": 20}) as server:
        pool = unbroken.Pool(server.url("psycopg"))
        server.crash(down=1.0)

Whole clusters, with the load balancer or pooler before them, exist as well:

    with PostgreSQLCluster(standbys=1) as cluster, HAProxy(cluster) as balancer:
        pool = unbroken.Pool(balancer.url("psycopg"))
        cluster.promote()

:func:`available` tells whether a kind of server is available here. No driver is needed: queries use
the server's own protocol.
"""

from unbroken_drill.servers.base import Server, Session
from unbroken_drill.servers.cluster import Cluster
from unbroken_drill.servers.errors import ServerError, ServerUnavailable
from unbroken_drill.servers.galera import Galera, GaleraNode
from unbroken_drill.servers.haproxy import HAProxy
from unbroken_drill.servers.kinds import available
from unbroken_drill.servers.mariadb import MariaDB
from unbroken_drill.servers.mariadb_cluster import MariaDBCluster
from unbroken_drill.servers.mongodb import MongoDB, MongoReplicaSet
from unbroken_drill.servers.mysql import MySQL
from unbroken_drill.servers.pgbouncer import PgBouncer
from unbroken_drill.servers.postgresql import PostgreSQL
from unbroken_drill.servers.postgresql_cluster import PostgreSQLCluster

__all__ = [
    "Cluster", "Galera", "GaleraNode", "HAProxy", "MariaDB", "MariaDBCluster", "MongoDB",
    "MongoReplicaSet", "MySQL", "PgBouncer", "PostgreSQL", "PostgreSQLCluster", "Server",
    "ServerError", "ServerUnavailable", "Session", "available",
]  # fmt: skip
