"""Detect a host that freezes while all its connections are in use, when no connect would reveal it.

If answers are overdue, and the server at the pool's place does not greet new connections, the pool
looks for another host that accepts writes. If there is one, the pool moves there, and ends hanging
connections to the old place: their units of work are run again. A server that is only busy with a
long statement still greets, and its connections are kept.
"""

from __future__ import annotations

from typing import Any

from unbroken.abc import Address, Connection, Login, address
from unbroken.ledger.questions import Question
from unbroken.logs import Part
from unbroken.net.ending import NoThreadError
from unbroken.net.greeting import is_silent
from unbroken.net.signals import start_thread
from unbroken.pool.places import follow, overdue
from unbroken.pool.secrets import checked
from unbroken.pool.steps import Connect, Consult, Flow, Wait
from unbroken.roles import Role

log = Part("cluster")

#: Seconds that a host has to greet us, or to accept our login.
LIMIT = 0.75
#: Seconds between two searches for a host that accepts writes.
PACE = 0.25
#: A place that greets us is checked again after this fraction of the time that its answers are due.
AGAIN = 0.5


def look_at_place(state: Any) -> None:
    """Check the place if answers are overdue. Called at each tick, without locks."""
    hosts, now = state.server.hosts, state.clock()
    if not hosts.are_several or state.scouting or now < state.next_scout:
        return
    late = overdue(state, hosts.place) if state.server.standing.took_writes else []
    if not late:
        return
    state.next_scout = now + max(LIMIT, AGAIN * max(seconds for _, seconds in late))
    state.scouting = True
    try:
        state.runtime.spawn(_scout(state), "scout")
    except RuntimeError:  # no thread available now: another tick tries again
        state.scouting = False


def _scout(state: Any) -> Flow[None]:
    try:
        yield from scout(state)
    finally:
        state.scouting = False


def scout(state: Any) -> Flow[None]:
    """If the place is frozen and another host accepts writes, move there."""
    hosts = state.server.hosts
    place = hosts.place
    if place is None or not (yield from _is_silent(state, place)):
        return
    others = [host for host in hosts.addresses if host != place]
    while hosts.place == place and not state.kernel.closed and overdue(state, place):
        for host in others:
            if (yield from _takes_writes(state, host)) and overdue(state, place):
                _move(state, host)
                return
        yield Wait(state.runtime.new_signal(), PACE)


def _is_silent(state: Any, place: Address) -> Flow[bool]:
    """Whether the server at *place* does not greet a new connection either.

    Checked on its own thread, which takes no place in the pool.
    """
    signal, found = state.runtime.new_signal(), [False]

    def ask() -> None:
        found[0] = is_silent(place, state.backend, LIMIT)
        state.runtime.call(lambda: state.runtime.wake(signal))

    try:
        start_thread(ask, name="unbroken-greeting")
    except NoThreadError:
        return False  # no thread to check it
    yield Wait(signal, 2 * LIMIT)
    return found[0]


def _takes_writes(state: Any, host: Address) -> Flow[bool]:
    """Whether *host* accepts our login and writes."""
    conn: Connection = None
    try:
        conn = yield from _open(state, host)
        until = state.clock() + LIMIT
        role = yield from state.read_answer(conn, Question.ROLE, None, until)
    except Exception as exc:
        log.debug(
            "no writer",
            f"{state.name}: no server that takes writes at {address(*host)}: {type(exc).__name__}",
            pool=state.name,
            server=address(*host),
        )
        return False
    finally:
        if conn is not None:
            state.driver.close(conn)
    return role is Role.PRIMARY


def _open(state: Any, host: Address) -> Flow[Connection]:
    """A connection to *host* that is not part of the pool."""
    given: dict[str, Any] = {}
    for name in ("user", "password"):
        function = getattr(state.secrets, name)
        if function is not None:
            value = yield Consult(name, function, state.runtime.dialing(LIMIT))
            given[name] = checked(name, value)
    return (yield Connect(LIMIT, state.runtime.dialing(LIMIT), Login(*host, **given)))


def _move(state: Any, host: Address) -> None:
    with state.lock, state.server.lock:
        state.server.hosts.take(host, state.clock(), takes_writes=True)
    follow(state)
