"""Each driver's errors, provoked on a real server, mean what they mean."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import pytest

from unbroken.abc import OUTAGE_KINDS, Cause, FaultKind


def changed(face: Any, **parts: Any) -> Any:
    """A driver for the face's server with some of the URL changed."""
    server = face.server
    part = {
        "user": server.user,
        "password": server.password,
        "host": "127.0.0.1",
        "port": server.port,
        "database": server.database,
        **parts,
    }
    scheme = face.url().partition("://")[0]
    return face.make(
        f"{scheme}://{part['user']}:{quote(part['password'])}@{part['host']}:{part['port']}/{part['database']}"
    )


def connecting(face: Any, driver: Any, timeout: float = 5.0) -> Any:
    return face.fault(lambda: face.connect(timeout, driver=driver), driver)


def test_a_wrong_password_is_rejected_and_not_told(face: Any) -> None:
    fault = connecting(face, changed(face, password="hunter2-planted"))
    assert fault.kind is FaultKind.REJECTED
    assert "hunter2-planted" not in fault.text
    assert "\n" not in fault.text


def test_an_unknown_database_is_rejected(face: Any) -> None:
    assert connecting(face, changed(face, database="no_such_database")).kind is FaultKind.REJECTED


def test_an_unknown_host_is_an_unknown_name_or_unreachable(face: Any) -> None:
    # .invalid never resolves (RFC 2606); a machine without a name service says "try again" instead
    fault = connecting(face, changed(face, host="no-such-host.invalid"))
    assert fault.kind in (FaultKind.UNKNOWN_NAME, FaultKind.UNREACHABLE)


