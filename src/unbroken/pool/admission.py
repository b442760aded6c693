"""Decide whether the server can serve. A new connection is asked if that is in doubt; errors of
connections in use may report that it cannot.

A server that accepts a login may still be unable to serve: it was demoted, its node has lost the
cluster, or the pooler in front of it cannot reach it. New connections and those in use begin the
same outage of the server, in :mod:`unbroken.brain.outage`. All pools drain their connections,
callers and replays wait, and one attempt at a time asks whether the server can serve again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

from unbroken.abc import Cause, Connection, Fault, FaultKind
from unbroken.brain.entry import Entry
from unbroken.brain.standing import News, Refused
from unbroken.brain.tries import Try
from unbroken.ledger.questions import Question
from unbroken.logs import Part
from unbroken.messages.server import TAKES_NO_WRITES, TAKES_WRITES
from unbroken.pool import news
from unbroken.pool.registry import every
from unbroken.pool.steps import Flow, Wait
from unbroken.roles import Role, wanted

log = Part("outage")

#: A connection whose server cannot serve yet is asked again for this many seconds in all …
ASKED_FOR = 0.15
#: … at this interval: a new connection costs the server more than a query.
ASKED_EVERY = 0.04
#: This many seconds before callers stop waiting, a read-only server serves them.
IN_TIME = 0.3


class CannotServeError(Exception):
    """A connection was opened, but its server cannot serve. *fault* is the reason."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


# -- new connections -------------------------------------------------------------------------------


def admit(state: Any, attempt: Try, conn: Connection, until: float = math.inf) -> Flow[None]:
    """Ask the server of *conn*, which *attempt* has just opened, for its role if that matters, no
    longer than *until*.

    Leaves no transaction open. Raises CannotServeError if the server must not serve this pool now,
    and the driver's error if *conn* was lost.
    """
    if not state.driver.capabilities.server:
        return
    began = state.clock()
    while _must_ask(state, attempt):
        role: Role | None = yield from state.ask_new(conn, Question.ROLE, until)
        why = _objection(state, attempt, role)
        if why is None:
            _serves(state, role)
            return
        several = state.server.hosts.are_several
        if several or state.clock() - began > ASKED_FOR:
            words = why if several else f"{state.driver.target.server} {why}"
            raise CannotServeError(Fault(FaultKind.WRONG_SERVER, Cause.FAILOVER, text=words))
        yield Wait(state.runtime.new_signal(), ASKED_EVERY)


def _must_ask(state: Any, attempt: Try) -> bool:
    server, now = state.server, state.clock()
    with server.lock:
        return bool(
            server.outage.needs_proof(now)
            or server.hosts.is_move(attempt)
            or server.standing.must_ask(wanted(state.settings.target), now)
        )


def _objection(state: Any, attempt: Try, role: Role | None) -> str | None:
    """Why a server with this role must not serve this pool now. None: it may."""
    server, now = state.server, state.clock()
    with server.lock:
        if role is Role.STANDBY:
            server.hosts.saw(attempt.address, False)
        elif role is Role.PRIMARY and server.hosts.passes_over(
            attempt, now, server.outage.silent_tries(now)
        ):
            return f"{role.value}, and the pool prefers a standby"
        waited = server.outage.age(now) + IN_TIME >= state.settings.outage_wait
        want = wanted(state.settings.target)
        told: str | None = server.standing.objection(role, want, waited_enough=waited)
        return told


def _serves(state: Any, role: Role | None) -> None:
    """From now on a server with this role serves this pool."""
    server, now = state.server, state.clock()
    with server.lock:
        news = server.standing.serves(role, wanted(state.settings.target), now)
        if news is News.BETTER:
            server.drained_at = now
        pools = every(server.pools)
    where = state.driver.target.server
    if news is News.REDUCED:
        log.warning(
            "takes no writes",
            TAKES_NO_WRITES(
                f"{state.name}: {where} takes no writes; the pool uses it for reads only"
            ),
            pool=state.name,
            server=where,
        )
    elif news is News.BETTER:
        log.warning(
            "takes writes",
            TAKES_WRITES(f"{state.name}: {where} takes writes again"),
            pool=state.name,
            server=where,
        )
        for pool in pools:
            pool.runtime.call(pool.drain)


# -- connections in use ----------------------------------------------------------------------------


def refused(state: Any, entry: Entry, fault: Fault) -> bool:
    """The server refuses all clients what it refused *entry* with *fault*, as it answered when
    asked. Return whether that is an outage: callers and replays wait for its end.

    A server that this process has only known as a standby is as it should be, so the error goes to
    the caller. The same applies while a demoted server serves reads, because callers have waited
    long enough. Then once a second a connection is given up, to look for a better server.
    """
    server, follows = state.server, Refused.OUTAGE
    if fault.kind is FaultKind.READ_ONLY:
        with server.lock:
            follows = server.standing.refused(wanted(state.settings.target), state.clock())
        fault = replace(fault, kind=FaultKind.WRONG_SERVER)
    if follows is Refused.CALLERS:
        return False
    is_outage = follows is Refused.OUTAGE and cannot_serve(state, entry, fault)
    entry.condemn(
        Cause.FAILOVER, "the server takes no writes" if follows is Refused.LOOK else fault.text
    )
    return is_outage


def cannot_serve(state: Any, entry: Entry, fault: Fault) -> bool:
    """The server reported to *entry*, a connection in use, that it cannot serve: *fault*.

    Unless that is known already, an outage begins, and all pools of the server drain their
    connections to it. Return False if new connections have shown for ``outage_wait`` that it can
    serve: then there is nothing to wait for.
    """
    server = state.server
    with state.lock, server.lock:
        now = state.clock()
        if entry.born < server.drained_at:
            return True
        if server.outage.is_contradicted(now, state.settings.outage_wait):
            return False
        is_again = server.outage.is_relapse(now)
        if not server.outage.cannot_serve(now, fault, state.random):
            return True
        server.drained_at = now
        pools = every(server.pools)
    news.cannot_serve(state, fault, is_again=is_again)
    for pool in pools:
        pool.runtime.call(partial(_leave, pool))
    return True


def _leave(state: Any) -> None:
    """Drain the connections to a server that cannot serve, and start one attempt."""
    state.drain()
    state.probe()
