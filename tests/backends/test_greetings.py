"""What the first bytes from a port tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbroken.backends.greetings import is_of, questions, shown, told

GREETING = b"\x5b\0\0\0\x0a5.5.5-10.11.6-MariaDB\0"
ERROR = b"\x17\0\0\0\xff\x10\x04Too many connections"


@pytest.mark.parametrize(
    ("backend", "said", "expected"),
    [
        ("mysql", GREETING, True),
        ("mariadb", ERROR, True),
        ("mysql", b"N", False),
        ("mysql", b"S", False),
        ("mysql", b"SSH-2.0-x", False),
        ("mysql", b"HTTP/1.1 400", False),
        ("mysql", b"\x15\x03\x01\0\x02\x02F", False),
        ("mysql", GREETING[:3], True),  # cut short: nothing is known
        ("postgresql", b"S", True),
        ("postgresql", b"N", True),
        ("postgresql", b"E\0\0\0\x40SFATAL\0", True),
        ("postgresql", b"NE\0\0\0\xd7SFATAL\0C08P01\0", True),
        ("postgresql", b"S\x15\x03\x01\0\x02\x02F", True),
        ("postgresql", b"NEWS 1.0", False),
        ("postgresql", b"ESMTP says hello", False),
        ("postgresql", b"Ecould not fork new process for connection: x", True),
        ("mysql", b"\x17\0\0\x02\xff\xd3\x07Can't connect to x", True),  # a router's
        ("postgresql", b"SSH-2.0-x", False),
        ("postgresql", GREETING, False),
        ("postgresql", b"-ERR x", False),
    ],
)
def test_a_server_of_the_kind_is_known(backend: str, said: bytes, expected: bool) -> None:
    assert is_of(backend, said) is expected


@pytest.mark.parametrize(
    ("said", "guess"),
    [
        (b"SSH-2.0-x\r\n", "SSH"), (b"HTTP/1.0 503 x", "HTTP"), (b"-NOAUTH x", "Redis"),
        (b"220 x ESMTP", "SMTP"), (b"\x15\x03\x03\0\x02", "TLS"), (GREETING, "MySQL"),
    ],
)  # fmt: skip
def test_what_it_may_be_is_guessed(said: bytes, guess: str) -> None:
    assert told("postgresql", said).endswith(f"({guess}?)")


@given(st.binary(min_size=1, max_size=300), st.sampled_from(["mysql", "mariadb", "postgresql"]))
def test_any_bytes_are_shown_safely_in_one_line(said: bytes, backend: str) -> None:
    assert isinstance(is_of(backend, said), bool)
    text = told(backend, said)
    assert text.isprintable()
    assert text.isascii() or "…" in text
    assert len(shown(said)) < 200
    assert questions(backend)
