"""``@db.unit`` and ``@db.atomic()``: functions as units of work, with the connection handled and
lazy results read in full.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import peewee

from unbroken.errors import ConfigurationError
from unbroken.hints import shown
from unbroken.integrations.peewee.lazy import Lazy, whole
from unbroken.ledger.scope import current
from unbroken.messages.configuration import BAD_SETTING
from unbroken.messages.integrations import PEEWEE_UNIT
from unbroken.pool.callables import done, is_coroutine_function, named, require_blocking
from unbroken.pool.running import run_unit

_ATOMIC = "@atomic()"


def unit(
    database: Any,
    function: Any = None,
    /,
    *,
    lazy: Lazy = "read",
    atomic: bool = False,
    deadline: float | None = None,
    max_replays: int | None = None,
) -> Any:
    """Make *function* a unit of work on *database* (or a proxy of one): ``@db.unit`` or
    ``@db.unit(lazy="refuse")``.

    A call connects, runs, returns the connection, and lets every error through. If the connection
    was lost (or the server asked to try again) and it is provable that nothing was committed, the
    call is run again from the start. A lazy result that it returns (a query, an unread cursor, a
    generator; also inside lists, tuples, sets and dicts) is read to the end first; with
    ``lazy="refuse"`` it raises a LazyQueryError. *atomic*: all of it runs in one transaction.
    *deadline*: seconds for all attempts together; *max_replays*: None, the database's setting.
    Inside another unit the outermost one replays.

    On an asyncio database *function* is an ``async def``, and so is the result. Raises
    ConfigurationError if they do not match.
    """
    if function is None:
        return functools.partial(
            unit, database, lazy=lazy, atomic=atomic, deadline=deadline, max_replays=max_replays
        )
    if lazy not in ("read", "refuse"):
        raise ConfigurationError(BAD_SETTING(f"lazy={shown(lazy)} must be 'read' or 'refuse'"))
    if not isinstance(database, peewee.Proxy):
        resolved(database, function)
    if is_coroutine_function(function):
        from unbroken.integrations.peewee.aunit import awaited

        return awaited(database, function, lazy, atomic, deadline, max_replays)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        db = resolved(database, function)
        settings = db.pool.settings
        limit = settings.deadline if deadline is None else deadline

        def work() -> Any:
            with _Scope(db):
                if not atomic:
                    return whole(function(*args, **kwargs), db, function, lazy)
                with peewee._atomic(db):
                    return whole(function(*args, **kwargs), db, function, lazy)

        return run_unit(
            work,
            limit,
            settings.max_replays if max_replays is None else max_replays,
            db._count_replay,
            function,
        )

    return call


def resolved(database: Any, function: Any) -> Any:
    """Return the database in *database* if *function* is of its kind: blocking or asyncio's."""
    db = database.obj if isinstance(database, peewee.Proxy) else database
    if db is None:
        raise peewee.InterfaceError(
            PEEWEE_UNIT(
                f"{named(function)} was called before its database proxy was initialized; call the"
                " proxy's initialize() first"
            )
        )
    if db.is_async and not is_coroutine_function(function):
        raise ConfigurationError(
            PEEWEE_UNIT(
                f"{named(function)} is not an async def, but {type(db).__name__} is for asyncio;"
                " make it an async def that awaits db.run(...)"
            )
        )
    if not db.is_async and (
        is_coroutine_function(function) or inspect.isasyncgenfunction(function)
    ):
        raise ConfigurationError(
            PEEWEE_UNIT(
                f"{named(function)} is async, but {type(db).__name__} is blocking; use"
                " unbroken.peewee's AsyncMySQLDatabase or AsyncPostgresqlDatabase"
            )
        )
    return db


class _Scope:
    """A scope that is connected inside, and afterwards as it was before. Transactions left open are
    rolled back.
    """

    __slots__ = ("before", "db", "opened", "timer")

    def __init__(self, db: Any) -> None:
        self.db = db

    def __enter__(self) -> None:
        slot, work = self.db._state, current()
        self.opened, self.before, self.timer = not slot.is_bound, slot.until, None
        if work is not None:
            slot.until = min(slot.until, work.until)  # connections acquired from here on end then
        try:
            if self.opened:
                self.db.connect()
            elif slot.loan is not None:
                self.timer = slot.loan.timer(slot.until)
        except BaseException:
            slot.until = self.before
            raise

    def __exit__(self, *_exc: object) -> None:
        slot = self.db._state
        slot.until = self.before
        if self.timer is not None:
            self.timer.cancel()
        if self.opened:
            slot.transactions.clear()  # left open by the function: the pool rolls it back
            self.db.close()


class Atomic(peewee._atomic):  # type: ignore[misc] # peewee ships no types that we could use
    """peewee's ``atomic``.

    Decorating a function with the outermost one makes the function a unit of work.
    """

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function* wrapped in this transaction.

        Raises ConfigurationError for an ``async def``, and for a generator, whose work would be
        done after the transaction.
        """
        require_blocking(function, _ATOMIC)

        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            db = self.db

            arguments, options = self._transaction_args

            def work() -> Any:
                with type(self)(db, *arguments, **options):  # each call has its own
                    return done(function(*args, **kwargs), function, _ATOMIC)

            if db.transaction_depth():
                return work()
            return run_unit(work, None, db.pool.settings.max_replays, db._count_replay, function)

        return inner


class DatabaseProxy(peewee.DatabaseProxy):  # type: ignore[misc]
    """peewee's, with ``@proxy.unit`` before it is initialized, and ``@proxy.atomic()`` as a unit of
    work.
    """

    def unit(self, function: Any = None, /, **options: Any) -> Any:
        """``@proxy.unit``; :func:`unit` describes it."""
        return unit(self, function, **options)

    def atomic(self, *args: Any, **kwargs: Any) -> Any:
        """Do the same as the database."""
        return Atomic(self, *args, **kwargs)
