"""The lazy parts of a function's result, read to the end while there is a connection."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal

import peewee

from unbroken.integrations.peewee.errors import LazyQueryError
from unbroken.integrations.peewee.result import Result
from unbroken.integrations.peewee.slot import place
from unbroken.messages.integrations import LAZY_QUERY

Lazy = Literal["read", "refuse"]


def whole(value: Any, db: Any, function: Any, lazy: Lazy, depth: int = 3) -> Any:
    """Return *value* with all its lazy parts read to the end (the query itself keeps its rows).
    Raises LazyQueryError if that is impossible.
    """
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
        opened = getattr(db._state, "opened", None)
        where = "" if opened is None else f" to its caller at {place(opened)}"
        code = inspect.unwrap(function).__code__
        raise LazyQueryError(
            LAZY_QUERY(
                f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno}) returned"
                f" {unread}{where}, but its connection is released before the caller can read it;"
                " return a list, or let @db.unit read it (lazy='read')"
            )
        )
    return _read(value)


def _unread(value: Any) -> str | None:
    """Describe a lazy *value* in words; None if nothing is left to read."""
    if isinstance(value, peewee.SelectQuery | peewee.RawQuery):
        read = value._cursor_wrapper is not None and value._cursor_wrapper.populated
        return None if read or not value._database else f"an unread query ({value.sql()[0][:300]})"
    if isinstance(value, peewee.CursorWrapper):
        return None if value.populated else "an unread result"
    if type(value) is Result:
        return None if value.raw_cursor is None else "an unread cursor"
    if isinstance(value, peewee.ResultIterator):
        return None if value.cursor_wrapper.populated else "an unread result"
    if inspect.isgenerator(value):
        return "a generator"
    return "an async generator" if inspect.isasyncgen(value) else None


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
