"""The end of a use: COMMIT or ROLLBACK, and the clean-up before the next user."""

from __future__ import annotations

from typing import Any

from unbroken.abc import CANNOT_SERVE, Cause, Fault, FaultKind
from unbroken.backends.commits import is_of_the_server, proves_nothing_stored
from unbroken.backends.fault import is_goodbye
from unbroken.errors import (
    ClosedByHolderError,
    CommitUnknownError,
    ConnectionLostError,
    PoolClosedError,
    UnbrokenError,
)
from unbroken.ledger.questions import Question
from unbroken.ledger.residue import Left, listed
from unbroken.ledger.verdicts import Action, Fate
from unbroken.logs import Part
from unbroken.messages import Message
from unbroken.messages.data import CLOSED_BY_HOLDER, COMMIT_UNKNOWN, LOST_BEFORE_COMMIT
from unbroken.messages.processes import AT_THE_END
from unbroken.net.liveness import Liveness, judge
from unbroken.pool.admission import refused
from unbroken.pool.ends import Ends
from unbroken.pool.news import reset_raised
from unbroken.pool.rollbacks import IN_DOUBT, rolled_back
from unbroken.pool.steps import Call, Flow, Reset
from unbroken.roles import Role

log = Part("replay")

#: Advice for a COMMIT without an answer.
LOOK_FIRST = "the transaction is stored whole or not at all; check the data before you repeat it"


