"""Which socket another thread waits for, as the kernel tells it, and how that wait is ended."""

from __future__ import annotations

import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from unbroken.net import blocked

TCP = frozenset({socket.AF_INET, socket.AF_INET6})

pytestmark = pytest.mark.skipif(
    not blocked.can_tell(), reason="this system does not tell what a thread waits for"
)


class Waiting:
    """A thread inside one call."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self._call = call
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except OSError as error:
            self.result = error

    @property
    def number(self) -> int:
        found = self.thread.native_id
        assert found is not None
        return found

    def end(self, families: frozenset[int] = TCP, seconds: float = 5.0) -> bool:
        end = time.monotonic() + seconds
        while (
            not (done := blocked.end_wait(self.number, families))
            and time.monotonic() < end
            and self.thread.is_alive()
        ):
            time.sleep(0.002)
        return done


def by_selector(sock: socket.socket) -> Any:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(30.0))


def by_poll(sock: socket.socket) -> Any:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(30_000))


def with_timeout(sock: socket.socket) -> Any:
    sock.settimeout(30.0)
    return sock.recv(1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda sock: sock.recv(1),
        with_timeout,
        lambda sock: bool(select.select([sock], [], [], 30.0)[0]),
        by_poll,
        by_selector,
    ],
    ids=["recv", "recv with a timeout", "select", "poll", "epoll"],
)
def test_a_wait_for_one_socket_is_ended_whatever_the_call(
    tcp_pair, wait: Callable[[socket.socket], Any]
) -> None:
    ours, _ = tcp_pair()
    waiting = Waiting(lambda: wait(ours))
    assert waiting.end()
    waiting.thread.join(5.0)
    assert waiting.result in (b"", True)
    assert ours.fileno() >= 0, "it was shut down, and not closed"


def test_a_connect_that_nobody_answers_is_ended() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        with socket.socket() as ours:
            ours.settimeout(30.0)
            waiting = Waiting(lambda: ours.connect(full.getsockname()))
            end = time.monotonic() + 5.0
            while blocked.is_connected(waiting.number) is None and time.monotonic() < end:
                time.sleep(0.002)
            assert blocked.is_connected(waiting.number) is False
            assert waiting.end()
            waiting.thread.join(5.0)
            assert isinstance(waiting.result, OSError)
        for each in fillers:
            each.close()


def test_a_thread_that_waits_for_several_is_left_alone(tcp_pair) -> None:
    (ours, theirs), (other, _) = tcp_pair(), tcp_pair()
    waiting = Waiting(lambda: bool(select.select([ours, other], [], [], 30.0)[0]))
    assert not waiting.end(seconds=0.2)
    theirs.send(b"x")
    waiting.thread.join(5.0)
    assert waiting.result is True


def test_what_is_no_connection_of_that_kind_is_left_alone() -> None:
    left, right = socket.socketpair()
    with left, right, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        for sock, send in (
            (left, lambda: right.send(b"x")),
            (udp, lambda: udp.sendto(b"x", udp.getsockname())),
        ):
            waiting = Waiting(lambda sock=sock: sock.recv(1))
            assert not waiting.end(seconds=0.2)
            send()
            waiting.thread.join(5.0)
            assert waiting.result == b"x"
        waiting = Waiting(lambda: left.recv(1))
        assert waiting.end(TCP | {socket.AF_UNIX})
        waiting.thread.join(5.0)


def test_a_thread_that_works_or_has_ended_is_left_alone() -> None:
    stop = threading.Event()
    waiting = Waiting(lambda: [None for _ in iter(lambda: not stop.is_set(), False)] and None)
    assert not waiting.end(seconds=0.1)
    stop.set()
    waiting.thread.join(5.0)
    assert not blocked.end_wait(waiting.number, TCP)
    assert not blocked.end_wait(-1, TCP)
    assert not blocked.end_wait(2**60, TCP)


def test_it_tells_when_the_server_said_something_last(tcp_pair) -> None:
    ours, theirs = tcp_pair()
    waiting = Waiting(lambda: ours.recv(2, socket.MSG_WAITALL))
    theirs.send(b"x")
    end = time.monotonic() + 5.0
    while blocked.heard_for(waiting.number) is None and time.monotonic() < end:
        time.sleep(0.002)
    assert blocked.is_connected(waiting.number) is True
    first = blocked.heard_for(waiting.number)
    time.sleep(0.1)
    second = blocked.heard_for(waiting.number)
    assert first is not None
    assert second is not None
    assert second >= first + 0.05
    theirs.send(b"y")
    waiting.thread.join(5.0)
    assert blocked.heard_for(waiting.number) is None


def test_memory_that_is_not_there_is_an_error_and_not_the_end_of_the_process() -> None:
    with pytest.raises((OSError, ValueError)):
        blocked._memory(8, 8)
    assert sys.getsizeof(b"") > 0
