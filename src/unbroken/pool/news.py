"""What the log is told of a server: that it is away, that it still is, that it is back; and of a
fork.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from unbroken.abc import Fault, FaultKind, address
from unbroken.backends.fault import shows_server
from unbroken.backends.system import one_line
from unbroken.brain.entry import Entry
from unbroken.logs import Part
from unbroken.messages import Message
from unbroken.messages.configuration import BAD_LOGIN, OPTION_TO_BLAME
from unbroken.messages.pool import RESET_RAISES
from unbroken.messages.server import (
    CONNECT_REJECTED,
    EXHAUSTED,
    OUTAGE,
    OUTAGE_ENDED,
    OWN_CONNECT,
    STRANGER,
)
from unbroken.pool.secrets import LoginError

log = Part("outage")
fork_log = Part("fork")
pool_log = Part("pool")


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
            f"{state.name}: connection {entry.session or ''} to {server} opened{within}",
            pool=state.name,
            server=server,
            session=entry.session,
            seconds=took,
        )
    state.emit("opened", fields)


def began(state: Any, fault: Fault) -> None:
    """The server is away, as a failed attempt to connect shows."""
    server = state.driver.target.server
    with state.server.lock:
        state.server.toll.begin(state.clock())
    log.warning(
        "outage began",
        OUTAGE(f"{state.name}: {server} is away: {fault.text}"),
        about=server,
        pool=state.name,
        server=server,
        cause=fault.kind.value,
    )
    state.emit("outage began", {"pool": state.name, "kind": fault.kind.value, "why": fault.text})


def cannot_serve(state: Any, fault: Fault, *, is_again: bool) -> None:
    """The server cannot serve, as a connection in use was told. *is_again*: the outage that seemed
    to be over goes on.
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
        pool=state.name,
        server=server,
        cause=fault.kind.value,
    )
    state.emit("outage began", {"pool": state.name, "kind": fault.kind.value, "why": why})


def goes_on(state: Any) -> None:
    """Another attempt has failed: once a minute, say so."""
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
        pool=state.name,
        server=server,
        age=age,
        attempts=attempts,
        callers=callers,
    )


def ended(state: Any, seconds: float) -> None:
    """The server is back after so many *seconds*."""
    server = state.driver.target.server
    with state.server.lock:
        toll = state.server.toll
        figures, attempts, callers = toll.words(), toll.attempts, toll.callers
    log.warning(
        "outage ended",
        OUTAGE_ENDED(f"{state.name}: {server} is back after {seconds:.2f} s ({figures})"),
        about=server,
        pool=state.name,
        server=server,
        seconds=seconds,
        attempts=attempts,
        callers=callers,
    )
    state.emit("outage ended", {"pool": state.name, "seconds": seconds})


def rejected(state: Any, message: Message, fault: Fault) -> None:
    """The server said no, or the client's own settings will not do: waiting does not help."""
    target = state.driver.target
    log.error(
        "connect rejected",
        message(f"{state.name}: cannot connect to {target.label}: {fault.text}"),
        pool=state.name,
        server=target.server,
        cause=fault.kind.value,
    )


def of_rejection(state: Any, exc: Exception, fault: Fault) -> Message:
    """The message that callers are told by, too."""
    if isinstance(exc, LoginError):
        return BAD_LOGIN
    if hasattr(exc, "is_strangers"):
        return STRANGER
    if fault.kind is FaultKind.EXHAUSTED:
        return EXHAUSTED
    if state.is_opened_outside:
        is_own = "connect= gave" in fault.text or not shows_server(fault)
        return OWN_CONNECT if is_own else CONNECT_REJECTED
    return OPTION_TO_BLAME if fault.kind is FaultKind.MISCONFIGURED else CONNECT_REJECTED


def reset_raised(state: Any, exc: Exception) -> None:
    """The application's ``reset=`` raised *exc*, which is no loss of its connection."""
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
    """A forked child uses a pool for the first time; *old* is what it inherited."""
    count = len(old.kernel.entries)
    text = f"{old.name}: this process ({os.getpid()}) was forked from {old.pid} and"
    if count:
        text = f"{text} leaves the {count} connections of that to it; it opens its own"
        fork_log.info("forked", text, pool=old.name)
    else:
        fork_log.debug("forked", f"{text} opens connections of its own", pool=old.name)
