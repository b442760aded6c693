"""Limit how much lost work one process may send to one server again.

A replay is useful for its caller and a burden for a server in trouble. If a server loses every
second connection, replays without a bound raise its load by half, at the very time when it can bear
least. So replays need a budget, as in gRPC's retry throttling, Finagle's and Linkerd's
``RetryBudget`` and Envoy's ``retry_budget``.

The rule: the replays allowed are **a fraction of the work that succeeds** (a fifth) or **a constant
rate**, the trickle, whichever is more. A **bank** saves the unused ones, up to a bound.

- The fraction: 0.2 is the default of Finagle, Linkerd and Envoy; gRPC and Google's "Site
  Reliability Engineering" (chapter 21) use 0.1. Whatever fraction of the attempts a server loses,
  there are at most 1.2 attempts for each request, plus the bank and the trickle.

- The bank: one event of a server (a restart, a failover) loses each connection once. So it costs
  at most one replay for each connection. Three such events in a row are free. So no restart
  reaches the limit, for any size of the pool.

- The trickle: a fifth of the connections each second, so that an event every five seconds is free
  under any load. By default, callers wait for a server for that long. The trickle follows the
  number of connections, which a server bounds. Finagle's ten a second follow the number of
  processes, which has no bound.

- At least the values for ten connections, the default of ``max_size``: a process with few
  connections and few requests works as it would without a budget.

There is one object for each process and server: an incident at one server must not spend the budget
of another. This module does no I/O and does not know the clock.
"""

from __future__ import annotations

import math

#: Number of times that each connection can be lost before the bank is empty.
EVENTS = 3.0
#: Seconds in which the trickle allows as many replays as there are connections.
EVENT_EVERY = 5.0
#: Minimum number of connections in the formulas.
LEAST = 10
#: An incident with refused replays is over when this fraction of the bank is full.
OVER = 0.5
#: Seconds between two log lines about the same incident.
EVERY = 60.0
#: If connections end before first use, each one replaces another for the same caller. Once the bank
#: is empty, this many seconds pass before the next connect.
REST = 0.05
#: Tolerance: sums of fractions are not exact.
_NEARLY = 1e-9


def bank_of(connections: int) -> float:
    """Capacity of the bank in replays, where *connections* is the most that the pools have had open
    at a time.
    """
    return EVENTS * max(LEAST, connections)


def trickle_of(connections: int) -> float:
    """Replays allowed per second without any success."""
    return max(LEAST, connections) / EVENT_EVERY


class Budget:
    """The replay budget of one process at one server. The caller holds the lock of the server's
    record.

    It keeps two debts. Each replay adds 1 to both; time pays off one of them, success the other.
    Neither debt ever exceeds the bank, and a replay is allowed while either is below it. So the
    larger of the two incomes counts, not their sum.
    """

    __slots__ = (
        "by_success", "by_time", "is_spent", "refused", "rest_until", "since", "told_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.by_time = 0.0
        self.by_success = 0.0
        self.since = -math.inf  #: when time was last credited
        self.refused = 0  #: replays refused in this incident
        self.is_spent = False  #: replays were refused, and the bank has not recovered
        self.told_at = -math.inf  #: when a line about it was last logged
        self.rest_until = 0.0  #: no connection is opened before this time

    def left(self, now: float, connections: int, earned: float = 0.0) -> float:
        """Return the number of replays left at *now*. Pure.

        *connections*: the most that the pools have had open at a time. *earned*: the replays that
        successes have earned since the last :meth:`take`.
        """
        by_time, by_success = self._paid(now, connections, earned)
        return bank_of(connections) - min(by_time, by_success)

    def take(self, now: float, connections: int, earned: float) -> bool:
        """Whether one replay may be made at *now*. If so, it is charged. For the arguments, see
        :meth:`left`.
        """
        bank = bank_of(connections)
        self.by_time, self.by_success = self._paid(now, connections, earned)
        self.since = max(self.since, now)
        left = bank - min(self.by_time, self.by_success)
        if left >= OVER * bank:
            self.is_spent, self.refused = False, 0
        if left < 1.0 - _NEARLY:
            self.is_spent = True
            self.refused += 1
            return False
        self.by_time, self.by_success = self.by_time + 1.0, self.by_success + 1.0
        return True

    def is_news(self, now: float) -> bool:
        """Whether to log a refusal at *now*: the first of an incident, and then one every
        :data:`EVERY` seconds.
        """
        if self.refused > 1 and now - self.told_at < EVERY:
            return False
        self.told_at = now
        return True

    def _paid(self, now: float, connections: int, earned: float) -> tuple[float, float]:
        """Both debts, reduced by time and success."""
        bank = bank_of(connections)
        paid = trickle_of(connections) * max(0.0, now - self.since)
        return (
            max(0.0, min(self.by_time, bank) - paid),
            max(0.0, min(self.by_success, bank) - max(0.0, earned)),
        )
