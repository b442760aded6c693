"""PostgreSQL's drivers send statements before the last one was answered. A trial of that, on a
connection that nobody has yet: does each statement get its own answer?

The trial has the three forms in which the drivers do it. A statement stands for the end of a
transaction whose answer is due; BEGIN and a statement share one Sync behind it; and ROLLBACK, which
ends that transaction, follows. All three leave before an answer was read. The first takes its time,
so that the others meet what still waits for an answer. One round trip.
"""

from __future__ import annotations

import random
from typing import NamedTuple

#: The first takes 10 ms. A server that does not know this function says so, in its turn.
SLOW = "SELECT pg_catalog.pg_sleep(0.01)"
BEGIN, END = "BEGIN", "ROLLBACK"
#: So many seconds after the first answer the others must have come. A server has only to read them.
_OTHERS_WITHIN = 1.0

COMPLETE, READY, ERROR, ROW = b"CZED"
PARSED, BOUND, COLUMNS = b"12T"

_SYNC = b"S\0\0\0\4"


class Expected(NamedTuple):
    """A message that the server must send next; *body* None: whatever is in it."""

    kind: int
    body: bytes | None = None


def new_mark() -> str:
    """A number that the server is asked for: nobody else's answer has it."""
    return str(random.randrange(100_000_000, 1_000_000_000))


def question(mark: str) -> str:
    """What has *mark* for its answer."""
    return f"SELECT {mark}"


def message(kind: bytes, body: bytes) -> bytes:
    """One message of the protocol."""
    return kind + (len(body) + 4).to_bytes(4) + body


def without_sync(sql: str) -> bytes:
    """*sql* in the extended protocol, for something that follows at once."""
    return (
        message(b"P", b"\0" + sql.encode() + b"\0\0\0")
        + message(b"B", b"\0\0\0\0\0\0\0\0")
        + message(b"E", b"\0\0\0\0\0")
    )


def simple(sql: str) -> bytes:
    """*sql* in the simple protocol."""
    return message(b"Q", sql.encode() + b"\0")


def requests(mark: str) -> bytes:
    """All three."""
    begins = without_sync(BEGIN) + without_sync(question(mark)) + _SYNC
    return simple(SLOW) + begins + simple(END)


#: The answer to the first, unless it is an error: that one replaces what comes before the last.
FIRST = (
    Expected(COLUMNS), Expected(ROW), Expected(COMPLETE, b"SELECT 1\0"), Expected(READY, b"I"),
)  # fmt: skip


def others(mark: str) -> tuple[Expected, ...]:
    """The answers to the other two."""
    value = b"\0\1" + len(mark).to_bytes(4) + mark.encode()  # one column, its length
    return (
        Expected(PARSED), Expected(BOUND), Expected(COMPLETE, b"BEGIN\0"),
        Expected(PARSED), Expected(BOUND), Expected(ROW, value), Expected(COMPLETE, b"SELECT 1\0"),
        Expected(READY, b"T"), Expected(COMPLETE, b"ROLLBACK\0"), Expected(READY, b"I"),
    )  # fmt: skip


def limits(timeout: float) -> tuple[float, float]:
    """How many seconds of *timeout* the first answer may take, and then the others."""
    others_within = min(_OTHERS_WITHIN, timeout / 2)
    return timeout - others_within, others_within
