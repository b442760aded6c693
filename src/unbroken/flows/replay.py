"""Running a unit of work: again from the start, on another connection, when it is provable that nothing was committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import uniform
from typing import Any

from unbroken.abc import FaultKind
from unbroken.core.unit import Action, Unit, testify
from unbroken.errors import (
    CommitUnknownError,
    ConnectRejectedError,
    DeadlineExceeded,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    for_driver,
)
from unbroken.flows.loan import LOOK_FIRST
from unbroken.flows.steps import Attempt, Flow, Wait

log = logging.getLogger("unbroken")

#: After a deadlock or a serialization failure: wait up to this long, twice as long each time, so that the two who
#: collided do not collide again.
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.5


#: A pool's last word, whatever broke before it: the caller's time is up, or there is no connection to be had.
_FINAL = (DeadlineExceeded, PoolTimeoutError, OutageError, ConnectRejectedError, PoolClosedError)


def replay(
    unit: Unit,
    work: Callable[[], Any],
    clock: Callable[[], float],
    max_replays: int,
    new_signal: Callable[[], Any],
    on_replay: Callable[[str], None],
) -> Flow[Any]:
    """Attempt *work* until it succeeds, fails for good, has been replayed *max_replays* times, or its
    ``until`` has passed."""
    replays = 0
    while True:
        unit.begin_attempt()
        try:
            return (yield Attempt(work))
        except Exception as exc:
            fault = unit.fault_of(exc)
            if fault is None or isinstance(exc, _FINAL):
                raise
            verdict = unit.verdict(fault)
            if verdict.action is Action.COMMIT_UNKNOWN and not isinstance(exc, CommitUnknownError):
                unknown = for_driver(CommitUnknownError, type(exc), f"{verdict.reason}: {fault.text}; {LOOK_FIRST}")
                testify(unknown)
                raise unknown from exc
            if verdict.action is not Action.REPLAY:
                if fault.kind in (FaultKind.LOST, FaultKind.WRONG_SERVER, FaultKind.RETRY):
                    exc.add_note(f"unbroken did not replay this unit of work: {verdict.reason}")
                raise
            if replays >= max_replays or clock() >= unit.until:
                exc.add_note(f"unbroken gave up after {replays} replays: {fault.text}")
                raise
            log.info("unit of work replayed (%d of at most %d): %s", replays + 1, max_replays, fault.text)
            on_replay(fault.kind.value)
            retry = fault.kind is FaultKind.RETRY
        if retry:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**replays) * uniform(0.5, 1.5)
            yield Wait(new_signal(), max(0.0, min(pause, unit.until - clock())))
        replays += 1