class Finishing(Ends):
    """The statements at the end of a use: see :class:`unbroken.pool.loan.Loan`."""

    __slots__ = ()

    def _fate(self) -> Fate:
        """The ledger's verdict on the writes, now that the connection is condemned: its open
        transaction is rolled back.
        """
        unit = self.unit
        if unit is None:
            return Fate.UNKNOWN
        unit.ended(conn_id=id(self.conn))
        return unit.fate()

    def what_is_left(self) -> str:
        """A text on the fate of the open transaction, which gets no COMMIT because its connection
        ends.

        The ledger decides. Without a ledger, the driver's state is a proof if every statement was
        answered and the transaction was still open.
        """
        state, unit, conn = self.state, self.unit, self.conn
        if unit is not None:
            if unit.fate_of_open(id(conn)) is not Fate.NOTHING:
                return IN_DOUBT
            return rolled_back(state.backend, is_proven=True)
        is_open = state.driver.is_in_transaction(conn) and state.driver.is_quiet(conn)
        return rolled_back(state.backend, is_proven=bool(is_open and state.knows_status))

    def commit(self, send: Call | None = None) -> Flow[None]:
        """Send COMMIT for the open transaction. *send*: the step that does it, if the body has its
        own.

        Raises ConnectionLostError if COMMIT was not sent, and CommitUnknownError if its answer was
        lost or does not show whether the transaction was stored. Nothing is written to a connection
        that is known to have ended, or whose last exchange is not known to have ended.
        """
        state, entry = self.state, self.entry
        yield from self._make_ready()
        try:
            yield send or Call("commit", self.conn, entry)
        except Exception as exc:
            fault = state.classify(exc)
            if not self._is_in_doubt(exc, fault):
                raise
            how = "the connection was lost before the server answered"
            if fault.kind is not FaultKind.LOST and is_of_the_server(fault):
                how = "the answer does not show whether it succeeded"
                entry.condemn(fault.cause or Cause.LOST, f"COMMIT: {how} ({fault.text})")
            raise state.error(
                CommitUnknownError,
                COMMIT_UNKNOWN(
                    f"COMMIT was sent to {state.where(entry)}, but {how} ({fault.text}):"
                    f" {LOOK_FIRST}"
                ),
                fate=Fate.UNKNOWN,
            ) from exc
        state.note_settled(entry, self.conn)
        if state.defers and state.is_settled(entry, self.conn):
            entry.end_seen = True
            if state.ran_code(self.conn):
                state.driver.end_seen(self.conn)

    def commit_and_go_on(self, send: Call | None = None) -> Flow[None]:
        """Like :meth:`commit`, in the middle of a use.

        It does not wait for the answer if nothing was written.
        """
        if self.may_defer_commit(goes_on=True) and not self.has_ended():
            yield from self.leave_commit()
        else:
            yield from self.commit(send)

    def _is_in_doubt(self, exc: Exception, fault: Fault) -> bool:
        """Whether the transaction may be stored, now that COMMIT raised *exc*."""
        state, unit = self.state, self.unit
        if unit is not None:
            if fault.is_lost:
                unit.note(exc, fault)
            return unit.verdict(fault).action is Action.COMMIT_UNKNOWN
        if not isinstance(exc, state.driver.errors) and not fault.is_lost:
            return False  # from a signal handler, or a time limit of the caller's own
        if not is_of_the_server(fault):
            return fault.is_lost or not state.is_in_step(self.entry, self.conn)
        return not proves_nothing_stored(state.backend, fault.code, fault.text)

    def _make_ready(self) -> Flow[None]:
        """Ensure that a COMMIT that is sent now is the next statement that the server answers.

        Otherwise raises the caller's error.
        """
        state, entry, conn = self.state, self.entry, self.conn
        if self.is_closed_by_holder:
            self._blame_holder()
            raise self._not_sent(
                CLOSED_BY_HOLDER,
                ClosedByHolderError,
                f"the connection to {state.where(entry)} was closed by the code that held it,"
                " before the pool could commit",
                "a transaction that this code committed is stored if its COMMIT was answered; an"
                " open transaction is not stored",
            )
        stopped = self.outlives_time()
        if stopped:
            raise self._not_sent(
                AT_THE_END,
                PoolClosedError,
                f"the pool sent no COMMIT to {state.where(entry)}: {stopped}",
            )
        if self.has_ended():
            why = "" if entry.cause is None else f" ({entry.cause.value})"
            raise self._not_sent(
                LOST_BEFORE_COMMIT,
                ConnectionLostError,
                f"connection to {state.where(entry)} was lost{why} before the pool sent COMMIT",
            )
        if state.is_in_step(entry, conn) or not state.knows_status:
            # The driver does not track its exchanges: COMMIT is sent, and the connection is not
            # used again.
            return
        if state.is_streaming(conn):
            try:
                yield Call("drain", conn, entry)
            except Exception as exc:
                self.failed(exc)
                raise self._not_sent(
                    LOST_BEFORE_COMMIT,
                    ConnectionLostError,
                    f"connection to {state.where(entry)} was lost while the pool read the rest of"
                    " a result, before it sent COMMIT",
                ) from exc
        if not state.is_in_step(entry, conn):
            self.break_off()
            raise self._not_sent(
                LOST_BEFORE_COMMIT,
                ConnectionLostError,
                f"the pool sent no COMMIT to {state.where(entry)}: the server's last answer was"
                " not read completely (a time limit, signal or cancellation interrupted a"
                " statement, or a result was left unread); the connection was closed",
            )

    def _not_sent(
        self, message: Message, kind: type[UnbrokenError], fact: str, rest: str = ""
    ) -> UnbrokenError:
        state, unit = self.state, self.unit
        rest = rest or self.what_is_left()
        error: UnbrokenError = state.error(
            kind, message(f"{fact}; {rest}"), fate=None if unit is None else self._fate()
        )
        if unit is not None:
            unit.note(error, Fault(FaultKind.LOST, self.entry.cause, text=str(error)))
        return error

    def has_ended(self) -> bool:
        """Whether the session is known to have ended, without a round trip: the other side hung up,
        the socket is closed, or a goodbye has arrived.

        PostgreSQL's goodbye arrives up to a millisecond before the hang-up. A COMMIT that is sent
        in between would be in doubt needlessly.
        """
        state, entry = self.state, self.entry
        looks = judge(entry.poll(0))
        if looks is Liveness.DEAD or entry.fd is None:
            return looks is Liveness.DEAD
        if state.driver.fileno(self.conn) is None:
            return True  # the driver has closed its socket: nothing can be sent
        words = state.last_words(entry, self.conn, arrived=looks is Liveness.UNDECIDED)
        return words is not None and is_goodbye(words.code, words.text, state.driver.target.backend)

    def end_unless_settled(self) -> bool:
        """Called before a body sends a statement that commits implicitly (switching autocommit on,
        for example). Return whether no transaction is open.

        If that is not certain, the connection is ended, and its server rolls back.
        """
        state, entry = self.state, self.entry
        if (
            entry.cause is None
            and state.is_in_step(entry, self.conn)
            and state.is_settled(entry, self.conn)
        ):
            return True
        self.end("an uncommitted transaction was open")
        return False

    def end(self, why: str) -> None:
        """End this connection, so that the server rolls back its open transaction and nothing more
        can be sent.
        """
        self.entry.condemn(Cause.DISCARDED, why)
        if not getattr(self.state.driver, "is_async", False):
            self.state.shutdown_socket(self.entry)

    def finish(self, exc: BaseException | None, *, commit: bool) -> Flow[BaseException | None]:
        """The caller is done; *exc* is the exception of its work. Return the exception that counts.
        None if everything succeeded.

        On success commit the open transaction (with *commit*); otherwise roll it back. Afterwards
        the connection is as it was opened, or condemned.
        """
        if exc is None:
            try:
                yield from self._succeed(commit)
            except Exception as error:
                exc = error
            else:
                return None
        yield from self._fail(exc)
        return exc

    def _succeed(self, commit: bool) -> Flow[None]:
        state = self.state
        if commit and not state.is_settled(self.entry, self.conn):
            if self.may_defer_commit() and not self.has_ended():
                yield from self.defer_commit()
                return
            yield from self.commit()
        how = state.settings.reset
        if (
            not commit
            or callable(how)
            or how == "session"
            or not state.is_good(self.entry, self.conn)
        ):
            yield from self.reset(at_end=True)

    def _fail(self, exc: BaseException) -> Flow[None]:
        state, entry = self.state, self.entry
        if not isinstance(exc, Exception):
            state.left_early(entry)
        self.failed(exc)
        if entry.cause is not None:
            return
        if not isinstance(exc, Exception) or isinstance(exc, TimeoutError):
            # a caller that cancels does not want to wait
            yield from self.roll_back(state.settings.ping_timeout, at_end=True)
            yield from self.undo(state.settings.ping_timeout)
        elif callable(state.settings.reset) or state.settings.reset == "session":
            yield from self.reset(at_end=True)
        else:
            yield from self.roll_back(at_end=True)

    def reset(self, *, at_end: bool = False) -> Flow[None]:
        """Clean the connection for the next user, as the setting ``reset`` says, or condemn it.

        *at_end*: it is returned to the pool right afterwards, so the answer to a ROLLBACK can be
        read later.
        """
        state, entry = self.state, self.entry
        how = state.settings.reset
        if entry.cause is not None or self.outlives_time() or judge(entry.poll(0)) is Liveness.DEAD:
            return
        if not self.is_in_step:
            self.break_off()
        if how is None or entry.cause is not None:
            return
        if callable(how):
            try:
                yield Reset(how, self.conn)
            except Exception as exc:
                reset_raised(state, exc)
                self._unfit(exc)
                return
        yield from self.roll_back(at_end=at_end)
        yield from self.undo()

    def undo(self, timeout: float | None = None) -> Flow[None]:
        """Reset the session if residue was left on it, or condemn the connection.

        No transaction is open on it.
        """
        entry, conn = self.entry, self.conn
        left = self.left()
        if not left or entry.cause is not None:
            return
        if entry.opening is None or Left.ENDLESS in left:
            entry.condemn(Cause.DISCARDED, f"its session had {listed(sorted(left))}")
            return
        try:
            yield Call("reset_session", conn, entry, timeout, (entry.opening, left))
        except Exception as exc:
            self._unfit(exc)
            return
        self.state.note_settled(entry, self.conn)
        entry.reset_at = entry.uses
        yield from self.roll_back()  # restores the connection's attributes that the holder changed

    def roll_back(self, timeout: float | None = None, *, at_end: bool = False) -> Flow[None]:
        """Roll back the open transaction and restore attributes that the holder changed, or condemn
        the connection.

        Sends nothing if that is not needed, or if the last exchange is not known to have ended.
        *at_end* as for :meth:`reset`.
        """
        suspect = self.entry.suspect
        self.entry.cleared()
        yield from self._undo(timeout, at_end=at_end and suspect is None)
        if suspect is not None:
            yield from self.ask_why(suspect[1])

    def was_refused_to_all(self) -> Flow[bool]:
        """Roll back. Return whether the server refused a statement because it is read-only for all
        clients. If so, the connection is condemned.
        """
        suspect = self.entry.suspect
        if suspect is None:
            return False
        try:
            if self.entry.cause is None and not self.state.is_settled(self.entry, self.conn):
                yield from self._send_rollback(None)
        except Exception as exc:
            self._unfit(exc)
        return (yield from self.ask_why(suspect[1]))

    def ask_why(self, refusal: Fault) -> Flow[bool]:
        """The server refused a write as read-only, or reported that it serves no client. Leave it
        if that applies to all clients, for example after a failover. Return whether another attempt
        may help.

        A transaction that the application made read-only does not count. Neither does a server that
        this process has only known as a standby. No transaction is open on the connection.
        """
        entry, unit = self.entry, self.unit
        entry.cleared()
        is_so = None
        if entry.cause is None:
            writes = refusal.kind is FaultKind.READ_ONLY
            is_so = yield from (self.ask(Question.READ_ONLY) if writes else self._serves_nobody())
            yield from self._undo()
        if is_so is None:
            entry.condemn(
                Cause.FAILOVER, "the server refused a statement, and the pool could not ask why"
            )
            # The pool has left this server meanwhile: another connection got the same report.
            is_so = entry.born < self.state.server.drained_at or self._is_elsewhere()
        elif is_so:
            is_so = refused(self.state, entry, refusal)
        elif refusal.kind is FaultKind.READ_ONLY and refusal.cause is Cause.FAILOVER:
            # it reports that of the whole server, which accepts writes by now
            entry.condemn(Cause.FAILOVER, refusal.text)
            if unit is not None:
                unit.rule(refusal, FaultKind.RETRY)
            return True
        if is_so and unit is not None:
            unit.rule(refusal, FaultKind.WRONG_SERVER)
        return bool(is_so)

    def _is_elsewhere(self) -> bool:
        """Whether the pool's connections are opened at another host by now."""
        entry, hosts = self.entry, self.state.server.hosts
        return entry.address is not None and hosts.place not in (None, entry.address)

    def _serves_nobody(self) -> Flow[bool | None]:
        """Whether the server reports again that it serves no client. None: the connection was
        lost.
        """
        try:
            role = yield from self.state.read_answer(self.conn, Question.ROLE, self.entry)
        except Exception as exc:
            fault = self.state.classify(exc)
            return None if fault.kind is FaultKind.LOST else fault.kind in CANNOT_SERVE
        return role is Role.UNREADY

    def ask(self, question: Question) -> Flow[Any]:
        """The server's answer to *question* on this connection. None if it gives none.

        May leave a transaction open.
        """
        state = self.state
        try:
            return (yield from state.read_answer(self.conn, question, self.entry))
        except Exception as exc:
            log.info(
                "question not answered",
                f"{state.name}: the server did not answer the question {question.value!r}:"
                f" {state.classify(exc).text}",
                pool=state.name,
            )
            self.failed(exc)
        return None
