"""Hooks for cases in which SQLAlchemy's dialects know less than this library. These are errors that
end a connection, transactions that are not open, COMMITs whose answer is lost, and statements on
connections that were acquired unseen by a unit of work.

They are set on one engine's dialect object, never on a class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

from unbroken.abc import Cause, FaultKind
from unbroken.errors import (
    ClosedByHolderError,
    CommitUnknownError,
    ConfigurationError,
    ConnectionLostError,
    ConnectRejectedError,
    DeadlineExceeded,
    OutageError,
    PoolTimeoutError,
    UnbrokenError,
    for_driver,
)
from unbroken.integrations.sqlalchemy import heal, healing_engine, pending
from unbroken.integrations.sqlalchemy.closing import is_at_end
from unbroken.integrations.sqlalchemy.plan import Blind, Plan
from unbroken.integrations.sqlalchemy.record import Slot
from unbroken.ledger.scope import current, current_token
from unbroken.pool.bounds import bounded
from unbroken.pool.heal import Losses
from unbroken.pool.loan import Loan
from unbroken.pool.steps import Call, run
from unbroken.pool.undone import tell_on

#: DBAPIs whose COMMIT and ROLLBACK may be left out if nothing is open. Others (asyncpg's) keep
#: state of their own beside the server's, and send nothing needless anyway.
_STATELESS = {
    "pg8000",
    "pymysql",
    "mysqlclient",
    "aiomysql",
    "asyncmy",
    "psycopg",
    "psycopg2",
    "mysqlconnector",
    "mariadb",
    "mariadbconnector",
}


_OURS = (
    OutageError,
    PoolTimeoutError,
    CommitUnknownError,
    ConnectionLostError,
    ClosedByHolderError,
    DeadlineExceeded,
    ConnectRejectedError,
    ConfigurationError,
)


def known(connection: Any) -> tuple[Any, Slot] | None:
    """Return our body and entry behind SQLAlchemy's DBAPI connection; None if it does not belong to
    a pool of ours.
    """
    record = getattr(connection, "_connection_record", None)
    entry = getattr(record, "entry", None)
    owner = getattr(record, "owner", None)
    return None if entry is None or owner is None or entry.conn is None else (owner, entry)


class Hooks:
    """One engine's hooks."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine = engine
        self.dialect: Any = engine.dialect
        self.plan = plan
        self.driver = plan.driver
        self.may_skip = self.driver.name in _STATELESS
        #: within it, the commands with which the dialect ends a transaction are not waited for
        self.leaving: Any = getattr(self.driver, "leaving", None)
        #: whether the server keeps locks of a connection in no transaction
        self.holds: Any = getattr(self.driver, "holds", None)

    def install(self) -> None:
        """Set them."""
        dialect, plan = self.dialect, self.plan
        event.listen(self.engine, "handle_error", self.on_error)
        if isinstance(self.driver, Blind):
            self.driver.dialect = dialect
        dbapi = dialect.loaded_dbapi
        plan.foreign = getattr(dbapi, "OperationalError", plan.foreign)
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            setattr(dialect, name, _seen(getattr(dialect, name)))
        if plan.is_blind:
            return
        pending.install()
        if plan.settings.heal:
            healing_engine.install(self.engine)
        dialect.do_rollback = self._rollback(dialect.do_rollback)
        dialect.do_commit = self._commit(dialect.do_commit)
        opener = getattr(self.driver, "open", None)
        if self.driver.name == "psycopg2":
            dialect.connect = self._reporting(dialect.connect)
        elif opener is not None and getattr(dbapi, "__name__", "") == "pymysql":
            dialect.connect = self._connect(dialect.connect)
        elif opener is not None and plan.is_async:
            dialect.connect = _opening(dialect.connect, opener)

    def _connect(self, original: Any) -> Any:
        """Wrap the connect for PyMySQL: its own connect timeout ends before the handshake, while
        the driver's opener has one for both.
        """

        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            dbapi = self.dialect.loaded_dbapi
            if (
                args
                or kwargs.get("defer_connect")
                or dbapi.connect is not dbapi.connections.Connection
            ):
                # a tracer wraps it
                return original(*args, **kwargs)
            return self.driver.open(kwargs, self.plan.settings.connect_timeout)  # type: ignore[attr-defined] # PyMySQL's has it

        return connect

    def _reporting(self, original: Any) -> Any:
        """Wrap the connect for psycopg2: its connections are written in C, so only those of a class
        of ours can report.
        """

        @functools.wraps(original)
        def connect(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **self.driver.reporting_arguments(kwargs))  # type: ignore[attr-defined] # psycopg2's has it

        return connect

    # -- transactions ------------------------------------------------------------------------------

    def _rollback(self, original: Any) -> Any:
        """Wrap the rollback: no round trip if it is certain that nothing is open, and nothing is
        sent on a parent's connection.
        """
        driver, ask, may_skip = self.driver, self.driver.is_in_transaction, self.may_skip

        @functools.wraps(original)
        def do_rollback(connection: Any) -> None:
            found = known(connection)
            if found is None:
                original(connection)
                return
            owner, entry = found
            past = entry.record.past
            if not owner.here[0]:
                owner.sever()
            elif may_skip and owner.driver is driver and ask(entry.conn) is False:
                # otherwise it cannot look below them
                pass  # and so it is in step, too
            elif not owner.is_in_step(entry, entry.conn) and (owner.knows_status or is_at_end()):
                Loan.of(owner, entry, entry.conn).break_off()  # its end is the rollback
            elif Loan.of(owner, entry, entry.conn).outlives_time():
                pass  # the same applies here
            else:
                self._let_go(owner, entry)
                try:
                    send = functools.partial(original, connection)
                    if not (is_at_end() and self._defer_rollback(owner, entry, send)):
                        with bounded(owner, "rollback", entry):
                            send()
                        owner.counters.rollbacks += 1
                except Exception as exc:
                    if not (owner.settings.heal and heal.was_lost_at_rollback(owner, entry, exc)):
                        raise
            past.ended()
            suspect = entry.suspect
            if suspect is not None and owner.here[0] and entry.cause is None:
                owner.run(Loan.of(owner, entry, entry.conn).ask_why(suspect[1]))

        return do_rollback

    def _let_go(self, owner: Any, entry: Slot) -> None:
        """End the state that a ROLLBACK would end, if SQLAlchemy sends none because it knows of no
        transaction.
        """
        if self.holds is not None and owner.driver is self.driver:
            conn = entry.conn
            if self.driver.is_in_transaction(conn) is False and self.holds(conn):
                owner.run(Loan.of(owner, entry, conn).let_go())

    def _defer_rollback(self, owner: Any, entry: Slot, send: Callable[[], None]) -> bool:
        """Send the ROLLBACK that ends a use of *entry*, and leave its answer to the next one.

        *send* is the dialect's own way. False: nothing was sent, because the answer must be waited
        for.
        """
        loan = Loan.of(owner, entry, entry.conn)
        if not (self._may_leave(owner) and loan.may_defer):
            return False
        if self.may_skip:
            owner.run(loan.defer_rollback())
        else:
            with self.leaving(entry.conn), bounded(owner, "rollback", entry):
                loan.rollback_by(send)
        return True

    def _may_leave(self, owner: Any) -> bool:
        """Return whether the driver can leave an answer to the next user of a connection, and the
        dialect allows it.
        """
        return owner.driver is self.driver and (self.may_skip or self.leaving is not None)

    def _defer_commit(self, owner: Any, entry: Slot, loan: Loan, send: Callable[[], None]) -> bool:
        """Do the same as :meth:`_defer_rollback`, for the COMMIT of a transaction that only
        read.
        """
        if not (self._may_leave(owner) and loan.may_defer_commit(goes_on=True)):
            return False
        if self.may_skip:
            owner.run(loan.leave_commit())
        else:
            with self.leaving(entry.conn), bounded(owner, "commit", entry):
                loan.commit_by(send)
        return True

    def _commit(self, original: Any) -> Any:
        """Wrap the commit in the same way. A COMMIT whose answer is lost is reported as unknown,
        one that was never sent as lost.
        """
        ask, may_skip = self.driver.is_in_transaction, self.may_skip

        @functools.wraps(original)
        def do_commit(connection: Any) -> None:
            found = known(connection)
            if found is None:
                original(connection)
                return
            owner, entry = found
            status, past = ask(entry.conn), entry.record.past
            if status is False and may_skip:
                past.ended()
                return
            if status is False:  # asyncpg's own bookkeeping
                original(connection)
                past.ended()
                return

            loan = Loan.of(owner, entry, entry.conn)
            if self._defer_commit(owner, entry, loan, functools.partial(original, connection)):
                past.ended()
                return
            commit = Call("commit", entry.conn, entry)

            def do(step: Any) -> Any:
                if step is not commit:
                    return owner.runtime.do_here(step)
                with bounded(owner, "commit", entry):
                    return original(connection)

            try:
                run(loan.commit(commit), do)
            except Exception as exc:
                entry.record.failed = id(exc)
                raise
            past.ended()

        return do_commit

    # -- errors ------------------------------------------------------------------------------------

    def on_error(self, context: ExceptionContext) -> BaseException | None:
        """Report the meaning of an error to SQLAlchemy, to the unit of work, and to the pool's
        records.
        """
        exc = context.original_exception
        proxied = getattr(context.connection, "_dbapi_connection", None)
        found = known(proxied) if proxied is not None else None
        shown: BaseException | None = None
        ending: Any = None
        if found is not None:
            shown = self._judge(context, Loan.of(*found, found[1].conn), exc)
            ending = found[1].ending
        elif heal.was_given_up(context.connection):
            context.invalidate_pool_on_disconnect = False
        if shown is None and isinstance(exc, UnbrokenError):
            shown = exc
        told = None if shown is None else _as_both(shown, context)
        seen = told or context.sqlalchemy_exception or exc
        if getattr(context.connection, "why_not", None) is None:
            tell_on(seen, ending)
        if found is not None and context.is_disconnect:
            pending.remember(context.connection, seen, found[1])
        _explain(context.connection, seen)
        return told

    def _judge(
        self, context: ExceptionContext, loan: Loan, exc: BaseException
    ) -> BaseException | None:
        owner, entry = loan.state, loan.entry
        fault = loan.failed(exc)
        if entry.cause is not None:
            context.is_disconnect = True
        # SQLAlchemy's own verdict, or its rule for an error that is no Exception
        elif context.is_disconnect:
            entry.condemn(
                fault.cause or (Cause.LOST if isinstance(exc, Exception) else Cause.CANCELLED),
                fault.text,
            )
        if entry.fd is not None and fault.kind is not FaultKind.WRONG_SERVER:
            context.invalidate_pool_on_disconnect = (
                False  # we check the others instead of discarding them
            )
            if context.is_disconnect:
                owner.sweep()
        if isinstance(exc, Exception) and isinstance(
            told := loan.shown(exc, owner.settings.deadline), DeadlineExceeded
        ):
            return told
        return None


