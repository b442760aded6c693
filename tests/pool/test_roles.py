"""A pool of a primary and its standby, real ones that replicate: ``target=`` says which it uses,
and a promotion needs nothing of the application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import unbroken
from unbroken.pool import servers
from unbroken_drill.servers import Cluster, MariaDBCluster, PostgreSQLCluster

from .test_hosts import ASYNC, LATE, MYSQL, SOON, Async, Sync, took_less_than

NAMES = ["psycopg", "psycopg2", "pg8000", "asyncpg", "pymysql", "mysqldb", "aiomysql"]


@pytest.fixture
def clusters() -> Iterator[Callable[[str], Cluster[Any]]]:
    with ExitStack() as stack:

        def make(name: str) -> Cluster[Any]:
            kind: Any = MariaDBCluster if name in MYSQL else PostgreSQLCluster
            return stack.enter_context(kind())

        yield make


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    """Makes a pool by the name of its driver and a URL."""
    with ExitStack() as stack:
        servers._records.clear()

        def make(name: str, url: str, **settings: Any) -> Any:
            kind = Async if name in ASYNC else Sync
            pool = kind(url, connect_timeout=LATE, acquire_timeout=LATE, **settings)
            stack.callback(pool.close)
            return pool

        yield make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", NAMES)


def standby_first(cluster: Cluster[Any], name: str, **query: Any) -> str:
    """The cluster's URL, the other way round."""
    url = cluster.url(name, **query)
    before, _, rest = url.partition("@")
    where, slash, tail = rest.partition("/")
    return f"{before}@{','.join(reversed(where.split(',')))}{slash}{tail}"


def make_table(cluster: Cluster[Any]) -> None:
    cluster.admin("CREATE TABLE t (n INT)")
    if cluster.writer.backend == "postgresql":
        cluster.admin(f"GRANT ALL ON t TO {cluster.writer.user}")


def finds(opened: Any, name: str, url: str, port: int) -> bool:
    """Whether a pool that knows nothing yet is at *port*. On a busy machine the preferred server
    may be silent for so long that the other one serves: then another pool is asked.
    """
    for _ in range(5):
        servers._records.clear()
        if opened(name, url).port() == port:
            return True
        if "target" in url and "prefer" not in url:
            return False  # a role that is not preferred but wanted
    return False


def test_each_role_finds_its_server_wherever_it_stands_in_the_url(
    clusters: Any, opened: Any, name: str
) -> None:
    cluster = clusters(name)
    primary, standby = cluster.writer, cluster.others[0]
    wanted = {
        "primary": primary, "read-write": primary, "standby": standby, "read-only": standby,
        "prefer-standby": standby,
    }  # fmt: skip
    for word, server in wanted.items():
        for url in (cluster.url(name, target=word), standby_first(cluster, name, target=word)):
            with took_less_than(SOON):
                assert finds(opened, name, url, server.port)
    for url in (cluster.url(name), standby_first(cluster, name)):
        first = int(url.rpartition("@")[2].split(",")[0].partition(":")[2])
        assert finds(opened, name, url, first)
    # libpq's name for it
    url = standby_first(cluster, name, target_session_attrs="read-write")
    assert opened(name, url).port() == primary.port


def test_a_promotion_is_followed_and_nothing_stays_at_the_old_primary(
    clusters: Any, opened: Any, name: str, until: Any
) -> None:
    cluster = clusters(name)
    pool = opened(name, cluster.url(name, target="primary"), max_size=3)
    make_table(cluster)
    assert pool.port() == cluster.writer.port
    new = cluster.promote()
    with took_less_than(SOON):
        assert pool.port() == new.port
    cluster.repair()  # the old one is a standby now, and lets us in
    until(lambda: pool.stats().hosts == {f"127.0.0.1:{new.port}": 1})
    new = cluster.switchover()  # MariaDB ends no session for that
    pool.write()
    with took_less_than(SOON):
        assert pool.port() == new.port
    assert pool.stats().hosts == {f"127.0.0.1:{new.port}": 1}


def test_without_a_standby_the_primary_is_used_until_one_is_back(
    clusters: Any, opened: Any, name: str, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbroken.brain.hosts.LOOK_AGAIN", 1.0)
    cluster = clusters(name)
    pool = opened(name, cluster.url(name, target="prefer-standby"), max_age=0.5)
    primary, standby = cluster.writer, cluster.others[0]
    assert pool.port() == standby.port
    standby.kill()
    with took_less_than(SOON):
        assert pool.port() == primary.port
    standby.start()
    until(lambda: pool.port() == standby.port)
    until(lambda: pool.stats().hosts == {f"127.0.0.1:{standby.port}": 1})


def test_where_no_server_has_the_role_each_says_why(clusters: Any, opened: Any, name: str) -> None:
    cluster = clusters(name)
    primary, standby = cluster.writer, cluster.others[0]
    pool = opened(name, cluster.url(name, target="standby"))
    standby.kill()
    with pytest.raises(unbroken.OutageError) as caught:
        pool.port(0.8)
    told = str(caught.value)
    assert f"127.0.0.1:{primary.port}: takes writes, but target=standby" in told
    assert f"127.0.0.1:{standby.port}: " in told
    assert "\n" not in told
