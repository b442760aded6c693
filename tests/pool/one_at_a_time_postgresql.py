"""Stand-ins for proxies of PostgreSQL's protocol that do something of their own where a statement
comes before the last one was answered.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Any

from .relaying import Relay

_REFUSES_TLS = b"\x04\xd2\x16\x2f"
_NOTICE = b"SNOTICE\0VNOTICE\0C00000\0Mhere I am\0\0"
_PARAMETER = b"application_name\0somebody\0"


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4) + body


class Proxy(Relay):
    """In front of *server*. *kind* says what it does with a second statement:

    ``closes`` the connection, ``drops`` it, ``turns`` the two answers round, ``repeats`` the first
    answer, ``mixes`` the message of the first that ends it into the second, ``waits`` until the
    first answer was sent, ``talks`` between all answers, or ``passes`` it on.

    Each answer is on its way for ``away`` seconds. ``met`` counts such statements, ``opened`` the
    connections, ``requests`` all statements.
    """

    def __init__(self, server: Any, kind: str) -> None:
        super().__init__(server)
        self.kind = kind
        self.away = 0.003
        self.met = self.requests = 0

    def relay(self, client: socket.socket, server: socket.socket) -> None:
        _Link(self, client, server).run()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.asked = self.answered = b""
        self.is_starting = True
        self.under_way = 0  #: so many statements were not answered yet
        self.kept: deque[bytes] = deque()  #: messages of the client's that wait
        self.held = b""  #: an answer that waits
        self.now = b""  #: of an answer whose end has not come

    def run(self) -> None:
        with suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(self.client, selectors.EVENT_READ)
            selector.register(self.server, selectors.EVENT_READ)
            is_late = False
            while True:
                ready = sorted(selector.select(), key=lambda each: each[0].fileobj is self.server)
                sock: Any = ready[0][0].fileobj
                if sock is self.server and not is_late and not self.is_starting:
                    # it is on its way; what the client sends meanwhile comes first
                    is_late = True
                    time.sleep(self.proxy.away)
                    continue
                is_late = False
                data = sock.recv(65536)
                if not data:
                    break
                self.from_client(data) if sock is self.client else self.from_server(data)
        for each in (self.client, self.server):
            each.close()

    def from_client(self, data: bytes) -> None:
        if self.is_starting:
            if data[4:8] == _REFUSES_TLS:
                self.client.sendall(b"N")
            else:
                self.server.sendall(data)
            return
        self.asked += data
        while len(self.asked) >= 5:
            end = 1 + int.from_bytes(self.asked[1:5])
            if len(self.asked) < end:
                break
            message, self.asked = self.asked[:end], self.asked[end:]
            self.heard(message)

    def heard(self, message: bytes) -> None:
        proxy = self.proxy
        ends = message[:1] in (b"Q", b"S")
        proxy.requests += ends
        if self.under_way:
            proxy.met += ends
            if proxy.kind == "closes":
                raise ConnectionAbortedError
            if proxy.kind == "drops":
                return
            if proxy.kind == "waits":
                self.kept.append(message)
                return
        self.server.sendall(message)
        self.under_way += ends

    def from_server(self, data: bytes) -> None:
        self.answered += data
        while len(self.answered) >= 5:
            end = 1 + int.from_bytes(self.answered[1:5])
            if len(self.answered) < end:
                break
            message, self.answered = self.answered[:end], self.answered[end:]
            self.said(message)

    def said(self, message: bytes) -> None:
        if self.is_starting:
            self.client.sendall(message)
            self.is_starting = message[:1] != b"Z"
            return
        if self.proxy.kind == "talks":
            self.now += _message(b"N", _NOTICE) + _message(b"S", _PARAMETER)
        self.now += message
        if not self.under_way:  # not of a statement that has ended, as asyncpg's to prepare
            self.client.sendall(self.now)
            self.now = b""
        if message[:1] != b"Z":
            return
        answer, self.now = self.now, b""
        if self.proxy.kind == "repeats" and self.under_way > 1:
            answer += answer
        if self.proxy.kind == "turns" and self.under_way > 1 and not self.held:
            self.held, answer = answer, b""
        elif self.proxy.kind == "mixes" and self.under_way > 1 and not self.held:
            answer, self.held = answer[:-6], answer[-6:]
        else:
            answer, self.held = answer + self.held, b""
        self.client.sendall(answer)
        self.under_way -= 1
        while self.kept and not self.under_way:
            self.heard(self.kept.popleft())
