"""net/keepalive.py on the sockets of real drivers."""

from __future__ import annotations

import math
import socket

import pytest

from unbroken.net.keepalive import apply


def options(sock: socket.socket) -> tuple[int, ...]:
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    keepalive = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return (keepalive, *(sock.getsockopt(socket.IPPROTO_TCP, name) for name in names))


def test_it_sets_what_it_is_given(tcp_pair):
    ours, _ = tcp_pair()
    assert apply(ours.fileno(), 30, 5, 4, 20.5)
    assert options(ours) == (1, 30, 5, 4, 20500)


def test_the_interval_follows_from_the_idle_time_and_fractions_are_rounded_up(tcp_pair):
    ours, _ = tcp_pair()
    assert apply(ours.fileno(), 30)
    assert options(ours) == (1, 30, 10, 3, 0)
    assert apply(ours.fileno(), 0.2, 0.1)
    assert options(ours)[:3] == (1, 1, 1)
    assert apply(ours.fileno(), 1e9, count=1000)
    assert options(ours)[:4] == (1, 32767, 32767, 127)


def test_ipv6_is_tcp_too():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        ours = socket.create_connection(listener.getsockname()[:2])
    with ours:
        assert apply(ours.fileno(), 7)
        assert options(ours)[:2] == (1, 7)


def test_what_is_not_a_tcp_connection_is_left_alone(tcp_pair, tmp_path):
    left, right = socket.socketpair()
    with (
        left,
        right,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        open(tmp_path / "file", "w") as file,
    ):
        for fd in (left.fileno(), udp.fileno(), file.fileno(), -1):
            assert not apply(fd, 30)
    ours, _ = tcp_pair()
    fd = ours.fileno()
    ours.close()
    assert not apply(fd, 30)


def test_impossible_numbers_change_nothing_and_raise_nothing(tcp_pair):
    ours, _ = tcp_pair()
    before = options(ours)
    assert not apply(ours.fileno(), math.nan)
    assert not apply(ours.fileno(), math.inf)
    assert not apply(ours.fileno(), 30, count=0)
    assert options(ours) == before


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient", "psycopg"])
def test_it_reaches_the_socket_of_any_driver_and_leaves_it_open(driver, request, sessions):
    server = request.getfixturevalue("postgres" if driver == "psycopg" else "mariadb")
    conn = getattr(sessions, driver)(server)
    assert apply(sessions.fd(conn), 42, 7, 2, 9)
    with socket.fromfd(sessions.fd(conn), socket.AF_INET, socket.SOCK_STREAM) as copy:
        assert options(copy) == (1, 42, 7, 2, 9000)
    assert sessions.ask(conn, "SELECT 1") == 1
