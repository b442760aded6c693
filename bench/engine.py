"""What the plugin costs a SQLAlchemy engine: checkout and checkin, and round trips on the wire,
beside what people use today.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from measure import Effort, Result, Row, Table, Target, best_of, interleaved, repeated

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

SIZE = 10
REQUESTS = 20
BARE = "QueuePool, no check, no reset"
OURS = "unbroken, no reset"
USUAL = "QueuePool, no check"
DEFAULTS = "unbroken"
PINGING = "pre_ping, no reset"

WAYS: dict[str, dict[str, Any]] = {
    BARE: {"pool_reset_on_return": None},
    OURS: {"pool_reset_on_return": None, "plugins": ["unbroken"]},
    USUAL: {},
    DEFAULTS: {"plugins": ["unbroken"]},
    PINGING: {"pool_reset_on_return": None, "pool_pre_ping": True},
    "pre_ping": {"pool_pre_ping": True},
    "pool_recycle": {"pool_recycle": 3600},
}


def run(effort: Effort) -> Result:
    """On PostgreSQL, and on MariaDB where there is one."""
    logging.getLogger("unbroken").setLevel(logging.ERROR)
    result = Result()
    with PostgreSQL() as server:
        _measure(result, server, "psycopg", effort)
    if available("mariadb") is None:
        with MariaDB() as server:
            _measure(result, server, "pymysql", effort)
            _measure(result, server, "mysqldb", effort)
    return result


def _measure(result: Result, server: Server, driver: str, effort: Effort) -> None:
    with contextlib.ExitStack() as stack:
        engines = {
            name: sa.create_engine(server.url(driver), pool_size=SIZE, **kwargs)
            for name, kwargs in WAYS.items()
        }
        for engine in engines.values():
            stack.callback(engine.dispose)
            held = [engine.connect() for _ in range(SIZE)]
            for conn in held:
                conn.close()
        pools = {
            name: repeated(lambda pool=engine.pool: pool.connect().close())
            for name, engine in engines.items()
        }
        whole = {
            name: repeated(lambda engine=engine: engine.connect().close())
            for name, engine in engines.items()
        }
        rows = interleaved(pools, effort, BARE)
        result.tables.append(
            Table(f"SQLAlchemy, {driver}: pool.connect().close()", "µs", rows, BARE)
        )
        result.tables.append(
            Table(
                f"SQLAlchemy, {driver}: engine.connect().close()",
                "µs",
                interleaved(whole, effort, BARE),
                BARE,
            )
        )
    for found, title in ((rows, "pool"), (result.tables[-1].rows, "engine")):
        ours, bare = best_of(found, OURS), best_of(found, BARE)
        result.targets.append(
            Target(
                f"{driver}, {title}: at most 1.15 of the bare QueuePool without any check",
                ours / bare,
                1.15,
            )
        )
        ours, pinging = best_of(found, DEFAULTS), best_of(found, "pre_ping")
        result.targets.append(
            Target(f"{driver}, {title}: at most 1/4 of pre_ping on loopback", ours / pinging, 1 / 4)
        )
    _round_trips(result, server, driver)


def _round_trips(result: Result, server: Server, driver: str) -> None:
    plain = sa.create_engine(server.url(driver))
    with plain.begin() as conn:
        conn.execute(sa.text("DROP TABLE IF EXISTS stock"))
        conn.execute(sa.text("CREATE TABLE stock (n INT)"))
    plain.dispose()
    ways = {name: WAYS[name] for name in (USUAL, DEFAULTS, "pre_ping")} | {
        "NullPool": {"poolclass": sa.NullPool}
    }
    for title, request in (("one SELECT", _read), ("one UPDATE and COMMIT", _write)):
        rows = [
            Row(name, _counted(server, driver, kwargs, request)) for name, kwargs in ways.items()
        ]
        result.tables.append(
            Table(
                f"SQLAlchemy, {driver}: round trips of a request with {title}", "round trips", rows
            )
        )
        limit = best_of(rows, USUAL)
        result.targets.append(
            Target(
                f"{driver}, {title}: no more than SQLAlchemy",
                best_of(rows, DEFAULTS),
                limit,
                "round trips",
            )
        )


def _counted(
    server: Server, driver: str, kwargs: dict[str, Any], request: Callable[[sa.Engine], None]
) -> float:
    with FaultProxy((server.host, server.port)) as proxy:
        engine = sa.create_engine(proxy.url(server.url(driver)), **kwargs)
        for _ in range(REQUESTS):
            request(engine)
        before = proxy.round_trips
        for _ in range(REQUESTS):
            request(engine)
        trips = (proxy.round_trips - before) / REQUESTS
        engine.dispose()
        return trips


def _read(engine: sa.Engine) -> None:
    with engine.connect() as conn:
        conn.execute(sa.text("SELECT n FROM stock")).all()


def _write(engine: sa.Engine) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text("UPDATE stock SET n = 1"))
