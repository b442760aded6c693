"""What an error of peewee's says of the connection that it came from."""

from __future__ import annotations

from typing import Any

import peewee

from unbroken.integrations.peewee.errors import origin


def mark(exc: BaseException, sql: Any) -> None:
    """*exc* says that a connection was lost when *sql* was sent: to be asked by
    :func:`lost_by`.
    """
    lost: Any = origin(exc)
    lost._unbroken_lost = sql


def lost_by(exc: BaseException) -> Any:
    """The statement that met a lost connection, when *exc* (or the driver's error behind it) is
    about one; else None.
    """
    return getattr(origin(exc), "_unbroken_lost", None)


def begins_later(theirs: Any, given: Any, loan: Any) -> bool:
    """Whether the BEGIN that *theirs* sends, a method of peewee's or of the application's, *given*
    arguments or settings, goes out with the first statement instead.
    """
    plain = theirs.__func__ in (peewee.MySQLDatabase.begin, peewee.PostgresqlDatabase.begin)
    return bool(plain and not any(given) and loan.begin_later())
