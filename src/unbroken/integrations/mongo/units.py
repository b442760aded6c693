"""What a client's operations mean to a unit of work (a web request, ``@unbroken.replayable``), and
what PyMongo's errors do.

Each operation that writes is stored by itself, so a unit that has sent one is never run again;
PyMongo tries again by itself where it is safe. What the server acknowledged (w >= 1) is stored.
Where it said that no writes were performed, or where no connection was made for it, nothing is.
Anything else is unknown: an unacknowledged write, a write in a transaction, a command of the
application's own. A unit that has only read is run again: when a cursor was lost between two of its
batches, say, which PyMongo does not mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count
from typing import Any

from pymongo.errors import AutoReconnect, BulkWriteError, CursorNotFound, PyMongoError, WriteError

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.errors import OutageError
from unbroken.integrations.mongo.faults import fault_of, said
from unbroken.ledger import scope, unit

#: Commands that can only read, whatever their arguments are. (An aggregation may store what it
#: finds: $out, $merge.)
READS = frozenset(
    "find count distinct getMore killCursors endSessions listCollections listDatabases listIndexes"
    " listSearchIndex ping hello buildInfo collStats dbStats serverStatus testOperation".split()
)


#: The write that PyMongo is at: it tells the unit itself when it is sent, and what the server said.
_followed: ContextVar[Write | None] = ContextVar("unbroken.mongo.write", default=None)


_keys = count(1)


class Write:
    """One write of PyMongo's, with all its retries."""

    def __init__(self, unit: unit.Unit, operation: Any) -> None:
        self._unit, self._key = unit, next(_keys)
        self._name = str(getattr(operation, "value", operation))

    def sent(self) -> None:
        """There is a connection, and the write is about to go out on it."""
        self._unit.sends(
            self._key, f"MongoDB's {self._name!r} was sent, which may have stored something"
        )

    def returned(self, result: Any, *, is_acknowledged: bool) -> None:
        """PyMongo returned *result*. Where the server acknowledged the write, it is stored."""
        if is_acknowledged or (isinstance(result, dict) and "n" in result):
            self._unit.answered(self._key, stored=True)

    def failed(self, error: BaseException, *, is_single: bool) -> None:
        """PyMongo raised *error*.

        The server may have said that nothing is stored. *is_single*: it was one document's.
        """
        error.__dict__["unbroken_followed"] = True  # what it leaves in doubt is in the ledger
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
    """Follow a write, which is none of a transaction's, to its answer, for the unit of work that is
    now in.

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
    """*operation* is about to be sent: there is a server for it."""
    unit = scope.current()
    if unit is None:
        return
    unit.ask(_meaning)
    if _followed.get() is not None:
        return
    name = str(getattr(operation, "value", operation))
    if name not in READS:
        unit.doubt(f"MongoDB's {name!r} was sent, which may have stored something")


def _meaning(exc: BaseException) -> Fault | None:
    if isinstance(exc, OutageError):
        return None  # waiting again would take the request over its time
    if isinstance(exc, CursorNotFound):
        return Fault(FaultKind.LOST, Cause.CRASHED, exc.code, said(exc))
    if isinstance(exc, AutoReconnect):
        return fault_of(exc)
    return None
