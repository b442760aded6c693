"""Units of work around engines and Sessions: replayed where nothing can have been committed, and
only there.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import unbroken
from unbroken import replayable


class Base(DeclarativeBase):
    pass


class Number(Base):
    __tablename__ = "unit_t"
    n: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def table(face: Any) -> str:
    return str(face.table("unit_t"))


def _kill(face: Any, conn: sa.Connection) -> None:
    face.server._kill_session(conn.scalar(face.session_id))


def _runs() -> tuple[list[int], Any]:
    """The runs so far, and what to call in each: its number, from 1."""
    seen: list[int] = []
    return seen, lambda: seen.append(len(seen)) or len(seen)


def test_a_session_that_lost_its_connection_before_the_commit_is_run_again(
    face: Any, table: str
) -> None:
    engine = face.engine()
    runs, count = _runs()

    @replayable
    def work() -> None:
        with Session(engine) as session:
            session.add(Number(n=1))
            session.flush()
            if count() == 1:
                _kill(face, session.connection())
            session.add(Number(n=2))
            session.commit()

    work()
    assert len(runs) == 2
    assert face.rows(table) == [1, 2]


def test_engine_begin_and_connect_are_units_too(face: Any, table: str) -> None:
    engine = face.engine()
    runs, count = _runs()

    @replayable
    def work() -> int:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
            if count() == 1:
                _kill(face, conn)
            return int(conn.scalar(sa.text(f"SELECT COUNT(*) FROM {table}")))

    assert work() == 1
    assert len(runs) == 2
    assert face.rows(table) == [1]


def test_nothing_is_run_again_once_something_was_committed(face: Any, table: str) -> None:
    engine = face.engine()
    runs, count = _runs()

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES ({count()})"))
        with engine.begin() as conn:
            _kill(face, conn)
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (9)"))

    with pytest.raises(sa.exc.DBAPIError) as caught:
        work()
    assert len(runs) == 1
    assert any("an earlier COMMIT was acknowledged" in note for note in caught.value.__notes__)
    assert face.rows(table) == [1]


def test_a_statement_in_autocommit_is_never_sent_twice(face: Any, table: str) -> None:
    engine = face.engine(isolation_level="AUTOCOMMIT")
    _, count = _runs()

    @replayable
    def work() -> None:
        with engine.connect() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES ({count()})"))
            _kill(face, conn)
            conn.execute(sa.text("SELECT 1"))

    with pytest.raises(sa.exc.DBAPIError):
        work()
    assert face.rows(table) == [1]


def test_a_commit_whose_answer_was_lost_is_unknown_and_not_run_again(face: Any, table: str) -> None:
    proxy = face.proxy()
    engine = face.engine(face.through(proxy))
    _, count = _runs()

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES ({count()})"))
            proxy.cut_at("COMMIT")

    with pytest.raises(unbroken.CommitUnknownError) as caught:
        work()
    assert isinstance(caught.value, sa.exc.OperationalError)
    assert caught.value.connection_invalidated
    assert face.rows(table) == [1]
    with pytest.raises(unbroken.CommitUnknownError), engine.begin() as conn:
        # outside of a unit it is said as well
        conn.execute(sa.text(f"INSERT INTO {table} VALUES (2)"))
        proxy.cut_at("COMMIT")


def test_a_commit_that_never_went_out_is_lost_and_run_again(
    face: Any, table: str, until: Any
) -> None:
    engine = face.engine()
    runs, count = _runs()

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
            if count() == 1:
                face.server.kill_sessions()

    work()
    assert len(runs) == 2
    assert face.rows(table) == [1]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("caught", [False, True])
def test_a_loss_inside_a_savepoint_is_run_again(
    face: Any, table: str, depth: int, caught: bool
) -> None:
    engine = face.engine()
    runs, count = _runs()

    def nested(session: Session, left: int) -> None:
        with session.begin_nested():
            session.add(Number(n=10 + left))
            session.flush()
            if left:
                nested(session, left - 1)
            elif len(runs) == 1:
                _kill(face, session.connection())
                session.execute(sa.text("SELECT 1"))

    @replayable
    def work() -> None:
        count()
        with Session(engine) as session:
            session.add(Number(n=1))
            session.flush()
            try:
                nested(session, depth - 1)
            except sa.exc.DBAPIError:
                if caught:
                    session.execute(sa.text("SELECT 1"))
                raise
            session.commit()

    work()
    assert len(runs) == 2
    assert face.rows(table) == [1, *range(10, 10 + depth)]


@pytest.mark.parametrize("level", ["", "AUTOCOMMIT"])
def test_a_select_that_wrote_through_a_view_is_not_run_again(
    face: Any, table: str, level: str
) -> None:
    engine = face.engine(isolation_level=level or None) if level else face.engine()
    runs, count = _runs()
    admin = face.server.admin
    body = f"INSERT INTO {table} VALUES (1)"
    admin(
        f"CREATE FUNCTION put_it() RETURNS INT BEGIN {body}; RETURN 1; END"
        if face.is_mysql
        else (
            f"CREATE FUNCTION put_it() RETURNS int LANGUAGE sql SECURITY DEFINER AS '{body}"
            " RETURNING 1'"
        )
    )
    admin("CREATE VIEW writing AS SELECT put_it() AS n")
    if not face.is_mysql:
        admin("GRANT ALL ON writing TO PUBLIC")

    @replayable
    def work() -> None:
        with engine.begin() as conn:
            conn.scalar(sa.text("SELECT n FROM writing"))
        with engine.begin() as conn:
            if count() == 1:
                _kill(face, conn)
            conn.scalar(sa.text("SELECT 1"))

    try:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            work()
        assert len(runs) == 1
        assert any("may write" in note for note in caught.value.__notes__)
        assert face.rows(table) == [1]
    finally:
        engine.dispose()
        admin("DROP VIEW writing")
        admin("DROP FUNCTION put_it")


def test_a_session_that_read_committed_and_reads_again_is_run_again(face: Any, table: str) -> None:
    engine = face.engine(pool_size=1, max_overflow=0)
    runs, count = _runs()

    @replayable
    def work() -> int:
        with Session(engine) as session:
            session.scalars(sa.select(Number)).all()
            session.commit()
            if count() == 1:
                _kill(face, session.connection())
            return len(session.scalars(sa.select(Number)).all())

    assert work() == 0
    assert len(runs) == 2


def test_a_deadlock_is_run_again(face: Any, table: str, in_threads: Any) -> None:
    engine = face.engine()
    with engine.begin() as conn:
        conn.execute(sa.text(f"INSERT INTO {table} VALUES (1), (2)"))
    both, runs = threading.Barrier(2), [0, 0]
    lock = f"SELECT n FROM {table} WHERE n = :n FOR UPDATE"

    @replayable
    def work(i: int) -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(lock), {"n": 1 + i})
            runs[i] += 1
            if runs[i] == 1:
                both.wait(10)
            conn.execute(sa.text(lock), {"n": 2 - i})
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (:n)"), {"n": 10 + i})

    assert in_threads(2, work) == [None, None]
    assert sorted(runs) == [1, 2]
    assert face.rows(table) == [1, 2, 10, 11]


def test_a_connection_from_outside_the_unit_forbids_a_replay(face: Any, table: str) -> None:
    engine = face.engine()
    _, count = _runs()
    with engine.connect() as outside:
        outside.execute(sa.text(f"INSERT INTO {table} VALUES (7)"))

        @replayable
        def work() -> None:
            outside.execute(sa.text(f"INSERT INTO {table} VALUES ({count()})"))
            with engine.begin() as conn:
                _kill(face, conn)
                conn.execute(sa.text("SELECT 1"))

        with pytest.raises(sa.exc.DBAPIError) as caught:
            work()
        assert any("before the unit of work began" in note for note in caught.value.__notes__)
        outside.commit()
    assert face.rows(table) == [1, 7]


def test_outside_of_units_nothing_is_watched_and_nothing_stays_watched(
    face: Any, table: str
) -> None:
    engine = face.engine(pool_size=1)
    plain = type(engine.raw_connection().driver_connection)

    @replayable
    def work() -> type:
        with engine.begin() as conn:
            return type(conn.connection.driver_connection)

    assert work() is not plain
    with engine.connect() as conn:
        assert type(conn.connection.driver_connection) is plain


def test_a_deadline_ends_what_still_blocks(face: Any) -> None:
    engine = face.engine(unbroken={"deadline": 0.5})
    slow = sa.text("SELECT SLEEP(30)" if face.is_mysql else "SELECT pg_sleep(30)")
    with pytest.raises(unbroken.DeadlineExceeded) as caught, engine.connect() as conn:
        conn.execute(slow)
    assert isinstance(caught.value, sa.exc.DBAPIError)
    assert face.ask(engine)
