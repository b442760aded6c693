"""Time limits for the pool's own driver calls. A call that takes longer is ended from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import Any

from unbroken.abc import BaseDriver, Cause, Connection
from unbroken.brain.entry import Entry
from unbroken.errors import PoolClosedError, for_driver
from unbroken.messages.data import NO_ANSWER
from unbroken.messages.processes import AT_THE_END
from unbroken.net.fork_guard import abort, identity
from unbroken.net.watcher import Watcher
from unbroken.pool.ending import not_sent
from unbroken.settings import Settings


def limits_of(settings: Settings) -> Mapping[str, float]:
    """Seconds by the name of a driver's method. "reset" stands for the user's own reset
    function.
    """
    own = dict.fromkeys(
        ("begin", "rollback", "restore", "drain", "reset", "reset_session"), settings.reset_timeout
    )
    asking = dict.fromkeys(
        ("ping", "take_answer", "idle_limit", "probe", "remember", "ask", "try_flight"),
        settings.ping_timeout,
    )
    # Sending a few bytes never blocks on a connection without an outstanding answer.
    return {**own, **asking, "commit": settings.commit_timeout, "send_end": math.inf}


#: Names for messages: the requests behind a driver's methods.
_REQUESTS = {
    "begin": "BEGIN",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
    "ping": "a ping",
    "ask": "a query of the pool",
    "take_answer": "the request for an earlier answer",
    "drain": "the request for the rest of a result",
    "restore": "the reset of its attributes",
    "reset_session": "the reset of its session",
    "remember": "the query for its session's settings",
    "idle_limit": "the query for the idle limit",
    "probe": "the test of the driver's reports",
    "try_flight": "the test of pipelining",
}


class Bound:
    """``with Bound(watcher, driver, conn, seconds, what):`` around one call. A connection that is
    still busy after *seconds* is shut down.

    The call then raises its driver's error for a lost connection, with a note that names the
    reason. It has no effect if the driver hides its descriptor. It can also enclose an ``await``.
    Raises PoolClosedError if no timer can run any more, because the interpreter is shutting down.
    """

    __slots__ = (
        "_entry", "_error", "_fd", "_seconds", "_timer", "_watcher", "_what", "_who", "fired",
    )  # fmt: skip

    def __init__(
        self,
        watcher: Watcher,
        driver: BaseDriver,
        conn: Connection,
        seconds: float,
        what: str,
        entry: Entry | None = None,
    ) -> None:
        self.fired = False  #: whether the time was up
        self._seconds, self._what, self._entry = seconds, _REQUESTS.get(what, what), entry
        self._watcher, self._error = watcher, driver.errors[0]
        self._timer: Any = None
        self._fd = entry.fd if entry is not None else driver.fileno(conn)
        self._who = entry.identity if entry is not None else None
        if self._who is None and self._fd is not None:
            self._who = identity(self._fd)

    def __enter__(self) -> Bound:
        stopped = self._watcher.stopped()
        if stopped is not None and stopped.is_ending:
            raise for_driver(
                PoolClosedError, self._error, AT_THE_END(not_sent(self._what, stopped))
            )
        if self._who is not None:
            self._timer = self._watcher.at(monotonic() + self._seconds, self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.fired and error is not None:
            error.add_note(
                NO_ANSWER(
                    f"unbroken ended this connection: no answer to {self._what} within"
                    f" {self._seconds} s"
                )
            )

    def _end(self) -> None:
        self.fired = True
        if self._entry is not None:
            # Before the pool detects its end, which would look like a close by the other side.
            silence = f"no answer to {self._what} within {self._seconds} s"
            self._entry.condemn(Cause.SILENT_DROP, silence)
        if self._fd is not None and self._who is not None:
            abort(self._fd, self._who)


def bounded(state: Any, what: str, entry: Entry) -> Bound:
    """``with bounded(state, "rollback", entry):`` around a framework's own call on a connection in
    use.
    """
    runtime = state.runtime
    return Bound(runtime.watcher, state.driver, None, runtime.limits[what], what, entry)


__all__ = ["Bound", "bounded", "limits_of"]
