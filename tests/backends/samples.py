"""Errors as managed services, poolers and proxies send them, and what each means at a connect and
in use. None: it does not come there.
"""

from __future__ import annotations

from unbroken.abc import Cause, FaultKind

K = FaultKind
Sample = tuple[int | str, str, FaultKind | None, FaultKind | None, Cause | None]

MYSQL: dict[str, Sample] = {
    "vitess-reparent": (1105, "target: shop.-.primary: primary is not serving, there may be a reparent operation in progress", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "vitess-resharding": (1105, "target: shop.-80.primary: current keyspace is being resharded", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "vitess-no-tablet": (1105, "target: ks.0.primary: no healthy tablet available for 'keyspace:\"ks\" shard:\"0\" tablet_type:PRIMARY'", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "vitess-unavailable": (1105, "target: ks.-.primary: vttablet: rpc error: code = Unavailable desc = tablet is shutting down", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "vitess-gateway": (1105, "unavailable: vtgate connection error: no endpoints, after 1 attempts", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "vitess-full": (1203, "target: ks.-.primary: vttablet: rpc error: code = ResourceExhausted desc = transaction pool connection limit exceeded", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "vitess-killed": (1317, "target: ks.-.primary: vttablet: rpc error: code = Aborted desc = transaction 1234: in use: for tx killer rollback", None, K.RETRY, None),  # noqa: E501
    "vitess-too-long": (1317, "target: ks.-.primary: vttablet: rpc error: code = Aborted desc = transaction 7: ended at 12:00 (exceeded timeout: 20s)", None, K.OTHER, None),  # noqa: E501
    "vitess-rows": (1317, "vttablet: rpc error: code = Aborted desc = Row count exceeded 100000", None, K.OTHER, None),  # noqa: E501
    "vitess-bug": (1815, "VT13001: [BUG] something", None, K.OTHER, None),
    "planetscale-asleep": (1105, "not_found: branch is missing or sleeping: abc123", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "rds-proxy-full": (9501, "Timed-out waiting to acquire database connection", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "rds-proxy-limit": (1040, "Number simultaneous connections exceeded (100)", K.TOO_MANY, None, None),  # noqa: E501
    "rds-proxy-tls": (3159, "This RDS Proxy requires TLS connections.", K.REJECTED, None, None),
    "proxysql-away": (9001, "Max connect timeout reached while reaching hostgroup 10 after 10000ms", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "proxysql-failure": (9002, "Max connect failure while reaching hostgroup 10", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "proxysql-locked": (9005, "Session trying to reach HG 2 while locked on HG 1 . Rejecting query: SELECT 1", None, K.OTHER, None),  # noqa: E501
    "proxysql-denied": (1045, "ProxySQL Error: Access denied for user 'app'@'10.0.0.1' (using password: YES)", K.REJECTED, None, None),  # noqa: E501
    "azure-tls": (9002, "SSL connection is required. Please specify SSL options and retry.", K.REJECTED, None, None),  # noqa: E501
    "maxscale-lost": (1927, "Lost connection to backend server: network error", K.NOT_READY, K.LOST, Cause.FAILOVER),  # noqa: E501
    "maxscale-primary": (1927, "Lost connection to the primary server, closing session. Connection from 'app'@'h' has been idle for 0 seconds.", K.NOT_READY, K.LOST, Cause.FAILOVER),  # noqa: E501
    "aurora-read-only": (1290, "The MySQL server is running with the --read-only option so it cannot execute this statement", None, K.READ_ONLY, Cause.FAILOVER),  # noqa: E501
    "tidb-conflict": (9007, "Write conflict, txnStartTS=1, conflictStartTS=2 [try again later]", None, K.RETRY, None),  # noqa: E501
    "tidb-retry": (8022, "Error: KV error safe to retry Txn(Mvcc(WriteConflict)) [try again later]", None, K.RETRY, None),  # noqa: E501
    "tidb-schema": (8028, "Information schema is changed during the execution of the statement", None, K.RETRY, None),  # noqa: E501
    "tidb-old-schema": (1105, "Information schema is changed. [try again later]", None, K.RETRY, None),  # noqa: E501
    "tidb-pd": (9001, "PD server timeout", K.NOT_READY, K.NOT_READY, None),
    "tidb-tikv": (9002, "TiKV server timeout", K.NOT_READY, K.NOT_READY, None),
    "tidb-busy": (9003, "TiKV server is busy", K.NOT_READY, K.NOT_READY, None),
    "tidb-region": (9005, "Region is unavailable", K.NOT_READY, K.NOT_READY, None),
    "oceanbase-starting": (8001, "Server is initializing", K.NOT_READY, K.LOST, Cause.SHUTDOWN),
    "oceanbase-stopping": (8002, "Server is stopping", K.NOT_READY, K.LOST, Cause.SHUTDOWN),
    "an-applications-own": (1062, "Duplicate entry 'primary is not serving' for key 'x'", None, K.OTHER, None),  # noqa: E501
}  # fmt: skip

POSTGRESQL: dict[str, Sample] = {
    "supavisor-session": ("XX000", "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "supavisor-full": ("XX000", "(EMAXCONN) max client connections reached, limit: 200", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "supavisor-old-full": ("XX000", "Max client connections reached", K.TOO_MANY, K.TOO_MANY, None),
    "supavisor-checkout": ("XX000", "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in transaction mode", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "supavisor-exited": ("XX000", "(EDBHANDLEREXITED) DbHandler exited. Check logs for more information", K.NOT_READY, K.LOST, None),  # noqa: E501
    "supavisor-subscribe": ("XX000", "(ESUBSCRIBERETRIES) failed to subscribe to tenant after multiple retries. Terminating", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "supavisor-unknown": ("XX000", "Tenant or user not found", K.REJECTED, None, None),
    "supavisor-not-found": ("XX000", "(ENOTFOUND) tenant/user app.abc not found", K.REJECTED, None, None),  # noqa: E501
    "supavisor-address": ("XX000", "(EADDRNOTALLOWED) address not in tenant allow_list: {10, 0, 0, 1}", K.REJECTED, None, None),  # noqa: E501
    "neon-compute": ("XX000", "couldn't connect to compute node", K.NOT_READY, K.NOT_READY, None),
    "neon-control": ("XX000", "Control plane request failed", K.NOT_READY, K.NOT_READY, None),
    "neon-disabled": ("28000", "The endpoint has been disabled. Enable it using the API and retry.", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "neon-many": ("XX000", "Failed to acquire permit to connect to the database. Too many database connection attempts are currently ongoing.", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "neon-sni": ("08P01", "The endpoint ID is not specified. Either upgrade the Postgres client library (libpq) for SNI support", K.REJECTED, None, None),  # noqa: E501
    "rds-proxy-full": ("53300", "Timed-out waiting to acquire database connection.", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "rds-proxy-rate": ("08004", "Rate of connection to proxy exceeded 100.", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "rds-proxy-unknown": ("28000", "This RDS proxy has no credentials for the role app. Check the credentials for this role and try again.", K.REJECTED, None, None),  # noqa: E501
    "rds-proxy-password": ("28P01", "The password that was provided for the role app is wrong.", K.REJECTED, None, None),  # noqa: E501
    "rds-proxy-tls": ("28000", "This RDS Proxy requires TLS connections.", K.REJECTED, None, None),
    "cockroach-draining": ("57P01", "server is not accepting clients, try another node", K.NOT_READY, K.LOST, Cause.SHUTDOWN),  # noqa: E501
    "cockroach-down": ("57P01", "server is shutting down", K.NOT_READY, K.LOST, Cause.SHUTDOWN),
    "cockroach-retry": ("40001", "restart transaction: TransactionRetryWithProtoRefreshError: TransactionRetryError", None, K.RETRY, None),  # noqa: E501
    "pgcat-down": ("58000", 'Pool down for database: "shop", user: "app"', K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "pgcat-checkout": ("58000", "could not get connection from the pool - AllServersDown", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "pgcat-limit": ("58000", "checkout failure limit reached (3 / 3)", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "pgcat-unknown": ("58000", 'No pool configured for database: "shop", user: "app"', K.REJECTED, None, None),  # noqa: E501
    "pgcat-shutdown": ("58000", "terminating connection due to administrator command", K.NOT_READY, K.LOST, Cause.SHUTDOWN),  # noqa: E501
    "pgcat-idle": ("58000", "idle transaction timeout", None, K.LOST, Cause.TRANSACTION_LIMIT),
    "pgcat-lost": ("58000", "error receiving data from server: SocketError", None, K.LOST, None),
    "odyssey-away": ("08006", "odyssey: c7b5c1: failed to get remote server connection", K.NOT_READY, K.NOT_READY, None),  # noqa: E501
    "odyssey-lost": ("08006", "odyssey: c7b5c1: remote server read/write error s1: Connection reset by peer", K.NOT_READY, K.LOST, None),  # noqa: E501
    "odyssey-idle": ("08006", "Connection was dropped by Odyssey due to idle timeout", None, K.LOST, Cause.IDLE_LIMIT),  # noqa: E501
    "odyssey-full": ("53300", "too many active clients for user (pool_size for user app.shop reached 10)", K.TOO_MANY, K.TOO_MANY, None),  # noqa: E501
    "odyssey-route": ("3D000", "route for 'shop.app' is not found", K.REJECTED, None, None),
    "aurora-read-only": ("25006", "cannot execute INSERT in a read-only transaction", None, K.READ_ONLY, None),  # noqa: E501
    "an-applications-own": ("P0001", "max client connections reached", None, K.OTHER, None),
}  # fmt: skip
