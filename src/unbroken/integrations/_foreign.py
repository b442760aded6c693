"""SQLAlchemy engines that have a pool other than ours. No driver of ours reports their statements,
so only their texts are followed.
"""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import Any

from unbroken.ledger.scope import current, current_token
from unbroken.ledger.statements import Kind, kind

_followed: weakref.WeakSet[Any] = weakref.WeakSet()


def follow(engine: Any) -> None:
    """From now on, a write through *engine* makes the result of its request unknown, and stops a
    replay.

    This does nothing for an object that is no engine of SQLAlchemy's, blocking or asyncio's, or
    that has a pool of ours.
    """
    sqlalchemy = sys.modules.get("sqlalchemy")
    if sqlalchemy is None:
        return
    blocking = (
        engine if isinstance(engine, sqlalchemy.Engine) else getattr(engine, "sync_engine", None)
    )
    if not isinstance(blocking, sqlalchemy.Engine) or blocking in _followed:
        return
    if type(blocking.pool).__module__.startswith("unbroken."):
        return
    _followed.add(blocking)
    sqlalchemy.event.listen(blocking, "before_cursor_execute", _on_statement)
    sqlalchemy.event.listen(blocking, "checkout", _on_checkout)


def statement(sql: Any, whose: str) -> None:
    """Report *sql*, which is sent on a connection of *whose*. No driver of ours follows it."""
    unit = current() if current_token() is not None else None
    if unit is not None and kind(sql) is not Kind.READ:
        unit.doubt(f"a write was sent on a connection of {whose}")


def _on_statement(_conn: Any, _cursor: Any, sql: str, *_more: Any) -> None:
    statement(sql, "an engine without the plugin")


def _on_checkout(*_given: Any) -> None:
    unit = current() if current_token() is not None else None
    if unit is not None and _is_raw(sys._getframe(1)):
        unit.doubt("the application used a raw connection of an engine without the plugin")


def _is_raw(frame: FrameType | None) -> bool:
    """Return whether the application called ``raw_connection``, and not a Connection whose
    statements are seen.
    """
    while frame is not None and frame.f_code.co_name != "raw_connection":
        frame = frame.f_back
    caller = None if frame is None else frame.f_back
    return caller is None or caller.f_code.co_qualname != "Connection.__init__"
