"""Decides whether one statement, at which its connection was lost, may be run again on a fresh
connection.

The first statement of a transaction has no past. If nothing of the transaction was answered before
it, the server rolls back all of the statement's effects. Running it again elsewhere is then the
same for the application and for the data. In autocommit the same holds for statements that only
read.

An integration keeps one :class:`Past` for each connection that is in use, and reports to it each
statement that it sends. If a statement has lost its connection, the integration asks
:func:`may_run_again`, and for a COMMIT :func:`may_forget_commit`. Unknown facts count against it. A
:class:`Ruling` may need a fact from the server. The integration asks for it on the fresh
connection, before it runs the statement again (:func:`unbroken.pool.heal.objection`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.ledger.questions import Question
from unbroken.ledger.reading import LOCKS
from unbroken.ledger.residue import LONGEST_READ, left_by, listed
from unbroken.ledger.statements import Kind, kind, may_hide_a_write, verb

#: The maximum number of different statements that one use of a connection records.
MOST_TEXTS = 200

#: The number of lost connections, each just opened or used, after which a statement counts as lost
#: for good.
MOST_LOSSES = 2

#: The same limit for refusals by servers that cannot serve any client. Each attempt waits for the
#: end of an outage, which bounds the total time.
MOST_REFUSALS = 20

#: Kinds of faults that another connection can be free of.
CURABLE = CANNOT_SERVE | {FaultKind.LOST, FaultKind.READ_ONLY}
#: The statement is not the reason for the end of its connection.
_BLAMELESS = CANNOT_SERVE | {FaultKind.READ_ONLY}

#: Statements that may leave a transaction open behind them, in autocommit.
_MAY_BEGIN = frozenset({Kind.BEGIN, Kind.SETTLES, Kind.ENDS})

#: This library, or the application, ended the connection on purpose.
_ON_PURPOSE = frozenset(
    {
        Cause.RECLAIMED,
        Cause.DEADLINE,
        Cause.CANCELLED,
        Cause.CLOSED_BY_HOLDER,
        Cause.POOL_CLOSED,
        Cause.DISCARDED,
        Cause.FORGOTTEN,
    }
)

#: References of a statement to its session's memory. A fresh session has none.
_MEMORY = re.compile(
    r"\b(?:LAST_INSERT_ID|LAST_INSERT_ROWID|ROW_COUNT|FOUND_ROWS|CHANGES|TOTAL_CHANGES|CURRVAL|LASTVAL"
    r"|CONNECTION_ID|PG_BACKEND_PID|PG_MY_TEMP_SCHEMA|PG_TEMP\w*|PG_LISTENING_CHANNELS"
    r"|RELEASE_(?:ALL_)?LOCKS?|IS_USED_LOCK|PG_ADVISORY_UNLOCK\w*|PREVIOUS\b.*?\bVALUE"
    r"|SHOW\b.*?\b(?:WARNINGS|ERRORS|STATUS|PROFILES?)|SESSION_STATUS|PROFILING)\b|@@",
    re.IGNORECASE | re.DOTALL,
)

#: Functions of the servers' own whose effects no ROLLBACK undoes, and which must not run twice. (A
#: number that NEXTVAL has given is lost harmlessly. SETVAL may turn a sequence back.)
_OUTSIDE = re.compile(
    r"\b(?:DBLINK\w*|LO_EXPORT|LO_IMPORT|PG_FILE_\w+|PG_LOGICAL_\w+|PG_REPLICATION_\w+"
    r"|PG_\w+_REPLICATION_SLOT|PG_PROMOTE|PG_SWITCH_WAL|PG_\w*BACKUP\w*|PG_CREATE_RESTORE_POINT"
    r"|PG_TERMINATE_BACKEND|PG_CANCEL_BACKEND|PG_STAT_RESET\w*|SETVAL|SYS_EXEC|SYS_EVAL)\b",
    re.IGNORECASE,
)


class Past:
    """The statements sent on one connection since its holder took it, as far as the rules for a
    lost statement need them.

    It belongs to the holder: no lock. A statement costs one entry in a dictionary.
    """

    __slots__ = ("begun", "count", "earlier", "forgot", "now", "why_blind", "why_unseen")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start again for a newly acquired connection: nothing was sent yet."""
        self.earlier: dict[str | None, None] = {}  #: sent in transactions that have ended
        self.now: dict[str | None, None] = {}  #: sent in this transaction; None: an unknown text
        self.count = 0  #: the number of these statements
        self.begun = False  #: the integration itself has begun the transaction, and can do so again
        self.forgot = False  #: an earlier session of this use was lost, with its memory
        self.why_blind: str | None = None  #: why the content of this transaction is not known
        self.why_unseen: str | None = None  #: why the actions of this use are not known

    def copy(self) -> Past:
        """Return a copy of this past, for a question that must change nothing."""
        other = Past()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        other.earlier, other.now = dict(self.earlier), dict(self.now)
        return other

    def begins(self) -> None:
        """Note that the integration begins a transaction in a way that it can repeat on another
        connection.
        """
        self.begun = True

    def sent(self, sql: str | bytes | None, is_open: bool | None) -> None:
        """Note *sql*, which is about to be sent; None: its text is not known. *is_open*: whether a
        transaction is open, according to the driver without a round trip; None: it does not know.
        """
        if is_open is False:
            if self.count:
                self.ended()
        elif not self.count and not self.begun:
            self.why_blind = (
                "a transaction may have been open with statements that were not recorded"
            )
        self.count += 1
        if isinstance(sql, (bytes, bytearray)):
            sql = bytes(sql[: LONGEST_READ + 1]).decode("latin-1")
        self.now[sql if isinstance(sql, str) and len(sql) <= LONGEST_READ else None] = None
        if len(self.now) > MOST_TEXTS:
            self.unseen(f"more than {MOST_TEXTS} different statements were sent on this connection")

    def ended(self) -> None:
        """Note that the transaction has ended."""
        self.earlier.update(self.now)
        self.now = {}
        self.count, self.begun, self.why_blind = 0, False, None
        if len(self.earlier) > MOST_TEXTS:
            self.unseen(f"more than {MOST_TEXTS} different statements were sent on this connection")

    def may_have_begun(self) -> bool:
        """Return whether one of the statements since the last end may have opened a transaction by
        itself, with autocommit on: "BEGIN; INSERT …", COMMIT AND CHAIN.
        """
        return any(kind(sql) in _MAY_BEGIN for sql in self.now)

    def moved(self) -> None:
        """Note that the holder has another connection from now on. Nothing was sent on it yet."""
        forgot = self.forgot or bool(self.earlier)
        self.renew()
        self.forgot = forgot

    def misses(self, sql: str | bytes | None) -> bool:
        """Return whether *sql* may need the memory of a session that is gone. An integration must
        not send it, but raise that the connection was lost.
        """
        return self.forgot and _asks_the_session(sql)

    def unseen(self, why: str) -> None:
        """Note that unreported statements may be sent: nothing is run again as long as this holder
        has the connection.
        """
        if self.why_unseen is None:
            self.why_unseen = why
        self.earlier, self.now = {}, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """A statement (or a COMMIT) at which its connection was lost.

    ``autocommit`` tells whether the statement would have been committed by itself; None: not known.
    ``cause`` is the pool's cause for the end of the connection.

    ``losses`` counts the connections that this statement has lost so far, this one included, that
    had been opened or used just before. One that was opened before the first of them was lost may
    have ended with it, and does not count.

    ``in_time`` tells whether the caller has time left, and ``handed_over`` whether the application
    has got something of the result. ``in_parts``: it was sent as more than one statement, each of
    which is committed by itself in autocommit.

    ``unsent``: nothing of it can have reached the server. Either the peer had closed the connection
    before it was sent, or the command that begins its transaction was lost.
    """

    sql: str | bytes | None
    fault: Fault
    backend: str
    autocommit: bool | None
    cause: Cause | None = None
    losses: int = 1
    in_time: bool = True
    handed_over: bool = False
    in_parts: bool = False
    unsent: bool = False


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether to run the statement again, and the reason.

    If ``asks`` is not empty, one of these questions must have the answer "" first: see
    :class:`Question`.
    """

    heals: bool
    reason: str
    asks: tuple[Question, ...] = ()


def may_run_again(past: Past, lost: Lost) -> Ruling:
    """Return whether the last statement in *past* may be run again, on a fresh connection. Pure;
    never raises.
    """
    against = _never(past, lost) or _of_the_past(past, lost)
    if against is not None:
        return Ruling(False, against)
    if lost.unsent:
        return Ruling(True, "it has not reached the server")
    against = _of_the_text(lost.sql)
    if against is not None:
        return Ruling(False, against)
    what = kind(lost.sql)
    if lost.autocommit is False:
        return Ruling(
            True, "no earlier statement of its transaction was answered", _asks(what, lost)
        )
    if what is Kind.WRITE and lost.in_parts:
        return Ruling(False, f"{verb(lost.sql)} in autocommit may have been partly stored")
    # (a node of Galera may store a write that it answers with 1047)
    if what is Kind.WRITE and lost.fault.kind is not FaultKind.READ_ONLY:
        return Ruling(False, f"{verb(lost.sql)} in autocommit may have been stored")
    if what is Kind.WRITE:
        return Ruling(True, "the server refused it", (Question.KEPT_WRITES,))
    hides = what is Kind.READ and may_hide_a_write(lost.sql)
    return Ruling(True, "it only reads", (Question.HIDDEN_WRITES,) if hides else ())


def runs_once(sql: str | bytes | None) -> bool:
    """Return whether *sql* is never run again once it may have reached the server."""
    return _of_the_text(sql) is not None


def _of_the_text(sql: str | bytes | None) -> str | None:
    """Return the objection in the statement's text, which holds for any outcome of its
    transaction.
    """
    if kind(sql) not in (Kind.READ, Kind.WRITE, Kind.BEGIN) or _is_savepoint(sql):
        return f"{verb(sql)} may have effects that a rollback does not undo"
    if _OUTSIDE.search(_text(sql)):
        return f"{verb(sql)} calls a function whose effects a rollback does not undo"
    return None


def _asks(what: Kind, lost: Lost) -> tuple[Question, ...]:
    """Return the questions for the server about a statement in a transaction, which it rolled
    back.
    """
    if what is Kind.WRITE:
        return (Question.KEPT_WRITES,)
    hides = what is Kind.READ and may_hide_a_write(lost.sql)
    return (Question.HIDDEN_WRITES, Question.KEPT_WRITES) if hides else ()


def may_forget_commit(past: Past, lost: Lost, *, serializable: bool) -> Ruling:
    """Return whether a COMMIT whose answer was lost, or that was never sent, counts as done: only
    reads went before it.

    *serializable*: the transaction's isolation level is, or may be, SERIALIZABLE. There the answer
    to COMMIT tells whether the values read are valid. Pure; never raises.
    """
    against = _never(past, lost)
    if against is None and past.why_blind is not None:
        against = past.why_blind
    if against is None and not past.count:
        against = "nothing is known about its transaction"
    if against is None and serializable:
        against = "a serializable transaction is valid only after its COMMIT was answered"
    if against is not None:
        return Ruling(False, against)
    against = _of_the_session(past, lost)  # a level of isolation, too
    if against is not None:
        return Ruling(False, against)
    for sql in past.now:
        if kind(sql) is not Kind.READ or verb(sql) == "SET":
            return Ruling(False, f"{verb(sql)} was sent before it")
        if LOCKS.search(_text(sql)):
            return Ruling(False, "locks of its transaction may have been released before it ended")
    hides = any(may_hide_a_write(sql) for sql in past.now)
    return Ruling(True, "its transaction only read", (Question.HIDDEN_WRITES,) if hides else ())


def _never(past: Past, lost: Lost) -> str | None:
    """Return the objection that holds for any statement."""
    if lost.fault.kind not in CURABLE:
        return f"another connection does not cure an error of the kind {lost.fault.kind.value!r}"
    for cause in (lost.cause, lost.fault.cause):
        if cause in _ON_PURPOSE:
            return f"its connection was ended on purpose ({cause.value})"
    if not lost.in_time:
        return "its time limit had passed"
    if lost.handed_over:
        return "a part of its result was already returned"
    if lost.losses >= (MOST_REFUSALS if lost.fault.kind in _BLAMELESS else MOST_LOSSES):
        return "it lost two connections that had just worked"
    return past.why_unseen


def _of_the_past(past: Past, lost: Lost) -> str | None:
    if past.why_blind is not None:
        return past.why_blind
    if past.count != 1:
        return "an earlier statement of its transaction was answered"
    against = _of_the_session(past, lost)
    if against is not None:
        return against
    if past.earlier and _asks_the_session(lost.sql):
        return "it may depend on the state of its session"
    return None


def _of_the_session(past: Past, lost: Lost) -> str | None:
    """Return the objection in the possible leftovers of earlier transactions on the lost
    session.
    """
    for sql in past.earlier:
        if sql is None:
            return "an earlier statement on this connection has an unknown text"
        if _is_savepoint(sql):
            return "an earlier statement on this connection set a savepoint"
        left = left_by(sql, lost.backend)
        if left:
            return f"{verb(sql)} may have left {listed(sorted(left))} on its session"
    return None


def _asks_the_session(sql: str | bytes | None) -> bool:
    return sql is None or _MEMORY.search(_text(sql)) is not None


def _text(sql: str | bytes | None) -> str:
    return bytes(sql).decode("latin-1") if isinstance(sql, (bytes, bytearray)) else sql or ""


def _is_savepoint(sql: str | bytes | None) -> bool:
    word = verb(sql)
    return word in ("SAVEPOINT", "RELEASE") or (word == "ROLLBACK" and kind(sql) is Kind.READ)
