"""Connections, explicit and by themselves: who keeps one, and when it goes back."""

from __future__ import annotations

import gc
import threading
from typing import Any

import peewee
import pytest
from playhouse import db_url
from playhouse.pool import MaxConnectionsExceeded

import unbroken
import unbroken.peewee
from unbroken.errors import ConfigurationError, ConnectRejectedError, OutageError, PoolTimeoutError


def test_every_statement_outside_of_a_scope_gives_its_connection_back(every_shop: Any) -> None:
    db = every_shop.database(max_connections=1)
    task = every_shop.tasks(db)
    assert db.is_closed()
    assert task.create(name="new").id == 4
    assert task.update(name="old").where(task.name == "new").execute() == 1
    assert task.get(task.id == 1).name == "task 0"
    assert task.delete().where(task.name == "old").execute() == 1
    assert sorted(each.name for each in task.select()) == ["task 0", "task 1", "task 2"]
    assert db.is_closed()
    assert db.stats().used == 0
    assert db.stats().opened == 1


def test_a_lazy_query_that_runs_outside_leaves_no_connection_behind(every_shop: Any) -> None:
    db = every_shop.database(max_connections=1)
    task = every_shop.tasks(db)

    def find() -> Any:
        with db.connection_context():
            return task.select().where(task.id > 0)

    for _ in range(100):
        assert len(list(find())) == 3
    assert db.is_closed()
    assert db.stats().opened == 1
    assert db.stats().used == 0


@pytest.mark.parametrize("end", ["read", "closed", "dropped", "in another thread"])
def test_a_result_keeps_its_connection_until_it_is(shop: Any, end: str) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    rows = iter(task.select())
    assert next(rows).name
    assert not db.is_closed()
    if end == "read":
        assert len(list(rows)) == 2
    elif end == "closed":
        rows.cursor_wrapper.cursor.close()
    elif end == "dropped":
        del rows
    else:
        box = [rows]
        del rows
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
    assert db.is_closed()
    assert db.stats().used == 0
    assert task.select().count() == 3


