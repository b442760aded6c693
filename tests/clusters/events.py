"""What can happen to a cluster, each as a stage: where clients connect, and what befalls them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.moving import Names, build_names

from unbroken_drill.servers import (
    Galera,
    HAProxy,
    MariaDBCluster,
    PostgreSQL,
    PostgreSQLCluster,
    Server,
)

POSTGRESQL = ("psycopg", "psycopg2", "asyncpg")
MYSQL = ("pymysql", "mysqldb", "aiomysql")


@dataclass
class Window:
    """When something was wrong: from *begin* until *end*, when a server takes writes.

    *old* is the server that must not be read any more from one second after it.
    """

    begin: float
    end: float
    old: str = ""


@dataclass
class Stage:
    """A cluster ready for clients. *strike* does it."""

    url: Callable[[str], str]
    strike: Callable[[], Window]
    writer: Callable[[], Server]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """One row of the table."""

    name: str
    title: str
    drivers: tuple[str, ...]
    open: Callable[[], Any]
    #: replication may lose what it had acknowledged: it is counted apart
    may_lose: bool = False


def address(server: Server) -> str:
    """As the clients see it."""
    return f"{server.host}:{server.port}"


def _timed(wrong: Callable[[], Any], right: Callable[[], Any], seconds: float, old: str) -> Window:
    begin = time.monotonic()
    wrong()
    time.sleep(seconds)
    right()
    return Window(begin, time.monotonic(), old)


@contextmanager
def name_moves() -> Iterator[Stage]:
    """The primary becomes a standby; after 2 s the other one is promoted and has the name."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = Names(build_names(folder), folder)
        first = stack.enter_context(PostgreSQL(options={"max_connections": 150}))
        second = first.standby(host="127.0.0.2", port=first.port)
        stack.callback(second.close)
        names.lead("db.test", first.host)

        def promote() -> None:
            second.promote()
            names.lead("db.test", second.host)

        yield Stage(
            lambda driver: first.url(driver).replace(f"@{first.host}:", "@db.test:"),
            lambda: _timed(lambda: first.demote(second), promote, 2.0, address(first)),
            lambda: second if second.upstream is None else first,
            names.environment,
        )


@contextmanager
def postgresql_hosts(strike: str, seconds: float = 0.0) -> Iterator[Stage]:
    """Both hosts in the URL, ``target=primary``."""
    with PostgreSQLCluster(synchronous=True, options={"max_connections": 150}) as cluster:
        yield _by_hosts(cluster, strike, seconds)


@contextmanager
def mariadb_hosts(strike: str, seconds: float = 0.0) -> Iterator[Stage]:
    """Likewise."""
    with MariaDBCluster(synchronous=True) as cluster:
        yield _by_hosts(cluster, strike, seconds)


def _by_hosts(cluster: Any, strike: str, seconds: float) -> Stage:
    url = cluster.url
    old = cluster.writer

    def happen() -> Window:
        begin = time.monotonic()
        if strike == "freeze":
            other = cluster.others[0]
            old.freeze()
            time.sleep(seconds)
            other.promote()
        elif strike == "demote":
            following = cluster.demote()
            time.sleep(seconds)
            following.promote()
        else:
            getattr(cluster, strike)()
        return Window(begin, time.monotonic(), address(old))

    return Stage(lambda driver: url(driver, target="primary"), happen, lambda: cluster.writer)


@contextmanager
def read_only_for_a_while(seconds: float = 2.0) -> Iterator[Stage]:
    """One MariaDB at a fixed address: ``read_only=1``, then ``read_only=0``."""
    with MariaDBCluster(replicas=0) as cluster:
        (server,) = cluster.servers
        yield Stage(
            server.url,
            lambda: _timed(cluster.reject, cluster.accept, seconds, ""),
            lambda: server,
        )


@contextmanager
def galera_refuses(kind: str, seconds: float = 3.0) -> Iterator[Stage]:
    """One Galera node at a fixed address answers 1047."""
    with Galera() as cluster:
        node = cluster.servers[0]
        if kind == "reject":
            wrong, right = node.reject, node.accept
        else:
            wrong, right = node.isolate, node.rejoin
        yield Stage(node.url, lambda: _timed(wrong, right, seconds, ""), lambda: node)


@contextmanager
def behind_haproxy(make: Callable[[], Any], strike: str) -> Iterator[Stage]:
    """HAProxy follows the server that takes writes."""
    with make() as cluster, HAProxy(cluster) as balancer:
        balancer.wait_serving()
        old = cluster.writer

        def happen() -> Window:
            begin = time.monotonic()
            getattr(cluster, strike)()
            balancer.wait_serving(cluster.writer)
            return Window(begin, time.monotonic(), address(old))

        yield Stage(balancer.url, happen, lambda: cluster.writer)


EVENTS = {
    each.name: each
    for each in (
        Event(
            "name-moves",
            "PostgreSQL read-only for 2 s, then the name moves",
            POSTGRESQL,
            name_moves,
        ),
        Event("read-only", "MariaDB read_only=1 for 2 s", MYSQL, read_only_for_a_while),
        Event("galera-reject", "a Galera node rejects queries for 3 s (1047)", MYSQL,
              lambda: galera_refuses("reject")),
        Event("galera-isolated", "a Galera node without majority for 3 s (1047)", MYSQL,
              lambda: galera_refuses("isolate")),
        Event("pg-frozen", "two hosts, the first one frozen, the second promoted 1 s later",
              POSTGRESQL, lambda: postgresql_hosts("freeze", 1.0)),
        Event("pg-killed", "two hosts, the first one killed, the second promoted", POSTGRESQL,
              lambda: postgresql_hosts("promote")),
        Event("pg-demoted", "two hosts, the first one a standby for 2 s, then the second promoted",
              POSTGRESQL, lambda: postgresql_hosts("demote", 2.0)),
        Event("pg-switched", "two hosts, switchover", POSTGRESQL,
              lambda: postgresql_hosts("switchover")),
        Event("maria-frozen", "two hosts, the first one frozen, the second promoted 1 s later",
              MYSQL, lambda: mariadb_hosts("freeze", 1.0)),
        Event("maria-killed", "two hosts, the first one killed, the second promoted", MYSQL,
              lambda: mariadb_hosts("promote")),
        Event("maria-demoted", "two hosts, the first one read-only for 2 s, then the second "
              "promoted", MYSQL, lambda: mariadb_hosts("demote", 2.0)),
        Event("maria-switched", "two hosts, switchover", MYSQL,
              lambda: mariadb_hosts("switchover")),
        Event("pg-haproxy", "behind HAProxy, the primary killed, the standby promoted", POSTGRESQL,
              lambda: behind_haproxy(lambda: PostgreSQLCluster(synchronous=True), "promote")),
        Event("maria-haproxy", "behind HAProxy, switchover", MYSQL,
              lambda: behind_haproxy(lambda: MariaDBCluster(synchronous=True), "switchover")),
        Event("galera-haproxy", "Galera of three behind HAProxy, a node killed", MYSQL,
              lambda: behind_haproxy(Galera, "promote")),
    )
}  # fmt: skip
