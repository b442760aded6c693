"""The words of managed services, injected as packets into real drivers: what each driver's error
means, at a connect and in use, and what a pool does about it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import unbroken
from unbroken.abc import FaultKind
from unbroken.drivers import open_driver
from unbroken_drill.servers import MariaDB, PostgreSQL, Server

from ..backends.samples import MYSQL, POSTGRESQL, Sample
from .answering import Relay, relay_to
from .every_driver import url_of

DRIVERS = {
    "pymysql": MYSQL, "mysqldb": MYSQL, "aiomysql": MYSQL, "asyncmy": MYSQL,
    "mariadbconnector": MYSQL, "psycopg": POSTGRESQL, "psycopg_async": POSTGRESQL,
    "psycopg2": POSTGRESQL, "asyncpg": POSTGRESQL, "pg8000": POSTGRESQL,
}  # fmt: skip
ASYNC = {"aiomysql", "asyncmy", "psycopg_async", "asyncpg"}
NAMES = [(driver, name) for driver, samples in DRIVERS.items() for name in samples]
Relays = Callable[[str], tuple[Server, Relay]]


@pytest.fixture(scope="module")
def relays(mariadb: MariaDB, postgres: PostgreSQL) -> Iterator[Relays]:
    with relay_to(mariadb) as first, relay_to(postgres) as second:
        yield (
            lambda driver: (postgres, second) if DRIVERS[driver] is POSTGRESQL else (mariadb, first)
        )


def _url(driver: str, relays: Relays) -> tuple[str, Relay]:
    server, relay = relays(driver)
    relay.heal()
    return relay.url(url_of(server, driver, False)), relay


async def _wait(value: Any) -> Any:
    return (await value) if inspect.isawaitable(value) else value


async def _say(driver: Any, conn: Any) -> None:
    if driver.name == "asyncpg":
        await conn.execute("SELECT 'words'")
        return
    cursor = await _wait(conn.cursor())
    await _wait(cursor.execute("SELECT 'words'"))


def _sample(name: str, driver: str) -> Sample:
    return DRIVERS[driver][name]


@pytest.mark.parametrize(("driver", "name"), NAMES)
def test_what_a_driver_makes_of_a_services_words(driver: str, name: str, relays: Relays) -> None:
    url, relay = _url(driver, relays)
    code, text, connecting, in_use, _ = _sample(name, driver)

    async def play() -> None:
        opened: Any = open_driver(url, is_async=driver in ASYNC)
        if connecting is not None:
            relay.refuse(code, text)
            with pytest.raises(opened.errors) as refused:
                await _wait(opened.connect(5.0))
            relay.heal()
            fault = opened.classify(refused.value)
            assert fault.kind is connecting, fault
        if in_use is not None:
            conn = await _wait(opened.connect(5.0))
            relay.say("SELECT 'words'", code, text, ends=in_use is FaultKind.LOST)
            with pytest.raises(opened.errors) as failed:
                await _say(opened, conn)
            fault = opened.classify(failed.value)
            assert fault.kind is in_use, fault
            with suppress(Exception):
                opened.close(conn)

    asyncio.run(play())


CONNECTS = {
    "waits": {"mysql": ("vitess-reparent", "rds-proxy-full"),
              "postgresql": ("neon-compute", "supavisor-full")},
    "refused": {"mysql": ("proxysql-denied",), "postgresql": ("supavisor-unknown",)},
    "again": {"mysql": ("vitess-killed", "tidb-conflict", "maxscale-lost",
                        "vitess-unavailable", "proxysql-away", "rds-proxy-full"),
              "postgresql": ("cockroach-retry", "odyssey-lost", "supavisor-exited",
                             "neon-compute", "supavisor-full", "pgcat-checkout")},
}  # fmt: skip


def _cases(what: str) -> list[tuple[str, str]]:
    return [
        (driver, name)
        for driver, samples in DRIVERS.items()
        for name in CONNECTS[what]["mysql" if samples is MYSQL else "postgresql"]
    ]


def _run(driver: str, url: str, work: Callable[[Any, Any], Any], **settings: Any) -> Any:
    async def play() -> Any:
        kind: Any = unbroken.AsyncPool if driver in ASYNC else unbroken.Pool
        pool = kind(url, max_size=2, acquire_timeout=10.0, **settings)
        try:
            return await _wait(work(pool, pool._state.driver if hasattr(pool, "_state") else pool))
        finally:
            await _wait(pool.close())

    return asyncio.run(play())


def _unit(driver: str, runs: list[int], then: Callable[[], None]) -> Any:
    statement = "SELECT 'words'"

    async def awaited(conn: Any) -> int:
        runs.append(1)
        if len(runs) == 1:
            then()
        if driver == "asyncpg":
            await conn.execute(statement)
        else:
            cursor = await _wait(conn.cursor())
            await _wait(cursor.execute(statement))
        return len(runs)

    def called(conn: Any) -> int:
        runs.append(1)
        if len(runs) == 1:
            then()
        cursor = conn.cursor()
        cursor.execute(statement)
        cursor.fetchall()
        return len(runs)

    return awaited if driver in ASYNC else called


@pytest.mark.parametrize(("driver", "name"), _cases("waits"))
def test_a_pool_waits_while_a_service_cannot_serve(driver: str, name: str, relays: Relays) -> None:
    url, relay = _url(driver, relays)
    code, text = _sample(name, driver)[:2]
    before = relay.refused
    relay.refuse(code, text, times=2)
    runs: list[int] = []
    unit = _unit(driver, runs, lambda: None)
    assert _run(driver, url, lambda pool, _: pool.run(unit), outage_wait=10.0) == 1
    assert relay.refused - before == 2


@pytest.mark.parametrize(("driver", "name"), _cases("refused"))
def test_a_pool_says_at_once_what_waiting_does_not_cure(
    driver: str, name: str, relays: Relays
) -> None:
    url, relay = _url(driver, relays)
    code, text = _sample(name, driver)[:2]
    relay.refuse(code, text)
    with pytest.raises(unbroken.ConnectRejectedError, match=text.split("'")[0][-20:].strip()):
        _run(driver, url, lambda pool, _: pool.run(_unit(driver, [], lambda: None)))
    relay.heal()


@pytest.mark.parametrize(("driver", "name"), _cases("again"))
def test_a_unit_of_work_runs_again_after_words_that_another_attempt_cures(
    driver: str, name: str, relays: Relays
) -> None:
    url, relay = _url(driver, relays)
    code, text, _, in_use, _ = _sample(name, driver)
    runs: list[int] = []
    ends = in_use is FaultKind.LOST
    unit = _unit(driver, runs, lambda: relay.say("SELECT 'words'", code, text, ends=ends))
    assert _run(driver, url, lambda pool, _: pool.run(unit)) == 2
