"""Faults under peewee's models: what playhouse's users see as errors, nobody sees here."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import peewee
import pytest
from playhouse import pool as playhouse

from unbroken.errors import CommitUnknownError, ConnectionLostError
from unbroken.peewee import LazyQueryError


@pytest.mark.parametrize(
    ("limit", "sleep", "times"), [(1, 1.6, 3), pytest.param(3, 5.0, 5, marks=pytest.mark.soak)]
)
def test_the_story(shops: Any, limit: int, sleep: float, times: int) -> None:
    shop = shops("pymysql", wait_timeout=limit)
    db = shop.database(max_connections=1, stale_timeout=300)
    task = shop.tasks(db)
    for _ in range(times):
        time.sleep(sleep)  # longer than the server lets a session idle
        assert task.get(task.id == 1).name == "task 0"

    def find() -> Any:
        return task.select().where(task.id > 0)

    for _ in range(100):
        assert len([each.name for each in find()]) == 3
    assert db.is_closed()
    assert len(shop.server.sessions()) <= 1

    def broken() -> None:
        with db.connection_context():
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        broken()
    assert db.stats().opened >= times  # each sleep cost a session; nobody noticed


@pytest.mark.parametrize("fault", ["kill", "restart", "crash"])
@pytest.mark.parametrize("name", ["pymysql", "psycopg"])
def test_readers_and_units_do_not_notice(
    shops: Any, in_threads: Any, name: str, fault: str
) -> None:
    shop = shops(name, own=True)
    db = shop.database(max_connections=4, outage_wait=30.0, timeout=30)
    task = shop.tasks(db)
    theirs = shop.database(playhouse, max_connections=4, timeout=5)
    stop, errors = threading.Event(), []
    stored: list[str] = []

    @db.unit
    def add(name: str) -> None:
        with db.atomic():
            task.create(name=name)
            time.sleep(0.002)

    def use(i: int) -> int:
        if i == 0:
            time.sleep(0.3)
            {
                "kill": shop.server.kill_sessions,
                "restart": lambda: shop.server.restart(0.5),
                "crash": lambda: shop.server.crash(0.5),
            }[fault]()
            time.sleep(0.5)
            stop.set()
            return 0
        done = 0
        while not stop.is_set():
            if i == 4:
                try:
                    with theirs.connection_context():
                        theirs.execute_sql("SELECT 1").fetchall()
                except peewee.PeeweeException as error:
                    errors.append(error)
            elif i == 3:
                try:
                    add(f"new {done}")
                    stored.append(f"new {done}")
                except CommitUnknownError:
                    pass  # the one thing that nobody can answer
            else:
                assert len(task.select().where(task.id <= 3)) == 3
            done += 1
            time.sleep(0.005)
        return done

    results = in_threads(5, use)
    assert all(isinstance(each, int) for each in results), results
    kept = [each for each in shop.names(task) if each.startswith("new")]
    assert len(kept) == len(set(kept))
    assert set(stored) <= set(kept)
    assert db.is_closed()
    assert db.stats().used == 0
    if fault != "kill":
        assert errors  # playhouse's users saw the outage


def test_an_explicit_connection_is_replaced_between_statements_but_never_in_a_transaction(
    shop: Any,
) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    db.connect()
    shop.server.kill_sessions()
    assert task.select().count() == 3
    task.create(name="more")
    with pytest.raises(peewee.PeeweeException), db.atomic():
        task.create(name="lost")
        shop.server.kill_sessions()
        task.create(name="never")
    assert not db.is_closed()  # the scope is still there, and its next statement gets a connection
    assert task.select().count() == 4
    db.execute_sql("BEGIN")
    task.create(name="half")
    shop.server.kill_sessions()
    with pytest.raises(peewee.PeeweeException):
        task.create(name="other half")
    db.close()
    assert shop.names(task) == ["more", "task 0", "task 1", "task 2"]
    assert db.stats().used == 0


def test_reconnect_may_be_switched_off(shop: Any) -> None:
    db = shop.database(max_connections=1, reconnect=False)
    db.connect()
    shop.server.kill_sessions()
    with pytest.raises(peewee.PeeweeException):
        db.execute_sql("SELECT 1")
    db.close()
    assert db.execute_sql("SELECT 1").fetchone()[0] == 1


def test_a_write_in_autocommit_is_never_sent_again(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    db.connect()
    conn = db.connection()
    assert conn is not None
    shop.server.kill_sessions()
    with pytest.raises(peewee.PeeweeException):
        task.create(name="once")
    db.close()
    assert shop.names(task) == ["task 0", "task 1", "task 2"]
    assert db.stats().replays == 0


def test_a_lost_commit_says_what_is_known(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    with pytest.raises(ConnectionLostError) as told, db.atomic():
        task.create(name="lost")
        shop.server.kill_sessions()
    assert isinstance(told.value, peewee.OperationalError)
    assert db.is_closed()
    assert shop.names(task) == ["task 0", "task 1", "task 2"]


@pytest.mark.parametrize("how", ["unit", "atomic"])
def test_a_unit_is_run_again_when_nothing_was_committed(shop: Any, how: str) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    attempts = []

    def work() -> None:
        attempts.append(1)
        task.create(name="a")
        if len(attempts) == 1:
            shop.server.kill_sessions()
        task.create(name="b")

    (db.unit(work, atomic=True) if how == "unit" else db.atomic()(work))()
    assert len(attempts) == 2
    assert shop.names(task) == ["a", "b", "task 0", "task 1", "task 2"]
    assert db.is_closed()
    assert db.stats().replays == 1


def test_a_unit_that_wrote_in_autocommit_is_not_run_again(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    attempts = []

    @db.unit
    def work() -> None:
        attempts.append(1)
        task.create(name="a")
        with db.atomic():
            task.create(name="b")
            shop.server.kill_sessions()
            task.create(name="c")

    with pytest.raises(peewee.PeeweeException) as told:
        work()
    assert "autocommit" in told.value.__notes__[0]
    assert attempts == [1]
    assert shop.names(task) == ["a", "task 0", "task 1", "task 2"]


def test_a_unit_hears_of_a_connection_that_is_older_than_itself(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    attempts = []

    @db.unit
    def work() -> None:
        attempts.append(1)
        with db.atomic():
            task.create(name="committed")
        shop.server.kill_sessions()
        with db.atomic():
            task.create(name="second")
            shop.server.kill_sessions()
            task.create(name="third")

    db.connect()
    with pytest.raises(peewee.PeeweeException):
        work()
    db.close()
    assert attempts == [1]
    assert shop.names(task).count("committed") == 1


def test_a_unit_makes_lazy_results_whole(every_shop: Any) -> None:
    db = every_shop.database(max_connections=1, strict=True)
    db.strict = False
    task = every_shop.tasks(db)
    db.strict = True

    @db.unit
    def find(how: str) -> Any:
        query = task.select().order_by(task.id)
        return {
            "query": query,
            "raw": task.raw(f"SELECT * FROM {task._meta.table_name} ORDER BY id"),
            "inside": {"tasks": [query]},
            "iterator": query.iterator() if how == "iterator" else None,
            "cursor": (
                db.execute_sql(f"SELECT name FROM {task._meta.table_name} ORDER BY id")
                if how == "cursor"
                else None
            ),
        }[how]

    names = ["task 0", "task 1", "task 2"]
    assert [each.name for each in find("query")] == names
    assert [each.name for each in find("raw")] == names
    assert [each.name for each in find("inside")["tasks"][0]] == names
    assert [each.name for each in find("iterator")] == names
    assert [row[0] for row in find("cursor").fetchall()] == names
    assert db.is_closed()
    refusing = db.unit(lambda: task.select(), lazy="refuse")
    with pytest.raises(LazyQueryError, match="SELECT"):
        refusing()
    assert db.is_closed()


def test_a_unit_lets_every_error_through_and_leaves_nothing_open(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)

    @db.unit
    def work() -> None:
        db.session_start()
        task.create(name="never")
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        work()
    assert db.is_closed()
    assert shop.names(task) == ["task 0", "task 1", "task 2"]


def test_a_child_has_connections_of_its_own(shop: Any) -> None:
    db = shop.database(max_connections=2)
    task = shop.tasks(db)
    db.connect()
    mine = db.execute_sql(
        "SELECT CONNECTION_ID()" if shop.is_mysql else "SELECT pg_backend_pid()"
    ).fetchone()[0]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert db.is_closed()
            assert task.select().count() == 3
            theirs = db.execute_sql(
                "SELECT CONNECTION_ID()" if shop.is_mysql else "SELECT pg_backend_pid()"
            ).fetchone()[0]
            status = 0 if theirs != mine else 2
        finally:
            gc.collect()
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (
        db.execute_sql(
            "SELECT CONNECTION_ID()" if shop.is_mysql else "SELECT pg_backend_pid()"
        ).fetchone()[0]
        == mine
    )
    db.close()


def test_a_child_inside_its_parents_transaction_is_refused(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    with db.atomic():
        task.create(name="parent")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                task.create(name="child")
            except peewee.OperationalError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
    assert shop.names(task) == ["parent", "task 0", "task 1", "task 2"]


def test_careless_threads_do_not_empty_the_pool(shop: Any, in_threads: Any, until: Any) -> None:
    db = shop.database(max_connections=3, timeout=10)
    task = shop.tasks(db)
    assert all(each is True for each in in_threads(6, lambda _: db.connect()))
    gc.collect()
    assert in_threads(6, lambda _: task.select().count()) == [3] * 6
    # they are counted when somebody waits, or at the next look through the pool
    until(lambda: db.stats().leaked >= 3)


def test_what_is_held_too_long_is_reclaimed_and_its_place_is_named(
    shop: Any, caplog: Any, until: Any
) -> None:
    db = shop.database(max_connections=1, leak_after=0.3, reclaim=True, timeout=10)
    go = threading.Event()

    def hold() -> None:
        db.connect()
        go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    until(lambda: db.stats().used == 1)
    try:
        assert db.execute_sql("SELECT 1").fetchone()[0] == 1
    finally:
        go.set()
        thread.join()
    assert any(
        "test_faults.py" in record.getMessage() and "hold" in record.getMessage()
        for record in caplog.records
    )


@pytest.mark.parametrize("name", ["pymysql", "psycopg"])
def test_greenlets_have_connections_of_their_own(shops: Any, name: str) -> None:
    shop = shops(name)
    script = """
        from gevent import monkey; monkey.patch_all()
        import sys, gevent, unbroken.peewee
        kind, extra, user, password, host, port, database = sys.argv[1:]
        options = {"prefer_psycopg3": True} if extra else {}
        db = getattr(unbroken.peewee, kind)(database, user=user, password=password, host=host, port=int(port), max_connections=3, **options)
        me = "SELECT pg_backend_pid()" if extra else "SELECT CONNECTION_ID()"
        nap = "SELECT pg_sleep(0.05)" if extra else "SELECT SLEEP(0.05)"
        def use(i):
            with db.connection_context():
                before = db.execute_sql(me).fetchone()[0]
                db.execute_sql(nap).fetchall()
                assert db.execute_sql(me).fetchone()[0] == before
            for _ in range(5):
                assert len(list(db.execute_sql(me))) == 1
            assert db.is_closed()
            return before
        jobs = [gevent.spawn(use, i) for i in range(9)]
        gevent.joinall(jobs, timeout=30, raise_error=True)
        print(len({job.value for job in jobs}), db.stats().used)
        db.close_all()
    """  # noqa: E501
    kind = "PooledPostgresqlDatabase" if name == "psycopg" else "PooledMySQLDatabase"
    server = shop.server
    where = [server.user, server.password, server.host, str(server.port), server.database]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), kind, "3" if name == "psycopg" else "", *where],  # noqa: E501
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "0"]


def test_mysqlclient_serves_where_pymysql_is_not_installed(shops: Any) -> None:
    server = shops("pymysql", own=True).server
    script = """
        import sys; sys.modules["pymysql"] = None
        import peewee, unbroken.peewee
        assert peewee.mysql.__name__ == "MySQLdb"
        user, password, host, port, database = sys.argv[1:]
        db = unbroken.peewee.PooledMySQLDatabase(database, user=user, password=password, host=host, port=int(port), max_connections=1)
        assert db.pool._driver.name == "mysqlclient", db.pool._driver.name
        class Task(db.Model):
            name = peewee.CharField()
        db.create_tables([Task])
        @db.unit(atomic=True)
        def add():
            Task.create(name="a")
            if db.stats().replays == 0:
                print("kill", flush=True)
                input()
            Task.create(name="b")
            return Task.select().order_by(Task.id)
        assert [task.name for task in add()] == ["a", "b"]
        assert db.is_closed() and db.stats().replays == 1
        print("done")
    """  # noqa: E501
    where = [server.user, server.password, server.host, str(server.port), server.database]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "kill"
        server.kill_sessions()
        out, _ = process.communicate("go on\n", timeout=30)
    assert (process.returncode, out.strip()) == (0, "done")
