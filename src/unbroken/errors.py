"""Every exception of unbroken.

Each derives from :class:`UnbrokenError`, and, when it is raised by a pool, also from what the caller of that driver
already catches (its ``OperationalError``): :func:`for_driver` makes the combined class. A message is one line: the
fact, the numbers, the cause, the remedy; never a password.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, TypeVar


class UnbrokenError(Exception):
    """The base of everything that unbroken raises by itself."""


class ConfigurationError(UnbrokenError, ValueError):
    """A URL, a setting or a combination of settings that cannot work. Raised at once, before any connection."""


class DriverNotInstalledError(ConfigurationError, ImportError):
    """The URL names a driver (or a database for which no driver) that is not installed here."""


class NotYoursError(UnbrokenError, ValueError):
    """A connection was released that this pool did not lend, or that was given back before."""


class PoolClosedError(UnbrokenError):
    """The pool is closed: it lends nothing any more."""


class PoolTimeoutError(UnbrokenError, TimeoutError):
    """No connection became free within the time the caller had. The server itself is well."""


class OutageError(UnbrokenError, ConnectionError):
    """The server is away. ``retry_after`` is a fair number of seconds before asking again."""

    retry_after: float = 1.0


class ConnectRejectedError(UnbrokenError, ConnectionError):
    """The server (or the name service) said no: password, permission, unknown host or database. Waiting won't help."""


class ConnectionLostError(UnbrokenError, ConnectionError):
    """The connection was lost before its COMMIT was sent: nothing of its transaction is stored."""


class CommitUnknownError(UnbrokenError, ConnectionError):
    """A COMMIT was sent and the connection was lost before its answer: the work is stored, or it is not."""


class DeadlineExceeded(UnbrokenError, TimeoutError):  # noqa: N818 - a fixed public name, after the field's usage
    """The work took longer than its ``deadline=``; its connection was ended to free the caller."""


E = TypeVar("E", bound=UnbrokenError)


@cache
def _combined(kind: type[UnbrokenError], foreign: type[BaseException]) -> type[UnbrokenError]:
    """*kind* that is also a *foreign* error; plain *kind* where Python cannot combine the two."""

    def reduce(self: BaseException) -> tuple[Any, ...]:
        return _rebuild, (kind, foreign, self.args, dict(self.__dict__))

    try:
        body: dict[str, Any] = {
            "__reduce__": reduce,
            "__module__": kind.__module__,
            "__init__": Exception.__init__,
            "__str__": Exception.__str__,
        }
        combined: type[UnbrokenError] = types.new_class(kind.__name__, (kind, foreign), {}, lambda space: space.update(body))
        return combined
    except TypeError:
        return kind


def _rebuild(kind: type[E], foreign: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    error = for_driver(kind, foreign, *args)
    error.__dict__.update(state)
    return error


def for_driver(kind: type[E], foreign: type[BaseException] | None, message: str, **attributes: Any) -> E:
    """A *kind* of error that callers who catch *foreign* catch too.

    *foreign* is the driver's (or framework's) ``OperationalError``; None gives a plain *kind*. *attributes* are set
    on the error. The result pickles as long as *foreign* does.
    """
    cls: type[UnbrokenError] = kind
    if foreign is not None and not issubclass(kind, foreign):
        cls = _combined(kind, foreign)  # type: ignore[arg-type] # classes are hashable; the stub of cache does not know
    error = cls(message)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error  # type: ignore[return-value]
