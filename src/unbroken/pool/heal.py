"""The code of every body around a statement that is run again on a fresh connection
(:mod:`unbroken.ledger.heal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.ledger.heal import CURABLE, Lost, Past, Ruling, runs_once
from unbroken.ledger.questions import Question
from unbroken.ledger.scope import current, current_token
from unbroken.ledger.statements import verb
from unbroken.ledger.subjects import subjects
from unbroken.logs import Part
from unbroken.messages.units import NO_BUDGET, STATEMENT_NOT_REPEATED
from unbroken.net.liveness import Liveness, judge
from unbroken.pool.budget import NO_REPLAY, may_repeat
from unbroken.pool.leases import JUST_USED
from unbroken.pool.loan import Loan
from unbroken.pool.steps import Call, Flow
from unbroken.pool.undone import Ending, mark, tell_on
from unbroken.pool.wording import connection

log = Part("replay")

#: Maximum number of fresh connections for a statement, if each is lost before the statement reaches
#: it. Also the maximum number of times that a statement is sent.
ATTEMPTS = 4

_HINT = "a unit of work (@unbroken.replayable, pool.run) would run the whole transaction again"


def say_why_not(error: BaseException, why: object) -> None:
    """Add to *error* why its statement was not run again, and how to run a whole transaction
    again.
    """
    error.add_note(
        STATEMENT_NOT_REPEATED(f"unbroken did not run this statement again: {why}; {_HINT}")
    )


def is_open(loan: Loan, past: Past, commits_itself: Callable[[], bool | None]) -> bool | None:
    """Whether a transaction is open, even if the driver does not know: because the connection is
    dead, or because the last answer was an error. None: unknown.

    *commits_itself*: whether autocommit is on. It is called only if that decides.
    """
    known: bool | None = loan.state.driver.is_in_transaction(loan.conn)
    if known is False or (known is not None and not loan.is_dead):
        return known
    if not past.count:  # nothing was sent since the last end
        return False if past.why_blind is None else known
    if not loan.is_dead:
        return known
    return False if is_at_rest(past, commits_itself) else known


def is_at_rest(past: Past, commits_itself: Callable[[], bool | None]) -> bool:
    """Whether the last statement was committed by itself: autocommit is on, and no statement began
    a transaction.
    """
    return not past.may_have_begun() and commits_itself() is True


def connections(state: Any) -> Iterator[int]:
    """Yield once for each other connection that a lost statement gets, as long as each is lost
    before the statement reaches it. The retry budget pays for all but the first.
    """
    for number in range(ATTEMPTS):
        if number and may_repeat(state) is not None:
            return
        yield number


def tell_spent(error: BaseException, why: object) -> None:
    """Add to *error* that its statement is not sent again because the retry budget is spent, with
    *why*. One log line covers all of them. Another attempt was safe, or no budget would be asked.
    """
    mark(error, is_curable=True)
    error.add_note(NO_BUDGET(f"unbroken did not run this statement again: {why}"))


class Losses:
    """The connections that one statement has lost. ``count`` is the number of those that were alive
    before it was sent.

    The event that ends one connection may end others at the same moment. So after the first one,
    only connections that were opened later count, and any that is lost at the last attempt.
    """

    __slots__ = ("_ending", "_first", "_has_paid", "_tries", "count")

    def __init__(self) -> None:
        self._ending: Any = None
        self._has_paid = False
        self._first: float | None = None
        self._tries = 1
        self.count = 0

    def add(self, loan: Loan, past: Past, *, was_dead: int = False) -> int:
        """The connection of *loan* was lost. *was_dead*: before anything was sent. Return the
        count.
        """
        entry = loan.entry
        self.take_over(loan)
        if self._first is None:
            counts = bool(past.earlier) or entry.taken_at - entry.last_used < JUST_USED
            self._first = loan.state.clock()
        else:
            counts = entry.born >= self._first or self._tries >= ATTEMPTS
        self._tries += 1
        self.count += counts and (not was_dead or self._tries > ATTEMPTS)
        return self.count

    def pay(self, loan: Loan, fault: Fault) -> str | None:
        """Why the statement, which was lost with *fault* on the connection of *loan*, must not be
        sent again although that is safe: the retry budget is spent. None: it may.

        Repeats after waiting for the end of an outage are charged once.
        """
        waits = fault.kind in CANNOT_SERVE or fault.kind is FaultKind.READ_ONLY
        if waits and self._has_paid:
            return None
        against = may_repeat(loan.state)
        self._has_paid = self._has_paid or (waits and against is None)
        return against

    def take_over(self, loan: Loan) -> None:
        """The statement may be run again: until that is refused, no caller gets its error."""
        self._ending, loan.entry.ending = loan.entry.ending or self._ending, None

    def refused(self, exc: BaseException, why: object, loan: Loan) -> None:
        """Add to *exc*, and to the log, why its statement was not run again."""
        refuse(exc, why, loan, self._ending)


def refuse(exc: BaseException, why: object, loan: Loan, ending: Any = None) -> None:
    """Add to *exc*, and to the log, why a statement that lost the connection of *loan* was not run
    again. *ending* belongs to the unit of work that it was part of.
    """
    state, entry = loan.state, loan.entry
    ending = ending or entry.ending
    # Reported here: later failures on this connection, and its end, are not reported again.
    entry.ending = Ending(
        None if ending is None else ending.function,
        None if ending is None else ending.request,
        None,
    )
    if str(why).startswith(NO_REPLAY):  # one log line covers all of them
        tell_spent(exc, why)
        return
    if ending is not None and ending.who:
        tell_on(exc, ending)
    say_why_not(exc, why)
    text = f"unbroken did not run this statement again: {why}; {_HINT}"
    if ending is not None and ending.who and ending.note is not None:
        text = f"{text}. {ending.note}"
    log.warning(
        "statement lost",
        STATEMENT_NOT_REPEATED(
            f"{state.name}: {connection(entry.session)} ended: {entry.cause or 'lost'}: {text}"
        ),
        about=str(entry.place),
        pool=state.name,
        cause=None if entry.cause is None else entry.cause.value,
        session=entry.session,
        function=None if ending is None else ending.function,
        request=None if ending is None else ending.request,
        place=None if entry.place is None else str(entry.place),
    )


def curable(loan: Loan, fault: Fault, *, was_dead: int) -> Fault | None:
    """*fault*, if another connection might cure it. *was_dead*: before anything was sent.

    If the server reports that it serves no client, and was not asked yet whether that is so, the
    fault is used as reported. Call :func:`is_own_affair` before taking another connection.
    """
    if was_dead:
        fault = Fault(FaultKind.LOST, loan.entry.cause, fault.code, fault.text)
    elif fault.kind is FaultKind.RETRY and _is_suspect(loan, fault):
        assert loan.entry.suspect is not None
        fault = loan.entry.suspect[1]
    return fault if fault.kind in CURABLE else None


def is_own_affair(loan: Loan, fault: Fault) -> Flow[bool]:
    """Whether *fault* is a refusal (of a write as read-only, for example) that concerns only this
    transaction, not all clients. Asks the server and rolls back first, so the transaction must have
    no earlier statements.
    """
    if fault.kind is not FaultKind.READ_ONLY and not _is_suspect(loan, fault):
        return False
    return not (yield from loan.was_refused_to_all())


def _is_suspect(loan: Loan, fault: Fault) -> bool:
    """Whether the server must be asked about *fault*."""
    suspect = loan.entry.suspect
    return suspect is not None and suspect[1].text == fault.text


class Before(IntEnum):
    """The state of a connection when a statement was about to be sent on it."""

    WELL = 0
    CONDEMNED = 1  #: it must not be used again, but may still be open
    GONE = 2  #: the other side had hung up: a statement sent now cannot be executed


def before(loan: Loan, past: Past, sql: Any) -> Before:
    """The state of the connection of *loan*, on which *sql* is about to be sent.

    The socket is checked only if that decides what happens to *sql*: a connection that has just
    ended is perhaps not marked yet.
    """
    entry = loan.entry
    if entry.cause is None and (past.count or not runs_once(sql)):
        return Before.WELL
    if judge(entry.poll(0)) is Liveness.DEAD:
        return Before.GONE
    return Before.WELL if entry.cause is None else Before.CONDEMNED


def lost_at(
    loan: Loan, sql: Any, fault: Fault, losses: int, *, in_transaction: bool, until: float,
    was: int = Before.WELL,
) -> Lost:  # fmt: skip
    """The input of :mod:`unbroken.ledger.heal` for *sql*, which lost the connection of *loan*. The
    caller has time *until*. Outside of a transaction it may have been in autocommit. *was*: the
    result of :func:`before`.
    """
    return Lost(
        sql=sql,
        fault=fault,
        backend=loan.state.backend,
        autocommit=False if in_transaction else None,
        cause=loan.entry.cause,
        losses=losses,
        in_time=loan.state.clock() < until,
        unsent=was == Before.GONE or loan.was_unsent(),
    )


def is_replayed() -> bool:
    """Whether this runs in a unit of work, which is run again as a whole."""
    unit = current() if current_token() is not None else None
    return unit is not None and not unit.observing


def forget(exc: BaseException) -> None:
    """No caller gets *exc* any more. Its traceback would keep the objects on this stack, results
    and connections, alive if a driver stores its errors.
    """
    link: BaseException | None = exc
    while link is not None and link.__traceback__ is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def is_serializable(pool: Any) -> bool:
    """Whether a transaction of *pool* is, or may be, SERIALIZABLE by default. Asks PostgreSQL on
    another connection of the (blocking) *pool*.
    """
    try:
        with pool.connection() as conn:
            cursor = conn.cursor()
            cursor.execute("SHOW transaction_isolation")  # in a transaction that the driver begins
            return bool(cursor.fetchone()[0] == "serializable")
    except Exception:
        return True


def objection(loan: Loan, ruling: Ruling) -> Flow[str | None]:
    """The server's objection to *ruling*, asked on the fresh connection of *loan*. None if there is
    none.

    No transaction is open on the connection afterwards. If it was lost meanwhile, its entry has a
    cause.
    """
    if not ruling.asks:
        return None
    state, entry = loan.state, loan.entry
    against = "the server could not be asked whether another attempt is safe"
    for question in ruling.asks:
        heard = yield from loan.ask(question)
        if question is Question.HIDDEN_WRITES:
            state.hidden.asking(state.clock())
            state.hidden.answer = heard
        if heard == "" or entry.cause is not None:
            break
        against = heard or against
    if entry.cause is None and state.driver.is_in_transaction(loan.conn) is not False:
        try:
            yield Call("rollback", loan.conn, entry, state.settings.ping_timeout)
        except Exception as exc:
            loan.failed(exc)
            entry.condemn(Cause.RESET_FAILED, str(exc))  # the first cause is kept
    return None if heard == "" else against


def note(state: Any, sql: str | bytes | None, where: object, fault: Fault) -> None:
    """Count and log a statement that was run again and that the function at *where* had sent."""
    with state.lock:
        state.counters.healed += 1
    function, request = subjects(current() if current_token() is not None else None)
    log.info(
        "healed",
        f"{state.name}: {verb(sql)} from {where or 'an unknown caller'} was run again on another"
        f" connection: {fault.text}",
        pool=state.name,
        cause=None if fault.cause is None else fault.cause.value,
        place=None if where is None else str(where),
        function=function,
        request=request,
    )
