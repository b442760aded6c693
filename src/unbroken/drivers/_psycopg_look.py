"""Access to the libpq connection that a psycopg connection wraps."""

from __future__ import annotations

import sys
from functools import cache
from types import CodeType, FrameType
from typing import Any

from unbroken.drivers._psycopg_trips import is_owed, settle

#: How the names of the modules begin that send nothing by libpq which is not noted.
FRIENDS = frozenset({"psycopg", "psycopg.", "psycopg_", "unbroken", "peewee"})


@cache
def _harmless() -> frozenset[CodeType]:
    """psycopg's functions that may look at libpq while an answer is due."""
    import psycopg
    from psycopg._connection_base import BaseConnection
    from psycopg.transaction import BaseTransaction

    functions: list[Any] = [
        BaseConnection._check_connection_ok, BaseConnection.__del__, BaseConnection.fileno,
        vars(BaseConnection)["closed"].fget, vars(BaseConnection)["broken"].fget,
        psycopg.Connection.wait, psycopg.AsyncConnection.wait,
        psycopg.Connection.close, psycopg.AsyncConnection.close,
        BaseTransaction.__init__,  # it keeps it for later
    ]  # fmt: skip
    return frozenset(each.__code__ for each in functions)


def get_ready() -> None:
    """Look up what :func:`look` needs. At the end of the interpreter nothing can be imported."""
    _harmless()
    _making()


def is_friend(frame: FrameType) -> bool:
    """Whether that is psycopg's own code, or ours."""
    return frame.f_globals.get("__name__", "")[:8] in FRIENDS


def look(conn: Any) -> Any:
    """libpq's connection for the caller's caller. The application may send something by it, of
    which nobody knows. An answer that is due is read before, so that its status is the true one.
    """
    state = conn.__dict__
    frame = sys._getframe(2)
    if not is_friend(frame):
        if "_unbroken_texts" in state:
            state["_unbroken_texts"].append(None)
            state["_unbroken_level"] = None
            state["_unbroken_shown"] = True  # and it may be kept
        if is_owed(state):
            settle(conn)
    elif is_owed(state) and not _is_harmless(frame):
        settle(conn)
    return state["pgconn"]


def _is_harmless(frame: FrameType) -> bool:
    code, up = frame.f_code, frame.f_back
    if code in _harmless():
        return True
    new, made = _making()
    if code is not new:
        return False
    for _ in range(3):  # those that psycopg's cursor() makes become ours
        if up is None or up.f_code in made:
            return up is not None
        up = up.f_back
    return False


@cache
def _making() -> tuple[Any, Any]:
    import psycopg
    from psycopg._cursor_base import BaseCursor

    made = (psycopg.Connection.cursor.__code__, psycopg.AsyncConnection.cursor.__code__)
    return BaseCursor.__init__.__code__, made
