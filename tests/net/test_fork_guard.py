"""net/fork_guard.py: forked children of real sessions, and sessions ended from outside."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import threading

import pytest

from unbroken.net import fork_guard
from unbroken.net.fork_guard import abort, fork_mark, identity, sever


def raw_fork() -> int:
    """A fork that Python's own hooks do not see."""
    return int(ctypes.PyDLL(None).fork())


FORKS = pytest.mark.parametrize("fork", [os.fork, raw_fork], ids=["os.fork", "fork(2)"])


# ---- identity


def test_a_socket_is_known_again_and_told_from_its_successor(tcp_pair):
    ours, _ = tcp_pair()
    other, _ = tcp_pair()
    before = identity(ours.fileno())
    assert before is not None
    assert before == identity(ours.fileno())
    assert before != identity(other.fileno())
    os.dup2(other.fileno(), ours.fileno())
    assert identity(ours.fileno()) == identity(other.fileno()) != before


def test_what_is_not_an_open_socket_has_no_identity(tmp_path, tcp_pair):
    ours, _ = tcp_pair()
    fd = ours.fileno()
    ours.close()
    assert identity(fd) is None
    assert identity(-1) is None
    with open(tmp_path / "file", "w") as file:
        assert identity(file.fileno()) is None


# ---- the mark


@pytest.fixture(params=["page", "pid"])
def new_mark(request, monkeypatch):
    if request.param == "pid":
        monkeypatch.setattr(fork_guard, "_wiped_page", lambda: None)
    else:
        assert fork_guard._wiped_page() is not None, "this kernel wipes pages on fork"
    return fork_mark


@FORKS
def test_the_mark_tells_a_child_from_its_maker(new_mark, fork, in_child):
    mark = new_mark()
    assert mark[0] == 1
    assert in_child(lambda: mark[0], fork) == "0"
    assert mark[0] == 1


@FORKS
def test_each_generation_has_a_mark_of_its_own(new_mark, fork, in_child):
    mark = new_mark()

    def child():
        mine = new_mark()
        grandchild = in_child(lambda: f"{mark[0]}{mine[0]}{new_mark()[0]}", fork)
        return f"{mark[0]}{mine[0]} {grandchild}"

    assert in_child(child, fork) == "01 001"
    assert mark[0] == 1


def test_a_kernel_that_accepts_any_advice_is_not_believed(monkeypatch):
    class Emulated(fork_guard.mmap.mmap):
        def madvise(self, *args):
            return None

    monkeypatch.setattr(fork_guard.mmap, "mmap", Emulated)
    assert isinstance(fork_mark(), fork_guard._PidMark)


# ---- sever


@FORKS
def test_a_severed_descriptor_reads_as_ended_and_nothing_reaches_the_other_side(
    fork, tcp_pair, in_child
):
    ours, theirs = tcp_pair()
    who = identity(ours.fileno())

    def child():
        os.set_blocking(ours.fileno(), True)
        done = sever(ours.fileno(), who)
        got = ours.recv(10)
        try:
            ours.send(b"from the child")
        except BrokenPipeError:
            wrote = "EPIPE"
        inheritable = os.get_inheritable(ours.fileno())
        ours.close()
        return done, got, wrote, inheritable

    assert in_child(child, fork) == str((True, b"", "EPIPE", False))
    theirs.sendall(b"for the parent")
    assert ours.recv(100) == b"for the parent"
    ours.sendall(b"from the parent")
    assert theirs.recv(100) == b"from the parent"


def test_a_number_that_means_something_else_by_now_is_left_alone(tcp_pair, tmp_path, in_child):
    ours, _ = tcp_pair()
    fd, who = ours.fileno(), identity(ours.fileno())
    path = tmp_path / "log"

    def child():
        with open(path, "w") as file:
            os.dup2(file.fileno(), fd)
            done = sever(fd, who)
            os.write(fd, b"the daemon's own log")
        return done

    assert in_child(child) == "False"
    assert path.read_text() == "the daemon's own log"


