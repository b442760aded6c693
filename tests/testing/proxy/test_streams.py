"""Whatever is done to a connection, what arrives is a beginning of what was sent; healed, it is all
of it.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from unbroken_drill import FaultProxy

from .conftest import until


class Echo:
    """A server that sends back what it hears."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=600)
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(
                    target=self._serve, args=(self._listener.accept()[0],), daemon=True
                ).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(65536):
                sock.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with contextlib.closing(Echo()) as made:
        yield made


class Talker:
    """A client that sends numbered bytes, and keeps what comes back."""

    def __init__(self, address: Any, size: int, seed: int) -> None:
        self.sent = random.Random(seed).randbytes(size)
        self.heard = bytearray()
        self.lost: OSError | None = None
        self.ended = False
        self.sock = socket.create_connection(address, 60)
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._send, self._hear)
        ]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            for at in range(0, len(self.sent), 1000):
                self.sock.sendall(self.sent[at : at + 1000])

    def _hear(self) -> None:
        try:
            while len(self.heard) < len(self.sent):
                data = self.sock.recv(65536)
                if not data:
                    self.ended = True
                    return
                self.heard += data
        except OSError as error:
            self.lost = error

    @property
    def is_done(self) -> bool:
        return not self._threads[1].is_alive()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self.sock.close()


#: What loses nothing, and what ends connections or loses bytes.
GENTLE: list[Callable[[FaultProxy, random.Random], Any]] = [
    lambda proxy, dice: proxy.blackhole("hold", way=dice.choice(["both", "up", "down"])),
    lambda proxy, dice: proxy.stall(way=dice.choice(["both", "up", "down"])),
    lambda proxy, dice: proxy.latency(dice.uniform(0, 0.02), jitter=dice.uniform(0, 0.02)),
    lambda proxy, dice: proxy.throttle(dice.uniform(1e5, 1e7)),
    lambda proxy, dice: proxy.slice(dice.randint(1, 3000), gap=dice.choice([0.0, 0.0001])),
    lambda proxy, dice: proxy.heal(dice.choice([1, 2, 3])),
    lambda proxy, dice: proxy.refuse(),
]
ROUGH = [
    *GENTLE,
    lambda proxy, dice: proxy.blackhole("drop"),
    lambda proxy, dice: proxy.rst(dice.choice(["existing", 1, 2])),
    lambda proxy, dice: proxy.fin(dice.choice(["existing", 1, 2])),
    lambda proxy, dice: proxy.half_close(2),
    lambda proxy, dice: proxy.cut_after(bytes=dice.randint(1, 100_000)),
    lambda proxy, dice: proxy.cut_after(seconds=dice.uniform(0, 0.05), how="rst"),
    lambda proxy, dice: proxy.idle_limit(0.05, reset=dice.random() < 0.5),
]


@pytest.mark.parametrize("seed", range(6))
def test_what_was_only_slowed_and_silenced_arrives_whole(echo: Echo, seed: int) -> None:
    dice = random.Random(seed)
    with FaultProxy(echo.address, seed=seed) as proxy:
        proxy.throttle(500_000)  # else all would have passed before the first verb
        talkers = [Talker(proxy.address, 300_000, seed + each) for each in range(3)]
        until(lambda: len(proxy.connections) == 3)  # refuse() ends what still waits to be accepted
        for _ in range(15):
            dice.choice(GENTLE)(proxy, dice)
            threading.Event().wait(dice.uniform(0, 0.02))
        proxy.heal()
        until(lambda: all(talker.is_done for talker in talkers), 60)
        assert [(bytes(talker.heard) == talker.sent, talker.lost) for talker in talkers] == [
            (True, None)
        ] * 3
        assert not [event for event in proxy.events if event.name == "failed"]
        for talker in talkers:
            talker.close()
        until(lambda: all(info.state == "closed" for info in proxy.connections))
        assert all(
            (info.to_server, info.to_client, info.held) == (300_000, 300_000, 0)
            for info in proxy.connections
        )


@pytest.mark.parametrize("seed", range(6))
def test_what_was_broken_is_a_beginning_of_what_was_sent_and_never_hangs_once_healed(
    echo: Echo, seed: int
) -> None:
    dice = random.Random(seed)
    with FaultProxy(echo.address, seed=seed) as proxy:
        proxy.throttle(500_000)
        talkers = [Talker(proxy.address, 300_000, seed + each) for each in range(3)]
        until(lambda: len(proxy.connections) == 3)
        for _ in range(10):
            with contextlib.suppress(Exception):  # a connection that is closed already
                dice.choice(ROUGH)(proxy, dice)
            threading.Event().wait(dice.uniform(0, 0.02))
        proxy.heal()
        until(lambda: all(talker.is_done for talker in talkers), 60)
        for talker in talkers:
            assert talker.sent.startswith(bytes(talker.heard))
            assert bytes(talker.heard) == talker.sent or talker.lost is not None or talker.ended
            talker.close()
        assert not [event for event in proxy.events if event.name == "failed"]
        with socket.create_connection(proxy.address, 20) as late:
            late.sendall(b"well")
            assert late.recv(4) == b"well"


def test_what_the_client_sends_before_it_closes_arrives(echo: Echo) -> None:
    """An end is passed on behind the bytes that came before it, also when these are late."""
    with FaultProxy(echo.address) as proxy, socket.create_connection(proxy.address, 20) as client:
        proxy.latency(0.05)
        client.sendall(b"x" * 50_000)
        client.shutdown(socket.SHUT_WR)
        heard = b""
        while data := client.recv(65536):
            heard += data
        assert len(heard) == 50_000
        until(lambda: proxy.connections[0].state == "closed")
        assert proxy.connections[0].reason == "the client closed it"


def test_a_reader_that_is_slow_slows_the_sender_and_loses_nothing(echo: Echo) -> None:
    with FaultProxy(echo.address) as proxy:
        talker = Talker(proxy.address, 8_000_000, 1)
        until(lambda: talker.is_done, 60)
        assert bytes(talker.heard) == talker.sent
        talker.close()


def test_hundreds_of_connections_at_once(echo: Echo) -> None:
    with FaultProxy(echo.address) as proxy, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(proxy.address, 30)) for _ in range(300)
        ]
        for client in clients:
            client.sendall(b"hello")
        assert {client.recv(5) for client in clients} == {b"hello"}
        proxy.rst()
        for client in clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert {info.state for info in proxy.connections} == {"closed"}
