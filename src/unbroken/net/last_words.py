"""Read the error that the server sent before it hung up, without consuming it.

A server that ends an idle session often sends one error packet first: MySQL's 4031, MariaDB's 1927,
PostgreSQL's 57P01 and 57P05. Drivers mostly hide it behind "gone away". Under TLS the packet is
encrypted, so only the hang-up itself is known.

Formats: MySQL client/server protocol, ERR_Packet; MariaDB's progress packets (ERR with code
0xFFFF); PostgreSQL "Message Formats", ErrorResponse.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from unbroken.net.borrow import borrowed

_PEEK_BYTES = 65536  # an error is a few hundred bytes, but notices may precede it
_MAX_PACKET = 8192
_MAX_TEXT = 200
_NOT_PRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]+")
_SQLSTATE = re.compile(rb"[0-9A-Z]{5}")


@dataclass(frozen=True, slots=True)
class Words:
    """A server's last words. *code* is MySQL's error number or PostgreSQL's SQLSTATE. *text* is one
    line of at most 200 characters.
    """

    code: int | str
    text: str


def peek(fd: int, backend: str) -> Words | None:
    """The unread error on the idle socket *fd*. None if there is none, if it cannot be parsed, or
    under TLS.

    *backend* is ``mysql``, ``mariadb`` or ``postgresql``. Consumes nothing, never blocks, never
    raises.
    """
    try:
        with borrowed(fd) as sock:
            data = sock.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (
        OSError,
        ValueError,
        OverflowError,
        AttributeError,
    ):  # closed, reset, or no MSG_DONTWAIT
        return None
    return parse(data, backend)


def parse(data: bytes, backend: str) -> Words | None:
    """The error in *data*, the unread bytes of an idle connection.

    Accepts any bytes; never raises.
    """
    if backend in ("mysql", "mariadb"):
        return _mysql(data) or _mysql_compressed(data)
    if backend == "postgresql":
        return _postgresql(data)
    return None


def _mysql(data: bytes) -> Words | None:
    """The first ERR packet among complete packets. A packet is 3 bytes of length (little endian), 1
    byte of sequence number, and the payload.
    """
    start = 0
    while start + 4 < len(data):
        length = int.from_bytes(data[start : start + 3], "little")
        start += 4
        payload = data[start : start + length]
        if length > _MAX_PACKET or len(payload) < length:
            return None  # no server leaves this on an idle connection; a TLS record looks like it
        if payload[:1] == b"\xff" and (words := _mysql_error(payload)):
            return words
        start += length
    return None


def _mysql_compressed(data: bytes) -> Words | None:
    """Parse the compressed protocol, which prepends 7 bytes. It leaves such a short packet
    uncompressed (the last 3 of the 7 bytes are zero).
    """
    return _mysql(data[7:]) if data[4:7] == b"\0\0\0" else None


def _mysql_error(payload: bytes) -> Words | None:
    code = int.from_bytes(payload[1:3], "little")
    if len(payload) < 3 or code in (0, 0xFFFF):  # 0xFFFF: a progress report, not an error
        return None
    text = payload[3:]
    if text[:1] == b"#" and _SQLSTATE.fullmatch(text[1:6]):
        # The SQLSTATE is absent in errors sent before the handshake.
        text = text[6:]
    return Words(code, _one_line(text))


#: Message types: ErrorResponse, NoticeResponse, ParameterStatus, NotificationResponse. Then the
#: answers to a command without rows: ParseComplete, BindComplete, NoData, CommandComplete,
#: ReadyForQuery.
_BEFORE_AN_ERROR = frozenset({b"E", b"N", b"S", b"A", b"1", b"2", b"n", b"C", b"Z"})


def _postgresql(data: bytes) -> Words | None:
    """The first ErrorResponse, after notices and after the answer to a COMMIT or ROLLBACK that is
    due. A message is 1 byte of type, 4 bytes of length (big endian, including itself), and the
    body.
    """
    start = 0
    while start + 5 <= len(data):
        kind = data[start : start + 1]
        length = int.from_bytes(data[start + 1 : start + 5], "big")
        end = start + 1 + length
        if kind not in _BEFORE_AN_ERROR or length < 4 or end > len(data):
            return None
        if kind == b"E":
            return _postgresql_error(data[start + 5 : end])
        start = end
    return None


def _postgresql_error(body: bytes) -> Words | None:
    fields = {field[:1]: field[1:] for field in body.split(b"\0") if field}
    code = fields.get(b"C", b"")
    if not _SQLSTATE.fullmatch(code):
        return None
    return Words(code.decode("ascii"), _one_line(fields.get(b"M", b"")))


def _one_line(raw: bytes) -> str:
    text = _NOT_PRINTABLE.sub(" ", raw[: 4 * _MAX_TEXT + 4].decode("utf-8", "replace")).strip()
    text = "".join(char for char in text if char.isprintable())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
