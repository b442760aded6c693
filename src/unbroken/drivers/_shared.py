"""The common part of all driver files: a URL's options in the form that the library takes, and the
result of a connect.
"""

from __future__ import annotations

import re
import socket
import sys
import weakref
from asyncio import BaseTransport
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from types import FrameType
from typing import Any, TypeVar

from unbroken.abc import Target
from unbroken.errors import ConfigurationError
from unbroken.hints import remedy, shown
from unbroken.messages.configuration import BAD_OPTION, UNKNOWN_OPTION
from unbroken.net.forks import Connecting
from unbroken.settings import Settings

T = TypeVar("T")

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}

#: The statements that MySQL's drivers send for a body that switches autocommit (see :meth:`want`,
#: ``send_end``).
AUTOCOMMIT_ON, AUTOCOMMIT_OFF = "SET autocommit = 1", "SET autocommit = 0"


def boolean(text: str) -> bool:
    """Parse ``true``, ``1``, ``yes``, ``on`` or their opposites."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("a boolean; use true or false")


def whole(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def seconds(text: str) -> float:
    """Parse a number of seconds, more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ValueError("a number of seconds above 0")
    return value


def number(text: str) -> float:
    """Parse a number that may be 0."""
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def optional_boolean(text: str) -> bool | None:
    """Parse a boolean, or ``none`` for the server's own default."""
    return None if text.lower() == "none" else boolean(text)


def coerce(
    options: Mapping[str, str], kinds: Mapping[str, Callable[[str], Any]], driver: str
) -> dict[str, Any]:
    """Return *options* of a URL, each converted from text by its entry in *kinds*.

    Raises ConfigurationError that names the option.
    """
    out: dict[str, Any] = {}
    for name, text in options.items():
        kind = kinds.get(name)
        if kind is None:
            hint = remedy(name, kinds, [each.name for each in fields(Settings)], in_url=True)
            raise ConfigurationError(
                UNKNOWN_OPTION(f"unknown option {shown(name)} in the URL for {driver}; {hint}")
            )
        try:
            out[name] = kind(text)
        except ValueError as problem:
            value = "" if "pass" in name else f"={shown(text)}"
            raise ConfigurationError(
                BAD_OPTION(f"option {name}{value} in the URL is not {problem}")
            ) from None
    return out


def without_target(driver: str, backend: str) -> Target:
    """Return the target of a driver that was given only ``connect=``. Its server is not known."""
    return Target(scheme=f"{backend}+{driver}", backend=backend)


def class_of(conn: Any) -> Any:
    """Return the class of *conn*, in a form that can be subclassed and used as a cache key.

    Raises TypeError for an object that cannot be a connection.
    """
    cls = type(conn)
    if cls.__module__ == "builtins":
        raise TypeError(f"connect= returned an object of type {cls.__name__}, not a connection")
    return cls


_MARK = "_unbroken_connecting"


def dial(make: Callable[[], T]) -> T:
    """Call *make*, which connects, but not while this process forks. Its errors are marked as
    raised while connecting (see :func:`from_connect`).
    """
    try:
        with Connecting():
            return make()
    except BaseException as error:
        mark(error)
        raise


async def dial_async(make: Callable[[], Awaitable[T]]) -> T:
    """Do the same as :func:`dial`, awaited."""
    try:
        async with Connecting():
            return await make()
    except BaseException as error:
        mark(error)
        raise


def mark(error: BaseException) -> None:
    """Mark *error* as raised by an attempt to connect."""
    try:
        setattr(error, _MARK, True)
    except (
        AttributeError
    ):  # an exception class with __slots__: its errors are then treated as raised in use
        pass


def from_connect(error: BaseException) -> bool:
    """Return whether *error* was raised by an attempt to connect."""
    return getattr(error, _MARK, False)


def abort_transport(transport: BaseTransport) -> None:
    """Abort *transport*. After its event loop was closed, asyncio cannot do so. Then only its
    socket is shut down, so that the server notices before the transport is collected.
    """
    try:
        transport.abort()  # type: ignore[attr-defined] # every transport of a connection has it
    except RuntimeError:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


_LOST = "_unbroken_lost"


def lost(error: T) -> T:
    """Mark *error*, which we create, as one after which its connection must not be used again."""
    setattr(error, _LOST, True)
    return error


def is_lost(error: BaseException) -> bool:
    """Whether *error* was marked by :func:`lost`."""
    return getattr(error, _LOST, False)


# -- marks for the length of a call ----------------------------------------------------------------


class Mark:
    """An object that a call holds as long as it runs: see :func:`mark_call`."""

    __slots__ = ("__weakref__",)


def mark_call(state: dict[str, Any], name: str, value: Any = True) -> Mark:
    """Note in *state* that the calling function is running, with a *value* for the functions that
    it calls (:func:`marked`).

    The calling function holds the returned mark as long as it runs. A mark that is set before
    ``try`` and removed in ``finally`` would stay for good if an exception struck between the two.
    This mark counts only below the function that set it.
    """
    mark = Mark()
    state[name] = weakref.ref(mark), id(sys._getframe(1)), value
    return mark


def marked(state: dict[str, Any], name: str) -> Any:
    """Return the value of that mark if one of the callers set it; else None."""
    found = state.get(name)
    if found is None or found[0]() is None:  # its frame may be another's by now
        return None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if id(frame) == found[1]:
            return found[2]
        frame = frame.f_back
    return None


# -- statements that a ledger must know ------------------------------------------------------------

_END = re.compile(rb"\s*(?:COMMIT|END)(?:\s+(?:WORK|TRANSACTION))?\s*;?\s*", re.IGNORECASE)
_UNDO = re.compile(rb"\s*(?:ROLLBACK|ABORT)(?:\s+(?:WORK|TRANSACTION))?\s*;?\s*", re.IGNORECASE)


def as_bytes(sql: str | bytes | bytearray | memoryview) -> bytes:
    """Return the start of a statement, as bytes to examine; enough of it to recognize a COMMIT."""
    if isinstance(sql, str):
        return sql[:200].encode("utf-8", "replace")
    return bytes(sql[:200])


def is_commit(sql: str | bytes | bytearray) -> bool:
    """Return whether *sql* is a plain COMMIT and nothing else."""
    return len(sql) < 40 and _END.fullmatch(as_bytes(sql)) is not None


def is_rollback(sql: str | bytes | bytearray) -> bool:
    """Return whether *sql* is a plain ROLLBACK (not to a savepoint) and nothing else."""
    return len(sql) < 40 and _UNDO.fullmatch(as_bytes(sql)) is not None