def test_a_port_where_nobody_listens_is_refused(face: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else can take it
        fault = connecting(face, changed(face, port=sock.getsockname()[1]))
    assert fault.kind is FaultKind.REFUSED


def test_a_unix_socket_that_is_not_there_is_refused(face: Any) -> None:
    server, name = face.server, face.spelling
    query = "unix_socket=/nowhere/at/all" if face.is_mysql else "host=/nowhere"
    scheme = server.url(name).partition("://")[0]
    driver = face.make(f"{scheme}://{server.user}@/{server.database}?{query}")
    assert connecting(face, driver).kind is FaultKind.REFUSED


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of somebody who accepts in the kernel, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_handshake_that_is_never_answered_ends_in_time(face: Any, silent: int) -> None:
    started = time.monotonic()
    fault = connecting(face, changed(face, port=silent), 1.0)
    assert fault.kind is FaultKind.UNREACHABLE
    assert time.monotonic() - started < 4  # mysqlclient: whole seconds


def test_a_frozen_server_bounds_connect_and_ping(own_face: Any) -> None:
    face = own_face
    conn = face.connect()
    face.server.freeze()
    try:
        started = time.monotonic()
        assert connecting(face, face.driver, 1.0).kind is FaultKind.UNREACHABLE
        if face.bounds_calls:
            fault = face.fault(lambda: face.call("ping", conn, 0.5))
            assert (fault.kind, fault.cause) == (FaultKind.LOST, Cause.SILENT_DROP)
            assert not face.driver.is_quiet(conn)
        closing = time.monotonic()
        face.driver.close(conn)
        # whoever waits for the server's answer waits until the thaw
        assert time.monotonic() - closing < 4
        assert time.monotonic() - started < 12
    finally:
        face.server.thaw()


def test_somebody_who_hangs_up_in_the_handshake_is_an_outage(face: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        fault = connecting(face, changed(face, port=listener.getsockname()[1]))
        assert fault.kind in OUTAGE_KINDS
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_killed_session_is_lost(face: Any) -> None:
    conn = face.connect()
    face.execute(conn, "SELECT 1")
    face.server.kill_sessions()
    fault = face.fault(lambda: face.execute(conn, "SELECT 1"))
    assert fault.kind is FaultKind.LOST
    assert fault.is_lost
    # few drivers read the last words
    assert fault.cause in (None, Cause.KILLED, Cause.CONNECTION_RESET, Cause.CLOSED_BY_PEER)


def test_a_session_killed_in_the_middle_of_a_statement_is_lost(face: Any) -> None:
    conn = face.connect()
    session = face.driver.session_id(conn)
    killer = threading.Timer(0.3, lambda: face.server._kill_session(int(session)))
    killer.start()
    fault = face.fault(
        lambda: face.execute(conn, "SELECT SLEEP(20)" if face.is_mysql else "SELECT pg_sleep(20)")
    )
    killer.join()
    assert fault.kind is FaultKind.LOST


def test_a_server_that_was_stopped_is_lost_then_refused(own_face: Any) -> None:
    conn = own_face.connect()
    own_face.server.stop()
    assert own_face.fault(lambda: own_face.execute(conn, "SELECT 1")).kind is FaultKind.LOST
    assert connecting(own_face, own_face.driver).kind is FaultKind.REFUSED


def test_a_server_that_was_killed_is_lost(own_face: Any) -> None:
    conn = own_face.connect()
    own_face.server.kill()
    assert own_face.fault(lambda: own_face.execute(conn, "SELECT 1")).kind is FaultKind.LOST


def test_a_full_server_says_so(face: Any, new_mariadb: Any, new_postgres: Any, faces: Any) -> None:
    server = (
        new_mariadb({"max_connections": 10})
        if face.is_mysql
        else new_postgres({"max_connections": 8, "superuser_reserved_connections": 3})
    )
    full = faces(face.name, server)
    with pytest.raises((*full.driver.errors, OSError)) as caught:
        for _ in range(20):
            full.connect()
    assert full.driver.classify(caught.value).kind is FaultKind.TOO_MANY


def test_a_deadlock_asks_to_try_again(face: Any) -> None:
    table = f"deadlock_{face.name}"
    face.server.admin(
        f"CREATE TABLE {table} (n INT PRIMARY KEY, v INT); INSERT INTO {table} VALUES (1, 0),"
        " (2, 0)"
    )
    face.server.admin(f"GRANT ALL ON {table} TO PUBLIC") if not face.is_mysql else None
    first, second = face.connect(), face.connect()
    try:
        for conn, row in ((first, 1), (second, 2)):
            if not face.driver.capabilities.implicit_begin:
                face.call("begin", conn)
            face.execute(conn, f"UPDATE {table} SET v = 1 WHERE n = {row}")
        kinds = [fault.kind for fault in _cross(face, table, first, second)]
        assert kinds.count(FaultKind.RETRY) == 1
    finally:
        for conn in (first, second):
            face.call("rollback", conn)
        face.server.admin(f"DROP TABLE {table}")


def _cross(face: Any, table: str, first: Any, second: Any) -> list[Any]:
    """Each connection updates the row that the other one holds; gives the faults."""
    faults: list[Any] = []
    sql = [
        (first, f"UPDATE {table} SET v = 2 WHERE n = 2"),
        (second, f"UPDATE {table} SET v = 2 WHERE n = 1"),
    ]
    if face.is_async:
        import asyncio

        async def both() -> list[Any]:
            return await asyncio.gather(
                *(face._execute(conn, text) for conn, text in sql), return_exceptions=True
            )

        return [
            face.driver.classify(answer)
            for answer in face.run(both())
            if isinstance(answer, BaseException)
        ]

    def one(conn: Any, text: str) -> None:
        with suppress(Exception):
            try:
                face.execute(conn, text)
            except Exception as error:
                faults.append(face.driver.classify(error))

    threads = [threading.Thread(target=one, args=pair) for pair in sql]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return faults


def test_a_lock_wait_timeout_is_the_applications_to_handle(mysql_face: Any) -> None:
    face = mysql_face
    table = f"lockwait_{face.name}"
    face.server.admin(f"CREATE TABLE {table} (n INT PRIMARY KEY); INSERT INTO {table} VALUES (1)")
    first, second = face.connect(), face.connect()
    try:
        face.execute(first, f"SELECT * FROM {table} FOR UPDATE")
        face.execute(second, "SET innodb_lock_wait_timeout = 1")
        fault = face.fault(lambda: face.execute(second, f"SELECT * FROM {table} FOR UPDATE"))
        assert (fault.kind, fault.code) == (FaultKind.OTHER, 1205)
    finally:
        for conn in (first, second):
            face.call("rollback", conn)
        face.server.admin(f"DROP TABLE {table}")


def test_a_server_that_became_read_only_says_so(face: Any) -> None:
    table = f"readonly_{face.name}"
    face.server.admin(f"CREATE TABLE {table} (n INT)")
    face.server.admin(f"GRANT ALL ON {table} TO PUBLIC") if not face.is_mysql else None
    option = "read_only" if face.is_mysql else "default_transaction_read_only"
    try:
        with face.server.temporarily(**{option: 1 if face.is_mysql else "on"}):
            conn = face.connect()
            fault = face.fault(lambda: face.execute(conn, f"INSERT INTO {table} VALUES (1)"))
        # servers say the same of a transaction that the application wanted read-only: the pool asks
        # (MySQL's words are about the server, PostgreSQL's about the transaction)
        cause = Cause.FAILOVER if face.is_mysql else None
        assert (fault.kind, fault.cause) == (FaultKind.READ_ONLY, cause)
        face.call("rollback", conn)
        face.driver.close(conn)
    finally:
        face.server.admin(f"DROP TABLE {table}")


def test_the_applications_own_mistakes_are_its_own(face: Any) -> None:
    conn = face.connect()
    for sql in ("SELEKT 1", "SELECT * FROM no_such_table"):
        fault = face.fault(lambda sql=sql: face.execute(conn, sql))
        assert (fault.kind, fault.cause) == (FaultKind.OTHER, None)
        assert not fault.is_lost
        face.call("rollback", conn)
    assert face.driver.classify(ValueError("theirs")).kind is FaultKind.OTHER
    assert face.driver.classify(KeyboardInterrupt()).kind is FaultKind.OTHER
    face.call("ping", conn, 2.0)


@pytest.mark.parametrize("limit", ["idle_session_timeout", "idle_in_transaction_session_timeout"])
def test_a_limit_of_postgresql_is_told_as_the_cause(pg_face: Any, limit: str) -> None:
    face = pg_face
    with face.server.temporarily(**{limit: 300}):
        conn = face.connect()
        if limit.startswith("idle_in"):
            if not face.driver.capabilities.implicit_begin:
                face.call("begin", conn)
            face.execute(conn, "SELECT 1")
        session = face.driver.session_id(conn)
        deadline = time.monotonic() + 10
        while session in {str(s.id) for s in face.server.sessions()}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        fault = face.fault(lambda: face.execute(conn, "SELECT 1"))
    assert fault.kind is FaultKind.LOST
    expected = Cause.IDLE_LIMIT if limit == "idle_session_timeout" else Cause.TRANSACTION_LIMIT
    assert fault.cause in (expected, None)  # asyncpg has read it and thrown it away by then
