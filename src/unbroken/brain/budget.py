"""How much lost work may one process send to one server again?

A replay is useful for its caller and a burden for a server in trouble. Where a server loses every
second connection, replays without a bound make its load half as large again, in the very minute in
which it can bear it least. So replays are paid for, as gRPC's retry throttling, Finagle's and
Linkerd's ``RetryBudget`` and Envoy's ``retry_budget`` do it.

The rule: lost work is run again as often as **a part of the work that succeeds** (a fifth), or as
**a trickle**, whichever allows more. A **bank** holds what was not used, up to a bound.

- The part: 0.2 is Finagle's, Linkerd's and Envoy's default; gRPC and Google's "Site Reliability
  Engineering" (chapter 21) have 0.1. Whatever part of the attempts a server loses, at most 1.2
  attempts are made for each request, besides the bank and the trickle.
- The bank: one event of a server (a restart, a failover) loses each connection once, so it costs
  one replay for each connection at the most. Three such events in a row are free. So no restart
  meets the budget, whatever the size of the pool.
- The trickle: a fifth of the connections each second, so that an event every five seconds is free,
  whatever the load is. So long callers wait for a server by default. It follows the number of
  connections, which a server bounds. Finagle's ten a second follow the number of processes, which
  nobody bounds.
- No less than for ten connections, the default of ``max_size``: a process with few connections and
  few requests heals as it would without a budget.

One object for each process and server: an incident of one server must not spend what another one's
needs. Nothing here does I/O or knows the clock.
"""

from __future__ import annotations

import math

#: So many times each connection may be lost before the bank is empty.
EVENTS = 3.0
#: Seconds in which the trickle brings as many replays as there are connections.
EVENT_EVERY = 5.0
#: So many connections count at the least.
LEAST = 10
#: An incident in which replays were refused is over once so much of the bank is full.
OVER = 0.5
#: Seconds between two lines about the same incident.
EVERY = 60.0
#: Where connections end before anybody has used them, each takes the place of another one for the
#: same caller. Once the bank is empty, so many seconds pass before the next is opened.
REST = 0.05
#: Sums of fractions are not exact.
_NEARLY = 1e-9


def bank_of(connections: int) -> float:
    """How many replays the bank holds, where the pools have had so many *connections* at a time."""
    return EVENTS * max(LEAST, connections)


def trickle_of(connections: int) -> float:
    """How many replays a second there are without any success."""
    return max(LEAST, connections) / EVENT_EVERY


class Budget:
    """The replays of one process at one server. The caller holds the lock of the server's record.

    Two debts are kept. Each replay adds 1 to both; time pays the one, success pays the other.
    Neither is ever more than the bank, and a replay is allowed while either is less: so the better
    of the two incomes counts, not their sum.
    """

    __slots__ = (
        "by_success", "by_time", "is_spent", "refused", "rest_until", "since", "told_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.by_time = 0.0
        self.by_success = 0.0
        self.since = -math.inf  #: when time was last counted
        self.refused = 0  #: replays that were refused, in this incident
        self.is_spent = False  #: some were refused, and the bank has not recovered
        self.told_at = -math.inf  #: when a line was last logged about it
        self.rest_until = 0.0  #: no connection is opened before

    def left(self, now: float, connections: int, earned: float = 0.0) -> float:
        """How many replays are left at *now*. Pure.

        *connections*: how many the pools have had at a time. *earned*: what success has brought
        since the last :meth:`take`, in replays.
        """
        by_time, by_success = self._paid(now, connections, earned)
        return bank_of(connections) - min(by_time, by_success)

    def take(self, now: float, connections: int, earned: float) -> bool:
        """Whether one replay may be made at *now*; it is paid for then. See :meth:`left`."""
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
        """Whether a refusal at *now* is to be logged: the first of an incident, and then one in
        :data:`EVERY` seconds.
        """
        if self.refused > 1 and now - self.told_at < EVERY:
            return False
        self.told_at = now
        return True

    def _paid(self, now: float, connections: int, earned: float) -> tuple[float, float]:
        """Both debts, after what time and success have paid."""
        bank = bank_of(connections)
        paid = trickle_of(connections) * max(0.0, now - self.since)
        return (
            max(0.0, min(self.by_time, bank) - paid),
            max(0.0, min(self.by_success, bank) - max(0.0, earned)),
        )
