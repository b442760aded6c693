"""unbroken's errors in the form that peewee's callers catch."""

from __future__ import annotations

from typing import Any, cast

import peewee
from playhouse.pool import MaxConnectionsExceeded

from unbroken.errors import (
    CommitUnknownError,
    ConnectionLostError,
    ConnectRejectedError,
    DeadlineExceeded,
    NotYoursError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    UnbrokenError,
    for_driver,
)


class LazyQueryError(UnbrokenError, peewee.InterfaceError):  # type: ignore[misc] # peewee ships no types that we could use
    """A lazy query ran outside of the scope that opened its connection, or would have been returned
    out of it.
    """


class _Full(peewee.OperationalError, MaxConnectionsExceeded):  # type: ignore[misc]
    """The error that callers of playhouse's pool catch if no connection is free."""


_KINDS: tuple[type[UnbrokenError], ...] = (
    CommitUnknownError,
    ConnectionLostError,
    ConnectRejectedError,
    DeadlineExceeded,
    NotYoursError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
)


def translated(error: Any) -> UnbrokenError:
    """Return *error* as one that ``except peewee.OperationalError`` catches too (and
    ``MaxConnectionsExceeded``, if the pool is full).
    """
    kinds = () if isinstance(error, peewee.PeeweeException) else _KINDS
    for kind in kinds:
        if isinstance(error, kind):
            foreign: Any = _Full if kind is PoolTimeoutError else peewee.OperationalError
            told: UnbrokenError = for_driver(kind, foreign, str(error), **vars(error))
            told.__cause__ = error
            return told
    return cast("UnbrokenError", error)


def origin(error: BaseException) -> BaseException:
    """Return the driver's exception behind *error*, which peewee may have converted to its own."""
    if isinstance(error, peewee.PeeweeException) and not isinstance(error, UnbrokenError):
        wrapped = getattr(error, "orig", None)
        if isinstance(wrapped, BaseException):
            return wrapped
    return error
