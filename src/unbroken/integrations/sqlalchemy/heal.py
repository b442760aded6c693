"""Runs a statement whose connection was lost again under the same ``Connection``, if that is safe.

:mod:`unbroken.ledger.heal` decides whether it is. This module holds SQLAlchemy's part: the report
    of each statement, and how another connection of the driver's is put below a ``Connection`` in
    the middle of an execution. Its events, its execution options and its place in the pool stay.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import sqlalchemy
from sqlalchemy.engine import Connection
from sqlalchemy.engine.base import TwoPhaseTransaction

from unbroken.abc import Cause, Fault, FaultKind
from unbroken.errors import ConnectionLostError, UnbrokenError
from unbroken.integrations.sqlalchemy.record import Record, Slot
from unbroken.integrations.sqlalchemy.telling import commits_itself, past_of
from unbroken.ledger.heal import Lost, Ruling, may_forget_commit, may_run_again
from unbroken.ledger.questions import Question
from unbroken.ledger.scope import current, current_token
from unbroken.messages.data import HELD_REPLACED, NO_SUBSTITUTE
from unbroken.pool import heal as common
from unbroken.pool.heal import ATTEMPTS, Losses, connections, curable, is_at_rest, note, objection
from unbroken.pool.loan import Loan

_getframe = sys._getframe
_SQLALCHEMY = os.path.dirname(sqlalchemy.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


class _Again(BaseException):
    """Makes SQLAlchemy's frames return, because the statement is run once more."""


class _NoCursor(BaseException):
    """Makes SQLAlchemy's frames return, because another connection will have a cursor."""


class _Done(BaseException):
    """Makes SQLAlchemy's frames return, because nothing is wrong."""


_connection: Any = Connection.connection.fget  # type: ignore[attr-defined]


