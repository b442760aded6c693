"""Connections through a pooler: detect them when they are opened, and keep drivers from relying on
their session.
"""

from __future__ import annotations

import errno
import math
from typing import Any

from unbroken.abc import CANNOT_SERVE, Connection, Fault, FaultKind
from unbroken.brain.entry import Entry
from unbroken.ledger.residue import DOUBTFUL, Left, listed
from unbroken.logs import Part
from unbroken.messages.server import POOLER_AND_PREPARED, POOLER_AND_SESSION
from unbroken.net.liveness import Liveness, sweep
from unbroken.pool.admission import CannotServeError
from unbroken.pool.registry import every
from unbroken.pool.steps import Call, Flow

log = Part("cluster")

_ASK = "SELECT pg_backend_pid()"


def recognise(state: Any, conn: Connection, until: float = math.inf) -> Flow[int | None]:
    """Find out, no longer than *until*, whether the new *conn* goes through a pooler. Return the
    number of the session that it was routed to, if it was asked.

    Costs one round trip for the first connection of a process, and for each one behind a pooler: a
    pooler accepts clients for which it has no session. Leaves no transaction open. Raises
    CannotServeError if the pooler reported that it has none, and the driver's error if *conn* was
    lost.
    """
    if state.backend != "postgresql":
        return None
    settle(state, conn)
    number = _number(state.driver.session_id(conn))
    pooler = state.server.pooler
    with state.server.lock:
        if number is None or pooler.judge(number) is False:
            return None
    session = yield from _ask(state, conn, until)
    if session is None:
        return None
    with state.server.lock:
        was_new = pooler.stands is not True
        pooler.hear(number, session)
    if pooler.stands and was_new:
        log.info(
            "pooler found",
            f"{state.name}: {state.driver.target.server} is reached through a pooler",
            pool=state.name,
            server=state.driver.target.server,
        )
    settle(state, conn)
    return session


def compare(state: Any, entry: Entry) -> None:
    """Check whether *entry*, which is recorded from now on, was routed to the session of another
    one.
    """
    if entry.led_to is None:
        return
    others = _sessions(state, entry)
    with state.server.lock:
        is_news = state.server.pooler.meets(entry.led_to, others)
    if is_news:
        shared(state)


def settle(state: Any, conn: Connection) -> None:
    """Tell the driver whether *conn* can rely on its session, by the current knowledge."""
    if state.backend != "postgresql":
        return
    with state.server.lock:
        through = state.server.pooler.judge(_number(state.driver.session_id(conn)))
    kept = state.driver.share(conn, through is not False)
    if kept is not None and through and state.server.pooler.warns(kept):
        log.warning(
            "pooler",
            POOLER_AND_PREPARED(
                f"{state.name}: {state.driver.target.server} is reached through a pooler, and"
                f" {kept} is kept as it was set. A prepared statement belongs to one session. If"
                " the pooler switches sessions between transactions, the statement is not found,"
                " unless the pooler tracks prepared statements (PgBouncer 1.21:"
                " max_prepared_statements). Leave the setting out to be safe."
            ),
            about=str(kept),
            pool=state.name,
            server=state.driver.target.server,
        )


def _ask(state: Any, conn: Connection, until: float) -> Flow[int | None]:
    allowed, began = state.time_for_questions(until), state.clock()
    try:
        rows = yield Call("ask", conn, None, allowed, (_ASK,))
        session = _number(rows[0][0])
    except Exception as exc:
        hidden = state.driver.told(conn)
        if hidden is not None and hidden.kind in CANNOT_SERVE:
            raise CannotServeError(hidden) from exc  # the library raises only the hang-up
        if state.server.pooler.stands and state.clock() - began >= allowed:
            words = f"the pooler accepted the client, but provided no session within {allowed:g} s"
            raise CannotServeError(Fault(FaultKind.TOO_MANY, text=words)) from exc
        fault = state.classify(exc)
        if fault.is_lost:
            raise
        log.debug(
            "question not answered",
            f"{state.name}: it is not known whether there is a pooler: {fault.text}",
            pool=state.name,
        )
        if state.knows_status and not state.driver.is_quiet(conn):
            # Its answer may still come: no caller may get this connection.
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the query for the session's number was interrupted"
            ) from exc
        session = None
    if state.driver.is_in_transaction(conn) is not False:
        yield Call("rollback", conn, None, state.time_for_questions(until))
    return session


