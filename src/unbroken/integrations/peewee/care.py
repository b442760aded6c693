"""What a database does about connections that it has: look after those held for long, listen to errors, join units of work."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import peewee

from unbroken.abc import Cause, FaultKind
from unbroken.core.unit import current
from unbroken.errors import CommitUnknownError, ConnectionLostError, DeadlineExceeded, UnbrokenError
from unbroken.flows import finish
from unbroken.integrations.peewee.again import mark
from unbroken.integrations.peewee.errors import origin, translated
from unbroken.integrations.peewee.slot import Slot
from unbroken.net.liveness import Liveness, judge
from unbroken.sync import Pool

log = logging.getLogger("unbroken")


def is_lost(slot: Slot) -> bool:
    """Whether the connection in *slot* is known to be lost."""
    entry = slot.entry
    return entry is not None and (entry.cause is not None or judge(entry.poll(0)) is Liveness.DEAD)


def look_after(database: Any, slot: Slot) -> None:
    """Before a statement on a connection that is kept: replace one that has ended, if nothing is lost by that.

    Only its session's state is: what was SET, temporary tables, locks. Whoever took the connection itself is left alone.
    """
    entry, home = slot.entry, slot.home
    if entry is None or not database.reconnect or slot.raw or slot.begun or not slot.clean:
        return
    if entry.cause is None and (not home.glance() or judge(entry.poll(0)) is not Liveness.DEAD) and _answers(home, slot):
        return
    cause, words = entry.cause, entry.words
    if cause is None:
        cause, words = home.explain(entry, in_use=True)
        entry.condemn(cause, words)
    database._give_back(slot)
    log.warning("%s: the connection held since %s ended (%s); another one takes its place", home.name, entry.place, cause.value)
    database._take(slot)


def _answers(home: Any, slot: Slot) -> bool:
    """After long silence one ping tells whether a connection was dropped silently, as the pool does before it lends one."""
    now = monotonic()
    if now - slot.last_used < home.fresh_for:
        return True
    slot.last_used = now
    try:
        home.driver.ping(slot.conn, home.settings.ping_timeout)
    except Exception as exc:
        fault = home.classify(exc)
        slot.entry.condemn(Cause.SILENT_DROP if fault.is_lost else Cause.LOST, fault.text)  # type: ignore[union-attr] # there is one
        return False
    return True


def join(slot: Slot) -> None:
    """A statement is about to run within a unit of work: the unit must hear of it, also where the connection is older."""
    unit = current()
    if unit is None or slot.unit is unit or slot.entry is None:
        return
    if slot.begun or not slot.clean:
        unit.doubt("a transaction that was begun before the unit of work is used in it")
    else:
        slot.home.join(unit, slot.entry, slot.conn)
    slot.unit = unit


def failed(database: Any, slot: Slot, exc: BaseException, sql: Any, *, stays: bool = False) -> BaseException:
    """A statement raised *exc*: tell the pool and the unit of work what it means. Gives the error that the caller should see.

    A lost connection that no transaction needs goes back at once, unless it *stays* for a ROLLBACK to come.
    """
    entry, home = slot.entry, slot.home
    if entry is None:
        return exc
    fault = finish.heard(home, entry, slot.conn, origin(exc), current())
    if fault.kind is FaultKind.OTHER:
        slot.clean = home.driver.is_in_transaction(slot.conn) is False
        slot.open = not slot.clean and slot.open
    if entry.cause is Cause.CANCELLED:
        home.cut(entry)  # the rest of an answer is still to come: nobody must wait for it
    told = shown(home, entry, exc)
    if fault.is_lost and isinstance(exc, Exception) and entry.cause is not Cause.DEADLINE:
        mark(exc, sql)
    if entry.cause is not None and not stays and not (slot.begun or slot.transactions):
        database._give_back(slot)
    return told


def shown(home: Any, entry: Any, exc: BaseException) -> BaseException:
    """The error that the caller should see for *exc*."""
    if isinstance(exc, CommitUnknownError | ConnectionLostError):
        return translated(exc)
    if entry.cause is Cause.DEADLINE and isinstance(exc, peewee.PeeweeException) and not isinstance(exc, UnbrokenError):
        told = finish.translated(home, entry, exc, home.settings.deadline)
        return translated(told) if isinstance(told, DeadlineExceeded) else exc
    return exc


def discard(pool: Pool, conn: Any) -> None:
    """See to it that *conn*, which *pool* has lent, is closed when it comes back."""
    entry = pool._state.lent.get(id(conn))
    if entry is not None:
        entry.condemn(Cause.DISCARDED)
