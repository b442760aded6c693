"""A lost statement of a site's is run again on another connection, and nothing is stored twice by
that. Without middleware, without a unit of work.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.db import Error, IntegrityError, OperationalError, connections, models, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

import unbroken
from unbroken.django import replayable
from unbroken_drill import FaultProxy

#: No TLS: the proxy reads what goes over it.
PLAIN: dict[str, dict[str, Any]] = {
    "mysql": {"ssl_mode": "DISABLED"}, "postgresql": {"sslmode": "disable"},
}  # fmt: skip
if getattr(sys.modules.get("MySQLdb"), "__name__", None) == "pymysql":
    PLAIN["mysql"] = {"ssl_disabled": True}  # see test_django_heal_drivers.py
_numbers = itertools.count(1)


class Stock(models.Model):
    n = models.IntegerField()

    class Meta:
        app_label, db_table = "heal", "stock"


class Site:
    """An alias that leads through a proxy, and a table."""

    def __init__(self, kind: str, server: Any, stack: ExitStack) -> None:
        self.kind, self.server, self.stack = kind, server, stack
        self.proxy = stack.enter_context(FaultProxy((server.host, server.port), protocol=kind))
        self.own = self.using = self.alias()
        self.admin("DROP TABLE IF EXISTS stock")
        self.admin(
            "CREATE TABLE stock (id INT AUTO_INCREMENT PRIMARY KEY, n INT) ENGINE=InnoDB"
            if kind == "mysql"
            else "CREATE TABLE stock (id serial PRIMARY KEY, n int)"
        )
        stack.callback(self.admin, "DROP TABLE IF EXISTS stock")

    def admin(self, sql: str) -> None:
        with connections[self.own].cursor() as cursor:
            cursor.execute(sql)
        connections[self.own].close()

    def alias(self, **pool: Any) -> str:
        """Another alias of the same server."""
        level = (
            {"isolation_level": pool.pop("isolation_level")} if "isolation_level" in pool else {}
        )
        name, server = f"heal{next(_numbers)}", self.server
        given = {
            "ENGINE": f"unbroken.django.{self.kind}", "NAME": server.database, "USER": server.user,
            "PASSWORD": server.password, "HOST": "127.0.0.1", "PORT": self.proxy.port,
            "OPTIONS": {**PLAIN[self.kind], **level, "unbroken": pool},
        }  # fmt: skip
        connections.settings[name] = connections.configure_settings({"default": {}, name: given})[
            name
        ]
        self.stack.callback(self._forget, name)
        return name

    def _forget(self, name: str) -> None:
        connections[name].close()
        connections[name].close_pool()
        del connections[name]
        connections.settings.pop(name)

    @property
    def connection(self) -> Any:
        return connections[self.using]

    @property
    def stock(self) -> Any:
        return Stock.objects.using(self.using)

    def atomic(self, **options: Any) -> Any:
        return transaction.atomic(using=self.using, **options)

    def run(self, sql: str, *params: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params or None)
            return cursor.fetchall() if cursor.description else None

    @property
    def healed(self) -> int:
        return int(self.connection.unbroken_pool.stats().healed)

    def rows(self) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin("SELECT n FROM stock"))

    def warm(self) -> None:
        """A request before this one: the pool has a connection."""
        assert self.stock.count() >= 0
        self.connection.close()


@pytest.fixture(params=["mysql", "postgresql"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    server = request.getfixturevalue("mariadb" if request.param == "mysql" else "postgres")
    with ExitStack() as stack:
        made = Site(request.param, server, stack)
        made.warm()
        yield made


def wait_until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def noted(error: BaseException) -> str:
    """What we said on *error*."""
    notes = [n for n in getattr(error, "__notes__", []) if "did not run this statement again" in n]
    assert len(notes) == 1, getattr(error, "__notes__", [])
    return notes[0]


BEFORE = pytest.mark.parametrize("before", [True, False], ids=["lost on the way", "answer lost"])


@BEFORE
@pytest.mark.parametrize("inside", ["autocommit", "atomic", "two blocks"])
def test_a_first_read_is_run_again(
    site: Site, before: bool, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    site.server.admin("INSERT INTO stock (n) VALUES (1)")
    cut = site.proxy.cut_at(re.compile("SELECT.*stock"), before=before)
    with caplog.at_level(logging.INFO, "unbroken"), ExitStack() as stack:
        if inside != "autocommit":
            stack.enter_context(site.atomic())
        if inside == "two blocks":
            stack.enter_context(site.atomic(savepoint=False))
        assert list(site.stock.values_list("n", flat=True)) == [1]
    assert (cut.hits, site.healed) == (1, 1)
    told = [r.getMessage() for r in caplog.records if "run again" in r.getMessage()]
    assert len(told) == 1
    assert "test_django_heal.py" in told[0]


@BEFORE
def test_a_first_write_of_a_block_is_run_again_and_stored_once(site: Site, before: bool) -> None:
    committed: list[str] = []
    cut = site.proxy.cut_at("INSERT", before=before)
    with site.atomic():
        transaction.on_commit(lambda: committed.append("here"), using=site.using)
        made = site.stock.create(n=1)
        site.stock.create(n=2)
    assert (cut.hits, site.healed, site.rows(), committed) == (1, 1, [1, 2], ["here"])
    assert site.stock.get(n=1).pk == made.pk
    assert site.connection.get_autocommit() is True


def test_a_view_under_atomic_requests_needs_no_middleware(site: Site) -> None:
    connections.settings[site.using]["ATOMIC_REQUESTS"] = True

    def view(_request: Any) -> int:
        site.stock.create(n=1)
        return int(site.stock.count())

    handler = BaseHandler().make_view_atomic(view)
    cut = site.proxy.cut_at("INSERT", before=False)
    assert handler(None) == 1
    assert (cut.hits, site.healed, site.rows()) == (1, 1, [1])


def test_wrappers_of_the_application_see_one_execution(site: Site) -> None:
    seen: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    with site.connection.execute_wrapper(wrapper):
        site.proxy.cut_at(re.compile("SELECT.*stock"))
        assert site.stock.count() == 0
    assert (len(seen), site.healed) == (1, 1)


@BEFORE
def test_what_is_rolled_back_after_a_first_write_that_was_run_again_is_not_stored(
    site: Site, before: bool
) -> None:
    site.proxy.cut_at("INSERT", before=before)
    with pytest.raises(ZeroDivisionError), site.atomic():
        site.stock.create(n=1)
        raise ZeroDivisionError
    assert (site.healed, site.rows()) == (1, [])
    with site.atomic():
        site.stock.create(n=2)
        with pytest.raises(ZeroDivisionError), site.atomic():
            site.stock.create(n=3)
            raise ZeroDivisionError
    assert site.rows() == [2]


@BEFORE
def test_many_rows_are_stored_once(site: Site, before: bool) -> None:
    rows = [(n,) for n in range(3)]
    for send in (
        lambda cursor: cursor.executemany("INSERT INTO stock (n) VALUES (%s)", rows),
        lambda _cursor: site.stock.bulk_create([Stock(n=n) for n in range(3)]),
    ):
        site.proxy.cut_at("INSERT", before=before)
        with site.atomic(), site.connection.cursor() as cursor:
            send(cursor)
        assert site.rows() == [0, 1, 2]
        site.admin("DELETE FROM stock")
    assert site.healed == 2


def test_parameters_that_can_be_read_once_are_not_sent_again(site: Site) -> None:
    site.proxy.cut_at("INSERT")
    with pytest.raises(OperationalError) as caught, site.atomic(), site.connection.cursor() as c:
        c.executemany("INSERT INTO stock (n) VALUES (%s)", ((n,) for n in range(3)))
    assert "can be read only once" in noted(caught.value)
    assert site.rows() == []


@BEFORE
def test_a_write_in_autocommit_is_an_error(site: Site, before: bool) -> None:
    cut = site.proxy.cut_at("INSERT", before=before)
    with pytest.raises(OperationalError) as caught:
        site.stock.create(n=1)
    assert "INSERT in autocommit may have been stored" in noted(caught.value)
    assert (cut.hits, site.healed, site.rows()) == (1, 0, [] if before else [1])
    with pytest.raises(OperationalError), site.connection.cursor() as cursor:
        site.proxy.cut_at("INSERT", before=before)
        cursor.executemany("INSERT INTO stock (n) VALUES (%s)", [(2,), (3,)])
    assert site.healed == 0


@BEFORE
def test_the_second_statement_of_a_block_is_an_error_that_says_so(site: Site, before: bool) -> None:
    with pytest.raises(OperationalError) as caught, site.atomic():
        site.stock.create(n=1)
        site.proxy.cut_at("INSERT", before=before)
        site.stock.create(n=2)
    assert "an earlier statement of its transaction was answered" in noted(caught.value)
    assert "unit of work" in noted(caught.value)
    assert (site.healed, site.rows()) == (0, [])


def test_a_statement_inside_a_savepoint_is_an_error(site: Site) -> None:
    with pytest.raises(OperationalError), site.atomic(), site.atomic():
        site.proxy.cut_at("INSERT")
        site.stock.create(n=1)
    assert (site.healed, site.rows()) == (0, [])


def test_a_session_that_ended_between_begin_and_the_first_statement_is_replaced(site: Site) -> None:
    for again in range(2):
        with site.atomic():
            site.proxy.rst()
            site.stock.create(n=again)
    assert site.rows() == [0, 1]
    assert site.healed == 2


def test_a_connection_that_ended_while_it_was_idle_is_replaced(site: Site) -> None:
    site.proxy.rst()
    site.stock.create(n=1)
    site.connection.close()
    site.proxy.fin()
    with site.atomic():
        site.stock.create(n=2)
    assert site.rows() == [1, 2]
    print(type(site.connection.unbroken_pool._driver).__module__)


def test_a_begin_whose_connection_is_lost_is_sent_again(site: Site) -> None:
    if site.kind == "postgresql":
        pytest.skip("its BEGIN goes out with the first statement")
    cut = site.proxy.cut_at(re.compile(r"set\s+autocommit\s*=\s*0", re.IGNORECASE))
    with site.atomic():
        site.stock.create(n=1)
    assert (cut.hits, site.healed, site.rows()) == (1, 1, [1])


def test_a_statement_is_lost_for_good_once_it_has_lost_two_connections_that_were_well(
    site: Site,
) -> None:
    for _ in range(3):
        site.proxy.cut_at("INSERT")
    with pytest.raises(OperationalError) as caught, site.atomic():
        site.stock.create(n=1)
    assert "two connections that had just worked" in noted(caught.value)
    assert site.rows() == []


@BEFORE
def test_a_block_that_cannot_go_on_gets_no_other_connection(site: Site, before: bool) -> None:
    with site.atomic():
        site.stock.create(n=1)
        site.proxy.cut_at("UPDATE", before=before)
        with pytest.raises(Error):
            site.stock.update(n=2)
        with pytest.raises(Error):
            site.stock.create(n=3)
        with pytest.raises((TransactionManagementError, Error)):
            site.run("INSERT INTO stock (n) VALUES (4)")
        transaction.set_rollback(True, using=site.using)
    assert site.rows() == []


@pytest.mark.parametrize("inside", ["autocommit", "atomic"])
def test_where_no_other_connection_is_to_be_had_the_error_is_the_first_one(
    site: Site, inside: str
) -> None:
    site.using = site.alias(acquire_timeout=0.5, outage_wait=0.2)
    site.warm()
    with pytest.raises(OperationalError) as caught, ExitStack() as stack:
        if inside == "atomic":
            stack.enter_context(site.atomic())
        site.connection.ensure_connection()
        site.proxy.cut_at(re.compile("SELECT.*stock"))
        site.proxy.refuse()
        try:
            site.stock.count()
        except OperationalError:
            if inside == "atomic":
                with pytest.raises(Error):
                    site.stock.count()
            raise
        finally:
            site.proxy.heal()
    assert "no other connection was available: no connection to" in noted(caught.value)
    wait_until(lambda: _count(site) == 0)


def _count(site: Site) -> int:
    try:
        return int(site.stock.count())
    except OperationalError:
        return -1


@pytest.mark.parametrize("inside", ["autocommit", "atomic"])
def test_receivers_of_connection_created_hear_of_the_new_connection_outside_of_the_block(
    site: Site, inside: str
) -> None:
    seen: list[bool] = []
    name = "group_concat_max_len" if site.kind == "mysql" else "work_mem"
    value = "4321" if site.kind == "mysql" else "4321kB"

    def receiver(connection: Any, **_kwargs: Any) -> None:
        seen.append(connection.in_atomic_block)
        with connection.cursor() as cursor:
            cursor.execute(f"SET SESSION {name} = '{value}'".replace("'4321'", "4321"))

    connection_created.connect(receiver)
    try:
        with ExitStack() as stack:
            if inside == "atomic":
                stack.enter_context(site.atomic())
            site.proxy.cut_at(re.compile("SELECT.*stock"))
            assert site.stock.count() == 0
            ask = f"SELECT @@{name}" if site.kind == "mysql" else f"SHOW {name}"
            assert str(site.run(ask)[0][0]) == value
    finally:
        connection_created.disconnect(receiver)
    assert seen == [False, False]
    assert site.healed == 1


SETTINGS = {
    "mysql": [
        "SET SESSION sql_mode = ''",
        "CREATE TEMPORARY TABLE mine (n int)",
        "SELECT GET_LOCK('mine', 0)",
        "SET @mine = 1",
    ],
    "postgresql": [
        "SET work_mem = '5MB'",
        "CREATE TEMP TABLE mine (n int)",
        "SELECT pg_advisory_lock(7)",
        "LISTEN mine",
    ],
}


@pytest.mark.parametrize("number", range(4))
def test_what_the_session_was_given_is_not_given_up_silently(site: Site, number: int) -> None:
    site.run(SETTINGS[site.kind][number])
    site.proxy.cut_at(re.compile("SELECT.*stock"))
    with pytest.raises(OperationalError) as caught:
        site.stock.count()
    assert re.search("on its session|transaction was answered", noted(caught.value))
    assert site.healed == 0


def test_what_was_sent_past_djangos_cursors_forbids_it(site: Site) -> None:
    site.connection.ensure_connection()
    cursor = site.connection.connection.cursor()
    cursor.execute("SELECT 1")
    cursor.fetchall()
    site.proxy.cut_at(re.compile("SELECT.*stock"))
    with pytest.raises(OperationalError):
        site.stock.count()
    assert site.healed == 0


def test_a_select_that_may_have_written_is_not_run_again(site: Site) -> None:
    make = (
        "CREATE FUNCTION sell() RETURNS int MODIFIES SQL DATA BEGIN"
        " INSERT INTO stock (n) VALUES (7); RETURN 7; END"
        if site.kind == "mysql"
        else "CREATE FUNCTION sell() RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO stock (n) VALUES (7) RETURNING n'"
    )
    site.run(make)
    try:
        site.run("CREATE VIEW sold AS SELECT sell() AS n")
        for sql in ("SELECT sell()", "SELECT n FROM sold"):
            before = len(site.rows())
            site.proxy.cut_at(sql, before=False)
            with pytest.raises(OperationalError):
                site.run(sql)
            assert len(site.rows()) == before + 1
            with site.atomic():  # the server has rolled it back
                site.proxy.cut_at(sql, before=False)
                site.run(sql)
            assert len(site.rows()) == before + 2
    finally:
        site.run("DROP VIEW sold")
        site.run("DROP FUNCTION sell" + ("" if site.kind == "mysql" else "()"))


def test_a_stream_is_run_again_when_it_is_begun_and_not_in_the_middle(site: Site) -> None:
    site.server.admin("INSERT INTO stock (n) VALUES (1), (2), (3)")
    for inside in (False, True):
        with ExitStack() as stack:
            if inside:
                stack.enter_context(site.atomic())
            site.proxy.cut_at(re.compile("SELECT.*stock"))
            assert sorted(each.n for each in site.stock.iterator(chunk_size=2)) == [1, 2, 3]
    assert site.healed == 2
    if site.kind == "postgresql":
        rows = site.stock.iterator(chunk_size=1)
        next(rows)
        site.server.kill_sessions()
        with pytest.raises(Error):
            list(rows)
        assert site.healed == 2


@BEFORE
def test_a_commit_of_nothing_but_reads_is_no_loss(site: Site, before: bool) -> None:
    with site.atomic():
        assert site.stock.count() == 0
        cut = site.proxy.cut_at("COMMIT", before=before)
    assert (cut.hits, site.healed) == (1, 1)
    assert site.connection.get_autocommit() is True
    assert site.stock.count() == 0
    with pytest.raises(unbroken.CommitUnknownError), site.atomic():
        site.stock.create(n=1)
        site.proxy.cut_at("COMMIT", before=before)


@pytest.mark.parametrize("how", ["settings", "the server's default", "the session"])
def test_a_commit_of_a_serializable_transaction_is_a_loss(site: Site, how: str) -> None:
    if site.kind == "mysql":
        pytest.skip("what was read there is valid before COMMIT")
    given = {"settings": {"isolation_level": 4}, "the server's default": {}, "the session": {}}
    site.using = site.alias(**given[how])
    if how == "the server's default":
        name = site.server.database
        site.server.admin(
            f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
        )
        site.stack.callback(
            site.server.admin, f"ALTER DATABASE {name} RESET default_transaction_isolation"
        )
    if how == "the session":
        site.run("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    with pytest.raises(unbroken.CommitUnknownError), site.atomic():
        site.stock.count()
        site.proxy.cut_at("COMMIT", before=False)
    assert site.healed == 0


def test_inside_a_unit_of_work_the_whole_unit_is_run_again(site: Site) -> None:
    begun: list[int] = []

    @replayable
    def work() -> None:
        begun.append(1)
        with site.atomic():
            site.stock.create(n=1)

    site.proxy.cut_at("INSERT")
    work()
    assert (len(begun), site.healed, site.rows()) == (2, 0, [1])


def test_a_cursor_that_was_closed_stays_closed(site: Site) -> None:
    with site.connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    with pytest.raises(site.connection.features.closed_cursor_error_class):
        cursor.execute("SELECT 1")
    assert site.healed == 0


def test_a_duplicate_key_leaves_the_transaction_open(site: Site) -> None:
    made = site.stock.create(n=1)
    other = Stock(id=made.id, n=2)
    with site.atomic():
        held = site.connection._held
        with pytest.raises(IntegrityError), site.atomic():
            other.save(using=site.using, force_insert=True)
        assert held.is_in_step
        assert not held.is_dead
        other.save(using=site.using, force_update=True)
    assert (site.rows(), site.healed) == ([2], 0)


def test_it_can_be_turned_off(site: Site) -> None:
    site.using = site.alias(heal=False)
    assert site.stock.count() == 0
    site.proxy.cut_at(re.compile("SELECT.*stock"))
    with pytest.raises(OperationalError):
        site.stock.count()
    assert site.healed == 0


def test_a_transaction_by_hand_begins_again_too(site: Site) -> None:
    connection = site.connection
    transaction.set_autocommit(False, using=site.using)
    try:
        for n in range(2):
            site.proxy.cut_at("INSERT")
            site.stock.create(n=n)
            site.stock.create(n=n + 10)
            transaction.commit(using=site.using)
        site.stock.create(n=5)
        site.proxy.cut_at("INSERT")
        with pytest.raises(OperationalError):
            site.stock.create(n=6)
    finally:
        connection.close()
    assert site.rows() == [0, 1, 10, 11]
    assert site.healed == 2


@pytest.mark.parametrize("arrived", range(20, 200, 12))
def test_wherever_the_statement_or_its_answer_is_cut_nothing_is_stored_twice(
    site: Site, arrived: int
) -> None:
    try:
        with site.atomic():
            site.proxy.cut_after(bytes=arrived, on="existing")
            site.stock.create(n=1)
    except unbroken.CommitUnknownError:
        assert site.rows() in ([], [1])
    else:
        assert site.rows() == [1]
    finally:
        site.proxy.heal()
    assert site.healed <= 1
