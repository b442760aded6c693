"""Round trips of a request, counted on the wire by a proxy between the pool and the server.

The proxy delays each way, as a network does: an answer that nobody waits for is then still on its
way when the next request begins, as it would be in production.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

from contenders import MYSQL, POSTGRESQL, Contenders
from latency import make_table
from measure import Effort, Result, Row, Table, Target, best_of
from requesting import READ, WRITE, Apart

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MariaDB, PostgreSQL, Server, available

DELAY = 0.006  #: seconds each way
FEW, MANY = 2, 8  #: requests; their difference is what counts
TITLES = {READ: "one SELECT", WRITE: "one UPDATE and COMMIT"}
#: The most that a request may cost: one SELECT, one UPDATE and COMMIT.
_PROMISES = {
    "unbroken, pymysql": (1, 2),
    "unbroken, mysqldb": (1, 2),
    "unbroken, mysqlconnector": (1, 2),
    "unbroken, aiomysql": (1, 2),
    "unbroken, asyncmy": (1, 2),
    "unbroken's plugin, pymysql": (1, 2),
    "unbroken's plugin, aiomysql": (1, 2),
    "unbroken.django, atomic": (1, 3),
    "unbroken.peewee, atomic": (1, 3),
    "unbroken, psycopg": (1, 2),
    "unbroken, psycopg, async": (1, 2),
    "unbroken, asyncpg": (1, 2),
    "unbroken, pg8000": (1, 2),
    "unbroken's plugin, asyncpg": (1, 2),
    "unbroken's plugin, psycopg": (1, 2),
    "unbroken's plugin, psycopg, async": (1, 2),
    # MySQL: what begins a transaction is waited for before a write
    "unbroken.django": (1, 3),
    "unbroken.peewee": (1, 3),
}


def run(_effort: Effort) -> Result:
    """The whole request: take a connection, one statement, end the transaction, give the connection
    back.
    """
    result = Result()
    for kind, contenders in ((PostgreSQL, POSTGRESQL), (MariaDB, MYSQL)):
        if available(kind.__name__.lower()) is not None:
            continue
        with kind() as server:
            make_table(server)
            counted = _counted(server, contenders)
        for number, (sql, title) in enumerate(TITLES.items()):
            rows = sorted(
                (Row(name, trips[sql]) for name, trips in counted.items()),
                key=lambda row: (row.best, not row.is_ours),
            )
            table = Table(
                f"Round trips of a request with {title}: {kind.__name__}", "round trips", rows
            )
            result.tables.append(table)
            result.targets += [
                Target(f"{table.title}: {name}", best_of(rows, name), most[number], "round trips")
                for name, most in _PROMISES.items()
                if name in counted
            ]
    return result


def _counted(server: Server, contenders: Contenders) -> dict[str, dict[str, float]]:
    """Of each contender, what a request costs with each statement."""
    found: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        proxy = stack.enter_context(FaultProxy((server.host, server.port)))
        for name, (opener, is_async, _) in contenders.items():
            with Apart(opener, is_async) as process:
                proxy.heal()
                process.open(proxy.url(server.url(None)), 1)
                process.do(20, WRITE)  # psycopg prepares what it has seen five times
                proxy.latency(DELAY)
                process.do(2, READ)
                found[name] = {sql: _trips(proxy, process, sql) for sql in TITLES}
                process.close()
    return found


def _trips(proxy: FaultProxy, process: Apart, sql: str) -> float:
    """The least of two: where this machine pauses, an answer comes before the next request."""

    def once(times: int) -> int:
        before = _at_rest(proxy)
        process.do(times, sql)
        return _at_rest(proxy) - before

    few, many = (min(once(times) for _ in range(2)) for times in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _at_rest(proxy: FaultProxy) -> int:
    """Wait until nothing is on its way."""
    seen = -1
    while (now := proxy.round_trips) != seen:
        seen = now
        time.sleep(4 * DELAY)
    return seen
