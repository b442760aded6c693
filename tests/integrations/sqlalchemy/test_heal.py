"""A lost statement is run again under the same Connection, Session or AsyncSession, and nothing is
stored twice by that.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import create_async_engine

import unbroken
import unbroken.sqlalchemy
from unbroken import replayable
from unbroken.ledger.scope import enter, leave
from unbroken.ledger.unit import Unit
from unbroken.ledger.verdicts import Fate
from unbroken_drill import FaultProxy

SYNC = ["pymysql", "mysqldb", "psycopg", "psycopg2"]
ASYNC = ["aiomysql", "asyncpg"]
#: The basic cases are tried with these, too.
OTHERS = ["asyncmy", "pg8000", "mariadbconnector", "mysqlconnector"]
#: No TLS: the proxy reads what goes over it.
PLAIN = {
    "pymysql": {"ssl_disabled": "true"}, "mysqldb": {"ssl_mode": "DISABLED"}, "aiomysql": {},
    "psycopg": {"sslmode": "disable"}, "psycopg2": {"sslmode": "disable"},
    "asyncpg": {"ssl": "disable"}, "asyncmy": {}, "pg8000": {}, "mariadbconnector": {},
    "mysqlconnector": {"ssl_disabled": "true"},
}  # fmt: skip


class Place:
    """A server behind a proxy, and a table ``stock``; engines of one driver, blocking or async.

    What a test does is written for a blocking Connection; an async engine runs it by ``run_sync``.
    """

    def __init__(self, driver: str, server: Any, stack: ExitStack) -> None:
        self.driver, self.server, self.stack = driver, server, stack
        self.is_async = driver in (*ASYNC, "asyncmy")
        self.is_mysql = server.backend in ("mysql", "mariadb")
        protocol = "mysql" if self.is_mysql else "postgresql"
        self.proxy = stack.enter_context(FaultProxy((server.host, server.port), protocol=protocol))
        self.runner = stack.enter_context(asyncio.Runner()) if self.is_async else None
        server.admin("DROP TABLE IF EXISTS stock")
        stack.callback(server.admin, "DROP TABLE IF EXISTS stock")
        self.make("CREATE TABLE stock (n INT)" + (" ENGINE=InnoDB" if self.is_mysql else ""))

    def make(self, *statements: str) -> None:
        """Have the application's own user send *statements*."""
        bare = sa.create_engine(self.server.url("pymysql" if self.is_mysql else "psycopg"))
        with bare.begin() as conn:
            for sql in statements:
                conn.exec_driver_sql(sql)
        bare.dispose()

    def engine(self, **kwargs: Any) -> Any:
        url = self.proxy.url(self.server.url(self.driver, **PLAIN[self.driver]))
        if self.is_async:
            engine = create_async_engine(url, plugins=["unbroken"], **kwargs)
            assert self.runner is not None
            self.stack.callback(lambda: self.runner.run(engine.dispose()))
            return engine
        blocking = sa.create_engine(url, plugins=["unbroken"], **kwargs)
        self.stack.callback(blocking.dispose)
        return blocking

    def within(
        self, engine: Any, work: Callable[[sa.Connection], Any], *, begin: bool = False
    ) -> Any:
        """*work* with a Connection; committed at the end where it is to *begin*."""
        if not self.is_async:
            with engine.begin() if begin else engine.connect() as conn:
                return work(conn)

        async def run() -> Any:
            async with engine.begin() if begin else engine.connect() as conn:
                return await conn.run_sync(work)

        assert self.runner is not None
        return self.runner.run(run())

    def stored(self) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin("SELECT n FROM item"))

    def rows(self) -> list[int]:
        return sorted(int(row[0]) for row in self.server.admin("SELECT n FROM stock"))


