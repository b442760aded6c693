"""The unit of work in which the present code runs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from contextvars import Token as ContextToken
from types import FrameType
from typing import Any, Protocol

from unbroken.ledger.deeds import attempt_here, joined
from unbroken.ledger.unit import Unit


class Surroundings(Protocol):
    """An interface to threads, tasks and greenlets, which the core knows nothing of.

    :mod:`unbroken.pool.contexts` implements it.
    """

    def place(self) -> object:
        """Return the place where this code runs.

        Two places are equal for code of the same thread, task or greenlet.
        """

    def is_running(self, frame: int) -> bool:
        """Return whether the frame with this ``id`` is among the callers of this code."""

    def entering(self) -> None:
        """Prepare for a unit that is about to be entered."""

    def find_out(self) -> Unit | None:
        """Return the unit of a context without a stored one; None if it is in no unit.

        If several units are possible, none of them is ever run again.
        """

    def look(self) -> tuple[Unit | None, list[Unit]]:
        """Return the same without side effects: the unit, and the possible ones."""


class _Alone:
    """The default: there is one thread, and nothing is passed between threads."""

    def place(self) -> object:
        return None

    def is_running(self, frame: int) -> bool:
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and id(caller) != frame:
            caller = caller.f_back
        return caller is not None

    def entering(self) -> None:
        pass

    def find_out(self) -> Unit | None:
        return None

    def look(self) -> tuple[Unit | None, list[Unit]]:
        return None, []


around: Surroundings = _Alone()

#: The value in a context whose unit was never stored. A context inherits the value of the one in
#: which it was made; only the first of a thread and ``Context()`` begin with this.
UNTOLD: Any = type("Untold", (), {"__slots__": ()})()

_current: ContextVar[Unit | None] = ContextVar("unbroken_unit", default=UNTOLD)


#: For hot paths, at 13 ns: None means that there is certainly no unit here; otherwise call
#: :func:`current`.
current_token = _current.get


class Token:
    """The argument of :func:`leave`. ``unit`` is the one that counts; ``outermost`` tells whether
    it is the one entered.

    The unit ends with its token, because a token without references cannot be passed to
    :func:`leave`.
    """

    __slots__ = ("__weakref__", "_context", "frame", "outermost", "place", "unit")

    def __init__(self, unit: Unit, outermost: bool, frame: int | None = None) -> None:
        self.unit, self.outermost = unit, outermost
        self.frame = frame  #: the ``id`` of the frame that leaves it before it returns
        self.place: object = None
        self._context: ContextToken[Unit | None] | None = None


_entered: dict[int, weakref.ref[Token]] = {}


def entered() -> list[Token]:
    """Return the tokens of all units of this process that were entered and not left, oldest
    first.
    """
    tokens = [ref() for ref in list(_entered.values())]
    return [token for token in tokens if token is not None and not token.unit.is_over]


def current(conn_id: int | None = None) -> Unit | None:
    """Return the unit of work that this thread, task or greenlet is in; None outside of one, or
    after it was left.

    With *conn_id*: the unit that the connection joined, if any. A thread that was started with a
    context of its own is in no unit, but its statements on a unit's connection must be reported all
    the same.
    """
    unit = _current.get()
    owner: Unit | None = None if conn_id is None else joined.get(conn_id)
    if unit is UNTOLD:
        return owner or around.find_out()
    if unit is not None and unit.is_over:
        unit = _above(unit)
    if owner is None or owner is unit:
        return unit
    if unit is not None and conn_id is not None and not owner._is_within(unit):
        unit.forbid("a connection of another unit of work was used", conn_id=conn_id)
    return owner


def heard_by(conn_id: int) -> Unit | None:
    """Return the unit that the connection has joined and not left."""
    unit: Unit | None = joined.get(conn_id)
    return unit


def _above(unit: Unit | None) -> Unit | None:
    """Return the unit that counts where *unit*, which is over, was entered.

    A unit that cannot come back is dropped here.
    """
    is_gone = True
    while unit is not None and unit.is_over:
        is_gone = is_gone and unit.is_gone
        unit = unit.above
    if is_gone:
        _current.set(unit)
    return unit


def tell(unit: Unit | None, attempt: tuple[Unit, int] | None = None) -> None:
    """Store in this context that it is in *unit*, or in none. *attempt* is the result of
    :func:`attempt` in the place where the unit is known.
    """
    _current.set(unit)
    attempt_here.set(attempt)


def is_told(context: Context) -> bool:
    """Return whether *context* stores its unit, or that it is in none."""
    return context.get(_current, UNTOLD) is not UNTOLD


def told(context: Context) -> Unit | None:
    """Return the unit that *context* stores."""
    unit = context.get(_current, None)
    return None if unit is None or unit.is_over else unit


def apart() -> Context:
    """Return a new context that is in no unit, for work that serves all callers."""
    context = Context()
    context.run(tell, None)
    return context


#: Returns the attempt of this context, for :func:`tell`.
attempt = attempt_here.get


@contextmanager
def aside(unit: Unit) -> Iterator[None]:
    """Make *unit* the current one for a while, also inside another unit, which gets no reports
    then.
    """
    token = _current.set(unit)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """Be in no unit for a while: work inside is not reported to any unit."""
    unit = _current.get()
    try:
        _current.set(None)
        yield
    finally:
        _current.set(unit)


def is_left_over() -> bool:
    """Return whether the caller is a task (or thread) of an attempt that was given up: its work
    was, or will be, done again.
    """
    mine = attempt_here.get()
    return mine is not None and mine[1] < mine[0].attempts


def enter(unit: Unit, frame: int | None = None) -> Token:
    """Make *unit* the current one. Inside another unit nothing changes: the outermost one counts,
    and it is replayed.

    A unit that is entered inside an observing one is an outermost one too; it is below that one.
    *frame* is the ``id`` of the caller's frame, if that leaves the unit before it returns. A unit
    whose frame is gone was never left, and does not count.

    Call ``token = enter(Unit())`` inside ``try``, then call straight through unless
    ``token.outermost``; call :func:`leave` in any case, and hold the token until then.
    """
    around.entering()
    place = around.place()
    active = _not_stale(current(), place)
    if active is not None and not active.observing:
        return Token(active, False)
    token = Token(unit, True, frame)
    try:
        token.place = place
        unit._token = weakref.ref(token)
        if active is not None:
            unit.above = active
            active._inner.append(unit)
        _entered[id(token)] = unit._token
        token._context = _current.set(unit)
        return token
    except BaseException:  # a signal's: a unit that was never entered is not left
        unit.close()
        raise


def _not_stale(unit: Unit | None, place: object) -> Unit | None:
    """Return *unit*, or the one above it, without those that an exception kept from being left."""
    while unit is not None:
        token = None if unit._token is None else unit._token()
        if (
            token is None
            or token.frame is None
            or token.place != place
            or around.is_running(token.frame)
        ):
            return unit
        unit.close()
        unit = _above(unit)
        _current.set(unit)
    return None


def leave(token: Token) -> None:
    """Undo :func:`enter`.

    The outermost unit is over with it: reports to it are ignored from now on. Leaving twice is
    harmless.
    """
    if token._context is None:
        return
    unit = token.unit
    above = unit.above
    if above is not None and unit in above._inner:
        unit._hand_over(above)
        above._inner.remove(unit)
    unit.close()
    _entered.pop(id(token), None)
    context, token._context = token._context, None
    if _current.get() is unit:
        try:
            _current.reset(context)
        except (
            ValueError
        ):  # left in another context than it was entered in, as an async generator may
            _current.set(above)


# the code that imports this is in no unit, and neither are copies of its context
_current.set(None)


# -- errors, reported to the responsible code ------------------------------------------------------

#: The list of errors that the work of this context met, whether or not it lets them through. A
#: framework may turn one into a page of its own before the code around it can see it. None: no code
#: collects them.
_witness: ContextVar[list[BaseException] | None] = ContextVar("unbroken_witness", default=None)

witnesses = _witness.set
no_longer_witnesses = _witness.reset


def testify(exc: BaseException) -> None:
    """Add *exc* to the errors of the code that is responsible for the work of this context."""
    heard = _witness.get()
    if heard is not None:
        heard.append(exc)
