"""The ledger of a unit of work: may it be run again from the start?

Only when it is provable that nothing of it was committed. Whoever sends something reports it here
first, so the ledger never knows less than the server; what it cannot follow counts against a
replay. The rules, in the order in which :meth:`Unit.verdict` applies them when a connection was
lost, or the server asked to try again:

1. a COMMIT of writes was sent and its answer was lost: unknown, never guessed;
2. something may have been committed (an acknowledged COMMIT of writes, a write in autocommit, a
   statement that commits by itself, something that could not be followed), or another attempt would
   end as this one did (the application closed the connection, a statement is too large or ends its
   session): the error goes to the caller;
3. another connection still holds writes of this attempt in an open transaction, or is in the hands
   of a task or thread that the attempt left behind, or a thread or job that the attempt started has
   not ended: likewise, more might still be committed;
4. otherwise whatever was sent is rolled back by the server, and the unit may be run again. Where a
   SELECT was committed that may have called a function that writes, the server is asked first.

Reports come from any thread or task that runs in the unit's context. Each is a few plain attribute
writes, and every one of them only ever makes the ledger more careful, except for those of a
connection's own state, which belongs to the one who uses the connection. So there is no lock. A
unit that was left takes no reports any more.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from contextvars import Token as ContextToken
from dataclasses import dataclass, replace
from enum import StrEnum
from types import FrameType
from typing import Any, Protocol

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.ledger import residue
from unbroken.ledger.questions import PG_LARGEST, Question
from unbroken.ledger.statements import Kind, kind, may_hide_a_write, shape, verb


class Action(StrEnum):
    """What to do with a unit of work that failed."""

    REPLAY = "replay"  #: run it again from the start, on another connection
    RAISE = "raise"  #: hand the error to the caller
    COMMIT_UNKNOWN = "commit unknown"  #: a COMMIT was sent and its answer was lost: say so


class Origin(Protocol):
    """The pool that a connection came from, for the ledger: what can be asked on another one of its
    connections.
    """

    @property
    def backend(self) -> str:
        """``mysql``, ``mariadb``, ``postgresql`` or ``sqlite``."""

    @property
    def may_hide_writes(self) -> bool:
        """Whether a SELECT may store something there, as far as the server said last."""

    def looked(self) -> None:
        """A SELECT was committed that may have stored something."""

    def has_ended(self, entry: Any) -> bool:
        """Whether the other side is known to have ended *entry*, without a round trip."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An action and, in one line, why.

    A replay only after each of *asks* was asked and :meth:`Unit.hear` got the answer.
    """

    action: Action
    reason: str
    asks: tuple[tuple[Origin, Question], ...] = ()


class Fate(StrEnum):
    """What the ledger knows of a unit's writes, over all of its attempts.

    Where the ledger cannot tell *stored* from *unknown*, it says *unknown*.
    """

    NOTHING = "nothing stored"  #: none of its writes is in the database, now or later
    STORED = "stored"  #: the server acknowledged what the unit committed; nothing is in doubt
    UNKNOWN = "unknown"  #: some of its writes may be stored, now or later


_REPLAYABLE = frozenset({FaultKind.LOST, FaultKind.WRONG_SERVER, FaultKind.RETRY})


class _Part:
    """What one connection did in one attempt."""

    __slots__ = (
        "dead",
        "direct",
        "entry",
        "fresh",
        "last",
        "looked",
        "open",
        "origin",
        "pending",
        "reports",
        "savepoints",
        "sent",
        "settling",
        "undoing",
        "unheard",
    )

    def __init__(self) -> None:
        self.origin: Origin | None = None  # the pool that it came from
        self.entry: Any = None  # what that pool knows of it
        self.fresh = False  # it was opened, or used, just before
        self.reports = 0  # how many came
        self.sent = 0  # how many statements went out
        self.last: str | bytes | None = (
            None  # the last of them, as long as nobody told that it was answered
        )
        self.dead = False  # it was lost
        self.looked = (
            False  # a SELECT in the open transaction may have called something that writes
        )
        self.unheard = False  # a COMMIT of that went out, and its answer is not known
        self.open = False  # it wrote in a transaction that nobody has ended
        self.savepoints = True  # … nothing but savepoints
        self.undoing = False  # a ROLLBACK of that went out as text, and its answer is not known
        self.pending = False  # a COMMIT of that went out, and its answer is not known
        self.settling = False  # … of another kind: XA COMMIT
        self.direct = False  # a write in autocommit went out, and its answer is not known

    @property
    def is_unsettled(self) -> bool:
        """Whether something of it may be stored, now or later, without a word of the server's."""
        return self.pending or self.direct or (self.open and not self.savepoints)

    def add(self, other: _Part) -> None:
        """What *other* did counts as done here."""
        self.savepoints = self.savepoints and other.savepoints
        self.open = self.open or other.open
        self.undoing = self.undoing or other.undoing
        self.pending = self.pending or other.pending
        self.settling = self.settling or other.settling
        self.direct = self.direct or other.direct


