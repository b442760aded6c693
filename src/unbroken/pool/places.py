"""A pool and the hosts of its cluster: choose the host of an attempt, apply its result, and leave
connections to other hosts.

The decisions are made in :mod:`unbroken.brain.hosts`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from unbroken.abc import Address, Cause, Fault, Login, address
from unbroken.brain.entry import Entry
from unbroken.brain.hosts import After
from unbroken.brain.tries import Try
from unbroken.logs import Part
from unbroken.messages.server import PLACE_MOVED
from unbroken.net.sent_bytes import last_data
from unbroken.pool.registry import every

log = Part("cluster")


#: An answer that is due for this many seconds is overdue …
OVERDUE = 0.7
#: … and if the place has sent nothing on any connection for this many seconds, it may be frozen.
UNHEARD = 0.7


def choose(state: Any, attempt: Try) -> None:
    """Choose the host of *attempt*, which has just begun. The caller holds both locks."""
    server, now = state.server, state.clock()
    attempt.address = server.hosts.next(now, _silent(state, attempt))


def _silent(state: Any, attempt: Try | None = None) -> list[Try]:
    found: list[Try] = state.server.outage.silent_tries(state.clock())
    return [each for each in found if each is not attempt]


def host_of(attempt: Try) -> Login | None:
    """The host of *attempt*, as a login. None: the URL's host."""
    return None if attempt.address is None else Login(*attempt.address)


def after_failure(state: Any, attempt: Try, fault: Fault) -> tuple[After, Fault]:
    """The next step after *attempt* failed with *fault*, and the fault with the reasons of all
    hosts. The caller holds both locks.
    """
    hosts, now, silent = state.server.hosts, state.clock(), _silent(state, attempt)
    after = hosts.failed(attempt, now, fault, silent)
    if after is After.AWAY:
        fault = hosts.why_away(fault, silent)
    elif after is After.REJECTED:
        fault = replace(fault, text=hosts.told(hosts.since, silent) or fault.text)
    elif after is After.ELSEWHERE:
        state.server.outage.hurry(now)
    return after, fault


def came_about(state: Any, attempt: Try) -> bool:
    """*attempt* opened a connection that can serve. Return False if it is unwanted, because the
    pool got others from another host since the attempt began.
    """
    with state.lock, state.server.lock:
        wanted: bool = state.server.hosts.succeeded(attempt, state.clock(), _silent(state, attempt))
    follow(state)
    return wanted


def look(state: Any) -> None:
    """Some attempts are silent: leave the place if necessary. The caller holds both locks."""
    state.server.hosts.leave(state.clock(), _silent(state))


def follow(state: Any) -> None:
    """If the place has moved, all pools of the cluster leave their connections to other hosts.
    Called without locks.
    """
    server = state.server
    with server.lock:
        hosts = server.hosts
        if hosts.moves == server.followed:
            return
        before, place, pools = server.place, hosts.place, every(server.pools)
        server.followed, server.place = hosts.moves, place
    if before != place:
        host = address(*place)
        log.warning(
            "moved",
            PLACE_MOVED(f"{state.name}: new connections are opened at {host} from now on"),
            pool=state.name,
            server=host,
        )
        state.emit("moved", {"pool": state.name, "host": host})
    for pool in pools:
        pool.runtime.call(partial(retire_elsewhere, pool))


def overdue(state: Any, place: Address | None) -> list[tuple[Entry, float]]:
    """The connections in use at *place* whose answers are overdue, and for how many seconds. Empty
    if the place has recently sent data on any of them.
    """
    found: list[tuple[Entry, float]] = []
    for entry in list(state.kernel.in_use.values()):
        if entry.fd is None or entry.address != place:
            continue
        data = last_data(entry.fd)
        if data is None:
            continue
        sent, received = data
        if received < UNHEARD:
            return []
        # The system's clock is coarse: an answer in the same tick looks like one that is due.
        if received >= sent >= OVERDUE and _is_asking(state, entry):
            found.append((entry, sent))
    return found


def _is_asking(state: Any, entry: Entry) -> bool:
    conn = entry.conn if entry.ref is None else entry.ref()
    return conn is not None and not state.driver.is_quiet(conn)


def condemn_elsewhere(state: Any, entry: Entry) -> None:
    """Condemn *entry* if it goes to a host that the pool has left. The caller holds both locks."""
    hosts = state.server.hosts
    if entry.address not in (None, hosts.place, hosts.beside):
        entry.condemn(Cause.FAILOVER)


def retire_elsewhere(state: Any) -> None:
    """Close idle connections to hosts other than the place now, and those in use when they are
    returned. If another host has taken over the writes, hanging ones are ended immediately.
    """
    with state.lock, state.server.lock:
        for entry in [*state.kernel.entries.values()]:
            condemn_elsewhere(state, entry)
        stale = state.kernel.take_stale()
        hosts = state.server.hosts
        left = {each.address for each in list(state.kernel.in_use.values())}
        if not state.server.standing.took_writes or hosts.place not in hosts.takes_writes:
            left.clear()
    for entry in stale:
        state.close_entry(entry)
    for host in left - {None, hosts.place, hosts.beside}:
        for entry, _ in overdue(state, host):
            state.abort(entry, entry.uses, Cause.FAILOVER)
    state.ensure_connecting()
