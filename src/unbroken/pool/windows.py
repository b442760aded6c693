"""Distinguish a server that is up but does not read from a silent network.

The kernel's user timeout (the setting send_timeout) also ends a connection if the server answers,
but has had no room for more data for that long. A COPY or a batch of statements that waits for a
lock is an example. So while the server answers the kernel's window probes, that connection's
timeout is extended. Afterwards it is restored.
"""

from __future__ import annotations

import math

from unbroken.brain.entry import Entry
from unbroken.net import keepalive, sent_bytes
from unbroken.pool.state import PoolState


def bear(state: PoolState) -> None:
    """Check connections that are in use for a while: on the watcher, at each tick, 1 µs for
    each.
    """
    policy = state.policy
    if policy.send_timeout == math.inf or not state.is_tcp:
        return
    since = state.now - policy.tick
    for entry in list(state.kernel.in_use.values()):
        if entry.taken_at < since and entry.fd is not None and entry.cause is None:
            _look(state, entry, entry.fd, policy.send_timeout)


def _look(state: PoolState, entry: Entry, fd: int, limit: float) -> None:
    silent = sent_bytes.unread_for(fd)
    if silent is None:
        if state.borne.pop(entry, None) is not None:
            keepalive.apply(fd, None, user_timeout=limit)
    elif silent < limit:
        # The kernel counts from its first probe, which may be a tick before our first check.
        since = state.borne.setdefault(entry, state.now - 2 * state.policy.tick)
        keepalive.apply(fd, None, user_timeout=state.now - since + limit)
