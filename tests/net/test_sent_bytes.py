"""net/sent_bytes.py: the count of what was sent, by the kernel's own book."""

from __future__ import annotations

import socket

import pytest

from unbroken.net import sent_bytes
from unbroken.net.keepalive import apply
from unbroken.net.liveness import counter, segments_sent


@pytest.fixture(params=["ctypes", "dup"])
def way(request, monkeypatch):
    if request.param == "dup":
        monkeypatch.setattr(sent_bytes, "_getsockopt", None)
    return request.param


def test_it_grows_with_what_is_sent_and_only_with_that(way, tcp_pair, until):
    ours, theirs = tcp_pair()
    ours.sendall(b"login")
    count = counter(ours.fileno())
    before = count()
    assert before == segments_sent(ours.fileno()) == 5
    theirs.sendall(b"a long answer" * 10_000)
    received = 0
    while received < 130_000:
        received += len(ours.recv(65536))
    assert count() == before, "ACKs are not data"
    ours.sendall(b"x")
    assert count() == before + 1


def test_what_waits_in_the_send_buffer_counts(way, tcp_pair):
    ours, _ = tcp_pair()
    ours.setblocking(False)
    ours.send(b"login")
    count = counter(ours.fileno())
    try:
        while True:  # until the other side's window and our buffer are full
            ours.send(b"x" * 65536)
    except BlockingIOError:
        pass
    blocked = count()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_000_000)
    assert ours.send(b"more") == 4
    assert count() == blocked + 4


def test_keepalive_probes_do_not_count(way, tcp_pair, until):
    ours, _ = tcp_pair()
    ours.sendall(b"login")
    count = counter(ours.fileno())
    before = count()
    assert apply(ours.fileno(), 1, 1)

    def segments_out() -> int:
        return int.from_bytes(ours.getsockopt(socket.IPPROTO_TCP, 11, 140)[136:140], "little")

    start = segments_out()
    until(lambda: segments_out() > start)
    assert count() == before


def test_it_is_unknown_where_nothing_counts(way, tcp_pair):
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"x")
        assert segments_sent(left.fileno()) is None
    fresh, _ = tcp_pair()
    assert segments_sent(fresh.fileno()) is None, (
        "a connection that sent nothing has not logged in: this kernel does not count"
    )
    fd = fresh.fileno()
    fresh.sendall(b"x")
    count = counter(fd)
    assert count() == 1
    fresh.close()
    assert count() is None
    assert segments_sent(fd) is None
    assert segments_sent(None) is None
    assert segments_sent(-1) is None


def test_it_never_closes_the_descriptor(way, tcp_pair, descriptors):
    ours, theirs = tcp_pair()
    ours.sendall(b"x")
    fd = ours.fileno()
    before = descriptors()
    for _ in range(50):
        segments_sent(fd)
    assert descriptors() <= before
    theirs.sendall(b"still there")
    assert ours.recv(100) == b"still there"
