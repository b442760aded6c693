"""Clusters for tests: roles change as asked, nothing acknowledged is lost, and nothing is left."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pymysql
import pytest

from unbroken_drill.servers import (
    Cluster,
    Galera,
    HAProxy,
    MariaDB,
    MariaDBCluster,
    MySQL,
    PostgreSQL,
    PostgreSQLCluster,
    Server,
    ServerError,
    ServerUnavailable,
    galera,
    processes,
)
from unbroken_drill.servers.cluster import wait_until

KINDS = [
    pytest.param(lambda: PostgreSQLCluster(), id="postgresql"),
    pytest.param(lambda: PostgreSQLCluster(synchronous=True), id="postgresql-synchronous"),
    pytest.param(lambda: MariaDBCluster(), id="mariadb"),
    pytest.param(lambda: MariaDBCluster(synchronous=True), id="mariadb-synchronous"),
    pytest.param(lambda: Galera(), id="galera"),
]


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster[Any]]:
    """A cluster of each kind, this test's own, with an empty table."""
    with request.param() as started:
        make_table(started)
        yield started


def connect(server: Server) -> Any:
    if server.scheme == "mysql" or (isinstance(server, HAProxy) and "mysql" in server.url()):
        return pymysql.connect(
            host=server.host, port=server.port, user=server.user, password=server.password,
            database=server.database, autocommit=True,
        )  # fmt: skip
    return psycopg.connect(server.url(), autocommit=True)


def say(conn: Any, sql: str) -> Any:
    with conn.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def make_table(cluster: Cluster[Any]) -> None:
    conn = connect(cluster.writer)
    say(conn, "CREATE TABLE numbers (n int PRIMARY KEY)")
    conn.close()


def store(server: Server, number: int) -> None:
    conn = connect(server)
    say(conn, f"INSERT INTO numbers VALUES ({number})")
    conn.close()


def stored(server: Server) -> list[int]:
    return sorted(int(n) for (n,) in server.admin("SELECT n FROM numbers"))


def replicated(cluster: Cluster[Any], numbers: list[int]) -> None:
    wait_until(lambda: all(stored(s) == numbers for s in cluster.servers), "replication", 10.0)


# ---- roles


def test_what_the_writer_stores_is_soon_on_every_server(cluster: Cluster[Any]) -> None:
    store(cluster.writer, 1)
    replicated(cluster, [1])


def test_after_a_switchover_another_server_takes_writes_and_nothing_is_lost(
    cluster: Cluster[Any],
) -> None:
    old = cluster.writer
    store(old, 1)
    new = cluster.switchover()
    assert new is not old
    store(new, 2)
    replicated(cluster, [1, 2])
    cluster.switchover()
    store(cluster.writer, 3)
    replicated(cluster, [1, 2, 3])


def test_a_killed_writer_is_replaced_and_follows_after_a_repair(cluster: Cluster[Any]) -> None:
    old = cluster.writer
    store(old, 1)
    replicated(cluster, [1])
    new = cluster.promote()
    assert new is not old
    assert not old.is_running
    store(new, 2)
    cluster.repair()
    assert old.is_running
    store(cluster.writer, 3)
    replicated(cluster, [1, 2, 3])


def test_a_writer_that_rejects_answers_and_refuses(cluster: Cluster[Any]) -> None:
    writer = cluster.writer
    conn = connect(writer)
    cluster.reject()
    with pytest.raises((pymysql.MySQLError, psycopg.Error)) as caught:
        say(conn, "INSERT INTO numbers VALUES (1)")
    error = caught.value
    code = error.sqlstate if isinstance(error, psycopg.Error) else error.args[0]
    assert code in ("25006", 1290, 1047)
    cluster.accept()
    say(conn, "INSERT INTO numbers VALUES (1)")
    conn.close()
    replicated(cluster, [1])


@pytest.mark.parametrize("kind", [PostgreSQLCluster, MariaDBCluster])
def test_a_demoted_writer_is_read_only_until_the_next_one_is_promoted(kind: Any) -> None:
    with kind() as group:
        make_table(group)
        old = group.writer
        store(old, 1)
        new = group.demote()
        for server in (old, new):
            conn = connect(server)
            with pytest.raises((pymysql.MySQLError, psycopg.Error), match="read-only"):
                say(conn, "INSERT INTO numbers VALUES (2)")
            conn.close()
        new.promote()
        group.repair()
        assert group.writer is new
        store(new, 2)
        replicated(group, [1, 2])


@pytest.mark.parametrize("kind", [PostgreSQLCluster, MariaDBCluster])
def test_several_followers_all_follow_the_new_writer(kind: Any) -> None:
    with kind(2) as group:
        make_table(group)
        assert group.url().count(",") == 2
        group.switchover()
        store(group.writer, 1)
        replicated(group, [1])
        group.promote()
        store(group.writer, 2)
        group.repair()
        replicated(group, [1, 2])


@pytest.mark.parametrize("kind", [PostgreSQLCluster, MariaDBCluster])
def test_a_synchronous_writer_waits_for_its_follower(kind: Any) -> None:
    with kind(synchronous=True) as group:
        make_table(group)
        (follower,) = group.others
        follower.freeze()
        conn = connect(group.writer)
        with pytest.raises(ServerError, match="no answer"):
            group.admin("INSERT INTO numbers VALUES (1)", timeout=0.5)
        follower.thaw()
        say(conn, "INSERT INTO numbers VALUES (2)")
        conn.close()
        replicated(group, [1, 2])


