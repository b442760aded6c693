"""Which errors, answered to a COMMIT, prove that nothing was stored.

Every other answer leaves the work in doubt: it may be stored, now or later. The answers of an
unknown server or proxy never count as a proof.
"""

from __future__ import annotations

from unbroken.abc import Fault

#: MySQL's and MariaDB's, each with its source. Several similar codes are not among them. 1180: an
#: engine or the binary log failed half way; Galera and group replication use it for more. 1317 and
#: 1205: a COMMIT waits for semi-synchronous replicas, the group or a backup lock, before and after
#: it stores. 1047: a Galera node sends it before and after it has replicated. 3100: a hook failed,
#: perhaps after the group has the transaction. The others are 1026, 1030, 1105, 1197 and 1598.
_MYSQL = frozenset({
    1213,  # the whole transaction was undone (InnoDB; Galera: wsrep-lib, client_state.cpp)
    1290,  # --read-only, checked before anything is prepared (MariaDB and MySQL: ha_commit_trans)
    # XA: no such transaction, not in this state: nothing was tried (sql/xa.cc, trans_xa_commit)
    1397, 1398, 1399, 1400,
    1402, 1613, 1614,  # XA: "transaction branch was rolled back"
    # "plugin instructed the server to rollback the current transaction" (binlog.cc: after
    # ha_rollback_low)
    3101,
})  # fmt: skip

#: TiDB's, all "[try again later]" before the primary key is committed (docs: Error Codes;
#: tikv/client-go, txnkv/transaction/2pc.go). They are matched by their texts, because others use
#: the numbers too. An undetermined result ends the connection.
_TIDB: dict[int | str | None, str] = {
    8002: "can not retry select for update",
    8005: "write conflict",
    8022: "safe to retry",
    8028: "information schema is changed",
    9007: "write conflict",
}

#: Vitess commits shard by shard and passes a shard's error on: an earlier shard may have stored its
#: part (vitess.io, "Distributed transactions": multi).
_OF_A_SHARD = ("vttablet", "target: ", "rpc error", "code = ")

#: PostgreSQL answers an ERROR only if it rolled back. A failure after the commit record is a PANIC,
#: and an interrupted wait for a standby is a WARNING (xact.c, syncrep.c). Poolers and clusters
#: behind the same protocol use codes of these classes for their own failures: connection
#: (PgBouncer's 08P01), resources, operator intervention, system, configuration, internal.
_PG_DOUBTED = frozenset({"08", "53", "57", "58", "F0", "XX"})
_PG_CLASSES = frozenset(
    "03 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 44 54"
    " 55 72 HV P0".split()
)
#: Neither the standard's nor PostgreSQL's own: an application's deferred trigger raises them.
_APPLICATIONS_OWN = frozenset("56789IJKLMNOQRSTUVWYZ")
_PG_UNKNOWN = frozenset({
    "40003",  # statement_completion_unknown; CockroachDB: "result is ambiguous"
    # the session ended with it, and a wait for a standby may have been under way
    "25P03", "25P04",
})  # fmt: skip


def proves_nothing_stored(backend: str, code: int | str | None, text: str = "") -> bool:
    """Return whether *code* (MySQL errno or SQLSTATE) and *text*, the server's answer to a COMMIT,
    prove that nothing of it was stored. *backend* is as in :class:`unbroken.abc.Target`.

    The same holds for ``XA COMMIT``, ``COMMIT PREPARED`` and similar statements. False without a
    code.
    """
    if backend == "sqlite":
        return True  # a COMMIT that failed can be tried again, or was rolled back
    if backend == "postgresql":
        return isinstance(code, str) and _is_postgresqls_no(code)
    if backend in ("mysql", "mariadb"):
        lower = text.lower()
        if any(words in lower for words in _OF_A_SHARD):
            return False
        return code in _MYSQL or (code in _TIDB and _TIDB[code] in lower)
    return False


def _is_postgresqls_no(sqlstate: str) -> bool:
    if len(sqlstate) != 5 or sqlstate in _PG_UNKNOWN or sqlstate[:2] in _PG_DOUBTED:
        return False
    return sqlstate[:2] in _PG_CLASSES or sqlstate[0] in _APPLICATIONS_OWN


def is_of_the_server(fault: Fault) -> bool:
    """Return whether *fault* has a code that only a server sends: an errno of a MySQL server, or a
    SQLSTATE.
    """
    code = fault.code
    if isinstance(code, int):
        return code >= 1000 and not 2000 <= code < 3000
    return isinstance(code, str) and len(code) == 5
