"""Each verb of the fault proxy, against real servers, plain and with TLS, seen from outside: by the
kernel and by the server.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from unbroken_drill import FaultProxy, ProxyError

from .conftest import CLOSE_WAIT, CLOSED, ESTABLISHED, SYN_SENT, Asked, Kernel, Line, until

LOST = (pymysql.err.OperationalError, psycopg.OperationalError)
SLOW = 0.2  #: seconds in which an answer would have come, many times over


def quiet(asked: Asked) -> None:
    """No answer comes, though it would have long."""
    deadline = time.monotonic() + SLOW
    while time.monotonic() < deadline:
        assert asked.is_waiting, asked.answer
        time.sleep(0.01)


# -- ends ------------------------------------------------------------------------------------------


def test_an_idle_connection_gets_the_reset_at_once(line: Line) -> None:
    client = line.client()
    line.proxy.rst()
    until(lambda: client.kernel.state == CLOSED)
    assert client.kernel.error == errno.ECONNRESET
    until(lambda: not line.server.sessions())
    with pytest.raises(LOST):
        client.ask()
    assert line.client().ask() == 1  # those to come are well


def test_an_idle_connection_gets_the_fin_at_once(line: Line) -> None:
    client = line.client()
    line.proxy.fin()
    until(lambda: client.kernel.state == CLOSE_WAIT)
    assert client.kernel.error == 0
    until(lambda: not line.server.sessions())
    assert line.client().ask() == 1


def test_half_closed_the_client_reads_an_end_and_the_server_still_hears_it(
    plain_line: Line,
) -> None:
    client, table = plain_line.client(), plain_line.table()
    plain_line.proxy.half_close()
    until(lambda: client.kernel.state == CLOSE_WAIT)
    statement = f"INSERT INTO {table} VALUES (7)".encode()
    if plain_line.is_mysql:
        message = (len(statement) + 1).to_bytes(3, "little") + b"\0\x03" + statement
    else:
        message = b"Q" + (len(statement) + 5).to_bytes(4, "big") + statement + b"\0"
    os.write(client.fd, message)
    until(lambda: plain_line.stored(table) == [7])
    assert plain_line.info(1).state == "half closed"
    assert plain_line.server.sessions()


def test_after_so_many_bytes_exactly_it_is_cut(line: Line) -> None:
    client = line.client()
    before, heard = line.info(1), client.kernel.bytes_in
    line.proxy.cut_after(bytes=5000)
    with pytest.raises(LOST):
        client.ask(line.wide(100_000))
    after = line.info(1)
    assert after.to_server + after.to_client - before.to_server - before.to_client == 5000
    # the kernel counts the FIN
    assert client.kernel.bytes_in - heard == after.to_client - before.to_client + 1
    assert after.reason == "cut after 5000 bytes"


def test_after_so_many_seconds_it_is_cut_though_data_flows(line: Line) -> None:
    client = line.client()
    began = time.monotonic()
    line.proxy.cut_after(seconds=0.2, how="rst")
    with pytest.raises(LOST):
        while time.monotonic() < began + 15:
            client.ask()
    assert time.monotonic() - began >= 0.2
    until(lambda: client.kernel.state == CLOSED)
    line.proxy.heal()
    assert line.client().ask() == 1


# -- silence ---------------------------------------------------------------------------------------


def test_a_black_hole_that_holds_heals_and_what_was_held_arrives(line: Line) -> None:
    client = line.client()
    before = line.info(1)
    line.proxy.blackhole("hold")
    asked = client.in_background("SELECT 5")
    quiet(asked)
    during = line.info(1)
    assert (during.to_server, during.to_client) == (before.to_server, before.to_client)
    assert during.held > 0
    assert client.kernel.state == ESTABLISHED
    line.proxy.heal()
    assert asked.wait() == 5
    assert client.ask() == 1
    assert line.info(1).held == 0


def test_a_black_hole_that_drops_heals_for_those_who_lost_nothing_and_resets_those_who_did(
    line: Line,
) -> None:
    silent, speaking = line.client(), line.client()
    line.proxy.blackhole("drop")
    asked = speaking.in_background()
    quiet(asked)
    assert line.info(2).dropped > 0
    assert speaking.kernel.state == silent.kernel.state == ESTABLISHED
    line.proxy.heal()
    assert isinstance(asked.wait(), LOST)
    assert silent.ask() == line.client().ask() == 1
    assert "dropped and cannot be sent again" in line.info(2).reason


def test_what_is_lost_below_tcp_is_not_acknowledged_and_is_sent_again_once_healed(
    line: Line,
) -> None:
    client = line.client()
    line.proxy.blackhole("lose")
    asked = client.in_background("SELECT 5")
    until(lambda: client.kernel.unacknowledged > 0)
    quiet(asked)
    assert client.kernel.unacknowledged > 0
    line.proxy.heal()
    assert asked.wait(30) == 5


def test_a_connect_into_the_loss_hangs_and_those_that_were_not_meant_go_on(line: Line) -> None:
    client, other = line.client(), line.client()
    line.proxy.blackhole("lose", on=1)
    asked = client.in_background()
    assert other.ask() == line.client().ask() == 1
    line.proxy.blackhole("lose", on="new")
    with socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((line.proxy.host, line.proxy.port)) == errno.EINPROGRESS
        kernel = Kernel(sock.fileno())
        quiet(asked)
        assert kernel.state == SYN_SENT
        assert other.ask() == 1
        line.proxy.heal()
        until(lambda: kernel.state == ESTABLISHED)
        kernel.close()
    assert asked.wait(30) == 1


@pytest.mark.parametrize("rate", [0.0, 20.0])
def test_after_so_many_bytes_of_the_server_hardly_anything_comes(line: Line, rate: float) -> None:
    line.proxy.quiet_after(30, rate=rate)
    asked = Asked(lambda: line.connect().close())
    until(lambda: line.proxy.connections and line.info(1).to_client >= 30 + bool(rate))
    quiet(asked)
    assert line.info(1).to_client <= (30 if not rate else 100)
    line.proxy.heal()
    assert asked.wait() is None


def test_a_connection_made_in_a_black_hole_hears_nothing_until_it_is_healed(line: Line) -> None:
    line.proxy.blackhole("hold")
    asked = Asked(lambda: line.connect().close())
    until(lambda: line.proxy.connections)
    quiet(asked)
    line.proxy.heal()
    assert asked.wait() is None


def test_a_black_hole_of_one_way_lets_the_other_pass(line: Line) -> None:
    client, table = line.client(), line.table()
    line.proxy.blackhole("hold", way="down")
    asked = client.in_background(f"INSERT INTO {table} VALUES (1)")
    until(lambda: line.stored(table) == [1])
    quiet(asked)
    line.proxy.heal()
    assert asked.wait() is None


def test_a_stalled_sender_is_stuck_with_its_bytes_until_healed(line: Line) -> None:
    client = line.client()
    before = line.info(1).to_server
    line.proxy.stall()
    asked = client.in_background(f"SELECT LENGTH('{'x' * 12_000_000}')")
    until(lambda: client.kernel.unsent > 0)
    quiet(asked)
    assert line.info(1).to_server == before
    assert client.kernel.unsent > 0
    line.proxy.heal()
    assert asked.wait() == 12_000_000


def test_an_idle_connection_is_forgotten_without_a_word_and_a_busy_one_is_not(line: Line) -> None:
    idle, busy = line.client(), line.client()
    line.proxy.idle_limit(1.0)
    until(lambda: busy.ask() and any(event.name == "forgotten" for event in line.proxy.events))
    asked = idle.in_background()
    assert busy.ask() == 1
    quiet(asked)
    assert idle.kernel.state == ESTABLISHED
    assert len(line.server.sessions()) == 2  # the server was not told either
    assert [event.n for event in line.proxy.events if event.name == "forgotten"] == [1]
    line.proxy.heal()
    assert isinstance(asked.wait(), LOST)


def test_an_idle_connection_is_reset_by_a_balancer(line: Line) -> None:
    client = line.client()
    line.proxy.idle_limit(0.2, reset=True)
    until(lambda: client.kernel.state == CLOSED)
    assert client.kernel.error == errno.ECONNRESET
    until(lambda: not line.server.sessions())


# -- slowness --------------------------------------------------------------------------------------


def took(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_latency_is_added_each_way(line: Line) -> None:
    client = line.client()
    line.proxy.latency(0.05, jitter=0.01)
    assert took(client.ask) >= 2 * (0.05 - 0.01)
    line.proxy.latency(0.1, way="down")
    line.proxy.latency(0.0, way="up")
    assert took(client.ask) >= 0.1
    slow = took(client.ask)
    line.proxy.heal()
    assert min(took(client.ask) for _ in range(5)) < slow


def test_a_latency_below_a_millisecond_is_as_short_as_it_says(line: Line) -> None:
    client = line.client()
    client.ask()

    def quickest(seconds: float) -> float:
        line.proxy.latency(seconds)
        return min(took(client.ask) for _ in range(40))

    assert quickest(0.0004) < 0.75 * quickest(0.001)


def test_a_throttle_takes_its_time_for_every_byte(line: Line) -> None:
    client = line.client()
    line.proxy.throttle(200_000)
    began, heard = time.monotonic(), client.kernel.bytes_in
    assert len(client.ask(line.wide(100_000))) == 100_000
    crossed = client.kernel.bytes_in - heard
    assert crossed >= 100_000
    assert time.monotonic() - began >= (crossed - 200_000 * 0.02) / 200_000 * 0.99


def test_slices_arrive_as_segments_of_their_own(line: Line) -> None:
    client = line.client()
    line.proxy.slice(200, gap=0.0005)
    before = client.kernel.segments_in
    assert len(client.ask(line.wide(10_000))) == 10_000
    assert client.kernel.segments_in - before >= 10_000 / 200 * 0.9  # two may meet in a queue
    line.proxy.heal()
    before = client.kernel.segments_in
    client.ask(line.wide(10_000))
    assert client.kernel.segments_in - before < 10_000 / 200 / 2


# -- connecting ------------------------------------------------------------------------------------


def test_refused_connects_are_refused_by_the_kernel_and_the_port_stays_ours(line: Line) -> None:
    client = line.client()
    line.proxy.refuse()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((line.proxy.host, line.proxy.port), 5)
    with pytest.raises(OSError, match="in use"), socket.socket() as thief:
        thief.bind((line.proxy.host, line.proxy.port))
    assert client.ask() == 1  # those that there are go on
    line.proxy.heal()
    assert line.client().ask() == 1


def test_a_connect_hangs_until_healed_and_then_comes_through(plain_line: Line) -> None:
    client = plain_line.client()
    plain_line.proxy.hang_connect()
    sock = socket.socket()
    sock.setblocking(False)
    assert sock.connect_ex((plain_line.proxy.host, plain_line.proxy.port)) == errno.EINPROGRESS
    kernel = Kernel(sock.fileno())
    end = time.monotonic() + SLOW
    while time.monotonic() < end:
        assert kernel.state == SYN_SENT
        time.sleep(0.01)
    assert client.ask() == 1
    plain_line.proxy.heal()
    until(lambda: kernel.state == ESTABLISHED)  # its kernel tries again after a second
    assert plain_line.client().ask() == 1
    # and nobody else was taken for a client
    assert [info.n for info in plain_line.proxy.connections] == [1, 2, 3]
    kernel.close()
    sock.close()


def test_the_next_two_fail_and_those_after_them_are_well(line: Line) -> None:
    line.proxy.fail_next(2)
    for _ in range(2):
        with pytest.raises(LOST):
            line.connect()
    assert line.client().ask() == 1


def test_a_server_that_refuses_is_a_reset_to_the_client_and_an_event(plain_line: Line) -> None:
    with FaultProxy(("127.0.0.1", 9)) as proxy:
        with pytest.raises(LOST):
            plain_line.connect(port=proxy.port)
        (event,) = [event for event in proxy.events if event.name == "connect failed"]
        assert "Connection refused" in event.text


# -- which ones ------------------------------------------------------------------------------------


def test_a_verb_reaches_those_that_were_meant(plain_line: Line) -> None:
    first, second = plain_line.client(), plain_line.client()
    plain_line.proxy.fin(2)
    until(lambda: second.kernel.state == CLOSE_WAIT)
    assert first.ask() == 1
    plain_line.proxy.rst("new")
    with pytest.raises(LOST):
        plain_line.connect()
    assert first.ask() == 1
    plain_line.proxy.heal()
    plain_line.proxy.latency(0.2, on=4)  # one that is not there yet
    slow, quick = plain_line.client(), plain_line.client()
    plain_line.proxy.latency(0.0, on="existing")
    plain_line.proxy.latency(0.1, on=4)
    delayed = took(slow.ask)
    assert delayed >= 0.2
    assert min(took(quick.ask) for _ in range(5)) < delayed
    plain_line.proxy.heal(4)
    assert min(took(slow.ask) for _ in range(5)) < delayed
    with pytest.raises(
        ProxyError, match="connection 2 is already closed; open connections: 1, 4, 5"
    ):
        plain_line.proxy.rst(2)


def test_verbs_add_up_until_they_are_healed(plain_line: Line) -> None:
    plain_line.proxy.latency(0.05)
    plain_line.proxy.slice(100)
    plain_line.proxy.cut_after(seconds=60)
    client = plain_line.client()
    before = client.kernel.segments_in
    assert took(lambda: client.ask(plain_line.wide(2000))) >= 0.1
    assert client.kernel.segments_in - before >= 18


def test_what_the_client_closes_is_closed_at_the_server_and_counted(line: Line) -> None:
    client = line.client()
    client.ask()
    assert line.info(1).to_client == client.kernel.bytes_in
    client.kernel.close()
    client.conn.close()
    until(lambda: not line.server.sessions())
    until(lambda: line.info(1).state == "closed")
    info = line.info(1)
    assert info.opened < info.closed
    assert [event.name for event in line.proxy.events][:3] == ["listening", "accepted", "connected"]


def test_what_the_server_ends_ends_at_the_client(line: Line) -> None:
    client = line.client()
    line.server.kill_sessions()
    until(lambda: client.kernel.state in (CLOSE_WAIT, CLOSED))


# -- unix sockets, asyncio, forks ------------------------------------------------------------------


def test_unix_sockets_at_both_ends(plain_line: Line, tmp_path: Path) -> None:
    server = plain_line.server
    name = "s" if plain_line.is_mysql else ".s.PGSQL.5432"
    here = str(tmp_path / name)
    with FaultProxy(server.unix_socket, here) as proxy:
        assert proxy.address == here
        if plain_line.is_mysql:

            def connect() -> Any:
                return pymysql.connect(
                    unix_socket=here,
                    user=server.user,
                    password=server.password,
                    database=server.database,
                )

        else:

            def connect() -> Any:
                return psycopg.connect(proxy.url(server.url()), password=server.password)

        conn = connect()
        conn.cursor().execute("SELECT 1")
        proxy.rst()
        with pytest.raises(LOST):
            conn.cursor().execute("SELECT 1")
        proxy.refuse()
        with pytest.raises(LOST):
            connect()
        proxy.heal()
        connect().close()
        with pytest.raises(ProxyError, match=r"cannot listen on .*in use"):
            FaultProxy(server.unix_socket, here).start()
    assert not os.path.exists(here)


def test_a_socket_file_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    here = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(here)
    with FaultProxy(("127.0.0.1", 9), here), socket.socket(socket.AF_UNIX) as client:
        client.connect(here)


def test_on_a_unix_socket_a_connect_hangs_too_until_healed(
    plain_line: Line, tmp_path: Path
) -> None:
    here = str(tmp_path / "s")
    with (
        FaultProxy(plain_line.server.unix_socket, here) as proxy,
        socket.socket(socket.AF_UNIX) as client,
    ):
        proxy.hang_connect()
        asked = Asked(lambda: client.connect(here))
        quiet(asked)
        proxy.heal()
        assert asked.wait() is None
        # and nobody else was taken for a client
        until(lambda: [info.state for info in proxy.connections] == ["open"])


def test_it_serves_asyncio_and_its_verbs_may_be_called_in_the_loop(plain_line: Line) -> None:
    server = plain_line.server

    async def main() -> None:
        async with FaultProxy((server.host, server.port)) as proxy:
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            if plain_line.is_mysql:
                assert await reader.read(4)
            proxy.rst()
            with pytest.raises(ConnectionResetError):
                while await reader.read(100):
                    pass
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_forked_child_holds_nothing_of_it_open(plain_line: Line) -> None:
    client = plain_line.client()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            plain_line.proxy.rst()
            os.write(writer, b"no error")
        except ProxyError as error:
            os.write(writer, str(error).encode())
        os.close(writer)
        time.sleep(30)
        os._exit(0)
    try:
        assert b"runs in process" in os.read(reader, 1000)
        assert client.ask() == 1
        plain_line.proxy.rst()
        until(lambda: client.kernel.state == CLOSED)
        assert client.kernel.error == errno.ECONNRESET
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_closed_it_leaves_nothing_and_says_so(plain_line: Line) -> None:
    client, proxy = plain_line.client(), plain_line.proxy
    descriptors = len(os.listdir("/proc/self/fd"))
    proxy.close()
    until(lambda: client.kernel.state == CLOSE_WAIT)
    assert len(os.listdir("/proc/self/fd")) < descriptors
    with pytest.raises(ProxyError, match="is closed; create a new one"):
        proxy.rst()
    with pytest.raises(ProxyError, match="was already started"):
        proxy.start()
    assert proxy.connections[0].state == "closed"
    assert proxy.events[-1].name == "closed"
    with pytest.raises(ProxyError, match="was not started"):
        FaultProxy(("127.0.0.1", 9)).rst()


def test_a_name_that_nobody_knows_and_an_address_that_is_taken_are_said(plain_line: Line) -> None:
    with pytest.raises(ProxyError, match=r"cannot resolve 'no-such-host\.invalid'"):
        FaultProxy(("no-such-host.invalid", 1)).start()
    with pytest.raises(ProxyError, match=r"cannot listen on .* in use; choose another"):
        FaultProxy(("127.0.0.1", 9), (plain_line.proxy.host, plain_line.proxy.port)).start()


def script(text: str, *arguments: object) -> str:
    """What *text* prints, in an interpreter of its own."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def has_ipv6() -> bool:
    """Whether this machine can listen on ::1; containers often cannot."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_a_name_with_several_addresses_is_tried_through_and_ipv6_is_listened_on() -> None:
    # localhost may be ::1 first, where nobody listens
    server = socket.create_server(("127.0.0.1", 0))
    six = has_ipv6()
    with (
        server,
        FaultProxy(
            ("localhost", server.getsockname()[1]), ("::1" if six else "127.0.0.1", 0)
        ) as proxy,
    ):
        host = "[::1]" if six else "127.0.0.1"
        assert proxy.url("mysql://app:x@db/shop") == f"mysql://app:x@{host}:{proxy.port}/shop"
        with socket.create_connection((proxy.host, proxy.port), 10) as client:
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            assert client.recv(5) == b"hello"
            accepted.close()


def test_out_of_descriptors_it_waits_for_some_and_goes_on() -> None:
    said = script("""
        import resource, socket, time
        from unbroken_drill import FaultProxy

        def wait(condition):
            deadline = time.monotonic() + 30
            while not condition():
                assert time.monotonic() < deadline, proxy.events
                time.sleep(0.01)

        with socket.create_server(("127.0.0.1", 0), backlog=100) as server, FaultProxy(server.getsockname()) as proxy:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
            clients = []
            try:
                while True:
                    clients.append(socket.create_connection((proxy.host, proxy.port), 20))
            except OSError:
                pass  # none is left for anybody
            wait(lambda: any(event.name.endswith("failed") for event in proxy.events))
            tries = len(proxy.events)
            for each in clients:
                each.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with socket.create_connection((proxy.host, proxy.port), 20) as late:
                wait(lambda: any(i.peer.endswith(f":{late.getsockname()[1]}") and i.state == "open" for i in proxy.connections))
            print("spun" if tries > 2000 else "waited")
        """)  # noqa: E501
    assert said == "waited"


def test_it_works_where_gevent_has_patched_everything(plain_line: Line) -> None:
    server = plain_line.server
    assert (
        script(
            """
            from gevent import monkey
            monkey.patch_all()
            import sys
            import unbroken
            from unbroken_drill import FaultProxy

            with FaultProxy(("127.0.0.1", int(sys.argv[2]))) as proxy, unbroken.Pool(proxy.url(sys.argv[1])) as pool:
                for _ in range(3):
                    with pool.connection() as conn:
                        conn.cursor().execute("SELECT 1")
                    proxy.rst()
                print(len(proxy.connections) >= 3)  # a slow machine may try a connect twice
            """,  # noqa: E501
            server.url("pymysql" if plain_line.is_mysql else "psycopg"),
            server.port,
        )
        == "True"
    )
