"""Django's backends over a pool, on real servers: lending, losses, what is left behind, round
trips.
"""

from __future__ import annotations

import gc
import logging
import math
import multiprocessing
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError
from django.test import RequestFactory

import unbroken
from unbroken.abc import Cause
from unbroken.django import replayable
from unbroken.django.middleware import UnbrokenMiddleware
from unbroken.errors import CommitUnknownError, OutageError, PoolTimeoutError
from unbroken_drill import FaultProxy

BOTH = ["mysql", "postgresql"]


def settings_for(server: Any, kind: str, **more: Any) -> dict[str, Any]:
    given = {
        "ENGINE": f"unbroken.django.{kind}", "NAME": server.database, "USER": server.user,
        "PASSWORD": server.password, "HOST": server.host, "PORT": server.port, **more,
    }  # fmt: skip
    return connections.configure_settings({"default": {}, "x": given})["x"]


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, f"not true within {seconds} s"
        time.sleep(0.01)
    return found


class Site:
    """One alias in Django's own registry, and the server behind it."""

    def __init__(self, kind: str, server: Any, alias: str, **more: Any) -> None:
        self.kind, self.server, self.alias = kind, server, alias
        connections.settings[alias] = settings_for(server, kind, **more)

    @property
    def connection(self) -> Any:
        """This thread's wrapper."""
        return connections[self.alias]

    @property
    def pool(self) -> unbroken.Pool:
        return self.connection.unbroken_pool

    def ask(self, sql: str, params: Any = None) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()[0]

    def run(self, sql: str) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    def session(self) -> int:
        return int(
            self.ask(
                "SELECT CONNECTION_ID()" if self.kind == "mysql" else "SELECT pg_backend_pid()"
            )
        )

    def close(self) -> None:
        self.connection.close()
        self.connection.close_pool()
        del connections[self.alias]
        connections.settings.pop(self.alias, None)


@pytest.fixture
def make(mariadb: Any, postgres: Any) -> Iterator[Callable[..., Site]]:
    """``make(kind, **DATABASES)``: an alias on a server of that kind; options of the pool as
    ``pool={…}``.
    """
    made: list[Site] = []

    def site(
        kind: str, server: Any = None, pool: dict[str, Any] | None = None, **more: Any
    ) -> Site:
        more.setdefault("OPTIONS", {})["unbroken"] = pool or {}
        made.append(
            Site(
                kind,
                server or (mariadb if kind == "mysql" else postgres),
                f"alias{len(made)}",
                **more,
            )
        )
        return made[-1]

    yield site
    for each in made:
        each.close()


@pytest.fixture(params=BOTH)
def site(request: Any, make: Any) -> Site:
    return make(request.param)


# -- lending ---------------------------------------------------------------------------------------


def test_close_gives_the_connection_back_and_the_next_user_gets_the_same(site: Site) -> None:
    first = site.session()
    site.connection.close()
    assert site.connection.connection is None
    assert site.pool.stats().idle == 1
    with ThreadPoolExecutor(1) as other:
        assert other.submit(site.session).result() == first


def test_between_requests_the_connection_goes_back_whatever_conn_max_age_is(make: Any) -> None:
    site = make("mysql", CONN_MAX_AGE=None)
    site.session()
    site.connection.close_if_unusable_or_obsolete()
    assert site.connection.connection is None
    assert site.pool.stats().idle == 1


def test_conn_max_age_becomes_the_age_at_which_connections_retire(make: Any) -> None:
    assert make("mysql", CONN_MAX_AGE=60).pool.settings.max_age == 60
    assert make("mysql", CONN_MAX_AGE=0).pool.settings.max_age is None
    assert make("mysql", CONN_MAX_AGE=60, pool={"max_age": 5.0}).pool.settings.max_age == 5.0


@pytest.mark.parametrize("kind", BOTH)
def test_two_hundred_threads_share_five_sessions_without_an_error(kind: str, make: Any) -> None:
    site = make(kind, pool={"max_size": 5, "acquire_timeout": 30.0})
    # what other tests cut off may still be at work there
    before = {session.id for session in site.server.sessions()}
    most = 0

    def work() -> int:
        try:
            return int(
                site.ask(
                    "SELECT 1 FROM (SELECT SLEEP(0.01)) t"
                    if kind == "mysql"
                    else "SELECT 1 FROM pg_sleep(0.01)"
                )
            )
        finally:
            site.connection.close()

    with ThreadPoolExecutor(200) as threads:
        running = [threads.submit(work) for _ in range(200)]
        while not all(each.done() for each in running):
            most = max(most, len({session.id for session in site.server.sessions()} - before))
        assert [each.result() for each in running] == [1] * 200
    assert 1 <= most <= 5
    assert site.pool.stats().opened <= 5


