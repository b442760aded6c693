"""The meaning of a client's operations for a unit of work (a web request,
``@unbroken.replayable``), and the effect of PyMongo's errors.

Each operation that writes is stored by itself, so a unit that has sent one is never run again.
PyMongo tries again by itself if that is safe. A write that the server acknowledged (w >= 1) is
stored. If the server reported that no writes were performed, or no connection was made for it,
nothing is stored. Anything else is unknown: an unacknowledged write, a write in a transaction, a
command of the application's own. A unit that has only read is run again, for example when a cursor
was lost between two of its batches, which PyMongo does not recover from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

from pymongo.errors import AutoReconnect, BulkWriteError, CursorNotFound, PyMongoError, WriteError

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.errors import OutageError, PoolTimeoutError
from unbroken.integrations.mongo.faults import fault_of, said
from unbroken.ledger import scope, unit

#: Commands that can only read, with any arguments. (An aggregation may store its results: $out,
#: $merge.)
READS = frozenset(
    "find count distinct getMore killCursors endSessions listCollections listDatabases listIndexes"
    " listSearchIndex ping hello buildInfo collStats dbStats serverStatus testOperation".split()
)


#: The write that PyMongo is sending. It reports to the unit itself when it is sent, and the
#: server's answer.
_followed: ContextVar[Write | None] = ContextVar("unbroken.mongo.write", default=None)


#: The last operation that was reported and is no followed write: its unit and number, or None.
_reported: ContextVar[tuple[unit.Unit, int] | None] = ContextVar(
    "unbroken.mongo.reported", default=None
)

_keys = count(1)


class Write:
    """One write of PyMongo's, with all its retries."""

    def __init__(self, unit: unit.Unit, operation: Any) -> None:
        self._unit, self._key = unit, next(_keys)
        self._name = str(getattr(operation, "value", operation))

    def sent(self) -> None:
        """Note that there is a connection, and the write is about to be sent on it."""
        self._unit.sends(
            self._key, f"MongoDB's {self._name!r} was sent, and may have stored something"
        )

    def returned(self, result: Any, *, is_acknowledged: bool) -> None:
        """Note that PyMongo returned *result*. If the server acknowledged the write, it is
        stored.
        """
        if is_acknowledged or (isinstance(result, dict) and "n" in result):
            self._unit.answered(self._key, stored=True)

    def failed(self, error: BaseException, *, is_single: bool) -> None:
        """Note that PyMongo raised *error*.

        The server may have reported that nothing is stored. *is_single*: it was one document's.
        """
        error.__dict__["unbroken_followed"] = True  # the doubt that it leaves is in the ledger
        if isinstance(error, BulkWriteError):
            details = error.details or {}
            if not details.get("writeConcernErrors"):
                counts = (
                    details.get(name)
                    for name in ("nInserted", "nUpserted", "nModified", "nRemoved", "nMatched")
                )
                self._unit.answered(self._key, stored=any(counts))
        elif is_single and isinstance(error, PyMongoError) and _says_nothing_stored(error):
            self._unit.answered(self._key, stored=False)


def _says_nothing_stored(error: PyMongoError) -> bool:
    # a duplicate key, say
    return isinstance(error, WriteError) or error.has_error_label("NoWritesPerformed")


@contextmanager
def following(operation: Any) -> Iterator[Write | None]:
    """Follow a write outside of a transaction to its answer, for the current unit of work.

    None: there is none.
    """
    unit = scope.current()
    if unit is None:
        yield None
        return
    write = Write(unit, operation)
    token = _followed.set(write)
    try:
        yield write
    finally:
        _followed.reset(token)


def report(operation: Any) -> None:
    """Report *operation*, which is about to be sent: there is a server for it."""
    unit = scope.current()
    if unit is None:
        return
    unit.ask(_meaning)
    if _reported.get() is not None:
        _reported.set(None)
    if _followed.get() is not None:
        return
    name = str(getattr(operation, "value", operation))
    if name not in READS:
        key = next(_keys)
        unit.sends(key, f"MongoDB's {name!r} was sent, and may have stored something")
        _reported.set((unit, key))


def not_sent() -> None:
    """The operation of this context that was reported last was not sent: there was no connection
    for it.
    """
    reported = _reported.get()
    if reported is not None:
        reported[0].answered(reported[1], stored=False)


def _meaning(exc: BaseException) -> Fault | None:
    if isinstance(exc, (OutageError, PoolTimeoutError)):
        return None  # waiting again would exceed the request's time
    if isinstance(exc, CursorNotFound):
        return Fault(FaultKind.LOST, Cause.CRASHED, exc.code, said(exc))
    if isinstance(exc, AutoReconnect):
        return fault_of(exc)
    return None
