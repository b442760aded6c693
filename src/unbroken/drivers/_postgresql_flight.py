"""A trial of sending statements before the last one was answered. PostgreSQL's drivers do that. The
trial runs on a connection that is not in use yet, and tests whether each statement gets its own
answer.

The trial has the three forms in which the drivers do it. A statement represents the end of a
transaction whose answer is due. BEGIN and a statement share one Sync behind it. ROLLBACK, which
ends that transaction, follows. All three leave before an answer was read. The first takes its time,
so that the others arrive while it still waits for an answer. One round trip.
"""

from __future__ import annotations

import random
from typing import NamedTuple

#: The first takes 10 ms. A server that does not know this function answers with an error.
SLOW = "SELECT pg_catalog.pg_sleep(0.01)"
BEGIN, END = "BEGIN", "ROLLBACK"
#: The seconds after the first answer within which the others must have come. A server only has to
#: read them.
_OTHERS_WITHIN = 1.0

COMPLETE, READY, ERROR, ROW = b"CZED"
PARSED, BOUND, COLUMNS = b"12T"

_SYNC = b"S\0\0\0\4"


class Expected(NamedTuple):
    """A message that the server must send next. If *body* is None, its content does not matter."""

    kind: int
    body: bytes | None = None


def new_mark() -> str:
    """Return a number that the server is asked for. No other client's answer contains it."""
    return str(random.randrange(100_000_000, 1_000_000_000))


def question(mark: str) -> str:
    """Return the query whose answer is *mark*."""
    return f"SELECT {mark}"


def message(kind: bytes, body: bytes) -> bytes:
    """Return one message of the protocol."""
    return kind + (len(body) + 4).to_bytes(4) + body


def without_sync(sql: str) -> bytes:
    """Return *sql* in the extended protocol, for a command that follows immediately."""
    return (
        message(b"P", b"\0" + sql.encode() + b"\0\0\0")
        + message(b"B", b"\0\0\0\0\0\0\0\0")
        + message(b"E", b"\0\0\0\0\0")
    )


def simple(sql: str) -> bytes:
    """Return *sql* in the simple protocol."""
    return message(b"Q", sql.encode() + b"\0")


def requests(mark: str) -> bytes:
    """Return all three requests."""
    begins = without_sync(BEGIN) + without_sync(question(mark)) + _SYNC
    return simple(SLOW) + begins + simple(END)


#: The answer to the first, unless it is an error. An error replaces the messages before the last.
FIRST = (
    Expected(COLUMNS), Expected(ROW), Expected(COMPLETE, b"SELECT 1\0"), Expected(READY, b"I"),
)  # fmt: skip


def others(mark: str) -> tuple[Expected, ...]:
    """Return the answers to the other two."""
    value = b"\0\1" + len(mark).to_bytes(4) + mark.encode()  # one column, its length
    return (
        Expected(PARSED), Expected(BOUND), Expected(COMPLETE, b"BEGIN\0"),
        Expected(PARSED), Expected(BOUND), Expected(ROW, value), Expected(COMPLETE, b"SELECT 1\0"),
        Expected(READY, b"T"), Expected(COMPLETE, b"ROLLBACK\0"), Expected(READY, b"I"),
    )  # fmt: skip


def limits(timeout: float) -> tuple[float, float]:
    """Return how many seconds of *timeout* the first answer may take, and then the others."""
    others_within = min(_OTHERS_WITHIN, timeout / 2)
    return timeout - others_within, others_within
