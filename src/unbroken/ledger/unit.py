"""The ledger of a unit of work: may it be run again from the start?

It may only if it is provable that nothing of it was committed. Code that sends something reports it
here first, so the ledger never knows less than the server. Anything that it cannot follow counts
against a replay. :meth:`Unit.verdict` applies these rules in this order when a connection was lost,
or the server asked to try again:

1. A COMMIT of writes was sent and its answer was lost, or does not prove that nothing was stored:
   the result is unknown, never guessed.
2. Something may have been committed: an acknowledged COMMIT of writes, a write in autocommit, a
   statement that commits by itself, or something that could not be followed. Or another attempt
   would end as this one did: the application closed the connection, or a statement is too large or
   ends its session. The error goes to the caller.
3. More might still be committed. Another connection still holds writes of this attempt in an open
   transaction, or a task or thread that the attempt left behind has it. Or a thread or job that the
   attempt started has not ended. The error goes to the caller.
4. Otherwise the server rolls back everything that was sent, and the unit may be run again. If a
   SELECT was committed that may have called a function that writes, the server is asked first.

Reports come from any thread or task that runs in the unit's context. Each is a few plain attribute
writes, and every one of them only makes the ledger more careful. The exceptions are those of a
connection's own state, which belongs to its user. So there is no lock. A unit that was left takes
no reports any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.ledger.deeds import joined
from unbroken.ledger.part import Part
from unbroken.ledger.questions import PG_LARGEST, Question
from unbroken.ledger.reports import Reports, with_article
from unbroken.ledger.statements import verb
from unbroken.ledger.verdicts import Action, Origin, Verdict

_REPLAYABLE = frozenset({FaultKind.LOST, FaultKind.RETRY}) | CANNOT_SERVE

#: Kinds of faults about which the server is asked.
_TO_BE_RULED = frozenset({FaultKind.READ_ONLY, FaultKind.RETRY})

#: A statement of more bytes may exceed the server's limit (the least value of max_allowed_packet is
#: 1,024).
_LARGE = 1_000


class Unit(Reports):
    """One unit of work, over all its attempts. Reports cost about 0.3 µs each.

    ``conn_id`` (any hashable, usually ``id(conn)``) distinguishes the connections of a unit;
    reports without it count as one connection. ``until`` is the moment, on the runner's clock,
    after which it is not run again. ``fault`` and ``exc`` pairs are kept (:meth:`note`), so that
    the runner knows what an exception meant to the driver it came from.

    *observing*: the unit watches a whole request and is never replayed. Units that are entered
    inside it are replayed as they would be without it, and their reports count for its
    :meth:`fate`.
    """

    __slots__ = ()

    def verdict(self, fault: Fault, *, conn_id: int | None = None) -> Verdict:
        """Return the action after the attempt failed with *fault*, on the connection *conn_id* if
        that is known.

        Before a replay, roll back or discard every connection of the attempt. Pure: asking changes
        nothing.
        """
        parts = dict(self._parts)
        if any(part.doubted for part in parts.values()):
            return Verdict(
                Action.COMMIT_UNKNOWN,
                "COMMIT was answered with an error that does not show whether it succeeded",
            )
        if fault.kind not in _REPLAYABLE:
            return Verdict(
                Action.RAISE,
                f"another attempt does not cure an error of the kind {fault.kind.value!r}",
            )
        if any(part.pending for part in parts.values()):
            if fault.is_lost:
                return Verdict(
                    Action.COMMIT_UNKNOWN,
                    "COMMIT was sent, but the connection was lost before the server answered",
                )
            return Verdict(Action.RAISE, "COMMIT was sent, but its answer was not seen")
        against = self._against(fault, conn_id, parts)
        if against is not None:
            return Verdict(Action.RAISE, against)
        done = (
            "the server rolled back the transaction"
            if fault.kind is FaultKind.RETRY
            else "nothing was committed"
        )
        return Verdict(
            Action.REPLAY, f"{done}, and no COMMIT of writes was sent", self._asks(parts)
        )

    def _against(
        self, fault: Fault, conn_id: int | None, parts: dict[int | None, Part]
    ) -> str | None:
        """Return the objection to a replay, if there is one."""
        if self._barrier is not None:
            return self._barrier
        if fault.cause is Cause.CLOSED_BY_HOLDER:
            return "the application closed the connection"
        faulty = next(iter(parts)) if conn_id is None and len(parts) == 1 else conn_id
        if any(part.open for key, part in parts.items() if key != faulty):
            return "another connection still holds writes of this attempt in an open transaction"
        if any(unit is self for key, unit in list(joined.items()) if key != faulty):
            return (
                "another task or thread of this attempt still has a connection, and may still write"
            )
        if self._is_helped():
            return "a thread or a job that this attempt started has not ended, and may still write"
        if None in self._looks.values():
            return (
                "a committed SELECT may have called a function that writes, and no server can be"
                " asked about it"
            )
        return self._too_large(parts) or self._always_fatal()

    def _always_fatal(self) -> str | None:
        for attempts in self._deaths.values():
            if self.attempts in attempts and len(attempts) > 1:
                return (
                    "two attempts lost a connection that had just worked at the same statement:"
                    " that statement ends its session"
                )
        for attempts in self._pauses.values():
            if self.attempts in attempts and len(attempts) > 1:
                return (
                    "two attempts were idle at the same point, for longer than the server's limit"
                    " for a session or a transaction"
                )
        return None

    def _too_large(self, parts: dict[int | None, Part]) -> str | None:
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
                return "the server could not be asked for its limit for the size of a statement"
            if 0 < limit <= size:
                name = "" if part.origin.backend == "postgresql" else "max_allowed_packet = "
                return (
                    f"{with_article(verb(part.last))} of {size:,} bytes was sent, but the server"
                    f" accepts at most {name}{limit:,} bytes"
                )
        return None

    def _asks(self, parts: dict[int | None, Part]) -> tuple[tuple[Origin, Question], ...]:
        """Return the questions for the server before the replay."""
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
        """Take the *answer* to one of :attr:`Verdict.asks` (see :class:`Question`); None: there was
        none.
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

    def rule(self, refusal: Fault, kind: FaultKind) -> None:
        """Record that *refusal* of the server's is of the kind *kind*, as the server's answer
        showed: WRONG_SERVER if it refuses all clients, RETRY if it only did so then.
        """
        self._notes = [
            (exc, replace(fault, kind=kind, cause=Cause.FAILOVER))
            if fault.text == refusal.text and fault.kind in _TO_BE_RULED
            else (exc, fault)
            for exc, fault in self._notes
        ]


def _size(sql: str | bytes | None) -> int:
    """Return the bytes of *sql* and of the command that carries it."""
    if sql is None:
        return 0
    return 1 + (
        len(sql)
        if isinstance(sql, (bytes, bytearray)) or len(sql) * 4 < _LARGE
        else len(sql.encode("utf-8", "replace"))
    )


def _is_mysql(origin: Origin) -> bool:
    return origin.backend in ("mysql", "mariadb")
