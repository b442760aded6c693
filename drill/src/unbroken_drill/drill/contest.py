"""The participants of a drill: contenders, one of them in one scenario, and the ground on which it
plays.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from unbroken_drill import FaultProxy
from unbroken_drill.drill.results import Contestant, Result
from unbroken_drill.drill.scenarios import Scenario
from unbroken_drill.drill.stage import Actor
from unbroken_drill.drill.topologies import Site
from unbroken_drill.drill.where import Where
from unbroken_drill.servers import Server

HOST: Final = "127.0.0.1"
_STANDARD_PORTS: Final = {
    "postgresql": 5432,
    "postgres": 5432,
    "mysql": 3306,
    "mariadb": 3306,
    "mongodb": 27017,
}
_PROTOCOLS: Final = {"mariadb": "mysql", "mysql": "mysql", "postgresql": "postgresql"}


@dataclass(slots=True)
class Ground:
    """A lane's servers for its contenders on one kind of server; *exits* ends the things that are
    opened meanwhile.

    *server* is private, or a whole site of them. None: there is a server already, at *url*.
    """

    backend: str
    server: Server | Site | None
    url: str
    folder: Path  #: for the output of apps
    exits: contextlib.ExitStack
    prepared: set[str] = field(
        default_factory=set
    )  #: the contenders that have set it up for themselves
    _proxy: FaultProxy | None = None

    @property
    def proxy(self) -> FaultProxy:
        """The fault proxy before the server. It is started on first access."""
        if self._proxy is None:
            parts = urlsplit(self.url)
            upstream = (parts.hostname or "", parts.port or _STANDARD_PORTS.get(self.backend, 0))
            made = FaultProxy(upstream, listen=(HOST, 0), protocol=_PROTOCOLS.get(self.backend))
            self._proxy = self.exits.enter_context(made)
        return self._proxy

    @property
    def has_one_address(self) -> bool:
        """Whether a proxy can be put before it: not if clients learn each server's address."""
        return "," not in urlsplit(self.url).netloc

    def where(self, driver: str | None, *, proxied: bool) -> Where:
        """Return the address of the database for a contender that uses *driver*: the server, or
        the proxy.
        """
        url = self.url if self.server is None else self.server.url(driver)
        secret = str(self.server.secret) if isinstance(self.server, Site) else ""
        return Where.of(self.proxy.url(url) if proxied else url, self.backend, secret)


class Contender(Contestant, Protocol):
    """A small app of the drill's own, or the user's app."""

    @property
    def db(self) -> str | None:
        """The URL of an existing server; None: the contender gets a private one."""

    @property
    def is_proxied(self) -> bool:
        """Whether it reaches its database through the proxy even if no step needs that."""

    def result(self, scenario: str) -> Result:
        """Return an empty row."""

    def enter(self, ground: Ground, scenario: Scenario, seed: int) -> AbstractContextManager[Actor]:
        """Create it for one scenario, not yet at work. *seed* decides the times of its requests."""


@dataclass(slots=True)
class Job:
    """One contender in one scenario, for the n-th time."""

    contender: Contender
    scenario: Scenario
    round: int = 0
    detail: str = ""  #: the current step

    def tell(self, detail: str) -> None:
        """Note the current step."""
        self.detail = detail

    @property
    def cell(self) -> tuple[str, str, str]:
        """The place of its result: server, scenario, contender."""
        return self.contender.backend, self.scenario.name, self.contender.key
