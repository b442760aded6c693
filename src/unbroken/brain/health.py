"""Decide what a connection needs before use, or while it is idle: nothing, a ping, or retirement
(with its cause).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from unbroken.abc import Capabilities, Cause
from unbroken.brain.entry import Entry
from unbroken.settings import Settings

#: A connection that was idle for this fraction of the server's limit is pinged before use. The
#: server could be closing it at this moment, and a check of the socket does not see a FIN that is
#: still on its way.
CLOSE_TO_LIMIT = 0.9

#: The last fraction of max_age, over which retirements are spread (HikariCP: 25 % since 6.1.0).
AGE_JITTER = 0.25

#: Number of unanswered keepalive probes after which a connection counts as lost.
PROBES = 3

#: Seconds to the first keepalive probe, if no other setting bounds it. Less than the shortest
#: common NAT timeout, 60 s.
KEEPALIVE = 30.0


class Need(Enum):
    """The step that a connection needs before use."""

    NOTHING = "nothing"
    PING = "ping"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings with every automatic value resolved. Seconds; ``math.inf`` means never."""

    max_age: float
    max_idle: float
    ping_after: float
    idle_limit: float
    keepalive: float
    send_timeout: float

    @classmethod
    def decide(
        cls,
        settings: Settings,
        capabilities: Capabilities,
        *,
        is_tcp: bool = True,
        idle_limit: float | None = None,
    ) -> Policy:
        """Resolve the automatic values. *idle_limit*: the server's limit as far as it is known, in
        seconds.
        """
        return cls(
            max_age=_default(settings.max_age, 3600.0),
            max_idle=_default(settings.max_idle, 600.0),
            ping_after=_default(settings.ping_after, _ping_after(capabilities, is_tcp)),
            idle_limit=_default(settings.idle_limit, _default(idle_limit, math.inf)),
            keepalive=_keepalive(settings.keepalive, settings.send_timeout),
            send_timeout=settings.send_timeout,
        )

    @property
    def probe_every(self) -> float:
        """Seconds between keepalive probes: PROBES of them fit into the time until send_timeout is
        over.
        """
        left = (
            self.keepalive if self.send_timeout == math.inf else self.send_timeout - self.keepalive
        )
        return max(left / PROBES, 1.0)

    @property
    def fresh_for(self) -> float:
        """Seconds since its last use during which a check of the socket is enough to reuse a
        connection.
        """
        return min(self.ping_after, self.idle_limit * CLOSE_TO_LIMIT)

    def retire_at(self, born: float, jitter: float) -> float:
        """When a connection is too old. *jitter* is a random number from 0 to 1."""
        return born + self.max_age * (1.0 - AGE_JITTER * jitter)

    def need(self, entry: Entry, now: float) -> Need:
        """The step that *entry* needs before it is used at *now*."""
        if now >= entry.retire_at:
            return Need.RETIRE
        return Need.PING if now - entry.last_used >= self.fresh_for else Need.NOTHING

    def overdue(self, entry: Entry, now: float, *, spare: bool) -> Cause | None:
        """Why an idle *entry* should be closed now. None if it may stay. *spare*: the pool keeps
        enough connections without it.
        """
        if now >= entry.retire_at:
            return Cause.MAX_AGE
        idle = now - entry.last_used
        if spare and (idle >= self.max_idle or idle >= self.idle_limit * CLOSE_TO_LIMIT):
            return Cause.MAX_IDLE
        return None

    def wants_exercise(self, entry: Entry, now: float) -> bool:
        """Whether to ping an idle *entry* that the pool keeps, so that the server does not
        drop it.
        """
        return now - entry.last_used >= self.idle_limit * (CLOSE_TO_LIMIT / 2)

    @property
    def tick(self) -> float:
        """Seconds between two checks of idle and used connections.

        Short limits need more frequent checks; otherwise 1 s is enough.
        """
        part = (1 - CLOSE_TO_LIMIT) / 2  # checks happen between "close to the limit" and the limit
        return max(
            0.05,
            min(
                1.0,
                self.idle_limit * part,
                self.max_idle / 4,
                self.max_age / 4,
                self.send_timeout / 4,
            ),
        )


def _ping_after(capabilities: Capabilities, is_tcp: bool) -> float:
    if not capabilities.server:
        return math.inf
    if not capabilities.fileno:
        return 1.0
    # The kernel sees every loss of a connection on a unix socket.
    return 60.0 if is_tcp else math.inf


def _keepalive(given: float | None, send_timeout: float) -> float:
    """Seconds of silence before the first probe.

    After send_timeout, the kernel ends the connection on a single lost probe (tcp(7)).
    """
    half = send_timeout / 2
    return given if given == math.inf else min(half, _default(given, KEEPALIVE))


def _default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
