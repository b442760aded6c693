"""The ledger of a unit of work: may it be run again from the start?

Only when it is provable that nothing of it was committed. Whoever sends something reports it here first, so the ledger
never knows less than the server; what it cannot follow counts against a replay. The rules, in the order in which
:meth:`Unit.verdict` applies them when a connection was lost, or the server asked to try again:

1. a COMMIT of writes was sent and its answer was lost: unknown, never guessed;
2. something may have been committed (an acknowledged COMMIT of writes, a write in autocommit, a statement that commits
   by itself, something that could not be followed): the error goes to the caller;
3. another connection still holds writes of this attempt in an open transaction, or is in the hands of a task or thread
   that the attempt left behind: likewise, they might still be committed;
4. otherwise whatever was sent is rolled back by the server, and the unit may be run again.

Reports come from any thread or task that runs in the unit's context. Each is a few plain attribute writes, and every
one of them only ever makes the ledger more careful, except for those of a connection's own state, which belongs to the
one who uses the connection. So there is no lock. A unit that was left takes no reports any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from contextvars import Token as ContextToken
from dataclasses import dataclass
from enum import StrEnum

from unbroken.abc import Fault, FaultKind
from unbroken.core.statements import Kind, kind, verb


class Action(StrEnum):
    """What to do with a unit of work that failed."""

    REPLAY = "replay"  #: run it again from the start, on another connection
    RAISE = "raise"  #: hand the error to the caller
    COMMIT_UNKNOWN = "commit unknown"  #: a COMMIT was sent and its answer was lost: say so


@dataclass(frozen=True, slots=True)
class Verdict:
    """An action and, in one line, why."""

    action: Action
    reason: str


_REPLAYABLE = frozenset({FaultKind.LOST, FaultKind.WRONG_SERVER, FaultKind.RETRY})


class _Part:
    """What one connection did in one attempt."""

    __slots__ = ("open", "pending")

    def __init__(self) -> None:
        self.open = False  # it wrote in a transaction that nobody has ended
        self.pending = False  # a COMMIT of that went out, and its answer is not known


class Unit:
    """One unit of work, over all its attempts. Reports cost about 0.3 µs each.

    ``conn_id`` (any hashable, usually ``id(conn)``) tells the connections of a unit apart; reports without it count as
    one connection. ``until`` is the moment, on the runner's clock, after which it is not run again. ``fault`` and
    ``exc`` pairs are kept (:meth:`note`), so that the runner knows what an exception meant to the driver it came from.
    """

    __slots__ = ("_barrier", "_closed", "_meanings", "_notes", "_parts", "_until", "attempts", "wrote")

    def __init__(self) -> None:
        self.attempts = 0  #: how many were begun
        self._until = math.inf
        self._closed = False
        self._meanings: list[Callable[[BaseException], Fault | None]] = []
        self._forget()

    def _forget(self) -> None:
        self.wrote = False  #: whether this attempt sent anything but reads
        self._barrier: str | None = None  # why this attempt can never be run again
        self._parts: dict[int | None, _Part] = {}
        self._notes: list[tuple[BaseException, Fault]] = []

    # -- the runner's side ---------------------------------------------------------------------------------------

    @contextmanager
    def within(self, now: float, deadline: float | None) -> Iterator[None]:
        """A nested unit with a deadline of its own, in seconds from *now*: ``until`` is no later inside."""
        token = _inner_until.set(self.until if deadline is None else min(self.until, now + deadline))
        try:
            yield
        finally:
            _inner_until.reset(token)

    @property
    def until(self) -> float:
        """The moment, on the runner's clock, after which it is not run again; inside a nested unit that one's, if earlier."""
        return min(self._until, _inner_until.get())

    @until.setter
    def until(self, moment: float) -> None:
        self._until = moment

    @property
    def closed(self) -> bool:
        """Whether the unit was left: what is reported now is no longer its business."""
        return self._closed

    def join(self, conn_id: int) -> None:
        """The connection *conn_id* works for this unit from now on, whichever thread uses it (:func:`current`)."""
        if not self._closed:
            _joined[conn_id] = self

    def begin_attempt(self) -> None:
        """A new attempt starts: forget what the last one did. It must be over, its connections rolled back or gone."""
        self.attempts += 1
        _attempt.set((self, self.attempts))
        self._closed = False
        self._forget()

    def close(self) -> None:
        """The unit is over; exceptions that were noted are let go. :meth:`verdict` still answers."""
        self._closed = True
        self._notes, self._meanings = [], []
        for conn_id in [key for key, unit in list(_joined.items()) if unit is self]:
            _joined.pop(conn_id, None)

    def note(self, exc: BaseException, fault: Fault) -> None:
        """Remember that *exc* meant *fault* to the driver that raised it."""
        if not self._closed:
            self._notes.append((exc, fault))

    def ask(self, meaning: Callable[[BaseException], Fault | None]) -> None:
        """*meaning* says what an exception that nobody noted means to a driver that works for this unit; None: nothing."""
        if not self._closed and meaning not in self._meanings:
            self._meanings.append(meaning)

    def noted(self) -> tuple[tuple[BaseException, Fault], ...]:
        """What was noted in this attempt, oldest first."""
        return tuple(self._notes)

    def fault_of(self, exc: BaseException) -> Fault | None:
        """What *exc* was noted to mean; else what the exception that it was raised from, or in handling which, was.

        What was noted nowhere along that line, the drivers at work here are asked for (:meth:`ask`).
        """
        known = {id(noted): fault for noted, fault in self._notes}
        line: list[BaseException] = []
        link: BaseException | None = exc
        while link is not None and link not in line:
            if id(link) in known:
                return known[id(link)]
            line.append(link)
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        return next((fault for link in line for meaning in self._meanings if (fault := meaning(link)) is not None), None)

    def verdict(self, fault: Fault, *, conn_id: int | None = None) -> Verdict:
        """What to do now that the attempt failed with *fault*, on the connection *conn_id* where that is known.

        Before a replay, roll back or throw away every connection of the attempt. Pure: asking changes nothing.
        """
        if fault.kind not in _REPLAYABLE:
            return Verdict(Action.RAISE, f"an error of the kind {fault.kind.value!r} is not cured by another attempt")
        parts = dict(self._parts)
        if any(part.pending for part in parts.values()):
            if fault.kind is FaultKind.LOST:
                return Verdict(Action.COMMIT_UNKNOWN, "a COMMIT was sent and the connection was lost before its answer")
            return Verdict(Action.RAISE, "a COMMIT was sent and its answer was not seen")
        if self._barrier is not None:
            return Verdict(Action.RAISE, self._barrier)
        faulty = next(iter(parts)) if conn_id is None and len(parts) == 1 else conn_id
        if any(part.open for key, part in parts.items() if key != faulty):
            return Verdict(Action.RAISE, "another connection still holds writes of this attempt in an open transaction")
        if any(unit is self for key, unit in list(_joined.items()) if key != faulty):
            return Verdict(Action.RAISE, "another task or thread of this attempt still has a connection and may go on to write")
        done = "the server undid the transaction" if fault.kind is FaultKind.RETRY else "nothing was committed"
        return Verdict(Action.REPLAY, f"{done}, and no COMMIT of writes was sent before")

    # -- the driver's side ---------------------------------------------------------------------------------------

    def statement(self, sql: str | bytes | None, autocommit: bool | None, *, conn_id: int | None = None) -> None:
        """*sql* is about to be sent. None: its text is not known.

        *autocommit*: True when it will commit by itself (no transaction is open, autocommit is on), False when it runs
        inside a transaction, None when nobody knows.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        if part.pending:
            self._commit_happened(part)  # what follows a COMMIT on its connection was sent after its answer
        what = kind(sql)
        if what is Kind.READ or what is Kind.ROLLBACK:  # a ROLLBACK counts once it is acknowledged: rolled_back()
            return
        if what is Kind.COMMIT:
            part.pending = part.open
        elif what is Kind.BEGIN:
            if part.open:
                self._bar("a transaction was begun while one with writes was open, which commits that in MySQL")
        else:
            self._wrote(part, what, sql, autocommit)

    def _wrote(self, part: _Part, what: Kind, sql: str | bytes | None, autocommit: bool | None) -> None:
        self.wrote = True
        if what is Kind.ENDS:
            self._bar("a statement of unknown text was sent" if sql is None else f"{_a(verb(sql))} was sent, which may commit by itself")
        elif autocommit is None:
            self._bar(f"{_a(verb(sql))} was sent, and it is not known whether in autocommit")
        elif autocommit:
            self._bar(f"{_a(verb(sql))} was sent in autocommit")
        else:
            part.open = True

    def committing(self, *, conn_id: int | None = None) -> None:
        """A COMMIT is about to be sent. One of a transaction that only read is of no consequence."""
        if self._closed:
            return
        part = self._part(conn_id)
        if part.pending:
            self._commit_happened(part)
        part.pending = part.open

    def committed(self, *, conn_id: int | None = None) -> None:
        """The COMMIT, sent by method or as a statement, was acknowledged."""
        if self._closed:
            return
        part = self._part(conn_id)
        if part.open:
            self._commit_happened(part)

    def commit_failed(self, *, conn_id: int | None = None) -> None:
        """The server ANSWERED the COMMIT, sent by method or as a statement, with an error: nothing was committed."""
        if not self._closed:
            self._part(conn_id).pending = False  # still open: SQLite lets a COMMIT that met a lock be tried again

    def rolled_back(self, *, conn_id: int | None = None) -> None:
        """A ROLLBACK of the whole transaction was acknowledged.

        Where it is the answer to a COMMIT (PostgreSQL's, of a transaction that had failed), call commit_failed() first.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        if part.pending:
            self._commit_happened(part)  # the connection is alive, so that COMMIT was answered, perhaps with success
        part.open = False

    def ended(self, *, conn_id: int | None = None, clean: bool = True) -> None:
        """The connection left the unit. *clean*: with nothing open: rolled back, committed, or closed for good.

        A COMMIT that went out on it without an answer stays unknown.
        """
        if conn_id is not None and _joined.get(conn_id) is self:
            del _joined[conn_id]
        part = self._parts.get(conn_id)
        if part is not None and clean and not self._closed:
            part.open = part.open and part.pending

    def doubt(self, reason: str, *, conn_id: int | None = None) -> None:
        """Something happened that cannot be followed: this attempt is never replayed, because of *reason*."""
        if not self._closed:
            self._part(conn_id)
            self.wrote = True
            self._bar(reason)

    # ------------------------------------------------------------------------------------------------------------

    def _part(self, conn_id: int | None) -> _Part:
        part = self._parts.get(conn_id)
        return self._parts.setdefault(conn_id, _Part()) if part is None else part

    def _commit_happened(self, part: _Part) -> None:
        self._bar("a COMMIT was acknowledged before")  # the barrier first: never a moment without either
        part.open = part.pending = False

    def _bar(self, reason: str) -> None:
        if self._barrier is None:
            self._barrier = reason


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "AEIOUX" else f"a {word}"


# -- which unit is this? -----------------------------------------------------------------------------------------

_current: ContextVar[Unit | None] = ContextVar("unbroken_unit", default=None)

# Which attempt of a unit a task was begun in: it inherits both, and may live on when the attempt is over.
_attempt: ContextVar[tuple[Unit, int] | None] = ContextVar("unbroken_attempt", default=None)

# A nested unit's own deadline. It belongs to the context: nested units stand beside each other in tasks.
_inner_until: ContextVar[float] = ContextVar("unbroken_inner_until", default=math.inf)

#: For hot paths, at 13 ns: None means that there is certainly no unit here; else ask :func:`current`.
glimpse = _current.get


@dataclass(frozen=True, slots=True)
class Token:
    """What :func:`leave` needs. ``unit`` is the one that counts; ``outermost`` says whether it is the one entered."""

    unit: Unit
    outermost: bool
    _context: ContextToken[Unit | None] | None = None


_joined: dict[int, Unit] = {}


def current(conn_id: int | None = None) -> Unit | None:
    """The unit of work that this thread, task or greenlet is in; None outside of one, or after it was left.

    With *conn_id*: the unit that the connection joined, if any. A thread that was started with a context of its own is in
    no unit, but what it does on a connection of one must be reported all the same.
    """
    unit = _current.get()
    if unit is not None and unit._closed:
        unit = None
    owner = None if conn_id is None else _joined.get(conn_id)
    if owner is None or owner is unit:
        return unit
    if unit is not None:
        unit.doubt("a connection of another unit of work was used")
    return owner


def is_left_over() -> bool:
    """Whether who asks is a task (or thread) of an attempt that was given up: its work was, or will be, done again."""
    mine = _attempt.get()
    return mine is not None and mine[1] != mine[0].attempts


def enter(unit: Unit) -> Token:
    """Make *unit* the current one; inside another unit nothing changes: the outermost one counts, and it replays.

    ``token = enter(Unit())``, then call straight through unless ``token.outermost``; :func:`leave` in any case.
    """
    active = current()
    if active is not None:
        return Token(active, False)
    return Token(unit, True, _current.set(unit))


def leave(token: Token) -> None:
    """Undo :func:`enter`. The outermost unit is over with it: reports to it are ignored from now on."""
    if token._context is None:
        return
    token.unit.close()
    try:
        _current.reset(token._context)
    except ValueError:  # left in another context than it was entered in, as an async generator may
        if _current.get() is token.unit:
            _current.set(None)


# -- what goes wrong, told to whoever answers for it ---------------------------------------------------------------

#: Where errors are listed that the work of this context met, whether or not it lets them through: a framework may turn
#: one into a page of its own before those around it can see it. None: nobody wants to know.
_witness: ContextVar[list[BaseException] | None] = ContextVar("unbroken_witness", default=None)

witnesses = _witness.set
no_longer_witnesses = _witness.reset


def testify(exc: BaseException) -> None:
    """Tell whoever answers for the work of this context that it met *exc*."""
    heard = _witness.get()
    if heard is not None:
        heard.append(exc)
