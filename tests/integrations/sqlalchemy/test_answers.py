"""A ROLLBACK that ends the use of a connection is sent, and nobody waits for its answer."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from ..counting import per_request
from .conftest import DRIVERS

pytestmark = pytest.mark.usefixtures("sessions_are_not_counted")

#: one way, in seconds; long, so that a slow machine counts the same round trips
FAR = 0.025
#: what a request of one SELECT costs with each driver
TRIPS = {"pymysql": 1, "psycopg": 1, "pg8000": 1}


@pytest.fixture(params=[*DRIVERS, pytest.param("pg8000", marks=pytest.mark.soak)])
def face(request: pytest.FixtureRequest, faces: Any) -> Any:
    """Each driver in turn, on the shared server of its kind."""
    kind = "postgres" if request.param in ("psycopg", "pg8000") else "mariadb"
    return faces(request.param, request.getfixturevalue(kind))


@pytest.fixture
def far(face: Any) -> Any:
    """A function that gives an engine far from its server, and one that counts round trips."""
    proxy, stock = face.proxy(), face.table("stock")
    face.server.admin(f"INSERT INTO {stock} VALUES (42)")

    def engine(**kwargs: Any) -> sa.Engine:
        made: sa.Engine = face.engine(face.through(proxy), **{"pool_size": 1, **kwargs})
        for _ in range(3):  # the first one connects; the first answer is looked at before it counts
            with made.connect() as conn:
                conn.execute(sa.text("SELECT n FROM stock"))
        proxy.latency(FAR)
        with made.connect() as conn:
            conn.execute(sa.text("SELECT n FROM stock"))
        return made

    engine.proxy = proxy  # type: ignore[attr-defined]
    return engine


def trips(face: Any, far: Any, request: Any) -> float:
    """How many round trips each *request* costs that comes right after another one."""
    if face.name not in TRIPS:
        pytest.skip("its next statement waits for the answer")

    return per_request(far.proxy, FAR, request)


def test_a_request_that_reads_once_costs_one_round_trip(face: Any, far: Any) -> None:
    engine = far()

    def request() -> None:
        with engine.connect() as conn:
            assert conn.scalar(sa.text("SELECT n FROM stock")) == 42

    assert trips(face, far, request) == TRIPS[face.name]


def test_pg8000_costs_one_round_trip_too_and_two_with_a_write(
    faces: Any, postgres: Any, until: Any
) -> None:
    face = faces("pg8000", postgres)
    proxy, stock = face.proxy(), face.table("stock")
    engine = face.engine(face.through(proxy), pool_size=1)
    select, insert = (
        sa.text(f"SELECT n FROM {stock} WHERE n = :n"),
        sa.text(f"INSERT INTO {stock} VALUES (:n)"),
    )
    numbers = itertools.count()

    def read() -> None:
        with engine.connect() as conn:
            assert conn.scalar(select, {"n": -1}) is None

    def commit() -> None:
        with Session(engine) as session:
            assert session.scalar(select, {"n": -1}) is None
            session.commit()

    def write() -> None:
        with engine.begin() as conn:
            conn.execute(insert, {"n": next(numbers)})

    for _ in range(4):
        read()
        time.sleep(0.02)
    proxy.latency(0.005)
    for request, wanted in ((read, 1), (commit, 1), (write, 2)):
        request()

        def is_as_wanted(request: Any = request, wanted: int = wanted) -> bool:
            before = proxy.round_trips  # a pause of this machine costs one more now and then
            for _ in range(4):
                request()
            return int(proxy.round_trips - before) == 4 * wanted

        until(is_as_wanted, 5.0)
    assert len(face.rows(stock)) == next(numbers)


def test_a_session_that_is_closed_costs_one_as_well(face: Any, far: Any) -> None:
    engine = far()

    def request() -> None:
        with Session(engine) as session:
            assert session.scalar(sa.text("SELECT n FROM stock")) == 42

    assert trips(face, far, request) == TRIPS[face.name]


def test_a_commit_of_nothing_but_reads_costs_none(face: Any, far: Any) -> None:
    engine = far()

    def request() -> None:
        with Session(engine) as session:
            assert session.scalar(sa.text("SELECT n FROM stock")) == 42
            session.commit()

    assert trips(face, far, request) == TRIPS[face.name]


def test_a_session_on_which_each_commit_chains_is_asked_each_time(face: Any, far: Any) -> None:
    if not face.is_mysql:
        pytest.skip("completion_type is MySQL's")
    with far().connect() as conn:
        conn.execute(sa.text("/* why */ SET SESSION completion_type = CHAIN"))
        for _ in range(3):
            assert conn.scalar(sa.text("SELECT n FROM stock")) == 42
            conn.commit()


def test_a_session_in_somebody_elses_connection_waits_for_its_rollback(face: Any, far: Any) -> None:
    engine = far()

    def request() -> None:
        with engine.connect() as conn:
            with Session(conn) as session:
                assert session.scalar(sa.text("SELECT n FROM stock FOR UPDATE")) == 42
            assert not conn.in_transaction()

    assert trips(face, far, request) == TRIPS[face.name] + 1


@pytest.mark.parametrize("statement", ["SELECT n FROM stock FOR UPDATE", "UPDATE stock SET n = 42"])
def test_a_commit_that_frees_locks_or_stores_something_is_waited_for(
    face: Any, far: Any, statement: str
) -> None:
    engine = far()

    def request() -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(statement))

    assert trips(face, far, request) == TRIPS[face.name] + 1


def test_a_server_whose_commit_opens_the_next_transaction_is_asked_each_time(
    face: Any, far: Any
) -> None:
    if not face.is_mysql:
        pytest.skip("completion_type is MySQL's")
    engine = far()

    @event.listens_for(engine, "connect")
    def connect(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.cursor().execute("SET SESSION completion_type = CHAIN")

    engine.dispose()
    for _ in range(5):
        with Session(engine) as session:
            assert session.scalar(sa.text("SELECT n FROM stock")) == 42
            session.commit()
            session.execute(sa.text("UPDATE stock SET n = n + 1"))
            session.commit()
            session.execute(sa.text("UPDATE stock SET n = n - 1"))
            session.commit()


def test_a_rollback_that_the_application_asks_for_is_waited_for(face: Any, far: Any) -> None:
    engine = far()

    def request() -> None:
        with engine.connect() as conn:
            conn.execute(sa.text("SELECT n FROM stock"))
            conn.rollback()

    assert trips(face, far, request) == TRIPS[face.name] + 1


def test_locks_are_free_once_the_server_has_read_it(face: Any, far: Any) -> None:
    engine, plain = far(), face.engine()
    conn = engine.connect()
    conn.execute(sa.text("SELECT n FROM stock FOR UPDATE"))
    conn.close()
    got = threading.Event()

    def lock() -> None:
        with plain.begin() as other:
            other.execute(sa.text("SELECT n FROM stock FOR UPDATE"))
        got.set()

    threading.Thread(target=lock, daemon=True).start()
    assert got.wait(5.0)


def test_what_a_listener_sends_at_checkin_gets_its_own_answer(far: Any) -> None:
    engine = far()
    heard: list[Any] = []

    @event.listens_for(engine, "checkin")
    def checkin(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("SELECT n / 6 FROM stock")
        heard.append(cursor.fetchone()[0])
        cursor.close()
        dbapi_connection.rollback()

    for _ in range(5):
        with engine.connect() as conn:
            assert conn.scalar(sa.text("SELECT n FROM stock")) == 42
    assert heard == [7] * 5


def test_an_isolation_level_of_one_use_is_put_back_as_sqlalchemy_does(far: Any) -> None:
    engine = far()
    usual = engine.connect().get_isolation_level()
    for _ in range(3):
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            assert conn.scalar(sa.text("SELECT n FROM stock")) == 42
        with engine.connect() as conn:
            assert conn.get_isolation_level() == usual
            assert conn.scalar(sa.text("SELECT n FROM stock")) == 42


def test_a_connection_that_is_killed_while_its_answer_is_due_is_replaced_unseen(
    face: Any, far: Any, stats: Any, until: Any
) -> None:
    engine = far()
    with engine.connect() as conn:
        number = conn.scalar(face.session_id)
    face.server.admin(
        f"KILL {number}" if face.is_mysql else f"SELECT pg_terminate_backend({number})"
    )
    until(lambda: stats(engine).idle == 0)
    with engine.connect() as conn:
        assert conn.scalar(sa.text("SELECT n FROM stock")) == 42
        assert conn.scalar(face.session_id) != number
