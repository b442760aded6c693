"""What a psycopg connection has sent in the transaction that is open, and at which level."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from unbroken.drivers._postgresql_texts import LEVEL_HOLDS, TEXTS, is_weak, may_set_level
from unbroken.drivers._postgresql_texts import is_one as _is_one
from unbroken.ledger.statements import LONGEST_CACHED

_IDLE, _IN_TRANSACTION = 0, 2  # PQtransactionStatus


def note_text(conn: Any, query: Any) -> None:
    """*query* goes out next; None where it is not known. BEGIN was noted before."""
    state = conn.__dict__
    texts = state.get("_unbroken_texts")
    if texts is None:
        return
    if state["pgconn"].transaction_status == _IDLE:
        texts.clear()
    text = query if isinstance(query, (str, bytes)) else None
    texts.append(text)
    if text is None or len(text) > LONGEST_CACHED or may_set_level(text):
        state["_unbroken_level"] = None


def note_command(conn: Any, command: Any) -> None:
    """psycopg itself sends *command*."""
    texts = conn.__dict__.get("_unbroken_texts")
    if texts is not None and isinstance(command, bytes) and command.startswith(b"BEGIN"):
        texts.clear()
    else:
        note_text(conn, command)


def new_texts() -> deque[Any]:
    """For a connection of which nothing was sent yet."""
    return deque(maxlen=TEXTS)


def texts(conn: Any) -> Sequence[str | bytes | None]:
    """What was sent in the transaction that is open; None stands for what is not known, for a
    level at which a COMMIT may fail although its transaction only read, and for a transaction in
    error, whose COMMIT is a ROLLBACK.
    """
    sent: Sequence[str | bytes | None] = conn.__dict__["_unbroken_texts"]
    level = conn._isolation_level
    if conn.__dict__["pgconn"].transaction_status != _IN_TRANSACTION:
        return (None,)
    if level is not None:
        weak = level.name in ("READ_UNCOMMITTED", "READ_COMMITTED", "REPEATABLE_READ")
    else:
        weak = knows_level(conn)
    return sent if weak else (None,)


def knows_level(conn: Any) -> bool:
    """Whether transactions of *conn* are known not to be serializable, if nothing is said."""
    until = conn.__dict__.get("_unbroken_level")
    return until is not None and time.monotonic() < until


def hear_level(state: dict[str, Any], level: bytes | None) -> None:
    state["_unbroken_level"] = time.monotonic() + LEVEL_HOLDS if is_weak(level) else None


def is_one(pgq: Any) -> bool:
    """Whether the query is for certain one statement, which may follow BEGIN at once, and means the
    same in libpq's extended protocol as in the simple one.
    """
    return _is_one(pgq.query, has_values=bool(pgq.params))
