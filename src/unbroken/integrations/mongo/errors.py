"""unbroken's errors in the form that PyMongo's callers catch."""

from __future__ import annotations

from typing import Any

from pymongo.errors import (
    InvalidOperation,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from unbroken.errors import (
    NotYoursError,
    OutageError,
    PoolClosedError,
    PoolTimeoutError,
    WriteUnknownError,
    for_driver,
)
from unbroken.ledger import scope
from unbroken.ledger.verdicts import Fate
from unbroken.messages.data import WRITE_UNKNOWN
from unbroken.messages.processes import AT_THE_END
from unbroken.pool.ending import no_connection


def outage_error(message: str, retry_after: float) -> OutageError:
    """Return an OutageError that is a ServerSelectionTimeoutError too (and so an AutoReconnect and
    a ConnectionFailure).

    Of all kinds of ConnectionFailure, only this one guarantees that nothing was sent. PyMongo does
    not try again on it, and after a first attempt that may have reached the server it raises *that*
    one's error instead.
    """
    error = for_driver(OutageError, ServerSelectionTimeoutError, message, retry_after=retry_after)
    plain = ServerSelectionTimeoutError(message)
    error.__dict__.update(plain.__dict__)  # set by its own __init__ otherwise: labels, details
    scope.testify(error)  # a framework that makes a page of it must answer 503
    return error


class _OverloadedError(WaitQueueTimeoutError, ServerSelectionTimeoutError):
    """PyMongo's words for it: no connection, nothing was sent, and it is not to try again."""


def queue_error(message: str, retry_after: float, plain: WaitQueueTimeoutError) -> PoolTimeoutError:
    """A PoolTimeoutError that is a WaitQueueTimeoutError too, in the place of PyMongo's *plain*
    one.

    PyMongo would try a read again at once, and with a ``timeoutMS`` until that is up. It tries
    none again after a ServerSelectionTimeoutError, so the error is one of these as well.
    """
    error = for_driver(PoolTimeoutError, _OverloadedError, message, retry_after=retry_after)
    error.__dict__.update(
        {**_OverloadedError(message).__dict__, **plain.__dict__, "_message": message}
    )
    scope.testify(error)
    return error


def own_time_is_up(error: Any, waited: float) -> ServerSelectionTimeoutError:
    """Return PyMongo's *error* of a choice of server that did not wait, for a caller that has
    *waited*.
    """
    words = str(error).replace("Timeout: 0.0s", f"Timeout: {waited:.2f}s")
    told = ServerSelectionTimeoutError(words)
    told.__dict__.update(error.__dict__, _message=words)
    return told


def write_unknown(error: Any) -> WriteUnknownError:
    """Return PyMongo's *error* of a write that was sent, as a WriteUnknownError too."""
    is_away = isinstance(error, ServerSelectionTimeoutError)
    met = getattr(error, "error", error)  # of a client's bulk write
    has_answer = isinstance(met, (OperationFailure, NotPrimaryError))
    how = "its answer does not show whether it is kept" if has_answer else "its answer was lost"
    told = for_driver(
        WriteUnknownError,
        ServerSelectionTimeoutError if is_away else type(error),
        WRITE_UNKNOWN(
            f"{error}; the write was sent, but {how}: it may be stored, so check the data before"
            " you repeat it"
        ),
        fate=Fate.UNKNOWN,
    )
    told.__dict__.update(error.__dict__)
    scope.testify(told)
    return told


def not_yours(message: str) -> NotYoursError:
    """Return a NotYoursError that is PyMongo's InvalidOperation too."""
    error = for_driver(NotYoursError, InvalidOperation, message)
    error.__dict__.update(InvalidOperation(message).__dict__)
    return error


def too_late(where: str, why: object) -> PoolClosedError:
    """Return a PoolClosedError that is PyMongo's InvalidOperation too. The interpreter is shutting
    down, and PyMongo's monitors cannot be started any more.
    """
    error = for_driver(PoolClosedError, InvalidOperation, AT_THE_END(no_connection(where, why)))
    error.__dict__.update(InvalidOperation(str(error)).__dict__)
    return error
