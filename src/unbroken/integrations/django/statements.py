"""What Django's users leave on a session: read from what goes through its cursors. What goes past
them counts as anything.

The judge is :mod:`unbroken.ledger.residue`.
"""

from __future__ import annotations

import sys
from typing import Any

from unbroken.ledger.residue import Left, left_by

#: Code in these packages knows what it does with the driver's own connections and cursors.
_OWN = ("django.", "unbroken.")
#: Attributes of a driver's cursor by which nothing can be sent.
_HARMLESS = frozenset(
    "arraysize close closed description fetchall fetchmany fetchone itersize lastrowid messages"
    " mogrify name nextset query results rowcount rownumber scroll scrollable setinputsizes"
    " setoutputsize statusmessage withhold".split()
)


def is_foreign(depth: int) -> bool:
    """Whether the code *depth* frames above the caller is neither Django's nor ours."""
    return not str(sys._getframe(depth + 1).f_globals.get("__name__")).startswith(_OWN)


def left_on(connection: Any, sql: Any, vendor: str) -> frozenset[Left]:
    """What the statement *sql* may leave on its session."""
    if isinstance(sql, (str, bytes, bytearray)):
        return left_by(bytes(sql) if isinstance(sql, bytearray) else sql, vendor)
    text = text_of(connection, sql)
    return frozenset({Left.UNKNOWN}) if text is None else left_by(text, vendor)


def text_of(connection: Any, sql: Any) -> str | None:
    """The text of *sql*, one of psycopg's composed statements, which *connection* puts into words.
    None: it has none.
    """
    compose = getattr(sql, "as_string", None)
    try:
        return str(sql if compose is None else compose(connection))
    except Exception:
        return None


#: Why a statement is not sent again, wherever it was lost.
READ_ONCE = "its parameters can be read only once"


class Noticing:
    """Mixed in before one of Django's cursor wrappers: notes on the database wrapper what a
    statement leaves behind.
    """

    db: Any

    def _execute(self, sql: Any, params: Any, *rest: Any) -> Any:
        self._notice(sql)
        execute = super()._execute  # type: ignore[misc] # Django's
        return self.db.unbroken_send(self, sql, lambda: execute(sql, params, *rest))

    def _executemany(self, sql: Any, param_list: Any, *rest: Any) -> Any:
        self._notice(sql)
        execute = super()._executemany  # type: ignore[misc] # Django's
        against = ""
        if self.db.autocommit:
            against = "executemany in autocommit may have been stored in part"
        elif not isinstance(param_list, (list, tuple)):
            against = READ_ONCE
        return self.db.unbroken_send(
            self, sql, lambda: execute(sql, param_list, *rest), against=against
        )

    def close(self) -> None:
        """The driver's. The connection is at rest then."""
        self.__dict__["cursor"].close()
        held = self.db._held
        if held is not None:
            held.rest()

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """Django's. What a procedure leaves is not known."""
        held = self.db._held
        if held is not None:
            held.sends(frozenset({Left.UNKNOWN}))
        call = super().callproc  # type: ignore[misc] # Django's
        name = args[0] if args else kwargs.get("procname")
        return self.db.unbroken_send(self, f"CALL {name}", lambda: call(*args, **kwargs))

    @property
    def cursor(self) -> Any:
        """The driver's own. Whoever takes it from here may send anything."""
        if is_foreign(1):
            self._leave(frozenset({Left.UNSEEN}))
        return self.__dict__["cursor"]

    @cursor.setter
    def cursor(self, cursor: Any) -> None:
        self.__dict__["cursor"] = cursor

    def __getattr__(self, name: str) -> Any:
        if name not in _HARMLESS and is_foreign(1):
            self._leave(frozenset({Left.UNSEEN}))
        return super().__getattr__(name)  # type: ignore[misc] # Django's

    def _notice(self, sql: Any) -> None:
        db = self.db
        if db._held is not None:
            db._held.sends(left_on(db._held.conn, sql, db.vendor))

    def _leave(self, left: frozenset[Left]) -> None:
        held = self.db._held
        if held is not None:
            held.left_behind |= left
