"""Decides whether there is a server for a call. While none can serve, callers wait for a while, and
then fail immediately instead of queueing up.

Its knowledge comes from PyMongo's own discovery, through its public API: the topology description
and the heartbeats. The monitor is the prober; the gate sends nothing. It keeps two of the brain's
outages: no server takes writes (an election, say), and no server answers at all. It keeps one more
for each other choice of servers that no server matches.
"""

from __future__ import annotations

import math
import threading
import time
from random import Random
from typing import Any

from pymongo.read_preferences import Primary
from pymongo.server_selectors import writable_server_selector
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.brain.outage import Outage
from unbroken.brain.toll import Toll
from unbroken.errors import OutageError
from unbroken.integrations.mongo.client_options import Waits
from unbroken.integrations.mongo.errors import outage_error, own_time_is_up
from unbroken.integrations.mongo.faults import fault_of
from unbroken.logs import Part
from unbroken.messages.server import OUTAGE, OUTAGE_ENDED

log = Part("outage")

#: The interval, in seconds, at which a waiting caller checks the known state again, even without
#: news.
LOOK = 0.5
#: The maximum number of distinct kinds of choices.
CHOICES = 100


class Gate:
    """One client's gate in one process.

    ``lock`` guards the outages; code that holds it only reads and records.
    """

    def __init__(self, name: str, waits: Waits, fresh: float) -> None:
        self.name = name  #: the servers' addresses, for messages
        self.waits = waits
        self.fresh = fresh  #: the maximum interval, in seconds, between failing heartbeats
        self.missed: dict[Any, float] = {}  #: when a heartbeat to each server last failed
        self.troubled = -math.inf  #: when a heartbeat last failed, or another primary was found
        self.primary: Any = None  #: the last primary, by its address and election
        self.lock = threading.Lock()
        self.writes = Outage()
        self.reads = Outage()
        self.choices: dict[str, Outage] = {}  #: of the other criteria by which callers choose
        self.good: TopologyDescription | None = (
            None  #: the last description that was found to lack nothing
        )
        self.turned_away = 0
        self._toll, self._turned_away = Toll(), 0  # of the outage of writes; callers before it
        self.outages = 0
        self.outage_seconds = 0.0
        self.cause: Cause | None = (
            #: of the last fault: the reason why the connections of a pool that PyMongo cleared
            #: ended
            None
        )
        self._random = Random()

    def look(self, description: TopologyDescription) -> None:
        """Record which servers can serve by *description*."""
        now = time.monotonic()
        writes, reads = _serves(description)
        primary = _primary(description)
        if primary is not None and primary != self.primary:
            if self.primary is not None:
                self.troubled = now
            self.primary = primary
        lacking = None if writes and reads else _lacking(description)
        with self.lock:
            self._note(self.reads, reads, now, lacking)
            ended = self._note(self.writes, writes, now, lacking)
        self.good = description if writes and reads else None
        if ended is not None:
            log.warning(
                "outage ended",
                OUTAGE_ENDED(
                    f"{self.name}: a server takes writes again after {ended:.2f} s"
                    f" ({self.turned_away - self._turned_away:,} callers turned away)"
                ),
                about=self.name,
                server=self.name,
                seconds=ended,
                callers=self.turned_away - self._turned_away,
            )
        elif self.writes.active:
            self._remind(now)

    def _remind(self, now: float) -> None:
        """Once a minute, log that the outage goes on."""
        with self.lock:
            if not self.writes.active or not self._toll.is_due(now):
                return
            age, callers = self.writes.age(now), self.turned_away - self._turned_away
        log.warning(
            "outage goes on",
            OUTAGE(
                f"{self.name}: no server has taken writes for {age:.1f} s"
                f" ({callers:,} callers turned away)"
            ),
            about=self.name,
            server=self.name,
            age=age,
            callers=callers,
        )

    def _note(
        self,
        outage: Outage,
        serves: bool,
        now: float,
        lacking: Fault | None,
        began: float | None = None,
    ) -> float | None:
        """Record the state. The caller holds the lock. Returns how long the outage of writes that
        has just ended lasted.

        *began*: since when no server served, if that is known better than by *now*.
        """
        if serves:
            ended = outage.succeeded(now) if outage.active else None
            if ended is None or outage is not self.writes:
                return None
            self.outage_seconds += ended
            return ended
        if lacking is not None:
            self.cause = lacking.cause
            began = now if began is None else max(began, outage.last_success)
            if outage.failed(self, began, now, lacking, self._random) and outage is self.writes:
                self.outages += 1
                does = "answers" if self.reads.active else "takes writes"
                self._toll.begin(now)
                self._turned_away = self.turned_away
                log.warning(
                    "outage began",
                    OUTAGE(f"{self.name}: no server {does}: {lacking.text}"),
                    about=self.name,
                    server=self.name,
                    cause=lacking.kind.value,
                )
        return None

    # -- one caller's wait

    def pause(
        self,
        description: TopologyDescription,
        selector: Any,
        address: Any,
        came: float,
        least: float = 0.0,
    ) -> float:
        """Return how many seconds a caller that *came* at that time should wait for news; 0: its
        own time is up.

        Raises OutageError if no server has matched its choice for longer than callers wait. In any
        case the caller may wait for *least* seconds.
        """
        self.look(description)
        now = time.monotonic()
        ends = self.waits.until(came)
        with self.lock:
            outage = self._outage_for(description, selector, address, now)
            if outage is None:
                ends = min(ends, came + max(self.waits.outage, self.fresh))
                return max(0.0, min(LOOK, ends - now))
            outage.call(now)
            since = came if outage.since is None else outage.since
            over = since + self.waits.outage + self._election(outage, description)
            over = max(over, came + least)
            if not self._is_fresh(description, now):
                over = max(over, came + self.fresh)  # it waits for the check that it asks for
            if now < min(ends, over):
                return max(0.001, min(LOOK, ends - now, over - now))
            if now < over:
                return 0.0
            self.turned_away += 1
        raise self.error(outage, now)

    def _outage_for(
        self, description: TopologyDescription, selector: Any, address: Any, now: float
    ) -> Outage | None:
        if self.reads.active:
            return self.reads
        is_write = selector is writable_server_selector or isinstance(selector, Primary)
        if self.writes.active and is_write:
            return self.writes
        if self.good is not description and not description.known_servers:
            return None  # no server has been asked yet
        name = _choice(selector, address)
        if len(self.choices) >= CHOICES:
            self.choices.clear()
        outage = self.choices.get(name)
        if outage is None or now - outage.last_failure > self.fresh:
            outage = self.choices[name] = Outage()
        fault = Fault(FaultKind.WRONG_SERVER, None, None, f"no server matches {name}")
        outage.failed(self, now, now, fault, self._random)
        return outage

    def found(self, selector: Any, address: Any) -> None:
        """Note that a call that had to wait has found a server."""
        with self.lock:
            self.choices.pop(_choice(selector, address), None)

    def _election(self, outage: Outage, description: TopologyDescription) -> float:
        """Return how much longer callers wait because an election is under way: most members are
        reachable, and none is primary.
        """
        electing = outage is self.writes and _is_electing(description)
        return self.waits.election if electing else 0.0

    def _is_fresh(self, description: TopologyDescription, now: float) -> bool:
        """Return whether each server has been checked a moment ago. That is false if the process
        stood still.
        """
        looks = [
            one.last_update_time if one.is_server_type_known else self.missed.get(at, -math.inf)
            for at, one in description.server_descriptions().items()
        ]
        return all(now - look <= self.fresh for look in looks)

    def is_troubled(self, description: TopologyDescription) -> bool:
        """Return whether a heartbeat has failed a moment ago, or a set elects, or has just done
        so.
        """
        self.look(description)
        return time.monotonic() - self.troubled <= self.fresh or _is_electing(description)

    def own_time_is_up(
        self, error: Any, description: TopologyDescription, selector: Any, address: Any, came: float
    ) -> Any:
        """Return the error for a caller whose own time ended with *error*: an OutageError, if there
        is an outage.
        """
        now = time.monotonic()
        with self.lock:
            outage = self._outage_for(description, selector, address, now)
        if outage is not self.reads and outage is not self.writes:
            return own_time_is_up(error, now - came)
        told: Any = self.error(outage, now)
        for label in error._error_labels:
            told._add_error_label(label)
        return told

    def error(self, outage: Outage, now: float) -> OutageError:
        """Return the error for a caller that is turned away now."""
        what = (
            "has answered"
            if outage is self.reads
            else "has taken writes"
            if outage is self.writes
            else "has matched this call"
        )
        because = f": {outage.fault.text}" if outage.fault else ""
        waits = f"calls wait until an outage has lasted {self.waits.outage:g} s (outage_wait)"
        if outage is self.writes and self.waits.election:
            waits += f", and {self.waits.election:g} s longer during an election (election_wait)"
        return outage_error(
            OUTAGE(
                f"no MongoDB server at {self.name} {what} for {outage.age(now):.1f} s{because};"
                f" {waits}"
            ),
            retry_after=1.0,
        )

    # -- the monitors' results

    def heartbeat_failed(
        self, description: TopologyDescription, address: Any, error: BaseException, took: float
    ) -> None:
        """Record that a heartbeat to *address* has failed after *took* seconds. *description* does
        not include it yet.

        One that took longer than its limit proves nothing: the process stood still, not the server.
        """
        if took > self.fresh:
            return
        others = [one for at, one in description.server_descriptions().items() if at != address]
        self.missed[address] = self.troubled = now = time.monotonic()
        fault = fault_of(error)
        # a frozen server has been silent since; any other has waited for news, as requested
        began = now - took if fault.cause is Cause.SILENT_DROP else now
        with self.lock:
            if not any(one.is_server_type_known for one in others):
                self._note(self.reads, False, now, fault, began)
                self._note(self.writes, False, now, fault, began)
                self.good = None


