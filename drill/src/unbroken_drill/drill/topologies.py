"""Several servers, and the balancer or pooler before them, as one ground for contenders."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from unbroken.errors import ConfigurationError
from unbroken_drill.drill.steps import nearest
from unbroken_drill.messages import DRILL_NEEDS, UNKNOWN_NAME
from unbroken_drill.servers import (
    Cluster,
    Galera,
    HAProxy,
    MariaDB,
    MariaDBCluster,
    MongoReplicaSet,
    PgBouncer,
    PostgreSQL,
    PostgreSQLCluster,
    Server,
    Session,
    available,
)

#: The number of sessions that MariaDB allows by default.
_OPTIONS: Final = {"max_connections": 150}


@dataclass(frozen=True, slots=True)
class Topology:
    """A kind of site: *cluster* makes its servers, *front* the balancer or pooler before them.

    *verbs* are the steps that it can play beside the traffic's. *needs* are the kinds of servers
    that must be available here.
    """

    name: str
    title: str
    backend: str
    needs: tuple[str, ...]
    verbs: frozenset[str]
    cluster: Callable[[], Cluster[Any] | PostgreSQL]
    front: Callable[[Any], Server] | None = None

    @property
    def obstacle(self) -> str | None:
        """Return why it cannot be started here; None if it can."""
        return next(filter(None, (available(kind) for kind in self.needs)), None)

    def site(self) -> Site:
        """Return a site of this kind, not started yet."""
        return Site(self)


_ROLES: Final = frozenset({"promote", "switchover", "rolling", "repair"})
_REFUSALS: Final = frozenset({"reject", "accept"})
_POOLER: Final = frozenset({"restart_pooler"})
_COMMON: Final = frozenset({"kill", "rotate"})

TOPOLOGIES: Final = {
    each.name: each
    for each in (
        Topology(
            "standby",
            "primary and synchronous standby behind HAProxy",
            "postgresql",
            ("postgresql", "haproxy"),
            _ROLES | _REFUSALS | _POOLER | _COMMON | {"demote"},
            lambda: PostgreSQLCluster(synchronous=True, options=_OPTIONS),
            HAProxy,
        ),
        Topology(
            "replica",
            "primary and semi-synchronous replica behind HAProxy",
            "mariadb",
            ("mariadb", "haproxy"),
            _ROLES | _REFUSALS | _POOLER | _COMMON | {"demote"},
            lambda: MariaDBCluster(synchronous=True),
            HAProxy,
        ),
        Topology(
            "galera",
            "Galera of three nodes behind HAProxy",
            "mariadb",
            ("galera", "haproxy"),
            _ROLES | _REFUSALS | _POOLER | _COMMON,
            Galera,
            HAProxy,
        ),
        Topology(
            "pgbouncer",
            "behind PgBouncer, a session for each client",
            "postgresql",
            ("postgresql", "pgbouncer"),
            _POOLER | frozenset({"kill", "rolling"}),
            lambda: PostgreSQL(_OPTIONS),
            lambda server: PgBouncer(server, "session"),
        ),
        Topology(
            "pgbouncer-transaction",
            "behind PgBouncer, a session for each transaction",
            "postgresql",
            ("postgresql", "pgbouncer"),
            _POOLER | frozenset({"kill", "rolling"}),
            lambda: PostgreSQL(_OPTIONS),
            lambda server: PgBouncer(server, "transaction"),
        ),
        Topology(
            "replicaset",
            "replica set of three",
            "mongodb",
            ("mongodb",),
            _ROLES,
            MongoReplicaSet,
        ),
    )
}


def find(name: str) -> Topology:
    """Return the topology *name*. Raises ConfigurationError if it is unknown or not available."""
    found = TOPOLOGIES.get(name)
    if found is None:
        raise ConfigurationError(
            UNKNOWN_NAME(
                f"unknown topology {name!r}{nearest(name, TOPOLOGIES)}; known:"
                f" {', '.join(TOPOLOGIES)}"
            )
        )
    if found.obstacle is not None:
        raise ConfigurationError(DRILL_NEEDS(found.obstacle))
    return found


class Site:
    """The servers of a topology at work. For contenders they are one server whose role changes.

    It has the drill's interface of a single :class:`~unbroken_drill.servers.Server`, and the verbs
    of :attr:`Topology.verbs`.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology, self.backend = topology, topology.backend
        made = topology.cluster()
        self.cluster = made if isinstance(made, Cluster) else None
        self.servers: list[Any] = made.servers if isinstance(made, Cluster) else [made]
        self._made = made
        self._front: Server | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="unbroken-drill-"))
        self.secret = self._folder / "password"  #: the file that the application reads

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        if self._front is not None:
            self._front.close()
        self._made.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> Self:
        """Start stopped servers, and make every server follow the one that takes writes."""
        if self.cluster is None or self.servers[0].folder is None:
            self._made.start()
        else:
            self.repair()
        if self._front is None and self.topology.front is not None:
            self._front = self.topology.front(self._made)
        if self._front is not None:
            self._front.start()
            if isinstance(self._front, HAProxy):
                self._front.wait_serving()
        self.publish()
        return self

    # ---- as a server

    @property
    def user(self) -> str:
        """The application's user."""
        return str(self.servers[0].user)

    @property
    def is_running(self) -> bool:
        """Always true, for callers that would thaw it."""
        return True

    def thaw(self) -> None:
        """Let every server continue."""
        for server in self.servers:
            if server.is_running:
                server.thaw()

    @property
    def host(self) -> str:
        """The host of the address where contenders connect."""
        return str((self._front or self.writer).host)

    @property
    def port(self) -> int:
        """The port of that address."""
        return int((self._front or self.writer).port)

    def url(self, driver: str | None = None, **query: Any) -> str:
        """Return the URL where contenders connect."""
        return str((self._front or self._made).url(driver, **query))

    def admin(self, sql: str, *, timeout: float = 30.0) -> list[tuple[str, ...]]:
        """Run *sql* as the administrator of the server that takes writes."""
        rows: list[tuple[str, ...]] = self.writer.admin(sql, timeout=timeout)
        return rows

    @property
    def writer(self) -> Any:
        """The server that takes writes."""
        return self.cluster.wait_writer() if self.cluster else self.servers[0]

    def sessions(self) -> list[Session]:
        """Return the contender's connections on all servers."""
        if self._front is not None:
            return self._front.sessions()
        running = [server for server in self.servers if server.is_running]
        return [session for server in running for session in server.sessions()]

    def kill_sessions(self) -> int:
        """End them on every server."""
        running = [server for server in self.servers if server.is_running]
        return sum(int(server.kill_sessions()) for server in running)

    def _kill_session(self, number: int) -> bool:
        return bool((self._front or self.writer)._kill_session(number))

    # ---- what can happen to it

    @property
    def _roles(self) -> Cluster[Any]:
        assert self.cluster is not None, "a scenario that needs a cluster"
        return self.cluster

    def promote(self) -> None:
        """Kill the server that takes writes; another takes its place."""
        self._roles.promote()

    def switchover(self) -> None:
        """Make another server take writes, in order."""
        self._roles.switchover()

    def demote(self) -> Server:
        """Make the server that takes writes read-only. Returns the one to :meth:`elect` next."""
        assert isinstance(self.cluster, PostgreSQLCluster | MariaDBCluster), "has a next one"
        return self.cluster.demote()

    def elect(self, server: Server) -> None:
        """Make *server* take writes from now on."""
        assert isinstance(server, PostgreSQL | MariaDB), "a server of demote()"
        server.promote()

    def repair(self) -> None:
        """Start the stopped servers, and make them follow."""
        if self.cluster is not None:
            self.cluster.repair()

    def reject(self) -> None:
        """Make the server that takes writes answer and refuse."""
        self._roles.reject()

    def accept(self) -> None:
        """Let it take writes again."""
        self._roles.accept()

    def rolling(self) -> None:
        """Restart every server, one after the other, in order; the one that takes writes last."""
        if self.cluster is None:
            self.servers[0].restart()
            return
        for server in self.cluster.others:
            server.restart()
            self.cluster.repair()
        last = self.cluster.writer
        self.cluster.switchover()
        if not isinstance(self.cluster, Galera):  # there a switchover is a restart
            last.restart()
        self.cluster.repair()

    def rotate(self) -> None:
        """Change the server's password and end all sessions; see :meth:`publish`."""
        new = secrets.token_urlsafe(12)
        self.writer.change_password(new)
        for server in self.servers:
            server.password = new
        self.kill_sessions()

    def publish(self) -> None:
        """Write the server's password into the application's secret."""
        draft = self.secret.with_suffix(".new")
        draft.write_text(self.servers[0].password)
        draft.replace(self.secret)

    def restart_pooler(self, seconds: float) -> None:
        """Stop the balancer or pooler before the servers, and start it *seconds* later."""
        assert self._front is not None, "a topology with a front"
        self._front.restart(down=seconds)
