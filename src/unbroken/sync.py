"""The pool for threads, and for gevent's greenlets: ``Pool``.

The hot path stands here twice, in ``acquire`` and in ``Lease.__enter__``: a call costs more than
the lines. What it may do without a lock, and in which order, is said in ``brain/kernel.py``.
Everything slow is a flow.
"""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from threading import get_ident
from time import monotonic
from typing import Any, Concatenate, Generic, ParamSpec, overload

from unbroken.abc import Cause, Connection, ConnectionT, Observer, Target
from unbroken.adoption import adopt_for
from unbroken.brain.entry import Entry
from unbroken.brain.stats import Stats
from unbroken.drivers import open_driver
from unbroken.ledger.scope import current, current_token
from unbroken.net.fork_guard import fork_mark
from unbroken.pool.acquire import acquire, ping
from unbroken.pool.answers import take_at_once
from unbroken.pool.arguments import bounded, not_picklable, take_settings
from unbroken.pool.callables import done, require_blocking
from unbroken.pool.closing import TIMEOUT, close
from unbroken.pool.connect import connector
from unbroken.pool.lease import BoundedLease, Lease, caller, getframe
from unbroken.pool.loan import Loan
from unbroken.pool.news import began_anew
from unbroken.pool.observers import tell
from unbroken.pool.running import T, run_unit
from unbroken.pool.secrets import take_secrets
from unbroken.pool.state import PoolState
from unbroken.pool.steps import run
from unbroken.pool.threads import ThreadRuntime
from unbroken.pool.upkeep import schedule
from unbroken.settings import Settings

P = ParamSpec("P")

_RUN = "Pool.run()"

_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()


