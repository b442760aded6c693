"""Access to the libpq connection that a psycopg connection wraps."""

from __future__ import annotations

import sys
from functools import cache
from types import CodeType, FrameType
from typing import Any

from unbroken.drivers._psycopg_trips import is_owed, settle

_OK, _IDLE, _IN_TRANSACTION = 0, 0, 2  # PQstatus; PQtransactionStatus

#: Beginnings of the names of modules that send nothing unnoted by libpq.
FRIENDS = frozenset({"psycopg", "psycopg.", "psycopg_", "unbroken", "peewee"})


#: psycopg's modules that only need the encoding of texts.
_WRITERS = frozenset({"psycopg.sql", "psycopg.adapt", "psycopg._encodings"})


@cache
def _harmless() -> frozenset[CodeType]:
    """Return psycopg's functions that may look at libpq while an answer is due."""
    import psycopg
    from psycopg._connection_base import BaseConnection
    from psycopg.transaction import BaseTransaction

    functions: list[Any] = [
        BaseConnection._check_connection_ok, BaseConnection.__del__, BaseConnection.fileno,
        vars(BaseConnection)["closed"].fget, vars(BaseConnection)["broken"].fget,
        psycopg.Connection.wait, psycopg.AsyncConnection.wait,
        psycopg.Connection.close, psycopg.AsyncConnection.close,
        BaseTransaction.__init__,  # it keeps it for later
        BaseConnection._notice_handler, BaseConnection._notify_handler,  # while an answer is read
        *(getattr(BaseConnection, each, None) for each in ("cancel", "_cancel_gen")),
    ]  # fmt: skip
    return frozenset(each.__code__ for each in functions if each is not None)


@cache
def showing() -> frozenset[CodeType]:
    """Return psycopg's functions that only show libpq's state: see :class:`Shown`."""
    from psycopg._connection_base import BaseConnection
    from psycopg._cursor_base import BaseCursor

    functions: list[Any] = [
        BaseConnection.__repr__, vars(BaseConnection)["info"].fget, BaseCursor.__repr__,
    ]  # fmt: skip
    return frozenset(each.__code__ for each in functions)


class Shown:
    """A view of libpq's connection as it will be once the answers that are due have come, and the
    wanted command was sent. It serves code that only shows the state, and need not wait for that.
    """

    __slots__ = ("_state",)

    def __init__(self, conn: Any) -> None:
        self._state = conn.__dict__

    @property
    def transaction_status(self) -> Any:
        """Return the status after the command whose answer is due: nothing is open. A BEGIN that is
        wanted counts.
        """
        state = self._state
        status = state["pgconn"].transaction_status
        is_wanted = state.get("_unbroken_wants") is not None
        if state["pgconn"].status != _OK or not (is_wanted or state.get("_unbroken_due")):
            return status
        return type(status)(_IN_TRANSACTION if is_wanted else _IDLE)

    @property
    def pipeline_status(self) -> Any:
        """Return the pipeline status as far as the application has set it."""
        status = self._state["pgconn"].pipeline_status
        return type(status)(0) if self._state.get("_unbroken_due") else status

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state["pgconn"], name)


def get_ready() -> None:
    """Import everything that :func:`look` needs. At the end of the interpreter nothing can be
    imported.
    """
    _harmless()
    showing()
    _making()


def is_friend(frame: FrameType) -> bool:
    """Return whether *frame* runs psycopg's own code, or ours."""
    return frame.f_globals.get("__name__", "")[:8] in FRIENDS


def look(conn: Any) -> Any:
    """Return libpq's connection for the caller's caller. The application may send something by it
    unnoticed. An answer that is due is read before, so that its status is the true one.
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
    elif frame.f_code in showing():
        return Shown(conn)
    elif is_owed(state) and not (_is_harmless(frame) or _keeps_texts(state, frame)):
        settle(conn)
    return state["pgconn"]


def _keeps_texts(state: dict[str, Any], frame: FrameType) -> bool:
    """Return whether the caller only needs the encoding, which the answer that is due does not
    change.
    """
    due = state.get("_unbroken_due")
    return frame.f_globals["__name__"] in _WRITERS and (due is None or due.in_pipeline)


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
