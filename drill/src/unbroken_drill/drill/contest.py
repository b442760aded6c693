"""What takes part in a drill: contenders, one of them in one scenario, and the ground on which it
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
    """What a lane has for its contenders on one kind of server; *exits* ends what is opened
    meanwhile.

    *server* is private, or a whole site of them. None: there is a server already, at *url*.
    """

    backend: str
    server: Server | Site | None
    url: str
    folder: Path  #: for what apps print
    exits: contextlib.ExitStack
    prepared: set[str] = field(
        default_factory=set
    )  #: the contenders that have set it up for themselves
    _proxy: FaultProxy | None = None

    @property
    def proxy(self) -> FaultProxy:
        """A fault proxy before the server. It is started when it is first asked for."""
        if self._proxy is None:
            parts = urlsplit(self.url)
            upstream = (parts.hostname or "", parts.port or _STANDARD_PORTS.get(self.backend, 0))
            made = FaultProxy(upstream, listen=(HOST, 0), protocol=_PROTOCOLS.get(self.backend))
            self._proxy = self.exits.enter_context(made)
        return self._proxy

    @property
    def has_one_address(self) -> bool:
        """Whether a proxy can stand before it: not where clients are told of each server."""
        return "," not in urlsplit(self.url).netloc

    def where(self, driver: str | None, *, proxied: bool) -> Where:
        """Where a contender that uses *driver* finds its database: the server, or the proxy."""
        url = self.url if self.server is None else self.server.url(driver)
        secret = str(self.server.secret) if isinstance(self.server, Site) else ""
        return Where.of(self.proxy.url(url) if proxied else url, self.backend, secret)


class Contender(Contestant, Protocol):
    """A small app of the drill's own, or somebody's app."""

    @property
    def db(self) -> str | None:
        """The URL of a server that is there already; None: it gets a private one."""

    @property
    def is_proxied(self) -> bool:
        """Whether it reaches its database through the proxy even where no step needs that."""

    def result(self, scenario: str) -> Result:
        """An empty row."""

    def enter(self, ground: Ground, scenario: Scenario, seed: int) -> AbstractContextManager[Actor]:
        """Make it, not yet at work, for one scenario; *seed* decides when its requests come."""


@dataclass(slots=True)
class Job:
    """One contender in one scenario, for the n-th time."""

    contender: Contender
    scenario: Scenario
    round: int = 0
    detail: str = ""  #: the step that it is at

    def tell(self, detail: str) -> None:
        """Note the step that it is at."""
        self.detail = detail

    @property
    def cell(self) -> tuple[str, str, str]:
        """Where its result belongs: server, scenario, contender."""
        return self.contender.backend, self.scenario.name, self.contender.key