def _place(request: pytest.FixtureRequest) -> Iterator[Place]:
    is_postgresql = request.param.startswith(("psycopg", "asyncpg", "pg8000"))
    server = request.getfixturevalue("postgres" if is_postgresql else "mariadb")
    with ExitStack() as stack:
        yield Place(request.param, server, stack)


place = pytest.fixture(_place, params=SYNC + ASYNC, name="place")
any_place = pytest.fixture(_place, params=SYNC + ASYNC + OTHERS, name="any_place")


SELECT = sa.text("SELECT n FROM stock WHERE n = :n")
INSERT = sa.text("INSERT INTO stock (n) VALUES (:n)")


def healed(engine: Any) -> int:
    return unbroken.sqlalchemy.stats(engine).healed


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_a_first_read_is_run_again(
    any_place: Place, before: bool, level: str | None, caplog: Any
) -> None:
    engine = any_place.engine(**({} if level is None else {"isolation_level": level}))
    any_place.server.admin("INSERT INTO stock (n) VALUES (1)")
    any_place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    cut = any_place.proxy.cut_at("SELECT n", before=before)
    with caplog.at_level(logging.INFO, "unbroken"):
        assert any_place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}).all()) == [(1,)]
    assert cut.hits == 1
    assert healed(engine) == 1
    told = [r.getMessage() for r in caplog.records if "run again" in r.getMessage()]
    assert len(told) == 1
    assert "test_heal.py" in told[0]


@pytest.mark.parametrize("before", [True, False])
def test_a_first_write_of_a_transaction_is_run_again_and_stored_once(
    any_place: Place, before: bool
) -> None:
    engine = any_place.engine()
    any_place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    cut = any_place.proxy.cut_at("INSERT", before=before)
    any_place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}), begin=True)
    assert (cut.hits, healed(engine), any_place.rows()) == (1, 1, [1])


@pytest.mark.parametrize("before", [True, False])
def test_a_write_in_autocommit_is_an_error(any_place: Place, before: bool) -> None:
    engine = any_place.engine(isolation_level="AUTOCOMMIT")
    any_place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    any_place.proxy.cut_at("INSERT", before=before)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        any_place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}))
    assert "in autocommit may have been stored" in "".join(caught.value.__notes__)
    assert (healed(engine), any_place.rows()) == (0, [] if before else [1])


def test_the_second_statement_of_a_transaction_is_an_error_that_says_what_would_help(
    any_place: Place,
) -> None:
    engine = any_place.engine()

    def work(conn: sa.Connection) -> None:
        conn.execute(SELECT, {"n": 1}).all()
        conn.execute(INSERT, {"n": 1})

    any_place.proxy.cut_at("INSERT")
    with pytest.raises(sa.exc.DBAPIError) as caught:
        any_place.within(engine, work, begin=True)
    assert "replayable" in "".join(caught.value.__notes__)
    assert (healed(engine), any_place.rows()) == (0, [])


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_connection_that_ended_before_the_first_statement_is_replaced(
    any_place: Place, end: str
) -> None:
    engine = any_place.engine()

    def work(conn: sa.Connection) -> None:
        getattr(any_place.proxy, end)()
        conn.execute(INSERT, {"n": 1})

    any_place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    any_place.within(engine, work, begin=True)
    assert any_place.rows() == [1]
    getattr(any_place.proxy, end)()  # while it is idle
    any_place.within(engine, lambda conn: conn.execute(INSERT, {"n": 2}), begin=True)
    assert any_place.rows() == [1, 2]