def test_severing_leaks_no_descriptor_and_keeps_inheritance(tcp_pair, descriptors):
    before = descriptors()
    ours, _ = tcp_pair()
    os.set_inheritable(ours.fileno(), True)
    assert sever(ours.fileno(), identity(ours.fileno()))
    assert os.get_inheritable(ours.fileno())
    assert descriptors() <= before + 2


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient", "psycopg"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_child_that_closes_a_severed_connection_leaves_the_parents_session(
    driver, tls, sessions, in_child, request, new_mariadb, new_postgres
):
    sql, options = "SELECT CONNECTION_ID()", {}
    if driver == "psycopg":
        sql = "SELECT pg_backend_pid()"
        server = new_postgres(tls=True) if tls else request.getfixturevalue("postgres")
        options = {"sslmode": "require"} if tls else {}
    else:
        server = new_mariadb(tls=True) if tls else request.getfixturevalue("mariadb")
        options = {"ssl": {"ca": str(server.ca_file)}} if tls else {}
    conn = getattr(sessions, driver)(server, **options)
    number = sessions.ask(conn, sql)
    who = identity(sessions.fd(conn))

    def child():
        done = sever(sessions.fd(conn), who)
        try:
            sessions.ask(conn, sql)
            return "the child was answered on its parent's session"
        except Exception:
            conn.close()
        gc.collect()
        return done

    assert in_child(child) == "True"
    assert sessions.ask(conn, sql) == number


# ---- abort


def test_an_abort_ends_a_read_of_another_thread_and_leaves_the_descriptor_open(tcp_pair):
    ours, theirs = tcp_pair()
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(ours.recv(10)))
    reader.start()
    assert abort(ours.fileno(), identity(ours.fileno()))
    reader.join(10)
    assert got == [b""]
    assert theirs.recv(10) == b""
    assert identity(ours.fileno()) is not None


def test_an_abort_never_touches_another_socket(tcp_pair):
    ours, theirs = tcp_pair()
    stranger, _ = tcp_pair()
    assert not abort(ours.fileno(), identity(stranger.fileno()))
    theirs.sendall(b"well")
    assert ours.recv(10) == b"well"
    fd, who = ours.fileno(), identity(ours.fileno())
    ours.close()
    assert not abort(fd, who)


def test_an_abort_of_what_has_ended_already_is_fine(tcp_pair, reset, until):
    ours, theirs = tcp_pair()
    reset(theirs)
    who = identity(ours.fileno())
    assert abort(ours.fileno(), who)
    assert abort(ours.fileno(), who)


def test_an_abort_works_when_no_descriptor_is_left(tcp_pair):
    import resource

    ours, theirs = tcp_pair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    who = identity(ours.fileno())
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(ours.fileno())
        done = abort(ours.fileno(), who)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert done
    assert theirs.recv(10) == b""
    assert identity(ours.fileno()) == who


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient", "psycopg"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_abort_frees_a_caller_who_waits_for_an_answer(
    driver, tls, sessions, request, new_mariadb, new_postgres, until
):
    if driver == "psycopg":
        server = new_postgres(tls=True) if tls else request.getfixturevalue("postgres")
        sql, options = "SELECT pg_sleep(60)", {"sslmode": "require"} if tls else {}
        busy = (
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%' AND state ="
            " 'active'"
        )
    else:
        server = new_mariadb(tls=True) if tls else request.getfixturevalue("mariadb")
        sql, options = "SELECT SLEEP(60)", {"ssl": {"ca": str(server.ca_file)}} if tls else {}
        busy = "SELECT 1 FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP(60)%'"
    conn = getattr(sessions, driver)(server, **options)
    raised: list[BaseException] = []

    def work():
        try:
            sessions.ask(conn, sql)
        except Exception as exc:
            raised.append(exc)

    fd = sessions.fd(conn)
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    until(lambda: server.admin(busy))
    assert abort(fd, identity(fd))
    worker.join(20)
    assert not worker.is_alive()
    assert raised, "the driver noticed"
    server.kill_sessions()


def test_a_socket_of_another_family_is_severed_as_well(in_child):
    left, right = socket.socketpair()
    with left, right:
        who = identity(left.fileno())
        assert in_child(lambda: (sever(left.fileno(), who), left.recv(1))) == str((True, b""))
        right.sendall(b"x")
        assert left.recv(1) == b"x"
