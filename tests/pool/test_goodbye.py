"""A goodbye that has arrived, although the hang-up has not: a COMMIT is not sent after it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from unbroken.brain.entry import Entry
from unbroken.net.liveness import poller
from unbroken.pool.loan import Loan
from unbroken.pool.state import PoolState


def message(kind: bytes, *fields: bytes) -> bytes:
    """One message of PostgreSQL's protocol (chapter "Message Formats")."""
    body = b"".join(field + b"\0" for field in fields) + (b"\0" if kind == b"E" else b"")
    return kind + (len(body) + 4).to_bytes(4, "big") + body


GOODBYE = message(
    b"E", b"SFATAL", b"VFATAL", b"C57P01", b"Mterminating connection due to administrator command"
)
REFUSAL = message(b"E", b"SERROR", b"VERROR", b"C23505", b"Mduplicate key value")
NOTICE = b"A" + (4 + 4 + 3 + 3).to_bytes(4, "big") + (7).to_bytes(4, "big") + b"ch\0pl\0"
MYSQL_GOODBYE = b"\x48\0\0\0\xff" + (4031).to_bytes(2, "little") + b"#HY000" + b"x" * (0x48 - 9)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("backend", "waiting", "ended"),
    [
        ("postgresql", GOODBYE, True),
        ("postgresql", NOTICE, False),
        ("postgresql", NOTICE + GOODBYE, True),
        ("postgresql", REFUSAL, False),
        ("mysql", MYSQL_GOODBYE, True),
        ("mysql", b"\x01\0\0\1\x05", False),
    ],
)
def test_only_a_goodbye_ends_a_session_before_its_hang_up(
    pair, backend: str, waiting: bytes, ended: bool
) -> None:
    ours, theirs = pair
    theirs.sendall(waiting)
    entry = Entry(object(), 0.0, 0, 1.0)
    entry.fd, entry.poll = ours.fileno(), poller(ours.fileno())
    driver = SimpleNamespace(target=SimpleNamespace(backend=backend), fileno=lambda _conn: entry.fd)
    state: Any = SimpleNamespace(driver=driver)
    state.last_words = partial(PoolState.last_words, state)
    loan = Loan.of(state, entry, entry.conn)
    assert loan.has_ended() is ended
    assert ours.recv(1000) == waiting  # nothing was taken out of the stream
