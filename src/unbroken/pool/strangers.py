"""Detect something other than a database of the pool's kind at its address: a web server, another
kind of database, a port that only accepts TLS.

Drivers report it as a lost connection, or wait. So when an attempt ends like that or is silent, a
pool that has never connected asks the port itself, on a separate socket. Only an answer decides:
silence and a hang-up prove nothing, because a starting server does the same behind a proxy. A pool
that has connected before waits: the right server was there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from unbroken.abc import Address, Fault, FaultKind, address, is_path
from unbroken.backends.commits import is_of_the_server
from unbroken.backends.greetings import NAMES, is_of, questions, told
from unbroken.brain.outage import SILENT
from unbroken.brain.tries import Try
from unbroken.net.greeting import first_words
from unbroken.net.signals import start_thread
from unbroken.pool.steps import Flow, Wait

#: Seconds for which an answer is trusted, and between two checks if the port hangs up …
AGAIN = 1.0
#: … and if it is silent.
SELDOM = 5.0
#: Seconds for an answer.
LIMIT = 1.5
#: Kinds of fault that a stranger may cause.
_DOUBTFUL = (FaultKind.LOST, FaultKind.NOT_READY, FaultKind.OTHER, FaultKind.REJECTED)
#: MySQL's codes for a connection that was lost during its handshake.
_IN_HANDSHAKE = (2012, 2013)
#: Exceptions of libraries that cannot parse the data that they read.
_GARBLED = ("IndexError", "ValueError", "UnicodeDecodeError", "TypeError", "AttributeError")


class StrangerError(Exception):
    """The address does not belong to a server of this kind. *fault* describes its answer."""

    is_strangers = True

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def refuse_stranger(state: Any) -> None:
    """Raise StrangerError if something else answered a moment ago."""
    fault, asked_at = state.stranger
    if fault is not None and state.clock() - asked_at < AGAIN:
        raise StrangerError(fault)


def may_be_stranger(state: Any, fault: Fault | None) -> bool:
    """Whether to ask the port after an attempt that ended with *fault*. None: the attempt is
    silent.
    """
    if state.has_served or state.is_opened_outside or _place(state) is None:
        return False
    if state.clock() - state.stranger[1] < (SELDOM if fault is None else AGAIN):
        return False
    return fault is None or _is_doubtful(fault)


def _is_doubtful(fault: Fault) -> bool:
    if is_of_the_server(fault) or "certificate" in fault.text:
        return False
    if fault.kind is FaultKind.MISCONFIGURED:
        return fault.text.startswith(_GARBLED)
    if fault.kind is FaultKind.UNREACHABLE:  # or a library could not parse a greeting
        return fault.code in _IN_HANDSHAKE
    return fault.kind in _DOUBTFUL


def _place(state: Any) -> Address | None:
    """The pool's only address, if it is a TCP address."""
    hosts = state.driver.target.hosts
    if len(hosts) != 1 or is_path(hosts[0][0]) or state.backend not in NAMES:
        return None
    place: Address = hosts[0]
    return place


def ask_stranger(state: Any) -> Flow[StrangerError | None]:
    """Ask the port, on a separate thread. Return the error to raise if something else answers."""
    place = _place(state)
    assert place is not None
    state.stranger = (None, state.clock())
    signal, found = state.runtime.new_signal(), [b""]

    def ask() -> None:
        found[0] = first_words(place, state.backend, questions(state.backend))
        state.runtime.call(lambda: state.runtime.wake(signal))

    try:
        start_thread(ask, name="unbroken-greeting")
    except RuntimeError:  # no thread available now
        return None
    yield Wait(signal, LIMIT)
    said = found[0]
    if not said or is_of(state.backend, said) or state.has_served:
        return None
    fault = Fault(FaultKind.REJECTED, text=f"{address(*place)} {told(state.backend, said)}")
    state.stranger = (fault, state.clock())
    return StrangerError(fault)


def ask_if_silent(
    state: Any, tries: Sequence[Try], now: float, reject: Callable[[Any, Exception, Fault], None]
) -> None:
    """If one of the attempts *tries* is silent, have the port asked, and have *reject* fail the
    callers if something else answers. Called without locks.
    """
    if any(now - each.started >= SILENT for each in tries) and may_be_stranger(state, None):
        with suppress(RuntimeError):  # no thread available now: another check tries again
            state.runtime.spawn(_settle(state, reject), "stranger")


def _settle(state: Any, reject: Callable[[Any, Exception, Fault], None]) -> Flow[None]:
    found = yield from ask_stranger(state)
    if found is None:
        return
    for attempt, dialing in list(state.tries.items()):
        attempt.is_ended = True
        state.runtime.call(dialing.end)
    reject(state, found, found.fault)
