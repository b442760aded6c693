"""What it costs to open a connection: the bare driver, and through a pool that has just been
drained.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from measure import Effort, Result, Slice, Table, interleaved, repeated

import unbroken
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available


def run(effort: Effort) -> Result:
    """Every blocking driver that is installed, plain; PyMySQL over TLS as well."""
    result = Result()
    with contextlib.ExitStack() as stack:
        slices = _slices(stack.enter_context(PostgreSQL()), {"psycopg": _psycopg}, stack)
        result.tables.append(
            Table("Connect and close: PostgreSQL", "ms", interleaved(slices, effort))
        )
        if available("mariadb") is None:
            plain = _slices(
                stack.enter_context(MariaDB()),
                {"pymysql": _pymysql, "mysqldb": _mysqlclient},
                stack,
            )
            note = (
                "PyMySQL alone loads the system's CA certificates at each connect, with or"
                " without TLS. The pool keeps one SSL context."
            )
            result.tables.append(
                Table("Connect and close: MariaDB", "ms", interleaved(plain, effort), note=note)
            )
            tls = _slices(stack.enter_context(MariaDB(tls=True)), {"pymysql": _pymysql}, stack)
            result.tables.append(
                Table(
                    "Connect and close: MariaDB over TLS, verified by a CA of one's own",
                    "ms",
                    interleaved(tls, effort),
                )
            )
    return result


def _slices(
    server: Server, drivers: dict[str, Callable[[Server], Any]], stack: contextlib.ExitStack
) -> dict[str, Slice]:
    slices: dict[str, Slice] = {}
    for name, connect in drivers.items():
        query = {"ssl_ca": str(server.ca_file)} if server.tls else {}
        pool = stack.enter_context(unbroken.Pool(server.url(name, **query), max_size=1))
        slices[f"{name}, bare"] = repeated(lambda connect=connect: connect(server).close())
        slices[f"unbroken, {name}"] = repeated(functools.partial(_through, pool))
    return slices


def _through(pool: unbroken.Pool) -> None:
    pool.release(pool.acquire())
    pool.drain()


def _psycopg(server: Server) -> Any:
    import psycopg

    return psycopg.connect(server.url())


def _pymysql(server: Server) -> Any:
    import pymysql

    more = {"ssl": {"ca": str(server.ca_file), "check_hostname": True}} if server.tls else {}
    return pymysql.connect(**_where(server), **more)


def _mysqlclient(server: Server) -> Any:
    import MySQLdb

    return MySQLdb.connect(**_where(server))


def _where(server: Server) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "user": server.user,
        "password": server.password,
        "database": server.database,
    }
