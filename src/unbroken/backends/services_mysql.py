"""Texts of services with MySQL's protocol. :class:`Word` describes each field."""

from __future__ import annotations

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.backends.services import Word, fault_of

_K = FaultKind
_GATEWAY = "vitessio/vitess go/vt/vtgate/tabletgateway.go"
_PLANETSCALE = "planetscale.com/docs: Common errors; vitessio/vitess go/mysql/sqlerror/sql_error.go"
_TIDB = "docs.pingcap.com: Error Codes and Troubleshooting"
_RDS = "AWS documentation: Troubleshooting for RDS Proxy, MySQL"

#: ER_UNKNOWN_ERROR, the server is not available, the query was interrupted (Vitess: cancelled,
#: deadline exceeded, aborted)
_VITESS = frozenset({1105, 3168, 1317})

ROWS: tuple[Word, ...] = (
    Word(
        "Vitess, PlanetScale", _VITESS,
        ("primary is not serving", "reparent operation in progress",
         "current keyspace is being resharded", "no healthy tablet available for",
         "inconsistent state detected, primary is serving"),
        _K.NOT_READY, _K.NOT_READY, "a shard has no primary that serves, during a failover or a"
        " resharding", _GATEWAY,
    ),
    Word(
        "Vitess, PlanetScale", _VITESS,
        ("code = unavailable", "vtgate connection error", "vt14001", "vt14002", "vt14003"),
        _K.NOT_READY, _K.NOT_READY, "a tablet or a gateway cannot be reached, or is stopping",
        "planetscale.com/docs: Common errors; vitessio/vitess go/vt/vterrors/code.go",
    ),
    Word(
        "PlanetScale", frozenset({1105, 1045}), ("branch is missing or sleeping",),
        _K.NOT_READY, _K.NOT_READY, "the database is paused, or was deleted",
        "planetscale.com/docs: Common errors",
    ),
    Word(
        "Vitess, PlanetScale", frozenset({1203, 1105}),
        (("code = resourceexhausted", "connection limit exceeded"),
         "transaction pool connection limit exceeded", "query pool wait count exceeded"),
        _K.TOO_MANY, _K.TOO_MANY, "too many transactions or queries at once", _PLANETSCALE,
    ),
    Word(
        "Vitess, PlanetScale", frozenset({1317, 1105}),
        (("code = aborted", "transaction", "for tx killer rollback"),
         ("code = aborted", "transaction", "not found"),
         ("code = aborted", "transaction", "ended at")),
        None, _K.RETRY, "the tablet ended the transaction and rolled it back",
        "vitessio/vitess go/vt/vttablet/tabletserver/tx_pool.go", unless=("exceeded timeout",),
    ),
    Word(
        "RDS Proxy", frozenset({9501}), ("timed-out waiting to acquire database connection",),
        _K.TOO_MANY, _K.TOO_MANY, "no connection to the database within the borrow timeout: it is"
        " full or down", f"{_RDS}; sequelize/sequelize#14433",
    ),
    Word(
        "RDS Proxy", frozenset({1105}), ("timed-out waiting to acquire database connection",),
        _K.TOO_MANY, _K.TOO_MANY, "the same, with another error number",
        "sequelize/sequelize#14433",
    ),
    Word(
        "ProxySQL", frozenset({9001}), ("max connect timeout reached while reaching hostgroup",),
        _K.NOT_READY, _K.NOT_READY, "no server of the hostgroup can be reached",
        "sysown/proxysql lib/MySQL_Session.cpp",
    ),
    Word(
        "ProxySQL", frozenset({9002}), ("max connect failure while reaching hostgroup",),
        _K.NOT_READY, _K.NOT_READY, "no server of the hostgroup can be reached",
        "sysown/proxysql lib/MySQL_Session.cpp",
    ),
    Word(
        "ProxySQL", frozenset({1045, 1040}),
        (("user", "can only connect locally"),),
        _K.REJECTED, None, "this user cannot connect from another machine",
        "sysown/proxysql lib/MySQL_Session.cpp",
    ),
    Word(
        "Azure Database", frozenset({9002}), ("ssl connection is required",),
        _K.REJECTED, None, "the client must connect by TLS", "prisma/orm#2604",
    ),
    Word(
        "MaxScale", frozenset({1927}),
        ("lost connection to backend server", "lost connection to the primary server"),
        _K.NOT_READY, _K.LOST, "the server behind the session cannot be reached",
        "mariadb-corporation/MaxScale mariadb_backend.cc, rwsplitsession.cc", Cause.FAILOVER,
    ),
    Word(
        "TiDB", frozenset({8002, 8005, 8022, 8028}),
        ("can not retry select for update", "write conflict", "safe to retry",
         "information schema is changed"),
        None, _K.RETRY, "a conflict, or a changed schema: the transaction can be run again",
        f"{_TIDB}; pingcap/tidb pkg/errno/errname.go",
    ),
    Word(
        "TiDB", frozenset({9007}), ("write conflict",),
        None, _K.RETRY, "a conflict with another write: the transaction was rolled back", _TIDB,
    ),
    Word(
        "TiDB", frozenset({1105}), ("[try again later]",),
        None, _K.RETRY, "an error inside a transaction; another attempt can succeed",
        "pingcap/tidb kv/error.go, TxnRetryableMark",
    ),
    Word(
        "TiDB", frozenset({9001}), ("pd server timeout",),
        _K.NOT_READY, _K.NOT_READY, "the placement driver does not answer", _TIDB,
    ),
    Word(
        "TiDB", frozenset({9002, 9003, 9005}),
        ("tikv server timeout", "tikv server is busy", "region is unavailable"),
        _K.NOT_READY, _K.NOT_READY, "the storage does not answer, is busy or has no leader", _TIDB,
    ),
    Word(
        "OceanBase", frozenset({8001, 8002}), ("server is initializing", "server is stopping"),
        _K.NOT_READY, _K.LOST, "it is starting or stopping, and the session must be closed",
        "oceanbase.ai/docs: Error code 8000-8999", Cause.SHUTDOWN,
    ),
    Word(
        "TiDB", frozenset({8027}), ("information schema is out of date",),
        _K.NOT_READY, _K.NOT_READY, "this node has lost contact with the cluster", _TIDB,
    ),
)  # fmt: skip


def service_fault(errno: int | None, text: str, connecting: bool) -> Fault | None:
    """Return the fault that error *errno* with *text* reports, if a service has its own text for
    it.
    """
    if errno is None or errno not in _CODES:
        return None
    return fault_of(ROWS, errno, False, text, connecting)


_CODES = frozenset(code for row in ROWS for code in row.codes or ())
