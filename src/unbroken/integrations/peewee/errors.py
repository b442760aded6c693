"""unbroken's errors as peewee's callers catch them."""

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
    """A lazy query ran outside of the scope that opened its connection, or was about to be returned
    out of it.
    """


class _Full(peewee.OperationalError, MaxConnectionsExceeded):  # type: ignore[misc]
    """What callers of playhouse's pool catch when no connection is free."""


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
    """*error* as one that ``except peewee.OperationalError`` catches too (and
    ``MaxConnectionsExceeded``, where the pool is full).
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
    """The driver's exception behind *error*, which peewee may have made its own of."""
    if isinstance(error, peewee.PeeweeException) and not isinstance(error, UnbrokenError):
        wrapped = getattr(error, "orig", None)
        if isinstance(wrapped, BaseException):
            return wrapped
    return error
