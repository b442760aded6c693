"""Something else than a database of the pool's kind listens at its address."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest

import unbroken
from unbroken import ConnectRejectedError, OutageError, PoolTimeoutError
from unbroken.net.greeting import first_words

#: Seconds within which something is told "at once".
AT_ONCE = 2.0
HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
#: What others say: unasked; to a line; before they have read anything, and then they hang up.
STRANGERS: dict[str, tuple[bytes, bytes, bool]] = {
    "ssh": (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"", False),
    "smtp": (b"220 mail.example ESMTP Postfix\r\n", b"", False),
    "http": (b"", HTTP, True),
    "http at once": (HTTP, b"", True),
    "redis": (b"", b"-ERR unknown command\r\n", False),
    "tls": (b"", b"\x15\x03\x01\x00\x02\x02\x46", True),
}


class Port:
    """A port where something listens that says *first*, and *then* to what it is sent."""

    def __init__(
        self, first: bytes = b"", then: bytes = b"", hangs_up: bool = False, number: int = 0
    ) -> None:
        self.first, self.then, self.hangs_up = first, then, hangs_up
        self.server = socket.create_server(("127.0.0.1", number))
        self.number: int = self.server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with closing(sock), suppress(OSError):
            sock.sendall(self.first)
            while self.then and not self.first:
                said = sock.recv(1000)
                if not said:
                    return
                if b"\n" in said or self.then[:1] == b"\x15":
                    sock.sendall(self.then)
                    break
            if not self.hangs_up:
                while sock.recv(1000):
                    pass

    def close(self) -> None:
        with suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


@pytest.fixture
def port() -> Iterator[Callable[..., Port]]:
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(closing(Port(*args)))


def at(face: Any, number: int) -> str:
    url: str = face.url().replace(f":{face.server.port}/", f":{number}/")
    return url


def name_of(face: Any) -> str:
    return "MySQL" if face.is_mysql else "PostgreSQL"


def told(pool: Any, face: Any) -> str:
    """What an acquire is told, at once."""
    started = time.monotonic()
    with pytest.raises(ConnectRejectedError) as caught:
        pool.acquire()
    assert time.monotonic() - started < AT_ONCE
    text = str(caught.value)
    assert f"answers, but is not a {name_of(face)} server: it sent" in text
    assert "\n" not in text
    assert text.isprintable()
    return text


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_is_shown_at_once_with_its_first_bytes(
    face: Any, port: Callable[..., Port], kind: str
) -> None:
    first, then, hangs_up = STRANGERS[kind]
    pool = face.pool(at(face, port(first, then, hangs_up).number))
    for _ in range(2):
        text = told(pool, face)
        assert f"({kind.partition(' ')[0].upper()}?)".lower() in text.lower()
    assert pool.stats().away_for == 0.0


def test_a_database_of_another_make_is_a_stranger(face: Any, request: Any) -> None:
    other = request.getfixturevalue("postgres" if face.is_mysql else "mariadb")
    text = told(face.pool(at(face, other.port)), face)
    assert ("PostgreSQL?" if face.is_mysql else "MySQL?") in text


def test_a_pool_of_the_right_kind_is_served_beside_one_of_the_wrong_kind(
    face: Any, request: Any
) -> None:
    other = request.getfixturevalue("postgres" if face.is_mysql else "mariadb")
    scheme = "postgresql+psycopg" if face.is_mysql else "mysql+pymysql"
    wrong = face.pool(at(face, other.port))
    right = face.pool(other.url(scheme.partition("+")[2]))
    told(wrong, face)
    started = time.monotonic()
    right.release(right.acquire())
    assert time.monotonic() - started < 1.0
    assert right.stats().outages == 0


def test_the_same_beside_an_event_loop(body: Any, port: Callable[..., Port]) -> None:
    numbers = [port(*STRANGERS[kind]).number for kind in ("ssh", "http", "redis")]

    async def main() -> None:
        pools = []
        for number in numbers:
            url = body.server.url(body.name).replace(f":{body.server.port}/", f":{number}/")
            pools.append(body.pool(url=url))
        started = time.monotonic()
        for error in await asyncio.gather(*(body.outcome(each.acquire()) for each in pools)):
            assert isinstance(error, ConnectRejectedError), error
            assert "answers, but is not a" in str(error)
        assert time.monotonic() - started < AT_ONCE
        for each in pools:
            await each.close(timeout=0)

    body.run(main())


@pytest.mark.parametrize("hangs_up", [True, False])
def test_a_port_that_hangs_up_or_is_silent_is_an_outage(
    face: Any, port: Callable[..., Port], hangs_up: bool
) -> None:
    """So does a proxy whose servers are starting."""
    url = at(face, port(b"", b"", hangs_up).number)
    pool = face.pool(url, outage_wait=0.5, acquire_timeout=1.5)
    with pytest.raises((OutageError, PoolTimeoutError)) as caught:
        pool.acquire()
    assert "answers, but is not a" not in str(caught.value)


def test_a_pool_that_has_connected_waits_until_its_server_is_there_again(
    own_face: Any, until: Any
) -> None:
    """A proxy may put anything in its place for a moment."""
    face = own_face
    pool = face.pool(outage_wait=10, acquire_timeout=10)
    pool.check()
    face.server.stop()
    served: list[Any] = []
    waiter = threading.Thread(
        target=lambda: served.append(pool.run(lambda conn: face.ask(conn, "SELECT 1")))
    )
    with closing(Port(*STRANGERS["http at once"], number=face.server.port)):
        waiter.start()
        until(lambda: pool.stats().connect_failures >= 3)
        assert not served
    face.server.start()
    waiter.join(10)
    assert served == [1]


def test_it_is_not_asked_of_a_server_that_answers_in_its_own_way(face: Any) -> None:
    url = face.url().replace(f":{face.server.password}@", ":wrong@")
    pool = face.pool(url)
    with pytest.raises(unbroken.ConnectRejectedError) as caught:
        pool.acquire()
    assert "answers, but is not a" not in str(caught.value)
    assert pool._state.stranger[0] is None


def test_a_host_that_cannot_be_one_says_nothing() -> None:
    assert first_words(("a..b", 3306), "mysql", (b"",)) == b""
