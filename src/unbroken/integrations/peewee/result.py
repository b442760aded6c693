"""A statement's result as peewee reads it: the driver's cursor, and a notice when it has been read,
closed or collected.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import peewee

from unbroken.integrations.peewee.slot import Slot
from unbroken.messages.integrations import RESULT_LEFT

#: The attributes of a cursor that stay available after it was dropped.
_KEPT = ("description", "rowcount", "lastrowid", "statusmessage", "query", "arraysize", "rownumber")


class Result:
    """A stand-in for the driver's *cursor* (``isinstance`` agrees; ``raw_cursor`` is the cursor
    itself).

    When it has been read to the end, closed or collected, the database is notified, and a
    connection that is not kept otherwise returns to the pool. If its connection is returned first,
    a client-side result keeps its rows; a server-side one is over.
    """

    _cursor: Any

    def __init__(self, cursor: Any, database: Any, slot: Slot) -> None:
        self._cursor = cursor
        self._database = database
        self._slot = slot
        self._rows: deque[Any] = deque()
        self._kept: dict[str, Any] = {}
        self._cut = False
        #: a cursor that the caller may execute on again: the end of its rows means nothing
        self._reusable = True
        slot.readers[id(self)] = weakref.ref(self)

    # -- reading -----------------------------------------------------------------------------------

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        if self._cursor is None:
            return self._kept_row()
        row = self._cursor.fetchone()
        if row is None:
            self._ended()
        return row

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next rows; none are left when the list is empty."""
        if self._cursor is None:
            if self._cut:
                self._kept_row()
            size = args[0] if args else kwargs.get("size", self._kept.get("arraysize", 1))
            return [row for _ in range(size) if (row := self._kept_row()) is not None]
        rows = self._cursor.fetchmany(*args, **kwargs)
        if not rows:
            self._ended()
        return rows

    def fetchall(self) -> Any:
        """Return the remaining rows."""
        if self._cursor is None:
            rows = list(self._rows)
            self._rows.clear()
            return rows if not self._cut else self._kept_row()
        rows = self._cursor.fetchall()
        self._ended()
        return rows

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def _kept_row(self) -> Any:
        if self._cut:
            raise peewee.InterfaceError(
                RESULT_LEFT(
                    "a server-side result was read after its connection was released; read all its"
                    " rows inside the scope that opened it"
                )
            )
        return self._rows.popleft() if self._rows else None

    # -- running (a cursor from db.cursor()) -------------------------------------------------------

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as the driver."""
        return self._run("execute", args, kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as the driver."""
        return self._run("executemany", args, kwargs)

    def _run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cursor = self._cursor
        if cursor is None:
            raise peewee.InterfaceError(
                RESULT_LEFT(
                    "this cursor is closed, and its connection was released; open a new cursor"
                )
            )
        given = getattr(cursor, name)(*args, **kwargs)
        return self if given is cursor else given

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the cursor; rows already read stay available."""
        if self._cursor is not None:
            self._reusable = False
            self._ended()

    def __enter__(self) -> Result:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _ended(self) -> None:
        if not self._reusable:
            self.let_go()
            self._database._reader_ended(self._slot, id(self))

    def let_go(self, *, rows: bool = False) -> None:
        """Close the driver's cursor. Its attributes stay available, and with *rows* its unread
        rows, too.
        """
        cursor, self._cursor = self._cursor, None
        if cursor is None:
            return
        for name in _KEPT:
            with suppress(Exception):
                self._kept[name] = getattr(cursor, name)
        self._kept["__class__"] = type(cursor)
        try:
            if rows and is_streaming(cursor):
                self._cut = True
            elif rows and self._kept.get("description"):
                self._rows.extend(cursor.fetchall())
        except Exception:
            self._cut = True
        with suppress(Exception):  # its connection may be lost
            cursor.close()

    def __del__(self) -> None:
        if (
            self.__dict__.get("_cursor") is not None
            and "_slot" in self.__dict__
            and not sys.is_finalizing()
        ):
            self._database._reader_collected(self._slot, id(self), self)

    # -- everything else is the cursor's -----------------------------------------------------------

    @property
    def raw_cursor(self) -> Any:
        """Return the driver's own cursor; None once it was dropped."""
        return self._cursor

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._kept["__class__"] if self._cursor is None else type(self._cursor)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        cursor = self._cursor
        if cursor is not None:
            return getattr(cursor, name)
        if name == "closed":
            return True
        try:
            return self._kept[name]
        except KeyError:
            raise AttributeError(
                f"{name}: this cursor is closed, and its connection was released"
            ) from None


def is_streaming(cursor: Any) -> bool:
    """Return whether the rows are still on the server: a named cursor (psycopg2's has no
    description yet), or MySQL's unbuffered kinds.
    """
    kinds = {kind.__name__ for kind in type(cursor).__mro__}
    return bool(getattr(cursor, "name", None)) or bool(
        kinds & {"SSCursor", "CursorUseResultMixIn", "ServerCursor"}
    )
