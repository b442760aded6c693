"""What a request costs behind a network: exact counts on the wire, on MariaDB and PostgreSQL, and
that nothing is lost by what is saved.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction
from django.test import RequestFactory

from unbroken.django import replayable
from unbroken.django.middleware import UnbrokenMiddleware
from unbroken.errors import CommitUnknownError
from unbroken_drill import FaultProxy

from .test_django import BOTH, Site, make, wait_until  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

#: one way, in seconds; long, so that a slow machine counts the same round trips
FAR = 0.01

READ, WRITE = "SELECT n FROM trips", "UPDATE trips SET n = n"


class Left(Exception):  # noqa: N818 - leaves a block
    """Rolls a block back."""


@pytest.fixture(params=BOTH)
def far(request: Any, make: Any) -> Any:  # noqa: F811
    """A site whose pool has one connection, behind a proxy."""
    options = {"ssl_mode": "DISABLED"} if request.param == "mysql" else {"sslmode": "disable"}
    if request.param == "mysql" and "pymysql" in sys.modules:
        options = {}
    site = make(request.param, pool={"max_size": 1}, OPTIONS=options)
    site.run("DROP TABLE IF EXISTS trips")
    site.run("CREATE TABLE trips (n INT)")
    site.run("INSERT INTO trips VALUES (1), (2)")
    site.run("DROP PROCEDURE IF EXISTS sell")
    body = "" if request.param == "mysql" else " LANGUAGE SQL AS '"
    end = "" if request.param == "mysql" else "'"
    site.run(f"CREATE PROCEDURE sell(){body} INSERT INTO trips VALUES (77){end}")
    site.connection.close()
    site.connection.close_pool()
    with FaultProxy((site.server.host, site.server.port), protocol=request.param) as proxy:
        connections.settings[site.alias]["PORT"] = proxy.port
        site.proxy = proxy
        yield site


def count(site: Any, work: Callable[[], None], right: float) -> None:
    """*work*, a request, costs *right* round trips."""

    def request() -> None:
        work()
        site.connection.close_if_unusable_or_obsolete()

    for _ in range(3):  # connects, asks for limits and versions, sees how a COMMIT is answered
        request()
    site.run(WRITE)
    with transaction.atomic(using=site.alias):
        site.run(WRITE)
    site.connection.close()
    site.proxy.latency(FAR)
    request()
    counts: list[float] = []
    while right not in counts and len(counts) < 10:
        # a pause of this machine may cost one more now and then
        before = site.proxy.round_trips
        for _ in range(4):
            request()
        counts.append((site.proxy.round_trips - before) / 4)
    assert right in counts, counts


def block(site: Any, *statements: str, **options: Any) -> None:
    with transaction.atomic(using=site.alias, **options):
        for sql in statements:
            run(site, sql)


def run(site: Any, sql: str) -> None:
    with site.connection.cursor() as cursor:
        cursor.execute(sql)
        if cursor.description:
            cursor.fetchall()


#: What a request does, and its round trips with MySQL's drivers and psycopg.
REQUESTS: dict[str, tuple[Callable[[Any], None], int, int]] = {
    "a read in autocommit": (lambda site: run(site, READ), 1, 1),
    "a read in atomic": (lambda site: block(site, READ), 1, 1),
    "a write in atomic": (lambda site: block(site, WRITE), 3, 2),
    "a read and a write in atomic": (lambda site: block(site, READ, WRITE), 3, 3),
    "a durable block": (lambda site: block(site, READ, durable=True), 1, 1),
    "two blocks that read": (lambda site: [block(site, READ) for _ in "12"] and None, 2, 2),
    "a block of nothing": (lambda site: block(site), 0, 0),
    "a locking read": (lambda site: block(site, f"{READ} FOR UPDATE"), 3, 2),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_costs_so_many_round_trips(what: str, far: Any) -> None:
    work, mysql, postgresql = REQUESTS[what]
    right = mysql if far.kind == "mysql" else postgresql
    if what == "a locking read" and far.kind == "mysql":
        right = 2  # it goes behind what begins the transaction; its COMMIT is waited for
    count(far, lambda: work(far), right)


def test_a_request_under_the_middleware_costs_no_more(far: Any) -> None:
    def view(_request: Any) -> Any:
        from django.http import HttpResponse

        block(far, READ)
        return HttpResponse()

    request = UnbrokenMiddleware(view)
    count(far, lambda: request(RequestFactory().get("/")) and None, 1)


def test_both_kinds_of_binding_on_postgresql_begin_with_their_first_statement(
    make: Any,  # noqa: F811
    postgres: Any,
) -> None:
    site = make("postgresql", pool={"max_size": 1}, OPTIONS={"server_side_binding": True})
    with FaultProxy((postgres.host, postgres.port)) as proxy:
        connections.settings[site.alias]["PORT"] = proxy.port
        site.proxy = proxy
        site.run("CREATE TABLE IF NOT EXISTS trips (n INT)")

        def once() -> None:
            with transaction.atomic(using=site.alias), site.connection.cursor() as cursor:
                cursor.execute("SELECT n FROM trips WHERE n = %s", [1])

        count(site, once, 1)


def test_several_statements_in_one_text_are_taken_as_ever(make: Any) -> None:  # noqa: F811
    """Client-side binding sends such a text by the simple protocol."""
    site: Site = make("postgresql")
    with transaction.atomic(using=site.alias), site.connection.cursor() as cursor:
        cursor.execute("SELECT %s; SELECT 2", [1])
        assert cursor.fetchone() == (1,) or cursor.fetchone() == (2,)
    with transaction.atomic(using=site.alias):
        assert site.ask("SELECT %s", ["one; two $1 %s"]) == "one; two $1 %s"


@pytest.mark.parametrize("first", [READ, WRITE, "SAVEPOINT here"])
def test_what_is_rolled_back_is_not_stored_whatever_comes_first(first: str, far: Any) -> None:
    count(far, lambda: block(far, READ), 1)
    with suppress(Left), transaction.atomic(using=far.alias):
        run(far, first)
        run(far, "INSERT INTO trips VALUES (77)")
        raise Left
    assert far.connection.get_autocommit() is True
    assert far.ask("SELECT count(*) FROM trips WHERE n = 77") == 0
    run(far, "INSERT INTO trips VALUES (78)")
    far.connection.close()
    assert far.ask("SELECT count(*) FROM trips WHERE n = 78") == 1


def test_the_drivers_own_connection_finds_the_transaction_begun(far: Any) -> None:
    for _ in range(2):
        with suppress(Left), transaction.atomic(using=far.alias):
            raw = far.connection.connection.cursor()
            raw.execute("INSERT INTO trips VALUES (77)")
            raise Left
        assert far.ask("SELECT count(*) FROM trips WHERE n = 77") == 0


def test_a_callback_on_commit_runs_and_sees_autocommit(far: Any) -> None:
    for _ in range(3):
        seen: list[Any] = []
        with transaction.atomic(using=far.alias):
            transaction.on_commit(
                lambda seen=seen: seen.append(
                    (far.connection.get_autocommit(), far.ask("SELECT max(n) FROM trips"))
                ),
                using=far.alias,
            )
            run(far, READ)
        assert seen == [(True, 2)]


def test_a_lock_is_free_once_the_block_has_ended(far: Any) -> None:
    """NOWAIT tells where that is not so."""
    far.proxy.latency(FAR)
    for _ in range(4):
        block(far, f"{READ} FOR UPDATE")
        far.server.admin(f"{READ} FOR UPDATE NOWAIT")


def test_no_transaction_outlives_its_block(far: Any) -> None:
    far.proxy.latency(0)
    for _ in range(3):
        block(far, READ)
    session = far.session()
    asked = (
        f"SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {session}"
        if far.kind == "mysql"
        else f"SELECT 1 FROM pg_stat_activity WHERE pid = {session} AND state LIKE '%transaction%'"
    )
    block(far, READ)
    # InnoDB shows the same again to those who look sooner than 0.1 s after the last look
    wait_until(lambda: not far.server.admin(asked) or time.sleep(0.11), 2.0)


@pytest.mark.parametrize("then", [READ, WRITE, "block"])
def test_a_connection_that_is_lost_behind_a_commit_that_nobody_waits_for_is_nobodys_error(
    then: str, far: Any
) -> None:
    for _ in range(3):
        block(far, READ)
    with transaction.atomic(using=far.alias):
        run(far, WRITE)
    session = far.session()
    block(far, READ)
    far.server.admin(
        f"KILL {session}" if far.kind == "mysql" else f"SELECT pg_terminate_backend({session})"
    )
    wait_until(lambda: far.connection._held is None or far.connection._held.is_dead)
    block(far, READ, WRITE) if then == "block" else run(far, then)
    assert far.session() != session


def _calls(far: Any) -> None:
    with transaction.atomic(using=far.alias), far.connection.cursor() as cursor:
        cursor.callproc("sell") if far.kind == "mysql" else cursor.execute("CALL sell()")


def _does(far: Any) -> None:
    """A statement of which nobody knows what it does."""
    block(far, "DO 1" if far.kind == "mysql" else "DO $$BEGIN PERFORM 1; END$$")


#: What a block sends first.
FIRST: dict[str, Callable[[Any], None]] = {
    "read": lambda far: block(far, READ), "write": lambda far: block(far, WRITE),
    "savepoint": lambda far: block(far, "SAVEPOINT here"),
    "CALL": lambda far: block(far, "CALL sell()"), "callproc": _calls, "unknown": _does,
}  # fmt: skip


@pytest.mark.parametrize("first", FIRST)
def test_a_connection_that_is_lost_at_the_beginning_of_a_block_is_replaced(
    first: str, far: Any
) -> None:
    block(far, WRITE)
    cut = far.proxy.cut_at("SET autocommit = 0" if far.kind == "mysql" else "BEGIN", before=True)
    FIRST[first](far)
    assert cut.hits == 1
    assert far.pool.stats().healed == 1
    assert far.ask("SELECT count(*) FROM trips WHERE n = 77") == (first in ("CALL", "callproc"))


@pytest.mark.parametrize("first", ["CALL", "callproc", "unknown"])
def test_a_connection_that_hung_up_before_a_block_is_replaced(
    first: str, far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has noted it yet when the statement is sent."""
    block(far, WRITE)
    session = far.session()
    held = far.connection._held
    monkeypatch.setattr(type(held), "is_dead", property(lambda self: self.entry.cause is not None))
    far.server.admin(
        f"KILL {session}" if far.kind == "mysql" else f"SELECT pg_terminate_backend({session})"
    )
    wait_until(lambda: held.entry.poll(0))
    FIRST[first](far)
    assert far.connection._held is not held
    assert far.ask("SELECT count(*) FROM trips WHERE n = 77") == (first != "unknown")


