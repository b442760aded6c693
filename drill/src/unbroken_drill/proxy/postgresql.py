"""Follows PostgreSQL's protocol, version 3: which statements a client has executed, and where their
answers begin and end.

Source: PostgreSQL manual, "Frontend/Backend Protocol". An answer is complete with ReadyForQuery:
only then is a statement outside a transaction block committed, when it came by the extended
protocol.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from unbroken_drill.proxy.cuts import Answer, Spoken
from unbroken_drill.proxy.frames import Frame, Frames

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104
_TLS_HELLO = b"\x16"  # sslnegotiation=direct begins with it
_MOST = 1 << 30  # a longer message is not PostgreSQL's
# a header's size: a client's first message (and a request for encryption) has no letter
_FIRST, _LATER = (4, 5)

TLS = "the client uses TLS (SSLRequest), so the proxy cannot read its statements"
GSS = "the client uses GSSAPI encryption (GSSENCRequest), so the proxy cannot read its statements"
FOREIGN = "the client does not speak PostgreSQL's protocol, so the proxy cannot read its statements"


@dataclass(slots=True)
class _Awaited:
    ticket: int
    ready: int  # complete with so many ReadyForQuery
    began: bool = False


class PostgreSQLReader:
    """A :class:`unbroken_drill.proxy.cuts.Reader` of one connection."""

    def __init__(self) -> None:
        self.unreadable: str | None = None
        self._client, self._server = Frames(_FIRST, _length), Frames(_LATER, _length)
        self._asked: bytes | None = (
            None  # a request for encryption, which the server answers with one letter
        )
        self._tickets = 0
        self._to_come = 1  # ReadyForQuery that were requested; the login's is the first
        self._came = 0
        self._statements: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._awaited: deque[_Awaited] = deque()
        self._flushed = False  # a Flush came after an Execute, and no Sync yet

    # ---- the client

    def up(self, data: bytes) -> Iterator[Spoken]:
        """Read *data* from the client."""
        if self._client.size == _FIRST and self._client.is_between and data[:1] == _TLS_HELLO:
            self.unreadable = TLS
        if self.unreadable or not data:
            return
        for message in self._client.feed(data):
            if not message.complete:
                continue
            if self._client.size == _FIRST:
                self._introduction(message)
                if self.unreadable:
                    return
                continue
            text = self._said(message)
            if text is not None:
                self._tickets += 1
                self._awaited.append(
                    _Awaited(self._tickets, self._to_come + (message.header[:1] == b"E"))
                )
                yield Spoken(self._tickets, text, message.start, message.end)
        if self._client.is_wrong:
            self.unreadable = FOREIGN

    def _introduction(self, message: Frame) -> None:
        code = int.from_bytes(message.head[:4], "big")
        if code in (_SSL_REQUEST, _GSS_REQUEST):
            self._asked = TLS.encode() if code == _SSL_REQUEST else GSS.encode()
        else:
            self._client.size = _LATER
            if len(message.head) < 4 or (code >> 16 != 3 and code != 80877102):  # CancelRequest
                self.unreadable = FOREIGN

    def _said(self, message: Frame) -> str | None:
        """Return the statement that *message* has executed, if any."""
        kind, body = message.header[:1], message.head
        if kind == b"Q":
            self._to_come += 1
            return _text(body)
        if kind in (b"S", b"F"):  # Sync, FunctionCall
            self._to_come += 1
            self._flushed = False
        elif kind == b"P":
            name, _, rest = body.partition(b"\0")
            self._statements[name] = _text(rest)
        elif kind == b"B":
            portal, _, rest = body.partition(b"\0")
            self._portals[portal] = self._statements.get(rest.partition(b"\0")[0], "")
        elif kind == b"E":
            return self._portals.get(body.partition(b"\0")[0], "")
        elif kind == b"H":
            self._flushed = True
        elif kind == b"C":
            known = self._statements if body[:1] == b"S" else self._portals
            known.pop(body[1:].partition(b"\0")[0], None)
        return None

    # ---- the server

    def down(self, data: bytes) -> Iterator[Answer]:
        """Read *data* from the server."""
        if self.unreadable or not data:
            return
        skipped = 0
        if self._asked is not None:
            if data[:1] in (b"S", b"G"):
                self.unreadable = self._asked.decode()
                return
            # N: it does not; the client continues in plain, or an error follows
            self._asked, skipped = (None, 1)
            if data[:1] == b"E":
                skipped = 0
        rest = data[skipped:]
        if self._server.is_between and rest:
            yield from self._begins(skipped)
        for message in self._server.feed(rest):
            if not message.complete:
                continue
            end, kind = skipped + message.end, message.header[:1]
            self._came += kind == b"Z"
            yield from self._ends(kind, end)
            if message.end < len(rest):
                yield from self._begins(end)
        if self._server.is_wrong:
            self.unreadable = FOREIGN

    def _begins(self, at: int) -> Iterator[Answer]:
        """Note that a message begins at *at*: the answer to the next request in order."""
        for awaited in self._awaited:
            if awaited.ready - 1 > self._came:
                return
            if not awaited.began:
                awaited.began = True
                yield Answer(awaited.ticket, at, complete=False)

    def _ends(self, kind: bytes, at: int) -> Iterator[Answer]:
        while self._awaited and self._is_answered(self._awaited[0], kind):
            yield Answer(self._awaited.popleft().ticket, at, complete=True)
            if kind != b"Z":
                return

    def _is_answered(self, awaited: _Awaited, kind: bytes) -> bool:
        if awaited.ready <= self._came:
            return True
        if not awaited.began:
            return False
        # CopyInResponse, CopyBothResponse: the client's turn. After a Flush its Sync may wait for
        # this answer.
        return kind in (b"G", b"W") or (
            self._flushed and awaited.ready > self._to_come and kind in (b"C", b"E", b"I", b"s")
        )


def _length(header: bytes) -> int:
    length = int.from_bytes(header[-4:], "big") - 4  # the length includes itself
    return length if length < _MOST else -1


def _text(body: bytes) -> str:
    return body.partition(b"\0")[0].decode(errors="replace")
