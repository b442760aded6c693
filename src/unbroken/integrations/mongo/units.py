"""What a client's operations mean to a unit of work (a web request, ``@unbroken.replayable``), and what PyMongo's errors do.

Each operation that writes is stored by itself, so a unit that has sent one is never run again; PyMongo tries again by itself where it is
safe. One that has only read is: when a cursor was lost between two of its batches, say, which PyMongo does not mend.
"""

from __future__ import annotations

from typing import Any

from pymongo.errors import AutoReconnect, CursorNotFound

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.core import unit as units
from unbroken.errors import OutageError
from unbroken.integrations.mongo.faults import fault_of, said

#: Commands that can only read, whatever their arguments are. (An aggregation may store what it finds: $out, $merge.)
_READS = frozenset(
    "find count distinct getMore killCursors endSessions listCollections listDatabases listIndexes listSearchIndex "
    "ping hello buildInfo collStats dbStats serverStatus testOperation".split()
)


def report(operation: Any) -> None:
    """*operation* is about to be sent: there is a server for it."""
    unit = units.current()
    if unit is None:
        return
    unit.ask(_meaning)
    name = str(getattr(operation, "value", operation))
    if name not in _READS:
        unit.doubt(f"MongoDB's {name!r} was sent, which may have stored something")


def _meaning(exc: BaseException) -> Fault | None:
    if isinstance(exc, OutageError):
        return None  # waiting again would take the request over its time
    if isinstance(exc, CursorNotFound):
        return Fault(FaultKind.LOST, Cause.CRASHED, exc.code, said(exc))
    if isinstance(exc, AutoReconnect):
        return fault_of(exc)
    return None
