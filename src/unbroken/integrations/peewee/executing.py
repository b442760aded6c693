"""How a database sends statements, and how it reacts when one is lost."""

from __future__ import annotations

import inspect
import time
from typing import Any, cast

import peewee

from unbroken.integrations.peewee import upkeep
from unbroken.integrations.peewee.errors import LazyQueryError
from unbroken.integrations.peewee.heal import tell
from unbroken.integrations.peewee.result import Result, is_streaming
from unbroken.integrations.peewee.slot import Pin, Slot, refusal
from unbroken.ledger.scope import current_token
from unbroken.messages.integrations import LAZY_QUERY
from unbroken.messages.processes import PARENTS_CONNECTION

#: Functions whose frames may be left without being at their end.
_CAN_GO_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Executing(peewee.Database):  # type: ignore[misc] # peewee ships no types that we could use
    """The part of a database that makes cursors and executes."""

    def cursor(self, named_cursor: Any = None) -> Any:
        """Do the same as peewee.

        A cursor on a connection that was opened for it keeps that connection until it is closed or
        collected.
        """
        slot, pin = self._ready()
        try:
            raw = super().cursor(named_cursor)
            if slot.sql is None and slot.loan is not None and slot.loan.past is not None:
                slot.loan.past.unseen("the application has a cursor of its own")
            if slot.is_bound:
                slot.raw = slot.raw or slot.sql is None
                return raw
            return Result(raw, self, slot)
        finally:
            self._unpin(slot, pin)

    def _execute_cursor(self, sql: Any, params: Any, **options: Any) -> Any:
        self._log_query(sql, params)
        start = time.perf_counter() if self.query_hooks else None
        slot = self._state
        pin = Pin(self, slot)
        try:
            result = self._send_safely(slot, sql, lambda: self._send(slot, sql, params, options))
        except Exception as exc:
            if start is not None:
                self._notify_hooks(sql, params, start, exc)
            raise
        finally:
            self._unpin(slot, pin)
        if start is not None:
            self._notify_hooks(sql, params, start, None)
        return result

    def _send(self, slot: Slot, sql: Any, params: Any, options: dict[str, Any]) -> Result:
        slot.sql = sql
        result: Any = None
        try:
            with peewee.__exception_wrapper__:
                result = self.cursor(**options)
                if type(result) is not Result:
                    result = Result(result, self, slot)
                result._reusable = False
                tell(slot, sql)
                result._cursor.execute(sql, params or ())
            self._executed(slot, result)
        except BaseException as exc:
            slot.sql = None
            if result is not None:
                slot.readers.pop(id(result), None)
            self._blame(slot, exc, sql)
            raise
        finally:
            slot.sql = None
        return cast("Result", result)

    def _blame(self, slot: Slot, exc: BaseException, sql: Any) -> None:
        """Raise the error for the caller in place of *exc*, if there is one. (A variable for it
        beside its own traceback would be a cycle that keeps results, and so connections.)
        """
        error = upkeep.failed(self, slot, exc, sql, may_heal=True)
        if error is not exc:
            raise error from exc

    def _executed(self, slot: Slot, result: Result) -> None:
        loan = slot.loan
        if loan is not None:
            status = loan.state.driver.is_in_transaction(slot.conn)
            slot.open, slot.clean, slot.last_used = status is True, status is False, loan.state.now
        if result._cursor.description is None and not is_streaming(result._cursor):
            # nothing to read
            slot.readers.pop(id(result), None)
            if not slot.is_bound:
                result.let_go()

    def _ready(self) -> tuple[Slot, Pin]:
        """Return this thread's slot with a connection in it that is fit for a statement, pinned
        until :meth:`_unpin`.
        """
        slot = self._state
        self._begin_anew(slot)
        pin = Pin(self, slot)
        try:
            if slot.closed:
                self._allow(slot)
                self._take(slot)
            elif slot.loan is not None:
                upkeep.look_after(self, slot)
            if current_token() is not None:
                upkeep.join(slot)
        except BaseException:
            self._unpin(slot, pin)
            raise
        return slot, pin

    def _allow(self, slot: Slot) -> None:
        """Check whether a connection may be opened for the next statement. Raises the exception
        that refuses it.
        """
        if slot.orphan and slot.transactions:
            raise peewee.OperationalError(
                PARENTS_CONNECTION(
                    "this transaction belongs to the parent process; leave its block (or call"
                    " dispose()) before you use the database in the child"
                )
            )
        if slot.held or slot.opening:
            return
        if not self.autoconnect:
            raise peewee.InterfaceError("Error, database connection not opened.")
        if self.strict:
            raise LazyQueryError(LAZY_QUERY(refusal(slot.sql, slot.opened, slot.left)))
