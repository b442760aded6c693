"""The part of a client that one process (and, for asyncio, one event loop) has beside PyMongo's own
part: its owner, its sockets, its gate.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

from pymongo import monitoring
from pymongo.server_description import ServerDescription
from pymongo.topology_description import TopologyDescription

from unbroken.abc import Cause
from unbroken.integrations.mongo import prefork
from unbroken.integrations.mongo.client_options import Limits, Waits
from unbroken.integrations.mongo.gate import Gate
from unbroken.integrations.mongo.overload import Overload
from unbroken.integrations.mongo.sockets import Sockets
from unbroken.net.fork_guard import ForkMark, fork_mark

#: Linux's largest process id is 4194304.
_PID_BITS = 22


class Heartbeats(monitoring.ServerHeartbeatListener):
    """Reports the monitors' results to the gate. (A Server- or TopologyListener would make PyMongo
    start a thread.)
    """

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.body: Callable[[], Any] = (
            _nobody  #: a weak reference to the client whose monitors these are
        )
        self.successes = 0
        self.failures = 0
        self.last_success: float | None = None

    def started(self, event: monitoring.ServerHeartbeatStartedEvent) -> None:
        """Do nothing: there is nothing to note."""

    def succeeded(self, event: monitoring.ServerHeartbeatSucceededEvent) -> None:  # noqa: ARG002 - PyMongo's signature
        """Note that a server has answered. The description shows it in a moment; until then the
        state before is noted.
        """
        self.successes += 1
        self.last_success = time.monotonic()
        body = self.body()
        if body is not None:
            self.gate.look(body.topology_description)

    def failed(self, event: monitoring.ServerHeartbeatFailedEvent) -> None:
        """Note that a server has not answered. (Or its monitor was told to stop asking, which
        proves nothing about the server.)
        """
        self.failures += 1
        body = self.body()
        if body is not None and type(event.reply).__name__ != "_OperationCancelled":
            self.gate.heartbeat_failed(
                body.topology_description, event.connection_id, event.reply, event.duration
            )


def _nobody() -> None:
    return None


class PerProcess:
    """Created with each body, which refers to it; it refers to the body weakly."""

    def __init__(self, name: str, waits: Waits, fresh: float, limits: Limits) -> None:
        self.quiet = prefork.is_master()
        self.here: ForkMark = prefork.WhileMaster() if self.quiet else fork_mark()
        self.pid = os.getpid()
        self.gate = Gate(name, waits, fresh)
        self.overload = Overload(self.gate, limits)
        self.sockets = Sockets(self.gate)
        self.heartbeats = Heartbeats(self.gate)
        #: The number of this process's and loop's pool of server sessions in PyMongo: no other
        #: process or loop has this number.
        self.generation = (time.time_ns() << _PID_BITS) + self.pid

    def receives(self, body: Any) -> None:
        """Note that *body* lives here from now on."""
        self.heartbeats.body = weakref.ref(body)

    def leaves(self) -> None:
        """Note that the body is about to be closed, so that its monitors' later results are our own
        doing.
        """
        self.heartbeats.body = _nobody
        self.gate.cause = Cause.POOL_CLOSED

    def settle_sessions(self, topology: Any) -> None:
        """Keep sessions that another process or loop began out of *topology*'s pool of them."""
        topology._session_pool.generation = self.generation


def origin_of(generation: int) -> int:
    """Return the process whose pool of server sessions has that number."""
    return generation & ((1 << _PID_BITS) - 1)


def is_inherited(session: Any) -> bool:
    """Return whether *session* (of PyMongo's) was begun by a parent of this process."""
    generation = getattr(getattr(session, "_server_session", None), "generation", None)
    return generation is not None and origin_of(generation) != os.getpid()


class Current:
    """The state that a client checks at each operation: whether this is still the process, and its
    parts here.

    One object, so that its parts always match.
    """

    __slots__ = (
        "body",
        "gate",
        "generation",
        "here",
        "loop",
        "opened",
        "quiet",
        "topology",
        "uses",
    )

    def __init__(
        self, body: Any, per_process: PerProcess | None, topology: Any, loop: Any = None
    ) -> None:
        self.body = body
        self.here: Any = per_process.here if per_process else b"\0"
        self.gate: Any = per_process.gate if per_process else None
        self.generation = per_process.generation if per_process else 0
        self.topology = topology
        self.opened = False
        self.quiet = per_process.quiet if per_process else False
        self.loop = loop
        self.uses = 0


class UnopenedTopology:
    """Stands in for the topology of a client that was not used in this process: it knows no server
    yet.
    """

    def __init__(self, settings: Any, settle: Callable[[], Current]) -> None:
        self._settings = settings
        self._settle = settle
        self._topology_id = settings._topology_id

    @cached_property
    def description(self) -> TopologyDescription:
        """Return the configured servers, with nothing discovered."""
        settings = self._settings
        servers = {address: ServerDescription(address) for address in settings.seeds}
        return TopologyDescription(
            settings.get_topology_type(), servers, settings.replica_set_name, None, None, settings
        )

    @property
    def _description(self) -> TopologyDescription:
        return self.description

    @_description.setter
    def _description(self, description: TopologyDescription) -> None:
        self._settle().topology._description = description

    def return_server_session(self, *_: Any) -> None:
        """Drop the session: it came from another process."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._settle().topology, name)