def _is_electing(description: TopologyDescription) -> bool:
    members = list(description.server_descriptions().values())
    there = sum(one.is_server_type_known for one in members)
    return description.topology_type == TOPOLOGY_TYPE.ReplicaSetNoPrimary and 2 * there > len(
        members
    )


def _primary(description: TopologyDescription) -> Any:
    """Return the elected primary and its election; None: there is none, or it is no set."""
    for one in description.known_servers:
        if one.is_writable and one.election_id is not None:
            return one.address, one.election_id
    return None


def _choice(selector: Any, address: Any) -> str:
    """Describe the criterion by which a caller chooses, in words."""
    if address:
        return "{}:{}".format(*tuple(address)[:2])
    return repr(selector) if hasattr(selector, "mode") else getattr(selector, "__name__", "this")


def _serves(description: TopologyDescription) -> tuple[bool, bool]:
    """Return whether some server takes writes, and whether some server answers reads."""
    known = description.known_servers
    if description.topology_type in (TOPOLOGY_TYPE.Single, TOPOLOGY_TYPE.LoadBalanced):
        return bool(known), bool(known)  # PyMongo asks any server, and lets it refuse
    return any(one.is_writable for one in known), any(one.is_readable for one in known)


def _lacking(description: TopologyDescription) -> Fault | None:
    """Return why no server serves; None while no server has been asked yet."""
    servers = list(description.server_descriptions().values())
    errors = [one.error for one in servers if one.error is not None]
    if errors:
        return fault_of(errors[0])
    return fault_of(None) if any(one.is_server_type_known for one in servers) else None
