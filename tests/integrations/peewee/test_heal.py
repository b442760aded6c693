"""A lost statement of a peewee database is run again on another connection, and nothing is stored
twice by that. Without units of work.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import peewee
import pytest

import unbroken
import unbroken.peewee
from unbroken_drill import FaultProxy

SYNC = ["pymysql", "mariadbconnector", "mysqlconnector", "psycopg", "psycopg2"]
ASYNC = ["aiomysql", "asyncpg"]
#: No TLS: the proxy reads what goes over it.
PLAIN: dict[str, dict[str, Any]] = {
    "pymysql": {"ssl_disabled": True}, "mysqlconnector": {"ssl_disabled": True},
    "psycopg": {"sslmode": "disable"}, "psycopg2": {"sslmode": "disable"},
    "asyncpg": {"ssl": "disable"},
}  # fmt: skip
_numbers = itertools.count(1)


class Site:
    """A database behind a proxy, and a table; blocking or for asyncio.

    What a test does is written for a blocking database; on asyncio it runs by ``db.run``.
    """

    def __init__(self, driver: str, server: Any, stack: ExitStack) -> None:
        self.driver, self.server, self.stack = driver, server, stack
        self.is_mysql = server.backend in ("mysql", "mariadb")
        self.is_async = driver in ASYNC
        protocol = "mysql" if self.is_mysql else "postgresql"
        self.proxy = stack.enter_context(FaultProxy((server.host, server.port), protocol=protocol))
        self.runner = stack.enter_context(asyncio.Runner()) if self.is_async else None
        self.name = f"stock_{next(_numbers)}"
        self.open()
        self.server.admin(f"DROP TABLE IF EXISTS {self.name}")
        self.run(lambda: self.db.create_tables([self.model]))
        stack.callback(self.server.admin, f"DROP TABLE IF EXISTS {self.name}")

    def open(self, **settings: Any) -> None:
        """Another database of the same server."""
        url = self.proxy.url(self.server.url(self.driver))
        self.db = db = unbroken.peewee.connect(url, **PLAIN.get(self.driver, {}), **settings)
        self.stack.callback(self._close, db)
        name = self.name

        class Stock(peewee.Model):  # type: ignore[misc]
            n = peewee.IntegerField()

            class Meta:
                database = db
                table_name = name

        self.model = Stock

    def _close(self, db: Any) -> None:
        if self.runner is not None:
            self.runner.run(db.close_pool())
        else:
            db.close_all()

    def run(self, work: Callable[[], Any]) -> Any:
        """*work*, with the connection of its own that it takes."""
        if self.runner is None:
            return work()

        async def task() -> Any:
            try:
                return await self.db.run(work)
            finally:
                await self.db.aclose()

        return self.runner.run(task())

    def count(self) -> int:
        return int(self.model.select().count())

    def warm(self) -> None:
        """A request before this one: the pool has a connection."""
        assert self.run(self.count) >= 0

    @property
    def stats(self) -> Any:
        if self.runner is None:
            return self.db.stats()

        async def ask() -> Any:
            return self.db.stats()

        return self.runner.run(ask())

    @property
    def healed(self) -> int:
        return int(self.stats.healed)

    def rows(self) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin(f"SELECT n FROM {self.name}"))

    def cut_select(self, *, before: bool = False) -> Any:
        return self.proxy.cut_at(re.compile(f"SELECT.*{self.name}"), before=before)


@pytest.fixture(params=SYNC + ASYNC)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    is_postgresql = request.param in ("psycopg", "psycopg2", "asyncpg")
    server = request.getfixturevalue("postgres" if is_postgresql else "mariadb")
    with ExitStack() as stack:
        made = Site(request.param, server, stack)
        made.warm()
        yield made


def noted(error: BaseException) -> str:
    """What we said on *error*."""
    notes = [n for n in getattr(error, "__notes__", []) if "did not run this statement again" in n]
    assert len(notes) == 1, getattr(error, "__notes__", [])
    return notes[0]


BEFORE = pytest.mark.parametrize("before", [True, False], ids=["lost on the way", "answer lost"])
LOST = (peewee.PeeweeException,)


@BEFORE
@pytest.mark.parametrize("inside", ["autocommit", "atomic", "a connection"])
def test_a_first_read_is_run_again(
    site: Site, before: bool, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.server.admin(f"INSERT INTO {site.name} (n) VALUES (1)")
    cut = site.cut_select(before=before)

    def work() -> list[int]:
        if inside == "atomic":
            with site.db.atomic():
                return [row.n for row in site.model.select()]
        if inside == "a connection":
            site.db.connect()
            try:
                return [row.n for row in site.model.select()]
            finally:
                site.db.close()
        return [row.n for row in site.model.select()]

    with caplog.at_level(logging.INFO, "unbroken"):
        assert site.run(work) == [1]
    assert (cut.hits, site.healed) == (1, 1)
    told = [r.getMessage() for r in caplog.records if "run again" in r.getMessage()]
    assert len(told) == 1
    assert "test_heal.py" in told[0]
    assert site.stats.used == 0


@BEFORE
@pytest.mark.parametrize("how", ["create", "insert_many", "execute_sql"])
def test_a_first_write_of_a_transaction_is_run_again_and_stored_once(
    site: Site, before: bool, how: str
) -> None:
    cut = site.proxy.cut_at("INSERT", before=before)

    def work() -> None:
        with site.db.atomic():
            if how == "create":
                site.model.create(n=1)
            elif how == "insert_many":
                site.model.insert_many([{"n": 1}]).execute()
            else:
                site.db.execute_sql(f"INSERT INTO {site.name} (n) VALUES (1)")
            site.model.create(n=2)

    site.run(work)
    assert (cut.hits, site.healed, site.rows()) == (1, 1, [1, 2])
    assert site.stats.used == 0


@BEFORE
def test_what_is_rolled_back_after_it_is_not_stored(site: Site, before: bool) -> None:
    def work() -> None:
        site.proxy.cut_at("INSERT", before=before)
        with pytest.raises(ZeroDivisionError), site.db.atomic():
            site.model.create(n=1)
            raise ZeroDivisionError
        site.proxy.cut_at("INSERT", before=before)
        with site.db.atomic():
            site.model.create(n=2)
            with pytest.raises(ZeroDivisionError), site.db.atomic():
                site.model.create(n=3)
                raise ZeroDivisionError

    site.run(work)
    assert (site.healed, site.rows()) == (2, [2])


@BEFORE
def test_a_write_in_autocommit_is_an_error(site: Site, before: bool) -> None:
    cut = site.proxy.cut_at("INSERT", before=before)
    with pytest.raises(LOST) as caught:
        site.run(lambda: site.model.create(n=1))
    assert "INSERT in autocommit may have been stored" in noted(caught.value)
    assert (cut.hits, site.healed, site.rows()) == (1, 0, [] if before else [1])


@BEFORE
def test_the_second_statement_is_an_error_that_says_so(site: Site, before: bool) -> None:
    def work() -> None:
        with site.db.atomic():
            site.model.create(n=1)
            site.proxy.cut_at("INSERT", before=before)
            site.model.create(n=2)

    with pytest.raises(LOST) as caught:
        site.run(work)
    assert "an earlier statement of its transaction was answered" in noted(caught.value)
    assert "unit of work" in noted(caught.value)
    assert (site.healed, site.rows()) == (0, [])
    assert site.run(site.count) == 0


def test_a_statement_inside_a_savepoint_is_an_error(site: Site) -> None:
    def work() -> None:
        with site.db.atomic(), site.db.atomic():
            site.proxy.cut_at("INSERT")
            site.model.create(n=1)

    with pytest.raises(LOST):
        site.run(work)
    assert (site.healed, site.rows()) == (0, [])


def test_a_session_that_ended_between_begin_and_the_first_statement_is_replaced(site: Site) -> None:
    def work(n: int) -> None:
        with site.db.atomic():
            site.proxy.rst()
            site.model.create(n=n)

    for n in range(2):
        site.run(lambda n=n: work(n))  # type: ignore[misc]
    assert (site.healed, site.rows()) == (2, [0, 1])


@BEFORE
def test_a_transaction_that_cannot_go_on_gets_no_other_connection(site: Site, before: bool) -> None:
    site.proxy.cut_at("INSERT", before=before)
    refusing: list[bool] = []

    def work() -> None:
        with site.db.atomic():
            site.proxy.refuse()
            with pytest.raises(LOST) as caught:
                site.model.create(n=1)
            assert "no other connection was available" in noted(caught.value)
            site.proxy.heal()
            for _ in range(2):
                with pytest.raises((*LOST, unbroken.UnbrokenError)):
                    site.model.create(n=2)
            refusing.append(True)

    site.open(acquire_timeout=0.5, outage_wait=0.2, max_size=1)  # none beside one that is slow
    site.warm()
    with pytest.raises(unbroken.ConnectionLostError):
        site.run(work)
    assert refusing
    assert site.rows() == []
    assert until_served(site) == 0
    assert site.stats.used == 0


def until_served(site: Site) -> int:
    until = time.monotonic() + 20
    while True:
        try:
            return int(site.run(site.count))
        except peewee.OperationalError:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_statement_is_lost_for_good_once_it_has_lost_two_connections_that_were_well(
    site: Site,
) -> None:
    for _ in range(3):
        site.proxy.cut_at("INSERT")

    def work() -> None:
        with site.db.atomic():
            site.model.create(n=1)

    with pytest.raises(LOST) as caught:
        site.run(work)
    assert "two connections that had just worked" in noted(caught.value)
    assert site.rows() == []


@pytest.mark.parametrize("number", range(3))
def test_what_the_session_was_given_is_not_given_up_silently(site: Site, number: int) -> None:
    given = (
        ["SET SESSION sql_mode = ''", "SELECT GET_LOCK('mine', 0)", "SET @mine = 1"]
        if site.is_mysql
        else ["SET work_mem = '5MB'", "SELECT pg_advisory_lock(7)", "LISTEN mine"]
    )[number]

    def work() -> None:
        site.db.connect()
        try:
            site.db.execute_sql(given)
            site.cut_select()
            site.count()
        finally:
            site.db.close()

    with pytest.raises(LOST) as caught:
        site.run(work)
    assert "on its session" in noted(caught.value)
    assert site.healed == 0


@BEFORE
def test_a_commit_of_nothing_but_reads_is_no_loss(site: Site, before: bool) -> None:
    def work() -> None:
        with site.db.atomic():
            assert site.count() == 0
            site.proxy.cut_at("COMMIT", before=before)

    site.run(work)
    assert site.healed == 1
    assert site.stats.used == 0

    def write() -> None:
        with site.db.atomic():
            site.model.create(n=1)
            site.proxy.cut_at("COMMIT", before=before)

    with pytest.raises(unbroken.CommitUnknownError):
        site.run(write)


def test_inside_a_unit_of_work_the_whole_unit_is_run_again(site: Site) -> None:
    if site.is_async:
        pytest.skip("see test_async_faults.py")
    begun: list[int] = []

    @site.db.unit
    def work() -> None:
        begun.append(1)
        with site.db.atomic():
            site.model.create(n=1)

    site.proxy.cut_at("INSERT")
    work()
    assert (len(begun), site.healed, site.rows()) == (2, 0, [1])


def test_it_can_be_turned_off(site: Site) -> None:
    site.open(heal=False)
    site.warm()
    site.cut_select()
    with pytest.raises(LOST):
        site.run(site.count)
    assert site.healed == 0


@pytest.mark.parametrize("arrived", range(20, 200, 20))
def test_wherever_the_statement_or_its_answer_is_cut_nothing_is_stored_twice(
    site: Site, arrived: int
) -> None:
    if site.driver == "mysqlconnector":
        pytest.skip("it asks the server something before a statement with parameters")

    def work() -> None:
        with site.db.atomic():
            site.proxy.cut_after(bytes=arrived, on="existing")
            site.model.create(n=1)

    try:
        site.run(work)
    except unbroken.CommitUnknownError:
        assert site.rows() in ([], [1])
    else:
        assert site.rows() == [1]
    finally:
        site.proxy.heal()
    assert site.healed <= 1
