"""The leftovers of Django's users on a session, derived from the statements of its cursors. A use
past the cursors counts as leaving anything.

:mod:`unbroken.ledger.residue` judges the statements.
"""

from __future__ import annotations

import sys
from typing import Any

from unbroken.ledger.residue import Left, left_by

#: Code in these packages uses the driver's own connections and cursors knowingly.
_OWN = ("django.", "unbroken.")
#: Attributes of a driver's cursor that cannot send anything.
_HARMLESS = frozenset(
    "arraysize close closed description fetchall fetchmany fetchone itersize lastrowid messages"
    " mogrify name nextset query results rowcount rownumber scroll scrollable setinputsizes"
    " setoutputsize statusmessage withhold".split()
)


def is_foreign(depth: int) -> bool:
    """Return whether the code *depth* frames above the caller is neither Django's nor ours."""
    return not str(sys._getframe(depth + 1).f_globals.get("__name__")).startswith(_OWN)


def left_on(connection: Any, sql: Any, vendor: str) -> frozenset[Left]:
    """Return the possible leftovers of the statement *sql* on its session."""
    if isinstance(sql, (str, bytes, bytearray)):
        return left_by(bytes(sql) if isinstance(sql, bytearray) else sql, vendor)
    text = text_of(connection, sql)
    return frozenset({Left.UNKNOWN}) if text is None else left_by(text, vendor)


def text_of(connection: Any, sql: Any) -> str | None:
    """Return the text of *sql*, one of psycopg's composed statements, which *connection* renders.
    None: it has none.
    """
    compose = getattr(sql, "as_string", None)
    try:
        return str(sql if compose is None else compose(connection))
    except Exception:
        return None


#: The reason why a statement is never sent again.
READ_ONCE = "its parameters can be read only once"


class Noticing:
    """Mixed in before one of Django's cursor wrappers. It notes each statement's leftovers on the
    database wrapper.
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
        """Close the driver's cursor. The connection is at rest then."""
        self.__dict__["cursor"].close()
        held = self.db._held
        if held is not None:
            held.rest()

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        """Call Django's method. The leftovers of a procedure are not known."""
        held = self.db._held
        if held is not None:
            held.sends(frozenset({Left.UNKNOWN}))
        call = super().callproc  # type: ignore[misc] # Django's
        name = args[0] if args else kwargs.get("procname")
        return self.db.unbroken_send(self, f"CALL {name}", lambda: call(*args, **kwargs))

    @property
    def cursor(self) -> Any:
        """Return the driver's own cursor. Code that takes it from here may send anything."""
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
