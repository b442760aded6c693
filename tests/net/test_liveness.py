"""net/liveness.py on real sockets and real servers."""

from __future__ import annotations

import select
import socket

import pytest

from unbroken.net import liveness
from unbroken.net.liveness import Liveness, judge, look, poller, sweep


def test_a_quiet_socket_is_alive(tcp_pair):
    ours, _ = tcp_pair()
    assert look(ours.fileno()) is Liveness.ALIVE
    assert poller(ours.fileno())(0) == []


def test_a_fin_is_death(tcp_pair, until):
    ours, theirs = tcp_pair()
    poll = poller(ours.fileno())
    theirs.close()
    until(lambda: look(ours.fileno()) is Liveness.DEAD)
    assert judge(poll(0)) is Liveness.DEAD


def test_a_rst_is_death(tcp_pair, until, reset):
    ours, theirs = tcp_pair()
    reset(theirs)
    until(lambda: look(ours.fileno()) is Liveness.DEAD)


def test_something_to_read_is_undecided(tcp_pair, until):
    ours, theirs = tcp_pair()
    theirs.sendall(b"a notification")
    until(lambda: look(ours.fileno()) is not Liveness.ALIVE)
    assert look(ours.fileno()) is Liveness.UNDECIDED
    assert judge(poller(ours.fileno())(0)) is Liveness.UNDECIDED


def test_a_fin_behind_unread_data_is_death(tcp_pair, until):
    ours, theirs = tcp_pair()
    theirs.sendall(b"goodbye")
    theirs.close()
    until(lambda: look(ours.fileno()) is Liveness.DEAD)
    assert ours.recv(100) == b"goodbye"


def test_a_closed_descriptor_is_dead(tcp_pair):
    ours, _ = tcp_pair()
    fd = ours.fileno()
    poll = poller(fd)
    ours.close()
    assert judge(poll(0)) is Liveness.DEAD
    assert look(fd) is Liveness.DEAD
    assert look(-1) is Liveness.DEAD
    assert judge(poller(-1)(0)) is Liveness.DEAD


def test_without_a_descriptor_nothing_is_known():
    assert poller(None)(0) == []


def test_a_sweep_names_only_those_that_are_not_alive(tcp_pair, until):
    pairs = [tcp_pair() for _ in range(20)]
    fds = [ours.fileno() for ours, _ in pairs]
    assert sweep(fds) == {}
    for index in (3, 7, 19):
        pairs[index][1].close()
    pairs[5][1].sendall(b"?")
    until(lambda: len(sweep(fds)) == 4)
    dead = Liveness.DEAD
    assert sweep([*fds, -1]) == {
        fds[3]: dead,
        fds[5]: Liveness.UNDECIDED,
        fds[7]: dead,
        fds[19]: dead,
        -1: dead,
    }
    assert sweep([]) == {}


def test_a_unix_socket_is_seen_as_well(until):
    ours, theirs = socket.socketpair()
    with ours:
        assert look(ours.fileno()) is Liveness.ALIVE
        theirs.close()
        until(lambda: look(ours.fileno()) is Liveness.DEAD)


def test_the_poller_is_the_c_method_itself(tcp_pair):
    ours, _ = tcp_pair()
    assert type(poller(ours.fileno())).__name__ == "builtin_function_or_method"
    assert liveness.SUPPORTED


# ---- the ways of other systems, as far as they can be had here


def test_by_peeking_it_is_alive_then_undecided_then_dead(tcp_pair, until):
    ours, theirs = tcp_pair()
    fd = ours.fileno()
    assert liveness._peek_events([fd]) == []
    theirs.sendall(b"goodbye")
    until(lambda: liveness._peek_events([fd]))
    assert judge(liveness._peek_events([fd])) is Liveness.UNDECIDED
    theirs.close()
    assert judge(liveness._peek_events([fd])) is Liveness.UNDECIDED, (
        "what a peek cannot see it must not claim"
    )
    ours.recv(100)
    until(lambda: judge(liveness._peek_events([fd])) is Liveness.DEAD)
    ours.close()
    assert judge(liveness._peek_events([fd])) is Liveness.DEAD
    assert judge(liveness._peek_events([-1])) is Liveness.DEAD


class FakeKevent:
    def __init__(self, ident, filter=0, flags=0, fflags=0, data=0):  # noqa: A002 - its real name
        self.ident, self.filter, self.flags, self.fflags, self.data = (
            ident,
            filter,
            flags,
            fflags,
            data,
        )