def _opening(original: Any, opener: Any) -> Any:
    """Return SQLAlchemy's way to connect with the driver's opener: a cancelled connect leaves
    nothing open.
    """

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("async_creator_fn", opener)
        return original(*args, **kwargs)

    return connect


def _as_both(error: BaseException, context: ExceptionContext) -> BaseException | None:
    """Return *error*, one of ours, as an error that is SQLAlchemy's too, with all attributes of
    SQLAlchemy's.
    """
    theirs = context.sqlalchemy_exception
    kind = next((kind for kind in _OURS if isinstance(error, kind)), None)
    if theirs is None or kind is None:
        return error if error is not context.original_exception else None
    shown = for_driver(kind, type(theirs), str(error))
    # attributes of the DBAPI's errors (orig, say) come from SQLAlchemy here
    own = {k: v for k, v in error.__dict__.items() if k not in vars(theirs) or k == "__notes__"}
    shown.__dict__.update(
        {**theirs.__dict__, **own, "connection_invalidated": context.is_disconnect}
    )
    return shown


def _seen(original: Any) -> Any:
    """Wrap a statement: inside a unit of work, on a connection that was acquired outside of it, it
    is a reason not to run the unit again.
    """

    @functools.wraps(original)
    def execute(*args: Any, **kwargs: Any) -> Any:
        if current_token() is not None:
            _doubt(args[-1] if args else kwargs.get("context"))
        return original(*args, **kwargs)

    return execute


def _doubt(context: Any) -> None:
    unit = current()
    if unit is None:
        return
    connection = getattr(getattr(context, "root_connection", None), "_dbapi_connection", None)
    found = known(connection) if connection is not None else None
    if found is None:
        unit.doubt("a statement was sent on a connection that is not from an unbroken pool")
    elif not found[1].watched and found[1].record.used == found[1].uses:
        # not while SQLAlchemy sets a new connection up
        unit.doubt(
            "a statement was sent on a connection that was checked out before the unit of work"
            " began"
        )


def _explain(connection: Any, error: BaseException) -> None:
    """Add to *error* why a statement of *connection* was not run again, and when it would be."""
    why, loan = getattr(connection, "why_not", None), getattr(connection, "_lost_loan", None)
    if why is not None and loan is not None:
        (connection._losses or Losses()).refused(error, why, loan)
        connection.why_not = connection._lost_loan = None
