"""One pool in one process (and, for asyncio, on one event loop): the small moves on it.

The pools read ``kernel``, ``here`` and ``fresh_for`` on their hot paths. The flows beside this file
are the slow paths; they call the moves here. Locks are held for decisions only: logging, closing
and waking happen after letting go.

A state is built up in floors, each in a file of its own that uses only those below it:
:mod:`~unbroken.pool.knowledge` (the fields), :mod:`~unbroken.pool.supply` (how connections come),
:mod:`~unbroken.pool.endings` (how they end), :mod:`~unbroken.pool.leases` (what is lent).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

from unbroken.abc import Connection
from unbroken.brain.entry import Entry
from unbroken.ledger.questions import Question, answer, text_of
from unbroken.logs import Part
from unbroken.net import fork_guard, keepalive, liveness, sent_bytes
from unbroken.pool import contexts  # noqa: F401 - follows what units hand to threads and tasks
from unbroken.pool.endings import on_end
from unbroken.pool.leases import Leases
from unbroken.pool.names import peer_of
from unbroken.pool.poolers import settle
from unbroken.pool.steps import Call, Flow
from unbroken.settings import Settings

log = Part("pool")


class PoolState(Leases):
    """One pool in one process. Made anew, from nothing, in a forked child."""

    def adopt(self, conn: Connection, generation: int | None = None) -> Entry:
        """Make an entry of a fresh connection: its socket known, kept alive and watched.

        *generation* is the pool's when the attempt began: what was being opened during a drain is
        drained too.
        """
        now = self.clock()
        driver = self.driver
        generation = self.kernel.generation if generation is None else generation
        entry = self.entry_kind(
            conn, now, generation, self.policy.retire_at(now, self.random.random())
        )
        settle(self, conn)
        entry.session = driver.session_id(conn)
        entry.traits = driver.traits(conn)
        entry.fd = driver.fileno(conn)
        if entry.fd is not None:
            entry.identity = fork_guard.identity(entry.fd)
            entry.poll = liveness.poller(entry.fd)
            entry.count = sent_bytes.counter(entry.fd)
            if not self.knows_status:
                entry.sent = entry.count()
            policy = self.policy
            if self.names:
                entry.peer = peer_of(entry.fd)
                self.server.lookout.begin(self.server)
            keepalive.bound(entry.fd, policy.keepalive, policy.probe_every, policy.send_timeout)
            self.sockets.add(entry.fd)
            this, state = weakref.ref(entry), weakref.ref(self)
            self.runtime.watcher.watch(entry.fd, lambda: on_end(state, this))
        self._hold_weakly(entry)
        self.is_clean = self._end_check()  # the driver may have found out that it knows nothing
        return entry

    def strays(self) -> list[Entry]:
        """Entries that seem to have no owner: see :meth:`Kernel.strays`."""
        return self.kernel.strays()

    def _hold_weakly(self, entry: Entry) -> None:
        """While it is lent, only its holder keeps the connection alive: who forgets it gives it
        back.
        """
        this, state = weakref.ref(entry), weakref.ref(self)
        try:
            entry.ref = weakref.ref(entry.conn, lambda _: _on_forgotten(state, this))
        except TypeError:
            return  # such objects stay held by the pool; leak_after still reports them
        entry.anchor = None

    # -- the whole pool ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Close what is idle now, what is lent when it comes back; new ones are opened as they are
        wanted.
        """
        with self.lock:
            idle = self.kernel.drain()
        for entry in idle:
            self.close_entry(entry)
        self.ensure_connecting()

    def resize(self, settings: Settings) -> None:
        """Take over changed bounds."""
        self.settings = settings
        with self.lock:
            surplus = self.kernel.resize(settings.max_size, settings.min_size)
        for entry in surplus:
            self.close_entry(entry)
        self.ensure_connecting()

    def close(self) -> None:
        """Lend nothing any more. What is lent is closed when it comes back; who waits is told."""
        with self.lock:
            idle = self.kernel.close()
            tickets = self.kernel.fail(self.closed_error)
            prober_wakeup, self.prober_wakeup = self.prober_wakeup, None
            timer, self.upkeep_timer = self.upkeep_timer, None
        if timer is not None:
            timer.cancel()
        if prober_wakeup is not None:
            self.runtime.wake(prober_wakeup)
        self.wake(tickets)
        for entry in idle:
            self.close_entry(entry)
        if self.share is not None:
            self.share.end(self)

    # -- questions to the server -------------------------------------------------------------------

    def ask_hidden(
        self, conn: Connection, entry: Entry | None = None, until: float = math.inf
    ) -> Flow[None]:
        """Ask the server whether a SELECT may store something, so that the ledger can tell when the
        server is away.

        Ends at *until*, and leaves no transaction open. Raises the driver's error where *conn* must
        not be used any more.
        """
        self.hidden.asking(self.clock())
        if not self.knows_status:
            return  # no unit of work on it is run again, and when its exchanges end is not known
        try:
            self.hidden.answer = yield from self.read_answer(
                conn, Question.HIDDEN_WRITES, entry, until
            )
        except Exception as exc:
            fault = self.classify(exc)
            if fault.is_lost:
                self.hidden.wanted, self.hidden.asked_at = True, -math.inf
                raise
            log.debug(
                "question not answered",
                f"{self.name}: what a SELECT may store here is not known: {fault.text}",
                pool=self.name,
            )
        if self.driver.is_in_transaction(conn) is not False:
            yield Call("rollback", conn, entry, self.time_for_questions(until))

    def read_answer(
        self,
        conn: Connection,
        question: Question,
        entry: Entry | None = None,
        until: float = math.inf,
    ) -> Flow[Any]:
        """What the server answers to *question* on *conn*; None where it cannot be asked. Raises
        the driver's error.

        May leave a transaction open.
        """
        while (text := text_of(question, self.backend)) is not None:
            rows = yield Call("ask", conn, entry, self.time_for_questions(until), (text,))
            heard = answer(question, self.backend, rows)
            if not isinstance(heard, Question):
                return heard
            question = heard
        return None

    def ask_new(self, conn: Connection, question: Question, until: float = math.inf) -> Flow[Any]:
        """What the server answers to *question* on *conn*, which nobody has been given yet; None
        where it does not say. Ends at *until*, and leaves no transaction open.

        Raises the driver's error where *conn* must not be used any more: it was lost, or the answer
        may still come.
        """
        try:
            heard = yield from self.read_answer(conn, question, None, until)
        except Exception as exc:
            fault = self.classify(exc)
            if fault.is_lost or (self.knows_status and not self.driver.is_quiet(conn)):
                raise
            log.debug(
                "question not answered",
                f"{self.name}: the server did not say: {question.value} ({fault.text})",
                pool=self.name,
            )
            heard = None
        if self.driver.is_in_transaction(conn) is not False:
            yield Call("rollback", conn, None, self.time_for_questions(until))
        return heard

    def time_for_questions(self, until: float) -> float:
        """How many seconds a question may take that must be answered by *until*."""
        return min(self.settings.ping_timeout, max(0.05, until - self.clock()))

    def inquire(self, question: Question, until: float) -> Flow[Any]:
        """See :func:`unbroken.pool.inquiry.inquire`."""
        from unbroken.pool.inquiry import inquire

        return inquire(self, question, until)


def state_of(pool: Any) -> PoolState:
    """The state of *pool* (a ``Pool`` or ``AsyncPool``) here: made anew after a fork, and for each
    event loop.

    For integrations. What they may use of it is listed in ``tests/test_surface.py``.
    """
    state: PoolState = pool._current()
    return state


def _on_forgotten(
    state_ref: Callable[[], PoolState | None], entry_ref: Callable[[], Entry | None]
) -> None:
    """The holder of a lent connection let it be collected. Runs in a finalizer: no lock, no log.

    In a forked child the collection itself would say goodbye on the parent's session; this runs
    just before it.
    """
    state, entry = state_ref(), entry_ref()
    if state is None or entry is None:
        return
    if not state.here[0] and entry.fd is not None and entry.identity is not None:
        fork_guard.sever(entry.fd, entry.identity)
        return
    if state.kernel.lose(entry):
        state.forgotten.append(entry)
