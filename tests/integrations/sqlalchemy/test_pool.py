"""What SQLAlchemy's pool promises stays promised; what is given up needlessly is not sent; what
leaks is named.
"""

from __future__ import annotations

import gc
import logging
import math
import pickle
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

import unbroken
import unbroken.sqlalchemy
from unbroken.sqlalchemy import AsyncUnbrokenQueuePool, UnbrokenQueuePool


def test_pool_size_overflow_and_timeout_are_sqlalchemys(face: Any, stats: Any) -> None:
    engine = face.engine(pool_size=2, max_overflow=1, pool_timeout=0.2)
    held = [engine.connect() for _ in range(3)]
    assert engine.pool.checkedout() == 3
    assert engine.pool.overflow() == 1
    with pytest.raises(
        sa.exc.TimeoutError, match="QueuePool limit of size 2 overflow 1 reached"
    ) as caught:
        engine.connect()
    assert any("test_pool.py" in note for note in caught.value.__notes__)
    for conn in held:
        conn.close()
    assert engine.pool.checkedin() == 2
    assert engine.pool.status().startswith("Pool size: 2  Connections in pool: 2")
    assert stats(engine).closed == {"surplus": 1}
    assert stats(engine).timeouts == 1


def test_a_waiter_is_served_when_a_connection_comes_back(face: Any, in_threads: Any) -> None:
    engine = face.engine(pool_size=2, max_overflow=0)
    assert (
        len(
            {
                number
                for numbers in in_threads(8, lambda _: [face.ask(engine) for _ in range(20)])
                for number in numbers
            }
        )
        <= 2
    )


@pytest.mark.parametrize("lifo", [False, True])
def test_the_order_is_the_one_that_was_asked_for(face: Any, lifo: bool) -> None:
    engine = face.engine(pool_size=3, pool_use_lifo=lifo)
    face.warm(engine, 3)
    assert len({face.ask(engine) for _ in range(3)}) == (1 if lifo else 3)


def test_events_are_called_as_sqlalchemy_says(face: Any) -> None:
    engine = face.engine(pool_size=1)
    seen: list[str] = []
    for name in (
        "connect",
        "checkout",
        "reset",
        "checkin",
        "invalidate",
        "close",
        "detach",
        "close_detached",
    ):
        event.listen(engine, name, lambda *_, name=name: seen.append(name))
    face.ask(engine)
    assert seen == ["connect", "checkout", "reset", "checkin"]
    seen.clear()
    with engine.connect() as conn:
        conn.invalidate()
    assert seen == ["checkout", "invalidate", "close", "checkin"]
    seen.clear()
    conn = engine.connect()
    conn.detach()
    conn.close()
    assert seen == ["connect", "checkout", "detach", "reset", "close_detached"]


def test_a_death_without_traffic_is_told_to_event_listeners(face: Any, until: Any) -> None:
    engine = face.engine()
    seen: list[str] = []
    event.listen(engine, "close", lambda *_: seen.append("close"))
    face.ask(engine)
    face.server.kill_sessions()
    until(lambda: seen == ["close"])


def test_dispose_closes_what_is_idle_and_the_engine_goes_on(face: Any, stats: Any) -> None:
    engine = face.engine(pool_size=3)
    before = face.warm(engine, 2)
    old = engine.pool
    engine.dispose()
    assert type(engine.pool) is type(old)
    assert engine.pool is not old
    assert face.ask(engine) not in before
    assert stats(engine).closed == {"drained": 2}
    assert stats(engine).opened == 3  # the numbers are the engine's, not one pool's


def test_recycle_and_reset_on_return_keep_their_meaning(face: Any) -> None:
    table = face.table("reset_t")
    engine = face.engine(pool_reset_on_return="commit")
    raw = engine.raw_connection()
    raw.cursor().execute(f"INSERT INTO {table} VALUES (1)")
    raw.close()
    assert face.rows(table) == [1]
    assert face.engine(pool_recycle=7).pool._recycle == 7


