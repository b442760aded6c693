"""One direction of a connection: bytes come in, and go out when its rules allow it.

It uses no sockets; the time is an argument.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random

from unbroken_drill.proxy.plan import PLAIN, Quota, Rules

#: A lane that holds more than this is not read any further: later data waits in the sender's own
#: buffers.
FULL = 256 * 1024
_TURN = 0.02  #: seconds: a throttled lane passes on the data for this time at once


class Direction:
    """A queue of bytes with rules. ``dropped`` counts the bytes that a black hole discarded."""

    def __init__(self, random: Random, rules: Rules = PLAIN) -> None:
        self._random = random
        self._queue: deque[tuple[float, bytes]] = deque()  # each chunk with the time it is due
        self._free_at = -math.inf  # a throttled or sliced lane passes on nothing before
        self.rules = rules
        self.is_plain = rules == PLAIN
        self.queued = 0
        self.dropped = 0
        self._left = _allowance(rules.quota)  # bytes that may pass before the quota's rate begins

    def obey(self, rules: Rules) -> None:
        """Apply *rules* from now on. Queued data is delayed no longer than planned, and not at all
        without a delay in *rules*.
        """
        if rules.quota is not self.rules.quota:
            self._left = _allowance(rules.quota)
            self._free_at = -math.inf
        self.rules = rules
        self.is_plain = rules == PLAIN
        if not rules.latency:
            self._queue = deque((-math.inf, data) for _, data in self._queue)
        if self.is_plain:
            self._free_at = -math.inf

    @property
    def wants_more(self) -> bool:
        """Whether the sender can be read from."""
        return self.queued < FULL and not self.rules.stalled

    @property
    def is_open(self) -> bool:
        """Whether anything passes: no hole, no stall, no quota that is used up permanently."""
        quota = self.rules.quota
        used_up = quota is not None and not self._left and not quota.rate
        return self.rules.hole is None and not self.rules.stalled and not used_up

    def take(self, data: bytes, now: float) -> None:
        """Add *data*, which came at *now*."""
        rules = self.rules
        if not data:
            return
        if rules.hole == "drop":
            self.dropped += len(data)
            return
        due = now
        if rules.latency or rules.jitter:
            due = now + max(0.0, rules.latency + self._random.uniform(-rules.jitter, rules.jitter))
        if self._queue:
            due = max(due, self._queue[-1][0])  # it never overtakes
        self._queue.append((due, data))
        self.queued += len(data)

    def give(self, now: float) -> bytes:
        """Return the bytes that can go out at *now*. Call :meth:`gone` with the number sent."""
        if not self._queue or not self.is_open:
            return b""
        due, data = self._queue[0]
        if due > now or self._free_at > now:
            return b""
        most = len(data)
        if self.rules.piece is not None:
            most = min(most, self.rules.piece)
        if self.rules.rate != math.inf:
            most = min(most, max(1, int(self.rules.rate * _TURN)))
        if self.rules.quota is not None:
            most = min(
                most, int(self._left) if self._left else max(1, int(self.rules.quota.rate * _TURN))
            )
        return data[:most]

    def gone(self, count: int, now: float) -> None:
        """Remove *count* of the bytes that :meth:`give` returned: they were sent."""
        due, data = self._queue.popleft()
        if count < len(data):
            self._queue.appendleft((due, data[count:]))
        self.queued -= count
        if count and self.rules.rate != math.inf:
            self._free_at = max(self._free_at, now) + count / self.rules.rate
        if count and self.rules.piece is not None:
            self._free_at = max(self._free_at, now + self.rules.gap)
        if count and self.rules.quota is not None:
            self._spend(self.rules.quota, count, now)

    def _spend(self, quota: Quota, count: int, now: float) -> None:
        if self._left:
            self._left -= count
        if not self._left and quota.rate:
            self._free_at = max(self._free_at, now) + count / quota.rate

    def wake_at(self) -> float | None:
        """Return when :meth:`give` will have bytes; None: the time alone does not change that."""
        if not self._queue or not self.is_open:
            return None
        return max(self._queue[0][0], self._free_at)


def _allowance(quota: Quota | None) -> float:
    return math.inf if quota is None else quota.bytes
