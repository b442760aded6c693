"""A set of three MongoDB servers, each behind a proxy of its own, through which the clients and the
other members reach it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from unbroken_drill import FaultProxy
from unbroken_drill.servers import MongoDB
from unbroken_drill.servers.errors import ServerError

NAME = "three"
#: Elections take half a second, as in the tests of the client.
TIMING = {"electionTimeoutMillis": 500, "heartbeatIntervalMillis": 100}


class MongoSet:
    """Looks like one server to a history, and plays the faults of a set."""

    def __init__(self, options: dict[str, Any], *, tls: bool) -> None:
        self.tls = tls
        self.servers = [MongoDB(options, replica_set=NAME, tls=tls) for _ in range(3)]
        for server in self.servers:
            server.peers = self.servers  # else each makes itself a set
        self.proxies: list[FaultProxy] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for server in self.servers:
                stack.enter_context(server)
                proxy = FaultProxy((server.host, server.port))
                self.proxies.append(stack.enter_context(proxy))
            members = [
                {"_id": number, "host": f"{proxy.host}:{proxy.port}"}
                for number, proxy in enumerate(self.proxies)
            ]
            config = {"_id": NAME, "members": members, "settings": TIMING}
            self.servers[0].command({"replSetInitiate": config})
            self.wait_primary()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Have all members run, and one of them be primary."""
        self.heal()
        for server in self.servers:
            server.thaw() if server.is_running else server.start()
        self.wait_primary()

    def wait_primary(self, but: MongoDB | None = None, timeout: float = 60.0) -> MongoDB:
        """The member that takes writes, once there is one (another than *but*)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for server in self.servers:
                with suppress(ServerError):
                    if server is not but and server.is_running and server.is_primary:
                        return server
            time.sleep(0.02)
        raise ServerError(f"the set has no primary after {timeout} s")

    def url(self) -> str:
        """One URL for them all, through the proxies."""
        where = ",".join(f"{proxy.host}:{proxy.port}" for proxy in self.proxies)
        query = f"replicaSet={NAME}"
        if self.tls:
            query += f"&tls=true&tlsCAFile={self._authorities()}"
        return f"mongodb://{where}/shop?{query}"

    def _authorities(self) -> Path:
        """Those that have signed the members' certificates: one for each."""
        bundle = self.servers[0].ca_file.with_name("all.pem")
        bundle.write_text("".join(server.ca_file.read_text() for server in self.servers))
        return bundle

    # ---- faults, each to its end

    def kill_primary(self, seconds: float) -> None:
        """It is away for so long after another was elected."""
        primary = self.wait_primary()
        primary.kill()
        self.wait_primary(but=primary)
        time.sleep(seconds)
        primary.start()

    def freeze_primary(self, seconds: float) -> None:
        """It stands still until another was elected, and for so long after it."""
        primary = self.wait_primary()
        primary.freeze()
        try:
            # another is elected while this one still believes to be primary
            others = [server for server in self.servers if server is not primary]
            self._wait_any(others)
            time.sleep(seconds)
        finally:
            primary.thaw()
        self.wait_primary()

    def step_down(self, seconds: float) -> None:
        """It gives its place to another."""
        primary = self.wait_primary()
        with suppress(ServerError):
            primary.command({"replSetStepDown": 5, "force": True})
        self.wait_primary(but=primary)
        time.sleep(seconds)

    def partition(self, seconds: float) -> None:
        """Nothing reaches it, neither clients nor members, until another was elected."""
        primary = self.wait_primary()
        proxy = self.proxies[self.servers.index(primary)]
        proxy.blackhole("drop")
        try:
            self._wait_any([server for server in self.servers if server is not primary])
            time.sleep(seconds)
        finally:
            proxy.heal()
            proxy.rst()  # what lost a part of its bytes is of no use any more
        self.wait_primary()

    def _wait_any(self, servers: list[MongoDB], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for server in servers:
                with suppress(ServerError):
                    if server.is_primary:
                        return
            time.sleep(0.02)
        raise ServerError(f"no other member was elected within {timeout} s")

    # ---- as the proxy of a history

    def heal(self) -> None:
        """Let all through again."""
        for proxy in self.proxies:
            proxy.heal()

    def rst(self) -> None:
        """Reset every connection, the members' own too."""
        for proxy in self.proxies:
            proxy.rst()


class Ways:
    """The proxies of a set, which live as long as the set does."""

    def __init__(self, site: MongoSet) -> None:
        self.site = site
        self.heal, self.rst = site.heal, site.rst

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.heal()
