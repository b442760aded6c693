"""The steps that flows yield.

A step describes an I/O operation. Each pool runs it in its own way and sends the result back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from unbroken.abc import Connection, Login
from unbroken.brain.entry import Entry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection. Returns the driver's object, or raises the driver's error. *dialing* can
    end it from outside; *login* is its destination.

    With *make*, that is called instead, in *context*.
    """

    timeout: float
    dialing: Any
    login: Login | None = None
    make: Callable[[], Any] | None = None
    context: Context | None = None


@dataclass(frozen=True, slots=True)
class Consult:
    """Ask *function* for a secret, called *name*. Returns its result, awaited if possible.

    *dialing* can end it from outside. Raises LoginError from its exception.
    """

    name: str
    function: Callable[[], Any]
    dialing: Any


@dataclass(slots=True)  # not frozen: that costs a µs, several times per request
class Call:
    """Call a method of the driver (``ping``, ``begin``, ``commit``, ``rollback``, ``restore`` …) on
    a connection.

    A call that still blocks after *timeout* seconds (None: the setting for that method) is aborted
    by a shutdown of the socket, with any driver.
    """

    method: str
    conn: Connection
    entry: Entry | None = None
    timeout: float | None = None
    args: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Reset:
    """Call the user's own reset function on a connection."""

    function: Callable[[Connection], Any]
    conn: Connection


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until *signal* is woken, at most *timeout* seconds.

    Returns nothing: check the state afterwards.
    """

    signal: Any
    timeout: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """Run a unit of work once: returns its result, or raises its exception."""

    work: Callable[[], Any]


#: Driver methods that take their time limit as an argument.
TIMED = frozenset({"ping", "take_answer", "try_flight"})

Step: TypeAlias = Connect | Consult | Call | Reset | Wait | Attempt
Flow: TypeAlias = Generator[Step, Any, T]


def run(flow: Flow[T], do: Callable[[Any], Any]) -> T:
    """Run *flow* to its end, blocking. *do* runs one step."""
    try:
        step = next(flow)
        while True:
            try:
                result = do(step)
            except BaseException as exc:
                step = flow.throw(exc)
            else:
                # a later error's traceback must not keep a connection alive
                step, result = (flow.send(result), None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except BaseException:
        _end(flow)
        raise


async def run_async(flow: Flow[T], do: Callable[[Any], Awaitable[Any]]) -> T:
    """Run *flow* to its end in a task. *do* runs one step."""
    try:
        step = next(flow)
        while True:
            try:
                result = await do(step)
            except BaseException as exc:
                step = flow.throw(exc)
            else:
                # a later error's traceback must not keep a connection alive
                step, result = (flow.send(result), None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except BaseException:
        _end(flow)
        raise


def _end(flow: Flow[Any]) -> None:
    """Make *flow* leave its blocks if an exception struck between two of its steps: its traceback
    may be kept for long.
    """
    with suppress(RuntimeError):  # it yields another step, which is not run
        flow.close()
