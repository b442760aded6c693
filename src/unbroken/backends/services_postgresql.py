"""Texts of services with PostgreSQL's protocol; PgBouncer's are in :mod:`postgresql`. :class:`Word`
describes each field.
"""

from __future__ import annotations

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.services import Word, fault_of

_K = FaultKind
_SUPAVISOR = "supabase/supavisor lib/supavisor/errors"
_NEON = "neondatabase/neon proxy/src/control_plane/errors.rs"
_NEON_DOCS = "neon.com/docs: Connection errors"
_RDS = "AWS documentation: Troubleshooting for RDS Proxy, PostgreSQL"
_PGCAT = "postgresml/pgcat src/client.rs"
_ODYSSEY = "yandex/odyssey sources/frontend.c"
_COCKROACH = "cockroachdb/cockroach pkg/sql/pgwire/server.go"

#: Supavisor gives XX000 to all but a few; older versions had 08006 and 53300 for some.
_XX = frozenset({"XX000", "08006", "53300"})
_58 = frozenset({"58000"})
_08006 = frozenset({"08006"})

ROWS: tuple[Word, ...] = (
    # -- Supavisor (Supabase)
    Word(
        "Supavisor", _XX,
        ("max client connections reached", "max clients reached in session mode",
         "maxclientsinsessionmode", "max proxy connections reached", "max pools count reached"),
        _K.TOO_MANY, _K.TOO_MANY, "all connection slots are in use",
        f"{_SUPAVISOR}/max_connections_error.ex",
    ),
    Word(
        "Supavisor", _XX,
        ("unable to check out connection from the pool",
         "failed to check out a connection after multiple retries", "pool checkout failed"),
        _K.TOO_MANY, _K.TOO_MANY, "no connection of its pool became free in time",
        f"{_SUPAVISOR}/checkout_timeout_error.ex",
    ),
    Word(
        "Supavisor", _XX, ("dbhandler exited", "connection to database closed. check logs"),
        _K.NOT_READY, _K.LOST, "the connection behind the pooler ended",
        f"{_SUPAVISOR}/db_handler_exited_error.ex",
    ),
    Word(
        "Supavisor", _XX,
        ("failed to subscribe to tenant after multiple retries",
         "worker processes (manager/pool) not found", "pool ranch listener not found",
         "pool configuration not found", "pool is terminating", "proxy supervisor unavailable",
         "failed to start proxy connection", "circuit breaker open for operation",
         "failed to retrieve authentication secrets", "authentication query failed",
         "checkout failed due to", "failed to reach jit provider"),
        _K.NOT_READY, _K.NOT_READY, "its pool for this project is starting, stopping or cannot"
        " reach the database", _SUPAVISOR,
    ),
    Word(
        "Supavisor", _XX,
        ("tenant or user not found", ("tenant/user ", " not found"),
         "user not found in the database", "no tenant identifier provided",
         "multiple users matched for", "invalid format for user or db_name"),
        _K.REJECTED, None, "no such project or user",
        f"{_SUPAVISOR}/tenant_or_user_not_found_error.ex", login=True,
    ),
    Word(
        "Supavisor", _XX,
        ("address not in tenant allow_list", "tenant is banned", "ssl connection is required for",
         "no auth_query configured"),
        _K.REJECTED, None, "the project's settings forbid it", _SUPAVISOR,
    ),
    # -- Neon
    Word(
        "Neon", None, ("couldn't connect to compute node", "control plane request failed"),
        _K.NOT_READY, _K.NOT_READY, "the compute is starting, or cannot be started now",
        f"{_NEON_DOCS}; {_NEON}",
    ),
    Word(
        "Neon", None, ("the endpoint has been disabled", "endpoint is disabled"),
        _K.NOT_READY, _K.NOT_READY, "the compute was disabled; some start with the next connect",
        "the error as users report it, with XX000 and with 28000",
    ),
    Word(
        "Neon", None,
        ("too many database connection attempts are currently ongoing",
         "too many connections attempts",
         "exceeded the limit of concurrently active endpoints"),
        _K.TOO_MANY, _K.TOO_MANY, "a limit of the service", f"{_NEON}; {_NEON_DOCS}",
    ),
    Word(
        "Neon", None, ("the endpoint id is not specified",),
        _K.REJECTED, None, "the client sent no host name in TLS", _NEON_DOCS,
    ),
    # -- RDS Proxy (its SQLSTATEs are not documented)
    Word(
        "RDS Proxy", None, ("timed-out waiting to acquire database connection",),
        _K.TOO_MANY, _K.TOO_MANY, "no connection to the database within the borrow timeout: it is"
        " full or down", _RDS,
    ),
    Word(
        "RDS Proxy", None,
        ("maximum number of client connections to the proxy exceeded",
         "rate of connection to proxy exceeded", "because of too many competing requests"),
        _K.TOO_MANY, _K.TOO_MANY, "a limit of the proxy", _RDS,
    ),
    Word(
        "RDS Proxy", None,
        ("this rds proxy has no credentials for the role",
         ("the password that was provided for the role", "is wrong"),
         "iam authentication failed for"),
        _K.REJECTED, None, "the proxy has no such user, or another password", _RDS, login=True,
    ),
    Word(
        "RDS Proxy", None,
        ("this rds proxy requires tls connections", "is allowed only with ssl connections",
         "rds supports only iam", "a user name is missing from the connection startup packet",
         "feature not supported: rds proxy"),
        _K.REJECTED, None, "the client must connect in another way", _RDS,
    ),
    # -- CockroachDB; 40001 and 40003 are PostgreSQL's
    Word(
        "CockroachDB", frozenset({"57P01", "57P03"}),
        ("server is not accepting clients", "server is shutting down"),
        _K.NOT_READY, _K.LOST, "the node is being drained", _COCKROACH, Cause.SHUTDOWN,
    ),
    # -- pgcat gives 58000 to everything
    Word(
        "pgcat", _58, ("pool down for database", "could not get connection from the pool"),
        _K.NOT_READY, _K.NOT_READY, "no server of its pool can be reached", _PGCAT,
    ),
    Word(
        "pgcat", _58, ("checkout failure limit reached",),
        _K.TOO_MANY, _K.TOO_MANY, "no connection of its pool became free in time", _PGCAT,
    ),
    Word(
        "pgcat", _58, ("no pool configured for database",),
        _K.REJECTED, None, "no such database or user", _PGCAT, login=True,
    ),
    Word(
        "pgcat", _58, ("terminating connection due to administrator command",),
        _K.NOT_READY, _K.LOST, "it is shutting down", _PGCAT, Cause.SHUTDOWN,
    ),
    Word(
        "pgcat", _58, ("idle transaction timeout",),
        None, _K.LOST, "a transaction was idle for too long", _PGCAT,
        Cause.TRANSACTION_LIMIT,
    ),
    Word(
        "pgcat", _58, ("error receiving data from server", "pool statement timeout"),
        None, _K.LOST, "the connection behind the pooler ended", _PGCAT,
    ),
    # -- Odyssey
    Word(
        "Odyssey", frozenset({"53300"}),
        ("too many active clients for user", "too many client tcp connections",
         "too many tcp connections"),
        _K.TOO_MANY, _K.TOO_MANY, "all connection slots are in use", _ODYSSEY,
    ),
    Word(
        "Odyssey", frozenset({"3D000"}), (("route for ", " is not found"),),
        _K.REJECTED, None, "no such database or user", _ODYSSEY, login=True,
    ),
    Word(
        "Odyssey", _08006,
        ("failed to get remote server connection", "failed to connect to remote server",
         "can't find suitable host for tsa"),
        _K.NOT_READY, _K.NOT_READY, "no server of its pool can be reached", _ODYSSEY,
    ),
    Word(
        "Odyssey", _08006, ("dropped by odyssey due to idle timeout",),
        None, _K.LOST, "the session was idle for too long", _ODYSSEY, Cause.IDLE_LIMIT,
    ),
    Word(
        "Odyssey", _08006, ("dropped by odyssey due to idle in transaction timeout",),
        None, _K.LOST, "a transaction was idle for too long", _ODYSSEY,
        Cause.TRANSACTION_LIMIT,
    ),
    Word(
        "Odyssey", _08006, ("remote server read/write error",),
        _K.NOT_READY, _K.LOST, "the connection behind the pooler ended", _ODYSSEY,
    ),
    Word(
        "Odyssey", frozenset({"58000", "53200"}), ("client routing failed", "soft out of memory"),
        _K.NOT_READY, _K.NOT_READY, "it cannot take the client now", _ODYSSEY,
    ),
)  # fmt: skip

#: A row without codes counts for these classes, which services use for failures of their own.
_VAGUE = ("XX", "08", "28", "53", "57", "58", "0A", "3D")


def service_fault(sqlstate: str | None, text: str, connecting: bool) -> Fault | None:
    """Return the fault that an error with *sqlstate* (None: libpq passes none on) and *text*
    reports, if a service has its own text for it.
    """
    vague = not sqlstate or sqlstate.startswith(_VAGUE)
    if not vague:
        return None
    return fault_of(ROWS, sqlstate or None, vague, text, connecting)
