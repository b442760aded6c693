"""Is there a server for this call? While none can serve, calls fail at once instead of queueing up.

What is known comes from PyMongo's own discovery, through its public API: the topology description
and the heartbeats. The monitor is the prober; the gate sends nothing. Two of the brain's outages
are kept: nobody takes writes (an election, say), and nobody serves at all.
"""

from __future__ import annotations

import logging
import threading
import time
from random import Random
from typing import Any

from pymongo.read_preferences import Primary
from pymongo.server_selectors import writable_server_selector
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription

from unbroken.abc import Cause, Fault
from unbroken.brain.outage import Outage
from unbroken.errors import OutageError
from unbroken.integrations.mongo.errors import outage_error
from unbroken.integrations.mongo.faults import fault_of

log = logging.getLogger("unbroken")


class Gate:
    """One client's gate in one process.

    ``lock`` guards the outages; nothing is done under it but look and note.
    """

    def __init__(self, name: str, patience: float, fresh: float) -> None:
        self.name = name  #: the servers' addresses, for messages
        self.patience = patience
        self.fresh = fresh  #: heartbeats that fail are at most so many seconds apart
        self.heard = time.monotonic()  #: when a heartbeat last showed which servers serve
        self.lock = threading.Lock()
        self.writes = Outage()
        self.reads = Outage()
        self.good: TopologyDescription | None = (
            None  #: the last description that was found to lack nothing
        )
        self.turned_away = 0
        self.outages = 0
        self.outage_seconds = 0.0
        self.cause: Cause | None = (
            None  #: of the last fault: why the connections of a pool ended that PyMongo cleared
        )
        self._random = Random()

    def look(self, description: TopologyDescription) -> None:
        """Note what *description* says of who serves now."""
        now = time.monotonic()
        writes, reads = _serves(description)
        lacking = None if writes and reads else _lacking(description)
        with self.lock:
            self._note(self.reads, reads, now, lacking)
            ended = self._note(self.writes, writes, now, lacking)
        self.good = description if writes and reads else None
        if ended is not None:
            log.warning("%s: a server takes writes again after %.2f s", self.name, ended)

    def _note(
        self, outage: Outage, serves: bool, now: float, lacking: Fault | None
    ) -> float | None:
        """The caller holds the lock. How long the outage of writes was that has just ended."""
        if serves:
            ended = outage.succeeded(now) if outage.active else None
            if ended is None or outage is not self.writes:
                return None
            self.outage_seconds += ended
            return ended
        if lacking is not None:
            self.cause = lacking.cause
            if outage.failed(self, now, now, lacking, self._random) and outage is self.writes:
                self.outages += 1
                does = "answers" if self.reads.active else "takes writes"
                log.warning("%s: no server %s: %s", self.name, does, lacking.text)
        return None

    def admit(self, description: TopologyDescription, selector: Any, address: Any) -> None:
        """Raise OutageError when no server can serve a call that chooses by *selector*, and has not
        for a while.
        """
        self.look(description)
        outage = self._outage_for(selector)
        if outage is None or description.apply_selector(selector, address):
            return
        now = time.monotonic()
        with self.lock:
            outage.call(now)
            if now - self.heard > self.fresh:
                return  # the process stood still: nobody has looked since
            if not outage.turns_away(now, self.patience):
                return
            self.turned_away += 1
        raise self.error(outage, now)

    def _outage_for(self, selector: Any) -> Outage | None:
        if self.reads.active:
            return self.reads
        if self.writes.active and (
            selector is writable_server_selector or isinstance(selector, Primary)
        ):
            return self.writes
        return None

    def translated(self, error: Any, description: TopologyDescription, selector: Any) -> Any:
        """What a caller is told whose wait for a server ended with *error*: an OutageError, where
        there is an outage.
        """
        self.look(description)
        outage = self._outage_for(selector)
        if outage is None or isinstance(error, OutageError):
            return error
        told: Any = self.error(outage, time.monotonic())
        for label in error._error_labels:
            told._add_error_label(label)
        return told

    def error(self, outage: Outage, now: float) -> OutageError:
        """What a caller is told who is turned away now."""
        what = "MongoDB server answers" if outage is self.reads else "MongoDB server takes writes"
        because = f": {outage.fault.text}" if outage.fault else ""
        return outage_error(
            f"no {what} at {self.name}, for {outage.age(now):.1f} s now{because} (calls fail at"
            f" once after {self.patience:g} s of an outage; outage_wait= says how long they wait)",
            retry_after=1.0,
        )

    def heartbeat_succeeded(self, description: TopologyDescription) -> None:
        """A heartbeat has succeeded; *description* does not know of it yet."""
        self.look(description)
        if not self.reads.active:
            self.heard = time.monotonic()

    def heartbeat_failed(
        self, description: TopologyDescription, address: Any, error: BaseException
    ) -> None:
        """A heartbeat to *address* has failed; *description* does not know of it yet."""
        others = [one for at, one in description.server_descriptions().items() if at != address]
        self.heard = now = time.monotonic()
        fault = fault_of(error)
        with self.lock:
            if not any(one.is_server_type_known for one in others):
                self._note(self.reads, False, now, fault)
                self._note(self.writes, False, now, fault)
                self.good = None


def _serves(description: TopologyDescription) -> tuple[bool, bool]:
    """Whether somebody takes writes, and whether somebody answers reads."""
    known = description.known_servers
    if description.topology_type in (TOPOLOGY_TYPE.Single, TOPOLOGY_TYPE.LoadBalanced):
        return bool(known), bool(known)  # PyMongo asks whoever is there, and lets it say no
    return any(one.is_writable for one in known), any(one.is_readable for one in known)


def _lacking(description: TopologyDescription) -> Fault | None:
    """Why nobody serves; None while no server has been asked yet."""
    servers = list(description.server_descriptions().values())
    errors = [one.error for one in servers if one.error is not None]
    if errors:
        return fault_of(errors[0])
    return fault_of(None) if any(one.is_server_type_known for one in servers) else None
