"""PyMongo's errors that leave a write in doubt, and the handling of a failed operation. Its caller
gets an error about the doubt, or it is sent again if nothing of it can have been stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pymongo import _csot
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ClientBulkWriteException,
    ConnectionFailure,
    NotPrimaryError,
    OperationFailure,
    ProtocolError,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WTimeoutError,
)
from pymongo.operations import _Op

from unbroken.errors import UnbrokenError
from unbroken.integrations.mongo.errors import write_unknown
from unbroken.integrations.mongo.per_process import Current
from unbroken.integrations.mongo.units import READS, Write

#: The server refused the command before it did anything: it is not primary, or not readable.
_REFUSED = {10058, 10107, 13435, 13436}
#: Error codes for a COMMIT that the server did not complete: out of time, or not replicated.
_HALFWAY = {50, 64}
AGGREGATE: Any = _Op.AGGREGATE
#: Options of a stream that begins where another ended.
_RESUMES = {"resumeAfter", "startAfter", "startAtOperationTime"}
_COMMIT = "commitTransaction"
_OF_TRANSACTION = "TransientTransactionError"


def leaves_doubt(error: BaseException | None) -> bool:
    """Return whether a write that met *error* after it was sent may be stored."""
    if isinstance(error, ClientBulkWriteException):
        error = error.error
    if isinstance(error, NotPrimaryError):
        code = error.details.get("code") if isinstance(error.details, dict) else None
        return code not in _REFUSED and not error.has_error_label("NoWritesPerformed")
    if isinstance(error, BulkWriteError):
        return bool((error.details or {}).get("writeConcernErrors"))
    if isinstance(error, (ServerSelectionTimeoutError, WaitQueueTimeoutError)):
        return False
    # a write concern that was not met: it is stored, and may be rolled back by another primary
    return isinstance(error, (ConnectionFailure, ProtocolError, WriteConcernError))


class Sending:
    """A callable that PyMongo uses each time it sends a write. It records whether the write was
    sent, and whether it may be stored.
    """

    __slots__ = ("doubtful", "func", "sent", "write")

    def __init__(self, func: Callable[..., Any], write: Write | None) -> None:
        self.func = func
        self.write = write
        self.sent = False
        self.doubtful = False

    def begins(self) -> None:
        """Note that there is a connection, and the write is about to be sent on it."""
        self.sent = True
        if self.write is not None:
            self.write.sent()

    def __call__(self, *arguments: Any) -> Any:
        """Send it."""
        self.begins()
        try:
            return self.func(*arguments)
        except BaseException as error:
            self.doubtful = self.doubtful or leaves_doubt(error)
            raise

    def failed(self, error: PyMongoError) -> PyMongoError:
        """Return the error for the caller whose write ended with *error*."""
        return told(error) if self.doubtful else error


class AwaitedSending(Sending):
    """The same as :class:`Sending`, awaited."""

    __slots__ = ()

    async def __call__(self, *arguments: Any) -> Any:
        """Send it."""
        self.begins()
        try:
            return await self.func(*arguments)
        except BaseException as error:
            self.doubtful = self.doubtful or leaves_doubt(error)
            raise


class Checkout:
    """PyMongo's *checkout* of a connection for a command that stores something, such as a new
    index.
    """

    __slots__ = ("_checkout",)

    def __init__(self, checkout: Any) -> None:
        self._checkout = checkout

    def __enter__(self) -> Any:
        return self._checkout.__enter__()

    def __exit__(
        self, kind: Any, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        done = self._checkout.__exit__(kind, error, traceback)
        if leaves_doubt(error):
            raise told(error) from error
        return done

    async def __aenter__(self) -> Any:
        return await self._checkout.__aenter__()

    async def __aexit__(
        self, kind: Any, error: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        done = await self._checkout.__aexit__(kind, error, traceback)
        if leaves_doubt(error):
            raise told(error) from error
        return done


def told(error: Any) -> Any:
    """Return *error* as the error of a write in doubt, converted once.

    Writes of a transaction that goes on are stored only by its commit.
    """
    is_told = isinstance(error, UnbrokenError) or error.has_error_label(_OF_TRANSACTION)
    return error if is_told else write_unknown(error)


def after(error: Any, arguments: dict[str, Any]) -> Any:
    """Return the error for the caller whose operation, other than a plain write, ended with
    *error*. *arguments* are those of PyMongo's ``_retry_internal`` by name.
    """
    operation = _name(arguments)
    if operation == _COMMIT:
        code = error.code if isinstance(error, OperationFailure) else None
        is_halfway = isinstance(error, WTimeoutError) or code in _HALFWAY
        # if no server was found: an operation that was sent before, and is retried now, is in doubt
        # too
        is_lost = isinstance(error, ConnectionFailure) and _was_sent(arguments)
        if is_halfway or is_lost or leaves_doubt(error):
            error._remove_error_label(_OF_TRANSACTION)  # as PyMongo does next
            return write_unknown(error)
        return error
    writes = arguments.get("is_aggregate_write") or (
        arguments.get("is_run_command") and operation not in READS
    )
    if writes and not _in_transaction(arguments) and leaves_doubt(error):
        return told(error)
    return error


class Again:
    """Decides whether an operation that failed in an outage is begun again, as long as callers
    wait.

    PyMongo tries again once. In a restart a server can be lost twice, and in an election the next
    one is possibly not primary yet.
    """

    __slots__ = ("_now", "_until")

    def __init__(self, now: Current) -> None:
        self._now = now
        waits = now.gate and now.gate.waits  # None: the client has nothing open
        self._until = time.monotonic() + waits.outage if waits else 0.0

    def may(self, error: PyMongoError) -> bool:
        """Return whether it may begin again after *error*, if nothing is stored."""
        return (
            isinstance(error, AutoReconnect)
            and not isinstance(error, (ServerSelectionTimeoutError, UnbrokenError))
            and _csot.get_timeout() is None  # PyMongo handles a time limit of the caller's own
            and not error.has_error_label(_OF_TRANSACTION)
            and time.monotonic() < self._until
            and bool(self._now.gate.is_troubled(self._now.topology.description))
        )


def resumes_stream(func: Any) -> bool:
    """Return whether *func*, which sends an aggregation, resumes a change stream."""
    stages: Any = getattr(getattr(func, "__self__", None), "_pipeline", None) or [{}]
    options = stages[0].get("$changeStream") if isinstance(stages[0], dict) else None
    return options is not None and not _RESUMES.isdisjoint(options)


def only_reads(arguments: dict[str, Any]) -> bool:
    """Return whether an operation (by the *arguments* of ``_retry_internal``) may be begun again at
    any point.
    """
    return (
        bool(arguments.get("is_read"))
        and bool(arguments.get("retryable"))
        and not arguments.get("is_aggregate_write")
        and (not arguments.get("is_run_command") or _name(arguments) in READS)
    )


def _name(arguments: dict[str, Any]) -> str:
    operation = arguments.get("operation")
    return str(getattr(operation, "value", operation))


def _was_sent(arguments: dict[str, Any]) -> bool:
    """Return whether a COMMIT has been sent for the transaction of that session."""
    transaction = getattr(arguments.get("session"), "_transaction", None)
    return bool(getattr(transaction, "attempt", 1))


def _in_transaction(arguments: dict[str, Any]) -> bool:
    session = arguments.get("session")
    return session is not None and bool(session.in_transaction)
