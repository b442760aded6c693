"""End the transaction that a use left open: by a ROLLBACK, or by COMMIT if it only read. Decide
whether the pool waits for the answer.
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
        """The session state that this use may have left for the next one, as far as the setting
        ``reset`` needs it.
        """
        if self.state.settings.reset != "session" or self.entry.reset_at == self.entry.uses:
            return NOTHING
        left = self.find_left()
        uses_session(self.state, left)
        # Behind a pooler that shares its sessions, a reset would hit any of them.
        return NOTHING if self.state.server.pooler.shares else left

    def find_left(self) -> frozenset[Left]:
        """The residue from the ledgers, or all of it if they cannot have recorded everything."""
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
        """Whether this connection only needs the end of its transaction before its next user, so
        that the pool does not have to wait for the answer.

        Writes of a unit of work are rolled back before its end is reported. Where a rollback takes
        as long as the work itself, no other caller must wait for it behind this connection.
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
        """Whether a statement that is sent now ends the open transaction, so that the answer can be
        read later.
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
        """Whether the open transaction certainly wrote nothing, so that the answer to its COMMIT
        tells the caller nothing new.

        *goes_on*: the caller keeps the connection. It may rely on its locks being released, and on
        COMMIT to end the transaction. A ``completion_type`` of the server can prevent that.
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
        """Like :meth:`defer_commit`, for a caller that keeps the connection: its unit of work is
        notified.
        """
        unit, key = self.unit, id(self.conn)
        if unit is not None:
            unit.committing(conn_id=key)
        yield from self.defer_commit()
        if unit is not None:
            unit.committed(conn_id=key)

    def switch(self, *, on: bool) -> Flow[bool]:
        """Switch autocommit in the middle of a use while no transaction is open, without waiting.
        Return False if the body must do it, and wait.

        Autocommit is switched off together with the next statement. Only a statement that only
        reads is sent before the switch was answered: a write would be stored if the switch is
        refused.
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
        """Have BEGIN sent with the next statement, or right before it, if no transaction is open
        and autocommit is on. Return False if the body must send it.
        """
        driver = self.state.driver
        if not (hasattr(driver, "want") and self._may_begin() and driver.autocommits(self.conn)):
            return False
        self._want("BEGIN")
        return True

    def was_not_begun(self) -> bool:
        """Whether BEGIN was not sent yet, so that there is nothing to end. It is never sent
        then.
        """
        if self.wanted() != "BEGIN":
            return False
        self.state.driver.want(self.conn, None, _waits)
        return True

    def wanted(self) -> str | None:
        """The statement that begins a transaction, if it was not sent yet and nothing was sent
        after it.
        """
        ask = getattr(self.state.driver, "wants", None)
        wanted: str | None = None if ask is None else ask(self.conn)
        return wanted

    def was_unsent(self) -> bool:
        """Whether the statement that lost the connection was never sent. That is the case if the
        beginning of its transaction was sent before it, and not answered.
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
        """Register *sql*, which begins a transaction."""
        state = self.state
        follows: Callable[[Any], bool] = _waits
        if may_fly(state) and self.entry.end_seen:
            follows = partial(reads, may_hide=state.may_hide_writes)
        state.driver.want(self.conn, sql, follows)

    def defer_rollback(self, timeout: float | None = None) -> Flow[None]:
        """Send ROLLBACK and leave its answer to the next user, or to upkeep.

        The server rolls back as soon as it has read it. Raises the driver's error if it cannot be
        sent.
        """
        yield from self._send_end("ROLLBACK", timeout)
        with self.state.lock:
            self.state.counters.rollbacks += 1

    def defer_commit(self) -> Flow[None]:
        """Send COMMIT for a transaction that only read, and leave its answer to the next user.

        COMMIT rather than ROLLBACK: if a view hides a write after all, the write is stored. If it
        cannot be sent, the connection is condemned, and the caller gets no error.
        """
        self.state.looked()
        try:
            yield from self._send_end("COMMIT", None)
        except Exception as exc:
            self._unfit(exc)

    def let_go(self) -> Flow[None]:
        """Make the server release what it holds although no transaction is open: see the driver's
        ``holds``.
        """
        try:
            yield Call("let_go", self.conn, self.entry, self.state.settings.reset_timeout)
        except Exception as exc:
            self._unfit(exc)

    def rollback_by(self, send: Callable[[], None]) -> None:
        """Like :meth:`defer_rollback`, if *send*, a framework's own way, makes the driver
        send it.
        """
        send()
        with self.state.lock:
            self.state.counters.rollbacks += 1
        self._left()

    def commit_by(self, send: Callable[[], None]) -> None:
        """Like :meth:`defer_commit`, if *send*, a framework's own way, makes the driver send it."""
        self.state.looked()
        try:
            send()
        except Exception as exc:
            self._unfit(exc)
        else:
            self._left()

    def _left(self) -> None:
        driver: Any = self.state.driver
        if driver.owes_answer(self.conn):  # else the framework had no transaction of its own
            self._sent_end()

    def _send_end(self, sql: str, timeout: float | None) -> Flow[None]:
        yield Call("send_end", self.conn, self.entry, timeout, (sql,))
        self._sent_end()

    def _sent_end(self) -> None:
        state, entry = self.state, self.entry
        entry.due = state.clock()
        if state.ran_code(self.conn):  # its answer may differ from those that were seen
            entry.end_seen = False

    def _send_rollback(self, timeout: float | None) -> Flow[None]:
        state, entry = self.state, self.entry
        yield Call("rollback", self.conn, entry, timeout)
        with state.lock:
            state.counters.rollbacks += 1
        state.note_settled(entry, self.conn)

    def _unfit(self, exc: Exception) -> None:
        """A statement of the pool itself failed with *exc*. If a server refuses even that because
        it serves no client, the pool believes it: the application did not write that message.
        """
        fault = self.state.classify(exc)
        if fault.kind in CANNOT_SERVE:
            cannot_serve(self.state, self.entry, fault)
        cause = (fault.cause or Cause.LOST) if fault.is_lost else Cause.RESET_FAILED
        self.entry.condemn(cause, fault.text or repr(exc))


def _waits(_text: object) -> bool:
    """Send no statement before the answer that it needs has come."""
    return False
