"""What befalls an engine's connections: idle limits, kills, restarts, crashes, outages, forks.

The app must see none of it.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import unbroken
from unbroken_drill.servers import PostgreSQL

#: Where raw_fork.py is, which forks as a C library does.
RAW_FORK = Path(__file__).parents[2] / "pool"


@pytest.fixture
def idle_setting() -> Any:
    def setting(face: Any, seconds: int) -> dict[str, Any]:
        return (
            {"wait_timeout": seconds} if face.is_mysql else {"idle_session_timeout": f"{seconds}s"}
        )

    return setting


def test_connections_that_the_server_ended_for_idling_are_replaced_unseen(
    face: Any, stats: Any, until: Any, idle_setting: Any, in_close_wait: Any
) -> None:
    with face.server.temporarily(**idle_setting(face, 1)):
        engine = face.engine(unbroken={"idle_limit": math.inf})  # so that the server is first
        before = face.warm(engine, 3)
        until(lambda: stats(engine).size == 0)  # without any traffic
        assert in_close_wait() == 0
        assert not {face.ask(engine) for _ in range(5)} & set(before)
        assert sum(stats(engine).closed.values()) == 3
        assert "lost in use" not in stats(engine).closed


def test_the_servers_idle_limit_is_asked_for_and_connections_are_closed_before_it(
    face: Any, stats: Any, until: Any, idle_setting: Any
) -> None:
    with face.server.temporarily(**idle_setting(face, 1)):
        engine = face.engine(face.url() + ("&" if "?" in face.url() else "?") + "plugin=unbroken")
        face.warm(engine, 2)
        until(lambda: stats(engine).closed.get("max idle") == 2)
        assert stats(engine).idle_limit == 1.0
        face.ask(engine)


def test_killed_idle_connections_are_never_an_error(
    face: Any, stats: Any, in_close_wait: Any, until: Any
) -> None:
    engine = face.engine(pool_size=4)
    for _ in range(4):
        before = face.warm(engine, 4)
        face.server.kill_sessions()
        assert not {face.ask(engine) for _ in range(8)} & set(before)
    until(lambda: in_close_wait() == 0)


def test_after_a_death_only_the_dead_are_thrown_away(face: Any, stats: Any, until: Any) -> None:
    engine = face.engine(pool_size=3)
    numbers = face.warm(engine, 3)
    face.server._kill_session(numbers[1])
    until(lambda: numbers[1] not in {s.id for s in face.server.sessions()})
    after = set(face.warm(engine, 3))
    assert {numbers[0], numbers[2]} <= after
    assert numbers[1] not in after


def test_a_connection_killed_in_use_is_an_error_once_and_takes_no_other_with_it(
    face: Any, stats: Any
) -> None:
    engine = face.engine(pool_size=3)
    numbers = face.warm(engine, 3)
    with pytest.raises(sa.exc.DBAPIError) as caught, engine.connect() as conn:
        mine = conn.scalar(face.session_id)
        face.server._kill_session(mine)
        for _ in range(100):
            conn.execute(face.session_id)
            time.sleep(0.01)
    assert caught.value.connection_invalidated
    assert set(face.warm(engine, 3)) >= set(numbers) - {mine}
    assert sum(stats(engine).closed.values()) == 1


def test_callers_wait_through_a_restart_while_one_prober_tries(
    own_face: Any, stats: Any, in_threads: Any
) -> None:
    engine = own_face.engine(pool_size=6)
    own_face.warm(engine, 6)
    own_face.server.stop()
    starter = threading.Timer(0.7, own_face.server.start)
    starter.start()
    results = in_threads(6, lambda _: own_face.ask(engine))
    starter.join()
    assert all(isinstance(result, int) for result in results), results
    assert stats(engine).outages == 1
    # six callers without a gate would have tried thousands of times
    assert stats(engine).connect_failures < 300
    own_face.warm(engine, 6)


def test_a_crash_leaves_nothing_behind(
    own_face: Any, stats: Any, in_close_wait: Any, until: Any
) -> None:
    engine = own_face.engine(pool_size=3)
    own_face.warm(engine, 3)
    own_face.server.crash()
    own_face.ask(engine)
    until(lambda: in_close_wait() == 0)
    assert stats(engine).used == 0


def test_an_outage_is_told_in_time_then_at_once_and_ends_without_traffic(
    own_face: Any, stats: Any, until: Any
) -> None:
    engine = own_face.engine(unbroken={"outage_wait": 0.3})
    own_face.ask(engine)
    own_face.server.stop()
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(unbroken.OutageError, match="down for") as caught:
            own_face.ask(engine)
        assert isinstance(caught.value, sa.exc.OperationalError)
        assert own_face.server.password not in str(caught.value)
    assert stats(engine).turned_away >= 19
    assert time.monotonic() - began < 20 * 0.3  # each but the first one was told at once
    own_face.server.start()
    until(lambda: stats(engine).away_for == 0.0)
    own_face.ask(engine)


def test_a_wrong_password_is_said_at_once_in_the_servers_words(face: Any, stats: Any) -> None:
    engine = face.engine(sa.make_url(face.url()).set(password="wrong"))
    with pytest.raises(sa.exc.DBAPIError) as caught:
        face.ask(engine)
    assert not isinstance(caught.value.orig, unbroken.UnbrokenError)
    assert stats(engine).away_for == 0.0
    assert "wrong" not in str(caught.value.orig)


def test_a_server_that_is_full_is_waited_for(
    new_postgres: Any, faces: Any, in_threads: Any
) -> None:
    server: PostgreSQL = new_postgres({"max_connections": 6, "superuser_reserved_connections": 3})
    face = faces("psycopg", server)
    hog, engine = face.bare(), face.engine()
    held = [hog.connect() for _ in range(3)]
    for conn in held:
        conn.execute(face.session_id)
    threading.Timer(0.4, lambda: [conn.invalidate() for conn in held]).start()
    assert isinstance(in_threads(1, lambda _: face.ask(engine))[0], int)


def test_a_server_that_became_read_only_is_left(face: Any, stats: Any) -> None:
    table = face.table("readonly_t")
    engine = face.engine()
    before = face.ask(engine)
    option = {"read_only": 1} if face.is_mysql else {"default_transaction_read_only": "on"}
    with (
        face.server.temporarily(**option),
        pytest.raises(sa.exc.DBAPIError),
        engine.begin() as conn,
    ):
        conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
    # the INSERT waited for a server that takes writes, and none came
    closed = stats(engine).closed
    assert closed.pop("failover") >= 1
    assert set(closed) <= {"drained"}
    assert face.ask(engine) != before


@pytest.mark.parametrize("how", ["session", "transaction"])
def test_a_transaction_that_the_application_wanted_read_only_is_no_failover(
    face: Any, stats: Any, how: str
) -> None:
    table = face.table("readonly_t")
    engine = face.engine()
    idle = [engine.connect() for _ in range(2)]
    before = {conn.scalar(face.session_id) for conn in idle}
    for conn in idle:
        conn.close()
    session = (
        "SET SESSION TRANSACTION READ ONLY"
        if face.is_mysql
        else "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    )
    transaction = "START TRANSACTION READ ONLY" if face.is_mysql else "SET TRANSACTION READ ONLY"
    with engine.connect() as conn:
        conn.execute(sa.text(session if how == "session" else transaction))
        if how == "session":
            conn.commit()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            conn.execute(sa.text(f"INSERT INTO {table} VALUES (1)"))
        assert not caught.value.connection_invalidated
    assert stats(engine).closed.get("failover", 0) == 0
    assert {face.ask(engine) for _ in range(3)} <= before


def test_a_forked_child_has_sessions_of_its_own_and_leaves_its_parents_alone(
    face: Any, script: Any
) -> None:
    script(
        """
        import gc, os, sys
        import sqlalchemy as sa
        url, question, how = sys.argv[1:]
        engine = sa.create_engine(url, plugins=["unbroken"], pool_size=3)
        ask = sa.text(question)

        def one():
            with engine.connect() as conn:
                return conn.scalar(ask)

        held = [engine.connect() for _ in range(3)]
        mine = {conn.scalar(ask) for conn in held}
        kept = held.pop()
        for conn in held:
            conn.close()
        children = []
        for turn in range(3):
            pid = os.fork()
            if not pid:
                if turn == 1:
                    engine.dispose(close=False)   # the documented recipe
                if turn == 2:
                    kept.close()
                theirs = {one() for _ in range(20)}
                del kept, held, conn
                gc.collect()
                sys.exit(0 if not theirs & mine else 1)
            children.append(pid)
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert kept.scalar(ask) in mine
        kept.close()
        assert {one() for _ in range(20)} <= mine, "a child has ended a session of its parent's"
        """,
        face.url(),
        str(face.session_id),
        "",
    )


def test_a_fork_that_python_does_not_see_is_noticed_at_checkout(face: Any, script: Any) -> None:
    script(
        """
        import os, sys
        import sqlalchemy as sa
        url, question, tools = sys.argv[1:]
        sys.path.insert(0, tools)
        from raw_fork import raw_fork
        engine = sa.create_engine(url, plugins=["unbroken"])
        ask = sa.text(question)

        def one():
            with engine.connect() as conn:
                return conn.scalar(ask)

        mine = one()
        pid = raw_fork()   # as uWSGI's master does
        if not pid:
            other = one()
            engine.dispose()
            os._exit(0 if other != mine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert mine in {one() for _ in range(20)}   # a connect that is slow has another beginning beside it
        """,  # noqa: E501
        face.url(),
        str(face.session_id),
        str(RAW_FORK),
    )


def test_a_file_that_an_option_names_is_named_with_its_place_and_concerns_no_other_engine(
    face: Any, tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.pem")
    if face.name == "mysqldb":
        pytest.skip("mysqlclient reads the file only where the server offers TLS")
    args: dict[str, Any] = (
        {"ssl": {"ca": missing}}
        if face.is_mysql
        else {"sslmode": "verify-ca", "sslrootcert": missing}
    )
    wrong, sound = face.engine(connect_args=args), face.engine()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(sa.exc.DBAPIError) as caught:
            wrong.connect()
        assert time.monotonic() - started < 1.5
        assert isinstance(caught.value.orig, unbroken.ConfigurationError)
        name = "ssl.ca" if face.is_mysql else "sslrootcert"
        assert f"{name}={missing} in connect_args: there is no such file" in str(caught.value)
    with sound.connect() as conn:
        assert conn.scalar(sa.text("SELECT 1")) == 1


def test_an_argument_that_the_driver_does_not_take_is_told_at_once(face: Any) -> None:
    started = time.monotonic()
    with pytest.raises(sa.exc.DBAPIError) as caught:
        face.engine(connect_args={"no_such_argument": "x"}).connect()
    assert time.monotonic() - started < 1.5
    assert isinstance(caught.value.orig, unbroken.ConfigurationError)
    assert "see no_such_argument=x in connect_args" in str(caught.value)
