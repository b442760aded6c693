"""Apply the retry budget to lost work (:mod:`unbroken.brain.budget` decides), and report refusals.

Every body asks here, after the ledger has found that another attempt is safe. Work that the ledger
forbids never gets here: a statement that ends its session twice costs no budget.

The hot path has no cost: successes are computed from the pools' own counters when a replay asks for
them.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

from unbroken.abc import CANNOT_SERVE, Fault, FaultKind
from unbroken.brain.budget import REST, bank_of, trickle_of
from unbroken.ledger.subjects import in_words, subjects
from unbroken.ledger.unit import Unit
from unbroken.logs import Part
from unbroken.messages.units import NO_BUDGET
from unbroken.pool.registry import every
from unbroken.pool.servers import Server, server_at
from unbroken.pool.undone import mark
from unbroken.settings import Settings

log = Part("replay")

#: The start of each refusal, in notes and in the log.
NO_REPLAY = "no replay: budget"
#: Lost work of which no pool knows the server (MongoDB's, for example) shares one record in this
#: process.
ELSEWHERE = "servers without a pool"
#: Maximum number of connections of a client there: PyMongo's default for one server …
ELSEWHERE_SIZE = 100
#: … and the fraction of successes that can be replayed there.
_PART = Settings().retry_budget


def may_replay(unit: Unit, exc: BaseException, fault: Fault) -> bool:
    """Whether *unit* may be run again, which the ledger allows after *exc*, meaning *fault*.

    If so, it is charged, once for each attempt, however often this is called. If not, *exc* gets a
    note. A unit that waits for the end of an outage pays once for all its replays after that. If
    the server asked for the replay (a deadlock), no work was lost and nothing is charged.
    """
    if fault.kind is FaultKind.RETRY:
        return True
    attempt, granted = unit.grant
    if attempt == unit.attempts:
        return granted
    waits = fault.kind in CANNOT_SERVE
    state = unit.lost_at()
    granted = (waits and unit.has_paid) or _take(state)
    unit.grant = unit.attempts, granted
    unit.has_paid = unit.has_paid or (waits and granted)
    if not granted:
        _count(state)
        who = in_words(*subjects(unit))
        work = f"this unit of work ({who})" if who else "this unit of work"
        mark(exc, is_curable=True)
        exc.add_note(NO_BUDGET(f"unbroken did not replay {work}: {words(state)}"))
    return granted


def may_repeat(state: Any) -> str | None:
    """Why a statement that *state* has lost must not be sent again. None: it may, and is
    charged.
    """
    with state.server.lock:
        state.counters.lost_statements += 1  # its use was no success
    if _take(state):
        return None
    _count(state)
    return words(state)


def died_unused(state: Any) -> None:
    """A connection was opened for a caller and ended before its first use.

    Its caller gets another one, which is charged too. If the budget is spent, the pool pauses
    before it opens the next one.
    """
    if not _take(state):
        with state.server.lock:
            state.server.budget.rest_until = state.clock() + REST


def succeeded(unit: Unit) -> None:
    """*unit* has succeeded."""
    attempt, granted = unit.grant
    if not granted and attempt == unit.attempts:
        return  # its error was turned into an answer
    # without a lock: a lost update means a success that is not counted
    pools = unit.origins()
    for pool in pools:
        pool.counters.units += 1
    if not pools and unit.is_elsewhere:
        server_at(ELSEWHERE).units += 1


def left(state: Any) -> float:
    """The number of replays that the server of *state* has left for this process. The caller holds
    the lock of its record.
    """
    if state.settings.retry_budget == math.inf:
        return math.inf
    server: Server = state.server
    return server.budget.left(state.clock(), _connections(server), _earned(server, keep=False))


def words(state: Any) -> str:
    """The figures of a refusal: ``no replay: budget spent: …``."""
    server = _server(state)
    connections = _connections(server)
    where = ELSEWHERE if state is None else state.driver.target.server
    part = _fraction(state)
    return (
        f"{NO_REPLAY} spent: all {bank_of(connections):.0f} replays in reserve for {where} were"
        f" used; each success adds {part:g}, and each second {trickle_of(connections):g}"
    )


def _take(state: Any) -> bool:
    if _fraction(state) == math.inf:
        return True
    server = _server(state)
    with server.lock:
        now = monotonic() if state is None else state.clock()
        granted = server.budget.take(now, _connections(server), _earned(server, keep=True))
        is_news = not granted and server.budget.is_news(now)
        refused = server.budget.refused
    if is_news:
        _tell(state, refused)
    return granted


def _count(state: Any) -> None:
    if state is not None:
        with state.server.lock:
            state.counters.not_replayed += 1


def _tell(state: Any, refused: int) -> None:
    """Log one line for an incident, not one for each caller."""
    name, where = (ELSEWHERE, None) if state is None else (state.name, state.driver.target.server)
    log.warning(
        "budget spent",
        NO_BUDGET(
            f"{name}: {words(state)}; for now, callers get the errors of lost work"
            f" ({refused} so far)"
        ),
        about=where,
        pool=None if state is None else name,
        server=where,
        callers=refused,
    )
    if state is not None:
        state.emit("budget spent", {"pool": name, "refused": refused})


def _server(state: Any) -> Server:
    return server_at(ELSEWHERE) if state is None else state.server


def _fraction(state: Any) -> float:
    return float(_PART if state is None else state.settings.retry_budget)


def _connections(server: Server) -> int:
    """The sum of the most connections that each pool of *server* has had open at a time."""
    pools = every(server.pools)
    return sum(pool.counters.most for pool in pools) if pools else ELSEWHERE_SIZE


def _earned(server: Server, *, keep: bool) -> float:
    """The replays earned by successes that were not counted yet. *keep*: count them now."""
    earned = _PART * max(0, server.units - server.units_counted)
    if keep:
        server.units_counted = server.units
    for pool in every(server.pools):
        counters, fraction = pool.counters, pool.settings.retry_budget
        if fraction == math.inf:
            continue
        entries = list(pool.kernel.entries.values())
        # a use in a unit of work succeeds only when its unit does
        alone = counters.retired_uses - counters.retired_joins
        alone += sum(entry.uses - entry.joins for entry in entries) - counters.lost_statements
        successes = counters.units + alone
        earned += fraction * max(0, successes - counters.successes_counted)
        if keep:  # an entry that is being removed is missing for a moment
            counters.successes_counted = max(counters.successes_counted, successes)
    return earned
