"""Whether a ROLLBACK of SQLAlchemy's ends the use of its connection."""

from __future__ import annotations

import sys
from types import FrameType

from sqlalchemy.engine.base import Connection, Transaction
from sqlalchemy.pool.base import _ConnectionFairy

from unbroken.integrations.sqlalchemy.creating import _SQLALCHEMY

#: The maximum number of calls between a Transaction's ``close`` and the dialect's ``do_rollback``.
_DEPTH = 8
_CLOSE, _ROLLBACK = Transaction.close.__code__, Transaction.rollback.__code__
_RESET, _CONNECTION_CLOSE = _ConnectionFairy._reset.__code__, Connection.close.__code__
_SESSION = _SQLALCHEMY + "orm"


def is_at_end() -> bool:
    """Return whether the ROLLBACK that the caller, a ``do_rollback``, sends is the last command on
    its connection: a Connection or a Session is being closed, or the pool resets it.

    An application that calls ``rollback`` goes on, and may rely on released locks.
    """
    frame = sys._getframe(1)
    for _ in range(_DEPTH):
        code = frame.f_code
        if code is _RESET:
            return True
        up = frame.f_back
        if code is _ROLLBACK or up is None:
            return False
        if code is _CLOSE:
            return up.f_code is _CONNECTION_CLOSE or _is_session_close(up)
        frame = up
    return False


def _is_session_close(frame: FrameType) -> bool:
    """Return whether a Session is being closed that returns its connection. One that was made for a
    Connection leaves that to its owner, which goes on.
    """
    code = frame.f_code
    return (
        code.co_name == "close"
        and code.co_filename.startswith(_SESSION)
        and frame.f_locals.get("autoclose") is True
    )