class HealingConnection(Connection):
    """SQLAlchemy's Connection. It may run a lost statement again on another one below it."""

    _running: Any = None  #: the context of the statement that is being run
    _losses: Losses | None = None  #: the connections that it has lost; None: none yet
    _healed: Fault | None = None  #: the fault by which the statement that is being run was lost
    given_up = False  #: its connection was given up, and no other one was available
    why_not: str | None = None  #: why the statement that failed last was not run again
    _lost_loan: Loan | None = None  #: of the connection that it has lost

    @property
    def connection(self) -> Any:
        """Return SQLAlchemy's connection. With it, the application may send statements unseen."""
        try:
            caller = _getframe(1).f_code.co_filename
        except ValueError:  # a greenlet begins with this call: get_raw_connection()
            caller = ""
        proxied = _connection(self)
        if not caller.startswith((_SQLALCHEMY, _HERE)):
            record = getattr(proxied, "_connection_record", None)
            if isinstance(record, Record) and record.entry is not None:
                past = past_of(record, record.entry)
                past.unseen("the application took the driver's own connection")
        return proxied

    def execution_options(self, **opt: Any) -> Any:
        """Do the same as SQLAlchemy. Statements sent for the options on a connection without a past
        may be sent again on another one.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return super().execution_options(**opt)
            except Exception as exc:
                if self._transaction is not None or not self._lost_before_all(exc):
                    raise
        return super().execution_options(**opt)

    def _execute_context(self, *args: Any, **kwargs: Any) -> Any:
        for _ in range(ATTEMPTS - 1):
            try:
                return self._execute_on_a_live_one(*args, **kwargs)
            except _NoCursor:
                continue
        return self._execute_on_a_live_one(*args, **kwargs)

    def _execute_on_a_live_one(self, *args: Any, **kwargs: Any) -> Any:
        proxied = self._dbapi_connection
        if proxied is not None:
            entry = getattr(proxied._connection_record, "entry", None)
            if entry is not None and entry.cause is not None:
                self._revive()
        return super()._execute_context(*args, **kwargs)

    def _exec_single_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._repeated(super()._exec_single_context, args, kwargs)

    def _exec_insertmany_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._repeated(super()._exec_insertmany_context, args, kwargs)

    def _repeated(self, execute: Any, args: Any, kwargs: Any) -> Any:
        watched = self.dispatch.before_cursor_execute or self.dispatch.after_cursor_execute
        outer, self._running = self._running, args[1]
        try:
            while True:
                if watched:
                    self._count_bytes()
                try:
                    result = execute(*args, **kwargs)
                except _Again:
                    continue
                finally:
                    if watched:
                        self._look_at_bytes()
                if self._healed is not None:
                    self._tell_healed()
                return result
        except BaseException:
            self._forget()
            raise
        finally:
            self._running = outer

    def _record(self) -> Record | None:
        proxied = self._dbapi_connection
        record = None if proxied is None else getattr(proxied, "_connection_record", None)
        return record if isinstance(record, Record) and record.entry is not None else None

    def _count_bytes(self) -> None:
        """Prepare for the application's handlers, which are about to get a cursor."""
        record = self._record()
        if record is not None and record.entry is not None and record.entry.cause is None:
            past_of(record, record.entry)
            record.sent_bytes = (record.entry.count() or -1,)

    def _look_at_bytes(self) -> None:
        record = self._record()
        if record is not None and record.entry is not None:
            if record.sent_bytes is not None and record.sent_bytes[0] != record.entry.count():
                past_of(record, record.entry).unseen(
                    "an event handler of the application got a cursor"
                )
            record.sent_bytes = None

    def _forget(self) -> None:
        self._losses = self._healed = self._lost_loan = None

    def _tell_healed(self) -> None:
        record, fault = self._record(), self._healed
        self._forget()
        if record is not None and record.entry is not None and fault is not None:
            note(record.owner, record.sql, record.entry.place, fault)

    def _commit_impl(self) -> None:
        with suppress(_Done):
            super()._commit_impl()

    def _handle_dbapi_exception(
        self,
        e: BaseException,
        statement: str | None,
        parameters: Any,
        cursor: Any,
        context: Any,
        is_sub_exec: bool = False,
    ) -> NoReturn:
        self.why_not, self.given_up = None, False
        if (
            isinstance(e, Exception)
            and context is self._running
            and self._heals(e, cursor, context)
        ):
            raise _Done if context is None else _Again
        without_cursor = cursor is None and context is None and statement is not None
        if (
            without_cursor
            and isinstance(e, self.dialect.loaded_dbapi.Error)
            and self._lost_before_all(e)
        ):
            raise _NoCursor
        if self.given_up:
            self._is_disconnect = True
        super()._handle_dbapi_exception(e, statement, parameters, cursor, context, is_sub_exec)

    # -- replacing a lost connection ---------------------------------------------------------------

    def _heals(self, exc: Exception, cursor: Any, context: Any) -> bool:
        """Return whether *exc* is resolved: its statement can go again, or its COMMIT only read."""
        record = self._record()
        if record is None or record.failed != id(exc):
            return False
        record.failed, entry = None, record.entry
        if entry is None or entry.conn is None:
            return False
        loan = self._lost_loan = record.loan or Loan.of(record.owner, entry, entry.conn)
        nothing_sent = record.was_dead and isinstance(exc, record.owner.driver.errors)
        met = curable(loan, record.owner.classify(exc), was_dead=nothing_sent)
        if met is None or not self._may_try(record, entry):
            return False
        if context is None:
            return self._forgets_commit(record, loan, exc, self._lost(record, loan, met, 1))
        losses, past = self._losses or Losses(), record.past
        self._losses, was_dead = losses, record.was_dead
        lost = self._lost(record, loan, met, losses.add(loan, past, was_dead=was_dead))
        ruling = self._ruled(may_run_again(past, lost))
        if not ruling.heals or loan.is_closed_by_holder:
            return False
        fault = loan.failed(exc)
        if record.owner.run(common.is_own_affair(loan, fault)):
            return False
        fault = met if fault.kind is FaultKind.RETRY else fault
        if not was_dead and fault.kind is not lost.fault.kind:
            ruling = self._ruled(may_run_again(past, replace(lost, fault=fault)))
            if not ruling.heals:
                return False
        if (spent := losses.pay(loan, lost.fault)) is not None:
            self.why_not = spent
            return False
        self._healed = lost.fault
        losses.take_over(loan)
        return self._moved(record, entry, exc, cursor, context, ruling)

    def _ruled(self, ruling: Ruling) -> Ruling:
        self.why_not = None if ruling.heals else ruling.reason
        return ruling

    def _may_try(self, record: Record, entry: Slot) -> bool:
        """Whether facts that only SQLAlchemy knows allow a retry, and no outer code repeats it."""
        dialect = self.dialect.dispatch
        if dialect.do_execute or dialect.do_executemany or dialect.do_execute_no_params:
            self.why_not = "the application sends its statements itself (a do_execute event)"
        elif self._nested_transaction is not None:
            self.why_not = "it was inside a savepoint"
        elif isinstance(self._transaction, TwoPhaseTransaction):
            self.why_not = "it was part of a two-phase transaction"
        elif record.owner.driver.blindness is not None or not record.owner.knows_status:
            self.why_not = "its driver does not report whether a transaction is open"
        else:
            unit = current(id(entry.conn)) if entry.watched or current_token() is not None else None
            return unit is None or unit.observing  # otherwise it is run again as a whole
        return False

    def _lost(self, record: Record, loan: Loan, fault: Fault, losses: int) -> Lost:
        owner, entry = record.owner, loan.entry
        limit = owner.settings.deadline
        return Lost(
            sql=record.sql,
            fault=fault,
            backend=owner.backend,
            autocommit=False if commits_itself(record, self.dialect) is False else None,
            cause=entry.cause,
            losses=losses,
            in_time=limit is None or owner.clock() < entry.taken_at + limit,
            in_parts=self._running is not None and bool(self._running.executemany),
            unsent=record.was_dead == common.Before.GONE or loan.was_unsent(),
        )

    def _forgets_commit(self, record: Record, loan: Loan, exc: Exception, lost: Lost) -> bool:
        owner, entry = record.owner, loan.entry
        level = self._execution_options.get("isolation_level")
        may_fail = owner.backend == "postgresql" and level == "SERIALIZABLE"
        lost = replace(lost, sql="COMMIT", autocommit=False)
        ruling = self._ruled(may_forget_commit(record.past, lost, serializable=may_fail))
        if not ruling.heals:
            return False
        loan.failed(exc)
        if entry.cause is None:
            entry.condemn(Cause.LOST, lost.fault.text)
        # the server's earlier answer about it is sufficient
        knows = not ruling.asks or not owner.may_hide_writes
        asks_level = owner.backend == "postgresql" and level is None
        if asks_level and knows:
            ruling = replace(ruling, asks=())
        if (asks_level or not knows) and not self._moved(record, entry, exc, None, None, ruling):
            return False
        if asks_level and not self._is_no_promise(record, ruling):
            return False
        entry.ending = None
        record.past.ended()
        note(owner, "COMMIT", entry.place, lost.fault)
        return True

    def _is_no_promise(self, record: Record, ruling: Ruling) -> bool:
        """Return whether a COMMIT promises nothing about reads that were answered: the level of
        isolation is not SERIALIZABLE, from any source. The query runs on the other connection,
        which has the same settings as the lost one.
        """
        owner, entry = record.owner, record.entry
        against: str | None = "no connection was available to ask for the isolation level"
        if entry is not None and entry.conn is not None:
            loan = Loan.of(owner, entry, entry.conn)
            against = owner.run(objection(loan, replace(ruling, asks=(Question.ISOLATION,))))
            if against is None and entry.cause is not None:
                against = "the other connection was lost, too"
        self.why_not, self.given_up = against, against is not None
        if against is not None and entry is not None:
            entry.condemn(Cause.DISCARDED, against)
        return against is None

    # -- another connection ------------------------------------------------------------------------

    def _lost_before_all(self, exc: Exception) -> bool:
        """Return whether *exc* reports that the connection was lost before anything of a
        transaction was sent on it, and another one replaces it.
        """
        record = self._record()
        entry = None if record is None else record.entry
        if record is None or entry is None or entry.conn is None:
            return False
        if record.owner.classify(exc).kind is not FaultKind.LOST:
            return False
        loan = record.loan or Loan.of(record.owner, entry, entry.conn)
        loan.failed(exc)
        return entry.cause is not None and self._revive()

    def _revive(self) -> bool:
        """Replace a connection that ended between two transactions, if nothing is lost by that."""
        record = self._record()
        entry = None if record is None else record.entry
        if record is None or entry is None or entry.conn is None:
            return False
        past = past_of(record, entry)
        if past.count and is_at_rest(past, lambda: commits_itself(record, self.dialect)):
            past.ended()
        if past.count or not self._may_try(record, entry):
            return False
        fault = Fault(FaultKind.LOST, entry.cause, text=entry.words)
        trial = past.copy()
        trial.sent("SELECT 1", False)
        lost = Lost(sql="SELECT 1", fault=fault, backend=record.owner.backend, autocommit=True)
        if not may_run_again(trial, lost).heals:
            return False
        exc = ConnectionLostError(HELD_REPLACED(f"the connection was lost: {entry.cause}"))
        try:
            against = self._replaced_somehow(record, entry, exc, Ruling(True, ""))
            if against is not None:
                words = f"a connection was lost between two transactions, and {against}"
                raise record.owner.error(ConnectionLostError, NO_SUBSTITUTE(words))
        except BaseException as another:
            self.invalidate(exc)
            if isinstance(another, self.dialect.loaded_dbapi.Error):  # as for engine.connect()
                self._handle_dbapi_exception_noconnection(another, self.dialect, self.engine)
            raise
        return True

    def _moved(
        self, record: Record, old: Any, exc: Exception, cursor: Any, context: Any, ruling: Ruling
    ) -> bool:
        """Put another connection below this one, and a cursor of it into *context*, if any."""
        if cursor is not None:
            with suppress(Exception):
                cursor.close()
        try:
            against = self._replaced_somehow(record, old, exc, ruling)
            if against is None:
                if context is not None:
                    context.cursor = context.create_cursor()
                return True
            self.why_not = against
            if record.entry is not None:
                record.entry.condemn(Cause.DISCARDED, against)
        except Exception as another:
            self.why_not = f"no other connection was available: {another}"
        except BaseException:
            self.invalidate(exc)
            raise
        self.given_up = True
        return False

    def _replaced_somehow(
        self, record: Record, old: Any, exc: Exception, ruling: Ruling
    ) -> str | None:
        """Do the same as :meth:`_replaced`, even if some are lost before they can be used."""
        for number in connections(record.owner):
            try:
                against = self._replaced(record, old, self._dbapi_connection, exc, ruling)
            except Exception as another:  # lost while it was set up
                ours = isinstance(another, UnbrokenError)
                is_last = number == ATTEMPTS - 1
                if ours or is_last or not record.owner.classify(another).is_lost:
                    raise
                continue
            entry = record.entry
            if entry is None or entry.conn is None or entry.cause is None:
                return against
        return "every other connection was lost, too"

    def _replaced(
        self, record: Record, old: Any, proxied: Any, exc: Exception, ruling: Ruling
    ) -> str | None:
        """Get one other connection. Returns the server's objection to *ruling*; None: none."""
        pool, owner = record.pool, record.owner
        code, lasti, holder, taken_at = old.code, old.lasti, old.holder, old.taken_at
        resets = list(record.finalize_callback)
        record.invalidate(exc)
        proxied.dbapi_connection = record.get_connection()
        entry = record.entry
        if entry is None or entry.conn is None:
            return "the application's own handler has replaced the connection"
        entry.code, entry.lasti, entry.holder = code, lasti, holder
        record.used = entry.uses
        record.fresh = False
        past = record.past
        past.moved()
        record.past_use, record.sent_bytes = (entry.key, entry.uses), None
        against: str | None = owner.run(objection(Loan.of(owner, entry, entry.conn), ruling))
        if entry.cause is not None or against is not None:
            return against
        entry.taken_at = taken_at  # its holder has held a connection since then
        if pool.dispatch.checkout:
            pool.dispatch.checkout(proxied.dbapi_connection, record, proxied)
        self._carry_over(proxied.dbapi_connection)
        record.finalize_callback.extend(resets)
        if owner.bounded or current_token() is not None:
            pool._begin(owner, record, entry)
        return None

    def _carry_over(self, dbapi_connection: Any) -> None:
        """Apply the old connection's execution options. The pool resets them at the end."""
        dialect: Any = self.dialect
        for name, characteristic in dialect.connection_characteristics.items():
            if name in self._execution_options:
                value = self._execution_options[name]
                characteristic.set_connection_characteristic(dialect, self, dbapi_connection, value)


def was_lost_at_rollback(owner: Any, entry: Slot, exc: Exception) -> bool:
    """Return whether a ROLLBACK failed with *exc* because of a lost connection: then it is done."""
    if isinstance(exc, UnbrokenError) or owner.classify(exc).kind is not FaultKind.LOST:
        return False
    Loan.of(owner, entry, entry.conn).failed(exc)
    return entry.cause is not None


def was_given_up(connection: Any) -> bool:
    """Return whether *connection* has lost its connection to the pool, and got no other one."""
    return bool(getattr(connection, "given_up", False))