def _number(text: Any) -> int | None:
    """A session's number in the form of the drivers: a number, or its digits as text or bytes."""
    try:
        return int(text)
    except (TypeError, ValueError):
        return None


def _sessions(state: Any, entry: Entry) -> list[int]:
    """The sessions of the other open connections to the address of *entry*, in all pools of the
    server. Connections whose other side has hung up are left out.
    """
    with state.server.lock:
        pools = every(state.server.pools)
    found = [each for pool in pools for each in list(pool.kernel.entries.values())]
    known = [
        e
        for e in found
        if e is not entry and e.cause is None and e.address == entry.address and e.fd is not None
    ]
    looks = sweep(e.fd for e in known if e.led_to is not None)
    return [
        e.led_to for e in known if e.led_to is not None and looks.get(e.fd) is not Liveness.DEAD
    ]


# -- shared sessions -------------------------------------------------------------------------------


def met_another(state: Any) -> bool:
    """A session does not know a statement that was prepared on its connection. Return whether it
    was prepared in another session, as far as is known. Otherwise its holder deallocated it.
    """
    with state.server.lock:
        is_news = state.server.pooler.met_stranger()
        is_another = state.server.pooler.shares
        pools = every(state.server.pools)
    if is_news:
        shared(state)
        for pool in pools:  # their connections may rely on their sessions
            pool.runtime.call(pool.drain)
    return bool(is_another)


def shared(state: Any) -> None:
    """It has just become certain that sessions are shared."""
    log.info(
        "sessions are shared",
        f"{state.name}: the pooler at {state.driver.target.server} switches sessions between"
        " transactions",
        pool=state.name,
        server=state.driver.target.server,
    )
    if state.server.pooler.used:
        _warn(state, state.server.pooler.used)


def uses_session(state: Any, left: frozenset[Left]) -> None:
    """*left* may be on the session behind a connection. Warn once if that session does not belong
    to the connection alone.
    """
    left -= DOUBTFUL | {Left.UNKNOWN}
    pooler = state.server.pooler
    if not left or not pooler.stands:
        return
    with state.server.lock:
        pooler.used |= left
    if pooler.shares:
        _warn(state, left)


_INSTEAD = {
    Left.SETTING: "SET LOCAL, or ALTER ROLE … SET",
    Left.LOCK: "pg_advisory_xact_lock",
    Left.LISTENER: "a separate connection directly to the server",
    Left.TEMPORARY: "CREATE TEMPORARY TABLE … ON COMMIT DROP",
    Left.PREPARED: "plain statements",
    Left.CURSOR: "a cursor without HOLD",
}


def _warn(state: Any, left: frozenset[Any]) -> None:
    what = [each for each in Left if each in left]
    with state.server.lock:
        news = [each for each in what if state.server.pooler.warns(each)]
    if not news:
        return
    advice = [f"instead of {each}, use {_INSTEAD[each]}; " for each in news if each in _INSTEAD]
    advice.append(f"{'or ' if advice else ''}use a pooler in session mode")
    remedy = "".join(advice)
    remedy = remedy[0].upper() + remedy[1:]
    log.warning(
        "pooler",
        POOLER_AND_SESSION(
            f"{state.name}: the application left {listed(news)} on a session behind the"
            f" pooler at {state.driver.target.server}, which switches sessions between"
            " transactions: the next statement may miss it, and other clients may find it."
            f" {remedy}."
        ),
        about=tuple(news),
        pool=state.name,
        server=state.driver.target.server,
    )