class FakeKqueueApi:
    """XNU's manners: an event with EV_EOF for a FIN, and failures of changes alone when there are
    any.
    """

    KQ_FILTER_READ, KQ_EV_ADD, KQ_EV_ONESHOT, KQ_EV_ERROR, KQ_EV_EOF = -1, 0x1, 0x10, 0x4000, 0x8000
    kevent = FakeKevent

    def __init__(self):
        self.open = 0
        self.number = 1_000_000

    def kqueue(self):
        api, self.open = self, self.open + 1

        class Queue:
            watched: tuple[int, ...] = ()

            def control(self, changes, most, timeout):
                assert timeout == 0
                wanted = [c.ident for c in changes or ()]
                bits = {fd: poller(fd)(0) for fd in wanted if look_open(fd)}
                self.watched = (*self.watched, *bits)
                if failed := [fd for fd in wanted if fd not in bits]:
                    return [
                        FakeKevent(fd, api.KQ_FILTER_READ, api.KQ_EV_ERROR, 0, 9) for fd in failed
                    ]
                found, self.watched = self.watched, ()
                return [event for fd in found for event in self.state(fd)][:most]

            def state(self, fd):
                seen = look(fd)
                if seen is not Liveness.ALIVE:
                    yield FakeKevent(
                        fd, api.KQ_FILTER_READ, api.KQ_EV_EOF if seen is Liveness.DEAD else 0
                    )

            def fileno(self):
                return api.number

            def close(self):
                api.open -= 1

        return Queue()


def look_open(fd: int) -> bool:
    events = poller(fd)(0)
    return not (events and events[0][1] & select.POLLNVAL)


def test_by_kqueue_eof_is_death_and_data_is_undecided(tcp_pair, until):
    api = FakeKqueueApi()
    pairs = [tcp_pair() for _ in range(4)]
    fds = [ours.fileno() for ours, _ in pairs]
    pairs[0][1].close()
    pairs[1][1].sendall(b"?")
    pairs[2][0].close()
    until(lambda: len(sweep(fds)) == 3)
    found = {fd: judge([(fd, bits)]) for fd, bits in liveness._kqueue_events([*fds, -1], api=api)}
    assert found == {
        fds[0]: Liveness.DEAD,
        fds[1]: Liveness.UNDECIDED,
        fds[2]: Liveness.DEAD,
        -1: Liveness.DEAD,
    }
    assert liveness._kqueue_events([], api=api) == []
    api.number = fds[3]  # what was a connection's number is the queue's own by now
    assert [judge([(fd, bits)]) for fd, bits in liveness._kqueue_events([fds[3]], api=api)] == [
        Liveness.DEAD
    ]
    assert api.open == 0


# ---- real servers


def test_mariadb_kill_and_idle_limit_are_seen(mariadb, sessions, until):
    killed, idle = sessions.pymysql(mariadb), sessions.pymysql(mariadb)
    assert look(sessions.fd(killed)) is Liveness.ALIVE
    mariadb.admin(f"KILL {killed.thread_id()}")
    until(lambda: look(sessions.fd(killed)) is Liveness.DEAD)
    with idle.cursor() as cursor:
        cursor.execute("SET SESSION wait_timeout = 1")
    until(lambda: look(sessions.fd(idle)) is Liveness.DEAD)


def test_postgres_terminate_and_idle_limit_are_seen(postgres, sessions, until):
    killed, idle = sessions.psycopg(postgres), sessions.psycopg(postgres)
    assert look(killed.fileno()) is Liveness.ALIVE
    postgres.admin(f"SELECT pg_terminate_backend({killed.info.backend_pid})")
    until(lambda: look(killed.fileno()) is Liveness.DEAD)
    idle.execute("SET idle_session_timeout = '200ms'")
    until(lambda: look(idle.fileno()) is Liveness.DEAD)


def test_a_notification_is_not_death(postgres, sessions, until):
    conn = sessions.psycopg(postgres)
    conn.execute("LISTEN news")
    postgres.admin("NOTIFY news")
    until(lambda: look(conn.fileno()) is not Liveness.ALIVE)
    assert look(conn.fileno()) is Liveness.UNDECIDED
    assert sessions.ask(conn, "SELECT 1") == 1


@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
def test_death_is_seen_under_tls(kind, new_mariadb, new_postgres, sessions, until):
    if kind == "mariadb":
        server = new_mariadb(tls=True)
        conn = sessions.pymysql(server, ssl={"ca": str(server.ca_file)})
        assert sessions.ask(
            conn,
            "SELECT VARIABLE_VALUE FROM information_schema.SESSION_STATUS WHERE VARIABLE_NAME ="
            " 'Ssl_cipher'",
        )
    else:
        server = new_postgres(tls=True)
        conn = sessions.psycopg(server, sslmode="require")
        assert sessions.ask(conn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    fd = sessions.fd(conn)
    until(lambda: look(fd) is Liveness.ALIVE)
    assert server.kill_sessions() == 1
    until(lambda: look(fd) is Liveness.DEAD)