class Pool(Generic[ConnectionT]):
    """A pool of connections for threads or greenlets, to one database.

    *url* is spelled as SQLAlchemy spells it (``mysql+pymysql://app:secret@db/shop?max_size=5``);
    its query may hold the driver's options and the pool's settings. Or give *connect*, a callable
    that opens one connection, and *driver*, the name of its library. *settings* are those of
    :class:`unbroken.Settings`. *observers* are called with every event.

    *password* and *user* replace the URL's. A callable is asked at each attempt to connect, on a
    thread of the pool's own and within ``connect_timeout``. It returns a text that is not empty.

    Making a pool connects to nothing. A forked child that uses the pool starts with no connections
    of its own and never touches its parent's.

    Raises ConfigurationError (DriverNotInstalledError) for a URL or settings that cannot work.
    """

    def __init__(
        self,
        url: str | Target | None = None,
        *,
        connect: Callable[[], ConnectionT] | None = None,
        driver: str | None = None,
        password: str | Callable[[], str] | None = None,
        user: str | Callable[[], str] | None = None,
        observers: tuple[Observer, ...] = (),
        **settings: Any,
    ) -> None:
        target, given = take_settings(url, settings)
        target, self._secrets = take_secrets(target, password, user, is_async=False)
        self.settings = Settings.of(**given)
        self._driver = open_driver(target, connect=connect, driver=driver)
        self.settings = bounded(self._driver, self.settings)
        adopt_for(self.settings.units, self.settings.max_replays)
        self.name = self.settings.name or self._driver.target.label
        self._observers = observers
        self._states: dict[Any, PoolState] = {}
        self._state = self._new_state()
        self._states[self._state.pid] = self._state
        # None where a lease with nothing said is a plain Lease: one look tells (see connection).
        is_plain = (
            self.settings.deadline is None
            and self.settings.reset != "session"
            and self._driver.capabilities.implicit_begin
        )
        self._simple: object = None if is_plain else self
        _pools.add(self)
        if self.settings.min_size:
            self._state.ensure_connecting()
            schedule(self._state)

    def _new_state(self) -> PoolState:
        runtime = ThreadRuntime(self._driver)
        return PoolState(
            self._driver,
            self.settings,
            runtime,
            self.name,
            self._emit,
            fork_mark(),
            connector,
            self._secrets,
        )

    def _emit(self, event: str, fields: Mapping[str, Any]) -> None:
        tell(self._observers, event, fields)

    # -- lending -----------------------------------------------------------------------------------

    def connection(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        transaction: bool = True,
    ) -> Lease[ConnectionT]:
        """A context manager that lends the driver's own connection.

        It commits on success and rolls back on an exception; with ``transaction=False`` it does
        neither, and only resets what was left open. *timeout*: seconds for the acquire (None: the
        setting acquire_timeout). *deadline*: seconds for all of it; what still blocks then is ended
        and DeadlineExceeded raised (None: the setting).

        Raises PoolTimeoutError, OutageError, ConnectRejectedError or PoolClosedError on entry;
        CommitUnknownError when the answer to the COMMIT was lost; what the work raised.
        """
        if timeout is deadline is self._simple and transaction:
            lease: Lease[ConnectionT] = Lease()
            lease._pool = self
            return lease
        return BoundedLease(
            self, timeout, self.settings.deadline if deadline is None else deadline, transaction
        )

    def acquire(self, timeout: float | None = None) -> ConnectionT:
        """Lend a connection; it must be given back with :meth:`release`.

        Raises as :meth:`connection` does on entry.
        """
        conn: Connection = None
        state = self._state
        entry: Entry | None = None
        try:
            if not state.waiting and state.here[0]:
                try:
                    entry = state.idle.pop()
                except IndexError:
                    pass
                else:
                    now = monotonic()
                    if (
                        now - entry.last_used < state.fresh_for
                        and not state.hung_up()
                        and (entry.due is None or take_at_once(state, entry, now))
                    ):
                        try:
                            frame = getframe(1)
                        except ValueError:  # see caller
                            frame = getframe()
                        entry.code = frame.f_code
                        entry.lasti = ~frame.f_lasti
                        entry.holder = get_ident()
                        entry.taken_at = now
                        entry.uses += 1
                        conn = entry.conn
                        state.in_use[entry.key] = entry
                        entry.conn = entry.anchor
                        if current_token() is not None or state.follows:
                            Loan.of(state, entry, conn).enlist()
                        return conn
            return self._acquire_loan(entry, timeout, caller()).conn
        except BaseException:
            if entry is not None and conn is not None and state.in_use.get(entry.key) is entry:
                Loan.of(state, entry, conn).give_back()
            raise

    def _acquire_loan(self, suspect: Entry | None, timeout: float | None, frame: Any) -> Loan:
        """The slow way to a connection that :meth:`release` gives back."""
        loan = Loan()
        try:
            self._acquire_slowly(loan, suspect, monotonic(), timeout, None, frame)
            if current_token() is not None or loan.state.follows:
                loan.enlist()
        except BaseException:
            if getattr(loan, "conn", None) is not None:
                loan.give_back()
            raise
        return loan

    def release(self, conn: ConnectionT) -> None:
        """Give *conn* back. What is open on it is rolled back (setting ``reset``).

        Raises NotYoursError for a connection that this pool did not lend, or that was given back
        before.
        """
        try:
            state = self._state
            entry = state.in_use.pop(id(conn), None)
            if (
                entry is None
                or entry.cause is not None
                or not state.here[0]
                or entry.watched
                or not state.is_clean(conn, entry.traits)
            ):
                self._release_slowly(state, entry, conn)
                return
            entry.last_used = state.now
            entry.conn = conn
            state.idle.append(entry)
            if state.waiting or entry.generation != state.kernel.generation:
                state.dispatch()
        except BaseException:
            self._release_after_all(conn)
            raise

    def _release_after_all(self, conn: Connection) -> None:
        """An exception struck a release.

        Its caller has done what callers do: the place is not his any more.
        """
        loan = self.loan_of(conn)
        if loan is not None:
            loan.give_back(Cause.CANCELLED)

    def _acquire_slowly(
        self,
        loan: Loan,
        suspect: Entry | None,
        started: float,
        timeout: float | None,
        deadline: float | None,
        frame: Any,
    ) -> None:
        """Take a connection the slow way, into *loan*."""
        state = self._state
        if not state.here[0]:
            state, suspect = self._renew(), None
        patience = state.settings.acquire_timeout if timeout is None else timeout
        if deadline is not None:
            patience = min(patience, deadline)
        unit = current()
        until = started + patience if unit is None else min(started + patience, unit.until)
        entry = run(acquire(state, suspect, started, until), state.runtime.do)  # type: ignore[attr-defined] # a ThreadRuntime
        # A deadline counts from the call, a leak from the lending.
        state.lend(loan, entry, frame, monotonic() if deadline is None else started, get_ident())

    def _release_slowly(self, state: PoolState, entry: Entry | None, conn: Connection) -> None:
        if not state.here[0]:
            state.left_in_child(None)
        elif entry is None:
            self._release_unknown(state, conn)
        else:
            state.kernel.resets(entry)
            loan = Loan.of(state, entry, conn)
            try:
                run(loan.reset(at_end=True), loan.state.runtime.do)
            finally:
                loan.ended_unseen()
                loan.give_back()

    def _release_unknown(self, state: PoolState, conn: Connection) -> None:
        if state.kernel.came_back(id(conn)) is None:
            raise state.not_lent_error()
        self._driver.close(conn)

    def loan_of(self, conn: ConnectionT) -> Loan | None:
        """The :class:`Loan` of a connection that this pool has lent in this process; None for any
        other.
        """
        state = self._state
        entry = state.in_use.get(id(conn)) if state.here[0] else None
        return None if entry is None else Loan.of(state, entry, conn)

    # -- units of work -----------------------------------------------------------------------------

    @overload
    def run(self, fn: Callable[..., T], *args: Any, deadline: float | None, **kwargs: Any) -> T: ...
    @overload
    def run(
        self, fn: Callable[Concatenate[ConnectionT, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    def run(  # type: ignore[misc] # a function with a keyword deadline of its own never gets it
        self, fn: Callable[..., T], *args: Any, deadline: float | None = None, **kwargs: Any
    ) -> T:
        """``fn(conn, *args, **kwargs)`` as one unit of work: committed on success, and run again
        from the start when the connection was lost (or the server asked for it) and it is provable
        that nothing was committed.

        *fn* should do nothing outside the database that must not happen twice. *deadline* (seconds)
        bounds all of it (None: the setting); ``deadline=math.inf`` sets no bound. Inside another
        unit of work the outermost one replays. Raises as :meth:`connection` does, and
        ConfigurationError, before anything runs, for an ``async def`` and for a generator; a
        function that returns a coroutine or a generator is rolled back and refused then.
        """
        require_blocking(fn, _RUN)
        here = caller()
        code, lasti = here.f_code, here.f_lasti

        def work() -> T:
            lease: Lease[ConnectionT] = Lease()
            lease._pool = self
            with lease as conn:
                entry = lease.entry
                entry.taken_at_call(code, lasti)  # who called run is the place that took it
                entry.run_in = entry.uses
                result: T = done(fn(conn, *args, **kwargs), fn, _RUN)
                return result

        def count(_why: str) -> None:
            with self._state.lock:
                self._state.counters.replays += 1

        limit = self.settings.deadline if deadline is None else deadline
        return run_unit(work, limit, self.settings.max_replays, count, fn)

    # -- looking after it --------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The pool's numbers in this process at this moment, frozen."""
        return self._current().stats()

    def check(self, timeout: float | None = None) -> Stats:
        """Ping every idle connection now, replace the dead, and make sure that the server answers.

        *timeout*: seconds (None: acquire_timeout). Raises what an acquire raises when it does not
        answer. For readiness checks and after a machine's sleep.
        """
        state = self._current()
        do = state.runtime.do  # type: ignore[attr-defined] # a ThreadRuntime
        state.sweep()
        for entry in state.kernel.all_idle():
            with state.lock:
                mine = state.kernel.claim(entry)
            if mine and run(ping(state, entry, state.settings.ping_timeout), do):
                state.put(entry, entry.conn)
        self.release(self.acquire(timeout))
        return self.stats()

    def drain(self) -> None:
        """Replace every connection: idle ones are closed now, lent ones when they come back.

        For a planned failover.
        """
        self._current().drain()

    def resize(self, max_size: int | None = None, min_size: int | None = None) -> None:
        """Change the bounds while in use. Raises ConfigurationError for impossible ones."""
        bounds = {"max_size": max_size, "min_size": min_size}
        self.settings = self.settings.changed(**{k: v for k, v in bounds.items() if v is not None})
        self._current().resize(self.settings)

    def close(self, timeout: float = TIMEOUT) -> None:
        """Close the idle connections, and wait up to *timeout* seconds (default 5.0) until those in
        use are returned. Which lines have them is logged at once, as a warning.

        A connection that is returned later is closed then. An acquire, also one that waits already,
        raises PoolClosedError. Calling it more than once is harmless.
        """
        state = self._current()
        run(close(state, timeout), state.runtime.do)  # type: ignore[attr-defined] # a ThreadRuntime

    def __copy__(self) -> Pool[ConnectionT]:
        """A pool is one thing with an identity: a copy is the pool itself."""
        return self

    def __deepcopy__(self, _memo: Any) -> Pool[ConnectionT]:
        """As :meth:`__copy__`: settings that hold a pool may be copied."""
        return self

    def __reduce__(self) -> Any:
        raise not_picklable("an unbroken.Pool")

    def __enter__(self) -> Pool[ConnectionT]:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        state = self.__dict__.get("_state")
        if (
            state is not None
            and state.here[0]
            and not state.kernel.closed
            and not sys.is_finalizing()
        ):
            state.close()

    def __repr__(self) -> str:
        k = self._state.kernel
        counts = f"{len(k.in_use)} used, {len(k.idle)} idle, {len(k.waiting)} waiting"
        return f"<unbroken.Pool {self.name}: {counts}, max_size {k.max_size}>"

    # -- fork --------------------------------------------------------------------------------------

    def _current(self) -> PoolState:
        return self._state if self._state.here[0] else self._renew()

    def _renew(self) -> PoolState:
        """In a forked child: sever what was inherited and start anew.

        Old locks are never touched.
        """
        old = self._state
        if old.here[0]:
            return old  # another thread of this child was first
        old.sever()
        fresh = self._new_state()
        known = self._states.setdefault(fresh.pid, fresh)
        if not known.here[0]:  # a grandparent's, whose process id this one has got
            known = self._states[fresh.pid] = fresh
        self._state = fresh = known
        began_anew(old)
        if not old.kernel.closed:
            return fresh
        fresh.kernel.close()
        return fresh


def _sever_all() -> None:
    """After a fork that Python sees, and at the end of a child whose fork it did not see: sever
    what was inherited.

    Not even an exit without a single use may say goodbye on the parent's sessions.
    """
    for pool in list(_pools):
        if not pool._state.here[0]:
            pool._state.sever()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever_all)
atexit.register(_sever_all)
