"""Opening connections: workers open the wanted ones; in an outage, one prober works for all
pools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unbroken.brain.kernel import Ticket
from unbroken.ledger.scope import outside
from unbroken.logs import Part
from unbroken.messages.pool import NO_THREAD
from unbroken.net.ending import NoThreadError, no_thread
from unbroken.pool.knowledge import Knowledge, Start
from unbroken.pool.registry import every
from unbroken.pool.steps import Flow

log = Part("pool")

#: Maximum number of workers that are stuck in an uninterruptible call (a name lookup, a caller's
#: own function) before no new ones are started.
STUCK = 4
#: Seconds after a rejection (a wrong password, for example) in which only a caller makes the pool
#: try again: some servers lock an account.
REJECTED_PAUSE = 30.0


class Supply(Knowledge):
    """The number of wanted connections, and the workers that open them."""

    @property
    def wants(self) -> int:
        """How many more connections should be opened now.

        For a while after a rejection, none for min_size alone.
        """
        kernel = self.kernel
        if not kernel.waiting and (
            kernel.size >= kernel.min_size or self.clock() - self.rejected_at < REJECTED_PAUSE
        ):
            return 0
        kernel.silent = self.server.outage.silent(self, self.clock()) if self.tries else 0
        return kernel.wanted

    @property
    def unserved(self) -> int:
        """Number of waiting callers for which no connection is being opened."""
        return self.kernel.unserved

    @property
    def places(self) -> int:
        """How many more connections there may be."""
        return self.kernel.bound - self.kernel.size

    def ensure_connecting(self) -> None:
        """Ensure that wanted connections are being opened, and that a sleeping prober learns of a
        caller.
        """
        kernel = self.kernel
        if self.share is not None:
            self.share.seek(self)
        if not kernel.waiting and not self.wants:
            return
        outage = self.server.outage
        if kernel.waiting:
            outage.call(self.clock())
            prober: Any = outage.prober
            if prober is not None and prober.runtime.is_awake():
                prober.runtime.call(prober.wake_prober)
            elif prober is not None:
                with self.server.lock:
                    outage.resign(prober)
        self._start_workers(self._missing_workers)
        if self.tries and kernel.waiting:
            self.oversee(self)

    def wake_prober(self) -> None:
        """A caller of this pool, or of another pool of the server, has come: the prober must not
        sleep any longer.
        """
        with self.lock:
            prober_wakeup, self.prober_wakeup = self.prober_wakeup, None
        if prober_wakeup is not None:
            self.runtime.wake(prober_wakeup)
        elif self.tries:
            self.hasten()

    def hasten(self) -> None:
        """A caller of this pool, or of another pool of the server, waits. If the prober's attempts
        are silent, begin one beside them.
        """
        with self.lock:
            outage = self.server.outage
            wanted = outage.active and outage.prober is self and self.places > 0
        if wanted:
            self._start_workers(lambda: min(1, self.room(self.connectors)))
        self.oversee(self)

    def probe(self) -> None:
        """Make one attempt to connect in an outage, even if no caller waits, so that later callers
        do not wait for it.
        """
        if self.share is not None:
            self.share.seek(self, at_least=1)
        with self.lock, self.server.lock:
            wanted = self.server.outage.active and self.places > 0
        if wanted:
            self._start_workers(
                lambda: min(1, self.server.outage.room(self, self.clock(), self.connectors))
            )

    def wake(self, tickets: list[Ticket]) -> None:
        """Wake the callers that were granted an entry (or failed)."""
        for ticket in tickets:
            self.runtime.wake(ticket.signal)

    @property
    def connectors(self) -> int:
        """Number of workers that open connections, or are about to begin, without stuck ones."""
        return self.at_work - self.stuck + len(self.ordered)

    def _missing_workers(self) -> int:
        outage = self.server.outage
        somebody_else = outage.active and outage.prober not in (None, self)
        somebody_else = somebody_else and not outage.checks(self)
        room = 0 if somebody_else else self.room(self.connectors)
        return min(self.wants, room) if room else 0

    def room(self, workers: int) -> int:
        """How many more workers there may be beside this many *workers*."""
        rest_until = self.server.budget.rest_until
        if self.stuck >= STUCK or (rest_until and self.clock() < rest_until):
            return 0
        room = self.server.outage.room(self, self.clock(), workers)
        return min(room, 1 - workers) if self.refusals.active else room

    def _start_workers(self, missing: Callable[[], int]) -> None:
        """Start *missing()* workers.

        If an exception strikes here, no worker that did not begin stays counted.
        """
        starts: list[Start] = []
        try:
            with self.lock:
                starts = [Start() for _ in range(missing())]
                self.ordered.update(starts)
            for start in starts:
                self.runtime.spawn(self._work(start), "connector")
        except BaseException as exc:
            with self.lock:
                for start in starts:
                    start.is_called_off = start in self.ordered
                self.ordered.difference_update(starts)
            if not isinstance(exc, RuntimeError):
                raise
            self._has_no_thread(exc if isinstance(exc, NoThreadError) else no_thread(exc))
        else:
            if starts:
                self.no_thread = None

    def _has_no_thread(self, why: NoThreadError) -> None:
        """No worker could be started: callers connect by themselves, until one can."""
        known, self.no_thread = self.no_thread, why
        if known is None and not why.is_ending:
            log.warning(
                "no worker",
                NO_THREAD(
                    f"{self.name}: the pool cannot start a thread to connect ({why}); until it can,"
                    " callers connect on their own threads"
                ),
                pool=self.name,
            )

    def connect_here(self, until: float) -> Flow[None]:
        """Make one attempt to connect on the caller's own thread, if no worker can be started and
        one is wanted. It ends by *until*.
        """
        with self.lock:
            if self._missing_workers() <= 0:
                return
            self.at_work += 1
        with outside():
            yield from self.connector(self, until)

    def stop_connecting_here(self) -> None:
        """A caller that connects by itself leaves: another one, or another pool, may have to become
        the prober.
        """
        with self.lock, self.server.lock:
            resigned = self.connectors == 0 and self.server.outage.resign(self)
            pools = every(self.server.pools) if resigned else []
        for pool in pools:
            pool.runtime.call(pool.ensure_connecting)

    def _work(self, start: Start) -> Flow[None]:
        with self.lock:
            if start.is_called_off:
                return
            self.ordered.discard(start)
            self.at_work += 1
        yield from self.connector(self)