@pytest.mark.parametrize("first", ["CALL", "callproc"])
def test_a_call_that_may_have_run_is_not_run_again(first: str, far: Any) -> None:
    block(far, WRITE)
    cut = far.proxy.cut_at("CALL", before=False)
    with pytest.raises(OperationalError):
        FIRST[first](far)
    assert cut.hits == 1
    assert far.pool.stats().healed == 0


def test_a_write_whose_commit_is_lost_is_in_doubt(far: Any) -> None:
    block(far, READ)
    cut = far.proxy.cut_at("COMMIT")
    with pytest.raises(CommitUnknownError):
        block(far, READ, WRITE)
    assert cut.hits == 1


def test_a_replayed_unit_stores_its_work_once(far: Any) -> None:
    runs: list[int] = []

    @replayable
    def work() -> None:
        runs.append(len(runs))
        with transaction.atomic(using=far.alias):
            run(far, READ)
        with transaction.atomic(using=far.alias):
            run(far, "INSERT INTO trips VALUES (77)")
            if len(runs) == 1:
                far.proxy.cut_at("UPDATE")
            run(far, WRITE)

    work()
    assert len(runs) == 2
    assert far.ask("SELECT count(*) FROM trips WHERE n = 77") == 1


def test_pymysql_in_mysqlclients_place_does_the_same() -> None:
    program = (
        "import sys; import pymysql; pymysql.install_as_MySQLdb();"
        " import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    )
    chosen = ["-q", "-p", "no:cacheprovider", "-k", "mysql and not pymysql", __file__]
    done = subprocess.run(
        [sys.executable, "-c", program, *chosen],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
