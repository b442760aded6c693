"""Follows MySQL's protocol: which statements a client has executed, and where their answers begin
and end.

Sources: MySQL "Client/Server Protocol"
(dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html) and the MariaDB knowledge base's page
of the same name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from unbroken_drill.proxy.cuts import Answer, Spoken
from unbroken_drill.proxy.frames import Frame, Frames

_COMPRESS, _SSL, _ZSTD, _QUERY_ATTRIBUTES = 0x20, 0x800, 0x4000000, 0x8000000
_QUERY, _PREPARE, _EXECUTE, _LONG_DATA, _CLOSE, _QUIT, _BULK_EXECUTE = (
    0x03,
    0x16,
    0x17,
    0x18,
    0x19,
    0x01,
    0xFA,
)
_UNANSWERED = frozenset({_LONG_DATA, _CLOSE, _QUIT})
_LAST_PREPARED = (
    0xFFFFFFFF  # MariaDB's clients may send it, to execute before the answer to the prepare
)
_MORE = 0xFFFFFF  # a packet of this length is continued in the next one

TLS = "the client uses TLS (CLIENT_SSL), so the proxy cannot read its statements"
COMPRESSED = (
    "the client uses compression (CLIENT_COMPRESS), so the proxy cannot read its statements"
)
FOREIGN = "the client does not speak MySQL's protocol, so the proxy cannot read its statements"


@dataclass(slots=True)
class _Command:
    ticket: int
    prepares: str | None = None  # the text to which the answer assigns a number


class MySQLReader:
    """A :class:`unbroken_drill.proxy.cuts.Reader` of one connection."""

    def __init__(self) -> None:
        self.unreadable: str | None = None
        self._client, self._server = Frames(4, _length), Frames(4, _length)
        self._server_can = 0
        self._client_wants: int | None = None  # its capability flags, once it sent them
        self._greeted = False
        self._tickets = 0
        self._unanswered: deque[_Command] = deque()
        self._answering: _Command | None = None  # its first packet is in progress
        self._prepared: dict[int, str] = {}
        self._last_prepared = ""
        self._continued = False  # the client's last packet was a full one

    def up(self, data: bytes) -> Iterator[Spoken]:
        """Read *data* from the client."""
        if self.unreadable:
            return
        for packet in self._client.feed(data):
            if not packet.complete:
                continue
            continued, self._continued = self._continued, packet.length == _MORE
            if continued:
                continue
            if packet.header[3]:
                self._introduction(packet)  # or an answer in an exchange that the server began
                if self.unreadable:
                    return
                continue
            spoken = self._command(packet)
            if spoken is not None:
                yield spoken

    def down(self, data: bytes) -> Iterator[Answer]:
        """Read *data* from the server."""
        if self.unreadable:
            return
        for packet in self._server.feed(data):
            if not self._greeted:
                if packet.complete:
                    self._greeting(packet)
                if self.unreadable:
                    return
                continue
            if not packet.complete and packet.header[3] == 1 and self._unanswered:
                self._answering = self._unanswered.popleft()
                yield Answer(self._answering.ticket, packet.start, complete=False)
            elif packet.complete and self._answering is not None:
                answered, self._answering = self._answering, None
                self._note_prepared(answered, packet)
                yield Answer(answered.ticket, packet.end, complete=True)

    # ---- the login

    def _greeting(self, packet: Frame) -> None:
        self._greeted = True
        body = packet.head
        if body[:1] == b"\xff":  # too many connections, a blocked host …
            return
        version = body.find(b"\0", 1)
        flags = version + 1 + 4 + 8 + 1  # after the thread's number, the scramble and a filler
        if body[:1] != b"\x0a" or version < 0 or len(body) < flags + 7:
            self.unreadable = FOREIGN
            return
        self._server_can = (
            int.from_bytes(body[flags : flags + 2], "little")
            | int.from_bytes(body[flags + 5 : flags + 7], "little") << 16
        )

    def _introduction(self, packet: Frame) -> None:
        if self._client_wants is not None:
            return
        if len(packet.head) < 4:
            self.unreadable = FOREIGN
            return
        self._client_wants = int.from_bytes(packet.head[:4], "little")
        if self._client_wants & _SSL and packet.length <= 32:
            self.unreadable = TLS
        elif self._client_wants & self._server_can & (_COMPRESS | _ZSTD):
            self.unreadable = COMPRESSED

    # ---- commands

    def _command(self, packet: Frame) -> Spoken | None:
        body = packet.head
        if not body:
            return None
        kind = body[0]
        self._tickets += 1
        text: str | None = None
        command = _Command(self._tickets)
        if kind == _QUERY:
            text = _text(body, attributes=self._has_attributes)
        elif kind == _PREPARE:
            command.prepares = self._last_prepared = body[1:].decode(errors="replace")
        elif kind in (_EXECUTE, _BULK_EXECUTE):
            number = int.from_bytes(body[1:5], "little")
            text = self._last_prepared if number == _LAST_PREPARED else self._prepared.get(number)
        elif kind == _CLOSE:
            self._prepared.pop(int.from_bytes(body[1:5], "little"), None)
        if kind not in _UNANSWERED:
            self._unanswered.append(command)
        return Spoken(command.ticket, text, packet.start, packet.end) if text is not None else None

    def _note_prepared(self, command: _Command, packet: Frame) -> None:
        if command.prepares is not None and packet.head[:1] == b"\0" and len(packet.head) >= 5:
            self._prepared[int.from_bytes(packet.head[1:5], "little")] = command.prepares

    @property
    def _has_attributes(self) -> bool:
        return bool((self._client_wants or 0) & self._server_can & _QUERY_ATTRIBUTES)


def _length(header: bytes) -> int:
    # the fourth byte is the packet's number in its exchange
    return int.from_bytes(header[:3], "little")


def _text(body: bytes, *, attributes: bool) -> str:
    """Return the statement in a COM_QUERY's *body*. The bytes before it are skipped as far as they
    can be read.
    """
    at = _after_attributes(body) if attributes else 1
    return body[at:].decode(errors="replace")


# The sizes of binary values, by type; -1: a byte contains the number that follow; every other type
# is a length-encoded text.
_SIZES = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 6: 0, 8: 8, 9: 4, 13: 2, 7: -1, 10: -1, 11: -1, 12: -1}


def _after_attributes(body: bytes) -> int:
    """Return where the text begins after query attributes (MySQL 8.0.23 and newer: COM_QUERY's
    parameter_count and so on).
    """
    count, at = _number(body, 1)
    _sets, at = _number(body, at)
    if not count:
        return at
    nulls = body[at : at + (count + 7) // 8]
    at += len(nulls) + 1  # and new_params_bind_flag
    kinds = []
    for _ in range(min(count, len(body))):
        kinds.append(body[at : at + 1])
        size, at = _number(body, at + 2)
        at += size
    for index, kind in enumerate(kinds):
        if index // 8 < len(nulls) and nulls[index // 8] >> index % 8 & 1:
            continue
        size = _SIZES.get(kind[0] if kind else 0, -2)
        if size == -1:
            size, at = (body[at] if at < len(body) else 0), at + 1
        elif size == -2:
            size, at = _number(body, at)
        at += size
    return at


def _number(body: bytes, at: int) -> tuple[int, int]:
    """Return a length-encoded integer at *at* (0 beyond the end), and where it ends."""
    first = body[at] if at < len(body) else 0
    size = {0xFC: 2, 0xFD: 3, 0xFE: 8}.get(first)
    if size is None:
        return first, at + 1
    return int.from_bytes(body[at + 1 : at + 1 + size], "little"), at + 1 + size
