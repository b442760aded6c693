"""Where a statement looks like one that may be run again, and must not be."""

from __future__ import annotations

import os
from typing import Any

import pytest
import sqlalchemy as sa

from . import test_heal
from .test_heal import INSERT, SELECT, Place, healed

place = test_heal.place  # the fixture

READ_ONLY = {
    True: "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'as --read-only'",
    False: "RAISE EXCEPTION 'cannot execute INSERT in a read-only transaction'"
    " USING ERRCODE = '25006'",
}


@pytest.fixture
def refusing(place: Place) -> Any:
    """The third row that ``stock`` is given is refused once, as by a server that was demoted."""
    place.server.admin("DROP SEQUENCE IF EXISTS rows_seen")
    place.make("CREATE SEQUENCE rows_seen")
    check = f"IF nextval({{}}) = 3 THEN {READ_ONLY[place.is_mysql]}; END IF;"
    if place.is_mysql:
        check = check.format("rows_seen")
        place.server.admin(
            f"CREATE TRIGGER refuses BEFORE INSERT ON stock FOR EACH ROW BEGIN {check} END"
        )
    else:
        check = check.format("'rows_seen'")
        place.make(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {check} RETURN NEW; END $$",
            "CREATE TRIGGER refuses BEFORE INSERT ON stock FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
    yield place
    place.server.admin("DROP TABLE stock")
    place.server.admin("DROP SEQUENCE rows_seen")
    if not place.is_mysql:
        place.server.admin("DROP FUNCTION refuse")


STOCK = sa.table("stock", sa.column("n", sa.Integer))


@pytest.mark.parametrize("how", ["executemany", "pages"])
def test_many_rows_in_autocommit_are_not_sent_again_after_some_were_stored(
    refusing: Place, how: str
) -> None:
    place = refusing
    engine = place.engine(isolation_level="AUTOCOMMIT", insertmanyvalues_page_size=1)
    many = [{"n": n} for n in range(5)]
    insert: Any = sa.insert(STOCK).returning(STOCK.c.n) if how == "pages" else INSERT

    def work(conn: sa.Connection) -> None:
        conn.execute(insert, many)

    try:
        place.within(engine, work)
    except sa.exc.DBAPIError:
        assert healed(engine) == 0
    rows = place.rows()
    assert rows == sorted(set(rows))


def test_a_transaction_that_a_text_of_two_statements_began_is_not_left(place: Place) -> None:
    if place.driver not in ("psycopg", "psycopg2"):
        pytest.skip("this driver sends one statement at a time")
    for lost_at in ("SELECT n", None):
        engine = place.engine(isolation_level="AUTOCOMMIT")

        def work(conn: sa.Connection, lost_at: str | None = lost_at) -> None:
            conn.exec_driver_sql("BEGIN; INSERT INTO stock (n) VALUES (1)")
            if lost_at is None:
                place.proxy.rst()
                for _ in range(2):
                    conn.execute(SELECT, {"n": 2}).all()
            else:
                place.proxy.cut_at(lost_at)
                conn.execute(SELECT, {"n": 2}).all()
            conn.execute(INSERT, {"n": 2})
            conn.exec_driver_sql("COMMIT")

        with pytest.raises(sa.exc.DBAPIError):
            place.within(engine, work)
        assert (healed(engine), place.rows()) == (0, [])


SERIALIZABLE = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("by", ["a handler", "an earlier transaction"])
def test_a_lost_commit_of_a_serializable_transaction_is_an_error_however_it_became_one(
    place: Place, by: str, before: bool
) -> None:
    if place.is_mysql:
        pytest.skip("there the reads are valid when they are answered")
    engine = place.engine()
    if by == "a handler":

        @sa.event.listens_for(getattr(engine, "sync_engine", engine), "connect")
        def connected(conn: Any, _record: Any) -> None:
            cursor = conn.cursor()
            cursor.execute(SERIALIZABLE)
            cursor.close()
            conn.commit()

    def work(conn: sa.Connection) -> None:
        if by != "a handler":
            conn.exec_driver_sql(SERIALIZABLE)
            conn.commit()
        conn.execute(SELECT, {"n": 1}).all()
        assert conn.scalar(sa.text("SHOW transaction_isolation")) == "serializable"
        place.proxy.cut_at("COMMIT", before=before)
        conn.commit()

    with pytest.raises(sa.exc.DBAPIError):
        place.within(engine, work)
    assert healed(engine) == 0


def test_a_lost_commit_of_what_locked_rows_is_an_error(place: Place) -> None:
    engine = place.engine()

    def work(conn: sa.Connection) -> None:
        conn.execute(sa.text("SELECT n FROM stock FOR UPDATE")).all()
        place.proxy.cut_at("COMMIT")
        conn.commit()

    with pytest.raises(sa.exc.DBAPIError):
        place.within(engine, work)
    assert healed(engine) == 0


def test_a_function_of_the_applications_with_a_harmless_name_is_not_called_again(
    place: Place,
) -> None:
    if place.is_mysql:
        place.server.admin("DROP FUNCTION IF EXISTS total")
        place.server.admin(
            "CREATE FUNCTION total() RETURNS INT MODIFIES SQL DATA"
            " BEGIN INSERT INTO stock (n) VALUES (1); RETURN 1; END"
        )
    else:
        place.make(
            "CREATE FUNCTION total() RETURNS int LANGUAGE sql AS"
            " 'INSERT INTO stock (n) VALUES (1) RETURNING n'"
        )
    try:
        engine = place.engine(isolation_level="AUTOCOMMIT")
        place.within(engine, lambda conn: conn.execute(sa.text("SELECT 1")))
        place.proxy.cut_at("SELECT total")
        with pytest.raises(sa.exc.DBAPIError):
            place.within(engine, lambda conn: conn.execute(sa.text("SELECT total()")).all())
        assert (healed(engine), place.rows()) == (0, [1])
    finally:
        place.server.admin("DROP FUNCTION total" + ("" if place.is_mysql else "()"))


def test_a_sequences_last_number_is_not_asked_of_another_session(place: Place) -> None:
    if not place.is_mysql:
        pytest.skip("PostgreSQL's is a function: currval")
    place.server.admin("DROP SEQUENCE IF EXISTS numbers")
    place.make("CREATE SEQUENCE numbers")
    engine = place.engine()

    def work(conn: sa.Connection) -> Any:
        conn.execute(sa.text("SELECT NEXT VALUE FOR numbers")).all()
        conn.commit()
        place.proxy.cut_at("SELECT PREVIOUS")
        return conn.scalar(sa.text("SELECT PREVIOUS /* the last */ VALUE FOR numbers"))

    try:
        with pytest.raises(sa.exc.DBAPIError):
            place.within(engine, work)
        assert healed(engine) == 0
    finally:
        place.server.admin("DROP SEQUENCE numbers")


def test_a_forked_child_takes_a_connection_of_its_own_or_fails(place: Place) -> None:
    if place.is_async:
        pytest.skip("a loop does not survive a fork")
    engine = place.engine()
    with engine.connect() as conn:
        conn.execute(INSERT, {"n": 1})
        child = os.fork()
        if child == 0:
            try:
                conn.execute(INSERT, {"n": 2})
                conn.commit()
            except BaseException:
                os._exit(7)
            os._exit(0)
        os.waitpid(child, 0)
        conn.execute(INSERT, {"n": 3})
        conn.commit()
    assert [n for n in place.rows() if n != 2] == [1, 3]
    assert healed(engine) == 0
