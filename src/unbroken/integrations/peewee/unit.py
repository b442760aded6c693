"""``@db.unit`` and ``@db.atomic()``: functions as units of work, with the connection handled and lazy results made whole."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import peewee

from unbroken.core.unit import current
from unbroken.errors import ConfigurationError
from unbroken.integrations.peewee.errors import LazyQueryError
from unbroken.integrations.peewee.result import Result
from unbroken.integrations.peewee.slot import place
from unbroken.sync import run_unit

Lazy = Literal["read", "refuse"]


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
    """Make *function* a unit of work on *database* (or a proxy of one): ``@db.unit`` or ``@db.unit(lazy="refuse")``.

    A call connects, runs, gives the connection back, and lets every error through. When the connection was lost (or the server
    asked to try again) and it is provable that nothing was committed, the call is run again from the start. A lazy result that it
    returns (a query, an unread cursor, a generator; also inside lists, tuples, sets and dicts) is read to the end first; with
    ``lazy="refuse"`` it is a LazyQueryError. *atomic*: all of it in one transaction. *deadline*: seconds for all attempts
    together; *max_replays*: None, the database's setting. Inside another unit the outermost one replays.
    """
    if function is None:
        return functools.partial(unit, database, lazy=lazy, atomic=atomic, deadline=deadline, max_replays=max_replays)
    if lazy not in ("read", "refuse"):
        raise ConfigurationError(f"lazy={lazy!r} must be 'read' or 'refuse'")
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{function.__qualname__} is async: @db.unit is for blocking functions; use @unbroken.replayable")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        db = database.obj if isinstance(database, peewee.Proxy) else database

        settings = db.pool.settings
        limit = settings.deadline if deadline is None else deadline

        def work() -> Any:
            with _Scope(db):
                if not atomic:
                    return whole(function(*args, **kwargs), db, function, lazy)
                with peewee._atomic(db):
                    return whole(function(*args, **kwargs), db, function, lazy)

        return run_unit(work, limit, settings.max_replays if max_replays is None else max_replays, db._count_replay)

    return call


class _Scope:
    """Connected inside; afterwards as it was before. Whatever is left open is rolled back."""

    __slots__ = ("before", "db", "opened", "timer")

    def __init__(self, db: Any) -> None:
        self.db = db

    def __enter__(self) -> None:
        slot, work = self.db._state, current()
        self.opened, self.before, self.timer = not slot.is_bound, slot.until, None
        if work is not None:
            slot.until = min(slot.until, work.until)  # what is taken from here on is ended then
        try:
            if self.opened:
                self.db.connect()
            elif slot.until != math.inf and slot.entry is not None:
                self.timer = slot.home.arm(slot.entry, slot.until)
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


def whole(value: Any, db: Any, function: Any, lazy: Lazy, depth: int = 3) -> Any:
    """*value* with all that is lazy in it read to the end (the query itself keeps its rows), or a LazyQueryError."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        if depth:
            for each in list(value.values() if isinstance(value, dict) else value):
                if not inspect.isgenerator(each):
                    whole(each, db, function, lazy, depth - 1)
        return value
    unread = _unread(value)
    if unread is None:
        return value
    if lazy == "refuse":
        where = "" if db._state.opened is None else f", called at {place(db._state.opened)}"
        code = inspect.unwrap(function).__code__
        raise LazyQueryError(
            f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) returned {unread} unread{where}: its connection is given "
            f"back first; return a list, or let @db.unit read it (lazy='read')"
        )
    return _read(value)


def _unread(value: Any) -> str | None:
    """What a lazy *value* is, in words; None where nothing is left to be read."""
    if isinstance(value, peewee.SelectQuery | peewee.RawQuery):
        read = value._cursor_wrapper is not None and value._cursor_wrapper.populated
        return None if read or not value._database else f"the query {value.sql()[0][:300]}"
    if isinstance(value, peewee.CursorWrapper):
        return None if value.populated else "a result"
    if type(value) is Result:
        return None if value.raw_cursor is None else "a cursor"
    if isinstance(value, peewee.ResultIterator):
        return None if value.cursor_wrapper.populated else "a result"
    return "a generator" if inspect.isgenerator(value) else None


def _read(value: Any) -> Any:
    if isinstance(value, peewee.SelectQuery | peewee.RawQuery):
        value._ensure_execution()
        value._cursor_wrapper.fill_cache()
    elif isinstance(value, peewee.CursorWrapper):
        value.fill_cache()
    elif isinstance(value, peewee.ResultIterator):
        value.cursor_wrapper.fill_cache()
    elif type(value) is Result:
        value.let_go(rows=True)
    else:
        rows: Iterator[Any] = iter(list(value))
        return rows
    return value


class Atomic(peewee._atomic):  # type: ignore[misc] # peewee ships no types that we could use
    """peewee's ``atomic``. Decorating a function with the outermost one makes that a unit of work."""

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function* in this transaction."""

        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            db = self.db

            arguments, options = self._transaction_args

            def work() -> Any:
                with type(self)(db, *arguments, **options):  # each call has its own
                    return function(*args, **kwargs)

            if db.transaction_depth():
                return work()
            return run_unit(work, None, db.pool.settings.max_replays, db._count_replay)

        return inner


class DatabaseProxy(peewee.DatabaseProxy):  # type: ignore[misc]
    """peewee's, with ``@proxy.unit`` before it is initialized, and ``@proxy.atomic()`` as a unit of work."""

    def unit(self, function: Any = None, /, **options: Any) -> Any:
        """``@proxy.unit``: see :func:`unit`."""
        return unit(self, function, **options)

    def atomic(self, *args: Any, **kwargs: Any) -> Any:
        """As the database's."""
        return Atomic(self, *args, **kwargs)
