"""Engines of SQLAlchemy's that have a pool of its own: no driver of ours reports what they send, so
their texts have to do.
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
    """From now on a write through *engine* makes the fate of its request unknown, and stops a
    replay.

    Nothing is done for what is no engine of SQLAlchemy's, blocking or asyncio's, or has a pool of
    ours.
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
    """*sql* goes out on a connection of *whose*, which no driver of ours follows."""
    unit = current() if current_token() is not None else None
    if unit is not None and kind(sql) is not Kind.READ:
        unit.doubt(f"a write went out on a connection of {whose}")


def _on_statement(_conn: Any, _cursor: Any, sql: str, *_more: Any) -> None:
    statement(sql, "an engine without the plugin")


def _on_checkout(*_given: Any) -> None:
    unit = current() if current_token() is not None else None
    if unit is not None and _is_raw(sys._getframe(1)):
        unit.doubt("a raw connection of an engine without the plugin was used")


def _is_raw(frame: FrameType | None) -> bool:
    """Whether the application called ``raw_connection``, and not a Connection whose statements are
    seen.
    """
    while frame is not None and frame.f_code.co_name != "raw_connection":
        frame = frame.f_back
    caller = None if frame is None else frame.f_back
    return caller is None or caller.f_code.co_qualname != "Connection.__init__"