#: A statement of more bytes may be larger than the server takes (the least value of
#: max_allowed_packet is 1,024).
_LARGE = 1_000

#: A statement of the kind WRITE that begins so stores nothing. Other spellings count as writes.
_SAVEPOINTS = frozenset(
    {"SAVEPOINT", b"SAVEPOINT", "RELEASE S", b"RELEASE S", "ROLLBACK ", b"ROLLBACK "}
)


class Unit:
    """One unit of work, over all its attempts. Reports cost about 0.3 µs each.

    ``conn_id`` (any hashable, usually ``id(conn)``) tells the connections of a unit apart; reports
    without it count as one connection. ``until`` is the moment, on the runner's clock, after which
    it is not run again. ``fault`` and ``exc`` pairs are kept (:meth:`note`), so that the runner
    knows what an exception meant to the driver it came from.

    *observing*: the unit watches a whole request and is never replayed. Units that are entered
    inside it replay as they would without it, and their reports count for its :meth:`fate`.
    """

    __slots__ = (
        "__weakref__",
        "_barrier",
        "_closed",
        "_deaths",
        "_helpers",
        "_inner",
        "_limits",
        "_looks",
        "_meanings",
        "_notes",
        "_parts",
        "_pauses",
        "_stored",
        "_token",
        "_unanswered",
        "_uncertain",
        "_until",
        "above",
        "attempts",
        "met",
        "observing",
        "wrote",
    )

    def __init__(self, *, observing: bool = False) -> None:
        self.observing = observing
        self.above: Unit | None = None  #: the observing unit that this one was entered in
        self.attempts = 0  #: how many were begun
        self.met = 0  #: how many errors were noted, in all attempts and in the units inside
        self._until = math.inf
        self._closed = False
        self._token: weakref.ref[Token] | None = None  # of :func:`enter`
        self._meanings: list[Callable[[BaseException], Fault | None]] = []
        self._inner: list[Unit] = []  # entered in this observing one, and not left yet
        self._stored = False  # the server acknowledged something
        self._uncertain = False  # something may be stored, and nobody will ever say so
        # writes of which nothing was heard yet: see :meth:`sends`
        self._unanswered: set[int] = set()
        self._deaths: dict[
            str, set[int]
        ] = {}  # in which attempts a statement ended its connection, which had just worked
        self._pauses: dict[
            int, set[int]
        ] = {}  # … or a pause did, by the number of statements before it
        self._limits: dict[int, int | None] = {}  # how large a statement a origin takes, by its id
        self._forget()

    def _forget(self) -> None:
        self.wrote = False  #: whether this attempt sent anything but reads
        self._barrier: str | None = None  # why this attempt can never be run again
        self._parts: dict[int | None, _Part] = {}
        self._looks: dict[
            int, Origin | None
        ] = {}  # where a SELECT was committed that may have written, by the origin's id
        self._notes: list[tuple[BaseException, Fault]] = []
        self._helpers: list[
            Callable[[], bool]
        ] = []  # threads and jobs of this attempt: have they ended?

    # -- the runner's side -------------------------------------------------------------------------

    @contextmanager
    def within(self, now: float, deadline: float | None) -> Iterator[None]:
        """A nested unit with a deadline of its own, in seconds from *now*: ``until`` is no later
        inside.
        """
        token = None
        try:
            token = _inner_until.set(
                (self, self.until if deadline is None else min(self.until, now + deadline))
            )
            yield
        finally:
            if token is not None:
                _inner_until.reset(token)

    @property
    def until(self) -> float:
        """The moment, on the runner's clock, after which it is not run again; inside a nested unit
        that one's, if earlier.
        """
        inner = _inner_until.get()
        return self._until if inner is None or inner[0] is not self else min(self._until, inner[1])

    @until.setter
    def until(self, moment: float) -> None:
        self._until = moment

    @property
    def closed(self) -> bool:
        """Whether the unit was left: what is reported now is no longer its business."""
        return self._closed

    @property
    def is_gone(self) -> bool:
        """Whether nobody can leave the unit any more: it was left, or an exception kept its runner
        from leaving it.
        """
        return self._token is not None and self._token() is None

    @property
    def is_over(self) -> bool:
        """Whether the unit was closed, or its runner is gone."""
        return self._closed or (self._token is not None and self._token() is None)

    def helped_by(self, is_done: Callable[[], bool]) -> None:
        """A thread or a job was started that works for this attempt. *is_done* says whether it has
        ended; it never raises.
        """
        if len(self._helpers) > 100:
            self._helpers = [each for each in self._helpers if not each()]
        self._helpers.append(is_done)

    def _is_helped(self) -> bool:
        return any(not is_done() for is_done in list(self._helpers))

    def join(
        self, conn_id: int, origin: Origin | None = None, entry: Any = None, *, fresh: bool = False
    ) -> None:
        """The connection *conn_id* works for this unit from now on, whichever thread uses it
        (:func:`current`).

        *origin* is where another one can be taken to ask something; *entry* is what it knows of
        this one, which was opened or used just now if it is *fresh*.
        """
        if not self._closed:
            _joined[conn_id] = self
            part = self._known(conn_id)
            part.origin, part.entry, part.fresh = origin, entry, part.fresh or fresh

    def has(self, conn_id: int) -> bool:
        """Whether the connection *conn_id* works for this unit, which hears of all that is sent on
        it.
        """
        return _joined.get(conn_id) is self

    def reports(self, conn_id: int) -> int:
        """How many reports came from *conn_id* in this attempt.

        None, though it sent something, means that it is not seen.
        """
        part = self._parts.get(conn_id)
        return 0 if part is None else part.reports

    def begin_attempt(self) -> None:
        """A new attempt starts: forget what the last one did.

        It must be over, its connections rolled back or gone.
        """
        _attempt.set((self, self.attempts + 1))  # first: nobody is left over in between
        self.attempts += 1
        self._closed = False
        self._forget()

    def close(self) -> None:
        """The unit is over; exceptions that were noted are let go.

        :meth:`verdict` still answers.
        """
        self._closed = True
        self._notes, self._meanings = [], []
        for conn_id in [key for key, unit in list(_joined.items()) if unit is self]:
            _joined.pop(conn_id, None)

    def fate(self) -> Fate:
        """What is known now of the writes of all attempts; also of those of units inside this one.

        It answers after the unit was left, too. Writes in an open transaction are *unknown*: end
        the transaction before you ask. So is what a thread does that the unit started and that
        has not ended, and what a SELECT may have stored.
        """
        if (
            self._uncertain
            or self._unanswered
            or self._is_helped()
            or any(part.is_unsettled for part in list(self._parts.values()))
        ):
            return Fate.UNKNOWN
        if any(origin is None or origin.may_hide_writes for origin in list(self._looks.values())):
            return Fate.UNKNOWN
        inner = {unit.fate() for unit in list(self._inner)}
        if Fate.UNKNOWN in inner:
            return Fate.UNKNOWN
        return Fate.STORED if self._stored or Fate.STORED in inner else Fate.NOTHING

    def note(self, exc: BaseException, fault: Fault) -> None:
        """Remember that *exc* meant *fault* to the driver that raised it."""
        if self._closed:
            return
        self.met += 1
        if not self.observing:
            self._notes.append((exc, fault))

    def ask(self, meaning: Callable[[BaseException], Fault | None]) -> None:
        """*meaning* says what an exception that nobody noted means to a driver that works for this
        unit; None: nothing.
        """
        if not self._closed and not self.observing and meaning not in self._meanings:
            self._meanings.append(meaning)

    def noted(self) -> tuple[tuple[BaseException, Fault], ...]:
        """What was noted in this attempt, oldest first."""
        return tuple(self._notes)

    def fault_of(self, exc: BaseException) -> Fault | None:
        """What *exc* was noted to mean; else what the exception that it was raised from, or in
        handling which, was.

        What was noted nowhere along that line, the drivers at work here are asked for
        (:meth:`ask`).
        """
        known = {id(noted): fault for noted, fault in self._notes}
        line: list[BaseException] = []
        link: BaseException | None = exc
        while link is not None and link not in line:
            if id(link) in known:
                return known[id(link)]
            line.append(link)
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        return next(
            (
                fault
                for link in line
                for meaning in self._meanings
                if (fault := meaning(link)) is not None
            ),
            None,
        )

    def verdict(self, fault: Fault, *, conn_id: int | None = None) -> Verdict:
        """What to do now that the attempt failed with *fault*, on the connection *conn_id* where
        that is known.

        Before a replay, roll back or throw away every connection of the attempt. Pure: asking
        changes nothing.
        """
        if fault.kind not in _REPLAYABLE:
            return Verdict(
                Action.RAISE,
                f"an error of the kind {fault.kind.value!r} is not cured by another attempt",
            )
        parts = dict(self._parts)
        if any(part.pending for part in parts.values()):
            if fault.kind is FaultKind.LOST:
                return Verdict(
                    Action.COMMIT_UNKNOWN,
                    "a COMMIT was sent and the connection was lost before its answer",
                )
            return Verdict(Action.RAISE, "a COMMIT was sent and its answer was not seen")
        against = self._against(fault, conn_id, parts)
        if against is not None:
            return Verdict(Action.RAISE, against)
        done = (
            "the server undid the transaction"
            if fault.kind is FaultKind.RETRY
            else "nothing was committed"
        )
        return Verdict(
            Action.REPLAY, f"{done}, and no COMMIT of writes was sent before", self._asks(parts)
        )

    def _against(
        self, fault: Fault, conn_id: int | None, parts: dict[int | None, _Part]
    ) -> str | None:
        """What forbids a replay, if anything."""
        if self._barrier is not None:
            return self._barrier
        if fault.cause is Cause.CLOSED_BY_HOLDER:
            return "the connection was closed by the code that had it"
        faulty = next(iter(parts)) if conn_id is None and len(parts) == 1 else conn_id
        if any(part.open for key, part in parts.items() if key != faulty):
            return "another connection still holds writes of this attempt in an open transaction"
        if any(unit is self for key, unit in list(_joined.items()) if key != faulty):
            return (
                "another task or thread of this attempt still has a connection and may go on to"
                " write"
            )
        if self._is_helped():
            return (
                "a thread or a job that this attempt started has not ended and may go on to write"
            )
        if None in self._looks.values():
            return (
                "a SELECT was committed that may have called a function that writes, and nobody can"
                " be asked"
            )
        return self._too_large(parts) or self._always_fatal()

    def _always_fatal(self) -> str | None:
        for attempts in self._deaths.values():
            if self.attempts in attempts and len(attempts) > 1:
                return (
                    "two attempts lost a connection that had just worked at the same statement:"
                    " what is sent there ends its session"
                )
        for attempts in self._pauses.values():
            if self.attempts in attempts and len(attempts) > 1:
                return (
                    "two attempts asked nothing of the server for longer than it lets a session or"
                    " a transaction idle, at the same point"
                )
        return None

    def _too_large(self, parts: dict[int | None, _Part]) -> str | None:
        for part in parts.values():
            size = part.dead and part.origin is not None and _size(part.last)
            if not size or part.origin is None:
                continue
            limit = (
                PG_LARGEST
                if part.origin.backend == "postgresql"
                else self._limits.get(id(part.origin), 0)
            )
            if limit is None:
                return "how large a statement the server takes could not be asked"
            if 0 < limit <= size:
                name = "" if part.origin.backend == "postgresql" else "max_allowed_packet = "
                return (
                    f"{_a(verb(part.last))} of {size:,} bytes was sent, and the server takes"
                    f" {name}{limit:,} bytes at most"
                )
        return None

    def _asks(self, parts: dict[int | None, _Part]) -> tuple[tuple[Origin, Question], ...]:
        """What the server has to be asked before the replay."""
        hidden = [
            (origin, Question.HIDDEN_WRITES)
            for origin in self._looks.values()
            if origin is not None
        ]
        large = {
            id(part.origin): (part.origin, Question.PACKET)
            for part in parts.values()
            if part.dead
            and part.origin is not None
            and _is_mysql(part.origin)
            and id(part.origin) not in self._limits
            if _size(part.last) > _LARGE
        }
        return (*hidden, *large.values())

    def hear(self, origin: Origin, question: Question, answer: Any) -> None:
        """The *answer* of :attr:`Verdict.asks` (see :class:`Question`); None: it could not be
        had.
        """
        if question is Question.PACKET:
            self._limits[id(origin)] = answer
            return
        self._looks.pop(id(origin), None)
        if answer == "":
            return
        self.wrote = self._uncertain = True
        for part in list(self._parts.values()):
            if part.origin is origin and part.unheard:
                part.open = part.pending = True
        why = answer or "the server could not be asked whether it called a function that writes"
        self._bar(f"a SELECT was committed, and {why}")

    def found_demoted(self) -> None:
        """The server that refused a write as read-only takes none from anybody: a failover, so
        another attempt may help.
        """
        self._notes = [(exc, _demoted(fault)) for exc, fault in self._notes]

    # -- the driver's side -------------------------------------------------------------------------

    def harmless(self, *, conn_id: int | None = None) -> None:
        """A command is about to be sent that neither reads nor changes anything, such as a ping."""
        if not self._closed:
            self._part(conn_id)

    def statement(
        self, sql: str | bytes | None, autocommit: bool | None, *, conn_id: int | None = None
    ) -> None:
        """*sql* is about to be sent. None: its text is not known.

        *autocommit*: True when it will commit by itself (no transaction is open, autocommit is on),
        False when it runs inside a transaction, None when nobody knows.
        """
        if residue.followed:
            residue.note(conn_id, sql)
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        self._goes_out(part, sql)
        what = kind(sql)
        if what is Kind.READ:
            if may_hide_a_write(sql):
                self._look(part, autocommit)
        elif what is Kind.ROLLBACK:
            part.undoing = part.open  # it counts once it is acknowledged: rolled_back()
        elif what is Kind.COMMIT:
            self._commit_goes_out(part)
            part.pending = part.open
        elif what is Kind.SETTLES:
            self.wrote = part.open = part.pending = part.settling = True
            part.savepoints = False
        elif what is Kind.BEGIN:
            self._commit_goes_out(part)
            if part.open:
                self._uncertain = True
                self._bar(
                    "a transaction was begun while one with writes was open, which commits that in"
                    " MySQL"
                )
        else:
            self._wrote(part, what, sql, autocommit)

    def _goes_out(self, part: _Part, sql: str | bytes | None) -> None:
        """What was lost before it is not lost by *sql*.

        A look at the socket costs as much as a report, so only later attempts take one.
        """
        part.sent += 1
        part.last = sql
        entry = part.entry
        if entry is not None and (
            entry.cause is not None
            or (self.attempts > 1 and part.origin is not None and part.origin.has_ended(entry))
        ):
            part.last = None

    def _look(self, part: _Part, autocommit: bool | None) -> None:
        """A SELECT goes out that may call something that writes."""
        part.looked = True
        if autocommit is not False:
            self._commit_goes_out(part)

    def _commit_goes_out(self, part: _Part) -> None:
        """What was looked at may be committed from now on."""
        if part.looked:
            part.looked, part.unheard = False, True
            self._looks[id(part.origin)] = part.origin
            if part.origin is not None:
                part.origin.looked()

    def _wrote(
        self, part: _Part, what: Kind, sql: str | bytes | None, autocommit: bool | None
    ) -> None:
        self.wrote = True
        is_savepoint = isinstance(sql, (str, bytes)) and sql[:9].upper() in _SAVEPOINTS
        if what is Kind.ENDS:
            self._uncertain = True
            self._bar(
                "a statement of unknown text was sent"
                if sql is None
                else f"{_a(verb(sql))} was sent, which may commit by itself"
            )
        elif autocommit is None:
            self._uncertain = True
            self._bar(f"{_a(verb(sql))} was sent, and it is not known whether in autocommit")
        elif autocommit:
            part.direct = part.direct or not is_savepoint
            self._bar(f"{_a(verb(sql))} was sent in autocommit")
        else:
            part.savepoints = is_savepoint and (part.savepoints or not part.open)
            part.open = True

    def committing(self, *, conn_id: int | None = None) -> None:
        """A COMMIT is about to be sent. One of a transaction that only read never stops a replay.

        An observing unit is never replayed, so it waits for the answer to that COMMIT as well: a
        function that a SELECT called may have written.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        self._goes_out(part, "COMMIT")
        self._commit_goes_out(part)
        part.pending = part.open or self.observing

    def committed(self, *, conn_id: int | None = None) -> None:
        """The COMMIT, sent by method or as a statement, was acknowledged."""
        if self._closed:
            return
        part = self._part(conn_id)
        part.last = None
        if part.open:
            self._stored = self._stored or not part.savepoints
            self._uncertain = self._uncertain or part.undoing
            self._commit_happened(part)
        part.pending = part.unheard = False

    def acknowledged(self, *, conn_id: int | None = None, stored: bool = True) -> None:
        """The server answered the last write in autocommit, or the last ``XA COMMIT`` and its like.

        *stored*: True for success, False for an error that undid all of the statement. A driver
        that is certain of neither does not call this; then the fate stays *unknown*.
        """
        part = None if self._closed else self._parts.get(conn_id)
        if part is not None:
            part.last = None
        if part is not None and part.direct:
            self._stored = self._stored or stored  # first: never a moment without either
            part.direct = False
        if part is not None and part.settling:
            self._stored = self._stored or stored
            if stored:
                self._commit_happened(part)
            else:
                part.open = part.pending = part.settling = False

    def commit_failed(self, *, conn_id: int | None = None) -> None:
        """The server ANSWERED the COMMIT, sent by method or as a statement, with an error: nothing
        was committed.
        """
        if not self._closed:
            self._part(
                conn_id
            ).pending = False  # still open: SQLite lets a COMMIT that met a lock be tried again

    def rolled_back(self, *, conn_id: int | None = None) -> None:
        """A ROLLBACK of the whole transaction was acknowledged.

        Where it is the answer to a COMMIT (PostgreSQL's, of a transaction that had failed), call
        commit_failed() first.
        """
        if self._closed:
            return
        part = self._part(conn_id)
        self._answered(part)
        part.open = part.undoing = part.looked = False
        part.last = None

    def ended(
        self,
        *,
        conn_id: int | None = None,
        clean: bool = True,
        lost: bool = False,
        paused: bool = False,
    ) -> None:
        """The connection left the unit. *clean*: with nothing open: rolled back, committed, or
        closed for good.

        A COMMIT that went out on it without an answer stays unknown. *lost*: the other side ended
        it, and nobody knows why. *paused*: the other side ended it because nothing was asked of it
        for too long.
        """
        if conn_id is not None and _joined.get(conn_id) is self:
            del _joined[conn_id]
        part = self._parts.get(conn_id)
        if part is None or self._closed:
            return
        if clean:
            part.open = part.open and part.pending
            part.undoing = part.undoing and part.open
            part.looked = False
            part.unheard = part.unheard and lost
        if paused and part.sent and (part.fresh or part.sent > 1):
            # else it had been idle before it came here
            self._pauses.setdefault(part.sent, set()).add(self.attempts)
        if lost:
            part.dead = True
            is_to_blame = part.last is not None and kind(part.last) not in (
                Kind.BEGIN,
                Kind.ROLLBACK,
            )
            if is_to_blame and part.last is not None and (part.fresh or part.sent > 1):
                self._deaths.setdefault(shape(part.last), set()).add(self.attempts)

    def doubt(self, reason: str, *, conn_id: int | None = None) -> None:
        """Something happened that cannot be followed: this attempt is never replayed, because of
        *reason*.
        """
        if residue.followed:
            residue.note(conn_id, None)
        if not self._closed:
            self._part(conn_id)
            self.wrote = self._uncertain = True
            self._bar(reason)

    def sends(self, key: int, reason: str) -> None:
        """A write outside of any connection that this unit has joined is being sent: this attempt
        is never replayed, because of *reason*, and its fate is unknown until :meth:`answered`."""
        if not self._closed:
            self._part(None)
            self.wrote = True
            self._unanswered.add(key)
            self._bar(reason)

    def answered(self, key: int, *, stored: bool) -> None:
        """The server's word on the write *key*: stored, or nothing stored."""
        if not self._closed and key in self._unanswered:
            self._unanswered.discard(key)
            self._stored = self._stored or stored

    def forbid(self, reason: str, *, conn_id: int) -> None:
        """The unit uses the connection *conn_id*, which was in use before: this attempt is never
        replayed, because of *reason*.

        The fate stays known where this unit, or an observing one above it, hears of everything
        that is sent on the connection. Otherwise this is a :meth:`doubt`.
        """
        if self._hears(conn_id):
            if not self._closed:
                self._bar(reason)
        else:
            self.doubt(reason)

    # ----------------------------------------------------------------------------------------------

    def _known(self, conn_id: int | None) -> _Part:
        part = self._parts.get(conn_id)
        return self._parts.setdefault(conn_id, _Part()) if part is None else part

    def _part(self, conn_id: int | None) -> _Part:
        part = self._known(conn_id)
        part.reports += 1
        return part

    def _answered(self, part: _Part) -> None:
        """A report follows on this connection, so the server answered what went out before.

        The driver did not say how the server answered: the fate is unknown.
        """
        part.unheard = False
        if part.direct:
            self._uncertain, part.direct = True, False
        if part.pending:
            self._uncertain = self._uncertain or part.open
            self._commit_happened(part)

    def _commit_happened(self, part: _Part) -> None:
        # the barrier first: never a moment without either
        self._bar("a COMMIT was acknowledged before")
        part.open = part.pending = part.undoing = part.settling = False

    def _hears(self, conn_id: int) -> bool:
        """Whether reports on the connection *conn_id* reach this unit or one above it."""
        owner = _joined.get(conn_id)
        return owner is not None and self._is_within(owner)

    def _is_within(self, other: Unit) -> bool:
        """Whether this unit is *other*, or stands below it."""
        unit: Unit | None = self
        while unit is not None and unit is not other:
            unit = unit.above
        return unit is not None

    def _hand_over(self, observer: Unit) -> None:
        """The unit ends: its fate, and what is open on its connections, is now the *observer*'s."""
        if self._stored:
            observer._stored = True
        if self._uncertain:
            observer._uncertain = True
        observer.met += self.met
        if observer._closed:
            return
        observer._looks.update(self._looks)
        observer._helpers += [each for each in self._helpers if not each()]
        for conn_id, part in list(self._parts.items()):
            if part.is_unsettled:
                observer._part(conn_id).add(part)
        for conn_id, unit in list(_joined.items()):
            if unit is self:
                observer._part(conn_id).reports = self.reports(conn_id)
                _joined[conn_id] = observer

    def _bar(self, reason: str) -> None:
        if self._barrier is None:
            self._barrier = reason


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "AEIOUX" else f"a {word}"


def _size(sql: str | bytes | None) -> int:
    """The bytes of *sql* and of the command that carries it."""
    if sql is None:
        return 0
    return 1 + (
        len(sql)
        if isinstance(sql, (bytes, bytearray)) or len(sql) * 4 < _LARGE
        else len(sql.encode("utf-8", "replace"))
    )


def _is_mysql(origin: Origin) -> bool:
    return origin.backend in ("mysql", "mariadb")


def _demoted(fault: Fault) -> Fault:
    return (
        replace(fault, kind=FaultKind.WRONG_SERVER, cause=Cause.FAILOVER)
        if fault.kind is FaultKind.READ_ONLY
        else fault
    )


# -- which unit is this? ---------------------------------------------------------------------------


class Surroundings(Protocol):
    """Threads, tasks and greenlets, which the core knows nothing of.

    :mod:`unbroken.pool.contexts` does.
    """

    def place(self) -> object:
        """Where this code runs.

        Two places are equal for code of the same thread, task or greenlet.
        """

    def is_running(self, frame: int) -> bool:
        """Whether the frame with this ``id`` is among the callers of this code."""

    def entering(self) -> None:
        """A unit is about to be entered."""

    def find_out(self) -> Unit | None:
        """The unit of a context that was never told one; None where it is in no unit."""


class _Alone:
    """There is one thread, and nothing is handed over."""

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


around: Surroundings = _Alone()

#: What a context holds that was never told its unit. A context inherits what the one has in which
#: it was made; only the first of a thread and ``Context()`` begin with this.
UNTOLD: Any = type("Untold", (), {"__slots__": ()})()

_current: ContextVar[Unit | None] = ContextVar("unbroken_unit", default=UNTOLD)

# Which attempt of a unit a task was begun in: it inherits both, and may live on when the attempt is
# over.
_attempt: ContextVar[tuple[Unit, int] | None] = ContextVar("unbroken_attempt", default=None)

# A nested unit's own deadline. It belongs to the context: nested units stand beside each other in
# tasks.
_inner_until: ContextVar[tuple[Unit, float] | None] = ContextVar(
    "unbroken_inner_until", default=None
)

#: For hot paths, at 13 ns: None means that there is certainly no unit here; else ask
#: :func:`current`.
current_token = _current.get


class Token:
    """What :func:`leave` needs. ``unit`` is the one that counts; ``outermost`` says whether it is
    the one entered.

    The unit ends with its token: a token that nobody holds any more cannot be given to
    :func:`leave`.
    """

    __slots__ = ("__weakref__", "_context", "frame", "outermost", "place", "unit")

    def __init__(self, unit: Unit, outermost: bool, frame: int | None = None) -> None:
        self.unit, self.outermost = unit, outermost
        self.frame = frame  #: the ``id`` of the frame that leaves it before it returns
        self.place: object = None
        self._context: ContextToken[Unit | None] | None = None


_joined: dict[int, Unit] = {}
_entered: dict[int, weakref.ref[Token]] = {}


def entered() -> list[Token]:
    """The tokens of all units of this process that were entered and not left, oldest first."""
    tokens = [ref() for ref in list(_entered.values())]
    return [token for token in tokens if token is not None and not token.unit.is_over]


def current(conn_id: int | None = None) -> Unit | None:
    """The unit of work that this thread, task or greenlet is in; None outside of one, or after it
    was left.

    With *conn_id*: the unit that the connection joined, if any. A thread that was started with a
    context of its own is in no unit, but what it does on a connection of one must be reported all
    the same.
    """
    unit = _current.get()
    owner = None if conn_id is None else _joined.get(conn_id)
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
    """The unit that the connection has joined and not left."""
    return _joined.get(conn_id)


def _above(unit: Unit | None) -> Unit | None:
    """The unit that counts where *unit*, which is over, was entered.

    A unit that cannot come back is forgotten here.
    """
    is_gone = True
    while unit is not None and unit.is_over:
        is_gone = is_gone and unit.is_gone
        unit = unit.above
    if is_gone:
        _current.set(unit)
    return unit


def tell(unit: Unit | None, attempt: tuple[Unit, int] | None = None) -> None:
    """From now on this context is in *unit*, or in none; *attempt* is what :func:`attempt` gave
    where the unit is known.
    """
    _current.set(unit)
    _attempt.set(attempt)


def is_told(context: Context) -> bool:
    """Whether *context* knows its unit, or that it is in none."""
    return context.get(_current, UNTOLD) is not UNTOLD


def told(context: Context) -> Unit | None:
    """What *context* knows."""
    unit = context.get(_current, None)
    return None if unit is None or unit.is_over else unit


def apart() -> Context:
    """A new context that is in no unit, for work that belongs to everybody."""
    context = Context()
    context.run(tell, None)
    return context


#: Of which attempt this context is, for :func:`tell`.
attempt = _attempt.get


@contextmanager
def aside(unit: Unit) -> Iterator[None]:
    """Make *unit* the current one for a while, inside another unit too, which hears nothing of
    it.
    """
    token = _current.set(unit)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def outside() -> Iterator[None]:
    """Be in no unit for a while: what is done inside is no unit's business."""
    unit = _current.get()
    try:
        _current.set(None)
        yield
    finally:
        _current.set(unit)


def is_left_over() -> bool:
    """Whether who asks is a task (or thread) of an attempt that was given up: its work was, or will
    be, done again.
    """
    mine = _attempt.get()
    return mine is not None and mine[1] < mine[0].attempts


def enter(unit: Unit, frame: int | None = None) -> Token:
    """Make *unit* the current one; inside another unit nothing changes: the outermost one counts,
    and it replays.

    A unit that is entered inside an observing one is an outermost one too; it stands below it.
    *frame* is the ``id`` of the caller's frame, if that leaves the unit before it returns: a unit
    whose frame is gone was never left, and is none.

    ``token = enter(Unit())`` inside ``try``, then call straight through unless ``token.outermost``;
    :func:`leave` in any case, and hold the token until then.
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
    except BaseException:  # a signal's: nobody will leave what was never entered
        unit.close()
        raise


def _not_stale(unit: Unit | None, place: object) -> Unit | None:
    """*unit*, or the one above it, without those that an exception kept from being left."""
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


_current.set(None)  # whoever imports this is in no unit, and so is what its context is copied to


# -- what goes wrong, told to whoever answers for it -----------------------------------------------

#: Where errors are listed that the work of this context met, whether or not it lets them through: a
#: framework may turn one into a page of its own before those around it can see it. None: nobody
#: wants to know.
_witness: ContextVar[list[BaseException] | None] = ContextVar("unbroken_witness", default=None)

witnesses = _witness.set
no_longer_witnesses = _witness.reset


def testify(exc: BaseException) -> None:
    """Tell whoever answers for the work of this context that it met *exc*."""
    heard = _witness.get()
    if heard is not None:
        heard.append(exc)
