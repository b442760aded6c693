"""Every exception of unbroken.

All derive from :class:`UnbrokenError`. An exception that a pool raises also derives from the
driver's ``OperationalError``, which callers already catch; :func:`for_driver` makes the combined
class. A message is one line: the fact, the numbers, the cause, the remedy. It never contains a
password. It ends with a code (:mod:`unbroken.messages`).
"""

from __future__ import annotations

import types
from copy import copy
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar


class UnbrokenError(Exception):
    """The base class of all exceptions that unbroken raises."""

    #: The fate of the writes of the unit of work that it ended, as a
    #: :class:`unbroken.ledger.verdicts.Fate`, which is one of the texts "nothing stored", "stored"
    #: and "unknown". None: no ledger knows, as outside of units.
    fate: StrEnum | None = None

    #: A further base class, if the driver's error allows it (psycopg2's does not: its memory layout
    #: and OSError's exclude each other).
    _besides: type[Exception] | None = None
    #: Whether it replaces the driver's error if only one of the two is possible.
    _besides_first = False

    @property
    def code(self) -> str | None:
        """The code at the end of the message, such as ``UB201``, which docs/messages.md explains.
        None: the message has no code, for example because an application created the error.

        If the error is also one of PyMongo's OperationFailure, this is PyMongo's own number,
        because its callers compare it.
        """
        _, found, end = str(self).rpartition("[UB")
        return f"UB{end[:-1]}" if found and end[:-1].isdigit() and end[-1:] == "]" else None


class ConfigurationError(UnbrokenError, ValueError):
    """A URL, a setting or a combination of settings that cannot work.

    Raised immediately, before any connection.
    """


class DriverNotInstalledError(ConfigurationError, ImportError):
    """The driver that the URL names is not installed, or no driver for its database is."""


class NotYoursError(UnbrokenError, ValueError):
    """A connection was released that this pool did not hand out, or that was already released."""


class PoolClosedError(UnbrokenError):
    """The pool is closed, or the interpreter is shutting down: no connection is handed out."""


class PoolTimeoutError(UnbrokenError):
    """No connection became free within the caller's time.

    The server itself works. Also a TimeoutError. ``retry_after`` is the recommended number of
    seconds before a retry. Callers that are refused because of overload get different values.
    """

    _besides = TimeoutError

    retry_after: float = 1.0


class OutageError(UnbrokenError):
    """The server is down, or cannot serve.

    ``retry_after`` is the recommended number of seconds before a retry. Also a ConnectionError.
    """

    _besides = ConnectionError

    retry_after: float = 1.0


class ConnectRejectedError(UnbrokenError):
    """The server or the name service refused the connection: password, permission, unknown host or
    database. Waiting does not help.

    Also a ConnectionError.
    """

    _besides = ConnectionError


class ConnectionLostError(UnbrokenError):
    """The connection was lost before the library sent a COMMIT of its open transaction. Nothing of
    that transaction is stored, unless the code that held the connection sent a COMMIT itself.

    The message and ``fate`` tell which of the two is known. Work that was committed earlier on the
    same connection is stored. Also a ConnectionError.
    """

    _besides = ConnectionError


class CommitUnknownError(UnbrokenError):
    """A COMMIT was sent, and its outcome is unknown: the transaction is stored whole, or not at
    all. Either the connection was lost before the answer, or the answer is an error that does not
    prove that nothing was stored.

    ``XA COMMIT``, ``COMMIT PREPARED`` and similar statements count as a COMMIT. Check before you
    repeat the work. Also a ConnectionError.
    """

    _besides = ConnectionError


class WriteUnknownError(CommitUnknownError):
    """A write was sent and its answer was lost: it is stored, whole or in part, or not at all.

    ``unbroken.mongo`` raises it, also for the commit of a transaction. After any other lost
    connection the write is not stored. Check before you repeat the write. Also a ConnectionError.
    """


class ClosedByHolderError(UnbrokenError):
    """The code that held the connection closed it, so the pool could not commit.

    Work that this code committed itself is stored. Work that was still open is not. Also a
    ConnectionError.
    """

    _besides = ConnectionError


class DeadlineExceeded(UnbrokenError):  # noqa: N818 - a fixed public name, after the field's usage
    """The work took longer than its ``deadline=``. Its connection was closed to free the caller.

    ``fate`` is the fate of its writes. Without a ledger it is unknown: a statement in autocommit,
    or a COMMIT in progress, may still be stored. Also a TimeoutError.
    """

    _besides = TimeoutError
    _besides_first = True


E = TypeVar("E", bound=UnbrokenError)


@cache
def _combined(
    kind: type[UnbrokenError], foreign: type[BaseException] | None
) -> type[UnbrokenError]:
    """A *kind* that is also a *foreign* error and its further base class; fewer of these if Python
    cannot combine them.
    """

    def reduce(self: BaseException) -> tuple[Any, ...]:
        return _rebuild, (kind, foreign, self.args, dict(self.__dict__))

    body: dict[str, Any] = {
        "__reduce__": reduce,
        "__module__": kind.__module__,
        "__init__": Exception.__init__,
        "__str__": Exception.__str__,
    }
    theirs = getattr(foreign, "code", None)
    if isinstance(theirs, property):  # callers compare its value
        body["code"] = theirs
    one = [(kind, foreign), (kind, kind._besides)]
    for bases in ((kind, foreign, kind._besides), *(reversed(one) if kind._besides_first else one)):
        wanted = [
            base
            for at, base in enumerate(bases)
            if base is not None and not any(_covers(base, other) for other in bases[:at])
        ]
        try:
            combined: type[UnbrokenError] = types.new_class(
                kind.__name__, tuple(wanted), {}, lambda space: space.update(body)
            )
            combined("")  # some layouts combine but cannot be instantiated
            return combined
        except TypeError:
            continue
    return kind


#: Stands for the message in the result of :func:`_given_by`.
_MESSAGE = "<message>"


@cache
def _given_by(foreign: type[BaseException]) -> dict[str, Any]:
    """The attributes that the constructor of *foreign* gives an error with only a message. Code
    that catches *foreign* may read them (psycopg's ``diag``, Connector/Python's ``errno``).
    """
    try:
        return dict(vars(foreign(_MESSAGE)))
    except Exception:  # it takes more than a message
        return {}


def _covers(base: type[BaseException], other: type[BaseException] | None) -> bool:
    return other is not None and issubclass(other, base)


def _rebuild(
    kind: type[E], foreign: type[BaseException] | None, args: tuple[Any, ...], state: dict[str, Any]
) -> E:
    error = for_driver(kind, foreign, *args)
    error.__dict__.update(state)
    return error


def for_driver(
    kind: type[E], foreign: type[BaseException] | None, message: str, **attributes: Any
) -> E:
    """Return a *kind* of error that callers that catch *foreign* also catch.

    *foreign* is the driver's (or framework's) ``OperationalError``; None: there is none.
    *attributes* are set on the error. The result can be pickled if *foreign* can.
    """
    cls: type[UnbrokenError] = kind
    if foreign is not None and issubclass(kind, foreign):
        foreign = None
    if foreign is not None or (kind._besides is not None and not issubclass(kind, kind._besides)):
        cls = _combined(kind, foreign)  # type: ignore[arg-type] # classes are hashable; the stub of cache does not know
    error = cls(message)
    given = {} if foreign is None else _given_by(foreign)  # type: ignore[arg-type] # as above
    for name, value in given.items():
        said = value.replace(_MESSAGE, message) if isinstance(value, str) else copy(value)
        error.__dict__.setdefault(name, said)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error  # type: ignore[return-value]
