"""Work that lost its connection and was not run again: the note on its error and the log line give
the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unbroken.abc import CANNOT_SERVE, Fault
from unbroken.brain.entry import Entry
from unbroken.ledger.subjects import Request, in_words, subjects
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Verdict
from unbroken.logs import Part
from unbroken.messages import Message
from unbroken.messages.units import NOT_RUN_AGAIN
from unbroken.pool.wording import connection

log = Part("replay")

#: The attribute of an error whose work is lost: see :func:`mark`.
_MARK = "unbroken_lost_work"

#: Advice for getting work outside of any unit run again.
REMEDY = "call it with pool.run, or mark its function with @unbroken.replayable"


@dataclass(frozen=True, slots=True)
class Ending:
    """The record of work whose connection ended, for the log when the connection is closed."""

    function: str | None
    request: str | None
    #: Why it was not run again, as its error says. None: other code runs it again, or reports it.
    note: str | None
    #: Whether the ledger allows another attempt, which can succeed.
    is_curable: bool = False

    @property
    def who(self) -> str:
        """The function and the request."""
        return in_words(self.function, self.request)


def ending_of(unit: Unit | None, entry: Entry, conn_id: int, fault: Fault, remedy: str) -> Ending:
    """The record of the work on *entry*, which was lost with *fault*. *unit* records the statements
    there.
    """
    function, request = subjects(unit)
    if unit is not None and not unit.observing:
        return Ending(function, request, None)
    who = in_words(function, request)
    verdict = None if unit is None else unit.verdict(fault, conn_id=conn_id)
    reason, then = _why(unit, entry, verdict, remedy)
    note = f"unbroken did not run {who or 'this work'} again: {reason}"
    if then:
        note = f"{note}. If it may run twice, {then}"
    is_curable = verdict is not None and verdict.action is Action.REPLAY
    return Ending(function, request, NOT_RUN_AGAIN(note), is_curable)


def _why(unit: Unit | None, entry: Entry, verdict: Verdict | None, remedy: str) -> tuple[str, str]:
    """Why it is not run again, by the ledger's verdict if there is one, and the advice."""
    if verdict is not None:
        if verdict.action is not Action.REPLAY:
            return verdict.reason, ""
        request = watched(unit)
        if request is not None:
            reason, then = request.why_not()
            return f"{reason}; {verdict.reason}", then
    taken = entry.place
    is_known = taken is not None and not taken.file.startswith("<")
    place = f" (its connection was taken at {taken})" if is_known else ""
    return f"it is not in a unit of work{place}", remedy


def watched(unit: Any) -> Request | None:
    """The request that *unit*, or one above it, watches."""
    while unit is not None:
        if isinstance(unit.subject, Request):
            return unit.subject
        unit = unit.above
    return None


def tell_on(exc: BaseException, ending: Ending | None) -> None:
    """Add to *exc* why its work was not run again, once."""
    if ending is None or ending.note is None or ending.note in getattr(exc, "__notes__", ()):
        return
    exc.add_note(NOT_RUN_AGAIN(ending.note))
    mark(exc, is_curable=ending.is_curable)


def mark(exc: BaseException, *, is_curable: bool) -> None:
    """Record on *exc* that its work lost its connection and is not run again. *is_curable*: another
    attempt is safe, and can succeed. The web bodies' answer depends on it.
    """
    exc.__dict__[_MARK] = is_curable


def mark_of(exc: BaseException) -> bool | None:
    """Return the value that :func:`mark` recorded on *exc*. None: it is not marked."""
    is_curable: bool | None = exc.__dict__.get(_MARK)
    return is_curable


def concerns(fault: Fault) -> bool:
    """Whether *fault* ended the connection, or the server, during a caller's work."""
    return fault.is_lost or fault.kind in CANNOT_SERVE


def not_replayed(unit: Unit, exc: BaseException, fault: Fault, message: Message, text: str) -> None:
    """Add to *exc*, which meant *fault*, and to the log, that *unit* was not run again. *text* is
    the reason.
    """
    exc.add_note(message(text))
    if concerns(fault):
        mark(exc, is_curable=unit.verdict(fault).action is Action.REPLAY)
    function, request = subjects(unit)
    origin, entry = unit.casualty()
    name = getattr(origin, "name", None)
    log.warning(
        "not replayed",
        message(f"{name}: {text}" if name else text),
        about=function,
        function=function,
        request=request,
        fate=unit.fate().value,
        pool=name,
        cause=None if entry is None or entry.cause is None else entry.cause.value,
    )


def replayed(unit: Unit, number: int, fault: Fault) -> None:
    """Log that *unit* is run again, for the time *number*."""
    function, request = subjects(unit)
    origin, entry = unit.casualty()
    who = in_words(function, request) or "a unit of work"
    name = getattr(origin, "name", None)
    if origin is None or entry is None:
        log.info(
            "replayed",
            f"{who} is run again (replay {number}): {fault.text}",
            function=function,
            request=request,
            about=function,
            attempts=number,
            cause=fault.kind.value,
        )
        return
    cause = (entry.cause or fault.cause or fault.kind).value
    age = origin.clock() - entry.born
    idle = min(age, max(0.0, entry.taken_at - entry.last_used))  # last_used is a tick's
    log.info(
        "replayed",
        f"{name}: {who} is run again (replay {number}): {fault.text};"
        f" {connection(entry.session)} ({cause}) was {age:.1f} s old and had been idle for"
        f" {idle:.1f} s",
        pool=name,
        cause=cause,
        session=entry.session,
        age=age,
        idle=idle,
        about=function,
        function=function,
        request=request,
        attempts=number,
    )
