"""The pool for threads, and for gevent's greenlets: ``Pool``.

The hot path is written twice, in ``acquire`` and in ``Lease.__enter__``, because a call costs more
than the lines. ``brain/kernel.py`` describes which of its steps need no lock, and their order. All
slow paths are flows.
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

    *url* is spelled as in SQLAlchemy (``mysql+pymysql://app:secret@db/shop?max_size=5``). Its query
    can hold the driver's options and the pool's settings. Alternatively pass *connect*, a callable
    that opens one connection, and *driver*, the name of its library. *settings* are those of
    :class:`unbroken.Settings`. *observers* are called with every event.

    *password* and *user* override the URL's. A callable is called at each connection attempt, on a
    thread of the pool and within ``connect_timeout``. It returns a string that is not empty.

    Creating a pool opens no connection. A forked child that uses the pool starts with no
    connections and never touches its parent's.

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
        # None if a lease without options is a plain Lease: one check tells (see connection).
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

    # -- handing out -------------------------------------------------------------------------------

    def connection(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        transaction: bool = True,
    ) -> Lease[ConnectionT]:
        """A context manager that checks out the driver's own connection.

        It commits on success and rolls back on an exception. With ``transaction=False`` it does
        neither, and only resets open work. *timeout*: seconds for the acquire (None: the setting
        acquire_timeout). *deadline*: seconds for the whole block; a call that still blocks then is
        ended and raises DeadlineExceeded (None: the setting).

        Raises PoolTimeoutError, OutageError, ConnectRejectedError or PoolClosedError on entry,
        CommitUnknownError if the answer to the COMMIT was lost, and any exception of the block.
        """
        if timeout is deadline is self._simple and transaction:
            lease: Lease[ConnectionT] = Lease()
            lease._pool = self
            return lease
        return BoundedLease(
            self, timeout, self.settings.deadline if deadline is None else deadline, transaction
        )

    def acquire(self, timeout: float | None = None) -> ConnectionT:
        """Check out a connection. Return it with :meth:`release`.

        Raises the same exceptions as :meth:`connection` on entry.
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
        """The slow path to a connection that :meth:`release` returns."""
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
        """Return *conn* to the pool, which rolls back open work (setting ``reset``).

        Raises NotYoursError for a connection that this pool did not hand out, or that was already
        returned.
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
        """An exception interrupted a release.

        Its caller has done its part, so the place is no longer the caller's.
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
        """Take a connection on the slow path, into *loan*."""
        state = self._state
        if not state.here[0]:
            state, suspect = self._renew(), None
        patience = state.settings.acquire_timeout if timeout is None else timeout
        if deadline is not None:
            patience = min(patience, deadline)
        unit = current()
        until = started + patience if unit is None else min(started + patience, unit.until)
        entry = run(acquire(state, suspect, started, until), state.runtime.do)  # type: ignore[attr-defined] # a ThreadRuntime
        # A deadline counts from the call, a leak from the moment of handing out.
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
        """The :class:`Loan` of a connection that this pool has handed out in this process; else
        None.
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
        """Run ``fn(conn, *args, **kwargs)`` as one unit of work and return its result.

        The pool commits on success. It runs *fn* again from the start if the connection was lost
        (or the server asked for it), and if it is provable that nothing was committed. Effects of
        *fn* outside the database then happen again. *deadline* (seconds) bounds all attempts
        together (None: the setting; ``math.inf``: no bound). Inside another unit of work the
        outermost unit is replayed.

        Raises the same exceptions as :meth:`connection`, and ConfigurationError, before anything
        runs, for an ``async def`` and for a generator. If a function returns a coroutine or a
        generator, the pool rolls back and raises ConfigurationError.
        """
        require_blocking(fn, _RUN)
        here = caller()
        code, lasti = here.f_code, here.f_lasti

        def work() -> T:
            lease: Lease[ConnectionT] = Lease()
            lease._pool = self
            with lease as conn:
                entry = lease.entry
                entry.taken_at_call(code, lasti)  # the caller of run took it
                entry.run_in = entry.uses
                result: T = done(fn(conn, *args, **kwargs), fn, _RUN)
                return result

        def count(_why: str) -> None:
            with self._state.lock:
                self._state.counters.replays += 1

        limit = self.settings.deadline if deadline is None else deadline
        return run_unit(work, limit, self.settings.max_replays, count, fn)

    # -- maintenance -------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Return the pool's numbers in this process at this moment, as a frozen object."""
        return self._current().stats()

    def check(self, timeout: float | None = None) -> Stats:
        """Ping every idle connection now, replace dead ones, and verify that the server answers.

        Use it for readiness checks and after a suspended machine resumes. *timeout*: seconds (None:
        acquire_timeout). If the server does not answer, raises the same exceptions as an acquire.
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
        """Replace every connection: idle ones are closed now, those in use when they are returned.

        Use it before a planned failover.
        """
        self._current().drain()

    def resize(self, max_size: int | None = None, min_size: int | None = None) -> None:
        """Change the limits of a pool in use. Raises ConfigurationError for impossible values."""
        bounds = {"max_size": max_size, "min_size": min_size}
        self.settings = self.settings.changed(**{k: v for k, v in bounds.items() if v is not None})
        self._current().resize(self.settings)

    def close(self, timeout: float = TIMEOUT) -> None:
        """Close the idle connections, and wait up to *timeout* seconds (default 5.0) until those in
        use are returned. The lines that hold them are logged immediately, as a warning.

        A connection that is returned later is closed then. Any acquire, including one that already
        waits, raises PoolClosedError. Calling it more than once is harmless.
        """
        state = self._current()
        run(close(state, timeout), state.runtime.do)  # type: ignore[attr-defined] # a ThreadRuntime

    def __copy__(self) -> Pool[ConnectionT]:
        """Return the pool itself, because a pool has an identity."""
        return self

    def __deepcopy__(self, _memo: Any) -> Pool[ConnectionT]:
        """Return the pool itself, so that settings that hold a pool can be copied."""
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
        """In a forked child: disconnect the inherited sockets and start afresh.

        The parent's locks are never touched.
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
    """Disconnect the inherited sockets, after a fork that Python sees, and at the end of a child
    whose fork it did not see.

    Even an exit without any use must not send a goodbye packet on the parent's sessions.
    """
    for pool in list(_pools):
        if not pool._state.here[0]:
            pool._state.sever()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sever_all)
atexit.register(_sever_all)