def test_a_server_that_follows_nobody_cannot_be_promoted(
    postgres: PostgreSQL, mariadb: MariaDB
) -> None:
    for server in (postgres, mariadb):
        with pytest.raises(ServerError, match=r"is not a (standby|replica)"):
            server.promote()
    with pytest.raises(ServerError, match="replicated=True"):
        mariadb.replica()
    with pytest.raises(ServerUnavailable, match="MySQL cannot replicate; use MariaDB"):
        MySQL(replicated=True).start()


# ---- Galera


def test_a_node_that_is_cut_off_refuses_and_comes_back(unbroken_galera: Galera) -> None:
    make_table(unbroken_galera)
    node, *others = unbroken_galera.servers
    node.isolate()
    conn = connect(node)
    with pytest.raises(pymysql.MySQLError) as caught:
        say(conn, "SELECT n FROM numbers")
    assert caught.value.args[0] == 1047
    assert unbroken_galera.writer is others[0]
    store(others[0], 1)
    node.rejoin()
    assert say(conn, "SELECT n FROM numbers") == 1
    conn.close()


def test_a_cluster_of_which_every_node_was_killed_begins_with_the_last_write() -> None:
    with Galera() as group:
        make_table(group)
        first, second, third = group.servers
        first.kill()
        group.wait_size(2)
        store(second, 1)
        third.kill()
        second.kill()
        group.repair()
        replicated(group, [1])


def test_where_the_kernel_forbids_scheduling_a_library_is_preloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = galera.GaleraNode()
    attempts: list[bool] = []

    def refuse(self: galera.GaleraNode, folder: Path, timeout: float) -> None:
        attempts.append(self.preloaded)
        if not self.preloaded:
            self.log.write_text("1: Failed to set thread schedparams other:0: 1 (Not owner)")
            raise ServerError("ended while starting")
        started(self, folder, timeout)

    started = MariaDB._launch
    monkeypatch.setattr(MariaDB, "_launch", refuse)
    with node:
        assert attempts == [False, True]
        mapped = Path(f"/proc/{node.pid}/maps").read_text()
        assert "galera-schedparam.so" in mapped
        assert node.is_ready


# ---- HAProxy


def test_haproxy_follows_the_server_that_takes_writes(cluster: Cluster[Any]) -> None:
    with HAProxy(cluster) as balancer:
        assert balancer.serving[0] is cluster.writer
        store(balancer, 1)
        conn = connect(balancer)
        assert len(balancer.sessions()) == 1
        new = cluster.promote()
        balancer.wait_serving(new)
        with pytest.raises((pymysql.MySQLError, psycopg.Error)):
            say(conn, "SELECT n FROM numbers")
        store(balancer, 2)
        assert 2 in stored(new)


def test_haproxy_that_follows_nobody_goes_where_it_is_told(
    unbroken_postgres_cluster: PostgreSQLCluster, unbroken_haproxy: Any
) -> None:
    first, second = unbroken_postgres_cluster.servers
    balancer = unbroken_haproxy([first, second], follow=False)
    port = "SELECT inet_server_port()"
    old = connect(balancer)
    balancer.switch(second, cut=False)
    new = connect(balancer)
    assert (say(old, port), say(new, port)) == (first.port, second.port)
    balancer.switch(first)
    with pytest.raises(psycopg.Error):
        say(new, port)
    assert say(old, port) == first.port
    assert balancer.kill_sessions() == 1
    with pytest.raises(psycopg.Error):
        say(old, port)
    balancer.crash()
    assert say(connect(balancer), port) == first.port
    with pytest.raises(ServerError, match="follow=False"):
        unbroken_haproxy([first]).switch(second)


def test_haproxy_says_what_it_cannot_do(postgres: PostgreSQL, mysql: MySQL) -> None:
    with pytest.raises(ServerError, match="HAProxy cannot check"):
        HAProxy([mysql]).start()
    with pytest.raises(ServerUnavailable, match="passes TLS through"):
        HAProxy.find(tls=True)
    with HAProxy([postgres]) as balancer:
        assert balancer.url("psycopg").endswith(f"@127.0.0.1:{balancer.port}/shop")
        with pytest.raises(ServerError, match="restart"):
            balancer.set(retries=3)
        with pytest.raises(ServerError, match="Unknown command"):
            balancer.admin("nonsense")


# ---- nothing is left


def test_a_killed_process_leaves_no_server_of_its_clusters() -> None:
    program = textwrap.dedent("""
        import sys, time
        from unbroken_drill.servers import Galera, HAProxy, PostgreSQLCluster
        with PostgreSQLCluster() as pair, HAProxy(pair) as balancer, Galera(2) as nodes:
            servers = [*pair.servers, balancer, *nodes.servers]
            print(*(f"{s.pid} {s.folder}" for s in servers), sep="\\n", flush=True)
            time.sleep(60)
    """)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    found = [child.stdout.readline().split() for _ in range(5)]
    pids = [pid for number, _ in found for pid in processes.family(int(number))]
    child.kill()
    child.wait()
    child.stdout.close()
    wait_until(lambda: not any(map(psutil.pid_exists, pids)), "the end of all servers", 15.0)
    folders = [Path(folder) for _, folder in found]
    wait_until(lambda: not any(f.exists() for f in folders), "the end of all folders", 15.0)
