"""PyMongo's own client, as it lives in one process (and, for asyncio, on one event loop)."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import pymongo
from pymongo import monitoring
from pymongo.server_description import ServerDescription
from pymongo.synchronous.pool import Pool
from pymongo.topology_description import TopologyDescription

from unbroken.integrations.mongo.gate import Gate
from unbroken.integrations.mongo.sockets import Sockets, recording
from unbroken.net.severance import ForkMark, fork_mark


class Heartbeats(monitoring.ServerHeartbeatListener):
    """Tells the gate what the monitors see. (A Server- or TopologyListener would make PyMongo start a thread.)"""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.body: Any = lambda: None  #: a weak reference to the client whose monitors these are
        self.succeeded_count = 0
        self.failed_count = 0
        self.last_success: float | None = None

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        """Nothing to note."""

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:  # noqa: ARG002 - PyMongo's signature
        """A server has answered; the description shows it in a moment, and until then what it showed before is noted."""
        self.succeeded_count += 1
        self.last_success = time.monotonic()
        body = self.body()
        if body is not None:
            self.gate.look(body.topology_description)

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        """A server has not answered."""
        self.failed_count += 1
        body = self.body()
        if body is not None:
            self.gate.heartbeat_failed(body.topology_description, event.connection_id, event.reply)


class Shared:
    """What the client of one process consists of beside PyMongo's: whose it is, its sockets, its gate."""

    def __init__(self, outage_wait: float) -> None:
        self.mark: ForkMark = fork_mark()
        self.pid = os.getpid()
        self.sockets = Sockets()
        self.gate = Gate(outage_wait)
        self.heartbeats = Heartbeats(self.gate)


def unique_generation() -> int:
    """A number for a pool of server sessions that no other process's pool has: a session of another's is then not taken in."""
    return (time.time_ns() << 22) + os.getpid()


class Body(pymongo.MongoClient[Any]):
    """PyMongo's client, belonging to one process."""

    def __init__(self, shared: Shared, arguments: dict[str, Any]) -> None:
        self._shared = shared
        arguments = {**arguments, "connect": False}
        arguments["_pool_class"] = recording(arguments.get("_pool_class") or Pool, shared.sockets, awaited=False)
        arguments["event_listeners"] = [*(arguments.get("event_listeners") or ()), shared.heartbeats]
        super().__init__(**arguments)

    def _init_background(self, *args: Any) -> None:
        super()._init_background(*args)
        self._topology._session_pool.generation = unique_generation()

    def _after_fork(self) -> None:
        """PyMongo's fork hook, in the child: what was inherited is cut off, and never used again."""
        self._shared.sockets.sever()

    def __del__(self) -> None:
        if self._shared.mark[0]:
            super().__del__()


Body.__name__ = "MongoClient"  # what its warnings and messages call it


class Unborn:
    """What stands for the topology of a client that nobody has used in this process: it knows no server yet."""

    def __init__(self, settings: Any, settle: Callable[[], Any]) -> None:
        self._settings = settings
        self._settle = settle
        self._topology_id = settings._topology_id

    @property
    def description(self) -> TopologyDescription:
        """What was configured, and nothing found out."""
        settings = self._settings
        servers = {address: ServerDescription(address) for address in settings.seeds}
        return TopologyDescription(settings.get_topology_type(), servers, settings.replica_set_name, None, None, settings)

    def return_server_session(self, *_: Any) -> None:
        """It came from another process: it is not kept."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._settle()._topology, name)


class Sketch(pymongo.MongoClient[Any]):
    """PyMongo's client as far as it can be made without making anything: the options are read and checked, that is all."""

    def _init_background(self, *_: Any) -> None:
        self._topology = Unborn(self._topology_settings, _never)  # type: ignore[assignment] # enough for what __init__ asks
        self._kill_cursors_executor = None  # type: ignore[assignment] # nothing runs
        self._opened = False

    def _after_fork(self) -> None:
        """Nothing was made, so nothing was inherited."""

    def __del__(self) -> None:
        """Nothing was opened, so nothing is left open."""


def _never() -> Any:
    raise NotImplementedError  # a sketch is only read


def warn_of_fork(parent: int, stacklevel: int) -> None:
    """Say once what using a client before a fork means, and what to do."""
    warnings.warn(
        f"this MongoClient was used in process {parent} before process {os.getpid()} was forked from it; it works in both, with "
        "connections of its own in each. Threads that run at a fork are a risk, though: make no call to MongoDB before the fork "
        "(creating the client is fine), or have uWSGI load the app in each worker (lazy-apps = true)",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
