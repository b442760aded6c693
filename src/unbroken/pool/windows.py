"""A server that is there but does not read is not a network that is silent.

The kernel's user timeout (the setting send_timeout) ends a connection also when the server answers,
but has had no room for more data for so long: while a COPY or a batch of statements waits for a
lock, say. So as long as the server answers the kernel's window probes, that connection's timeout is
moved on; afterwards it is what it was.
"""

from __future__ import annotations

import math

from unbroken.brain.entry import Entry
from unbroken.net import keepalive, sent_bytes
from unbroken.pool.state import PoolState


def bear(state: PoolState) -> None:
    """Look at what has been lent for a while: on the watcher, at each tick, 1 µs for each."""
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
        # The kernel counts from its first probe, which may be a tick older than our first look.
        since = state.borne.setdefault(entry, state.now - 2 * state.policy.tick)
        keepalive.apply(fd, None, user_timeout=state.now - since + limit)
