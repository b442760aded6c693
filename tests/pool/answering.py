"""A relay between a driver and its server that answers instead of the server.

``answer("COMMIT", 1180, "...", stored=True)``: the next COMMIT is executed, or rolled back instead,
and the client gets this error as its answer. ``refuse(...)``: every new connection gets the error,
in place of the server's greeting or after its login. ``say(...)``: the next statement that matches
gets the error and does not reach the server. Without TLS.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

Code = int | str


class Relay:
    """A relay in a process of its own: some drivers hold the interpreter's lock while they wait."""

    def __init__(self, host: str, port: int, protocol: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, host, str(port), protocol],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port: int = self._ask("port")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def url(self, url: str) -> str:
        """*url* with the relay's address."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    def answer(
        self, code: Code, text: str, *, stored: bool, words: str = r"(?:XA )?COMMIT"
    ) -> None:
        """The next COMMIT (or what *words* match) gets this error, after the server did what it
        says, or a ROLLBACK instead.
        """
        self._ask("plan", r"\s*" + words, code, text, "" if stored else "ROLLBACK", False)

    def say(self, words: str, code: Code, text: str, *, ends: bool = False) -> None:
        """The next statement that begins with *words* gets this error from the relay, which closes
        the connection behind it if it *ends*.
        """
        self._ask("plan", r"\s*" + words, code, text, None, ends)

    def refuse(self, code: Code, text: str, *, greeting: bool = False, times: int = 1_000) -> None:
        """So many new connections get this error, instead of the greeting or after their login."""
        self._ask("refuse", code, text, greeting, times)

    def heal(self) -> None:
        """Let everything through again."""
        self._ask("heal")

    @property
    def refused(self) -> int:
        """So many connections were refused."""
        return int(self._ask("refused"))

    @property
    def opened(self) -> int:
        """So many connections were let through."""
        return int(self._ask("opened"))


def relay_to(server: Any) -> Relay:
    """A relay to one of the testing servers."""
    protocol = "postgresql" if server.backend == "postgresql" else "mysql"
    return Relay(server.host, server.port, protocol)


# -- in the process of its own -------------------------------------------------------------------


@dataclass
class _Plan:
    matches: re.Pattern[bytes]
    code: Code
    text: str
    instead: bytes | None  #: the statement that the server gets; empty: its own; None: none
    ends: bool  #: whether the connection is closed behind the answer


class _Works:
    def __init__(self, host: str, port: int, protocol: str) -> None:
        self.server, self.protocol = (host, port), protocol
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.plans: list[_Plan] = []
        self.refusal: tuple[Code, str, bool] | None = None
        self.refusals = self.refused = self.opened = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def do(self, name: str, *given: Any) -> Any:
        if name == "port":
            return self.listener.getsockname()[1]
        if name == "plan":
            words, code, text, instead, ends = given
            self.plans.append(
                _Plan(
                    re.compile(words.encode(), re.IGNORECASE),
                    code,
                    text,
                    None if instead is None else instead.encode(),
                    ends,
                )
            )
        elif name == "refuse":
            self.refusal, self.refusals = given[:3], given[3]
        elif name == "heal":
            self.refusal, self.plans = None, []
        else:
            return getattr(self, name)
        return None

    def accept(self) -> None:
        kind: Any = _MySQL if self.protocol == "mysql" else _PostgreSQL
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=kind, args=(self, client), daemon=True).start()

    def take(self, sql: bytes) -> _Plan | None:
        """The plan that *sql* falls under, if any; it is used up."""
        with self.lock:
            found = next((plan for plan in self.plans if plan.matches.match(sql)), None)
            if found is not None:
                self.plans.remove(found)
        return found

    def refuses(self) -> tuple[Code, str, bool] | None:
        with self.lock:
            if self.refusal is None or self.refusals <= 0:
                return None
            self.refusals -= 1
            self.refused += 1
        return self.refusal


class _Link:
    """One connection."""

    def __init__(self, relay: _Works, client: socket.socket) -> None:
        self.relay, self.client = relay, client
        self.swallow: bytes | None = None  # the answer to send instead of the server's
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            self.server = socket.create_connection(relay.server)
            self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.run()
        for sock in (client, getattr(self, "server", client)):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def run(self) -> None:
        raise NotImplementedError

    def read(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = sock.recv(count - len(data))
            if not piece:
                raise OSError("the other side has gone")
            data += piece
        return data

    def pump(self) -> None:
        """What the server says, to the client."""
        with suppress(OSError):
            while True:
                self.forward()
        with suppress(OSError):
            self.client.shutdown(socket.SHUT_RDWR)

    def forward(self) -> None:
        raise NotImplementedError


class _MySQL(_Link):
    def packet(self, sock: socket.socket) -> tuple[int, bytes]:
        head = self.read(sock, 4)
        return head[3], self.read(sock, int.from_bytes(head[:3], "little"))

    @staticmethod
    def framed(number: int, body: bytes) -> bytes:
        return len(body).to_bytes(3, "little") + bytes([number & 255]) + body

    def error(self, number: int, code: Code, text: str) -> bytes:
        state = b"#HY000" if number else b""  # before the greeting is answered there is no state
        return self.framed(number, b"\xff" + struct.pack("<H", int(code)) + state + text.encode())

    def run(self) -> None:
        relay = self.relay
        refusal = relay.refuses()
        number, greeting = self.packet(self.server)
        if refusal is not None and refusal[2]:
            self.client.sendall(self.error(0, refusal[0], refusal[1]))
            return
        self.client.sendall(self.framed(number, greeting))
        number, login = self.packet(self.client)
        if refusal is not None:
            self.client.sendall(self.error(number + 1, refusal[0], refusal[1]))
            return
        relay.opened += 1
        self.server.sendall(self.framed(number, login))
        self._authenticate()
        threading.Thread(target=self.pump, daemon=True).start()
        while True:
            self._command()

    def _authenticate(self) -> None:
        while True:
            number, body = self.packet(self.server)
            self.client.sendall(self.framed(number, body))
            if body[:1] in (b"\0", b"\xff"):
                return
            if body[:2] != b"\x01\x03":  # not "fast authentication worked"
                number, body = self.packet(self.client)
                self.server.sendall(self.framed(number, body))

    def _command(self) -> None:
        number, body = self.packet(self.client)
        # mysql-connector puts its query attributes first
        sql = body[1:].removeprefix(b"\0\x01") if body[:1] == b"\x03" else b""
        plan = self.relay.take(sql) if sql else None
        if plan is None:
            self.server.sendall(self.framed(number, body))
            return
        answer = self.error(number + 1, plan.code, plan.text)
        if plan.instead is None:
            self.client.sendall(answer)
            if plan.ends:
                raise OSError("as planned")
            return
        self.swallow = answer
        if plan.instead:
            body = body[: len(body) - len(sql)] + plan.instead
        self.server.sendall(self.framed(number, body))

    def forward(self) -> None:
        number, body = self.packet(self.server)
        answer, self.swallow = self.swallow, None
        self.client.sendall(answer or self.framed(number, body))


class _PostgreSQL(_Link):
    in_transaction = b"I"
    in_batch = False  #: whether something was sent to the server that waits for its Sync
    fails: bytes | None = None  #: the error that ends the batch whose Sync was sent

    def message(self, sock: socket.socket) -> tuple[bytes, bytes]:
        kind = self.read(sock, 1)
        return kind, self.read(sock, int.from_bytes(self.read(sock, 4), "big") - 4)

    @staticmethod
    def framed(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    def error(self, code: Code, text: str, severity: str = "ERROR") -> bytes:
        fields = {"S": severity, "V": severity, "C": str(code), "M": text}
        body = b"".join(f"{key}{value}\0".encode() for key, value in fields.items())
        return self.framed(b"E", body + b"\0")

    def run(self) -> None:
        relay = self.relay
        size = int.from_bytes(self.read(self.client, 4), "big")
        start = self.read(self.client, size - 4)
        if start[:4] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # TLS, GSS: no
            self.client.sendall(b"N")
            size = int.from_bytes(self.read(self.client, 4), "big")
            start = self.read(self.client, size - 4)
        if start[:4] != b"\x04\xd2\x16\x2e":  # no cancel request
            refusal = relay.refuses()
            if refusal is not None:
                self.client.sendall(self.error(*refusal[:2], "FATAL"))
                return
            relay.opened += 1
        self.server.sendall(size.to_bytes(4, "big") + start)
        threading.Thread(target=self.pump, daemon=True).start()
        self._parsed: _Plan | None = None
        while True:
            self._request()

    def _request(self) -> None:
        kind, body = self.message(self.client)
        if kind == b"Q":
            plan = self.relay.take(body)
            if plan is not None:
                self._planned(plan, body)
                return
        elif kind == b"P":
            name, _, rest = body.partition(b"\0")
            sql, _, types = rest.partition(b"\0")
            plan = self.relay.take(sql)
            if plan is not None and plan.instead is None:
                self._skip_to_sync(plan)
                return
            self._parsed = plan
            if plan is not None and plan.instead:
                body = name + b"\0" + plan.instead + b"\0" + types
        elif kind == b"E" and self._parsed is not None:
            plan, self._parsed = self._parsed, None
            self.swallow = self.error(plan.code, plan.text)
        if kind in (b"P", b"S"):
            self.in_batch = kind == b"P"
        self.server.sendall(self.framed(kind, body))

    def _planned(self, plan: _Plan, body: bytes) -> None:
        answer = self.error(plan.code, plan.text, "FATAL" if plan.ends else "ERROR")
        if plan.instead is None:
            state = b"I" if self.in_transaction == b"I" else b"E"
            self.client.sendall(answer + (b"" if plan.ends else self.framed(b"Z", state)))
            if plan.ends:
                raise OSError("as planned")
            return
        self.swallow = answer
        self.server.sendall(self.framed(b"Q", plan.instead + b"\0" if plan.instead else body))

    def _skip_to_sync(self, plan: _Plan) -> None:
        ends = (b"S",) if self.in_batch else (b"S", b"H")
        while self.message(self.client)[0] not in ends:
            pass
        if not self.in_batch or plan.ends:
            self._planned(plan, b"")
            return
        # the server answers what came before
        self.fails, self.in_batch = self.error(plan.code, plan.text), False
        self.server.sendall(self.framed(b"S", b""))

    def forward(self) -> None:
        kind, body = self.message(self.server)
        if kind == b"Z":
            self.in_transaction = body
            answer, self.swallow = self.swallow, None
            if self.fails is not None:
                answer, self.fails = self.fails, None
                body = b"I" if body == b"I" else b"E"
            self.client.sendall((answer or b"") + self.framed(kind, body))
        elif self.swallow is None or kind in b"12":
            self.client.sendall(self.framed(kind, body))


if __name__ == "__main__":
    works = _Works(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    for line in sys.stdin:
        print(json.dumps(works.do(*json.loads(line))), flush=True)
