"""One pool in one process (and, for asyncio, on one event loop): its basic operations.

The pools read ``kernel``, ``here`` and ``fresh_for`` on their hot paths. The flows in this package
are the slow paths; they call the operations here. Locks are held for decisions only: logging,
closing and waking happen after their release.

A state is built in layers. Each layer is a file of its own that uses only those below it:
:mod:`~unbroken.pool.knowledge` (the fields), :mod:`~unbroken.pool.supply` (opening connections),
:mod:`~unbroken.pool.endings` (ending them), :mod:`~unbroken.pool.leases` (connections in use).
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
    """One pool in one process. A forked child makes a new one from scratch."""

    def adopt(self, conn: Connection, generation: int | None = None) -> Entry:
        """Make an entry for a new connection: register its socket, set keepalive, and watch it.

        *generation* is the pool's when the attempt began: a connection that was being opened during
        a drain is drained too.
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
        self.is_clean = self._end_check()  # the driver may have found itself blind
        return entry

    def strays(self) -> list[Entry]:
        """Entries that seem to have no owner: see :meth:`Kernel.strays`."""
        return self.kernel.strays()

    def _hold_weakly(self, entry: Entry) -> None:
        """While a connection is in use, only its holder keeps it alive: if the holder drops it, the
        pool recovers its place.
        """
        this, state = weakref.ref(entry), weakref.ref(self)
        try:
            entry.ref = weakref.ref(entry.conn, lambda _: _on_forgotten(state, this))
        except TypeError:
            return  # the pool keeps such objects alive; leak_after still reports them
        entry.anchor = None

    # -- the whole pool ----------------------------------------------------------------------------

    def drain(self) -> None:
        """Close idle connections now, and used ones when they are returned. New ones are opened on
        demand.
        """
        with self.lock:
            idle = self.kernel.drain()
        for entry in idle:
            self.close_entry(entry)
        self.ensure_connecting()

    def resize(self, settings: Settings) -> None:
        """Apply changed bounds."""
        self.settings = settings
        with self.lock:
            surplus = self.kernel.resize(settings.max_size, settings.min_size)
        for entry in surplus:
            self.close_entry(entry)
        self.ensure_connecting()

    def close(self) -> None:
        """Stop handing out connections. Used ones are closed on return; waiting callers get an
        error.
        """
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
        """Ask the server whether a SELECT may store something, so that the ledger knows it while
        the server is down.

        Ends at *until*, and leaves no transaction open. Raises the driver's error if *conn* must
        not be used any more.
        """
        self.hidden.asking(self.clock())
        if not self.knows_status:
            return  # no unit of work on it is run again, and the end of its exchanges is unknown
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
                f"{self.name}: it is not known whether a SELECT can store something: {fault.text}",
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
        """The server's answer to *question* on *conn*. None if it cannot be asked. Raises the
        driver's error.

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
        """The server's answer to *question* on *conn*, which no caller has yet. None if it gives
        none. Ends at *until*, and leaves no transaction open.

        Raises the driver's error if *conn* must not be used any more: it was lost, or the answer
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
                f"{self.name}: the server did not answer the question {question.value!r}:"
                f" {fault.text}",
                pool=self.name,
            )
            heard = None
        if self.driver.is_in_transaction(conn) is not False:
            yield Call("rollback", conn, None, self.time_for_questions(until))
        return heard

    def time_for_questions(self, until: float) -> float:
        """Seconds that a query may take if it must be answered by *until*."""
        return min(self.settings.ping_timeout, max(0.05, until - self.clock()))

    def inquire(self, question: Question, until: float) -> Flow[Any]:
        """Ask the server *question* on a connection of this pool: see
        :mod:`unbroken.pool.inquiry`.
        """
        from unbroken.pool.inquiry import inquire

        return inquire(self, question, until)


def state_of(pool: Any) -> PoolState:
    """The state of *pool* (a ``Pool`` or ``AsyncPool``) here. A fork and each event loop get a new
    one.

    For integrations. ``tests/test_surface.py`` lists the attributes that they may use.
    """
    state: PoolState = pool._current()
    return state


def _on_forgotten(
    state_ref: Callable[[], PoolState | None], entry_ref: Callable[[], Entry | None]
) -> None:
    """The holder of a connection let it be garbage-collected. Runs in a finalizer: no lock, no log.

    In a forked child the collection itself would send a goodbye on the parent's session. This runs
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
