"""The statements that a psycopg connection has sent in the open transaction, and the transaction's
level.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from unbroken.ledger.statements import LONGEST_CACHED, verb

_IDLE, _IN_TRANSACTION = 0, 2  # PQtransactionStatus

#: The number of last statements of a transaction that are kept. One that sent more counts as
#: unknown.
TEXTS = 16
#: The seconds for which the default isolation level of one transaction is assumed for the next
#: ones. The server's default may be changed meanwhile.
LEVEL_HOLDS = 10.0
#: Statements that can be sent behind BEGIN. None of them changes the protocol between libpq and the
#: server, as COPY does, or must come first, as SET TRANSACTION must.
_FIRST = frozenset({"SELECT", "WITH", "VALUES", "INSERT", "UPDATE", "DELETE", "MERGE", "SHOW"})
#: Statements whose possible effects are known.
_PLAIN = frozenset(
    "SELECT WITH VALUES INSERT UPDATE DELETE MERGE SHOW SET BEGIN COMMIT ROLLBACK SAVEPOINT"
    " RELEASE".split()
)
#: Words in a statement that may change the level of later transactions.
_LEVELS = ("isolation", "characteristics", "config")


def note_text(conn: Any, query: Any) -> None:
    """Note *query*, which is sent next; None if it is not known. BEGIN was noted before."""
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
    """Note that psycopg itself sends *command*."""
    texts = conn.__dict__.get("_unbroken_texts")
    if texts is not None and isinstance(command, bytes) and command.startswith(b"BEGIN"):
        texts.clear()
        note_encoding(conn)
    else:
        note_text(conn, command)


_ENCODING = b"client_encoding"


def note_encoding(conn: Any) -> None:
    """Note that BEGIN is sent next, and that all commands were answered."""
    state = conn.__dict__
    state["_unbroken_encoding"] = state["pgconn"].parameter_status(_ENCODING)


def keeps_encoding(conn: Any) -> bool:
    """Return whether the end of the transaction keeps the encoding of texts. If it does not, a
    statement can only be written once the server has reported the encoding.
    """
    state = conn.__dict__
    now = state["pgconn"].parameter_status(_ENCODING)
    return now is not None and bool(state.get("_unbroken_encoding") == now)


def new_texts() -> deque[Any]:
    """Return the record for a connection on which nothing was sent yet."""
    return deque(maxlen=TEXTS)


def texts(conn: Any) -> Sequence[str | bytes | None]:
    """Return the statements sent in the open transaction.

    None stands for an unknown statement. It also stands for a level at which a COMMIT may fail
    although its transaction only read, and for a transaction in error, whose COMMIT is a ROLLBACK.
    It also stands for a libpq connection that the application may have kept, because it can use it
    by itself while no answer is due.
    """
    state = conn.__dict__
    sent: Sequence[str | bytes | None] = state["_unbroken_texts"]
    level = conn._isolation_level
    if state["pgconn"].transaction_status != _IN_TRANSACTION or state.get("_unbroken_shown"):
        return (None,)
    if level is not None:
        is_weak = level.name in ("READ_UNCOMMITTED", "READ_COMMITTED", "REPEATABLE_READ")
    else:
        is_weak = knows_level(conn)
    return sent if is_weak else (None,)


@lru_cache(maxsize=1000)
def may_set_level(text: str | bytes) -> bool:
    """Return whether a statement may change the isolation level of later transactions."""
    if verb(text) not in _PLAIN:
        return True
    lower = text.lower()
    if isinstance(lower, bytes):
        return any(word.encode() in lower for word in _LEVELS)
    return any(word in lower for word in _LEVELS)


def knows_level(conn: Any) -> bool:
    """Return whether transactions of *conn* are known not to be serializable by default."""
    until = conn.__dict__.get("_unbroken_level")
    return until is not None and time.monotonic() < until


def hear_level(state: dict[str, Any], level: bytes | None, sent: Sequence[Any]) -> None:
    """Record the server's answer to the query for the *level*. Statements *sent* with it may change
    the level of the next transactions.
    """
    is_weak = level in (b"read uncommitted", b"read committed", b"repeatable read")
    keeps = is_weak and not any(
        text is None or len(text) > LONGEST_CACHED or may_set_level(text) for text in sent
    )
    state["_unbroken_level"] = time.monotonic() + LEVEL_HOLDS if keeps else None


def is_one(pgq: Any) -> bool:
    """Return whether the query is certainly a single statement that may directly follow BEGIN. It
    must mean the same in the extended protocol as in the simple one.
    """
    text: bytes = pgq.query
    if hasattr(type(pgq), "template"):  # of a cursor that puts the values into the text
        text = getattr(pgq, "template", None) or text
    elif pgq.params:
        return (verb(text) if len(text) > LONGEST_CACHED else _verb(text)) in _FIRST
    return len(text) <= LONGEST_CACHED and _is_single(text)


_verb = lru_cache(maxsize=1000)(verb)


@lru_cache(maxsize=1000)
def _is_single(text: bytes) -> bool:
    return verb(text) in _FIRST and b";" not in text.rstrip(b"; \t\r\n") and b"$" not in text


def is_one_text(text: str, *, has_values: bool) -> bool:
    """Do the same as :func:`is_one`, for a *text* that is sent unchanged, with its values or
    without.
    """
    if has_values:
        return (verb(text) if len(text) > LONGEST_CACHED else _verb(text)) in _FIRST
    return len(text) <= LONGEST_CACHED and _is_single(text.encode("utf-8", "replace"))
