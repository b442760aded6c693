"""Run a unit of work, and run it again from the start on another connection if it is provable that
nothing was committed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import uniform
from typing import Any, TypeAlias

from unbroken.abc import CANNOT_SERVE, Fault, FaultKind
from unbroken.errors import (
    CommitUnknownError,
    ConnectRejectedError,
    DeadlineExceeded,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    UnbrokenError,
    for_driver,
)
from unbroken.ledger.questions import Question
from unbroken.ledger.scope import testify
from unbroken.ledger.subjects import in_words, subjects
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Action, Verdict
from unbroken.logs import Part
from unbroken.messages.data import COMMIT_UNKNOWN
from unbroken.messages.units import GAVE_UP, NOT_REPLAYED
from unbroken.pool.budget import may_replay, succeeded
from unbroken.pool.finishing import LOOK_FIRST
from unbroken.pool.steps import Attempt, Flow, Wait
from unbroken.pool.undone import not_replayed, replayed
from unbroken.pool.wording import counted

log = Part("replay")

#: Seconds to pause after a deadlock or a serialization failure, doubled each time up to the
#: maximum, so that the same two transactions do not collide again.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5


#: Replays after a server reported that it cannot serve do not count against ``max_replays``: each
#: waits for the end of that outage, and the outage itself limits the wait. This is their maximum
#: nevertheless.
MOST_WAITS = 200

#: Final errors of a pool, independent of earlier failures: the caller's time is up, or no
#: connection is available.
_FINAL = (DeadlineExceeded, PoolTimeoutError, OutageError, ConnectRejectedError, PoolClosedError)


#: Returns a server's answer to a question (None: it gives none), as a unit's work returns its
#: result: directly, or awaited.
Ask: TypeAlias = Callable[[Any, Question, float], Any]


def replay(
    unit: Unit,
    work: Callable[[], Any],
    clock: Callable[[], float],
    max_replays: int,
    new_signal: Callable[[], Any],
    on_replay: Callable[[str], None],
    ask: Ask,
) -> Flow[Any]:
    """Attempt *work* until it succeeds or fails permanently, until it was replayed *max_replays*
    times, until its ``until`` has passed, or until the retry budget is spent.

    *ask* is called with a pool's state, a question and a time limit. Raised errors carry the unit's
    fate.
    """
    replays = waits = 0
    try:
        while True:
            unit.begin_attempt()
            try:
                result = yield Attempt(work)
                succeeded(unit)
                return result
            except Exception as exc:
                fault = unit.fault_of(exc)
                if fault is None or isinstance(exc, _FINAL):
                    raise
                # an outage itself limits how long callers wait for its end
                waited = fault.kind in CANNOT_SERVE
                is_last = clock() >= unit.until or (
                    waits >= MOST_WAITS if waited else replays >= max_replays
                )
                verdict = unit.verdict(fault)
                if verdict.action is Action.REPLAY and not is_last:
                    if not may_replay(unit, exc, fault):
                        raise
                    verdict = yield from _verdict(unit, fault, ask)
                if verdict.action is Action.COMMIT_UNKNOWN and not isinstance(
                    exc, CommitUnknownError
                ):
                    unknown = _unknown(exc, fault, verdict)
                    not_replayed(
                        unit,
                        unknown,
                        fault,
                        NOT_REPLAYED,
                        f"unbroken did not replay {_this(unit)}: {verdict.reason}",
                    )
                    raise unknown from exc
                if verdict.action is not Action.REPLAY:
                    if fault.kind in _TOLD:
                        not_replayed(
                            unit,
                            exc,
                            fault,
                            NOT_REPLAYED,
                            f"unbroken did not replay {_this(unit)}: {verdict.reason}",
                        )
                    raise
                if is_last:
                    number = counted(replays + waits, "replay")
                    limit = (
                        "its time is up"
                        if clock() >= unit.until
                        else f"max_replays is {max_replays}"
                        if not waited
                        else "the server cannot serve"
                    )
                    not_replayed(
                        unit,
                        exc,
                        fault,
                        GAVE_UP,
                        f"unbroken gave up after {number} of {_this(unit)}, because {limit}:"
                        f" {fault.text}",
                    )
                    raise
                replayed(unit, replays + waits + 1, fault)
                on_replay(fault.kind.value)
                retry = fault.kind is FaultKind.RETRY
            if retry:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**replays) * uniform(0.5, 1.5)
                yield Wait(new_signal(), max(0.0, min(pause, unit.until - clock())))
            waits += waited
            replays += not waited
    except BaseException as exc:
        _tell_fate(unit, exc)
        raise


def _this(unit: Unit) -> str:
    who = in_words(*subjects(unit))
    return f"this unit of work ({who})" if who else "this unit of work"


def _verdict(unit: Unit, fault: Fault, ask: Ask) -> Flow[Verdict]:
    """The unit's verdict, after the servers were asked the unit's questions.

    Raises the errors of an acquire.
    """
    verdict = unit.verdict(fault)
    while verdict.asks:
        for state, question in verdict.asks:
            try:
                heard = yield Attempt(partial(ask, state, question, unit.until))
            except _FINAL:
                raise
            except Exception as exc:
                log.info(
                    "question not answered",
                    f"the server did not answer the question {question.value!r}: {exc}",
                )
                heard = None
            unit.hear(state, question, heard)
        verdict = unit.verdict(fault)
    return verdict


def _unknown(exc: Exception, fault: Fault, verdict: Verdict) -> CommitUnknownError:
    unknown = for_driver(
        CommitUnknownError,
        type(exc),
        COMMIT_UNKNOWN(f"{verdict.reason}: {fault.text}; {LOOK_FIRST}"),
    )
    # Code that catches errors of this class may rely on attributes that its own constructor sets.
    theirs = {name: value for name, value in vars(exc).items() if name != "__notes__"}
    unknown.__dict__.update(theirs)
    testify(unknown)
    return unknown


#: Faults that a caller may expect another attempt to cure.
_TOLD = (
    FaultKind.LOST,
    *CANNOT_SERVE,
    FaultKind.RETRY,
    FaultKind.READ_ONLY,
    FaultKind.TOO_LARGE,
)


def _tell_fate(unit: Unit, exc: BaseException) -> None:
    """Set the fate of the unit's writes on our errors."""
    seen: set[int] = set()
    link: BaseException | None = exc
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, UnbrokenError):
            link.fate = unit.fate()
        link = link.__cause__ or link.__context__
