"""A primary that freezes while all its connections are in use: nobody connects, and yet the pool
leaves it once another host takes writes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import unbroken
from unbroken.pool import servers
from unbroken_drill.servers import Cluster, MariaDBCluster, PostgreSQLCluster

from .test_hosts import Pair
from .test_roles import make_table


@pytest.fixture
def clusters() -> Iterator[Callable[[str], Cluster[Any]]]:
    with ExitStack() as stack:
        kinds: dict[str, Any] = {"psycopg": PostgreSQLCluster, "pymysql": MariaDBCluster}
        yield lambda name: stack.enter_context(kinds[name]())


@pytest.mark.parametrize("size", [1, 5])
def test_a_long_statement_is_not_ended_though_another_host_takes_writes(
    new_postgres: Any, size: int
) -> None:
    servers._records.clear()
    pair = Pair(new_postgres(), new_postgres())  # each takes writes
    with unbroken.Pool(pair.url("psycopg", target="primary"), max_size=size) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                row = conn.execute("SELECT inet_server_port() FROM pg_sleep(4)").fetchone()
                assert row == (pair.first.port,)
    assert pool.stats().closed.get("failover", 0) == 0


@pytest.mark.parametrize("kind", ["psycopg", "pymysql"])
@pytest.mark.parametrize("size", [2, 8])
def test_a_primary_that_freezes_in_use_is_left_once_another_takes_writes(
    clusters: Any, kind: str, size: int
) -> None:
    """Without a deadline: what hangs is ended and run again, in a full pool, too."""
    cluster = clusters(kind)
    servers._records.clear()
    old, new = cluster.writer, cluster.others[0]
    make_table(cluster)
    stop, failed, done_at = threading.Event(), [], []

    def insert(conn: Any) -> None:
        conn.cursor().execute("INSERT INTO t VALUES (1)")

    def work(pool: Any) -> None:
        while not stop.is_set():
            try:
                pool.run(insert)
                done_at.append(time.monotonic())
            except Exception as exc:
                if not isinstance(exc, unbroken.CommitUnknownError):
                    failed.append(exc)
            time.sleep(0.01)

    with unbroken.Pool(cluster.url(kind, target="primary"), max_size=size) as pool:
        workers = [threading.Thread(target=work, args=(pool,)) for _ in range(2)]
        for each in workers:
            each.start()
        time.sleep(0.3)
        old.freeze()
        time.sleep(1.0)
        new.promote()
        promoted = time.monotonic()
        while not any(at > promoted for at in done_at):
            assert time.monotonic() - promoted < 15.0, "nothing was written again"
            time.sleep(0.02)
        stop.set()
        for each in workers:
            each.join(10.0)
        assert not any(each.is_alive() for each in workers)
        assert not failed
        old.thaw()


def test_on_an_event_loop_a_frozen_primary_is_left_too(clusters: Any) -> None:
    cluster = clusters("psycopg")
    servers._records.clear()
    make_table(cluster)
    old, new = cluster.writer, cluster.others[0]

    async def insert(conn: Any) -> None:
        await conn.execute("INSERT INTO t VALUES (1)")

    async def work(pool: Any, until: asyncio.Event) -> None:
        while not until.is_set():
            with suppress(unbroken.CommitUnknownError):
                await pool.run(insert)
            await asyncio.sleep(0.01)

    async def main() -> dict[str, int]:
        async with unbroken.AsyncPool(cluster.url("asyncpg", target="primary"), max_size=2) as pool:
            done = asyncio.Event()
            workers = [asyncio.create_task(work(pool, done)) for _ in range(2)]
            await asyncio.sleep(0.5)
            old.freeze()
            await asyncio.to_thread(new.promote)
            async with asyncio.timeout(20):
                while pool.stats().hosts.get(f"127.0.0.1:{new.port}", 0) == 0:
                    await asyncio.sleep(0.05)
                done.set()
                await asyncio.gather(*workers)
            old.thaw()
            return dict(pool.stats().hosts)

    assert set(asyncio.run(main())) == {f"127.0.0.1:{new.port}"}
