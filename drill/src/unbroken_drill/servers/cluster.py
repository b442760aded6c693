"""Several servers of one kind that hold the same data; one of them takes writes."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar
from urllib.parse import quote, urlencode

from unbroken_drill.messages import SERVER_LATE
from unbroken_drill.servers.base import Server
from unbroken_drill.servers.errors import ServerError

S = TypeVar("S", bound=Server)

#: Seconds between two checks of a cluster's condition.
_POLL = 0.01


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
    """Call *condition* until it holds; a server's refusal counts as false.

    Raises ServerError, which contains *what*, if it does not hold within *timeout* seconds.
    """
    deadline = time.monotonic() + timeout
    said = ""
    while True:
        try:
            if condition():
                return
        except ServerError as error:
            said = f" ({error})"
        if time.monotonic() > deadline:
            raise ServerError(SERVER_LATE(f"{what} did not happen within {timeout:g} s{said}"))
        time.sleep(_POLL)


class Cluster(ABC, Generic[S]):
    """Servers that replicate. A context manager that starts and ends them all.

    :attr:`servers` can be stopped, killed and frozen one by one. The verbs of this class change
    their roles. :meth:`repair` makes a cluster whole that lost a server.
    """

    servers: list[S]
    _last_writer: S | None = None
    _rejecting: S | None = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> Self:
        """Start all servers and wait until they replicate. Do nothing if they do already."""

    @abstractmethod
    def takes_writes(self, server: S) -> bool:
        """Return whether *server* takes writes now. Raises ServerError if it does not answer."""

    @abstractmethod
    def switchover(self) -> S:
        """Give the writer's role to another server, in order and without a loss. Returns the new
        writer.

        The old one replicates from it afterwards.
        """

    @abstractmethod
    def promote(self) -> S:
        """After the writer was killed, make another server take writes. Returns the new writer."""

    @abstractmethod
    def repair(self) -> None:
        """Start the stopped servers, and make each of them replicate the writer's data."""

    @abstractmethod
    def _refuse(self, server: S, on: bool) -> None:
        """Make *server* answer and refuse, or serve again."""

    def reject(self) -> None:
        """From now on the writer answers, and refuses to write (or refuses everything)."""
        self._rejecting = self.writer
        self._refuse(self._rejecting, True)

    def accept(self) -> None:
        """End :meth:`reject`."""
        rejecting, self._rejecting = self._rejecting, None
        if rejecting is not None and rejecting.is_running:
            self._refuse(rejecting, False)

    @property
    def writer(self) -> S:
        """The server that takes writes, or the one that did last, if it does not answer now."""
        for server in self.servers:
            with contextlib.suppress(ServerError):
                if server.is_running and self.takes_writes(server):
                    self._last_writer = server
        return self._last_writer or self.servers[0]

    @property
    def others(self) -> list[S]:
        """All but the writer."""
        writer = self.writer
        return [server for server in self.servers if server is not writer]

    def wait_writer(self, timeout: float = 30.0) -> S:
        """Return the server that takes writes, once there is one."""
        wait_until(
            lambda: any(s.is_running and self.takes_writes(s) for s in self.servers),
            "a server that takes writes",
            timeout,
        )
        return self.writer

    def admin(self, sql: str, *, timeout: float = 30.0) -> list[tuple[str, ...]]:
        """Run *sql* as the writer's administrator."""
        return self.writer.admin(sql, timeout=timeout)

    def close(self) -> None:
        """End all servers and remove their folders."""
        for server in self.servers:
            server.close()

    def url(self, driver: str | None = None, **query: Any) -> str:
        """Return one URL with all hosts, the writer first: ``url("psycopg", target="primary")``.

        ``postgresql+psycopg://app:…@127.0.0.1:17001,127.0.0.1:17002/shop?target=primary``.
        """
        first = self.writer
        scheme = f"{first.schemes.get(driver, first.scheme)}+{driver}" if driver else first.scheme
        where = ",".join(f"{s.host}:{s.port}" for s in [first, *self.others])
        login = f"{quote(first.user, safe='')}:{quote(first.password, safe='')}"
        tail = f"?{urlencode(query)}" if query else ""
        return f"{scheme}://{login}@{where}/{quote(first.database)}{tail}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {', '.join(map(repr, self.servers))}>"


class Followed(Cluster[S]):
    """A cluster in which one server leads and the others follow it."""

    @abstractmethod
    def _follow(self, writer: S, but: S | None = None) -> None:
        """Make every server except *writer* and *but* follow *writer*."""

    @abstractmethod
    def _follows(self, server: S) -> bool:
        """Return whether *server* is configured to follow another one."""

    @abstractmethod
    def _lead(self, server: S) -> None:
        """Make *server* stop following, and take writes."""

    def promote(self) -> S:
        """Kill the writer and promote another; the old one stays down until :meth:`repair`."""
        old, new = self.writer, self.others[0]
        old.kill()
        self._lead(new)
        self._follow(new, but=old)
        return new

    def repair(self) -> None:
        """Start every server, and make each follow the one that takes writes.

        If none takes writes, the last writer leads again if it followed no other server. Otherwise
        another one leads.
        """
        self.accept()
        self._follow(self._leader())

    def _leader(self) -> S:
        if not any(server.is_running for server in self.servers if not self._follows(server)):
            alone = [server for server in self.servers if not self._follows(server)]
            if alone:
                alone[0].start()
        running = [server for server in self.servers if server.is_running]
        found = next((server for server in running if self.takes_writes(server)), None)
        if found is None:
            found = (running or self.servers)[-1]
            self._lead(found.start())
        return found