def test_half_read_results_share_one_connection_and_give_it_back_together(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    first, second = iter(task.select()), iter(task.select())
    next(first), next(second)
    assert task.select().count() == 3
    assert len(list(first)) == 2
    assert not db.is_closed()
    assert len(list(second)) == 2
    assert db.is_closed()


def test_a_result_that_outlives_its_scope_keeps_its_rows(every_shop: Any) -> None:
    db = every_shop.database(max_connections=1)
    task = every_shop.tasks(db)
    with db.connection_context():
        query = task.select().order_by(task.id)
        rows = iter(query)
        assert next(rows).name == "task 0"
    assert db.is_closed()
    assert [row.name for row in rows] == ["task 1", "task 2"]
    assert db.is_closed()


def test_a_server_side_result_that_outlives_its_scope_says_so(shops: Any) -> None:
    shop = shops("psycopg2")
    db = unbroken.peewee.PooledPostgresqlExtDatabase(
        shop.server.database, **shop.where, server_side_cursors=True
    )
    task = shop.tasks(db, rows=0)
    task.insert_many([{"name": str(n)} for n in range(5000)]).execute()
    with db.connection_context():
        rows = iter(task.select().iterator())
        next(rows)
    with pytest.raises(peewee.InterfaceError, match="read all its rows inside the scope"):
        list(rows)
    assert len(list(task.select().iterator())) == 5000
    db.close_all()


def test_a_transaction_and_an_explicit_connect_hold_it(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    with db.atomic():
        task.create(name="a")
        with db.atomic():
            task.create(name="b")
        assert not db.is_closed()
    assert db.is_closed()
    assert db.connect()
    assert task.select().count() == 5
    assert not db.is_closed()
    with pytest.raises(peewee.OperationalError, match="already opened"):
        db.connect()
    assert db.connect(reuse_if_open=True) is False
    assert db.close()
    assert not db.close()
    with db.manual_commit():
        db.begin()
        task.create(name="c")
        db.rollback()
    assert db.is_closed()
    db.execute_sql("BEGIN")
    task.create(name="d")
    assert not db.is_closed()
    db.execute_sql("ROLLBACK")
    assert db.is_closed()
    assert task.select().count() == 5


def test_a_rolled_back_block_gives_its_connection_back_and_lets_the_error_through(
    shop: Any,
) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    with pytest.raises(KeyError), db.atomic():
        task.create(name="never")
        raise KeyError
    assert db.is_closed()
    with pytest.raises(peewee.ProgrammingError if not shop.is_mysql else peewee.PeeweeException):
        db.execute_sql("SELECT no_such_column FROM no_such_table")
    assert db.is_closed()
    assert shop.names(task) == ["task 0", "task 1", "task 2"]


def test_strict_refuses_and_names_the_query_and_both_places(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    db.init(shop.server.database, strict=True)

    def find() -> Any:
        with db.connection_context():
            return task.select(task.name)

    query = find()
    with pytest.raises(unbroken.peewee.LazyQueryError) as told:
        list(query)
    assert isinstance(told.value, peewee.InterfaceError)
    text = str(told.value)
    assert f"{task._meta.table_name}" in text
    assert "SELECT" in text
    assert text.count("test_lending.py:") == 3
    assert "in test_strict_refuses_and_names_the_query_and_both_places.<locals>.find" in text
    with db.atomic():
        assert len(list(task.select())) == 3
    with db:
        assert len(list(task.select())) == 3
    assert db.is_closed()


def test_who_waits_for_a_connection_does_not_keep_others_from_giving_theirs_back(
    shop: Any, in_threads: Any, until: Any
) -> None:
    db = shop.database(max_connections=1, timeout=20)
    task = shop.tasks(db)
    inside = threading.Event()

    def use(i: int) -> int:
        with db.connection_context():
            if not inside.is_set():
                inside.set()
                until(lambda: db.stats().waiting == 3)
            return int(task.select().count())

    assert in_threads(4, use) == [3] * 4


def test_a_full_pool_is_told_as_playhouse_does(shop: Any) -> None:
    db = shop.database(max_connections=1, timeout=20)
    db.connect()
    db.pool.settings = db.pool._state.settings = db.pool.settings.changed(acquire_timeout=0.05)
    told: list[BaseException] = []

    def ask() -> None:
        try:
            db.connect()
        except peewee.OperationalError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert isinstance(told[0], MaxConnectionsExceeded)
    assert isinstance(told[0], PoolTimeoutError)
    assert "max_size 1" in str(told[0]) or "in use 1" in str(told[0])
    db.close()


def test_a_refused_password_is_told_at_once_and_without_the_password(shop: Any) -> None:
    db = shop.database()
    db.connect_params["password"] = "not-the-password"
    with pytest.raises(peewee.OperationalError) as told:
        db.connect()
    assert isinstance(told.value, ConnectRejectedError)
    assert "not-the-password" not in str(told.value)
    assert db.is_closed()


def test_nobody_at_home_is_an_outage_that_peewees_callers_catch(shop: Any) -> None:
    db = shop.database(outage_wait=0.05)
    db.init(shop.server.database, port=1)
    with pytest.raises(peewee.OperationalError) as told:
        db.connect()
    assert isinstance(told.value, OutageError)


def test_playhouse_arguments_and_unbrokens_settings_mean_what_they_say(shop: Any) -> None:
    db = shop.database(max_connections=7, stale_timeout=300, timeout=0, leak_after=5.0)
    settings = db.pool.settings
    assert (settings.max_size, settings.max_age, settings.acquire_timeout, settings.leak_after) == (
        7,
        300.0,
        float("inf"),
        5.0,
    )
    assert shop.database().pool.settings.max_size == 20
    assert shop.database(max_size=3).pool.settings.max_size == 3
    with pytest.raises(ConfigurationError, match="max_size"):
        shop.database(max_size=-1)


def test_init_may_come_later_and_again(shop: Any) -> None:
    db = type(shop.database())(None)
    with pytest.raises(peewee.InterfaceError):
        db.connect()
    extra = {"prefer_psycopg3": True} if shop.name == "psycopg" else {}
    db.init(shop.server.database, max_connections=2, **shop.where, **extra)
    assert len(shop.tasks(db).select()) == 3
    assert db.pool.settings.max_size == 2
    first = db.pool
    db.init(shop.server.database, max_connections=3, **extra)
    assert db.pool is not first
    assert db.pool.settings.max_size == 3
    assert db.execute_sql("SELECT 1").fetchall()[0][0] == 1
    db.close_all()


def test_a_database_proxy_takes_it(shop: Any) -> None:
    proxy = unbroken.peewee.DatabaseProxy()

    class Task(peewee.Model):  # type: ignore[misc]
        class Meta:
            database = proxy
            table_name = "task_of_a_proxy"

    @proxy.unit
    def find() -> Any:
        return Task.select()

    @proxy.atomic()
    def add() -> None:
        Task.create()

    proxy.initialize(shop.database(max_connections=1))
    proxy.create_tables([Task])
    try:
        add()
        assert len(find()) == 1
        with proxy.atomic():
            Task.create()
        with proxy.connection_context():
            assert Task.select().count() == 2
        assert proxy.is_closed()
    finally:
        proxy.drop_tables([Task])


@pytest.mark.parametrize("how", ["playhouse", "ours"])
def test_urls_make_the_same_databases(shops: Any, how: str) -> None:
    for name, scheme, kind in (
        ("pymysql", "mysql", unbroken.peewee.PooledMySQLDatabase),
        ("psycopg2", "postgresql", unbroken.peewee.PooledPostgresqlDatabase),
        ("psycopg", "psycopg3", unbroken.peewee.PooledPsycopg3Database),
    ):
        shop = shops(name)
        url = (
            f"{scheme}+{'unbroken' if how == 'playhouse' else 'pool'}"
            + shop.server.url()[shop.server.url().index("://") :]
        )
        url += "?max_connections=3&acquire_timeout=2.5"
        db = (db_url.connect if how == "playhouse" else unbroken.peewee.connect)(url)
        assert type(db) is kind
        assert (db.pool.settings.max_size, db.pool.settings.acquire_timeout) == (3, 2.5)
        assert db.execute_sql("SELECT 1").fetchone()[0] == 1
        db.close_all()
    db = unbroken.peewee.connect(shops("psycopg").server.url("psycopg"))
    assert type(db) is unbroken.peewee.PooledPsycopg3Database
    with pytest.raises(ConfigurationError, match="sqlite"):
        unbroken.peewee.connect("sqlite:///x.db")


def test_the_cursor_is_as_the_drivers(shop: Any) -> None:
    db = shop.database(max_connections=1)
    task = shop.tasks(db)
    result = db.execute_sql(f"SELECT id, name FROM {task._meta.table_name} ORDER BY id")
    assert isinstance(result, type(result.raw_cursor))
    assert [column[0] for column in result.description] == ["id", "name"]
    assert [tuple(row) for row in result.fetchmany(1)] == [(1, "task 0")]
    assert len(list(result)) == 2
    assert result.rowcount == 3
    assert result.fetchone() is None
    with db.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert not db.is_closed()
        assert tuple(cursor.fetchone()) == (1,)
    assert db.is_closed()
    with pytest.raises(peewee.InterfaceError, match="closed"):
        cursor.execute("SELECT 1")


def test_what_a_thread_forgets_comes_back(shop: Any, until: Any) -> None:
    db = shop.database(max_connections=1, timeout=5)

    def forget() -> None:
        db.connect()

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()
    gc.collect()
    db.connect()
    db.close()
    assert db.stats().leaked == 1


def test_playhouses_ways_to_look_after_the_pool_work(shop: Any) -> None:
    db = shop.database(max_connections=2)
    db.connect()
    assert len(db._in_use) == 1
    assert db.manual_close()
    assert not db.manual_close()
    assert db.stats().size == 0
    db.connect()
    db.close()
    assert len(db._connections) == 1
    db.close_idle()
    assert db.stats().size == 0
    db.connect()
    assert db.close_stale(age=0) == 1
    db.close()
    db.connect()
    db.close_all()
    assert db.is_closed()
    db.dispose()
    assert db.connect()
    db.close()


def test_a_database_without_thread_safety_shares_one_connection(shop: Any, in_threads: Any) -> None:
    db = shop.database(max_connections=1, thread_safe=False)
    db.connect()
    conn = db.connection()
    assert in_threads(1, lambda _: db.connection())[0] is conn
    db.close()


def test_a_connection_hook_runs_and_its_failure_leaves_nothing_behind(shop: Any) -> None:
    kind = type(shop.database())

    class Hooked(kind):  # type: ignore[misc, valid-type]
        broken = False

        def _initialize_connection(self, conn: Any) -> None:
            if self.broken:
                raise RuntimeError("hook")
            conn.cursor().execute("SELECT 1")

    extra = {"prefer_psycopg3": True} if shop.name == "psycopg" else {}
    db = Hooked(shop.server.database, max_connections=1, **shop.where, **extra)
    db.connect()
    db.close()
    db.broken = True
    with pytest.raises(RuntimeError):
        db.connect()
    assert db.is_closed()
    assert db.stats().used == 0
    db.close_all()


def test_unbroken_alone_imports_no_peewee() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import sys, unbroken; print('peewee' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
    assert unbroken.__version__
