"""Units of work around engines and Sessions: replayed where nothing can have been committed, and only there."""

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


def test_a_session_that_lost_its_connection_before_the_commit_is_run_again(face: Any, table: str) -> None:
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
    assert any("a COMMIT was acknowledged before" in note for note in caught.value.__notes__)
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
    with pytest.raises(unbroken.CommitUnknownError), engine.begin() as conn:  # outside of a unit it is said as well
        conn.execute(sa.text(f"INSERT INTO {table} VALUES (2)"))
        proxy.cut_at("COMMIT")


def test_a_commit_that_never_went_out_is_lost_and_run_again(face: Any, table: str, until: Any) -> None:
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


def test_outside_of_units_nothing_is_watched_and_nothing_stays_watched(face: Any, table: str) -> None:
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