@pytest.mark.parametrize("how", ["commit", "rollback", "leave open"])
def test_no_transaction_survives_and_no_row_is_foreign(face: Any, how: str) -> None:
    table = face.table("left_t")
    engine = face.engine(pool_size=1, max_overflow=0)
    conn = engine.connect()
    conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
    getattr(conn, how, lambda: None)()
    conn.close()
    with engine.connect() as conn:
        assert conn.scalar(sa.text(f"SELECT COUNT(*) FROM {table}")) == (
            1 if how == "commit" else 0
        )


def _messages(face: Any, make: Any, request: Any, **kwargs: Any) -> int:
    proxy = face.proxy()
    engine = make(face.through(proxy), **kwargs)
    for _ in range(3):
        request(engine)
    counts: list[int] = []
    for _ in range(3):  # a pause of this machine costs one more
        before = proxy.round_trips
        for _ in range(10):
            request(engine)
        counts.append(int(proxy.round_trips - before))
    return min(counts)


@pytest.mark.usefixtures("sessions_are_not_counted")
def test_no_round_trip_is_added_and_the_rollback_after_a_commit_is_gone(face: Any) -> None:
    table = face.table("wire_t")

    def read(engine: sa.Engine) -> None:
        with engine.connect() as conn:
            conn.execute(sa.text(f"SELECT * FROM {table}"))

    def write(engine: sa.Engine) -> None:
        with engine.begin() as conn:
            conn.execute(sa.text(f"DELETE FROM {table}"))

    def constant(engine: sa.Engine) -> None:
        with engine.connect() as conn:
            conn.execute(sa.text("SELECT 1"))

    bare = {work: _messages(face, face.bare, work) for work in (read, write, constant)}
    ours = {work: _messages(face, face.engine, work) for work in (read, write, constant)}
    assert ours[read] <= bare[read]
    # psycopg knows by itself that nothing is open, but sends BEGIN with the first statement
    saves = 10 if face.is_mysql or face.name == "psycopg" else 0
    assert bare[write] - saves - 1 <= ours[write] <= bare[write] - saves
    if face.name == "pymysql":
        assert ours[constant] == bare[constant] - 10  # nothing was opened: nothing is rolled back


def test_what_is_forgotten_comes_back_and_is_reported_with_its_place(
    face: Any, stats: Any, caplog: Any, until: Any
) -> None:
    engine = face.engine(pool_size=5, max_overflow=0, pool_timeout=5)

    def forgetful() -> None:
        conn = engine.connect()
        conn.scalar(face.session_id)
        cycle: list[Any] = [conn]
        cycle.append(cycle)

    gc.disable()
    try:
        with caplog.at_level(logging.WARNING, "unbroken"):
            for _ in range(8):
                forgetful()
            for _ in range(12):
                face.ask(engine)
            until(lambda: stats(engine).leaked >= 5)
    finally:
        gc.enable()
    assert "forgotten" in caplog.text
    assert (
        "in test_what_is_forgotten_comes_back_and_is_reported_with_its_place.<locals>.forgetful"
        in caplog.text
    )
    assert stats(engine).size <= 5


def test_what_is_held_for_too_long_is_named_once_and_taken_back_if_wanted(
    face: Any, stats: Any, caplog: Any, until: Any
) -> None:
    engine = face.engine(
        pool_size=1, max_overflow=0, pool_timeout=5, unbroken={"leak_after": 1.0, "reclaim": True}
    )
    with caplog.at_level(logging.WARNING, "unbroken"):
        held = engine.connect()
        mine = held.scalar(face.session_id)
        assert face.ask(engine) != mine  # its place was given to this one
    assert caplog.text.count("has been held for") == 1
    assert "in test_what_is_held_for_too_long_is_named_once_and_taken_back_if_wanted" in caplog.text
    with pytest.raises(sa.exc.DBAPIError):
        held.execute(face.session_id)
    held.close()
    assert engine.pool.checkedout() == 0
    assert face.ask(engine)
    assert stats(engine).closed["reclaimed"] == 1


