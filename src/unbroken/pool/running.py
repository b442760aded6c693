"""Run a unit of work on this thread."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from unbroken.ledger.scope import enter, leave
from unbroken.ledger.unit import Unit
from unbroken.pool.lease import getframe
from unbroken.pool.outsiders import watching
from unbroken.pool.replay import replay
from unbroken.pool.steps import run
from unbroken.pool.threads import Sleeper, inquire

T = TypeVar("T")


def tell_nobody(_why: str) -> None:
    """Ignore a replay, for a runner that does not count replays."""


def run_unit(
    work: Callable[[], T],
    deadline: float | None,
    max_replays: int,
    on_replay: Callable[[str], None] = tell_nobody,
    subject: Any = None,
) -> T:
    """Run *work* as a unit of work on this thread, replayed where that is provably safe.

    A nested unit is just run, within its time. *subject* is its function or request, for messages.
    """
    unit, token = Unit(), None
    unit.subject = subject
    try:
        try:
            token = enter(unit, id(getframe()))
            if not token.outermost:
                with token.unit.within(monotonic(), deadline):
                    return work()
            unit.until = math.inf if deadline is None else monotonic() + deadline
            do = Sleeper()
            result: T = run(
                replay(
                    unit,
                    watching(unit, work),
                    monotonic,
                    max_replays,
                    do.new_signal,
                    on_replay,
                    inquire,
                ),
                do.do,
            )
            return result
        finally:
            if token is not None:
                leave(token)
    finally:  # again: an exception from a signal may have struck while it was left
        if token is not None:
            leave(token)
