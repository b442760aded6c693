"""The end of the transaction that a use left open: a ROLLBACK, or the COMMIT of one that only read,
and whether anybody waits for its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from unbroken.abc import CANNOT_SERVE, Cause
from unbroken.drivers._shared import AUTOCOMMIT_OFF, AUTOCOMMIT_ON
from unbroken.ledger.reading import may_lock, only_reads, reads, wrote_nothing
from unbroken.ledger.residue import NOTHING, Left
from unbroken.pool.admission import cannot_serve
from unbroken.pool.answers import may_fly
from unbroken.pool.holding import Holding
from unbroken.pool.poolers import uses_session
from unbroken.pool.steps import Call, Flow


class Ends(Holding):
    """How a transaction is ended for the next user: see :class:`unbroken.pool.loan.Loan`."""

    __slots__ = ()

    def left(self) -> frozenset[Left]:
        """What this use may have left on the session for the next one, as the setting ``reset``
        wants to know it.
        """
        if self.state.settings.reset != "session" or self.entry.reset_at == self.entry.uses:
            return NOTHING
        left = self.find_left()
        uses_session(self.state, left)
        # behind a pooler that shares its sessions a reset would reach any of them
        return NOTHING if self.state.server.pooler.shares else left

    def find_left(self) -> frozenset[Left]:
        """What the ledgers heard, or anything where they cannot have heard it all."""
        left: frozenset[Left] = self.state.left(self.entry, self.conn)
        return left

    def _undo(self, timeout: float | None = None, *, at_end: bool = False) -> Flow[None]:
        state, entry, conn = self.state, self.entry, self.conn
        if state.is_good(entry, conn) or self.outlives_time():
            return
        if not state.is_in_step(entry, conn):
            self.break_off()
            return
        try:
            if at_end and self.may_defer:
                yield from self.defer_rollback(timeout)
                return
            if not state.is_settled(entry, conn):
                yield from self._send_rollback(timeout)
            if not state.is_good(entry, conn):
                uses_session(state, state.driver.left_on(conn))
                yield Call("restore", conn, entry, timeout, (entry.traits,))
        except Exception as exc:
            self._unfit(exc)

    @property
    def may_defer(self) -> bool:
        """Whether the end of its transaction is all that this connection needs before its next
        user, so that nobody has to wait for the answer.

        What a unit of work wrote is rolled back before its end is told. Where to undo something
        takes as long as to do it, nobody else may come to wait for that behind this connection.
        """
        state = self.state
        return bool(
            state.defers
            and not callable(state.settings.reset)
            and self._may_leave_answer()
            and state.has_traits(self.conn, self.entry.traits)
            and not self.left()
        )

    def _may_leave_answer(self) -> bool:
        """Whether the open transaction can be ended by what is sent now, and the answer be read
        later.
        """
        state, entry, conn, unit = self.state, self.entry, self.conn, self.unit
        return bool(
            state.knows_status
            and entry.cause is None
            and entry.suspect is None
            and (unit is None or not unit.wrote)
            and (state.undoes_at_once or wrote_nothing(state.driver.texts(conn)))
            and state.may_leave(conn)
            and state.driver.is_quiet(conn)
        )

    def may_defer_commit(self, *, goes_on: bool = False) -> bool:
        """Whether it is certain that nothing was written in the transaction that is open, so that
        the answer to its COMMIT says nothing that the caller does not know.

        *goes_on*: the caller keeps the connection. It may count on its locks to be free, and on a
        COMMIT to end the transaction, as a ``completion_type`` of the server's can keep it from
        doing.
        """
        state = self.state
        if not goes_on:
            return self.may_defer and self._only_read()
        return bool(
            state.defers
            and self.entry.end_seen
            and not state.ran_code(self.conn)
            and may_fly(state)
            and self._may_leave_answer()
            and self._only_read()
            and not may_lock(state.driver.texts(self.conn))
        )

    def _only_read(self) -> bool:
        state = self.state
        return only_reads(state.driver.texts(self.conn), may_hide=state.may_hide_writes)

    def leave_commit(self) -> Flow[None]:
        """As :meth:`defer_commit`, of a caller that goes on: its unit of work hears of it."""
        unit, key = self.unit, id(self.conn)
        if unit is not None:
            unit.committing(conn_id=key)
        yield from self.defer_commit()
        if unit is not None:
            unit.committed(conn_id=key)

    def switch(self, *, on: bool) -> Flow[bool]:
        """Switch autocommit in the middle of a use, where nothing is open, and wait for nothing.
        False: the body must do it, and wait.

        Off, it is switched with the next statement: behind nothing but that, if the statement only
        reads. Else it would be stored where the switch is refused.
        """
        state, entry, conn, driver = self.state, self.entry, self.conn, self.state.driver
        if not (
            getattr(driver, "sends_autocommit", False)
            and self._may_begin()
            and driver.autocommits(conn) is not on
        ):
            return False
        if not on:
            self._want(AUTOCOMMIT_OFF)
        elif driver.wants(conn):
            driver.want(conn, None, _waits)  # nothing was sent since
        elif not (state.defers and entry.end_seen) or state.ran_code(conn):
            return False
        else:
            yield from self._send_end(AUTOCOMMIT_ON, None)
        return True

    def begin_later(self) -> bool:
        """Have BEGIN go out with the next statement, or right before it, where nothing is open and
        autocommit is on. False: the body must send it.
        """
        driver = self.state.driver
        if not (hasattr(driver, "want") and self._may_begin() and driver.autocommits(self.conn)):
            return False
        self._want("BEGIN")
        return True

    def was_not_begun(self) -> bool:
        """Whether BEGIN has not gone out yet, so that there is nothing to end: it never does."""
        if self.wanted() != "BEGIN":
            return False
        self.state.driver.want(self.conn, None, _waits)
        return True

    def wanted(self) -> str | None:
        """What begins a transaction and has not gone out, nor has anything behind it."""
        ask = getattr(self.state.driver, "wants", None)
        wanted: str | None = None if ask is None else ask(self.conn)
        return wanted

    def was_unsent(self) -> bool:
        """Whether the statement that lost the connection was never sent, as what begins its
        transaction was sent before it, and not answered.
        """
        ask = getattr(self.state.driver, "was_unsent", None)
        return self.wanted() is not None or bool(ask is not None and ask(self.conn))

    def _may_begin(self) -> bool:
        state, entry, conn = self.state, self.entry, self.conn
        return bool(
            state.knows_status
            and entry.cause is None
            and state.is_in_step(entry, conn)
            and state.is_settled(entry, conn)
        )

    def _want(self, sql: str) -> None:
        """*sql* begins a transaction."""
        state = self.state
        follows: Callable[[Any], bool] = _waits
        if may_fly(state) and self.entry.end_seen:
            follows = partial(reads, may_hide=state.may_hide_writes)
        state.driver.want(self.conn, sql, follows)

    def defer_rollback(self, timeout: float | None = None) -> Flow[None]:
        """Send ROLLBACK and leave its answer to the next user, or to upkeep.

        The server rolls back as soon as it has read it. Raises the driver's error where it cannot
        be sent.
        """
        yield from self._send_end("ROLLBACK", timeout)
        with self.state.lock:
            self.state.counters.rollbacks += 1

    def defer_commit(self) -> Flow[None]:
        """Send COMMIT for a transaction that only read, and leave its answer to the next user.

        It is no ROLLBACK: should a view hide a write after all, that is stored. What cannot be sent
        is the connection's end, and no news for the caller.
        """
        self.state.looked()
        try:
            yield from self._send_end("COMMIT", None)
        except Exception as exc:
            self._unfit(exc)

    def let_go(self) -> Flow[None]:
        """Have the server let go of what it holds although no transaction is open: see the driver's
        ``holds``.
        """
        try:
            yield Call("let_go", self.conn, self.entry, self.state.settings.reset_timeout)
        except Exception as exc:
            self._unfit(exc)

    def rollback_by(self, send: Callable[[], None]) -> None:
        """As :meth:`defer_rollback`, if *send*, a framework's own way, has the driver send it."""
        send()
        with self.state.lock:
            self.state.counters.rollbacks += 1
        self._left()

    def commit_by(self, send: Callable[[], None]) -> None:
        """As :meth:`defer_commit`, likewise."""
        self.state.looked()
        try:
            send()
        except Exception as exc:
            self._unfit(exc)
        else:
            self._left()

    def _left(self) -> None:
        driver: Any = self.state.driver
        if driver.owes_answer(self.conn):  # else the transaction was not the framework's
            self._sent_end()

    def _send_end(self, sql: str, timeout: float | None) -> Flow[None]:
        yield Call("send_end", self.conn, self.entry, timeout, (sql,))
        self._sent_end()

    def _sent_end(self) -> None:
        state, entry = self.state, self.entry
        entry.due = state.clock()
        if state.ran_code(self.conn):  # its answer may be another one than those that were seen
            entry.end_seen = False

    def _send_rollback(self, timeout: float | None) -> Flow[None]:
        state, entry = self.state, self.entry
        yield Call("rollback", self.conn, entry, timeout)
        with state.lock:
            state.counters.rollbacks += 1
        state.note_settled(entry, self.conn)

    def _unfit(self, exc: Exception) -> None:
        """What the pool itself sent failed with *exc*. A server that refuses even that, because it
        serves nobody, is believed: no application wrote those words.
        """
        fault = self.state.classify(exc)
        if fault.kind in CANNOT_SERVE:
            cannot_serve(self.state, self.entry, fault)
        cause = (fault.cause or Cause.LOST) if fault.is_lost else Cause.RESET_FAILED
        self.entry.condemn(cause, fault.text or repr(exc))


def _waits(_text: object) -> bool:
    """No statement is sent before what it needs was answered."""
    return False
