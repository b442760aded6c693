"""What every driver does alike: connect, ask, tell, close."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from unbroken.abc import AsyncDriver, Driver, FaultKind
from unbroken.drivers.url import parse


def test_it_is_what_the_pools_call(face: Any) -> None:
    assert isinstance(face.driver, AsyncDriver if face.is_async else Driver)
    assert face.driver.errors
    assert all(issubclass(cls, Exception) for cls in face.driver.errors)
    assert face.driver.target == parse(face.url())


def test_a_new_connection_shows_itself(face: Any) -> None:
    conn = face.connect()
    fd = face.driver.fileno(conn)
    assert fd > 2 if face.driver.capabilities.fileno else fd is None
    assert face.driver.session_id(conn) in {str(session.id) for session in face.server.sessions()}
    assert face.driver.is_quiet(conn)
    assert face.driver.is_in_transaction(conn) is not True


def test_the_connection_is_the_drivers_own(face: Any) -> None:
    conn = face.connect()
    assert type(conn).__module__.split(".")[0] in face.libraries


def test_a_ping_opens_no_transaction(face: Any) -> None:
    conn = face.connect()
    face.execute(conn, "SELECT 1")
    face.call("rollback", conn)
    face.call("ping", conn, 2.0)
    assert face.driver.is_in_transaction(conn) is False
    assert face.driver.is_quiet(conn)


def test_asking_for_the_idle_limit_opens_no_transaction(face: Any) -> None:
    option = "wait_timeout" if face.is_mysql else "idle_session_timeout"
    with face.server.temporarily(**{option: 77 if face.is_mysql else 77000}):
        conn = face.connect()
        assert face.call("idle_limit", conn) == 77.0
    assert face.driver.is_in_transaction(conn) is False
    face.call("ping", conn, 2.0)


def test_no_limit_of_postgresql_is_none(pg_face: Any) -> None:
    assert pg_face.call("idle_limit", pg_face.connect()) is None


def test_a_commit_stores_and_a_rollback_does_not(face: Any) -> None:
    table = f"contract_{face.name}"
    face.server.admin(f"CREATE TABLE {table} (n INT)")
    try:
        conn = face.connect()
        if not face.is_mysql:
            face.server.admin(f"GRANT ALL ON {table} TO PUBLIC")
        for number, end in ((1, "commit"), (2, "rollback")):
            if not face.driver.capabilities.implicit_begin:
                face.call("begin", conn)
            face.execute(conn, f"INSERT INTO {table} VALUES ({number})")
            assert face.driver.is_in_transaction(conn) is not False
            face.call(end, conn)
            assert face.driver.is_in_transaction(conn) is False
        assert face.server.admin(f"SELECT n FROM {table}") == [("1",)]
    finally:
        face.call("rollback", conn)
        face.server.admin(f"DROP TABLE {table}")


def test_ending_what_is_not_open_sends_nothing(face: Any) -> None:
    conn = face.connect()
    face.execute(conn, "SELECT 1")
    face.call("commit", conn)
    face.server.freeze()
    try:
        started = time.monotonic()
        face.call("commit", conn)  # would block for ever if it asked the server
        face.call("rollback", conn)
        assert time.monotonic() - started < 5
    finally:
        face.server.thaw()


def test_closed_twice_is_closed(face: Any) -> None:
    conn = face.connect()
    face.driver.close(conn)
    face.driver.close(conn)
    assert face.driver.fileno(conn) is None
    assert face.driver.is_in_transaction(conn) is not True
    assert not face.driver.is_quiet(conn)


def test_using_a_closed_connection_is_a_lost_connection(face: Any) -> None:
    conn = face.connect()
    face.driver.close(conn)
    assert face.fault(lambda: face.execute(conn, "SELECT 1")).kind is FaultKind.LOST
    assert face.fault(lambda: face.call("ping", conn, 1.0)).kind is FaultKind.LOST


def test_a_connection_of_the_callers_own_making_is_served_alike(face: Any) -> None:
    driver = face.make(None, connect=face.by_library, driver=face.driver.name)
    conn = face.connect(driver=driver)
    face.execute(conn, "SELECT 1")
    face.call("commit", conn, driver=driver)
    assert driver.is_in_transaction(conn) is False
    assert driver.is_quiet(conn)


def test_a_unix_socket_is_as_good(face: Any) -> None:
    driver = face.make(face.url(unix=True))
    conn = face.connect(driver=driver)
    assert (driver.fileno(conn) is not None) is driver.capabilities.fileno
    assert driver.target.server == (
        face.server.unix_socket if face.is_mysql else driver.target.unix_socket
    )


def test_in_the_middle_of_an_exchange_nothing_is_certain(mysql_face: Any) -> None:
    conn = mysql_face.connect()
    cursor = mysql_face.streaming_cursor(conn)
    if mysql_face.is_async:

        async def start() -> Any:
            c = await cursor
            await c.execute("SELECT seq FROM seq_1_to_5000")
            return c

        cursor = mysql_face.run(start())
    else:
        cursor.execute("SELECT seq FROM seq_1_to_5000")
    assert not mysql_face.driver.is_quiet(conn)
    assert mysql_face.driver.is_in_transaction(conn) is not False
    with suppress(*mysql_face.driver.errors):  # mysql-connector refuses while rows are unread
        mysql_face.run(cursor.close())


def test_asyncpg_in_the_middle_of_an_exchange_is_not_quiet(faces: Any, postgres: Any) -> None:
    import asyncio

    face = faces("asyncpg", postgres)
    conn = face.connect()

    async def scene() -> tuple[bool, bool | None, bool]:
        task = asyncio.create_task(conn.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0.05)
        busy = face.driver.is_quiet(conn), face.driver.is_in_transaction(conn)
        await task
        return (*busy, face.driver.is_quiet(conn))

    assert face.run(scene()) == (False, None, True)
