"""Logging: one logger for each part, named fields, and a limit for repeated lines.

``docs/logging.md`` has the rule for levels and the list of fields.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, TypeAlias, TypedDict, Unpack

from unbroken.logs.allowance import Allowance

#: The parts, and the subjects that each one logs. The logger of a part is ``unbroken.<part>``.
PARTS = {
    "pool": "connections: opened, closed, refused; learned idle limits; workers",
    "outage": "servers that cannot serve: the beginning, each minute, the end",
    "cluster": "where connections lead: hosts, roles, names that move, poolers",
    "replay": "work that was run again after a loss, or was not, and why",
    "leak": "connections that were held for too long, forgotten or left behind",
    "fork": "pools in forked child processes",
    "web": "requests: answers that replaced an error, sessions at their end",
    "driver": "problems with a driver, an engine or a client",
    "adoption": "functions that became units of work by their name",
    "net": "the watcher of sockets and timers",
}


class Fields(TypedDict, total=False):
    """The fields of a record. Each is an attribute of the record, named ``unbroken_`` and the
    field's name. Fields that are None are left out.
    """

    pool: str | None  #: the pool's name
    server: str | None  #: the server, or the host of a cluster
    session: str | None  #: the server's number for the connection
    cause: str | None  #: why a connection ended, or the kind of an outage
    age: float | None  #: seconds since the connection was opened, or since the outage began
    idle: float | None  #: seconds for which the connection had been idle
    uses: int | None  #: how often the connection was used
    held: float | None  #: seconds since the connection was taken
    place: str | None  #: the line that took the connection
    function: str | None  #: the function of the unit of work
    request: str | None  #: the request's method and path
    fate: str | None  #: the ledger's knowledge of the writes
    status: int | None  #: the status of an answer
    attempts: int | None  #: how many attempts there were
    callers: int | None  #: how many callers were turned away
    seconds: float | None  #: how long it took


#: Further attributes of a record, besides :class:`Fields`.
ALWAYS = {
    "event": "the event, in words that stay the same",
    "code": "the code at the end of the message, if it has one",
    "count": "how many lines this one stands for, if more than one",
}

#: Calls a function at a time of the monotonic clock. Returns None if it cannot.
Timekeeper: TypeAlias = Callable[[float, Callable[[], None]], object]

_allowance = Allowance()
_lock = threading.RLock()
_timekeeper: Timekeeper | None = None
_wakes = -math.inf  # the time of the next call of _say_rest
_CODE = re.compile(r"\[(UB\d+)\]$")


class Part:
    """One part's logger.

    ``event`` names the event, in words that stay the same; ``text`` is the whole message. Lines
    with the same event, pool, cause and ``about`` share one limit. ``once``: the line is logged
    once in a process, for each ``about``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.logger = logging.getLogger(f"unbroken.{name}")

    def wants(self, level: int) -> bool:
        """Return whether a line of *level* is logged anywhere."""
        return self.logger.isEnabledFor(level)

    def debug(self, event: str, text: str, **fields: Unpack[Fields]) -> None:
        """Log one step. It has no limit: only readers who turned DEBUG on get it."""
        if self.logger.isEnabledFor(logging.DEBUG):
            _log(self, logging.DEBUG, event, text, fields, stacklevel=3)

    def info(
        self,
        event: str,
        text: str,
        *,
        about: Hashable = None,
        once: bool = False,
        **fields: Unpack[Fields],
    ) -> None:
        """Log an event that no user noticed."""
        self._say(logging.INFO, event, text, about, once, fields)

    def warning(
        self,
        event: str,
        text: str,
        *,
        about: Hashable = None,
        once: bool = False,
        **fields: Unpack[Fields],
    ) -> None:
        """Log an event that a user may have noticed, or that needs a change."""
        self._say(logging.WARNING, event, text, about, once, fields)

    def error(
        self, event: str, text: str, *, about: Hashable = None, **fields: Unpack[Fields]
    ) -> None:
        """Log a failure that does not recover by itself."""
        self._say(logging.ERROR, event, text, about, False, fields)

    def exception(
        self, event: str, text: str, *, about: Hashable = None, **fields: Unpack[Fields]
    ) -> None:
        """Log the exception that is being handled, with its traceback."""
        self._say(logging.ERROR, event, text, about, False, fields, sys.exc_info())

    def _say(
        self,
        level: int,
        event: str,
        text: str,
        about: Hashable,
        once: bool,
        fields: Fields,
        exc_info: Any = None,
    ) -> None:
        if not self.logger.isEnabledFor(level):
            return
        line = (self, level, event, text, fields)
        kind = f"{self.name}: {event}"
        key = (kind, level, fields.get("pool"), fields.get("cause"), about)
        now = monotonic()
        with _lock:
            is_due = now >= _allowance.due
            may = _allowance.once(key) if once else _allowance.may(key, line, now)
            due = _allowance.due
        if is_due:
            _say_rest()
        if may:
            _log(*line, exc_info=exc_info)
        _wait_for(due)


def _log(
    part: Part,
    level: int,
    event: str,
    text: str,
    fields: Fields,
    *,
    exc_info: Any = None,
    count: int = 0,
    stacklevel: int = 4,
) -> None:
    extra: dict[str, Any] = {
        f"unbroken_{name}": value for name, value in fields.items() if value is not None
    }
    extra["unbroken_event"] = event
    code = _CODE.search(text)
    if code is not None:
        extra["unbroken_code"] = code[1]
    if count:
        extra["unbroken_count"] = count
    part.logger.log(level, text, exc_info=exc_info, extra=extra, stacklevel=stacklevel)


def _wait_for(due: float) -> None:
    """Log the number of suppressed lines at *due*, the end of their window. Without a timekeeper,
    the next line of any kind does that.
    """
    global _wakes
    with _lock:
        if due == math.inf or monotonic() <= _wakes:
            return
        _wakes = due
    if _timekeeper is None or _timekeeper(due, _say_rest_when_due) is None:
        _wakes = -math.inf


def _say_rest_when_due() -> None:
    global _wakes
    _wakes = -math.inf
    _say_rest()
    _wait_for(_allowance.due)


def _say_rest() -> None:
    """Log, for each window that is over, how many lines were suppressed in it."""
    with _lock:
        found = _allowance.rest(monotonic())
    for each in found:
        part, level, event, text, fields = each.last
        lines = "1 more line" if each.count == 1 else f"{each.count:,} more lines"
        text = f"{lines} of this kind within {each.seconds:.0f} s, the last: {text}"
        _log(part, level, event, text, fields, count=each.count)


def keep_time_by(timekeeper: Timekeeper) -> None:
    """Use *timekeeper* to run a function when a window is over."""
    global _timekeeper
    _timekeeper = timekeeper


def forget() -> None:
    """Forget all earlier lines, so that each can be logged again. For tests."""
    global _allowance, _wakes
    with _lock:
        _allowance, _wakes = Allowance(), -math.inf


def _after_fork_in_child() -> None:
    global _lock, _wakes
    _lock, _wakes = threading.RLock(), -math.inf
    _allowance.forget_windows()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
