"""What ``db.connect()`` and ``db.close()`` cost on peewee's pooled databases: playhouse's ping each
time, ours look at the kernel.
"""

from __future__ import annotations

import contextlib
from typing import Any

from measure import Effort, Result, Slice, Table, Target, best_of, interleaved, repeated

from unbroken_drill.servers import MariaDB, PostgreSQL

OURS, THEIRS = "unbroken.peewee", "playhouse.pool"
KINDS: tuple[tuple[str, Any, str, dict[str, Any]], ...] = (
    ("PyMySQL", MariaDB, "PooledMySQLDatabase", {}),
    ("psycopg 3", PostgreSQL, "PooledPostgresqlDatabase", {"prefer_psycopg3": True}),
    ("psycopg2", PostgreSQL, "PooledPostgresqlDatabase", {}),
)


def run(effort: Effort) -> Result:
    """Each driver on a server of its own, over loopback."""
    from playhouse import pool as theirs

    import unbroken.peewee as ours

    result = Result()
    for title, server_kind, name, extra in KINDS:
        with server_kind() as server, contextlib.ExitStack() as stack:
            where = {
                "host": server.host,
                "port": server.port,
                "user": server.user,
                "password": server.password,
                **extra,
            }
            slices: dict[str, Slice] = {}
            for label, module in ((OURS, ours), (THEIRS, theirs)):
                db: Any = getattr(module, name)(server.database, max_connections=10, **where)
                stack.callback(db.close_all)
                slices[label] = repeated(lambda db=db: (db.connect(), db.close()))
            rows = interleaved(slices, effort, THEIRS)
        result.tables.append(Table(f"peewee: connect() and close(), {title}", "µs", rows, THEIRS))
        result.targets.append(
            Target(
                f"peewee, {title}: at most 1/5 of playhouse's",
                best_of(rows, OURS) / best_of(rows, THEIRS),
                1 / 5,
            )
        )
    return result
