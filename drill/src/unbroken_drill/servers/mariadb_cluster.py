"""A MariaDB primary and its replicas as one cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from unbroken_drill.servers.base import Value
from unbroken_drill.servers.cluster import Followed
from unbroken_drill.servers.mariadb import MariaDB


class MariaDBCluster(Followed[MariaDB]):
    """A MariaDB primary with *replicas* that follow it by GTID.

    *options* are settings of all. *synchronous*: a COMMIT is answered after a replica has it too
    (MariaDB calls it semi-synchronous), so that a promotion loses nothing. Asynchronous replication
    (the default) can lose the last commits.
    """

    def __init__(
        self,
        replicas: int = 1,
        *,
        synchronous: bool = False,
        options: Mapping[str, Value] | None = None,
    ) -> None:
        self.synchronous = synchronous
        self._count = replicas
        self.servers = [MariaDB(options, replicated=True)]

    def start(self) -> Self:
        """Start the primary and its replicas."""
        self.servers[0].start()
        while len(self.servers) <= self._count:
            self.servers.append(self.servers[0].replica(synchronous=self.synchronous))
        return self

    def takes_writes(self, server: MariaDB) -> bool:
        """Return whether *server* is not read-only."""
        return not server.is_read_only

    def switchover(self) -> MariaDB:
        """Make the primary read-only, wait for a replica, promote it, make the old one follow."""
        old, new = self.writer, self.others[0]
        old.switchover(new, synchronous=self.synchronous)
        self._follow(new)
        return new

    def demote(self) -> MariaDB:
        """Make the primary read-only before another one takes writes. Returns the next primary.

        ``promote()`` that one to end this state; :meth:`repair` then makes the old one follow.
        """
        old, new = self.writer, self.others[0]
        old.set_read_only()
        new.wait_caught_up(old)
        return new

    def _follow(self, writer: MariaDB, but: MariaDB | None = None) -> None:
        for server in self.servers:
            if server not in (writer, but) and not (
                server.upstream is writer and server.is_running
            ):
                server.follow(writer, synchronous=self.synchronous)

    def _follows(self, server: MariaDB) -> bool:
        return server.upstream is not None

    def _lead(self, server: MariaDB) -> None:
        if server.upstream is not None:
            server.promote()
        else:
            server.set_read_only(False)

    def _refuse(self, server: MariaDB, on: bool) -> None:
        """Answer every write with error 1290, or end that."""
        server.set_read_only(on)
