"""Log lines about a server (it is down, it is still down, it is back), and about a fork."""

from __future__ import annotations

import logging
import os
from typing import Any, TypedDict

from unbroken.abc import Fault, address
from unbroken.backends.system import one_line
from unbroken.brain.entry import Entry
from unbroken.logs import Part
from unbroken.messages.pool import RESET_RAISES
from unbroken.messages.server import OUTAGE, OUTAGE_ENDED
from unbroken.pool.rejections import verdict
from unbroken.pool.wording import condition, connection, counted

log = Part("outage")
fork_log = Part("fork")
pool_log = Part("pool")


class _Place(TypedDict):
    """The place of an event: fields of a record, as in :class:`unbroken.logs.Fields`."""

    pool: str
    server: str


def opened(state: Any, entry: Entry, took: float | None = None) -> None:
    """A connection was opened, in *took* seconds."""
    fields: dict[str, Any] = {"pool": state.name, "session": entry.session}
    if took is not None:
        fields["seconds"] = took
    if pool_log.wants(logging.DEBUG):
        server = state.driver.target.server if entry.address is None else address(*entry.address)
        within = "" if took is None else f" in {took:.3f} s"
        pool_log.debug(
            "opened",
            f"{state.name}: {connection(entry.session)} to {server} opened{within}",
            pool=state.name,
            server=server,
            session=entry.session,
            seconds=took,
        )
    state.emit("opened", fields)


def began(state: Any, fault: Fault) -> None:
    """The server is down: an attempt to connect failed."""
    server = state.driver.target.server
    with state.server.lock:
        state.server.toll.begin(state.clock())
    log.warning(
        "outage began",
        OUTAGE(f"{state.name}: {server} {condition(fault)}: {fault.text}"),
        about=server,
        cause=fault.kind.value,
        **_of(state),
    )
    state.emit("outage began", {"pool": state.name, "kind": fault.kind.value, "why": fault.text})


def cannot_serve(state: Any, fault: Fault, *, is_again: bool) -> None:
    """The server cannot serve: a connection in use reported it. *is_again*: the outage that seemed
    to be over continues.
    """
    server, why = state.driver.target.server, one_line(fault.text)
    if not is_again:
        with state.server.lock:
            state.server.toll.begin(state.clock(), attempts=0)
    say = log.info if is_again else log.warning
    say(
        "outage began",
        OUTAGE(f"{state.name}: {server} cannot serve: {why}"),
        about=server,
        cause=fault.kind.value,
        **_of(state),
    )
    state.emit("outage began", {"pool": state.name, "kind": fault.kind.value, "why": why})


def goes_on(state: Any) -> None:
    """Another attempt has failed: log that once a minute."""
    now = state.clock()
    with state.server.lock:
        outage, toll = state.server.outage, state.server.toll
        toll.attempts += 1
        if not outage.active or not toll.is_due(now):
            return
        age, figures, attempts, callers = outage.age(now), toll.words(), toll.attempts, toll.callers
    server = state.driver.target.server
    log.warning(
        "outage goes on",
        OUTAGE(f"{state.name}: {state.describe_outage(now)} ({figures})"),
        about=server,
        **_of(state),
        age=age,
        attempts=attempts,
        callers=callers,
    )


def ended(state: Any, seconds: float) -> None:
    """The server is back after *seconds*."""
    server = state.driver.target.server
    with state.server.lock:
        toll = state.server.toll
        figures, attempts, callers = toll.words(), toll.attempts, toll.callers
    log.warning(
        "outage ended",
        OUTAGE_ENDED(f"{state.name}: {server} is back after {seconds:.2f} s ({figures})"),
        about=server,
        **_of(state),
        seconds=seconds,
        attempts=attempts,
        callers=callers,
    )
    state.emit("outage ended", {"pool": state.name, "seconds": seconds})


def rejected(state: Any, exc: Exception, fault: Fault) -> None:
    """The server rejected the login, or the client's own settings do not work: waiting does not
    help.
    """
    what = f"{state.name}: cannot connect to {state.driver.target.label}"
    told = verdict(exc, fault, what, is_opened_outside=state.is_opened_outside)
    _log_rejection(state, told.message, fault)


def _log_rejection(state: Any, message: str, fault: Fault) -> None:
    log.error("connect rejected", message, cause=fault.kind.value, **_of(state))


def _of(state: Any) -> _Place:
    """The fields of every line about the server of *state*."""
    return {"pool": state.name, "server": state.driver.target.server}


def reset_raised(state: Any, exc: Exception) -> None:
    """The application's ``reset=`` raised *exc*, and the connection was not lost."""
    if state.classify(exc).is_lost:
        return
    shown = getattr(state.driver, "shown", one_line)
    pool_log.warning(
        "reset failed",
        RESET_RAISES(
            f"{state.name}: reset= raised {shown(f'{type(exc).__name__}: {exc}')}; the connection"
            " is closed"
        ),
        pool=state.name,
    )


def began_anew(old: Any) -> None:
    """A forked child uses a pool for the first time; *old* is the inherited state."""
    count = len(old.kernel.entries)
    text = f"{old.name}: this process ({os.getpid()}) was forked from process {old.pid}"
    if count:
        left = counted(count, "inherited connection")
        text = f"{text}; it leaves {left} to that process, and opens its own"
        fork_log.info("forked", text, pool=old.name)
    else:
        fork_log.debug("forked", f"{text}; it opens its own connections", pool=old.name)
