"""Counters of one pool, and frozen snapshots of them.

Slow paths count here under the pool's lock. Uses are counted in the entries themselves, each by its
owner. Adding to one shared number from many threads would be neither free nor exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from unbroken.abc import Target, address
from unbroken.brain.entry import Entry
from unbroken.brain.idle_limit import IdleLimit
from unbroken.brain.kernel import Kernel
from unbroken.brain.outage import Outage
from unbroken.brain.share import Shares


class Counters:
    """Events in this process so far."""

    __slots__ = (
        "closed",
        "connect_failures",
        "connect_seconds",
        "healed",
        "leaked",
        "lost_statements",
        "most",
        "not_replayed",
        "opened",
        "outage_seconds",
        "outages",
        "pings",
        "replays",
        "retired_joins",
        "retired_uses",
        "rollbacks",
        "shed",
        "successes_counted",
        "timeouts",
        "turned_away",
        "units",
        "wait_seconds",
        "waits",
    )

    def __init__(self) -> None:
        self.opened = 0
        self.connect_seconds = 0.0
        self.connect_failures = 0
        self.closed: Counter[str] = Counter()
        self.retired_uses = 0
        self.retired_joins = 0
        self.most = 0  # connections at a time
        self.waits = 0
        self.wait_seconds = 0.0
        self.timeouts = 0
        self.turned_away = 0
        self.shed = 0
        self.outages = 0
        self.outage_seconds = 0.0
        self.leaked = 0
        self.pings = 0
        self.rollbacks = 0
        self.replays = 0
        self.healed = 0
        self.not_replayed = 0
        # For the retry budget: units of work that succeeded, uses without a unit that lost their
        # statement, and the number of successes counted so far.
        self.units = 0
        self.lost_statements = 0
        self.successes_counted = 0

    def retire(self, entry: Entry) -> None:
        """*entry* has left the pool: add its counts to these."""
        self.retired_uses += entry.uses
        self.retired_joins += entry.joins


@dataclass(frozen=True, slots=True)
class Stats:
    """The state of a pool at one moment.

    Seconds are floats; counts are since the process first used the pool.
    """

    name: str
    server: str
    pid: int
    max_size: int
    min_size: int
    size: int  #: open or being opened
    idle: int
    used: int
    opening: int
    waiting: int
    acquired: int  #: how many times a connection was acquired
    opened: int
    connect_seconds: float  #: total time spent connecting
    connect_failures: int
    closed: Mapping[str, int] = field(default_factory=dict)  #: by cause
    waits: int = 0  #: acquires that had to wait in the line
    wait_seconds: float = 0.0
    timeouts: int = 0
    turned_away: int = 0  #: callers that failed fast because the server is down
    shed: int = 0  #: callers refused early because the line for a connection is too long
    outages: int = 0
    outage_seconds: float = 0.0
    away_for: float = 0.0  #: how long the server has been down; 0.0: it is up
    away_because: str = ""
    leaked: int = 0  #: reported as held too long or forgotten
    pings: int = 0
    rollbacks: int = 0
    replays: int = 0
    healed: int = 0  #: statements that lost their connection and were run again on another
    not_replayed: int = 0  #: lost work that was not run again because the retry budget was spent
    #: How often lost work may be run again now, at this server and in this process.
    replays_left: float = math.inf
    idle_limit: float | None = None  #: the server's limit, reported or learned; None: none known
    idle_limit_learned_from: str = ""  #: the connection losses that it was learned from, else ""
    #: Open connections by host; empty where the caller's own connect= opens them.
    hosts: Mapping[str, int] = field(default_factory=dict)
    share: Shares | None = None  #: the limit that the pools of this host share


def snapshot(
    kernel: Kernel,
    counters: Counters,
    outage: Outage,
    idle_limit: IdleLimit,
    now: float,
    *,
    name: str,
    target: Target,
    pid: int,
    replays_left: float = math.inf,
    share: Shares | None = None,
) -> Stats:
    """Return the numbers of this moment. The caller holds the pool's lock."""
    limit = idle_limit.limit
    return Stats(
        name=name,
        server=target.server,
        pid=pid,
        max_size=kernel.max_size,
        min_size=kernel.min_size,
        size=kernel.size,
        idle=len(kernel.idle),
        used=len(kernel.in_use),
        opening=kernel.opening,
        waiting=len(kernel.waiting),
        acquired=counters.retired_uses + sum(e.uses for e in list(kernel.entries.values())),
        opened=counters.opened,
        connect_seconds=counters.connect_seconds,
        connect_failures=counters.connect_failures,
        closed=dict(counters.closed),
        waits=counters.waits,
        wait_seconds=counters.wait_seconds,
        timeouts=counters.timeouts,
        turned_away=counters.turned_away,
        shed=counters.shed,
        outages=counters.outages,
        outage_seconds=counters.outage_seconds,
        away_for=outage.age(now),
        away_because=outage.fault.text if outage.fault else "",
        leaked=counters.leaked,
        pings=counters.pings,
        rollbacks=counters.rollbacks,
        replays=counters.replays,
        healed=counters.healed,
        not_replayed=counters.not_replayed,
        replays_left=replays_left,
        idle_limit=None if limit == float("inf") else limit,
        idle_limit_learned_from=idle_limit.learned_from,
        hosts=_hosts(kernel, target),
        share=share,
    )


def _hosts(kernel: Kernel, target: Target) -> dict[str, int]:
    if not target.hosts:
        return {}
    found = [entry.address or target.hosts[0] for entry in list(kernel.entries.values())]
    return dict(Counter(address(*each) for each in found))
