"""A PostgreSQL primary and its standbys as one cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from unbroken_drill.servers.base import Value
from unbroken_drill.servers.cluster import Followed
from unbroken_drill.servers.postgresql import PostgreSQL

_READ_ONLY = "default_transaction_read_only"


class PostgreSQLCluster(Followed[PostgreSQL]):
    """A PostgreSQL primary with *standbys* that stream from it.

    *options* are settings of all. *synchronous*: a COMMIT is answered after a standby has it too,
    so that a promotion loses nothing. Asynchronous replication (the default) can lose the last
    commits.
    """

    def __init__(
        self,
        standbys: int = 1,
        *,
        synchronous: bool = False,
        options: Mapping[str, Value] | None = None,
    ) -> None:
        self.synchronous = synchronous
        self._count = standbys
        self.servers = [PostgreSQL(options)]

    def start(self) -> Self:
        """Start the primary and its standbys."""
        self.servers[0].start()
        while len(self.servers) <= self._count:
            self.servers.append(self.servers[0].standby(synchronous=self.synchronous))
        return self

    def takes_writes(self, server: PostgreSQL) -> bool:
        """Return whether *server* is a primary."""
        return server.is_primary

    def switchover(self) -> PostgreSQL:
        """Stop the primary in order, promote a standby, and make the old one follow it."""
        old, new = self.writer, self.others[0]
        old.switchover(new, synchronous=self.synchronous)
        self._follow(new)
        return new

    def demote(self) -> PostgreSQL:
        """Restart the primary as a standby before another one takes writes. Returns the next
        primary.

        Promote that one to end this state.
        """
        old, new = self.writer, self.others[0]
        old.demote(new)
        return new

    def _follow(self, writer: PostgreSQL, but: PostgreSQL | None = None) -> None:
        for server in self.servers:
            if server not in (writer, but) and not (
                server.upstream is writer and server.is_running
            ):
                server.demote(writer, synchronous=self.synchronous)

    def _follows(self, server: PostgreSQL) -> bool:
        return server.upstream is not None

    def _lead(self, server: PostgreSQL) -> None:
        server.promote()

    def _refuse(self, server: PostgreSQL, on: bool) -> None:
        """Answer every write with error 25006, or end that."""
        if on:
            server.set(**{_READ_ONLY: True})
        else:
            server.options.pop(_READ_ONLY, None)
            server._apply({})
