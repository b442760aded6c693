"""The fields of a unit of work, and the values that its runner writes there."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from unbroken.abc import Fault
from unbroken.ledger.part import Part
from unbroken.ledger.verdicts import Fate, Origin

#: Which :class:`~unbroken.ledger.unit.Unit` a connection works for, by its ``conn_id``.
joined: dict[int, Any] = {}

# The attempt of a unit in which a task was begun. The task inherits both, and may live on when the
# attempt is over.
attempt_here: ContextVar[tuple[Any, int] | None] = ContextVar("unbroken_attempt", default=None)

# A nested unit's own deadline. It belongs to the context, because nested units can run in parallel
# tasks.
_inner_until: ContextVar[tuple[Deeds, float] | None] = ContextVar(
    "unbroken_inner_until", default=None
)


class Deeds:
    """The record of a unit of work, over all its attempts; :class:`unbroken.ledger.unit.Unit`
    completes it.
    """

    __slots__ = (
        "__weakref__",
        "_barrier",
        "_closed",
        "_deaths",
        "_helpers",
        "_inner",
        "_keeps",
        "_limits",
        "_looks",
        "_meanings",
        "_notes",
        "_parts",
        "_pauses",
        "_peeked",
        "_stored",
        "_token",
        "_unanswered",
        "_uncertain",
        "_until",
        "above",
        "attempts",
        "grant",
        "has_paid",
        "met",
        "observing",
        "subject",
        "wrote",
    )

    def __init__(self, *, observing: bool = False) -> None:
        self.observing = observing
        self.above: Any = None  #: the observing unit that this one was entered in
        self.subject: Any = None  #: its function, or its request: see :mod:`.subjects`
        self.attempts = 0  #: the number of attempts begun
        self.met = 0  #: the number of errors noted, in all attempts and in the units inside
        #: the attempt that asked the retry budget last, and whether another one may follow it
        self.grant = 0, True
        self.has_paid = False  #: for the replays after a wait for the end of an outage
        self._until = math.inf
        self._closed = False
        self._token: weakref.ref[Any] | None = None  # of :func:`enter`
        self._meanings: list[Callable[[BaseException], Fault | None]] = []
        self._inner: list[Any] = []  # entered in this observing one, and not left yet
        self._stored = False  # the server acknowledged something
        self._uncertain = False  # something may be stored, and no later answer will tell
        self._keeps = False  # a write may survive a rollback
        # the origins where a SELECT may have called a function that wrote so, by their id
        self._peeked: dict[int, Origin] = {}
        # writes that are not answered yet: see :meth:`sends`
        self._unanswered: set[int] = set()
        self._deaths: dict[
            str, set[int]
        ] = {}  # in which attempts a statement ended its connection, which had just worked
        self._pauses: dict[
            int, set[int]
        ] = {}  # … or a pause did, by the number of statements before it
        # the largest statement that an origin takes, by its id
        self._limits: dict[int, int | None] = {}
        self._forget()

    def _forget(self) -> None:
        self.wrote = False  #: whether this attempt sent anything but reads
        self._barrier: str | None = None  # why this attempt can never be run again
        self._parts: dict[int | None, Part] = {}
        self._looks: dict[
            int, Origin | None
        ] = {}  # where a SELECT was committed that may have written, by the origin's id
        self._notes: list[tuple[BaseException, Fault]] = []
        self._helpers: list[
            Callable[[], bool]
        ] = []  # threads and jobs of this attempt: have they ended?

    @contextmanager
    def within(self, now: float, deadline: float | None) -> Iterator[None]:
        """Enter a nested unit with a deadline of its own, in seconds from *now*: ``until`` is no
        later inside.
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
        """Whether the unit was left: later reports are no longer its business."""
        return self._closed

    @property
    def is_gone(self) -> bool:
        """Return whether no code can leave the unit any more: it was left, or an exception kept its
        runner from leaving it.
        """
        return self._token is not None and self._token() is None

    @property
    def is_over(self) -> bool:
        """Return whether the unit was closed, or its runner is gone."""
        return self._closed or (self._token is not None and self._token() is None)

    def helped_by(self, is_done: Callable[[], bool]) -> None:
        """Note that a thread or a job was started that works for this attempt. *is_done* returns
        whether it has ended; it never raises.
        """
        if len(self._helpers) > 100:
            self._helpers = [each for each in self._helpers if not each()]
        self._helpers.append(is_done)

    def _is_helped(self) -> bool:
        return any(not is_done() for is_done in list(self._helpers))

    def join(
        self,
        conn_id: int,
        origin: Origin | None = None,
        entry: Any = None,
        *,
        fresh: bool = False,
        older: bool = False,
    ) -> None:
        """Make the connection *conn_id* work for this unit from now on, on any thread that uses it
        (:func:`current`).

        *origin* is the pool where another one can be taken to send a query. *entry* is the pool's
        record of this one, which was opened or used just now if it is *fresh*. *older*: it was open
        when the attempt before this one lost its connection, so the same event may have ended both.
        """
        if not self._closed:
            joined[conn_id] = self
            part = self._known(conn_id)
            part.origin, part.entry, part.fresh = origin, entry, part.fresh or fresh
            part.older = part.older or older

    def has(self, conn_id: int) -> bool:
        """Return whether the connection *conn_id* works for this unit, which gets a report of
        everything sent on it.
        """
        return joined.get(conn_id) is self

    def reports(self, conn_id: int) -> int:
        """Return how many reports came from *conn_id* in this attempt.

        If there are none although it sent something, its statements are not seen.
        """
        part = self._parts.get(conn_id)
        return 0 if part is None else part.reports

    def begin_attempt(self) -> None:
        """Start a new attempt: clear the record of the last one.

        That one must be over, its connections rolled back or gone.
        """
        attempt_here.set((self, self.attempts + 1))  # first: no task is left over in between
        self.attempts += 1
        self._closed = False
        self._forget()

    def close(self) -> None:
        """Close the unit. It drops the noted exceptions, its subject, and its joined connections.

        :meth:`verdict` still answers.
        """
        self._closed = True
        self._notes, self._meanings, self.subject = [], [], None
        for conn_id in [key for key, unit in list(joined.items()) if unit is self]:
            joined.pop(conn_id, None)

    def fate(self) -> Fate:
        """Return what is known now of the writes of all attempts; also of those of units inside
        this one.

        It answers after the unit was left, too. Writes in an open transaction are *unknown*: end
        the transaction before you ask. Also *unknown* are the writes of a thread that the unit
        started and that has not ended, and those that a SELECT may have stored.
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

    def may_keep_rows(self) -> bool:
        """Return whether writes of any attempt may have gone to tables without transactions: a fate
        of NOTHING does not count their rows.

        This is true for a server that may have such tables, and for an unknown server.
        """
        return (
            self._keeps
            or any(origin.may_hide_writes for origin in list(self._peeked.values()))
            or any(unit.may_keep_rows() for unit in list(self._inner))
        )

    def fate_of_open(self, conn_id: int) -> Fate:
        """Return the fate of the transaction that is open on *conn_id* if the connection ends now.

        NOTHING: the server rolls it back. UNKNOWN: a COMMIT or a write in autocommit is under way
        there, or something was sent unreported. Pure.
        """
        part = self._parts.get(conn_id)
        in_doubt = part is None or part.pending or part.direct or part.doubted or part.settling
        return Fate.UNKNOWN if in_doubt or self._uncertain else Fate.NOTHING

    def note(self, exc: BaseException, fault: Fault) -> None:
        """Record that *exc* meant *fault* to the driver that raised it."""
        if self._closed:
            return
        self.met += 1
        if not self.observing:
            self._notes.append((exc, fault))

    def ask(self, meaning: Callable[[BaseException], Fault | None]) -> None:
        """Register *meaning*, which returns the fault of an unnoted exception for a driver that
        works for this unit; None: it has none.
        """
        if not self._closed and not self.observing and meaning not in self._meanings:
            self._meanings.append(meaning)

    def noted(self) -> tuple[tuple[BaseException, Fault], ...]:
        """Return the notes of this attempt, oldest first."""
        return tuple(self._notes)

    def fault_of(self, exc: BaseException) -> Fault | None:
        """Return the fault that was noted for *exc*, or else for the exception that it was raised
        from or while handling.

        If none along that line was noted, the drivers of this unit are asked (:meth:`ask`).
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

    def casualty(self) -> tuple[Any, Any]:
        """Return the pool and the entry of a connection that this attempt has lost; None for both
        if none is known.
        """
        for part in list(self._parts.values()):
            if part.entry is not None and (part.dead or part.entry.cause is not None):
                return part.origin, part.entry
        return None, None

    def lost_at(self) -> Any:
        """Return the pool whose server this attempt was lost at, as far as is known; None: there is
        none.
        """
        origin, _ = self.casualty()
        return next(iter(self.origins()), None) if origin is None else origin

    def origins(self) -> list[Any]:
        """Return the pools whose connections this attempt has used."""
        if not self._parts:
            return []
        found = [part.origin for part in list(self._parts.values()) if part.origin is not None]
        return found if len(found) < 2 else list({id(each): each for each in found}.values())

    @property
    def is_elsewhere(self) -> bool:
        """Return whether this attempt, which used no pool of ours, used a server (a MongoDB,
        say).
        """
        return bool(self._meanings)

    def _known(self, conn_id: int | None) -> Part:
        part = self._parts.get(conn_id)
        return self._parts.setdefault(conn_id, Part()) if part is None else part

    def _part(self, conn_id: int | None) -> Part:
        part = self._known(conn_id)
        part.reports += 1
        return part

    def _hears(self, conn_id: int) -> bool:
        """Return whether reports on the connection *conn_id* reach this unit or one above it."""
        owner = joined.get(conn_id)
        return owner is not None and self._is_within(owner)

    def _is_within(self, other: Deeds) -> bool:
        """Return whether this unit is *other*, or is below it."""
        unit: Deeds | None = self
        while unit is not None and unit is not other:
            unit = unit.above
        return unit is not None

    def _hand_over(self, observer: Deeds) -> None:
        """End the unit: pass its fate, and the open work on its connections, to the *observer*."""
        if self._stored:
            observer._stored = True
        if self._uncertain or self._unanswered:
            observer._uncertain = True
        if self._keeps:
            observer._keeps = True
        observer._peeked.update(self._peeked)
        observer.met += self.met
        if observer._closed:
            return
        observer._looks.update(self._looks)
        observer._helpers += [each for each in self._helpers if not each()]
        for conn_id, part in list(self._parts.items()):
            if part.is_unsettled:
                observer._part(conn_id).add(part)
        for conn_id, unit in list(joined.items()):
            if unit is self:
                observer._part(conn_id).reports = self.reports(conn_id)
                joined[conn_id] = observer

    def _bar(self, reason: str) -> None:
        if self._barrier is None:
            self._barrier = reason
