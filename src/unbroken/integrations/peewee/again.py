"""The meaning of an error of peewee's for the connection that it came from."""

from __future__ import annotations

from typing import Any

import peewee

from unbroken.integrations.peewee.errors import origin


def mark(exc: BaseException, sql: Any) -> None:
    """Record on *exc* that a connection was lost when *sql* was sent. :func:`lost_by` reads it."""
    lost: Any = origin(exc)
    lost._unbroken_lost = sql


def lost_by(exc: BaseException) -> Any:
    """Return the statement that met a lost connection, if *exc* (or the driver's error behind it)
    is about one; else None.
    """
    return getattr(origin(exc), "_unbroken_lost", None)


def begins_later(theirs: Any, given: Any, loan: Any) -> bool:
    """Return whether the BEGIN that *theirs* sends, a method of peewee's or of the application's,
    *given* arguments or settings, is sent with the first statement instead.
    """
    plain = theirs.__func__ in (peewee.MySQLDatabase.begin, peewee.PostgresqlDatabase.begin)
    return bool(plain and not any(given) and loan.begin_later())