def test_a_connection_that_ends_before_a_cursor_could_be_had_is_replaced(
    any_place: Place, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some drivers give no cursor of a connection that they know to be lost."""
    engine, ended = any_place.engine(), []
    execute = sa.Connection._execute_context

    def end_before(conn: sa.Connection, *args: Any, **kwargs: Any) -> Any:
        if not ended:
            ended.append(1)
            any_place.proxy.fin()
            record: Any = conn._dbapi_connection._connection_record  # type: ignore[union-attr]
            if any_place.is_async:
                sa.util.await_only(asyncio.sleep(0.2))
            until(lambda: record.entry.cause is not None)
        return execute(conn, *args, **kwargs)

    any_place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    monkeypatch.setattr(sa.Connection, "_execute_context", end_before)
    any_place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}), begin=True)
    assert any_place.rows() == [1]


class Base(orm.DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    n: orm.Mapped[int]


@pytest.fixture
def items(place: Place) -> Iterator[Place]:
    place.server.admin("DROP TABLE IF EXISTS item")
    number = "INT AUTO_INCREMENT" if place.is_mysql else "SERIAL"
    place.make(f"CREATE TABLE item (id {number} PRIMARY KEY, n INT)")
    yield place
    place.server.admin("DROP TABLE item")


def test_a_session_flushes_many_rows_once(items: Place) -> None:
    engine = items.engine()

    def work(conn: sa.Connection) -> list[int]:
        with orm.Session(conn) as session:
            session.add_all([Item(n=n) for n in range(3)])
            session.flush()
            return sorted(item.n for item in session.scalars(sa.select(Item)))

    cut = items.proxy.cut_at("INSERT")
    assert items.within(engine, work, begin=True) == [0, 1, 2]
    assert (cut.hits, healed(engine)) == (1, 1)
    assert items.stored() == [0, 1, 2]


@pytest.mark.parametrize("returning", [True, False])
def test_one_statement_for_many_rows_stores_each_of_them_once(
    items: Place, returning: bool
) -> None:
    engine = items.engine(insertmanyvalues_page_size=2)
    insert = sa.insert(Item.__table__)
    if returning:
        insert = insert.returning(Item.__table__.c.n)

    def work(conn: sa.Connection) -> None:
        result = conn.execute(insert, [{"n": n} for n in range(5)])
        assert not returning or sorted(n for (n,) in result) == [0, 1, 2, 3, 4]

    cut = items.proxy.cut_at("INSERT")
    items.within(engine, work, begin=True)
    assert (cut.hits, healed(engine)) == (1, 1)
    assert items.stored() == [0, 1, 2, 3, 4]


def test_a_later_page_of_many_rows_is_an_error_and_nothing_is_stored(items: Place) -> None:
    engine = items.engine(insertmanyvalues_page_size=2)
    insert = sa.insert(Item.__table__).returning(Item.__table__.c.n)
    cuts: list[Any] = []

    @sa.event.listens_for(getattr(engine, "sync_engine", engine), "after_cursor_execute")
    def after(_conn: Any, _cursor: Any, sql: str, *_more: Any) -> None:
        if sql.startswith("INSERT") and not cuts:
            cuts.append(items.proxy.cut_at("INSERT"))

    many = [{"n": n} for n in range(5)]
    with pytest.raises(sa.exc.DBAPIError):
        items.within(engine, lambda conn: conn.execute(insert, many).all(), begin=True)
    assert (cuts[0].hits, healed(engine), items.stored()) == (1, 0, [])


def test_a_stream_is_begun_again_but_never_in_the_middle(place: Place) -> None:
    place.server.admin(f"INSERT INTO stock (n) VALUES {','.join(f'({n})' for n in range(20_000))}")
    engine = place.engine()
    everything = sa.text("SELECT n FROM stock").execution_options(
        stream_results=True, max_row_buffer=10
    )

    def count(conn: sa.Connection) -> int:
        return sum(1 for _ in conn.execute(everything))

    place.proxy.cut_at(re.compile("SELECT n FROM stock"))
    if not place.is_async:
        assert place.within(engine, count) == 20_000
        assert healed(engine) == 1

    def broken(conn: sa.Connection) -> int:
        rows = iter(conn.execute(everything))
        next(rows)
        place.proxy.rst()
        return sum(1 for _ in rows)

    if place.driver in ("psycopg", "pymysql"):
        with pytest.raises(sa.exc.DBAPIError):
            place.within(engine, broken)
        assert healed(engine) == 1


def test_events_and_options_are_as_for_a_new_connection(place: Place) -> None:
    engine = place.engine()
    told: list[str] = []
    cursors: dict[str, Any] = {}
    blocking = getattr(engine, "sync_engine", engine)
    for name in ("connect", "checkout", "checkin", "invalidate"):
        sa.event.listen(blocking, name, lambda *_, name=name: told.append(name))
    for name in ("before_cursor_execute", "after_cursor_execute"):

        def note(
            _conn: Any, cursor: Any, sql: str, _p: Any, context: Any, _m: Any, name: str = name
        ) -> None:
            assert cursor is context.cursor
            cursors[name] = cursor

        sa.event.listen(blocking, name, note)
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))

    def work(conn: sa.Connection) -> Any:
        conn = conn.execution_options(isolation_level="SERIALIZABLE")
        told.clear()
        place.proxy.cut_at("SELECT n")
        conn.execute(SELECT, {"n": 1}).all()
        assert cursors["before_cursor_execute"] is cursors["after_cursor_execute"]
        level = "SELECT @@tx_isolation" if place.is_mysql else "SHOW transaction_isolation"
        return conn.scalar(sa.text(level))

    assert place.within(engine, work).upper() == "SERIALIZABLE"
    assert healed(engine) == 1
    assert told == ["invalidate", "connect", "checkout", "checkin"]
    default = "SELECT @@tx_isolation" if place.is_mysql else "SHOW transaction_isolation"
    assert (
        place.within(engine, lambda conn: conn.scalar(sa.text(default))).upper() != "SERIALIZABLE"
    )


def test_autocommit_by_an_option_is_carried_over(place: Place) -> None:
    engine = place.engine().execution_options(isolation_level="AUTOCOMMIT")

    def work(conn: sa.Connection) -> None:
        place.proxy.cut_at("SELECT n")
        conn.execute(SELECT, {"n": 1}).all()
        conn.execute(INSERT, {"n": 1})
        conn.rollback()

    place.within(engine, work)
    assert (healed(engine), place.rows()) == (1, [1])


def test_the_raw_connection_in_the_applications_hands_ends_it(place: Place) -> None:
    engine = place.engine()

    def work(conn: sa.Connection) -> None:
        cursor = conn.connection.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        cursor.close()
        conn.rollback()
        place.proxy.cut_at("SELECT n")
        conn.execute(SELECT, {"n": 1})

    with pytest.raises(sa.exc.DBAPIError) as caught:
        place.within(engine, work)
    assert "the driver's own connection" in "".join(caught.value.__notes__)
    assert healed(engine) == 0


def test_a_handler_that_sends_something_by_its_cursor_ends_it(place: Place) -> None:
    engine = place.engine()
    setting = "SET @tenant = 1" if place.is_mysql else "SET LOCAL application_name = 'a'"

    @sa.event.listens_for(getattr(engine, "sync_engine", engine), "before_cursor_execute")
    def before(_conn: Any, cursor: Any, sql: str, *_more: Any) -> None:
        if sql.startswith("SELECT n"):
            cursor.execute(setting)

    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    place.proxy.cut_at("SELECT n")
    with pytest.raises(sa.exc.DBAPIError):
        place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}))
    assert healed(engine) == 0


def test_a_handler_that_executes_by_itself_ends_it(place: Place) -> None:
    engine = place.engine()

    @sa.event.listens_for(getattr(engine, "sync_engine", engine), "do_execute")
    def execute(_cursor: Any, _sql: str, _parameters: Any, _context: Any) -> None:
        return None

    place.proxy.cut_at("SELECT n")
    with pytest.raises(sa.exc.DBAPIError):
        place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}))


def test_savepoints_and_two_phases_are_not_healed(place: Place) -> None:
    engine = place.engine()

    def nested(conn: sa.Connection) -> None:
        with conn.begin_nested():
            place.proxy.cut_at("SELECT n")
            conn.execute(SELECT, {"n": 1})

    def itself(conn: sa.Connection) -> None:
        place.proxy.cut_at("SAVEPOINT")
        conn.begin_nested()

    for work in (nested, itself):
        with pytest.raises(sa.exc.DBAPIError):
            place.within(engine, work)
    assert healed(engine) == 0


@pytest.mark.parametrize("before", [True, False])
def test_a_commit_of_nothing_but_reads_is_no_error(place: Place, before: bool) -> None:
    engine = place.engine()

    def work(conn: sa.Connection) -> list[int]:
        with conn.begin():
            found = conn.execute(SELECT, {"n": 1}).all()
        return [*found, *conn.execute(sa.text("SELECT n FROM stock WHERE n = 2")).all()]

    place.server.admin("INSERT INTO stock (n) VALUES (1), (2)")
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    cut = place.proxy.cut_at("COMMIT", before=before)
    assert place.within(engine, work) == [(1,), (2,)]
    assert cut.hits == 1
    # the COMMIT, or the next statement: 0 where it was seen before that one was sent that the
    # connection had ended, and nobody had waited for the COMMIT
    assert healed(engine) <= 1


def test_a_commit_of_writes_is_unknown(place: Place) -> None:
    engine = place.engine()
    place.proxy.cut_at("COMMIT")
    with pytest.raises(unbroken.CommitUnknownError):
        place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}), begin=True)
    assert (healed(engine), place.rows()) == (0, [1])


def test_what_a_session_was_given_is_not_lost_unseen(place: Place) -> None:
    engine = place.engine()
    setting = "SET @tenant = 1" if place.is_mysql else "SET application_name = 'a'"

    def work(conn: sa.Connection) -> None:
        conn.execute(sa.text(setting))
        conn.commit()
        place.proxy.cut_at("SELECT n")
        conn.execute(SELECT, {"n": 1})

    with pytest.raises(sa.exc.DBAPIError) as caught:
        place.within(engine, work)
    assert "may have left" in "".join(caught.value.__notes__)
    assert healed(engine) == 0


def test_what_a_lost_session_remembered_is_not_asked_of_another(items: Place) -> None:
    engine = items.engine(isolation_level="AUTOCOMMIT")
    last = "SELECT LAST_INSERT_ID()" if items.is_mysql else "SELECT lastval()"

    def work(conn: sa.Connection) -> None:
        conn.execute(sa.text("INSERT INTO item (n) VALUES (1)"))
        items.proxy.cut_at("SELECT n")
        conn.execute(sa.text("SELECT n FROM item")).all()
        assert healed(engine) == 1
        conn.execute(sa.text(last))

    with pytest.raises(sa.exc.DBAPIError) as caught:
        items.within(engine, work)
    assert isinstance(caught.value, unbroken.ConnectionLostError)


def test_a_table_that_keeps_what_was_rolled_back_forbids_writes_but_no_reads(place: Place) -> None:
    if not place.is_mysql:
        pytest.skip("MySQL's engines")
    engine = place.engine()
    place.server.admin("DROP TABLE IF EXISTS kept")
    place.make("CREATE TABLE kept (n INT) ENGINE=MyISAM")
    try:
        place.proxy.cut_at("INSERT")
        with pytest.raises(sa.exc.DBAPIError) as caught:
            place.within(
                engine,
                lambda conn: conn.execute(sa.text("INSERT INTO kept (n) VALUES (1)")),
                begin=True,
            )
        assert "shop.kept (MyISAM)" in "".join(caught.value.__notes__)
        place.proxy.cut_at("SELECT n")
        place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}).all())
        assert healed(engine) == 1
        assert len(place.server.admin("SELECT n FROM kept")) == 1
    finally:
        place.server.admin("DROP TABLE kept")


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
def test_reads_that_write_are_never_doubled(place: Place, level: str | None) -> None:
    engine = place.engine(**({} if level is None else {"isolation_level": level}))
    if place.is_mysql:
        for sql in ("DROP FUNCTION IF EXISTS take", "DROP VIEW IF EXISTS taking"):
            place.server.admin(sql)
        place.server.admin(
            "CREATE FUNCTION take() RETURNS INT BEGIN INSERT INTO stock VALUES (7); RETURN 7; END"
        )
        place.server.admin("CREATE VIEW taking AS SELECT take() AS n")
    else:
        place.make(
            "DROP VIEW IF EXISTS taking",
            "DROP FUNCTION IF EXISTS take()",
            "CREATE FUNCTION take() RETURNS int LANGUAGE sql"
            " AS 'INSERT INTO stock VALUES (7) RETURNING n'",
            "CREATE VIEW taking AS SELECT take() AS n",
        )
    try:
        for read in ("SELECT take() AS n", "SELECT n FROM taking"):
            place.server.admin("DELETE FROM stock")
            place.proxy.cut_at(re.compile("take[(]|FROM taking"))
            if level is None:
                assert (
                    place.within(
                        engine, lambda conn, read=read: conn.scalar(sa.text(read)), begin=True
                    )
                    == 7
                )
            else:
                with pytest.raises(sa.exc.DBAPIError):
                    place.within(engine, lambda conn, read=read: conn.scalar(sa.text(read)))
            assert place.rows() == [7]
    finally:
        place.server.admin("DROP VIEW taking")
        place.server.admin("DROP FUNCTION take" + ("" if place.is_mysql else "()"))


def test_a_unit_of_work_wins(place: Place) -> None:
    engine = place.engine()
    runs: list[int] = []

    def work(conn: sa.Connection) -> None:
        conn.execute(INSERT, {"n": 1})

    if place.is_async:

        @replayable
        async def attempt() -> None:
            runs.append(1)
            async with engine.begin() as conn:
                await conn.run_sync(work)

        place.proxy.cut_at("INSERT")
        assert place.runner is not None
        place.runner.run(attempt())
    else:

        @replayable
        def again() -> None:
            runs.append(1)
            with engine.begin() as conn:
                work(conn)

        place.proxy.cut_at("INSERT")
        again()
    assert (len(runs), healed(engine), place.rows()) == (2, 0, [1])


def test_it_can_be_switched_off(place: Place) -> None:
    engine = place.engine(unbroken={"heal": False})
    place.proxy.cut_at("SELECT n")
    with pytest.raises(sa.exc.DBAPIError):
        place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}))


def test_the_second_fresh_loss_is_an_error(place: Place) -> None:
    engine = place.engine()
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    cut = place.proxy.cut_at("SELECT n", times=5)
    with pytest.raises(sa.exc.DBAPIError) as caught:
        place.within(engine, lambda conn: conn.execute(SELECT, {"n": 1}))
    assert cut.hits == 2
    assert "two connections" in "".join(caught.value.__notes__)
    place.proxy.heal()
    assert place.within(engine, lambda conn: conn.scalar(sa.text("SELECT 1"))) == 1


def test_a_pool_of_one_heals(place: Place) -> None:
    engine = place.engine(pool_size=1, max_overflow=0, pool_timeout=5)
    for _ in range(3):
        place.proxy.cut_at("INSERT")
        place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}), begin=True)
    assert (healed(engine), place.rows()) == (3, [1, 1, 1])
    assert unbroken.sqlalchemy.stats(engine).size <= 1


def test_an_outage_is_waited_for_or_told(place: Place) -> None:
    engine = place.engine(unbroken={"outage_wait": 0.5})
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))

    def work(conn: sa.Connection) -> Any:
        place.proxy.rst()
        place.proxy.refuse()
        return conn.execute(SELECT, {"n": 1}).all()

    with pytest.raises(sa.exc.DBAPIError) as caught:
        place.within(engine, work)
    told = isinstance(caught.value, unbroken.OutageError)  # its end was seen before it was sent
    assert told or "no other connection" in "".join(caught.value.__notes__)
    place.proxy.heal()
    assert healed(engine) == 0

    def mended(conn: sa.Connection) -> Any:
        place.proxy.rst()
        place.proxy.refuse()
        threading.Timer(0.2, place.proxy.heal).start()
        return conn.execute(SELECT, {"n": 1}).all()

    engine = place.engine(unbroken={"outage_wait": 10.0})
    assert place.within(engine, mended) == []


@pytest.mark.parametrize("where", ["engine", "copy", "connection"])
def test_what_options_send_heals_too(place: Place, where: str) -> None:
    if not place.is_mysql:
        pytest.skip("nothing is sent for them")
    given = {"isolation_level": "SERIALIZABLE"}
    engine = place.engine(**({"execution_options": given} if where == "engine" else {}))
    if where == "copy":
        engine = engine.execution_options(**given)

    def work(conn: sa.Connection) -> str:
        if where == "connection":
            conn = conn.execution_options(**given)
        return str(conn.scalar(sa.text("SELECT @@tx_isolation")))

    assert place.within(engine, work) == "SERIALIZABLE"
    for before in (True, False):
        cut = place.proxy.cut_at(re.compile("TRANSACTION ISOLATION LEVEL SER"), before=before)
        assert place.within(engine, work) == "SERIALIZABLE"
        assert cut.hits == 1


def test_what_was_never_sent_heals_in_autocommit(place: Place, until: Any) -> None:
    """The connection is known to have ended before the statement: it is not written to."""
    engine = place.engine(isolation_level="AUTOCOMMIT")

    def work(conn: sa.Connection) -> None:
        conn.execute(INSERT, {"n": 1})
        place.proxy.fin()
        record = conn._dbapi_connection._connection_record  # type: ignore[union-attr]
        if place.is_async:
            sa.util.await_only(asyncio.sleep(0.2))
        until(lambda: record.entry.cause is not None)  # type: ignore[union-attr]
        conn.execute(INSERT, {"n": 2})

    place.within(engine, work)
    assert place.rows() == [1, 2]


def test_what_a_web_request_is_told_of_its_writes_stays_right(place: Place) -> None:
    """A ledger that only watches is around it, as around each request."""
    if place.is_async:
        pytest.skip("the same code, in another context")
    engine = place.engine()
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
    for begin, fate in ((False, Fate.NOTHING), (True, Fate.STORED)):
        token = enter(Unit(observing=True))
        try:
            place.proxy.cut_at("INSERT")
            place.within(engine, lambda conn: conn.execute(INSERT, {"n": 1}), begin=begin)
            assert token.unit.fate() is fate
        finally:
            leave(token)
    assert (healed(engine), place.rows()) == (2, [1])


@pytest.mark.parametrize("statement", ["SELECT n", "INSERT"])
def test_a_deadline_is_not_begun_anew(place: Place, statement: str) -> None:
    engine = place.engine(unbroken={"deadline": 0.5, "outage_wait": 10.0})
    place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))

    def work(conn: sa.Connection) -> None:
        if place.is_async:
            sa.util.await_only(asyncio.sleep(0.2))
        else:
            time.sleep(0.2)
        place.proxy.cut_at(statement)
        conn.execute(SELECT if statement == "SELECT n" else INSERT, {"n": 1})
        conn.execute(sa.text("SELECT pg_sleep(5)" if not place.is_mysql else "SELECT sleep(5)"))

    began = time.monotonic()
    with pytest.raises(unbroken.DeadlineExceeded):
        place.within(engine, work)
    assert time.monotonic() - began < 2.0
    assert healed(engine) == 1