def test_threads_that_end_without_closing_give_back_what_they_held(site: Site) -> None:
    site.pool.resize(max_size=2)
    gc.disable()  # the wrapper is part of a cycle: it is not the collector that saves us
    try:
        for _ in range(6):
            thread = threading.Thread(target=site.session)
            thread.start()
            thread.join()
        wait_until(lambda: site.pool.stats().idle >= 1)
        assert site.pool.stats().opened <= 2
        assert site.pool.stats().leaked == 0
    finally:
        gc.enable()


def test_a_full_pool_says_who_holds_it(make: Any) -> None:
    site = make("mysql", pool={"max_size": 1, "acquire_timeout": 0.2})
    with transaction.atomic(using=site.alias):
        site.session()
        with (
            ThreadPoolExecutor(1) as other,
            pytest.raises(OperationalError, match=r"test_django\.py:\d+") as caught,
        ):
            other.submit(site.session).result()
    assert isinstance(caught.value, PoolTimeoutError)


def test_a_leak_is_reported_with_the_line_that_took_it(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site = make("mysql", pool={"leak_after": 0.2})
    with caplog.at_level(logging.WARNING, "unbroken"):
        site.session()
        wait_until(lambda: "has been held for" in caplog.text)
    assert "test_django.py:" in caplog.text


def test_the_signal_connection_created_comes_with_each_take_up(site: Site) -> None:
    seen: list[Any] = []

    def receiver(connection: Any, **_kwargs: Any) -> None:
        seen.append(connection)

    connection_created.connect(receiver)
    try:
        site.session()
        site.connection.close()
        site.session()
    finally:
        connection_created.disconnect(receiver)
    assert seen == [site.connection, site.connection]


# -- losses ----------------------------------------------------------------------------------------


def kill(site: Site) -> None:
    """The sessions end, and word of it is here: a PostgreSQL session is gone from the server's list
    before its socket closes.
    """
    site.server.kill_sessions()
    wait_until(lambda: site.connection._held.is_dead)


def test_a_worker_loop_heals_between_statements_without_any_help(site: Site) -> None:
    for _ in range(3):
        first = site.session()
        kill(site)
        assert site.session() != first


def test_a_worker_loop_heals_before_atomic(site: Site) -> None:
    first = site.session()
    kill(site)
    with transaction.atomic(using=site.alias):
        assert site.session() != first


def test_a_loss_inside_atomic_is_an_error_with_its_cause_and_the_next_block_works(
    site: Site,
) -> None:
    with pytest.raises(OperationalError) as caught, transaction.atomic(using=site.alias):
        site.session()
        site.server.kill_sessions()
        site.session()
    assert any("lost inside atomic" in note for note in caught.value.__cause__.__notes__)
    with transaction.atomic(using=site.alias):
        assert site.session()


def test_a_loss_between_two_statements_of_a_transaction_of_ones_own_is_not_hidden(
    site: Site,
) -> None:
    site.connection.set_autocommit(False)
    site.session()
    site.server.kill_sessions()
    with pytest.raises(OperationalError):
        site.session()
    site.connection.close()
    assert site.session()
    assert site.connection.get_autocommit() is True


def test_a_commit_on_a_connection_that_is_gone_says_that_nothing_is_stored(site: Site) -> None:
    site.run("CREATE TABLE IF NOT EXISTS gone (n integer)")
    with pytest.raises(OperationalError) as caught, transaction.atomic(using=site.alias):
        site.run("INSERT INTO gone VALUES (1)")
        site.server.kill_sessions()
        wait_until(lambda: site.connection._held.is_dead)
    assert isinstance(caught.value, unbroken.ConnectionLostError)
    assert not isinstance(caught.value, CommitUnknownError)
    assert site.ask("SELECT count(*) FROM gone") == 0
    site.run("DROP TABLE gone")


@pytest.mark.parametrize(
    "inside", ["a block of its own", "a replayable function", "a request under the middleware"]
)
@pytest.mark.parametrize("arrives", [False, True], ids=["lost on the way", "answer lost"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_commit_without_an_answer_is_an_error_of_djangos_that_says_unknown(
    kind: str, arrives: bool, inside: str, make: Any, proxied: Any
) -> None:
    site = make(
        kind,
        pool={"max_size": 1},
        OPTIONS={"ssl_mode": "DISABLED"} if kind == "mysql" else {"sslmode": "disable"},
    )
    proxy = proxied(site.server, kind)
    connections.settings[site.alias]["PORT"] = proxy.port
    site.run("DROP TABLE IF EXISTS unknown")
    site.run("CREATE TABLE unknown (n integer)")
    site.connection.close()
    runs: list[str] = []
    cuts: list[Any] = []

    def work(_request: Any = None) -> None:
        with transaction.atomic(using=site.alias):
            runs.append("begun")
            transaction.on_commit(lambda: runs.append("committed"), using=site.alias)
            site.run("INSERT INTO unknown VALUES (1)")
            cuts.append(proxy.cut_at("COMMIT", before=not arrives))

    if inside == "a request under the middleware":
        reply = UnbrokenMiddleware(replayable(work))(RequestFactory().get("/"))
        assert reply.status_code == 500
        assert b"outcome unknown" in reply.content
    else:
        with pytest.raises(OperationalError) as caught:
            (replayable(work) if inside == "a replayable function" else work)()
        assert isinstance(caught.value, CommitUnknownError)
        assert isinstance(caught.value.__cause__, Exception)
        assert "\n" not in str(caught.value)
    assert [cut.hits for cut in cuts] == [1]
    assert runs == ["begun"]
    assert site.ask("SELECT count(*) FROM unknown") == (1 if arrives else 0)
    site.run("DROP TABLE unknown")


AUTOCOMMIT_ON = re.compile(r"set\s+autocommit\s*=\s*1", re.IGNORECASE)


@pytest.mark.parametrize("before", [False, True], ids=["answer lost", "lost on the way"])
def test_a_connection_that_is_lost_just_after_its_commit_was_answered_is_nobodys_error(
    before: bool, make: Any, proxied: Any
) -> None:
    site = make("mysql", pool={"max_size": 1}, OPTIONS={"ssl_mode": "DISABLED"})
    proxy = proxied(site.server, "mysql")
    connections.settings[site.alias]["PORT"] = proxy.port
    site.run("CREATE OR REPLACE TABLE answered (n integer)")
    runs: list[str] = []

    @replayable
    def work() -> Any:
        with transaction.atomic(using=site.alias):
            runs.append("begun")
            transaction.on_commit(lambda: runs.append("committed"), using=site.alias)
            site.run("INSERT INTO answered VALUES (1)")
            return proxy.cut_at(AUTOCOMMIT_ON, before=before)

    cut = work()
    assert runs == ["begun", "committed"]
    assert site.connection.get_autocommit() is True
    assert site.ask("SELECT count(*) FROM answered") == 1
    wait_until(lambda: cut.hits == 1)
    site.run("DROP TABLE answered")


@pytest.mark.parametrize("kind", BOTH)
def test_an_outage_that_begins_just_after_a_commit_was_answered_is_nobodys_error(
    kind: str, make: Any, request: Any
) -> None:
    server = request.getfixturevalue("new_mariadb" if kind == "mysql" else "new_postgres")()
    site = make(kind, server, pool={"outage_wait": 0.1, "acquire_timeout": 0.5})
    site.run("CREATE TABLE answered (n integer)")
    committed: list[bool] = []
    commit = site.connection._commit

    def commit_and_stop() -> None:
        commit()
        server.stop()
        wait_until(lambda: site.connection._held.is_dead)

    site.connection._commit = commit_and_stop
    with transaction.atomic(using=site.alias):
        transaction.on_commit(lambda: committed.append(True), using=site.alias)
        site.run("INSERT INTO answered VALUES (1)")
    assert committed == [True]
    server.start()
    assert server.admin("SELECT count(*) FROM answered") == [("1",)]


def test_a_transaction_by_hand_that_is_lost_where_its_end_would_commit_it_is_an_error(
    make: Any, proxied: Any
) -> None:
    site = make("mysql", pool={"max_size": 1}, OPTIONS={"ssl_mode": "DISABLED"})
    proxy = proxied(site.server, "mysql")
    connections.settings[site.alias]["PORT"] = proxy.port
    site.run("CREATE OR REPLACE TABLE by_hand (n integer)")
    site.connection.set_autocommit(False)
    site.run("INSERT INTO by_hand VALUES (1)")
    proxy.cut_at(AUTOCOMMIT_ON, before=True)
    with pytest.raises(OperationalError):
        site.connection.set_autocommit(True)
    site.connection.close()
    assert site.ask("SELECT count(*) FROM by_hand") == 0
    site.run("DROP TABLE by_hand")


def test_an_outage_is_an_operational_error_and_an_outage_error_in_one(
    make: Any, new_mariadb: Any
) -> None:
    server = new_mariadb()
    site = make("mysql", server, pool={"outage_wait": 0.1, "acquire_timeout": 0.5})
    site.session()
    site.connection.close()
    server.stop()
    with pytest.raises(OutageError) as caught:
        site.session()
    assert isinstance(caught.value, OperationalError)
    assert caught.value.retry_after > 0
    server.start()

    def answers() -> bool:
        try:
            return bool(site.session())
        except OutageError:
            return False

    wait_until(answers)


@pytest.mark.parametrize("kind", BOTH)
def test_a_worker_that_idles_past_the_servers_limit_sees_nothing_of_it(
    kind: str, make: Any, new_mariadb: Any, new_postgres: Any
) -> None:
    server = (
        new_mariadb({"wait_timeout": 1})
        if kind == "mysql"
        else new_postgres({"idle_session_timeout": "1s"})
    )
    site = make(kind, server)
    first = site.session()
    wait_until(lambda: not server.sessions())
    assert site.session() != first
    assert set(site.pool.stats().closed) <= {Cause.IDLE_LIMIT.value, Cause.CLOSED_BY_PEER.value}


def test_a_worker_that_goes_on_and_on_takes_turns(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbroken.integrations.django.held.TURN", 0.0)
    site = make("mysql", pool={"max_size": 1})
    site.session()
    over = threading.Event()

    def other() -> None:
        try:
            site.session()
        finally:
            site.connection.close()
            over.set()

    thread = threading.Thread(target=other)
    thread.start()
    wait_until(lambda: site.session() and over.is_set())
    thread.join()


def test_a_forked_child_uses_sessions_of_its_own_and_leaves_the_parents_alone(site: Site) -> None:
    mine = site.session()
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.Queue()

    def child() -> None:
        answers.put(site.session())

    worker = fork.Process(target=child)
    worker.start()
    theirs = answers.get(timeout=20)
    worker.join(20)
    assert theirs != mine
    assert site.session() == mine


# -- what is left behind ---------------------------------------------------------------------------

LEAVINGS = [
    ("mysql", "SET SESSION group_concat_max_len = 7"),
    ("mysql", "/* app */ SET @x = 5"),
    ("mysql", "SELECT @x := 5"),
    ("mysql", "CREATE TEMPORARY TABLE left_behind (n int)"),
    ("mysql", "SELECT GET_LOCK('left', 0)"),
    ("mysql", "SET foreign_key_checks=0"),
    ("mysql", "SELECT 5 INTO @x"),
    ("mysql", "/*!40101 SET @x = 5 */"),
    ("mysql", "/*!40101 SET NAMES utf8mb4 */"),
    ("mysql", "EXECUTE IMMEDIATE 'SET @x = 5'"),
    ("mysql", "BEGIN NOT ATOMIC SET @x = 5; END"),
    ("mysql", "SELECT GET_LOCK ('left', 0)"),
    ("mysql", "select/**/get_lock/* a */( 'left', 0)"),
    ("mysql", "SELECT `GET_LOCK`('left', 0)"),
    ("mysql", "SET sql_mode = ''"),
    ("mysql", "SET TRANSACTION ISOLATION LEVEL READ UNCOMMITTED"),
    ("mysql", "USE information_schema"),
    ("mysql", "LOCK TABLES lasting WRITE"),
    ("mysql", "SET autocommit = 0"),
    ("mysql", "CALL leaving(@x)"),
    ("mysql", "PREPARE left_behind FROM 'SELECT 1'"),
    ("mysql", "HANDLER lasting OPEN"),
    ("mysql", "CREATE TEMPORARY TABLE left_behind SELECT 1 AS n"),
    ("mysql", "CREATE/* a */OR REPLACE /* b */ TEMPORARY /* c */ TABLE left_behind (n int)"),
    ("mysql", "SET ROLE NONE"),
    ("mysql", "SET STATEMENT max_statement_time=10 FOR SELECT 1 INTO @x"),
    ("mysql", "SELECT n INTO /* here */ @x FROM (SELECT 5 AS n) AS t"),
    ("mysql", "DO GET_LOCK('left', 0)"),
    ("postgresql", "SET statement_timeout = 4321"),
    ("postgresql", "-- app\nSET TIME ZONE 'Asia/Tokyo'"),
    ("postgresql", "CREATE TEMP TABLE left_behind (n int)"),
    ("postgresql", "SELECT pg_advisory_lock(42)"),
    ("postgresql", "SELECT set_config('work_mem', '1MB', false)"),
    ("postgresql", "LISTEN left_behind"),
    ("postgresql", "SELECT set_config ('work_mem', '1MB', false)"),
    ("postgresql", "SELECT \"set_config\"('work_mem', '1MB', false)"),
    ("postgresql", "UPDATE pg_settings SET setting = '1024' WHERE name = 'work_mem'"),
    ("postgresql", "DO $$ BEGIN SET work_mem = '1MB'; END $$"),
    ("postgresql", "CREATE OR REPLACE TEMP VIEW left_behind AS SELECT 1 AS n"),
    ("postgresql", "CREATE TABLE pg_temp.left_behind (n int)"),
    ("postgresql", "SELECT 1 AS n INTO TEMP left_behind"),
    ("postgresql", "SELECT 1; SET work_mem = '1MB'"),
    ("postgresql", "PREPARE left_behind AS SELECT 1"),
    ("postgresql", "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1"),
    ("postgresql", "SET ROLE app"),
    ("postgresql", "SET client_encoding = 'LATIN1'"),
    ("postgresql", "RESET timezone"),
    ("postgresql", "DISCARD ALL"),
    ("postgresql", "SET SESSION AUTHORIZATION app"),
    ("postgresql", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"),
    ("postgresql", "SELECT pg_try_advisory_lock_shared(42)"),
    ("postgresql", "SELECT set_config/* a */(/* b */'work_mem', '1MB', false)"),
    ("postgresql", "WITH a AS (SELECT set_config('work_mem', '1MB', false)) SELECT * FROM a"),
    ("postgresql", "CREATE TEMP SEQUENCE left_behind"),
    ("postgresql", "CREATE VIEW pg_temp.left_behind AS SELECT 1 AS n"),
    ("postgresql", "SELECT 1; DO $$ BEGIN PERFORM pg_advisory_lock(42); END $$"),
]


@pytest.mark.parametrize(("kind", "leave"), LEAVINGS)
def test_what_a_user_leaves_on_a_session_does_not_reach_the_next(
    kind: str, leave: str, make: Any
) -> None:
    site = make(kind, pool={"max_size": 1}, TIME_ZONE="Asia/Tokyo", OPTIONS=_ISOLATED[kind])
    first, before = site.session(), state_of(site)
    site.run("CREATE TABLE IF NOT EXISTS lasting (n integer)")
    if leave.startswith("CALL"):
        site.run("CREATE PROCEDURE leaving (OUT n integer) SET n = 5")
    site.connection.close()
    try:
        site.run(leave)
        site.session()
        assert site.session() == first  # it is theirs for as long as they have it
        site.connection.close()
        assert site.session() == first
        assert state_of(site) == before
    finally:
        site.connection.close()
        site.run("DROP TABLE lasting")
        if leave.startswith("CALL"):
            site.run("DROP PROCEDURE leaving")


_ISOLATED = {
    "mysql": {"isolation_level": "serializable", "charset": "latin1"},
    "postgresql": {"isolation_level": 3, "assume_role": None},
}
_STATE = {
    "mysql": (
        """
        SELECT CONCAT_WS('|', @@time_zone, @@group_concat_max_len, IFNULL(@x, '-'), @@foreign_key_checks, @@sql_mode,
        @@tx_isolation, @@character_set_client, @@collation_connection, IS_FREE_LOCK('left'), DATABASE(), @@autocommit)"""  # noqa: E501
    ),
    "postgresql": (
        """
        SELECT concat_ws('|', current_setting('timezone'), current_setting('work_mem'), current_setting('statement_timeout'),
        current_setting('search_path'), current_setting('role'), session_user,
        current_setting('default_transaction_read_only'), current_setting('client_encoding'), to_regclass('left_behind'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), (SELECT count(*) FROM pg_cursors WHERE is_holdable),
        (SELECT count(*) FROM pg_listening_channels()))"""  # noqa: E501
    ),
}


def state_of(site: Site) -> list[Any]:
    """What a session shows of what users may have left on it."""
    found = [site.ask(_STATE[site.kind])]
    if site.kind == "mysql":
        found += [_given(site, sql) for sql in _OWN_THINGS]
    return found


#: A temporary table, a prepared statement, a handler.
_OWN_THINGS = ("SELECT n FROM left_behind", "EXECUTE left_behind", "HANDLER lasting READ FIRST")


def _given(site: Site, sql: str) -> Any:
    try:
        with site.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()
    except DatabaseError:
        return "there is none"


@pytest.mark.parametrize("kind", BOTH)
def test_a_hundred_requests_with_set_share_one_session(kind: str, make: Any) -> None:
    site = make(kind, pool={"max_size": 2})
    for number in range(100):
        site.run(
            f"SET @x = {number}"
            if kind == "mysql"
            else f"SET search_path TO tenant{number}, public"
        )
        site.ask("SELECT 1")
        site.connection.close()
    assert site.pool.stats().opened == 1
    assert not site.pool.stats().closed


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("way", ["connection", "cursor", "attribute"])
def test_what_is_sent_past_djangos_cursors_does_not_reach_the_next_user(
    kind: str, way: str, make: Any
) -> None:
    site = make(kind, pool={"max_size": 1})
    first, before = site.session(), state_of(site)
    leave = "SET @x = 5" if kind == "mysql" else "SET work_mem TO '5MB'"
    if way == "connection":
        cursor = site.connection.connection.cursor()
        cursor.execute(leave)
        cursor.close()
    elif way == "cursor":
        with site.connection.cursor() as wrapper:
            wrapper.cursor.execute(leave)
    else:
        with site.connection.cursor() as wrapper:
            wrapper.connection.cursor().execute(leave)
    site.connection.close()
    assert (site.session(), state_of(site)) == (first, before)


def test_the_ordinary_costs_no_reset(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    driver = site.pool._driver
    plain = driver.reset_session
    monkeypatch.setattr(
        driver, "reset_session", lambda *args: (asked.append(args), plain(*args)), raising=False
    )
    for _ in range(3):
        with transaction.atomic(using=site.alias):
            site.ask("SELECT count(*) FROM (SELECT 1 AS a) AS x WHERE a IN (1, 2)")
        site.connection.close()
    assert not asked
    site.run("SET @x = 1" if site.kind == "mysql" else "SET work_mem TO '5MB'")
    site.connection.close()
    assert len(asked) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_what_no_reset_undoes_ends_the_session(kind: str, make: Any) -> None:
    options = {"init_command": "SET @opened = 1"} if kind == "mysql" else {}
    site = make(kind, pool={"max_size": 1}, OPTIONS=options)
    first = site.session()
    site.run("SET @x = 5" if kind == "mysql" else "SELECT setseed(0.5)")
    site.connection.close()
    assert site.session() != first
    assert site.pool.stats().closed.get(Cause.DISCARDED.value) == 1


@pytest.mark.parametrize(
    ("kind", "sql"),
    [
        ("mysql", "SELECT 1"), ("mysql", "SET foreign_key_checks=0; SET foreign_key_checks=1"), ("mysql", "SELECT 'reset '"),  # noqa: E501
        ("postgresql", "SET LOCAL statement_timeout = 5"), ("postgresql", "SET CONSTRAINTS ALL IMMEDIATE"),  # noqa: E501
        ("postgresql", "SELECT pg_advisory_xact_lock(42)"), ("postgresql", "SELECT 'SET statement_timeout = 5'"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_leaves_nothing_costs_no_connection(kind: str, sql: str, make: Any) -> None:
    site = make(kind, pool={"max_size": 1})
    first = site.session()
    for part in sql.split("; "):
        site.run(part)
    site.connection.close()
    assert site.session() == first


def test_an_open_transaction_is_rolled_back_before_the_next_user(site: Site) -> None:
    site.run("CREATE TABLE IF NOT EXISTS open_work (n integer)")
    site.connection.set_autocommit(False)
    site.run("INSERT INTO open_work VALUES (1)")
    site.connection.close()
    assert site.connection.get_autocommit() is True
    assert site.ask("SELECT count(*) FROM open_work") == 0
    site.run("DROP TABLE open_work")


def test_a_cursor_that_is_kept_does_not_reach_the_next_user(site: Site) -> None:
    cursor = site.connection.cursor()
    cursor.execute("SELECT 1")
    site.connection.close()
    with pytest.raises(Exception, match=r"closed|NoneType"):
        cursor.execute("SELECT 1")


def test_a_server_side_cursor_left_open_does_not_reach_the_next_user(make: Any) -> None:
    site = make("postgresql", pool={"max_size": 1})
    first = site.session()
    cursor = site.connection.chunked_cursor()
    cursor.execute("SELECT * FROM generate_series(1, 1000)")
    cursor.fetchmany(10)
    site.connection.close()
    assert site.session() == first
    assert site.ask("SELECT count(*) FROM pg_cursors") == 0


def test_a_lock_that_was_lost_with_its_session_is_not_hidden(site: Site) -> None:
    site.run("SELECT GET_LOCK('mine', 0)" if site.kind == "mysql" else "SELECT pg_advisory_lock(7)")
    site.server.kill_sessions()
    wait_until(lambda: site.connection._held.is_dead)
    with pytest.raises(OperationalError):
        site.session()
    assert site.session()


def test_a_session_is_set_up_as_django_sets_up_its_own(make: Any) -> None:
    mysql = make("mysql", OPTIONS={"isolation_level": "serializable"})
    assert mysql.ask("SELECT @@tx_isolation") == "SERIALIZABLE"
    postgres = make("postgresql", TIME_ZONE="Asia/Tokyo")
    assert postgres.ask("SHOW timezone") == "Asia/Tokyo"
    with ThreadPoolExecutor(1) as other:
        assert other.submit(postgres.ask, "SHOW timezone").result() == "Asia/Tokyo"


def test_closing_inside_atomic_allows_no_query_until_the_block_ends(site: Site) -> None:
    with transaction.atomic(using=site.alias):
        site.session()
        site.connection.close()
        with pytest.raises((TransactionManagementError, ProgrammingError)):
            site.session()
    assert site.session()


# -- yielding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_threads_that_hold_an_idle_connection_yield_it_to_those_that_wait(
    kind: str, make: Any
) -> None:
    site = make(kind, pool={"max_size": 10, "acquire_timeout": 10.0})
    together = threading.Barrier(16)

    def work() -> set[int]:
        found = set()
        for _ in range(3):
            found.add(site.session())
            together.wait(30)  # all of them hold one at this moment, as far as they know
            with transaction.atomic(using=site.alias):
                assert site.session() == site.session()
        return found

    with ThreadPoolExecutor(16) as workers:
        futures = [workers.submit(work) for _ in range(16)]
        for _ in range(5):
            assert site.session()
        sessions = set().union(*(future.result(60) for future in futures))
        assert site.session()
        assert len(sessions) <= 10
        assert site.pool.stats().size <= 10
        assert not site.pool.stats().timeouts
        assert not site.pool.stats().closed


@pytest.mark.parametrize("kind", BOTH)
def test_no_thread_loses_a_connection_that_it_needs(
    kind: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbroken.integrations.django.held.REST", 0.0)
    site = make(kind, pool={"max_size": 2, "acquire_timeout": 60.0})
    leave, look = (
        ("SET @mine = %s", "SELECT @mine")
        if kind == "mysql"
        else ("SET my.own = '%s'", "SELECT current_setting('my.own', true)")
    )
    until = time.monotonic() + 4.0

    def work(number: int) -> int:
        done = 0
        while time.monotonic() < until:
            done += 1
            choice = (number + done) % 4
            if choice == 0:
                with transaction.atomic(using=site.alias):
                    first = site.session()
                    time.sleep(0.001)
                    assert site.session() == first
            elif choice == 1:
                site.run(leave % number)
                time.sleep(0.001)
                assert str(site.ask(look)) == str(number)
                site.connection.close()
            elif choice == 2:
                with site.connection.cursor() as cursor:
                    cursor.execute("SELECT 1")
                    time.sleep(0.001)
                    assert cursor.fetchone() == (1,)
            else:
                assert site.ask(look) in (None, "")
        return done

    with ThreadPoolExecutor(6) as workers:
        assert all(workers.map(work, range(6)))
    assert not site.pool.stats().timeouts
    assert not site.pool.stats().closed


@pytest.mark.parametrize("kind", BOTH)
def test_a_test_database_can_be_dropped_though_other_aliases_lead_to_it(
    kind: str, make: Any, new_mariadb: Any, new_postgres: Any
) -> None:
    server = new_mariadb() if kind == "mysql" else new_postgres()
    server.admin("CREATE DATABASE test_shop" + ("" if kind == "mysql" else f" OWNER {server.user}"))
    if kind == "mysql":
        server.admin(f"GRANT ALL ON test_shop.* TO '{server.user}'@'%'")
    primary, twin, mirror = (make(kind, server, NAME="test_shop") for _ in range(3))
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(twin.session).result()  # at rest from now on
        assert primary.session()
        assert mirror.session()
        mirror.connection.close()
        time.sleep(0.02)  # longer than a thread is waited for before it counts as being at rest
        primary.connection.close()
        primary.connection.creation._destroy_test_db("test_shop", 0)
        with pytest.raises(Exception, match="test_shop"):
            mirror.session()
        thread.submit(lambda: twin.connection.close()).result()


def test_a_test_database_can_be_cloned_though_other_aliases_lead_to_it(
    make: Any, new_postgres: Any
) -> None:
    server = new_postgres()
    server.admin(f"CREATE DATABASE test_shop OWNER {server.user}")
    server.admin(f"ALTER ROLE {server.user} CREATEDB")
    primary, twin, mirror = (
        make("postgresql", server, NAME="test_shop", HOST=host)
        for host in (server.host, server.host, "localhost")
    )
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(twin.session).result()  # at rest from now on
        for each in (primary, mirror):
            assert each.session()
            each.connection.close()
        time.sleep(0.02)  # longer than a thread is waited for before it counts as being at rest
        primary.connection.creation._clone_test_db("1", 0)
        thread.submit(lambda: twin.connection.close()).result()
    names = [name for (name,) in server.admin("SELECT datname FROM pg_database")]
    assert "test_shop_1" in names


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unbroken": {"max_sise": 5}}, r"did you mean 'max_size'"),
        ({"unbroken": {"max_size": 0}}, r"max_size=0"),
        ({"unbroken": 5}, r"must be a dictionary"),
        ({"pool": True}, r'OPTIONS\["pool"\]'),
    ],
)
def test_settings_that_cannot_work_are_refused_in_words(
    options: dict[str, Any], words: str, postgres: Any
) -> None:
    from unbroken.django.postgresql.base import DatabaseWrapper

    wrapper = DatabaseWrapper(settings_for(postgres, "postgresql", OPTIONS=options), "wrong")
    with pytest.raises(ImproperlyConfigured, match=words):
        wrapper.ensure_connection()


def test_a_refused_password_is_an_error_at_once_without_the_password(make: Any) -> None:
    for kind in BOTH:
        site = make(kind, PASSWORD="not-this-one")
        started = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            site.session()
        assert isinstance(caught.value, unbroken.ConnectRejectedError)
        assert time.monotonic() - started < 5
        assert "not-this-one" not in str(caught.value)


def test_system_checks_say_what_to_do(
    make: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbroken.integrations.django import checks

    make("postgresql", OPTIONS={"pool": True}, CONN_HEALTH_CHECKS=True)
    make("mysql", pool={"max_sise": 3})
    found = {message.id: message for message in checks.check_settings()}
    assert set(found) == {"unbroken.E001", "unbroken.E002", "unbroken.I003"}
    assert "max_size" in found["unbroken.E001"].msg
    assert "max_size" in found["unbroken.E002"].hint


def test_the_deployment_check_holds_pools_and_processes_against_the_server(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbroken.integrations.django import checks

    site = make("postgresql", pool={"max_size": 20})
    assert [m.id for m in checks.check_deployment()] == []
    monkeypatch.setenv("WEB_CONCURRENCY", "50")
    found = {m.id: m for m in checks.check_deployment()}
    # the first check has used the database, "before the fork"
    assert set(found) == {"unbroken.W004", "unbroken.W005"}
    limit = int(site.ask("SHOW max_connections"))
    assert (
        "20 × 50 processes (WEB_CONCURRENCY) = 1000, which exceeds the server's max_connections"
        f" {limit}." in found["unbroken.W005"].msg
    )
    assert f"to {max(1, limit // 50)} at most" in found["unbroken.W005"].hint


def test_the_deployment_check_warns_of_persistent_connections_under_asgi(
    settings: Any, mariadb: Any
) -> None:
    from unbroken.integrations.django import checks

    settings.ASGI_APPLICATION = "site.asgi.application"
    connections.settings["plain"] = settings_for(
        mariadb, "mysql", ENGINE="django.db.backends.mysql", CONN_MAX_AGE=None
    )
    try:
        assert [m.id for m in checks.check_deployment()] == ["unbroken.W006"]
    finally:
        connections.settings.pop("plain")


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("sessions_are_not_counted")
@pytest.mark.parametrize("kind", BOTH)
def test_a_request_with_one_query_is_one_round_trip_on_the_wire(kind: str, make: Any) -> None:
    site = make(kind, pool={"max_size": 1})
    with FaultProxy((site.server.host, site.server.port)) as proxy:
        connections.settings[site.alias]["PORT"] = proxy.port

        def request() -> None:
            site.ask("SELECT 1")
            site.connection.close_if_unusable_or_obsolete()

        for _ in range(3):  # connects; asks for the idle limit and the version once per process
            with ThreadPoolExecutor(
                1
            ) as threads:  # each request on a thread of its own, as under ASGI
                threads.submit(request).result()
        before = proxy.round_trips
        for _ in range(20):
            with ThreadPoolExecutor(1) as threads:
                threads.submit(request).result()
        assert proxy.round_trips - before == 20
        assert site.pool.stats().opened == 1


def test_deadline_bounds_a_query_and_says_so(make: Any) -> None:
    site = make("postgresql", pool={"deadline": 0.3})
    site.pool.check()  # the deadline is for the query, not for a busy machine's connect
    started = time.monotonic()
    with pytest.raises(unbroken.DeadlineExceeded) as caught:
        site.ask("SELECT 1 FROM pg_sleep(30)")
    assert isinstance(caught.value, OperationalError)
    assert time.monotonic() - started < math.ceil(0.3) + 10
    assert site.session()
