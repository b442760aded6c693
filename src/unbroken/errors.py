"""Every exception of unbroken.

Each derives from :class:`UnbrokenError`, and, when it is raised by a pool, also from what the
caller of that driver already catches (its ``OperationalError``): :func:`for_driver` makes the
combined class. A message is one line: the fact, the numbers, the cause, the remedy; never a
password. At its end is a code (:mod:`unbroken.messages`).
"""

from __future__ import annotations

import types
from copy import copy
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar


class UnbrokenError(Exception):
    """The base of everything that unbroken raises by itself."""

    #: What became of the writes of the unit of work that it ended, as a
    #: :class:`unbroken.ledger.verdicts.Fate`, which is one of the texts "nothing stored", "stored"
    #: and "unknown". None: no ledger knows, as outside of units.
    fate: StrEnum | None = None

    #: What an error of this kind is besides, wherever the driver's error leaves room for it
    #: (psycopg2's does not: its memory layout and OSError's exclude each other).
    _besides: type[Exception] | None = None
    #: Which of the two goes where there is room for one only.
    _besides_first = False

    @property
    def code(self) -> str | None:
        """The code at the end of the message, such as ``UB201``: docs/messages.md says what it
        means. None: the message has none, as where an application made the error itself.

        Where the error is also one of PyMongo's OperationFailure, this is PyMongo's own number: its
        callers compare it.
        """
        _, found, end = str(self).rpartition("[UB")
        return f"UB{end[:-1]}" if found and end[:-1].isdigit() and end[-1:] == "]" else None


class ConfigurationError(UnbrokenError, ValueError):
    """A URL, a setting or a combination of settings that cannot work.

    Raised at once, before any connection.
    """


class DriverNotInstalledError(ConfigurationError, ImportError):
    """The URL names a driver (or a database for which no driver) that is not installed here."""


class NotYoursError(UnbrokenError, ValueError):
    """A connection was released that this pool did not give out, or that was released before."""


class PoolClosedError(UnbrokenError):
    """The pool is closed, or the interpreter is shutting down: no connection is given out."""


class PoolTimeoutError(UnbrokenError):
    """No connection became free within the time the caller had.

    The server itself is well. Also a TimeoutError. ``retry_after`` is a fair number of seconds
    before asking again; callers that are told at once because of overload get different ones.
    """

    _besides = TimeoutError

    retry_after: float = 1.0


class OutageError(UnbrokenError):
    """The server is away.

    ``retry_after`` is a fair number of seconds before asking again. Also a ConnectionError.
    """

    _besides = ConnectionError

    retry_after: float = 1.0


class ConnectRejectedError(UnbrokenError):
    """The server (or the name service) said no: password, permission, unknown host or database.
    Waiting won't help.

    Also a ConnectionError.
    """

    _besides = ConnectionError


class ConnectionLostError(UnbrokenError):
    """The connection was lost, and the library sent no COMMIT of its open transaction: nothing of
    that transaction is stored, unless the code that had the connection sent a COMMIT itself.

    The message and ``fate`` say what is known of that. What was committed before on the same
    connection is stored. Also a ConnectionError.
    """

    _besides = ConnectionError


class CommitUnknownError(UnbrokenError):
    """A COMMIT was sent and the connection was lost before its answer, or the answer is an error
    that does not prove that nothing was stored: that transaction is stored whole, or not at all.

    ``XA COMMIT``, ``COMMIT PREPARED`` and their like count as a COMMIT. Look before you repeat the
    work. Also a ConnectionError.
    """

    _besides = ConnectionError


class WriteUnknownError(CommitUnknownError):
    """A write was sent and its answer was lost: it is stored, whole or in part, or not at all.

    ``unbroken.mongo`` raises it, also for the commit of a transaction. A lost connection that is
    not one of these did not carry the write. Look before you repeat the write. Also a
    ConnectionError.
    """


class ClosedByHolderError(UnbrokenError):
    """The code that had the connection closed it itself, so the pool could not commit.

    What that code committed is stored; what was still open is not. Also a ConnectionError.
    """

    _besides = ConnectionError


class DeadlineExceeded(UnbrokenError):  # noqa: N818 - a fixed public name, after the field's usage
    """The work took longer than its ``deadline=``; its connection was ended to free the caller.

    ``fate`` says what became of its writes. Without a ledger it is unknown: a statement in
    autocommit, or a COMMIT that was under way, may still be stored. Also a TimeoutError.
    """

    _besides = TimeoutError
    _besides_first = True


E = TypeVar("E", bound=UnbrokenError)


@cache
def _combined(
    kind: type[UnbrokenError], foreign: type[BaseException] | None
) -> type[UnbrokenError]:
    """*kind* that is also a *foreign* error, and what it is besides; less of that where Python
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
    if isinstance(theirs, property):  # what it gives is compared by those who catch it
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
            combined("")  # some layouts combine and cannot be made
            return combined
        except TypeError:
            continue
    return kind


#: Stands for the message in what :func:`_given_by` tells.
_MESSAGE = "<message>"


@cache
def _given_by(foreign: type[BaseException]) -> dict[str, Any]:
    """The attributes that the constructor of *foreign* gives an error with nothing but a message:
    code that catches *foreign* may read them (psycopg's ``diag``, Connector/Python's ``errno``).
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
    """A *kind* of error that callers who catch *foreign* catch too.

    *foreign* is the driver's (or framework's) ``OperationalError``; None: there is none.
    *attributes* are set on the error. The result pickles as long as *foreign* does.
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