def test_the_place_of_a_session_is_where_it_was_used(
    face: Any, stats: Any, caplog: Any, until: Any
) -> None:
    from sqlalchemy.orm import Session

    engine = face.engine(unbroken={"leak_after": 0.1})
    with caplog.at_level(logging.WARNING, "unbroken"), Session(engine) as session:
        session.execute(face.session_id)
        until(lambda: "has been held for" in caplog.text)
    assert "in test_the_place_of_a_session_is_where_it_was_used" in caplog.text


def test_a_retired_connection_is_replaced_in_the_background(
    face: Any, stats: Any, until: Any
) -> None:
    engine = face.engine(unbroken={"max_age": 0.4})
    before = face.ask(engine)
    until(lambda: stats(engine).closed == {"max age": 1})
    assert face.ask(engine) != before


def test_settings_come_from_the_url_and_from_the_dictionary(face: Any) -> None:
    url = sa.make_url(face.url()).update_query_dict(
        {"plugin": "unbroken", "leak_after": "7", "name": "shop"}
    )
    engine = sa.create_engine(
        url, unbroken={"leak_after": 8, "max_size": 3, "acquire_timeout": 2.5}
    )
    settings = engine.pool._plan.settings
    assert (settings.leak_after, settings.name) == (8, "shop")
    assert (engine.pool.size(), engine.pool._max_overflow, engine.pool.timeout()) == (3, 0, 2.5)
    assert not {"plugin", "leak_after", "name"} & set(engine.url.query)
    assert face.ask(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"unbroken": {"leek_after": 1}}, "did you mean 'leak_after'"),
        ({"unbroken": {"leak_after": -1}}, "leak_after=-1 must be more than 0 s"),
        (
            {"unbroken": {"max_size": 3}, "pool_size": 2},
            "max_size and SQLAlchemy's pool_size are the same setting",
        ),
        ({"unbroken": {"min_size": 3}}, "min_size has no effect here"),
        ({"unbroken": "yes"}, "must be a dict of settings"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(unbroken.ConfigurationError, match=words):
        sa.create_engine("mysql+pymysql://localhost/shop", plugins=["unbroken"], **kwargs)


def test_pools_are_chosen_with_care(caplog: Any) -> None:
    def pool_of(url: str, **kwargs: Any) -> Any:
        return sa.create_engine(url, plugins=["unbroken"], **kwargs).pool

    assert type(pool_of("mysql+pymysql://localhost/shop")) is UnbrokenQueuePool
    assert (
        type(pool_of("mysql+pymysql://localhost/shop", poolclass=sa.QueuePool)) is UnbrokenQueuePool
    )
    assert type(pool_of("mysql+pymysql://localhost/shop", poolclass=sa.NullPool)) is sa.NullPool
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert not isinstance(pool_of("sqlite://"), UnbrokenQueuePool | AsyncUnbrokenQueuePool)
    from sqlalchemy.ext.asyncio import create_async_engine

    made = create_async_engine("postgresql+asyncpg://localhost/shop", plugins=["unbroken"])
    assert type(made.sync_engine.pool) is AsyncUnbrokenQueuePool
    with pytest.raises(unbroken.ConfigurationError, match="does not use an unbroken pool"):
        unbroken.sqlalchemy.stats(sa.create_engine("sqlite://"))


def test_errors_can_be_pickled(own_face: Any) -> None:
    engine = own_face.engine(unbroken={"outage_wait": 0.0})
    own_face.server.stop()
    with pytest.raises(unbroken.OutageError) as caught:
        own_face.ask(engine)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert math.isclose(copy.retry_after, 1.0)
    assert isinstance(copy.orig, unbroken.OutageError)
